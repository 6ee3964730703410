//! One sha256 for a whole tree: names a layer by what it holds, and shows that a copy is one.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::{Entry, Error, Inode, Kind, RelPath, Result, Tree, handle};

/// Tells this listing from any other and from a later form of it.
const FORMAT: &[u8] = b"pods tree 1\n";

/// A sha256 digest, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Digest of the tree under `root`: paths, types, modes, owners, attributes, link targets, which names are hard links
/// of each other, sizes and content. Times are left out, since unpacking the same archive twice may change them;
/// so are attributes that overlayfs keeps for one host only.
///
/// # Errors
/// As [`Tree::scan`]; also [`Error::Io`] if a file vanishes meanwhile.
pub fn digest(root: &Path) -> Result<Digest> {
    let root_dir = handle::open_root(root)?;
    let tree = Tree::rescan(root_dir.as_fd(), root, None, false)?;
    let mut first_names: HashMap<Inode, &RelPath> = HashMap::new();
    let mut sha = Sha256::new();
    sha.update(FORMAT);
    for entry in &tree.entries {
        let first = entry.is_linkable().then(|| *first_names.entry(entry.inode).or_insert(&entry.path));
        if let Some(first) = first.filter(|first| **first != entry.path) {
            field(&mut sha, entry.path.as_bytes());
            field(&mut sha, b"link");
            field(&mut sha, first.as_bytes());
            continue;
        }
        add(&mut sha, entry);
        if let Kind::File { .. } = entry.kind {
            let path = root.join(entry.path.as_path());
            let fd = handle::open_beneath(root_dir.as_fd(), &entry.path, OFlags::RDONLY | OFlags::NONBLOCK)
                .map_err(Error::io("open", &path))?;
            let content = content(File::from(fd)).map_err(|source| Error::Io { action: "read", path, source })?;
            field(&mut sha, &content.0);
        }
    }
    Ok(Digest(sha.finalize().into()))
}

fn add(sha: &mut Sha256, entry: &Entry) {
    field(sha, entry.path.as_bytes());
    match &entry.kind {
        Kind::Dir => field(sha, b"dir"),
        Kind::File { size } => {
            field(sha, b"file");
            field(sha, &size.to_le_bytes());
        }
        Kind::Symlink(target) => {
            field(sha, b"symlink");
            field(sha, target);
        }
        Kind::Fifo => field(sha, b"fifo"),
        Kind::Socket => field(sha, b"socket"),
        Kind::CharDev { major, minor } => {
            field(sha, b"char");
            field(sha, &[major.to_le_bytes(), minor.to_le_bytes()].concat());
        }
        Kind::BlockDev { major, minor } => {
            field(sha, b"block");
            field(sha, &[major.to_le_bytes(), minor.to_le_bytes()].concat());
        }
    }
    for number in [entry.meta.mode, entry.meta.uid, entry.meta.gid] {
        field(sha, &number.to_le_bytes());
    }
    let xattrs: Vec<_> = entry.meta.xattrs.iter().filter(|xattr| !xattr.is_host_local()).collect();
    field(sha, &(xattrs.len() as u64).to_le_bytes());
    for xattr in xattrs {
        field(sha, &xattr.name);
        field(sha, &xattr.value);
    }
}

/// Every field carries its length, so that no two listings share their bytes.
fn field(sha: &mut Sha256, bytes: &[u8]) {
    sha.update((bytes.len() as u64).to_le_bytes());
    sha.update(bytes);
}

fn content(mut file: File) -> std::io::Result<Digest> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(sha.finalize().into())),
            size => sha.update(&buffer[..size]),
        }
    }
}

impl Digest {
    /// Wraps a sha256 made elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The 64 hexadecimal digits alone, fit for a directory's name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// Accepts what [`fmt::Display`] prints, with lower-case digits only: one digest has one text.
    fn from_str(text: &str) -> Result<Digest> {
        let error = || Error::Digest(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(error)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(error)?;
        }
        Ok(Digest(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_digest_has_one_text() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        let long = format!("{text}0");
        let upper = text.replace('f', "F");
        for bad in ["", "sha256:", &text[7..], &text[..70], &long, &upper, &text.replace("0f", "0g")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn any_difference_but_time_changes_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("a"), "one").unwrap();
        fs::write(root.join("b"), "one").unwrap();
        let mut seen = vec![digest(root).unwrap()];
        fs::write(root.join("a"), "one").unwrap();
        assert_eq!(digest(root).unwrap(), seen[0], "time alone");
        let changes: [fn(&Path); 7] = [
            |root| fs::write(root.join("a"), "two").unwrap(),
            |root| fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o4711)).unwrap(),
            |root| fs::rename(root.join("a"), root.join("c")).unwrap(),
            |root| std::os::unix::fs::chown(root.join("c"), Some(7), Some(8)).unwrap(),
            |root| symlink("c", root.join("l")).unwrap(),
            |root| fs::hard_link(root.join("c"), root.join("d")).unwrap(),
            |root| fs::create_dir(root.join("e")).unwrap(),
        ];
        for change in changes {
            change(root);
            let now = digest(root).unwrap();
            assert!(!seen.contains(&now));
            seen.push(now);
        }
    }
}
