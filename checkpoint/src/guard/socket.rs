//! TCP connections: CRIU reads them in *repair mode* (`sk-tcp.c`, tcp(7)), and leaves it only when the dump is done. In it a
//! program's writes fail, and its connection is closed without a word to the other end.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Takes the TCP sockets of these processes out of repair mode.
pub(super) fn end_repair(pids: &[Pid]) {
    let mut seen = HashSet::new();
    for pid in pids {
        let Some(handle) = rustix::process::Pid::from_raw(pid.as_raw()) else { continue };
        let Ok(handle) = pidfd_open(handle, PidfdFlags::empty()) else { continue };
        for number in sockets(*pid, &mut seen) {
            let Ok(socket) = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) else { continue };
            if getsockopt(&socket, sockopt::TcpRepair).is_ok_and(|repair| repair != 0) {
                let _ = setsockopt(&socket, sockopt::TcpRepair, &0);
                // The kernel forgets this option at that. A server sets it, and could not be restarted without it.
                let _ = setsockopt(&socket, sockopt::ReuseAddr, &true);
            }
        }
    }
}

/// Descriptors of sockets that have not been `seen`.
fn sockets(pid: Pid, seen: &mut HashSet<PathBuf>) -> Vec<i32> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let new = folder.filter(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        target.as_os_str().as_encoded_bytes().starts_with(b"socket:") && seen.insert(target)
    });
    new.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
