//! Keeps processes whole when CRIU dies in the middle of a dump.
//!
//! CRIU (`compel/src/lib/infect.c`) works inside the processes: it writes a `syscall` instruction over their first
//! executable page, sets registers, has them map its parasite, and runs that in each of their threads. Killed meanwhile, it
//! leaves them as they happen to be, and the kernel lets go of them (ptrace(2)): a thread that finds itself in such borrowed
//! code comes to its end, `int3`, and dies of it. So, around each dump:
//!
//! 1. [`Saved::of`] notes the state of every thread of the frozen cgroup: registers, signal mask, the code that gets
//!    overwritten.
//! 2. [`Watch`] traces CRIU itself, for one event: its exit (`PTRACE_EVENT_EXIT`), which comes before the kernel lets go of
//!    the processes. There it shuts the freezer of the cgroup, which CRIU has opened, so that whoever is let go of stands
//!    still instead of running on.
//! 3. [`Saved::put_back`] takes the processes in hand, lets the parasite come to its own end where it serves CRIU, and puts
//!    everything back.
//!
//! One thing is beyond reach: a thread that has run into `int3` is stopped with a SIGTRAP, which the kernel delivers if CRIU dies
//! before it has waited for that stop (`ptrace_stop()` and `exit_ptrace()`; only the tracer could take it away). The CRIU that
//! `scripts/criu` builds is patched not to use such stops.
//!
//! None of this is needed for correctness while CRIU lives, and nothing here makes a dump fail: what cannot be saved is not
//! guarded, as if this module were not there.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys;

mod socket;
#[cfg_attr(not(target_arch = "x86_64"), path = "guard/unsupported.rs")]
mod task;

use task::Process;

/// Time for processes to stand still that have been told to.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// Time for threads that stand still to show up as stopped. One that waits for its vfork child does not; nor can CRIU dump it.
const STOP_LIMIT: Duration = Duration::from_millis(100);
/// The same for those that would stop, on a machine that is too busy to let them.
const STARVED_LIMIT: Duration = Duration::from_secs(2);

/// Time for threads to come to another place: each needs some ten microseconds and a turn of the processor.
const LEAD_LIMIT: Duration = Duration::from_millis(500);

/// Between two looks. Not sched_yield(2): on a busy machine that gives a whole slice to somebody else.
const A_MOMENT: Duration = Duration::from_micros(10);

/// What the processes of a frozen cgroup looked like before CRIU came.
#[derive(Debug)]
pub struct Saved {
    cgroup: PathBuf,
    processes: Vec<Process>,
}

impl Saved {
    /// Looks at the processes of a cgroup (v2) that stands still; some 20 µs a thread. If it does not, nothing is saved.
    #[must_use]
    pub fn of(cgroup: &Path) -> Self {
        let mut processes = Vec::new();
        if stands_still(cgroup) {
            processes = as_tracer(|| {
                let pids = pids(cgroup);
                let held = hold(&pids, Options::empty());
                let saved = pids.into_iter().filter_map(|pid| Process::save(pid, &held)).collect();
                release(&held);
                saved
            });
            // CRIU shuts the freezer afterwards only if it found it shut.
            let _ = await_stillness(cgroup);
        }
        Self { cgroup: cgroup.to_owned(), processes }
    }

    /// Begins to watch the CRIU that is to dump them; none if there is nothing to guard, or it cannot be traced.
    #[must_use]
    pub fn watch(&self, criu: Pid) -> Option<Watch> {
        if self.processes.is_empty() { None } else { Watch::begin(criu, &self.cgroup) }
    }

    /// Makes the processes what they were when they were saved; CRIU is dead. They stand still afterwards, as before.
    ///
    /// # Errors
    /// They do not stand still.
    pub fn put_back(&self) -> io::Result<()> {
        if self.processes.is_empty() {
            return Ok(());
        }
        shut_freezer(&self.cgroup, true)?;
        await_stillness(&self.cgroup)?;
        let pids = pids(&self.cgroup);
        socket::end_repair(&pids);
        as_tracer(|| {
            let held = hold(&pids, task::options());
            let injured: Vec<_> = self.processes.iter().filter_map(|process| process.injury(&held)).collect();
            let mut mended = Ok(());
            if !injured.is_empty() {
                // Nobody runs in the open freezer but whom we tell to: all are held.
                shut_freezer(&self.cgroup, false)?;
                mended = injured.iter().map(task::Injury::mend).fold(Ok(()), io::Result::and);
                shut_freezer(&self.cgroup, true)?;
            }
            release(&held);
            mended
        })?;
        await_stillness(&self.cgroup)
    }
}

