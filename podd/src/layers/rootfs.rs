//! A directory of the host becomes a layer: copied, since the original may change under a running pod.
//!
//! A fingerprint of the directory (names, inodes, sizes, times; no content) tells that an earlier copy still holds.
//! Device nodes and sockets are left out: pods get their /dev from podd. Other file systems mounted inside are left
//! out too, with their mount point kept as an empty directory, as `cp -x` does.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::copy::Copy;
use super::image::sha256;
use super::index::Origin;
use super::store::Hold;
use super::tree::open_directory;
use super::unpack::MAX_DEPTH;
use super::{Error, Image, ImageConfig, LayerStore, Progress, Result};

/// A file written twice within one tick of the kernel's coarse clock (at most 10 ms) keeps its time. A directory
/// must have been quiet for longer than that before its fingerprint is taken.
const QUIET: Duration = Duration::from_millis(20);

/// Copies the directory into the store, unless an unchanged copy is there.
pub(super) fn import(store: &LayerStore, dir: &Path, progress: Progress<'_>) -> Result<Image> {
    if !dir.is_absolute() {
        return Err(Error::Relative { path: dir.to_owned() });
    }
    let dir = std::fs::canonicalize(dir).map_err(|e| Error::io("find the rootfs", dir, e))?;
    if !dir.is_dir() {
        return Err(Error::NotDirectory { path: dir });
    }
    if store.root().starts_with(&dir) {
        return Err(Error::ContainsStore { path: dir });
    }
    let origin = Origin::Rootfs(sha256(dir.as_os_str().as_bytes()));
    let _turn = store.turn(&origin.to_string());
    let survey = quiet_survey(&dir)?;
    let hold = match store.index().get(&origin, &survey.state()).and_then(|layer| store.hold(&layer)) {
        Some(hold) => hold,
        None => copy(store, &dir, &origin, &survey, progress)?,
    };
    progress(survey.bytes, survey.bytes);
    Ok(Image { layers: vec![*hold.layer()], config: ImageConfig::default(), holds: vec![hold] })
}

fn copy(store: &LayerStore, dir: &Path, origin: &Origin, survey: &Survey, progress: Progress<'_>) -> Result<Hold> {
    let temporary = store.temporary()?;
    let fs = temporary.make_fs()?;
    let left_out = Copy::new(dir, &fs, survey.bytes, progress)?.run()?;
    if left_out > 0 {
        tracing::warn!(rootfs = %dir.display(), left_out, "left out device nodes, sockets and mounted file systems");
    }
    let layer = checkpoint::files::digest(&fs).map_err(Error::Tree)?;
    let hold = store.publish(temporary, &layer)?;
    if quiet_survey(dir)?.fingerprint == survey.fingerprint {
        store.index().set(origin, &survey.state(), &layer)?;
    } else {
        tracing::warn!(rootfs = %dir.display(), "the rootfs changed while it was copied; the next import copies it again");
    }
    tracing::info!(%layer, rootfs = %dir.display(), bytes = survey.bytes, "imported a rootfs");
    Ok(hold)
}

/// What a walk over a directory finds.
struct Survey {
    /// Sum over all files, so that the order of names does not matter.
    fingerprint: u128,
    /// Bytes in regular files.
    bytes: u64,
    /// The latest change.
    newest: SystemTime,
}

impl Survey {
    fn state(&self) -> String {
        format!("{:032x}", self.fingerprint)
    }
}

/// A survey of which no file changed within the last [`QUIET`]. A directory that is never quiet is surveyed anyway.
fn quiet_survey(dir: &Path) -> Result<Survey> {
    let began = SystemTime::now();
    let survey = survey(dir)?;
    match began.duration_since(survey.newest) {
        Ok(age) if age < QUIET => {
            std::thread::sleep(QUIET);
            self::survey(dir)
        }
        _ => Ok(survey),
    }
}

fn survey(dir: &Path) -> Result<Survey> {
    let root = open_root(dir)?;
    let stat = rustix::fs::fstat(&root).map_err(|e| Error::io("inspect", dir, e))?;
    let mut survey = Survey { fingerprint: 0, bytes: 0, newest: UNIX_EPOCH };
    survey.add(b"", 0, &stat);
    survey.walk(&root, &mut dir.to_owned(), 0, stat.st_dev, 0)?;
    Ok(survey)
}

impl Survey {
    fn walk(&mut self, dir: &OwnedFd, path: &mut PathBuf, seed: u64, device: u64, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep { path: path.clone() });
        }
        for name in names(dir, path)? {
            let stat = match rustix::fs::statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(Error::io("inspect", &path.join(os(&name)), e)),
            };
            self.add(&name, seed, &stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == device {
                path.push(os(&name));
                let below = open_directory(dir, &name).map_err(|e| Error::io("open", path, e))?;
                self.walk(&below, path, xxh3_64_with_seed(&name, seed ^ 1), device, depth + 1)?;
                path.pop();
            }
        }
        Ok(())
    }

    /// `seed` stands for the path of the directory that holds `name`.
    fn add(&mut self, name: &[u8], seed: u64, stat: &Stat) {
        let mut bytes = Vec::with_capacity(96 + name.len());
        for number in [
            stat.st_dev,
            stat.st_ino,
            stat.st_mode.into(),
            stat.st_size as u64,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_ctime as u64,
            stat.st_ctime_nsec,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(name);
        self.fingerprint = self.fingerprint.wrapping_add(xxh3_128_with_seed(&bytes, seed));
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            self.bytes += stat.st_size as u64;
        }
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        self.newest = self.newest.max(UNIX_EPOCH + Duration::new(seconds, stat.st_ctime_nsec as u32));
    }
}

/// Opens the top of a tree.
pub(super) fn open_root(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| Error::io("open", dir, e))
}

/// All names in a directory; `path` is for messages.
pub(super) fn names(dir: impl AsFd, path: &Path) -> Result<Vec<Vec<u8>>> {
    let failed = |e| Error::io("list", path, e);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// A name as a path.
pub(super) fn os(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}
