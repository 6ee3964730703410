//! What a file has besides its content: mode, owner, time, extended attributes.

use std::ffi::CStr;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::bytes;

/// Mode, owner, modification time and extended attributes, as they are on disk (ids are not mapped).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of content.
    pub mtime: Time,
    /// Extended attributes, sorted by name. POSIX ACLs and file capabilities are among them.
    pub xattrs: Vec<Xattr>,
}

/// A file system's time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Name with its namespace, such as `user.comment`.
    #[serde(with = "bytes")]
    pub name: Vec<u8>,
    /// Value.
    #[serde(with = "bytes")]
    pub value: Vec<u8>,
}

impl Meta {
    /// The same without the attributes that mean something only on the host that wrote them.
    pub(super) fn portable(&self) -> Meta {
        let mut meta = self.clone();
        meta.xattrs.retain(|xattr| !xattr.is_host_local());
        meta
    }

    /// Whether the other host would see a difference.
    pub(super) fn differs(&self, other: &Meta) -> bool {
        let local = |meta: &Meta| meta.xattrs.iter().any(Xattr::is_host_local);
        if local(self) || local(other) { self.portable() != other.portable() } else { self != other }
    }
}

impl Xattr {
    /// Overlayfs notes file handles and counters of *this* host's lower layers in these. Elsewhere they are stale at
    /// best; the kernel writes them anew. `opaque`, `redirect`, `metacopy` and `whiteout` are content and travel.
    /// (Documentation/filesystems/overlayfs.rst.)
    pub fn is_host_local(&self) -> bool {
        let name = &self.name[..];
        let overlay = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
        matches!(overlay, Some(b"origin" | b"impure" | b"nlink" | b"uuid" | b"upper"))
    }
}

/// Reads the attributes of `path`, the last component of which is not followed if it is a symlink.
pub(super) fn read_xattrs(path: &CStr) -> Result<Vec<Xattr>, Errno> {
    // Nearly always one call that finds nothing; XATTR_LIST_MAX of the kernel is 64 KiB.
    let mut short = [0; 512];
    let mut long = Vec::new();
    let names = match llistxattr(path, &mut short[..]) {
        Ok(size) => &short[..size],
        Err(Errno::RANGE) => {
            long.resize(65536, 0);
            let size = llistxattr(path, &mut long[..])?;
            &long[..size]
        }
        Err(Errno::OPNOTSUPP) => &[],
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = read_value(path, name)? {
            xattrs.push(Xattr { name: name.to_vec(), value });
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

fn read_value(path: &CStr, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 256];
    loop {
        match lgetxattr(path, name, &mut value[..]) {
            Ok(size) => {
                value.truncate(size);
                return Ok(Some(value));
            }
            // XATTR_SIZE_MAX of the kernel is 64 KiB.
            Err(Errno::RANGE) if value.len() < 65536 => value.resize(65536, 0),
            // Removed since it was listed, or listed by a file system that will not show it.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}
