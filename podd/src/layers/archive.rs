//! A tar that holds an image: found once, then read by seeking. Nothing of it is unpacked on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::{Section, decompress};
use super::store::Temporary;
use super::tarball::{Kind, TarStream};
use super::unpack::show;
use super::{Error, LayerStore, Result, UnpackError};

/// Most members; an image has a few for each layer.
const MAX_MEMBERS: usize = 100_000;

/// Longest chain of symlinks between members. `docker save` before version 25 links equal layers to each other.
const MAX_LINKS: usize = 8;

/// An archive and where its members are.
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: BTreeMap<String, Member>,
    /// Holds the decompressed archive.
    _temporary: Option<Temporary>,
}

enum Member {
    File { at: u64, size: u64 },
    Symlink(String),
}

impl Archive {
    /// Reads the archive's headers. A compressed archive is decompressed into the store first, bounded by
    /// [`super::Limits::max_image_bytes`].
    pub fn open(store: &LayerStore, path: &Path) -> Result<Archive> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let (file, temporary) = match is_compressed(&file).map_err(|e| Error::io("read", path, e))? {
            false => (file, None),
            true => {
                let temporary = store.temporary()?;
                (decompressed(store, path, file, temporary.path())?, Some(temporary))
            }
        };
        let members = members(&file).map_err(|source| Error::Archive { path: path.to_owned(), source })?;
        Ok(Archive { path: path.to_owned(), file: Arc::new(file), members, _temporary: temporary })
    }

    /// The archive's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if there is a member of this name.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Opens a member.
    pub fn open_member(&self, name: &str) -> Result<Section> {
        let mut at = normal("", name);
        for _ in 0..MAX_LINKS {
            match at.as_ref().and_then(|name| self.members.get_key_value(name)) {
                None => break,
                Some((name, Member::Symlink(target))) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    at = normal(dir, target);
                }
                Some((_, Member::File { at, size })) => {
                    let (file, name) = (self.file.clone(), name.to_owned());
                    return Ok(Section { name, file, at: *at, end: at.saturating_add(*size) });
                }
            }
        }
        Err(Error::MissingBlob { name: name.to_owned() })
    }
}

fn is_compressed(mut file: &File) -> std::io::Result<bool> {
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]))
}

fn decompressed(store: &LayerStore, path: &Path, file: File, dir: &Path) -> Result<File> {
    let limit = store.limits().max_image_bytes;
    let plain_path = dir.join("archive");
    let plain = File::options().read(true).write(true).create_new(true).open(&plain_path);
    let mut plain = plain.map_err(|e| Error::io("make", &plain_path, e))?;
    let failed = |e| Error::io("decompress", path, e);
    let mut input = decompress(file).map_err(failed)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut written = 0;
    loop {
        let n = input.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        written += n as u64;
        if written > limit {
            return Err(Error::Archive { path: path.to_owned(), source: UnpackError::TooManyBytes { limit } });
        }
        plain.write_all(&buffer[..n]).map_err(|e| Error::io("write", &plain_path, e))?;
    }
    plain.rewind().map_err(|e| Error::io("rewind", &plain_path, e))?;
    Ok(plain)
}

fn members(file: &File) -> std::result::Result<BTreeMap<String, Member>, UnpackError> {
    let mut stream = TarStream::new(BufReader::new(file), u64::MAX);
    let mut members = BTreeMap::new();
    while let Some(entry) = stream.next_entry()? {
        // A name that is no text, or not plain, cannot be one that a manifest means.
        let name = std::str::from_utf8(&entry.path).ok().and_then(|name| normal("", name));
        let member = match entry.kind {
            Kind::File => Some(Member::File { at: entry.offset, size: entry.size }),
            Kind::Symlink => Some(Member::Symlink(show(&entry.link))),
            _ => None,
        };
        if let (Some(name), Some(member)) = (name, member) {
            members.insert(name, member);
        }
        if members.len() > MAX_MEMBERS {
            return Err(UnpackError::TooManyEntries { limit: MAX_MEMBERS as u64 });
        }
        stream.seek_over_content()?;
    }
    Ok(members)
}

/// `name` seen from `dir`, without `.` and `..`; none if it leaves the archive.
fn normal(dir: &str, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts = Vec::new();
    for part in dir.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(normal("a", "../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(normal("", "./manifest.json").as_deref(), Some("manifest.json"));
        assert_eq!(normal("a", "../../etc/shadow"), None);
        assert_eq!(normal("a", "/etc/shadow"), None);
    }
}
