//! Opening files under a root so that neither a hostile peer nor a pod that runs can lead us out of it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::{Error, RelPath, Result};

/// Opens the directory that all else is relative to. The caller vouches for this path.
pub(super) fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(root, flags, Mode::empty()).map_err(Error::io("open", root))
}

/// Opens what exists at `path` under `root`; no component may be a symlink or a mount point.
pub(super) fn open_beneath(root: BorrowedFd, path: &RelPath, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        match openat2(root, path.or_dot(), flags, Mode::empty(), resolve) {
            // The kernel could not prove the path safe because something was renamed meanwhile (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return other,
        }
    }
}
