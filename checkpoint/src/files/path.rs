//! Paths inside a tree: validated once, where they are made or decoded, so that no later code can forget to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Error, Result, bytes};

/// `PATH_MAX` without the closing NUL, in bytes: what one system call takes.
const MAX_PATH: usize = 4095;
/// `NAME_MAX`, in bytes.
const MAX_NAME: usize = 255;

/// A path relative to a tree's root: any bytes but NUL, no empty, `.` or `..` component. The root itself is empty.
///
/// The order is that of the bytes, in which a directory comes before what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The tree's root.
    pub fn root() -> RelPath {
        RelPath::default()
    }

    /// Checks a path from elsewhere; empty means the root.
    ///
    /// # Errors
    /// [`Error::Path`] if it is absolute, could leave the tree, or is longer than one system call takes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<RelPath> {
        let path = bytes.into();
        match fault(&path) {
            None => Ok(RelPath(path)),
            Some(reason) => {
                let text = String::from_utf8_lossy(&path).chars().take(200).collect();
                Err(Error::Path { path: text, reason })
            }
        }
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// [`Error::Path`] if the name is no name or the whole gets too long.
    pub fn join(&self, name: &[u8]) -> Result<RelPath> {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !self.is_root() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        RelPath::new(path)
    }

    /// Whether this is the tree's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes as they are on disk.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a path; empty for the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Directory and name; none for the root.
    pub fn split(&self) -> Option<(RelPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((RelPath(self.0[..slash].to_vec()), &self.0[slash + 1..])),
            None => Some((RelPath::root(), &self.0)),
        }
    }

    /// The same for system calls, which do not take the empty path for a directory.
    pub(super) fn or_dot(&self) -> &[u8] {
        if self.is_root() { b"." } else { &self.0 }
    }

    pub(super) fn text(&self) -> String {
        self.as_path().display().to_string()
    }
}

fn fault(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return None;
    }
    if path.len() > MAX_PATH {
        return Some("longer than 4095 bytes");
    }
    if path[0] == b'/' {
        return Some("absolute");
    }
    path.split(|byte| *byte == b'/').find_map(|name| match name {
        b"" => Some("it has an empty component"),
        b"." | b".." => Some("it has a . or .. component"),
        name if name.len() > MAX_NAME => Some("it has a name longer than 255 bytes"),
        name if name.contains(&0) => Some("it has a NUL byte"),
        _ => None,
    })
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<RelPath, D::Error> {
        RelPath::new(bytes::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_paths_inside_the_tree_are_paths() {
        for bad in ["/", "/etc", "..", "a/..", "a/../b", "./a", "a//b", "a/", "a\0b"] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(RelPath::new([b'a'; 256]).is_err());
        assert!(RelPath::new(b"a/".repeat(2500)).is_err());
        for good in [&b""[..], b"a", b"a/b.c", b"\xff\xfe/..."] {
            assert!(RelPath::new(good).is_ok());
        }
    }

    #[test]
    fn join_and_split_are_inverse() {
        let path = RelPath::root().join(b"a").unwrap().join(b"b").unwrap();
        assert_eq!(path.as_bytes(), b"a/b");
        let (dir, name) = path.split().unwrap();
        assert_eq!((dir.as_bytes(), name), (&b"a"[..], &b"b"[..]));
        assert!(RelPath::root().join(b"..").is_err());
        assert!(RelPath::root().split().is_none());
    }
}
