//! Sockets of a cgroup whose network is locked are deaf and mute until the lock goes. Needs root and a cgroup v2.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint::network_lock::{NetworkLock, SOCCR_MARK};
use nix::sys::socket::{setsockopt, sockopt};

/// A cgroup of the test's own.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup v2");
        let folder = Path::new(mount.split(' ').nth(1).unwrap()).join(format!("network-lock-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// Makes sockets that belong to it.
    fn with<T>(&self, make: impl FnOnce() -> T) -> T {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = before.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
        let enter = |folder: &Path| fs::write(folder.join("cgroup.procs"), "0").unwrap();
        enter(&self.0);
        let made = make();
        enter(&self.0.parent().unwrap().join(before));
        made
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn nothing_but_marked_packets_passes() {
    let group = Group::new();
    let (mut inside, mut outside, [plain, marked]) = group.with(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inside = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (inside, listener.accept().unwrap().0, [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap()))
    });
    let soon = Some(Duration::from_millis(100));
    for socket in [&inside, &outside] {
        socket.set_read_timeout(soon).unwrap();
    }
    plain.set_read_timeout(soon).unwrap();
    setsockopt(&marked, sockopt::Mark, &SOCCR_MARK).unwrap();
    let mut buffer = [0; 8];

    let lock = NetworkLock::new(&group.0).unwrap();
    inside.write_all(b"later").unwrap();
    assert_eq!(outside.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing comes through");
    assert!(plain.send_to(b"never", plain.local_addr().unwrap()).is_err());
    // (The kernel keeps the mark on the way.)
    assert_eq!(marked.send_to(b"CRIU", plain.local_addr().unwrap()).unwrap(), 4);
    assert_eq!(plain.recv(&mut buffer).unwrap(), 4);
    assert_eq!(buffer[..4], *b"CRIU");

    drop(lock);
    outside.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(outside.read(&mut buffer).unwrap(), 5, "TCP sends it again");
    assert_eq!(buffer[..5], *b"later");
    plain.send_to(b"now", plain.local_addr().unwrap()).unwrap();
    assert_eq!(plain.recv(&mut buffer).unwrap(), 3);
}