/// Has each thread of a cgroup (v2) that stands still go on, while it is where `is_there` says, until it is somewhere else; nobody
/// else moves, and all stand still afterwards. One that is there all the same, or cannot be held, is returned.
///
/// # Errors
/// They do not stand still again.
pub(crate) fn lead_out(cgroup: &Path, is_there: impl Fn(Pid, Pid) -> bool + Sync) -> io::Result<Option<Pid>> {
    let pids = pids(cgroup);
    let stays = as_tracer(|| {
        let held = hold(&pids, Options::empty());
        let threads: Vec<_> = pids.iter().flat_map(|pid| tids(*pid).into_iter().map(move |tid| (*pid, tid))).collect();
        let mut stays = threads.iter().map(|(_, tid)| *tid).find(|tid| !held.contains(tid));
        if stays.is_none() {
            shut_freezer(cgroup, false)?;
            let deadline = Instant::now() + LEAD_LIMIT;
            stays = threads.into_iter().find_map(|(pid, tid)| {
                while is_there(pid, tid) {
                    if Instant::now() > deadline || go_on_a_moment(tid).is_none() {
                        return Some(tid);
                    }
                }
                None
            });
            shut_freezer(cgroup, true)?;
        }
        release(&held);
        Ok::<_, io::Error>(stays)
    })?;
    await_stillness(cgroup)?;
    Ok(stays)
}

/// Lets a held thread go on for a moment; none if it does not stop again.
fn go_on_a_moment(tid: Pid) -> Option<()> {
    let deadline = Instant::now() + STARVED_LIMIT;
    let mut signal = None;
    loop {
        ptrace::cont(tid, signal).ok()?;
        // Interrupted at once, it would not come to its next instruction.
        thread::sleep(A_MOMENT);
        ptrace::interrupt(tid).ok()?;
        match next_stop(tid, deadline)? {
            // It was about to get one.
            WaitStatus::Stopped(_, its) => signal = Some(its),
            _ => return Some(()),
        }
    }
}

/// Traces CRIU until its end, and shuts the freezer of the processes that it holds before it lets go of them.
///
/// Nobody else may wait for this child meanwhile: a stop that is meant for the tracer would be lost.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<()>,
    /// The freezer of the processes that CRIU holds; none once it has let go of them.
    freezer: Arc<Mutex<Option<PathBuf>>>,
}

impl Watch {
    fn begin(criu: Pid, cgroup: &Path) -> Option<Self> {
        let (tell, told) = mpsc::channel();
        let freezer = Arc::new(Mutex::new(Some(cgroup.to_owned())));
        let its = freezer.clone();
        // A tracer is a thread: only this one can wait and go on.
        let thread = thread::spawn(move || {
            let seized = ptrace::seize(criu, Options::PTRACE_O_TRACEEXIT).is_ok();
            let _ = tell.send(seized);
            if seized {
                follow(criu, &its);
            }
        });
        told.recv().is_ok_and(|seized| seized).then_some(Self { thread, freezer })
    }

    /// CRIU has let go of the processes: from now on it ends without a consequence for them.
    pub fn disarm(&self) {
        *self.freezer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits for CRIU's end, and reaps it.
    pub fn finish(self) {
        let _ = self.thread.join();
    }
}

fn follow(criu: Pid, freezer: &Mutex<Option<PathBuf>>) {
    loop {
        let _ = match waitpid(criu, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                // Held until it is shut: whoever disarms is not overtaken.
                let freezer = freezer.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = freezer.as_ref().map(|cgroup| shut_freezer(cgroup, true));
                ptrace::cont(criu, None)
            }
            Ok(WaitStatus::PtraceEvent(_, signal, libc::PTRACE_EVENT_STOP)) if signal != Signal::SIGTRAP => {
                sys::listen(criu)
            }
            Ok(WaitStatus::Stopped(_, signal)) => ptrace::cont(criu, signal),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return,
            Ok(_) => ptrace::cont(criu, None),
            Err(_) => Ok(()),
        };
    }
}

