//! The target's side: applies operations from a peer, under one directory and nowhere else.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod,
    chownat, fallocate, fstat, ftruncate, linkat, lremovexattr, lsetxattr, mkdirat, mknodat, openat, statat, symlinkat,
    syncfs, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::meta::read_xattrs;
use super::{Error, Meta, Node, Op, Open, RelPath, Result, Tree, handle};

/// Builds a copy of a [`Sender`](super::Sender)'s tree. Everything is opened beneath the root, never through a symlink
/// or a mount point, whatever the peer sends. It keeps nothing between passes but what is on disk.
#[derive(Debug)]
pub struct Receiver {
    root: PathBuf,
    dir: OwnedFd,
    /// The directory that the last operation worked in.
    parent: Option<(RelPath, OwnedFd)>,
    file: Option<OpenFile>,
    /// Something was done that is not on disk, perhaps.
    unsynced: bool,
    /// Names must not change any more.
    content_only: bool,
}

#[derive(Debug)]
struct OpenFile {
    path: RelPath,
    fd: OwnedFd,
    size: u64,
}

impl Receiver {
    /// A receiver that writes into the directory `root`, which nobody else may use meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened.
    pub fn new(root: &Path) -> Result<Receiver> {
        Ok(Receiver {
            root: root.to_owned(),
            dir: handle::open_root(root)?,
            parent: None,
            file: None,
            unsynced: false,
            content_only: false,
        })
    }

    /// One that refuses to change names and types, as somebody may look at them.
    #[must_use]
    pub fn of_content_only(self) -> Receiver {
        Receiver { content_only: true, ..self }
    }

    /// Applies one operation. After an error the tree is of no use until a pass that begins fresh.
    ///
    /// # Errors
    /// [`Error::Op`] for what no sender emits, [`Error::Io`] for what the file system refuses.
    pub fn apply(&mut self, op: Op) -> Result<()> {
        op.check()?;
        if self.content_only && !op.is_content() {
            return Err(Error::Op { path: self.root.display().to_string(), reason: "only content may change by now" });
        }
        self.unsynced = true;
        match op {
            Op::Begin { fresh } => self.begin(fresh),
            Op::Remove { path } => self.remove(&path),
            Op::Mkdir { path } => self.mkdir(&path),
            Op::Open { path, size, how } => self.open(path, size, how),
            Op::Data { offset, bytes } => self.data(offset, &bytes),
            Op::Hole { offset, len } => self.hole(offset, len),
            Op::Link { from, path } => self.link(&from, &path),
            Op::Symlink { path, target } => self.replace(&path, |dir, name| symlinkat(&target[..], dir, name)),
            Op::Node { path, node } => self.replace(&path, |dir, name| {
                let kind = match node {
                    Node::Fifo => FileType::Fifo,
                    Node::Socket => FileType::Socket,
                    Node::Whiteout => FileType::CharacterDevice,
                };
                mknodat(dir, name, kind, Mode::RUSR, 0)
            }),
            Op::Meta { path, meta } => self.meta(&path, &meta),
        }
    }

