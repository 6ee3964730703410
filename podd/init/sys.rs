//! The C library's functions that init needs, each behind a safe one. Numbers are those of Linux on x86_64 and aarch64.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::ptr;

pub const O_NONBLOCK: c_int = 0o4000;
#[cfg(target_arch = "aarch64")]
pub const O_NOFOLLOW: c_int = 0o100000;
#[cfg(not(target_arch = "aarch64"))]
pub const O_NOFOLLOW: c_int = 0o400000;
pub const SIGCHLD: c_int = 17;
const O_CLOEXEC: c_int = 0o2000000;
const F_SETFL: c_int = 4;
const SIG_SETMASK: c_int = 2;
/// Of the kernel's signal set, in bytes.
const SIGNAL_SET_SIZE: usize = 8;
#[cfg(target_arch = "aarch64")]
const SYS_RT_SIGACTION: c_long = 134;
#[cfg(not(target_arch = "aarch64"))]
const SYS_RT_SIGACTION: c_long = 13;
const WNOHANG: c_int = 1;
const MSG_NOSIGNAL: c_int = 0x4000;
const POLLIN: i16 = 1;
/// sizeof(struct signalfd_siginfo); the signal's number is its first field, 32 bits.
const SIGINFO_SIZE: usize = 128;

/// The C library's sigset_t: 1024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn _exit(code: c_int) -> !;
    fn close_range(first: u32, last: u32, flags: u32) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    #[link_name = "fork"]
    fn c_fork() -> c_int;
    #[link_name = "kill"]
    fn c_kill(pid: c_int, signal: c_int) -> c_int;
    fn pipe2(ends: *mut c_int, flags: c_int) -> c_int;
    #[link_name = "poll"]
    fn c_poll(fds: *mut PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
    fn send(fd: c_int, bytes: *const u8, count: usize, flags: c_int) -> isize;
    fn setgid(gid: u32) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn setsid() -> c_int;
    fn setuid(uid: u32) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
}

/// Closes all but the standard streams: whatever the starter left open would be the application's too, and could not
/// be checkpointed.
pub fn close_inherited() {
    // SAFETY: called before anything here owns a descriptor.
    unsafe { close_range(3, u32::MAX, 0) };
}

/// Blocks every signal and returns a descriptor that tells of them. Blocked signals reach even PID 1, for which the
/// kernel discards those that have no handler.
pub fn take_signals() -> io::Result<File> {
    let mut set = SignalSet([0; 16]);
    // SAFETY: `set` is as large as the C library's type, and outlives both calls.
    let fd = unsafe {
        sigfillset(&mut set);
        check(sigprocmask(SIG_SETMASK, &set, ptr::null_mut()))?;
        check(signalfd(-1, &set, O_CLOEXEC | O_NONBLOCK))?
    };
    Ok(own(fd))
}

/// The next signal that waits.
pub fn next_signal(signals: &mut File) -> Option<c_int> {
    let mut info = [0; SIGINFO_SIZE];
    loop {
        match signals.read(&mut info) {
            Ok(SIGINFO_SIZE) => {
                return Some(c_int::from_ne_bytes([info[0], info[1], info[2], info[3]]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// The state in which a program expects to be started: nothing ignored, nothing blocked.
pub fn restore_signals() {
    let none = SignalSet([0; 16]);
    // The kernel's struct sigaction, all of it zero: the default disposition.
    let default = [0u64; 4];
    // SAFETY: only default dispositions are set; both structures outlive the calls. The system call, as the C library
    // refuses its own signals 32 and 33, which its posix_spawn leaves ignored.
    unsafe {
        for number in 1..=64 as c_long {
            syscall(SYS_RT_SIGACTION, number, default.as_ptr(), ptr::null::<u64>(), SIGNAL_SET_SIZE);
        }
        sigprocmask(SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// A pipe: (reading end, never blocking; writing end), both closed on exec.
pub fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    unsafe { check(pipe2(ends.as_mut_ptr(), O_CLOEXEC))? };
    let (reader, writer) = (own(ends[0]), own(ends[1]));
    // Not through pipe2: the application must get a blocking end.
    // SAFETY: F_SETFL takes an int.
    unsafe { check(fcntl(reader.as_raw_fd(), F_SETFL, O_NONBLOCK))? };
    Ok((reader, writer))
}

/// Which of the descriptors can be read, or have ended; none after the timeout (negative: wait for ever) or a signal.
pub fn poll<const N: usize>(fds: [Option<RawFd>; N], timeout_ms: c_int) -> [bool; N] {
    // A negative descriptor is skipped by the kernel.
    let mut fds = fds.map(|fd| PollFd { fd: fd.unwrap_or(-1), events: POLLIN, revents: 0 });
    // SAFETY: the pointer and the count are those of a live array.
    let ready = unsafe { c_poll(fds.as_mut_ptr(), N as c_ulong, timeout_ms) };
    fds.map(|fd| ready > 0 && fd.revents != 0)
}

/// None in the child.
pub fn fork() -> io::Result<Option<c_int>> {
    // SAFETY: the process has one thread, so the child may do all that the parent may.
    let pid = unsafe { check(c_fork())? };
    Ok((pid != 0).then_some(pid))
}

/// The next child that has ended, and its wait status.
pub fn wait() -> Option<(c_int, c_int)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Sends a signal; a process that is gone needs none.
pub fn kill(pid: c_int, signal: c_int) {
    // SAFETY: touches no memory.
    unsafe { c_kill(pid, signal) };
}

/// Sends what fits. To whoever has hung up, nothing, and without a signal: that would be passed on to the application.
pub fn say(socket: BorrowedFd<'_>, bytes: &[u8]) {
    // SAFETY: the pointer and the count are those of a live slice.
    unsafe { send(socket.as_raw_fd(), bytes.as_ptr(), bytes.len(), MSG_NOSIGNAL) };
}

/// Makes `to` another name of `from`, kept on exec.
pub fn redirect(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: only the standard streams are replaced, which nothing here owns.
    unsafe { check(dup2(from.as_raw_fd(), to)) }.map(drop)
}

/// A session and process group of its own.
pub fn new_session() -> io::Result<()> {
    // SAFETY: touches no memory.
    unsafe { check(setsid()) }.map(drop)
}

/// For good: the saved ids change too.
pub fn switch_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count are those of a live slice.
    unsafe {
        check(setgroups(groups.len(), groups.as_ptr()))?;
        check(setgid(gid))?;
        check(setuid(uid))?;
    }
    Ok(())
}

/// Replaces this program; returns only if that fails.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings are terminated, both lists end with a null pointer, and all outlive the call.
    unsafe { execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends a forked child without running what the parent registered for its own end.
pub fn exit(code: c_int) -> ! {
    // SAFETY: touches no memory.
    unsafe { _exit(code) }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn own(fd: RawFd) -> File {
    // SAFETY: called with descriptors that the kernel has just returned, once each.
    unsafe { File::from_raw_fd(fd) }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
