//! Which sockets a pod has, and where its unix sockets lead.
//!
//! /proc does not tell an MPTCP socket from any other: a copy of the descriptor is taken (pidfd_getfd(2)) and asked. Copying and
//! closing does nothing to the socket. Peers of unix sockets come from socket diagnosis (sock_diag(7)) in the pod's network namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use procfs::process::Process;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

/// Sockets of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFacts {
    /// AF_*, such as 2 for IPv4.
    pub family: u32,
    /// SOCK_*, such as 1 for a stream.
    pub kind: u32,
    /// IPPROTO_*, such as 262 for MPTCP; 0: the family's only one.
    pub protocol: u32,
    /// How many.
    pub count: u64,
    /// A process that has one.
    pub holder: String,
}

/// A unix socket that leads out of the pod, or to a place that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsidePeer {
    /// A process that has it.
    pub holder: String,
    /// Its inode.
    pub inode: u64,
    /// What is wrong.
    pub fault: UnixFault,
}

/// How a unix socket leads out of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixFault {
    /// It is connected to a socket that no process of the pod has.
    PeerOutside,
    /// It was made in another network namespace and handed in.
    MadeOutside,
    /// It is bound to this name, in a folder that is gone.
    FolderGone(PathBuf),
}

/// Sockets of a pod, gathered process by process.
#[derive(Default)]
pub(super) struct Scan {
    seen: HashSet<u64>,
    kinds: BTreeMap<(u32, u32, u32), (u64, String)>,
    unix: BTreeMap<u64, String>,
    pub unknown: u64,
}

/// Asks the sockets of one process.
pub(super) struct Asker {
    pid: i32,
    handle: Option<OwnedFd>,
}

impl Asker {
    pub(super) fn new(pid: i32) -> Asker {
        Asker { pid, handle: None }
    }

    /// Family, type and protocol.
    fn ask(&mut self, fd: u32) -> io::Result<(AddressFamily, u32, u32)> {
        let handle = match self.handle.take() {
            Some(handle) => handle,
            None => {
                let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
                pidfd_open(pid, PidfdFlags::empty())?
            }
        };
        let handle = self.handle.insert(handle);
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        let socket = pidfd_getfd(handle, fd, PidfdGetfdFlags::empty())?;
        let family = sockopt::socket_domain(&socket)?;
        let kind = sockopt::socket_type(&socket)?.as_raw();
        Ok((family, kind, sockopt::socket_protocol(&socket)?.map_or(0, |p| p.as_raw().get())))
    }
}

/// Of `socket:[INODE]`.
pub(super) fn inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

impl Scan {
    pub(super) fn add(&mut self, inode: u64, asker: &mut Asker, fd: u32, holder: &str) {
        if !self.seen.insert(inode) {
            return;
        }
        match asker.ask(fd) {
            Ok((family, kind, protocol)) => {
                let key = (u32::from(family.as_raw()), kind, protocol);
                self.kinds.entry(key).or_insert_with(|| (0, holder.to_owned())).0 += 1;
                if family == AddressFamily::UNIX {
                    self.unix.insert(inode, holder.to_owned());
                }
            }
            // EBADF: closed meanwhile. Another process may have it still.
            Err(e) if e.raw_os_error() == Some(nix::libc::EBADF) => drop(self.seen.remove(&inode)),
            Err(_) => self.unknown += 1,
        }
    }

    pub(super) fn kinds(&self) -> Vec<SocketFacts> {
        let facts = |(&(family, kind, protocol), (count, holder)): (&(u32, u32, u32), &(u64, String))| SocketFacts {
            family,
            kind,
            protocol,
            count: *count,
            holder: holder.clone(),
        };
        self.kinds.iter().map(facts).collect()
    }

