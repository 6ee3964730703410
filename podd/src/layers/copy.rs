//! Copies a tree of the host: shares blocks where the file system can, keeps holes and hard links.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use super::rootfs::{names, open_root, os};
use super::tree::{omit_atime, open_directory};
use super::unpack::{MAX_DEPTH, MAX_ID};
use super::{Error, Progress, Result, xattr};

/// Bytes copied between two reports of progress.
const CHUNK: u64 = 8 << 20;

/// A copy under way.
pub(super) struct Copy<'a> {
    from: OwnedFd,
    to: OwnedFd,
    /// Below the top, for messages and hard links.
    path: PathBuf,
    top: PathBuf,
    device: u64,
    /// First name of each file that has several, by inode.
    linked: HashMap<u64, PathBuf>,
    /// The file system shares blocks between files.
    shares: bool,
    left_out: u64,
    done: u64,
    total: u64,
    progress: Progress<'a>,
}

impl<'a> Copy<'a> {
    /// `to` is an empty directory; `total` is what the progress counts up to.
    pub fn new(from: &Path, to: &Path, total: u64, progress: Progress<'a>) -> Result<Copy<'a>> {
        Ok(Copy {
            from: open_root(from)?,
            to: open_root(to)?,
            path: PathBuf::new(),
            top: from.to_owned(),
            device: 0,
            linked: HashMap::new(),
            shares: true,
            left_out: 0,
            done: 0,
            total,
            progress,
        })
    }

    /// Copies everything. Returns how many files were left out, see [`super::rootfs`].
    pub fn run(mut self) -> Result<u64> {
        let (from, to) = (self.dup(&self.from)?, self.dup(&self.to)?);
        let stat = rustix::fs::fstat(&from).map_err(|e| self.failed("inspect", e))?;
        self.device = stat.st_dev;
        self.directory(&from, &to, &stat, 0)?;
        Ok(self.left_out)
    }

    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep { path: self.shown() });
        }
        if stat.st_dev == self.device {
            for name in names(from, &self.shown())? {
                self.path.push(os(&name));
                self.entry(from, to, &name, depth)?;
                self.path.pop();
            }
        } else {
            self.left_out += 1;
        }
        self.metadata(from, to, stat)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], depth: usize) -> Result<()> {
        let stat = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since its directory was listed.
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(self.failed("inspect", e)),
        };
        self.check_ids(&stat)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let from = open_directory(from, name).map_err(|e| self.failed("open", e))?;
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(|e| self.failed("copy", e))?;
                let to = open_directory(to, name).map_err(|e| self.failed("copy", e))?;
                self.directory(&from, &to, &stat, depth + 1)
            }
            FileType::RegularFile => self.file(from, to, name, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(|e| self.failed("read", e))?;
                rustix::fs::symlinkat(&target, to, name).map_err(|e| self.failed("copy", e))?;
                self.own_metadata(to, name, &stat)
            }
            FileType::Fifo => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(to, name, FileType::Fifo, mode, 0).map_err(|e| self.failed("copy", e))?;
                self.own_metadata(to, name, &stat)?;
                rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(|e| self.failed("copy", e))
            }
            _ => {
                self.left_out += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> Result<()> {
        // A file of another file system is mounted here; its inode number means something else.
        if stat.st_nlink > 1 && stat.st_dev == self.device {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                return rustix::fs::linkat(&self.to, first, to, name, AtFlags::empty())
                    .map_err(|e| self.failed("link", e));
            }
            self.linked.insert(stat.st_ino, self.path.clone());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(|e| self.failed("open", e))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| self.failed("copy", e))?;
        self.content(&from, &to, stat).map_err(|e| self.failed("copy", e))?;
        self.metadata(&from, &to, stat)
    }

    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> std::result::Result<(), Errno> {
        let size = stat.st_size as u64;
        if self.shares && size > 0 {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => {
                    self.report(size);
                    return Ok(());
                }
                // This file system does not, or not between these two.
                Err(_) => self.shares = false,
            }
        }
        let sparse = (stat.st_blocks as u64).saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let end = if sparse {
                match rustix::fs::seek(from, SeekFrom::Data(at)) {
                    Ok(data) => self.report(data.min(size) - at),
                    // Only a hole is left.
                    Err(Errno::NXIO) => break,
                    Err(e) => return Err(e),
                }
                at = rustix::fs::tell(from)?;
                rustix::fs::seek(from, SeekFrom::Hole(at))?.min(size)
            } else {
                size
            };
            if !self.range(from, to, &mut at, end)? {
                break;
            }
        }
        // Holes at the end; and a file that shrank meanwhile stays what the survey saw.
        rustix::fs::ftruncate(to, size)
    }

    /// Copies up to `end`; false if the file ends before.
    fn range(&mut self, from: &OwnedFd, to: &OwnedFd, at: &mut u64, end: u64) -> std::result::Result<bool, Errno> {
        let mut out = *at;
        while *at < end {
            let want = (end - *at).min(CHUNK) as usize;
            let n = match rustix::fs::copy_file_range(from, Some(at), to, Some(&mut out), want) {
                // Across file systems, and on some that do not know it.
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    plain(from, to, at, &mut out, want)?
                }
                other => other?,
            };
            if n == 0 {
                return Ok(false);
            }
            self.report(n as u64);
        }
        Ok(true)
    }

    /// Owner first: chown clears set-id bits and drops `security.capability`.
    fn metadata(&self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<()> {
        let copy = || -> std::result::Result<(), Errno> {
            rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            copy_xattrs(from, to)?;
            rustix::fs::futimens(to, &omit_atime(mtime(stat)))
        };
        self.check_ids(stat)?;
        copy().map_err(|e| self.failed("copy the attributes of", e))
    }

    /// For what cannot be opened: symlinks and pipes.
    fn own_metadata(&self, to: &OwnedFd, name: &[u8], stat: &Stat) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| rustix::fs::utimensat(to, name, &omit_atime(mtime(stat)), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| self.failed("copy the attributes of", e))
    }

    fn check_ids(&self, stat: &Stat) -> Result<()> {
        for (kind, id) in [("user", stat.st_uid), ("group", stat.st_gid)] {
            if u64::from(id) > MAX_ID {
                return Err(Error::ForeignId { path: self.shown(), kind, id });
            }
        }
        Ok(())
    }

    fn report(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(self.done.min(self.total), self.total);
    }

    fn dup(&self, fd: &OwnedFd) -> Result<OwnedFd> {
        fd.try_clone().map_err(|e| Error::io("open", &self.top, e))
    }

    fn shown(&self) -> PathBuf {
        self.top.join(&self.path)
    }

    fn failed(&self, doing: &'static str, errno: Errno) -> Error {
        Error::io(doing, &self.shown(), errno)
    }
}

