//! What a directory tree holds, without its files' content.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat, major, minor, readlinkat, statat};
use rustix::io::Errno;

use super::meta::read_xattrs;
use super::{Error, Meta, RelPath, Result, Time, handle};

/// The kernel's clock for time stamps lags behind the real one by up to a tick (10 ms at 100 Hz).
const TICK_SLACK: Duration = Duration::from_millis(50);
/// ext4 with 128-byte inodes keeps whole seconds only.
const SECOND_SLACK: Duration = Duration::from_millis(1050);

/// A directory tree as one scan saw it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Everything in it, the root first, each directory before what it holds.
    pub entries: Vec<Entry>,
    /// When the scan began.
    pub started: SystemTime,
    /// Files whose copied content may not be what they held at the scan: the next pass looks at them again.
    pub unsettled: HashSet<Inode>,
}

/// One name in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, time, attributes.
    pub meta: Meta,
    /// Which inode it names: the same for hard links.
    pub inode: Inode,
    /// Names that the inode has, inside the tree or not.
    pub links: u64,
    /// Time of the inode's last change of any sort; no program can set it.
    pub ctime: Time,
    /// Bytes allocated on disk.
    pub allocated: u64,
}

/// An inode's number and file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    /// File system (`st_dev`).
    pub dev: u64,
    /// Number in it.
    pub ino: u64,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Directory.
    Dir,
    /// Regular file.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// Symbolic link and where it points.
    Symlink(Vec<u8>),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device; 0:0 is overlayfs's mark for a deleted name.
    CharDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    BlockDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl Kind {
    /// Overlayfs's mark for a deleted name.
    pub const WHITEOUT: Kind = Kind::CharDev { major: 0, minor: 0 };
}

impl Tree {
    /// Lists the tree under `root`: one file system, symlinks not followed. Names that vanish meanwhile are left out.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Path`] where paths are too long to be sent.
    pub fn scan(root: &Path) -> Result<Tree> {
        let root_dir = handle::open_root(root)?;
        Tree::rescan(root_dir.as_fd(), root, None, false)
    }

    /// The same; `old` saves reading attributes and link targets again of what it saw with the same ctime. With
    /// `flush`, dirty pages are written first: from then on the first write to a page through a mapping gives the file
    /// a new time again. The flush belongs after the start, or a page could be dirtied between them unnoticed.
    pub(super) fn rescan(root_dir: BorrowedFd, root: &Path, old: Option<&Tree>, flush: bool) -> Result<Tree> {
        let started = SystemTime::now();
        if flush {
            rustix::fs::syncfs(root_dir).map_err(Error::io("sync", root))?;
        }
        let known = old.map(Tree::settled_by_inode).unwrap_or_default();
        let mut scan = Scan { root_dir, root, known, entries: Vec::new(), dirs: Vec::new() };
        scan.root_entry()?;
        while let Some((path, inode)) = scan.dirs.pop() {
            scan.directory(&path, inode)?;
        }
        let mut entries = scan.entries;
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let count = entries.len();
        entries.dedup_by(|b, a| a.path == b.path);
        if entries.len() < count {
            drop_orphans(&mut entries);
        }
        Ok(Tree { entries, started, unsettled: HashSet::new() })
    }

    /// The entry at `path`.
    pub fn find(&self, path: &RelPath) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|index| &self.entries[index])
    }

    /// Whether `entry` of this scan may have changed afterwards without a new ctime: git's "racily clean" entries.
    ///
    /// mtime is no help here: programs set it, to the future too.
    pub(super) fn is_racy(&self, entry: &Entry) -> bool {
        let slack = if entry.ctime.nanos == 0 { SECOND_SLACK } else { TICK_SLACK };
        let since = self.started.checked_sub(slack).unwrap_or(SystemTime::UNIX_EPOCH);
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (entry.ctime.secs, entry.ctime.nanos) >= (since.as_secs() as i64, since.subsec_nanos())
    }

    fn settled_by_inode(&self) -> HashMap<Inode, &Entry> {
        self.entries.iter().filter(|entry| !self.is_racy(entry)).map(|entry| (entry.inode, entry)).collect()
    }
}

/// Bytes that the tree under `root` occupies on disk; hard links count once.
///
/// # Errors
/// As [`Tree::scan`].
pub fn disk_usage(root: &Path) -> Result<u64> {
    let mut seen = HashSet::new();
    let tree = Tree::scan(root)?;
    Ok(tree.entries.iter().filter(|entry| seen.insert(entry.inode)).map(|entry| entry.allocated).sum())
}

struct Scan<'a> {
    root_dir: BorrowedFd<'a>,
    root: &'a Path,
    known: HashMap<Inode, &'a Entry>,
    entries: Vec<Entry>,
    dirs: Vec<(RelPath, Inode)>,
}