    /// Unix sockets that lead out of the pod with these processes. `root` is in its network namespace.
    pub(super) fn outside(&self, root: &Process, members: &BTreeSet<i32>) -> io::Result<Vec<OutsidePeer>> {
        if self.unix.is_empty() {
            return Ok(Vec::new());
        }
        let known = unix_sockets(root.pid())?;
        let inside = File::open(format!("/proc/{}/root", root.pid()))?;
        // Read again: the pod runs, and connections come and go between the two lists.
        let held: HashSet<u64> = members.iter().flat_map(|&pid| held(pid)).collect();
        let fault = |inode: &u64| match known.get(inode) {
            None => Some(UnixFault::MadeOutside),
            // 0: connected, but not accepted yet.
            Some(Unix { peer: Some(peer), .. }) if *peer != 0 && !held.contains(peer) => Some(UnixFault::PeerOutside),
            Some(Unix { name: Some(name), .. }) if folder_is_gone(&inside, name) => {
                Some(UnixFault::FolderGone(name.clone()))
            }
            Some(_) => None,
        };
        let judged = self.unix.iter().filter(|(inode, _)| held.contains(inode));
        Ok(judged
            .filter_map(|(inode, holder)| {
                Some(OutsidePeer { holder: holder.clone(), inode: *inode, fault: fault(inode)? })
            })
            .collect())
    }
}

fn held(pid: i32) -> Vec<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|e| inode(&std::fs::read_link(e.path()).ok()?)).collect()
}

/// What the kernel tells of a unix socket.
#[derive(Debug, PartialEq)]
struct Unix {
    /// Inode of its peer.
    peer: Option<u64>,
    /// The absolute path to which it is bound.
    name: Option<PathBuf>,
}

/// All unix sockets of the network namespace that `pid` is in, by inode.
fn unix_sockets(pid: i32) -> io::Result<HashMap<u64, Unix>> {
    let mut sockets = HashMap::new();
    diagnose(pid, request(&UNIX_REQUEST), &mut |message| {
        let inode = u32_at(message, 4)?;
        sockets.insert(inode.into(), unix(message.get(MESSAGE..)?));
        Some(())
    })?;
    Ok(sockets)
}

/// Whether the folder of a path does not exist in a root. In doubt, it does.
fn folder_is_gone(root: &File, name: &Path) -> bool {
    let Some(folder) = name.parent() else { return false };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(root, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    matches!(opened, Err(Errno::NOENT | Errno::NOTDIR))
}

/// How many TCP connections of the network namespace that `pid` is in wait for a program to accept them. /proc/net/tcp tells
/// it too, but the kernel looks through all connections that there could be for it: some ms.
///
/// # Errors
/// The process is gone.
pub fn unaccepted(pid: i32) -> io::Result<u64> {
    let mut unaccepted = 0;
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        // inet_diag_req_v2 (linux/inet_diag.h).
        let mut wanted = [0; 56];
        wanted[0] = family as u8;
        wanted[1] = nix::libc::IPPROTO_TCP as u8;
        wanted[4..8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
        diagnose(pid, request(&wanted), &mut |message| {
            // idiag_rqueue of an inet_diag_msg: of a socket that listens, its backlog (inet_diag_dump_icsk()).
            unaccepted += u64::from(u32_at(message, 56)?);
            Some(())
        })?;
    }
    Ok(unaccepted)
}

/// Asks the kernel for sockets of the network namespace that `pid` is in. A thread of its own enters it and ends there.
fn diagnose(pid: i32, request: Vec<u8>, each: &mut (dyn FnMut(&[u8]) -> Option<()> + Send)) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let enter_and_ask = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        ask(&request, each)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sock-diag".into()).spawn_scoped(scope, enter_and_ask)?;
        thread.join().map_err(|_| io::Error::other("asking for sockets panicked"))?
    })
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
/// A state of include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// Of nlmsghdr, unix_diag_msg and nlattr.
const HEADER: usize = 16;
const MESSAGE: usize = 16;
const ATTRIBUTE: usize = 4;

