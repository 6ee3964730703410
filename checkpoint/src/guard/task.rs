//! One process: what is saved of it, and how it is put back.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::next_stop;
use crate::sys;

/// Words saved of the first executable mapping. CRIU overwrites two (`compel_execute_syscall`, `parasite_memfd_exchange`).
const CODE_WORDS: usize = 8;
/// How the kernel calls the memory of CRIU's parasite (`MEMFD_FNAME`).
const PARASITE: &str = "/memfd:CRIUMFD (deleted)";
/// `syscall; int3 ...`
const SYSCALL: u64 = 0xcccc_cccc_cccc_050f;
/// Code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// `PTRACE_O_SUSPEND_SECCOMP`: what the parasite does, and what we do in its place, is not for the pod's filter to judge.
const SUSPEND_SECCOMP: i32 = 1 << 21;
/// A system call that would be gone on with by `restart_syscall(2)`.
const ERESTART_RESTARTBLOCK: i64 = 516;
/// Time for a parasite to leave.
const RUN_LIMIT: Duration = Duration::from_secs(2);
/// Time for a system call of ours, which waits for nothing but its turn. Whoever gives up leaves a thread in the middle of code that
/// is not its own: on a machine that is too busy, everybody has to wait.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Signals that CRIU's end has caused: the trap at the end of borrowed code, and the one that a parasite got which answered
/// nobody. They are not passed on.
const OF_CRIU: u64 = 1 << (Signal::SIGTRAP as i32 - 1) | 1 << (Signal::SIGPIPE as i32 - 1);

/// How threads are held that may have to run.
pub(super) fn options() -> Options {
    Options::PTRACE_O_TRACESYSGOOD | Options::from_bits_retain(SUSPEND_SECCOMP)
}

/// A process and its threads, as they were.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    threads: Vec<Thread>,
    code: Option<Code>,
}

/// All that a thread has of the processor, and the signals that it blocks. With `orig_rax` among the registers, the kernel
/// goes on with the system call in which the thread was.
pub(super) struct Thread {
    tid: Pid,
    registers: libc::user_regs_struct,
    extended: Vec<u8>,
    mask: u64,
}

/// The beginning of the first executable mapping (`get_exec_start`).
#[derive(Debug)]
struct Code {
    address: u64,
    words: [u64; CODE_WORDS],
}

impl Process {
    /// Notes what can be noted of the threads in `held`; none if there are none.
    pub(super) fn save(pid: Pid, held: &HashSet<Pid>) -> Option<Self> {
        let held = super::tids(pid).into_iter().filter(|tid| held.contains(tid));
        let threads: Vec<_> = held.filter_map(|tid| Thread::save(tid).ok()).collect();
        (!threads.is_empty()).then(|| Self { pid, threads, code: Code::save(pid).ok() })
    }

    /// What has to be done to make it what it was; none if it is that.
    pub(super) fn injury(&self, held: &HashSet<Pid>) -> Option<Injury<'_>> {
        let mut threads: Vec<_> = self.threads.iter().filter(|thread| held.contains(&thread.tid)).collect();
        // Whoever has a descriptor or a mapping too many has to remove it itself: any thread will do.
        let hand = *threads.first()?;
        let mappings = parasite_mappings(self.pid);
        let descriptors = parasite_descriptors(self.pid);
        let code = self.code.as_ref().filter(|code| !code.is_in(self.pid));
        threads.retain(|thread| thread.has_moved());
        let healthy = threads.is_empty() && mappings.is_empty() && descriptors.is_empty() && code.is_none();
        (!healthy).then_some(Injury { process: self, hand, threads, mappings, descriptors })
    }
}

/// What CRIU has left in a process.
pub(super) struct Injury<'a> {
    process: &'a Process,
    hand: &'a Thread,
    threads: Vec<&'a Thread>,
    mappings: Vec<Range<u64>>,
    descriptors: Vec<u64>,
}

