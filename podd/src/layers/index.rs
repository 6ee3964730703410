//! What has become which layer, so that nothing is unpacked or copied twice. A cache: a lost or damaged record
//! costs an import, nothing else. Each record is a small file of one line in `index/`.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::store::names;
use super::{Digest, Error, Result};

const NEW: &str = ".new-";

/// The index of a store.
#[derive(Debug)]
pub(super) struct Index {
    dir: PathBuf,
}

/// What a layer was made from.
pub(super) enum Origin {
    /// An unpacked blob by its diff id; the result does not depend on the layers below.
    Diff(Digest),
    /// An unpacked blob on top of certain layers, by its chain id.
    Chain(Digest),
    /// A host directory, by the SHA-256 of its path.
    Rootfs(Digest),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Diff(id) => write!(f, "diff-{}", id.hex()),
            Origin::Chain(id) => write!(f, "chain-{}", id.hex()),
            Origin::Rootfs(id) => write!(f, "rootfs-{}", id.hex()),
        }
    }
}

impl Index {
    /// Opens the index below the store's root.
    pub fn open(root: &Path) -> Result<Index> {
        let dir = root.join("index");
        fs::create_dir_all(&dir).map_err(|e| Error::io("make", &dir, e))?;
        Ok(Index { dir })
    }

    /// The layer that `origin` became. `state` must be what was given to [`Index::set`].
    pub fn get(&self, origin: &Origin, state: &str) -> Option<Digest> {
        let line = fs::read_to_string(self.dir.join(origin.to_string())).ok()?;
        let (layer, recorded) = line.strip_suffix('\n')?.split_once(' ')?;
        if recorded != state {
            return None;
        }
        layer.parse().ok()
    }

    /// Records that `origin`, being in `state`, became `layer`.
    #[expect(clippy::disallowed_methods, reason = "a cache: what a crash tears is no record")]
    pub fn set(&self, origin: &Origin, state: &str, layer: &Digest) -> Result<()> {
        let path = self.dir.join(origin.to_string());
        let failed = |e| Error::io("write", &path, e);
        // Replaced, never truncated: another import may read it. No sync: after a crash a torn line is no record.
        let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(&self.dir).map_err(failed)?;
        file.write_all(format!("{layer} {state}\n").as_bytes()).map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    /// Forgets layers of which `exists` says no, and what was half-written.
    pub fn prune(&self, exists: impl Fn(&Digest) -> bool) -> Result<()> {
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            let line = fs::read_to_string(&path).unwrap_or_default();
            let layer = line.split(' ').next().and_then(|layer| layer.parse().ok());
            let half_written = name.starts_with(NEW) && !is_recent(&path);
            if half_written || (!name.starts_with(NEW) && !layer.is_some_and(|layer| exists(&layer))) {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path, e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Another import may be writing it.
fn is_recent(path: &Path) -> bool {
    let age = fs::metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age.as_secs() < 3600)
}