/// Runs this in a thread of its own, since at its end the kernel lets go of everybody whom it still traces: also of those that
/// could not be stopped. It does so a little after the thread has been joined, so others are to be [released](release).
pub(crate) fn as_tracer<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        // Its short sleeps would be six times as long.
        let _ = nix::sys::prctl::set_timerslack(1);
        work()
    };
    match thread::scope(|scope| scope.spawn(work).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Has a thread stop as soon as it can, for the calling thread as its tracer.
pub(crate) fn stop(tid: Pid) -> bool {
    seize(tid, task::options())
}

/// A running process that stands still while one of its threads makes calls for us; it goes on when this is dropped, each thread
/// with what it was doing. To be used [as its tracer](as_tracer).
pub(crate) struct Borrowed {
    held: HashSet<Pid>,
    hand: task::Thread,
}

impl Borrowed {
    /// # Errors
    /// Not all of its threads can be stopped; or it is no 64-bit program.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let held = hold(&[pid], task::options());
        let first = tids(pid).iter().all(|tid| held.contains(tid)).then_some(pid);
        match first.and_then(|tid| task::Thread::save(tid).ok()).filter(task::Thread::is_native) {
            Some(hand) => Ok(Self { held, hand }),
            None => {
                release(&held);
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "it cannot be stopped"))
            }
        }
    }

    /// Has it make a system call with the instruction at `address`; what the call returns.
    pub(crate) fn call(&self, address: u64, number: libc::c_long, arguments: [u64; 2]) -> io::Result<i64> {
        let returned = self.hand.call(address, number, arguments, 0)?;
        Errno::result(if returned < 0 { -1 } else { 0 }).map_err(|_| io::Error::from_raw_os_error(-returned as i32))?;
        Ok(returned)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let _ = self.hand.go_on();
        release(&self.held);
    }
}

/// Stops the threads of processes as their tracer; returns those that did stop.
fn hold(pids: &[Pid], options: Options) -> HashSet<Pid> {
    let seized: Vec<Pid> = pids.iter().flat_map(|pid| tids(*pid)).filter(|tid| seize(*tid, options)).collect();
    let deadline = Instant::now() + STOP_LIMIT;
    let stops = |tid: &Pid| {
        let mut stop = next_stop(*tid, deadline);
        if stop.is_none() && !waits_uninterruptibly(*tid) {
            // It only has not had its turn.
            stop = next_stop(*tid, Instant::now() + STARVED_LIMIT);
        }
        matches!(stop, Some(WaitStatus::PtraceEvent(..)))
    };
    seized.into_iter().filter(stops).collect()
}

/// Begins to trace a thread, and has it stop.
fn seize(tid: Pid, options: Options) -> bool {
    ptrace::seize(tid, options).is_ok() && ptrace::interrupt(tid).is_ok()
}

/// As one that waits for its vfork child.
fn waits_uninterruptibly(tid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('D'))
}

fn release(held: &HashSet<Pid>) {
    for tid in held {
        let _ = ptrace::detach(*tid, None);
    }
}

/// The next thing that a tracee reports; none if nothing comes in time, or it has ended.
pub(crate) fn next_stop(tid: Pid, deadline: Instant) -> Option<WaitStatus> {
    loop {
        match waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() < deadline => thread::sleep(A_MOMENT),
            Ok(WaitStatus::StillAlive | WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return None,
            Ok(status) => return Some(status),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// The processes of a cgroup and of those below it.
pub(crate) fn pids(cgroup: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<_> = list.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(self::pids(&entry.path()));
        }
    }
    pids
}

/// The threads of a process, its first one first.
pub(crate) fn tids(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).map(Pid::from_raw).collect()
}

fn shut_freezer(cgroup: &Path, shut: bool) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.freeze"), if shut { "1" } else { "0" })
}

fn stands_still(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
}

fn await_stillness(cgroup: &Path) -> io::Result<()> {
    let deadline = Instant::now() + FREEZE_LIMIT;
    while !stands_still(cgroup) {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the processes do not stand still"));
        }
        thread::sleep(A_MOMENT);
    }
    Ok(())
}