impl Injury<'_> {
    /// Cures it, in an open freezer and with all threads held.
    pub(super) fn mend(&self) -> io::Result<()> {
        let cleaned = self.clean();
        self.restore().and(cleaned)
    }

    fn clean(&self) -> io::Result<()> {
        let Some(code) = &self.process.code else { return Ok(()) };
        for thread in &self.threads {
            self.let_leave(thread.tid)?;
        }
        // A 32-bit program would need other calls; it keeps the mapping.
        if self.hand.registers.cs == USER_CS {
            code.write(self.hand.tid, &[SYSCALL])?;
            for fd in &self.descriptors {
                self.hand.call(code.address, libc::SYS_close, [*fd, 0], OF_CRIU)?;
            }
            for range in &self.mappings {
                self.hand.call(code.address, libc::SYS_munmap, [range.start, range.end - range.start], OF_CRIU)?;
            }
            for thread in &self.threads {
                // Takes away the signals that it got for what was not its own doing.
                thread.call(code.address, libc::SYS_getpid, [0, 0], OF_CRIU)?;
            }
        }
        Ok(())
    }

    /// A parasite that serves CRIU leaves when it finds the connection closed, and tidies up first: protection of mappings,
    /// descriptors, umask. Its last call is `rt_sigreturn`. In other threads than the first it does not serve, but ends in a
    /// trap.
    fn let_leave(&self, tid: Pid) -> io::Result<()> {
        // CRIU may have set a breakpoint at the end (`ptrace_set_breakpoint`).
        let control = std::mem::offset_of!(libc::user, u_debugreg) + 7 * size_of::<u64>();
        let _ = ptrace::write_user(tid, control as ptrace::AddressType, 0);
        if tid != self.process.pid {
            return Ok(());
        }
        let deadline = Instant::now() + RUN_LIMIT;
        loop {
            let ip = ptrace::getregs(tid)?.rip;
            if !self.mappings.iter().any(|range| range.contains(&ip)) {
                return Ok(());
            }
            ptrace::syscall(tid, None)?;
            if next_stop(tid, deadline).is_none() {
                ptrace::interrupt(tid)?;
                next_stop(tid, Instant::now() + RUN_LIMIT).ok_or(Errno::ESRCH)?;
                return Ok(());
            }
        }
    }

    fn restore(&self) -> io::Result<()> {
        if let Some(code) = &self.process.code {
            code.write(self.hand.tid, &code.words)?;
        }
        self.threads.iter().chain([&self.hand]).try_for_each(|thread| thread.restore()).map_err(io::Error::from)
    }
}

impl Thread {
    pub(super) fn save(tid: Pid) -> nix::Result<Self> {
        Ok(Self {
            tid,
            registers: ptrace::getregs(tid)?,
            extended: sys::extended_registers(tid)?,
            mask: sys::signal_mask(tid)?,
        })
    }

    fn restore(&self) -> nix::Result<()> {
        let mut registers = self.registers;
        // What the kernel has noted of a call with a time limit is of another call by now: it ends early. So it does after
        // every dump (`compel_get_task_regs`), and programs have to expect it (signal(7)).
        if registers.rax.cast_signed() == -ERESTART_RESTARTBLOCK {
            registers.rax = (-i64::from(libc::EINTR)).cast_unsigned();
        }
        ptrace::setregs(self.tid, registers)?;
        sys::set_extended_registers(self.tid, &self.extended)?;
        sys::set_signal_mask(self.tid, self.mask)
    }

    /// Whether it runs 64-bit code.
    pub(super) fn is_native(&self) -> bool {
        self.registers.cs == USER_CS
    }

