//! What a process has open.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use procfs::ProcResult;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::socket;

/// Open files of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors {
    /// How many.
    pub count: u64,
    /// The highest number; none: nothing is open.
    pub highest: Option<u32>,
    /// How many of each kind.
    pub kinds: BTreeMap<FdKind, u64>,
    /// What the kernel calls those of kind [`FdKind::Other`].
    pub others: BTreeSet<String>,
    /// Paths of open device nodes other than terminals and /dev/null and its like.
    pub devices: BTreeSet<String>,
    /// File locks (flock, POSIX, open file description) seen on them.
    pub locks: u64,
    /// Leases (F_SETLEASE) seen on them.
    pub leases: u64,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FdKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Pipe or FIFO.
    Pipe,
    /// Pipe in packet mode (`O_DIRECT` of pipe2(2)).
    PacketPipe,
    /// Any socket; see [`super::SocketFacts`].
    Socket,
    /// Terminal, master or slave.
    Terminal,
    /// /dev/null, zero, full, random, urandom.
    MemoryDevice,
    /// Any other device.
    Device,
    /// eventfd(2).
    Eventfd,
    /// epoll(7).
    Epoll,
    /// timerfd_create(2).
    Timerfd,
    /// signalfd(2).
    Signalfd,
    /// inotify(7).
    Inotify,
    /// fanotify(7).
    Fanotify,
    /// pidfd_open(2).
    Pidfd,
    /// memfd_create(2).
    Memfd,
    /// memfd_secret(2).
    SecretMemory,
    /// io_uring(7).
    IoUring,
    /// userfaultfd(2).
    Userfaultfd,
    /// perf_event_open(2).
    Perf,
    /// bpf(2): programs, maps, links.
    Bpf,
    /// A namespace.
    Namespace,
    /// POSIX message queue.
    MessageQueue,
    /// None of these; see [`Descriptors::others`].
    Other,
}

impl Descriptors {
    /// How many of this kind.
    pub fn of(&self, kind: FdKind) -> u64 {
        self.kinds.get(&kind).copied().unwrap_or(0)
    }
}

/// A deleted file that is still open or mapped: CRIU puts its contents into the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ghost {
    /// Its last name.
    pub path: PathBuf,
    /// Bytes that it occupies.
    pub bytes: u64,
}

/// One side of a pseudo-terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Terminal {
    /// Device number of the devpts instance, where the node is in one.
    pub file_system: Option<u64>,
    /// N of /dev/pts/N.
    pub index: u32,
}

/// What is gathered over all processes of a pod.
#[derive(Default)]
pub(super) struct Scan {
    pub ghosts: BTreeMap<(u64, u64), Ghost>,
    pub unlinked: BTreeSet<PathBuf>,
    pub slaves: BTreeMap<Terminal, String>,
    pub masters: BTreeSet<Terminal>,
    pub sockets: socket::Scan,
}

const MAX_NAMES: usize = 32;

impl Scan {
    pub(super) fn descriptors(&mut self, process: &Process, holder: &str) -> ProcResult<Descriptors> {
        let mut found = Descriptors::default();
        let mut asker = socket::Asker::new(process.pid());
        for entry in std::fs::read_dir(format!("/proc/{}/fd", process.pid()))? {
            let entry = entry?;
            let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            // Closed since the directory was read.
            let Ok(target) = std::fs::read_link(entry.path()) else {
                continue;
            };
            let Some(kind) = self.classify(&mut found, process.pid(), fd, &target, holder) else {
                continue;
            };
            if kind == FdKind::Socket
                && let Some(inode) = socket::inode(&target)
            {
                self.sockets.add(inode, &mut asker, fd, holder);
            }
            if kind == FdKind::Other && found.others.len() < MAX_NAMES {
                found.others.insert(target.display().to_string());
            }
            found.count += 1;
            found.highest = found.highest.max(Some(fd));
            *found.kinds.entry(kind).or_default() += 1;
        }
        Ok(found)
    }

    /// A mapped file without a name. /proc/PID/map_files leads to it.
    pub(super) fn mapped_ghost(&mut self, pid: i32, range: &[u8], name: &[u8]) {
        let Ok(range) = std::str::from_utf8(range) else {
            return;
        };
        let path = format!("/proc/{pid}/map_files/{range}");
        if let Ok(meta) = std::fs::metadata(&path) {
            self.deleted(pid, &path, &meta, name);
        }
    }

