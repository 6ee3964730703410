//! Out by way of processes and sockets of the host.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::files::processes;
use crate::raw::{address, address_mut, call};
use crate::{Attempt, Outcome, Target};

/// Highest PID guessed.
const GUESSES: i32 = 100_000;

pub const ATTEMPTS: &[Attempt] = &[
    ("signal-host-process", |target| at_host(target, |pid| kill(pid, None))),
    ("ptrace-host-process", |target| at_host(target, |pid| ptrace::seize(pid, ptrace::Options::empty()))),
    ("pidfd-host-process", |target| at_host(target, |pid| call(libc::SYS_pidfd_open, [pid.as_raw() as usize, 0]))),
    ("memory-of-host-process", |target| at_host(target, read_memory)),
    ("guess-pids", guess_pids),
    ("foreign-processes", foreign_processes),
    ("proc-is-the-pods", proc_is_the_pods),
    ("abstract-socket", abstract_socket),
];

/// The host's PID may by chance be one of the pod's own, too: then there is nobody to attack under this number.
fn at_host<T>(target: &Target, attempt: impl Fn(Pid) -> nix::Result<T>) -> Outcome {
    if is_own(&Path::new("/proc").join(target.host_pid.to_string())) {
        return Outcome::blocked("this PID is a process of the pod");
    }
    Outcome::of(attempt(Pid::from_raw(target.host_pid)))
}

fn read_memory(pid: Pid) -> nix::Result<i64> {
    let mut buffer = [0u8; 8];
    let local = [address_mut(&mut buffer), 8];
    let remote = [0x40_0000usize, 8];
    call(libc::SYS_process_vm_readv, [pid.as_raw() as usize, address(&local), 1, address(&remote), 1, 0])
}

/// Every number that answers must belong to a process or thread that the pod's own /proc knows.
fn guess_pids(target: &Target) -> Outcome {
    let highest = GUESSES.max(target.host_pid.saturating_add(100));
    let answers = |pid: &i32| kill(Pid::from_raw(*pid), None) != Err(Errno::ESRCH);
    let foreign = |pid: &i32| !is_own(&Path::new("/proc").join(pid.to_string()));
    // Asked again, as it may just have ended.
    let found = (1..=highest).filter(|pid| answers(pid) && foreign(pid) && answers(pid));
    let found: Vec<String> = found.map(|pid| pid.to_string()).collect();
    Outcome::nothing(&found)
}

fn foreign_processes(_: &Target) -> Outcome {
    let found: Vec<String> = processes()
        .into_iter()
        .filter(|process| process.exists() && !is_own(process))
        .map(|process| process.display().to_string())
        .collect();
    Outcome::nothing(&found)
}

/// In the same PID namespace. A process whose namespaces cannot be seen is another user's; that its status tells one PID
/// only then says that its namespace is that of this /proc.
fn is_own(process: &Path) -> bool {
    match (fs::read_link(process.join("ns/pid")), fs::read_link("/proc/self/ns/pid")) {
        (Ok(its), Ok(own)) => its == own,
        _ => fs::read_to_string(process.join("status")).is_ok_and(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))
                .is_some_and(|pids| pids.split_whitespace().count() == 1)
        }),
    }
}

fn proc_is_the_pods(_: &Target) -> Outcome {
    let own = std::process::id().to_string();
    match fs::read_link("/proc/self") {
        Ok(pid) if pid.to_str() == Some(&own) => Outcome::blocked("shows this process under its own PID"),
        Ok(pid) => Outcome::through(format!("shows this process, {own}, as {}", pid.display())),
        Err(error) => Outcome::through(format!("cannot be read: {error}")),
    }
}

fn abstract_socket(target: &Target) -> Outcome {
    Outcome::of_io(
        SocketAddr::from_abstract_name(&target.abstract_name).and_then(|address| UnixStream::connect_addr(&address)),
    )
}
