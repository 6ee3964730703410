//! The system calls of this crate for which no other crate has a safe call: all of its `unsafe`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

/// Has the command enter these cgroups (their open `cgroup.procs`) before it begins, in a cgroup namespace that begins there.
pub(crate) fn enter_cgroups(command: &mut Command, cgroups: Vec<File>) {
    let enter = move || -> io::Result<()> {
        for mut procs in &cgroups {
            procs.write_all(b"0")?;
        }
        Ok(unshare(CloneFlags::CLONE_NEWCGROUP)?)
    };
    // SAFETY: between fork and exec it makes write(2) and unshare(2) alone, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Leaves a tracee in the group-stop that it has reported (`PTRACE_LISTEN`).
pub(crate) fn listen(pid: Pid) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid.as_raw(), 0, 0) }).map(drop)
}

/// The signals that a stopped tracee blocks, bit n - 1 for signal n.
#[cfg(target_arch = "x86_64")]
pub(crate) fn signal_mask(tid: Pid) -> nix::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes as many bytes as it is told of, which are those of `mask`.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid.as_raw(), size_of::<u64>(), &raw mut mask) };
    Errno::result(result).map(|_| mask)
}

/// Sets what a stopped tracee blocks.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_signal_mask(tid: Pid, mask: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told of, which are those of `mask`.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid.as_raw(), size_of::<u64>(), &raw const mask) };
    Errno::result(result).map(drop)
}

/// The x87, SSE, AVX ... registers of a stopped tracee (`NT_X86_XSTATE`).
#[cfg(target_arch = "x86_64")]
pub(crate) fn extended_registers(tid: Pid) -> nix::Result<Vec<u8>> {
    // With AMX some 11 KiB, without it less than 3.
    let mut state = vec![0; 16 << 10];
    let length = xstate(libc::PTRACE_GETREGSET, tid, &mut state)?;
    state.truncate(length);
    state.shrink_to_fit();
    Ok(state)
}

/// Puts such registers back.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_extended_registers(tid: Pid, state: &[u8]) -> nix::Result<()> {
    xstate(libc::PTRACE_SETREGSET, tid, &mut state.to_vec()).map(drop)
}

#[cfg(target_arch = "x86_64")]
fn xstate(request: libc::c_uint, tid: Pid, state: &mut [u8]) -> nix::Result<usize> {
    const NT_X86_XSTATE: libc::c_long = 0x202;
    let mut part = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    // SAFETY: `part` describes `state`, and nothing beyond it is read or written.
    let result = unsafe { libc::ptrace(request, tid.as_raw(), NT_X86_XSTATE, &raw mut part) };
    Errno::result(result).map(|_| part.iov_len)
}

mod ioctl {
    // include/uapi/linux/timerfd.h: TFD_IOC_SET_TICKS.
    nix::ioctl_write_ptr!(set_ticks, b'T', 0, u64);
}

/// Sets how often a timer (timerfd_create(2)) has fired since it was last read.
pub(crate) fn set_timer_ticks(timer: &OwnedFd, ticks: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads one u64 (fs/timerfd.c, timerfd_ioctl); another descriptor than a timer's refuses.
    unsafe { ioctl::set_ticks(timer.as_raw_fd(), &raw const ticks) }.map(drop)
}