    /// After [calls](Self::call): has it stop where the kernel goes on with an interrupted call, as what it was before them.
    pub(super) fn go_on(&self) -> io::Result<()> {
        ptrace::interrupt(self.tid)?;
        let deadline = Instant::now() + CALL_LIMIT;
        loop {
            ptrace::cont(self.tid, None)?;
            let stop = next_stop(self.tid, deadline).ok_or(Errno::ESRCH)?;
            if matches!(stop, WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP)) {
                break;
            }
        }
        ptrace::setregs(self.tid, self.registers)?;
        Ok(sys::set_signal_mask(self.tid, self.mask)?)
    }

    /// Whether it is somewhere else than it was. Who is where he was has his other registers too: CRIU sets all at once.
    fn has_moved(&self) -> bool {
        let place = |r: &libc::user_regs_struct| [r.rip, r.rsp, r.rax, r.orig_rax];
        let now = ptrace::getregs(self.tid).ok();
        now.is_none_or(|now| place(&now) != place(&self.registers)) || sys::signal_mask(self.tid) != Ok(self.mask)
    }

    /// Has it make a system call with the instruction at `address`; what the call returns. Signals in `taken` that wait for it
    /// are taken away.
    pub(super) fn call(
        &self,
        address: u64,
        number: libc::c_long,
        [first, second]: [u64; 2],
        taken: u64,
    ) -> io::Result<i64> {
        // No `orig_rax`: nothing is to be done again.
        let none = u64::MAX;
        let rax = number.cast_unsigned();
        let call =
            libc::user_regs_struct { rip: address, rax, orig_rax: none, rdi: first, rsi: second, ..self.registers };
        ptrace::setregs(self.tid, call)?;
        sys::set_signal_mask(self.tid, !taken)?;
        let deadline = Instant::now() + CALL_LIMIT;
        for _ in ["entry", "exit"] {
            loop {
                ptrace::syscall(self.tid, None)?;
                let stop = next_stop(self.tid, deadline).ok_or(Errno::ESRCH)?;
                if matches!(stop, WaitStatus::PtraceSyscall(_)) {
                    break;
                }
            }
        }
        Ok(ptrace::getregs(self.tid)?.rax.cast_signed())
    }
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {} at {:#x}", self.tid, self.registers.rip)
    }
}

impl Code {
    fn save(pid: Pid) -> io::Result<Self> {
        // Not all of it: there may be ten thousands.
        let mut lines = BufReader::new(File::open(format!("/proc/{pid}/maps"))?).lines().map_while(Result::ok);
        let first = lines.find_map(|line| parse(&line).filter(|m| m.executable).map(|m| m.range.start));
        let address = first.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { address, words: read(pid, address)? })
    }

    fn is_in(&self, pid: Pid) -> bool {
        read(pid, self.address).is_ok_and(|words| words == self.words)
    }

    /// Through ptrace: it may write where the process may not.
    fn write(&self, tid: Pid, words: &[u64]) -> io::Result<()> {
        for (n, word) in words.iter().enumerate() {
            let address = self.address + (n * size_of::<u64>()) as u64;
            ptrace::write(tid, address as ptrace::AddressType, word.cast_signed())?;
        }
        Ok(())
    }
}

fn read(pid: Pid, address: u64) -> io::Result<[u64; CODE_WORDS]> {
    let mut bytes = [0; CODE_WORDS * size_of::<u64>()];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, address)?;
    let (words, _) = bytes.as_chunks::<{ size_of::<u64>() }>();
    Ok(std::array::from_fn(|n| u64::from_ne_bytes(words[n])))
}

/// A line of `/proc/PID/maps`.
struct Mapping<'a> {
    range: Range<u64>,
    executable: bool,
    name: &'a str,
}

fn parse(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    let executable = fields.next()?.contains('x');
    Some(Mapping { range, executable, name: fields.nth(3).unwrap_or_default().trim_start() })
}

fn parasite_mappings(pid: Pid) -> Vec<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter_map(parse).filter(|mapping| mapping.name == PARASITE).map(|mapping| mapping.range).collect()
}

fn parasite_descriptors(pid: Pid) -> Vec<u64> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let of_it = folder.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == PARASITE));
    of_it.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
