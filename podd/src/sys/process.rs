//! Making processes, and holding on to them without mistaking one for another.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

/// Has all threads of this process share two arenas of memory (mallopt(3), `M_ARENA_MAX`). By default glibc makes one for
/// each of up to eight threads a core, and a daemon at rest keeps what its busiest moment left free in each of them.
pub fn share_memory_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread runs yet; the call takes two integers and changes the allocator's settings only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives memory back to the kernel that is free, and lies between what is not (malloc_trim(3)).
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks, as any allocation does.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number on this host.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl ProcessId {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name (field 2) may contain anything, so count from its closing parenthesis.
        let start = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))?;
        Ok(Self { pid, start })
    }

    /// Whether it still exists (a zombie does not count).
    #[must_use]
    pub fn is_alive(self) -> bool {
        let zombie = fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|s| s.rsplit_once(") ").is_some_and(|(_, r)| r.starts_with(['Z', 'X'])));
        !zombie && Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// A descriptor that becomes readable when it ends.
    ///
    /// # Errors
    /// It is gone already (`ESRCH`).
    pub fn pidfd(self) -> io::Result<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid).ok_or(Errno::ESRCH)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        // The number may have been taken over between our two looks.
        if Self::of(self.pid)? == self { Ok(fd) } else { Err(Errno::ESRCH.into()) }
    }

    /// Waits for its end, without a thread.
    ///
    /// # Errors
    /// It is gone already.
    pub async fn ended(self) -> io::Result<()> {
        // SAFETY: the descriptor is owned by the AsyncFd until both are dropped, so it cannot be closed or reused
        // while it is registered.
        let pidfd = unsafe { tokio::io::unix::AsyncFd::register(self.pidfd()?) }?;
        pidfd.readable().await.map(drop)
    }

    /// Sends a signal, to this process and no other.
    ///
    /// # Errors
    /// It is gone (`ESRCH`).
    pub fn signal(self, signal: i32) -> io::Result<()> {
        let fd = self.pidfd()?;
        let signal = rustix::process::Signal::from_named_raw(signal).ok_or(Errno::EINVAL)?;
        Ok(rustix::process::pidfd_send_signal(&fd, signal)?)
    }
}

/// Waits until a pidfd reports the end of its process; false after `limit`.
#[must_use]
pub fn wait_ended(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(n) => return n > 0,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Forks with new namespaces (`CLONE_NEW*` flags). The child runs `child` and exits with what it returns.
///
/// # Errors
/// `clone(2)`'s.
pub fn clone_into(flags: i32, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    assert_eq!(threads(), 1, "only a single-threaded process may fork: the child could inherit a held lock");
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack, clone behaves as fork: the child has its own copy of all
    // memory. This process has one thread (asserted), so no lock can be held by a thread that the child lacks.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: ends this process at once, without running destructors that belong to the parent.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Lets the rest of this program run in a grandchild that nobody waits for. The parent's copy stays until the
/// grandchild drops the returned descriptor (ready, exit 0) or dies (exit 1).
///
/// # Errors
/// `fork(2)`'s.
pub fn daemonize() -> io::Result<Ready> {
    assert_eq!(threads(), 1, "only a single-threaded process may fork");
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: single-threaded (asserted).
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut byte = [0u8; 1];
            let ready = matches!(nix::unistd::read(&read, &mut byte), Ok(1));
            std::process::exit(i32::from(!ready));
        }
        ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(Ready(write))
        }
    }
}

/// Says that a daemonized process is ready.
pub struct Ready(OwnedFd);

impl Ready {
    /// Lets the waiting parent exit with 0.
    pub fn tell(self) {
        let _ = nix::unistd::write(&self.0, &[1]);
    }
}

/// Threads of this process. One that has entered a pod does not find itself in the pod's `/proc`; it checked before.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// The exit code that a wait status stands for, with the signal, if one ended the process.
#[must_use]
pub fn exit_of(status: nix::sys::wait::WaitStatus) -> Option<(i32, Option<i32>)> {
    use nix::sys::wait::WaitStatus;
    match status {
        WaitStatus::Exited(_, code) => Some((code, None)),
        WaitStatus::Signaled(_, signal, _) => Some((128 + signal as i32, Some(signal as i32))),
        _ => None,
    }
}

/// A signal by number.
///
/// # Errors
/// No such signal.
pub fn signal_of(number: i32) -> Result<Signal, Errno> {
    Signal::try_from(number)
}

/// Marks every descriptor from `first` on to be closed at exec.
///
/// # Errors
/// `close_range(2)`'s.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes only the close-on-exec flag of descriptors; no memory is touched.
    match unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