fn ask(request: &[u8], each: &mut dyn FnMut(&[u8]) -> Option<()>) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    rustix::net::send(&socket, request, SendFlags::empty())?;
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let (got, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        if parse(&buffer[..got], each)? {
            return Ok(());
        }
    }
}

/// unix_diag_req (linux/unix_diag.h): all states, show names and peers.
const UNIX_REQUEST: [u8; 24] = {
    const SHOW: u8 = 1 | 4;
    let mut bytes = [0; 24];
    bytes[0] = nix::libc::AF_UNIX as u8;
    [bytes[4], bytes[5], bytes[6], bytes[7]] = [u8::MAX; 4];
    bytes[if cfg!(target_endian = "little") { 12 } else { 15 }] = SHOW;
    bytes
};

/// nlmsghdr, and what is asked for.
fn request(wanted: &[u8]) -> Vec<u8> {
    const REQUEST_AND_DUMP: u16 = 0x301;
    let mut bytes = ((HEADER + wanted.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_AND_DUMP.to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(wanted);
    bytes
}

/// Hands each message on, which says nothing of one that is cut short; true after the last.
fn parse(mut datagram: &[u8], each: &mut dyn FnMut(&[u8]) -> Option<()>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "cut short answer of sock_diag");
    while datagram.len() >= HEADER {
        let length = u32_at(datagram, 0).ok_or_else(cut)? as usize;
        let message = datagram.get(HEADER..length).ok_or_else(cut)?;
        match u16_at(datagram, 4).ok_or_else(cut)? {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(message, 0).ok_or_else(cut)? as i32;
                return Err(io::Error::from_raw_os_error(-code));
            }
            SOCK_DIAG_BY_FAMILY => each(message).ok_or_else(cut)?,
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn unix(mut attributes: &[u8]) -> Unix {
    let mut unix = Unix { peer: None, name: None };
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length).max(ATTRIBUTE);
        let value = attributes.get(ATTRIBUTE..length).unwrap_or_default();
        match kind {
            UNIX_DIAG_PEER => unix.peer = u32_at(value, 0).map(u64::from),
            // Others are relative, or names of the abstract kind: those begin with a zero.
            UNIX_DIAG_NAME if value.first() == Some(&b'/') => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                unix.name = Some(OsStr::from_bytes(&value[..end]).into());
            }
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    unix
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_answers_are_refused_and_never_loop() {
        let mut peers = HashMap::new();
        let mut each = |message: &[u8]| {
            peers.insert(u32_at(message, 4)?, unix(message.get(MESSAGE..)?).peer);
            Some(())
        };
        let mut message = vec![0u8; 40];
        message[..4].copy_from_slice(&40u32.to_ne_bytes());
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[20..24].copy_from_slice(&7u32.to_ne_bytes());
        message[32..34].copy_from_slice(&8u16.to_ne_bytes());
        message[34..36].copy_from_slice(&UNIX_DIAG_PEER.to_ne_bytes());
        message[36..40].copy_from_slice(&9u32.to_ne_bytes());
        assert!(matches!(parse(&message, &mut each), Ok(false)));
        for length in 16..40 {
            assert!(parse(&message[..length], &mut each).is_err(), "{length}");
        }
        message[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert!(parse(&message, &mut each).is_err());
        assert_eq!(peers, HashMap::from([(7, Some(9))]));
    }

    #[test]
    fn a_connection_is_counted_until_it_is_accepted() {
        // In a network namespace of this thread's own, where nobody else connects to anything.
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()));
        let own = || unaccepted(nix::unistd::gettid().as_raw()).expect("the kernel tells");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).expect("a port");
            assert_eq!(own(), 0);
            let _client = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
            assert_eq!(own(), 1);
            let _accepted = listener.accept().expect("a connection");
            assert_eq!(own(), 0);
        }
    }

    #[test]
    fn inodes() {
        assert_eq!(inode(Path::new("socket:[12]")), Some(12));
        assert_eq!(inode(Path::new("pipe:[12]")), None);
    }
}