    /// Remembers a file (which `path` leads to) if the kernel says that its name is gone.
    fn deleted(&mut self, pid: i32, path: &str, meta: &Metadata, name: &[u8]) {
        if !meta.is_file() {
            return;
        }
        let stripped = name.strip_suffix(b" (deleted)");
        let called = PathBuf::from(OsStr::from_bytes(stripped.unwrap_or(name)));
        if meta.nlink() == 0 {
            // CRIU holds the blocks against its limit, not the length (files-reg.c, dump_ghost_remap).
            self.ghosts.insert((meta.dev(), meta.ino()), Ghost { path: called, bytes: meta.blocks() * 512 });
            return;
        }
        // In a tmpfs, CRIU's own name for it travels with all else (mount.c).
        if stripped.is_none() || magic(path) == Some(TMPFS) {
            return;
        }
        // And a file may really be called so.
        let root = Path::new("/proc").join(pid.to_string()).join("root");
        let real = std::fs::symlink_metadata(root.join(OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(name))));
        if !real.is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino())) {
            self.unlinked.insert(called);
        }
    }

    /// What a descriptor is; none if it has been closed since it was listed: busy servers do that all the time.
    fn classify(&mut self, found: &mut Descriptors, pid: i32, fd: u32, target: &Path, holder: &str) -> Option<FdKind> {
        match by_name(target) {
            Some(FdKind::Pipe) => return Some(pipe(pid, fd)),
            Some(kind) => return Some(kind),
            None => {}
        }
        let path = format!("/proc/{pid}/fd/{fd}");
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => return Some(FdKind::Other),
        };
        let kind = meta.file_type();
        Some(if kind.is_dir() {
            FdKind::Directory
        } else if kind.is_fifo() {
            pipe(pid, fd)
        } else if kind.is_char_device() || kind.is_block_device() {
            let kind = self.device(&meta, &path, pid, fd, holder);
            if kind == FdKind::Device && found.devices.len() < MAX_NAMES {
                found.devices.insert(target.display().to_string());
            }
            kind
        } else {
            if magic(&path) == Some(MQUEUE) {
                return Some(FdKind::MessageQueue);
            }
            self.deleted(pid, &path, &meta, target.as_os_str().as_bytes());
            let info = fdinfo(pid, fd);
            for lock in info.lines().filter_map(|l| l.strip_prefix("lock:")) {
                let lease = lock.split_ascii_whitespace().any(|w| w == "LEASE");
                *(if lease { &mut found.leases } else { &mut found.locks }) += 1;
            }
            FdKind::File
        })
    }

    fn device(&mut self, meta: &Metadata, path: &str, pid: i32, fd: u32, holder: &str) -> FdKind {
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let file_system = (magic(path) == Some(DEVPTS)).then(|| meta.dev());
        // Documentation/admin-guide/devices.txt.
        match (meta.file_type().is_char_device(), major, minor) {
            (true, 1, 3 | 5 | 7 | 8 | 9) => FdKind::MemoryDevice,
            (true, 5, 0) => FdKind::Terminal,
            (true, 5, 2) => {
                self.masters.extend(terminal_index(pid, fd).map(|index| Terminal { file_system, index }));
                FdKind::Terminal
            }
            (true, 136..=143, _) => {
                let terminal = Terminal { file_system, index: (major - 136) * 256 + minor };
                self.slaves.entry(terminal).or_insert_with(|| holder.to_owned());
                FdKind::Terminal
            }
            _ => FdKind::Device,
        }
    }
}

const MQUEUE: u32 = 0x1980_0202;
const DEVPTS: u32 = 0x1cd1;
const TMPFS: u32 = 0x0102_1994;

fn magic(path: &str) -> Option<u32> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type as u32)
}

/// N of the /dev/pts/N whose master this descriptor is.
pub(super) fn terminal_index(pid: i32, fd: u32) -> Option<u32> {
    fdinfo(pid, fd).lines().find_map(|l| l.strip_prefix("tty-index:")?.trim().parse().ok())
}

/// The mode is the writing end's (pipe(2)), and changes with fcntl(2).
fn pipe(pid: i32, fd: u32) -> FdKind {
    let info = fdinfo(pid, fd);
    let flags = info.lines().find_map(|l| i32::from_str_radix(l.strip_prefix("flags:")?.trim(), 8).ok());
    if flags.is_some_and(|f| f & nix::libc::O_DIRECT != 0) { FdKind::PacketPipe } else { FdKind::Pipe }
}

fn fdinfo(pid: i32, fd: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default()
}

/// What the kernel names without a path. None: it has a path, and its inode tells.
fn by_name(target: &Path) -> Option<FdKind> {
    let name = target.to_string_lossy();
    if name.starts_with('/') {
        return match &*name {
            "/secretmem (deleted)" => Some(FdKind::SecretMemory),
            _ if name.starts_with("/memfd:") && name.ends_with(" (deleted)") => Some(FdKind::Memfd),
            _ => None,
        };
    }
    if let Some(anonymous) = name.strip_prefix("anon_inode:") {
        return Some(match anonymous.trim_matches(['[', ']']) {
            "eventfd" => FdKind::Eventfd,
            "eventpoll" => FdKind::Epoll,
            "timerfd" => FdKind::Timerfd,
            "signalfd" => FdKind::Signalfd,
            "inotify" => FdKind::Inotify,
            "fanotify" => FdKind::Fanotify,
            "pidfd" => FdKind::Pidfd,
            "io_uring" => FdKind::IoUring,
            "userfaultfd" => FdKind::Userfaultfd,
            "perf_event" => FdKind::Perf,
            bpf if bpf.starts_with("bpf") => FdKind::Bpf,
            _ => FdKind::Other,
        });
    }
    let (kind, _) = name.split_once(":[")?;
    Some(match kind {
        "pipe" => FdKind::Pipe,
        "socket" => FdKind::Socket,
        "pidfd" => FdKind::Pidfd,
        "cgroup" | "ipc" | "mnt" | "net" | "pid" | "time" | "user" | "uts" => FdKind::Namespace,
        _ => FdKind::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_kernel() {
        for (name, kind) in [
            ("anon_inode:[eventpoll]", Some(FdKind::Epoll)),
            ("anon_inode:inotify", Some(FdKind::Inotify)),
            ("anon_inode:bpf-map", Some(FdKind::Bpf)),
            ("anon_inode:[landlock-ruleset]", Some(FdKind::Other)),
            ("pidfd:[55]", Some(FdKind::Pidfd)),
            ("net:[4026531840]", Some(FdKind::Namespace)),
            ("pipe:[7]", Some(FdKind::Pipe)),
            ("dmabuf:[7]", Some(FdKind::Other)),
            ("/memfd:cache (deleted)", Some(FdKind::Memfd)),
            ("/srv/pipe:[7]", None),
            ("/srv/data (deleted)", None),
        ] {
            assert_eq!(by_name(Path::new(name)), kind, "{name}");
        }
    }
}