    /// Ends a pass. With `sync`, what was written is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system could not write something.
    pub fn finish(&mut self, sync: bool) -> Result<()> {
        self.file = None;
        self.parent = None;
        if sync && self.unsynced {
            syncfs(&self.dir).map_err(Error::io("sync", &self.root))?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn begin(&mut self, fresh: bool) -> Result<()> {
        self.finish(false)?;
        if fresh {
            let tree = Tree::rescan(self.dir.as_fd(), &self.root, None, false)?;
            for entry in tree.entries.iter().rev().filter(|entry| !entry.path.is_root()) {
                self.remove(&entry.path)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &RelPath) -> Result<()> {
        self.file = None;
        let error = self.error("remove", path);
        let (dir, name) = match self.parent(path) {
            Ok(place) => place,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let removed = match unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let removed = unlinkat(dir, name, AtFlags::REMOVEDIR);
                self.parent = None;
                removed
            }
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(error(errno)),
        }
    }

    fn mkdir(&mut self, path: &RelPath) -> Result<()> {
        let error = self.error("make directory", path);
        let (dir, name) = self.parent(path)?;
        match mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) if is_dir(dir, name) => Ok(()),
            other => other.map_err(error),
        }
    }

    fn open(&mut self, path: RelPath, size: u64, how: Open) -> Result<()> {
        self.file = None;
        let open_error = self.error("open", &path);
        let size_error = self.error("set the length of", &path);
        let (dir, name) = self.parent(&path)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = match how {
            Open::Create => unlink(dir, name)
                .and_then(|()| openat(dir, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)),
            Open::Replace | Open::Patch => openat(dir, name, flags, Mode::empty()),
        };
        let fd = opened.map_err(open_error)?;
        let stat = fstat(&fd).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        let Some(stat) = stat else {
            return Err(Error::Op { path: path.text(), reason: "it is no regular file" });
        };
        let emptied = if how == Open::Replace { ftruncate(&fd, 0) } else { Ok(()) };
        let right = how == Open::Patch && stat.st_size as u64 == size;
        emptied.and_then(|()| if right { Ok(()) } else { ftruncate(&fd, size) }).map_err(size_error)?;
        self.file = Some(OpenFile { path, fd, size });
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.range(offset, bytes.len() as u64)?;
        write(file.fd.as_fd(), offset, bytes).map_err(self.error("write", &file.path))
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<()> {
        let file = self.range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file.fd, flags, offset, len).map_err(self.error("punch a hole into", &file.path))
    }

    fn link(&mut self, from: &RelPath, path: &RelPath) -> Result<()> {
        let error = self.error("link", path);
        let (dir, name) = from.split().ok_or_else(|| unnamed(from))?;
        let from_dir = handle::open_beneath(self.dir.as_fd(), &dir, OFlags::PATH | OFlags::DIRECTORY);
        let from_dir = from_dir.map_err(self.error("open", &dir))?;
        let from_name = name.to_vec();
        let (dir, name) = self.parent(path)?;
        let there = |dir: BorrowedFd, name: &[u8]| {
            statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
        };
        if there(dir, name).is_ok_and(|inode| there(from_dir.as_fd(), &from_name) == Ok(inode)) {
            return Ok(());
        }
        unlink(dir, name).and_then(|()| linkat(&from_dir, &from_name[..], dir, name, AtFlags::empty())).map_err(error)
    }

    fn replace(
        &mut self,
        path: &RelPath,
        make: impl FnOnce(BorrowedFd, &[u8]) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        let error = self.error("make", path);
        let (dir, name) = self.parent(path)?;
        unlink(dir, name).and_then(|()| make(dir, name)).map_err(error)
    }

    fn meta(&mut self, path: &RelPath, meta: &Meta) -> Result<()> {
        let error = self.error("set mode, owner, attributes or time of", path);
        let (dir, name) = match path.is_root() {
            true => (self.dir.as_fd(), &b"."[..]),
            false => self.parent(path)?,
        };
        set_meta(dir, name, meta).map_err(error)
    }

    /// The open file, if the range lies in it.
    fn range(&self, offset: u64, len: u64) -> Result<&OpenFile> {
        let refuse = |path: &RelPath, reason| Error::Op { path: path.text(), reason };
        let file = self.file.as_ref().ok_or_else(|| refuse(&RelPath::root(), "no file is open"))?;
        match offset.checked_add(len) {
            Some(end) if end <= file.size => Ok(file),
            _ => Err(refuse(&file.path, "it reaches beyond the file's end")),
        }
    }

    /// The directory that holds `path`, and its name in there.
    fn parent<'a>(&'a mut self, path: &'a RelPath) -> Result<(BorrowedFd<'a>, &'a [u8])> {
        let (dir, name) = path.split().ok_or_else(|| unnamed(path))?;
        if self.parent.as_ref().is_none_or(|(known, _)| *known != dir) {
            let fd = handle::open_beneath(self.dir.as_fd(), &dir, OFlags::PATH | OFlags::DIRECTORY);
            self.parent = Some((dir.clone(), fd.map_err(self.error("open", &dir))?));
        }
        let (_, fd) = self.parent.as_ref().expect("it was set above");
        Ok((fd.as_fd(), name))
    }

    fn error(&self, action: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> Error + use<> {
        Error::io(action, self.root.join(path.as_path()))
    }
}

fn unnamed(path: &RelPath) -> Error {
    Error::Op { path: path.text(), reason: "it names the root" }
}

fn is_dir(dir: BorrowedFd, name: &[u8]) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Removes a name unless it is a directory's.
fn unlink(dir: BorrowedFd, name: &[u8]) -> std::result::Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn write(file: BorrowedFd, mut offset: u64, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_meta(dir: BorrowedFd, name: &[u8], meta: &Meta) -> std::result::Result<(), Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_symlink = FileType::from_raw_mode(stat.st_mode).is_symlink();
    // Nobody else changes this tree, so the name still means what was just looked at. Owner first: a new owner
    // costs set-id bits and file capabilities.
    let proc_path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
    let proc_path = CString::new(proc_path).map_err(|_| Errno::INVAL)?;
    if (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
        if meta.uid == u32::MAX || meta.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if !is_symlink {
        chmod(&proc_path, Mode::from_raw_mode(meta.mode))?;
    }
    let present = read_xattrs(&proc_path)?;
    for xattr in &present {
        if !meta.xattrs.iter().any(|wanted| wanted.name == xattr.name) {
            lremovexattr(&proc_path, &xattr.name[..])?;
        }
    }
    for xattr in meta.xattrs.iter().filter(|xattr| !present.contains(xattr)) {
        lsetxattr(&proc_path, &xattr.name[..], &xattr.value, XattrFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: meta.mtime.secs, tv_nsec: meta.mtime.nanos.into() },
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