impl Scan<'_> {
    fn root_entry(&mut self) -> Result<()> {
        let stat = rustix::fs::fstat(self.root_dir).map_err(Error::io("look at", self.root))?;
        let dir = DirHandle::new(self.root_dir);
        let entry =
            self.entry(&dir, c".", RelPath::root(), &stat).map_err(Error::io("read attributes of", self.root))?;
        self.dirs.push((RelPath::root(), entry.inode));
        self.entries.push(entry);
        Ok(())
    }

    fn directory(&mut self, path: &RelPath, inode: Inode) -> Result<()> {
        // From the root each time: a descriptor for every level would let a deep tree use them all up.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd: OwnedFd = match handle::open_beneath(self.root_dir, path, flags) {
            Ok(fd) => fd,
            Err(errno) if is_gone(errno) => return Ok(()),
            Err(errno) => return Err(self.error("open", path)(errno)),
        };
        let dir = DirHandle::new(fd.as_fd());
        let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
        let mut names = RawDir::new(&fd, &mut buffer);
        while let Some(name) = names.next() {
            let name = match name {
                Ok(name) => name,
                Err(errno) if is_gone(errno) => return Ok(()),
                Err(errno) => return Err(self.error("list", path)(errno)),
            };
            let name = name.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child = path.join(name.to_bytes())?;
            let found = statat(dir.fd, name, AtFlags::SYMLINK_NOFOLLOW);
            let entry = match found.and_then(|stat| self.entry(&dir, name, child.clone(), &stat)) {
                Ok(entry) => entry,
                Err(errno) if is_gone(errno) => continue,
                Err(errno) => return Err(self.error("look at", &child)(errno)),
            };
            let same_file_system = entry.inode.dev == inode.dev;
            match entry.kind {
                Kind::Dir if same_file_system => self.dirs.push((child, entry.inode)),
                Kind::Dir => {}
                _ if same_file_system => {}
                _ => continue,
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    fn entry(
        &self,
        dir: &DirHandle,
        name: &std::ffi::CStr,
        path: RelPath,
        stat: &Stat,
    ) -> std::result::Result<Entry, Errno> {
        let mut entry = Entry {
            path,
            kind: Kind::Dir,
            meta: Meta {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: Time { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
                xattrs: Vec::new(),
            },
            inode: Inode::of(stat),
            links: stat.st_nlink,
            ctime: Time { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
            allocated: stat.st_blocks as u64 * 512,
        };
        let known = self.known.get(&entry.inode).filter(|known| known.ctime == entry.ctime);
        entry.kind = match (FileType::from_raw_mode(stat.st_mode), known) {
            (FileType::Symlink, Some(Entry { kind: kind @ Kind::Symlink(_), .. })) => kind.clone(),
            (FileType::Symlink, _) => {
                // INVAL: no symlink any more.
                let target = readlinkat(dir.fd, name, Vec::new());
                let gone = |errno| {
                    if errno == Errno::INVAL { Errno::NOENT } else { errno }
                };
                Kind::Symlink(target.map_err(gone)?.into_bytes())
            }
            (FileType::RegularFile, _) => Kind::File { size: stat.st_size as u64 },
            (FileType::Directory, _) => Kind::Dir,
            (FileType::Fifo, _) => Kind::Fifo,
            (FileType::Socket, _) => Kind::Socket,
            (FileType::CharacterDevice, _) => Kind::CharDev { major: major(stat.st_rdev), minor: minor(stat.st_rdev) },
            _ => Kind::BlockDev { major: major(stat.st_rdev), minor: minor(stat.st_rdev) },
        };
        entry.meta.xattrs = match known {
            Some(known) => known.meta.xattrs.clone(),
            None => read_xattrs(&dir.join(name))?,
        };
        Ok(entry)
    }

    fn error(&self, action: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> Error {
        Error::io(action, self.root.join(path.as_path()))
    }
}

impl Entry {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    /// Whether other names of the same inode matter. Overlayfs links all its whiteouts together as it likes.
    pub(super) fn is_linkable(&self) -> bool {
        !matches!(self.kind, Kind::Dir | Kind::WHITEOUT)
    }
}

impl Inode {
    pub(super) fn of(stat: &Stat) -> Inode {
        Inode { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// An open directory with its name in /proc, the only way to attributes of symlinks and sockets that does not walk
/// a path which the pod can change meanwhile (`listxattrat` exists from Linux 6.13 on).
struct DirHandle<'a> {
    fd: BorrowedFd<'a>,
    proc_path: Vec<u8>,
}

impl DirHandle<'_> {
    fn new(fd: BorrowedFd) -> DirHandle {
        DirHandle { fd, proc_path: format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes() }
    }

    fn join(&self, name: &std::ffi::CStr) -> CString {
        let mut path = Vec::with_capacity(self.proc_path.len() + name.count_bytes() + 1);
        path.extend_from_slice(&self.proc_path);
        path.extend_from_slice(name.to_bytes());
        CString::new(path).expect("a C string's bytes have no NUL")
    }
}

/// A name that was replaced while its directory was listed may come up twice, once as a directory, once as a file. One
/// of the two was dropped; here goes what the dropped one held.
fn drop_orphans(entries: &mut Vec<Entry>) {
    let mut dirs = HashSet::from([RelPath::root()]);
    entries.retain(|entry| {
        let keep = entry.path.split().is_none_or(|(dir, _)| dirs.contains(&dir));
        if keep && entry.kind == Kind::Dir {
            dirs.insert(entry.path.clone());
        }
        keep
    });
}

/// Whether a name was removed or replaced since it was seen.
pub(super) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::XDEV)
}
