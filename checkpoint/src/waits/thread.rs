//! One stopped thread, and how it begins its call again.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::{Call, Place, STOP_LIMIT, Wait, is_for_ever, time};
use crate::guard::next_stop;

/// What an interrupted call has returned that restart_syscall(2) goes on with, and one that begins anew (linux/errno.h).
const ERESTART_RESTARTBLOCK: i64 = -516;
const ERESTARTNOHAND: i64 = -514;
const EINTR: i64 = -(libc::EINTR as i64);
/// Bytes below the stack pointer that are the program's (System V ABI, "The Stack Frame"), and room for a time below them.
const RED_ZONE: u64 = 128;
const TIME: u64 = 16;
/// Not part of a futex(2) operation (linux/futex.h): `FUTEX_PRIVATE_FLAG`, `FUTEX_CLOCK_REALTIME`.
const FUTEX_FLAGS: u64 = 128 | 256;
/// `syscall`
const INSTRUCTION: u64 = 2;

/// Where a thread has been left by CRIU.
enum At {
    /// Behind its call, which was interrupted.
    End,
    /// Before its call, which it makes again.
    Start,
}

impl At {
    /// None if it is not where it was, or CRIU has never touched it.
    fn of(registers: &user_regs_struct, place: &Place) -> Option<Self> {
        let same_stack = registers.rsp == place.stack;
        match (registers.rip, registers.rax.cast_signed()) {
            (ip, EINTR) if same_stack && ip == place.instruction => Some(Self::End),
            // It would begin anew by itself.
            (ip, ERESTARTNOHAND) if same_stack && ip == place.instruction => Some(Self::Start),
            (ip, _) if same_stack && ip + INSTRUCTION == place.instruction => Some(Self::Start),
            _ => None,
        }
    }
}

/// Has a thread go on with its call for the time that is left, as soon as it is let go of.
///
/// # Errors
/// It is not where it was, and stays as it is; or it has ended.
pub(super) fn begin_again(pid: i32, tid: Pid, wait: &Wait) -> io::Result<()> {
    let before = ptrace::getregs(tid)?;
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    match (wait.call, At::of(&before, &wait.place).ok_or(io::ErrorKind::NotFound)?) {
        // (By this call, as it may be a page that is still to come.)
        (Call::Select { left, fraction }, At::Start) => {
            let time = time(wait.left()?, fraction);
            let to = RemoteIoVec { base: left as usize, len: time.len() };
            let written = process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(&time)], &[to])?;
            if written == time.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        }
        // Before it stands a sleep, if CRIU has the patch for them; a poll or a futex has another reason to be there.
        (Call::Nanosleep | Call::ClockNanosleep, _) | (Call::Poll | Call::Futex, At::End) => {
            let address = (wait.place.stack - RED_ZONE - TIME) & !(TIME - 1);
            let mut kept = [0; TIME as usize];
            memory.read_exact_at(&mut kept, address)?;
            memory.write_all_at(&time(wait.left()?, 1), address)?;
            let called = interrupted_call(tid, &before, call(wait, address)?);
            // Before it can run: the frame of a signal's handler would lie just there.
            memory.write_all_at(&kept, address)?;
            match called? {
                Called::Returned(call) => go_on(tid, &before, wait.place.instruction, call),
                Called::Signalled(signal) => Ok(ptrace::detach(tid, signal)?),
            }
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The registers of the call, with a time at this address.
fn call(wait: &Wait, time: u64) -> io::Result<impl Fn(user_regs_struct) -> user_regs_struct> {
    let [rdi, rsi, rdx, r10, r8, r9] = wait.place.arguments;
    let left = wait.left()?;
    let (number, [rdi, rdx, r10]) = match wait.call {
        Call::Nanosleep => (libc::SYS_nanosleep, [time, rdx, r10]),
        Call::ClockNanosleep => (libc::SYS_clock_nanosleep, [rdi, time, r10]),
        Call::Poll if is_for_ever(rdx) => (libc::SYS_poll, [rdi, rdx, r10]),
        // Milliseconds, as they were; it must not end too early.
        Call::Poll => (libc::SYS_poll, [rdi, left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64, r10]),
        // FUTEX_WAIT alone names a duration, all others a moment.
        Call::Futex if rsi & !FUTEX_FLAGS == libc::FUTEX_WAIT as u64 => (libc::SYS_futex, [rdi, rdx, time]),
        Call::Futex => (libc::SYS_futex, [rdi, rdx, r10]),
        Call::Select { .. } => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let (rip, rax) = (wait.place.instruction - INSTRUCTION, number.cast_unsigned());
    // Nothing is to be done again before it: no `orig_rax`.
    Ok(move |old| user_regs_struct { rip, rax, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, ..old })
}

/// What has become of a call.
enum Called {
    /// Its number, and what it returned.
    Returned([u64; 2]),
    /// A signal came first, if any; the thread is as it was, and gets it when it is let go of.
    Signalled(Option<Signal>),
}

/// Has it make a call that finds itself interrupted as soon as it waits.
fn interrupted_call(
    tid: Pid,
    before: &user_regs_struct,
    call: impl Fn(user_regs_struct) -> user_regs_struct,
) -> io::Result<Called> {
    let call = call(*before);
    ptrace::setregs(tid, call)?;
    for interruption in [false, true] {
        if interruption {
            ptrace::interrupt(tid)?;
        }
        ptrace::syscall(tid, None)?;
        match next_stop(tid, Instant::now() + STOP_LIMIT).ok_or(Errno::ESRCH)? {
            WaitStatus::PtraceSyscall(_) => {}
            stop => {
                // It interrupts the call, as far as the program can tell.
                ptrace::setregs(tid, *before)?;
                let signal = if let WaitStatus::Stopped(_, signal) = stop { Some(signal) } else { None };
                return Ok(Called::Signalled(signal));
            }
        }
    }
    Ok(Called::Returned([call.rax, ptrace::getregs(tid)?.rax]))
}

/// Gives it its registers back, with the result of that call, at the place where the kernel goes on with interrupted calls.
fn go_on(tid: Pid, before: &user_regs_struct, rip: u64, [number, rax]: [u64; 2]) -> io::Result<()> {
    // It may have ended just now, in time.
    let interrupted = rax.cast_signed() == ERESTART_RESTARTBLOCK;
    let orig_rax = if interrupted { number } else { u64::MAX };
    let after = user_regs_struct { rip, rax, orig_rax, ..*before };
    // Should we be gone before it gets there, the call ends as CRIU had it.
    ptrace::setregs(tid, user_regs_struct { rax: EINTR.cast_unsigned(), orig_rax: u64::MAX, ..after })?;
    // Any stop takes an interruption away (ptrace_stop()); a new one comes before all signals.
    ptrace::interrupt(tid)?;
    ptrace::cont(tid, None)?;
    next_stop(tid, Instant::now() + STOP_LIMIT).ok_or(Errno::ESRCH)?;
    Ok(ptrace::setregs(tid, after)?)
}
