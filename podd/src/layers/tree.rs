//! The directory that a layer is unpacked into: opens parents without ever following a symlink.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::unpack::{Fault, show};

/// overlayfs: nothing of the lower layers shows in this directory.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    Directory,
    /// Character device 0:0.
    Whiteout,
    /// File, symlink, pipe.
    File,
}

/// A directory being filled, and the trees below it.
pub(super) struct Tree {
    path: PathBuf,
    root: Arc<OwnedFd>,
    /// Trees of the lower layers, topmost first.
    lower: Vec<OwnedFd>,
    /// The parent opened last: entries of a directory mostly follow each other.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
    /// Modification times of directories, set at the end.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    /// Directories made because an entry lies below them.
    pub implied: u64,
}

impl Tree {
    /// `path` must be an empty directory that nobody else writes to.
    pub fn open(path: &Path, lower: &[PathBuf]) -> io::Result<Tree> {
        let open = |path: &Path| {
            rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let root = open(path)?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        Ok(Tree {
            path: path.to_owned(),
            root: Arc::new(root),
            lower: lower.iter().map(|l| open(l)).collect::<Result<_, _>>()?,
            last: None,
            // A layer that does not name its root has it at the epoch: the same on every host.
            times: BTreeMap::from([(Vec::new(), (0, 0))]),
            implied: 0,
        })
    }

    /// Opens the directory, and makes it with all above it where they do not exist.
    pub fn parent(&mut self, path: &[&[u8]]) -> Result<Arc<OwnedFd>, Fault> {
        let joined = join(path);
        if let Some((_, dir)) = self.last.as_ref().filter(|(last, _)| *last == joined) {
            return Ok(dir.clone());
        }
        let dir = match self.existing(path)? {
            Some(dir) => dir,
            None => self.make(path)?,
        };
        self.last = Some((joined, dir.clone()));
        Ok(dir)
    }

    /// Opens the directory; none if it does not exist, or if a whiteout is on the way.
    pub fn existing(&self, path: &[&[u8]]) -> Result<Option<Arc<OwnedFd>>, Fault> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        match beneath(&self.root, &join(path), OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(Some(Arc::new(dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => self.obstacle(path).map(|()| None),
            Err(e) => Err(e.into()),
        }
    }

    /// Why a path cannot be walked; no error if a whiteout is the reason.
    fn obstacle(&self, path: &[&[u8]]) -> Result<(), Fault> {
        for end in 1..=path.len() {
            let part = join(&path[..end]);
            let stat = match beneath(&self.root, &part, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(file) => rustix::fs::fstat(file)?,
                Err(e) => return Err(e.into()),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {}
                FileType::Symlink => return Err(Fault::UnderSymlink(show(&part))),
                FileType::CharacterDevice => return Ok(()),
                _ => return Err(Fault::UnderFile(show(&part))),
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &[&[u8]]) -> Result<Arc<OwnedFd>, Fault> {
        let mut dir = self.root.clone();
        for end in 1..=path.len() {
            let name = path[end - 1];
            let before = there(&dir, name)?;
            if before == There::Whiteout {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            }
            if before != There::Directory {
                rustix::fs::mkdirat(&dir, name, Mode::RWXU)?;
            }
            dir = Arc::new(open_directory(&dir, name)?);
            match before {
                There::Directory => continue,
                There::Whiteout => set_opaque(&dir)?,
                There::Nothing | There::File => {}
            }
            self.implied += 1;
            let mtime = self.take_after_lower(&path[..end], &dir)?;
            self.remember_time(&path[..end], mtime);
        }
        Ok(dir)
    }

    /// In the merged view the topmost layer that has a directory decides its owner and mode. A tar that holds
    /// `tmp/x` but not `tmp` must not turn the 1777 of the base image's /tmp into 755. Returns the time to set.
    fn take_after_lower(&self, path: &[&[u8]], dir: &OwnedFd) -> Result<(i64, u32), Fault> {
        let Some(stat) = self.in_lower(path)? else {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(0o755))?;
            return Ok((0, 0));
        };
        rustix::fs::fchown(
            dir,
            Some(rustix::fs::Uid::from_raw(stat.st_uid)),
            Some(rustix::fs::Gid::from_raw(stat.st_gid)),
        )?;
        rustix::fs::fchmod(dir, Mode::from_raw_mode(stat.st_mode))?;
        Ok((stat.st_mtime, stat.st_mtime_nsec as u32))
    }

    /// The directory in the topmost layer that has it. A symlink there is an error: as a directory of this layer
    /// the name would hide it, and with `lib -> usr/lib` the pod would lose every program.
    fn in_lower(&self, path: &[&[u8]]) -> Result<Option<Stat>, Fault> {
        for lower in &self.lower {
            for end in 1..=path.len() {
                let part = join(&path[..end]);
                let stat = match beneath(lower, &part, OFlags::PATH | OFlags::NOFOLLOW) {
                    Ok(file) => rustix::fs::fstat(file)?,
                    Err(Errno::NOENT) => break,
                    Err(e) => return Err(e.into()),
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory if end == path.len() => return Ok(Some(stat)),
                    FileType::Directory => {}
                    FileType::Symlink => return Err(Fault::UnderSymlink(show(&part))),
                    _ => return Ok(None),
                }
            }
        }
        Ok(None)
    }

    /// Hides what the lower layers have under this name.
    pub fn whiteout(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        match there(parent, name)? {
            There::Nothing => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
                rustix::fs::utimensat(parent, name, &omit_atime((0, 0)), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // The image specification: a whiteout applies to lower layers only.
            There::Directory => set_opaque(&open_directory(parent, name)?)?,
            There::File | There::Whiteout => {}
        }
        Ok(())
    }

    /// Removes what an earlier entry left under this name.
    pub fn clear(&mut self, path: &[&[u8]], parent: BorrowedFd<'_>) -> Result<(), Fault> {
        let Some(name) = path.last() else {
            return Err(Fault::NoName);
        };
        match there(parent, name)? {
            There::Nothing => {}
            There::File | There::Whiteout => rustix::fs::unlinkat(parent, *name, AtFlags::empty())?,
            There::Directory => {
                self.last = None;
                // By path: the parents were just opened without a symlink, and nobody else writes here.
                let path = self.path.join(Path::new(std::ffi::OsStr::from_bytes(&join(path))));
                std::fs::remove_dir_all(path).map_err(Fault::Io)?;
            }
        }
        Ok(())
    }

    /// The directory's modification time, for [`Tree::set_directory_times`].
    pub fn remember_time(&mut self, path: &[&[u8]], mtime: (i64, u32)) {
        self.times.insert(join(path), mtime);
    }

    /// To be called when nothing more will be written.
    pub fn set_directory_times(&self) -> io::Result<()> {
        for (path, mtime) in &self.times {
            let dir = match path.as_slice() {
                b"" => self.root.clone(),
                path => match beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
                    Ok(dir) => Arc::new(dir),
                    // Replaced by a later entry.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(e) => return Err(e.into()),
                },
            };
            rustix::fs::futimens(&dir, &omit_atime(*mtime))?;
        }
        Ok(())
    }
}

/// What `name` in `dir` is.
pub(super) fn there(dir: impl AsFd, name: &[u8]) -> Result<There, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(There::Nothing),
        Err(e) => Err(e),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => There::Directory,
            FileType::CharacterDevice => There::Whiteout,
            _ => There::File,
        }),
    }
}

/// Opens a directory, never through a symlink.
pub(super) fn open_directory(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Hides the lower layers' content of a directory.
pub(super) fn set_opaque(dir: impl AsFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

/// A modification time; the time of the last access stays.
pub(super) fn omit_atime((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

fn beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn join(path: &[&[u8]]) -> Vec<u8> {
    path.join(&b'/')
}