fn plain(from: &OwnedFd, to: &OwnedFd, at: &mut u64, out: &mut u64, want: usize) -> std::result::Result<usize, Errno> {
    let mut buffer = vec![0; want.min(256 * 1024)];
    let n = rustix::io::pread(from, &mut buffer, *at)?;
    let mut written = 0;
    while written < n {
        written += rustix::io::pwrite(to, &buffer[written..n], *out + written as u64)?;
    }
    *at += n as u64;
    *out += n as u64;
    Ok(n)
}

fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> std::result::Result<(), Errno> {
    // The kernel's XATTR_LIST_MAX and XATTR_SIZE_MAX. Nearly every file has no attributes.
    const MAX: usize = 64 * 1024;
    let mut short = [0; 512];
    let mut long = Vec::new();
    let names = match rustix::fs::flistxattr(&from, &mut short[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(size) => &short[..size],
        Err(Errno::RANGE) => {
            long.resize(MAX, 0);
            let size = rustix::fs::flistxattr(&from, &mut long[..])?;
            &long[..size]
        }
        Err(e) => return Err(e),
    };
    for name in names.split(|b| *b == 0).filter(|name| xattr::travels(name)) {
        let mut value = vec![0; MAX];
        let size = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        rustix::fs::fsetxattr(&to, name, &value[..size], XattrFlags::empty())?;
    }
    Ok(())
}

fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}
