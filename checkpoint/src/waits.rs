//! Calls with a time limit across a dump: they go on, and end when they would have ended.
//!
//! A thread that waits in nanosleep(2), poll(2) or futex(2) is woken by the freezer. The kernel has noted until when it was to
//! wait (`restart_block`), and goes on with the call by itself, restart_syscall(2), as if nothing had been. No dump carries that
//! note: CRIU ends such calls with EINTR (`compel_get_task_regs`), so that `sleep 3600` begins anew. For select(2) and its like
//! the kernel writes what is left into the program's memory, and CRIU has them begin with that, late by the blackout.
//!
//! So [`Waits::of`] reads those notes while the pod stands still, and [`Waits::thaw`] puts them back, in the same or another
//! kernel: each thread is stopped, begins its call anew for the time that is left, is interrupted at once, upon which the kernel
//! has made a note of its own, and gets its registers back as they were. Nothing of the program is changed, unless we
//! are killed in the tenth of a millisecond that this takes: then the call returns with other argument registers. Whoever cannot
//! be helped goes on as CRIU has left him, as signal(7) allows.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clocks::Clocks;
use crate::guard::{self, next_stop};
use crate::process::pod_pid;

mod blocks;
#[cfg_attr(not(target_arch = "x86_64"), path = "waits/unsupported.rs")]
mod thread;

use blocks::Block;

/// Name of the file beside CRIU's images.
const NOTE: &str = "waits-noted";
/// Time for a thread to stop, and for its call to be interrupted.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The waiting threads of a pod that stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits(Vec<Wait>);

/// A thread that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Wait {
    /// Its number inside the pod.
    tid: i32,
    call: Call,
    /// When it is to end, in nanoseconds of the pod's CLOCK_MONOTONIC.
    until: i64,
    place: Place,
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Call {
    Nanosleep,
    ClockNanosleep,
    Poll,
    Futex,
    /// Any that leaves what remains in the memory of the program, here, as seconds and fractions of this many nanoseconds.
    Select {
        left: u64,
        fraction: u32,
    },
}

/// Arguments and place of a system call, as /proc/PID/syscall has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    number: i64,
    arguments: [u64; 6],
    stack: u64,
    instruction: u64,
}

/// Whether this kernel tells of interrupted calls. Worth asking before time matters: the first answer takes some 10 ms.
#[must_use]
pub fn are_told() -> bool {
    blocks::are_told()
}

impl Waits {
    /// Those of processes that stand still since this moment of the host's clocks, and were not touched since; some 10 µs a
    /// thread. What cannot be learnt is left out.
    #[must_use]
    pub fn of(pids: &[i32], interrupted: Clocks) -> Self {
        let Some(ahead) = ahead(pids) else { return Self::default() };
        let blocks = blocks::all().unwrap_or_default();
        let threads =
            pids.iter().flat_map(|pid| guard::tids(Pid::from_raw(*pid)).into_iter().map(move |tid| (*pid, tid)));
        let waits = threads.filter_map(|(pid, tid)| {
            let place = Place::of(pid, tid)?;
            let (call, until) = place.wait(pid, blocks.get(&tid.as_raw()), interrupted.monotonic)?;
            // The pod's clock, as the other host's is another one.
            let until = until.saturating_add(ahead);
            Some(Wait { tid: pod_pid(tid.as_raw())?, call, until, place })
        });
        Self(waits.collect())
    }

    /// Notes them in this folder.
    ///
    /// # Errors
    /// I/O errors.
    pub fn note(&self, folder: &Path) -> io::Result<()> {
        let bytes = bincode::serde::encode_to_vec(self, bincode::config::standard()).map_err(io::Error::other)?;
        fs::write(folder.join(NOTE), bytes)
    }

    /// Takes a note along to another folder; none is none.
    ///
    /// # Errors
    /// I/O errors.
    pub fn carry(from: &Path, to: &Path) -> io::Result<()> {
        match fs::copy(from.join(NOTE), to.join(NOTE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// What is noted in this folder.
    #[must_use]
    pub fn noted(folder: &Path) -> Self {
        let decode = |bytes: Vec<u8>| bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).ok();
        fs::read(folder.join(NOTE)).ok().and_then(decode).map(|(waits, _)| waits).unwrap_or_default()
    }

    /// What is noted in this folder; the note is removed, as it holds for one thaw.
    #[must_use]
    pub fn take(folder: &Path) -> Self {
        let noted = Self::noted(folder);
        let _ = fs::remove_file(folder.join(NOTE));
        noted
    }

    /// Has these processes go on, which stand still, by `thaw`. Returns when nobody is traced any more: about 0.1 ms later for each
    /// thread that waits.
    ///
    /// # Errors
    /// Those of `thaw`.
    pub fn thaw(self, pids: &[i32], thaw: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
        if self.0.is_empty() {
            return thaw();
        }
        let mut thaw = Some(thaw);
        // A tracer is a thread: the one that has stopped them has to see to them.
        let thawed = std::thread::scope(|scope| {
            let work = || {
                let stopping = self.stop(pids);
                let thawed = thaw.take().map(|thaw| thaw());
                stopping.into_iter().for_each(Stopping::go_on);
                thawed
            };
            std::thread::Builder::new().name("waits".into()).spawn_scoped(scope, work).ok()?.join().ok()?
        });
        match (thawed, thaw) {
            (Some(thawed), _) => thawed,
            // Without such a thread. Late or early is better than never.
            (None, Some(thaw)) => thaw(),
            (None, None) => Err(io::Error::other("the thread that has waiting ones go on has panicked")),
        }
    }

    /// Has the threads stop as soon as they are thawed.
    fn stop(self, pids: &[i32]) -> Vec<Stopping> {
        let Some(ahead) = ahead(pids) else { return Vec::new() };
        let mut waits: HashMap<i32, Wait> = self.0.into_iter().map(|wait| (wait.tid, wait)).collect();
        let mut stopping = Vec::new();
        for pid in pids {
            for tid in guard::tids(Pid::from_raw(*pid)) {
                let Some(mut wait) = pod_pid(tid.as_raw()).and_then(|own| waits.remove(&own)) else { continue };
                wait.until = wait.until.saturating_sub(ahead);
                if guard::stop(tid) {
                    stopping.push(Stopping { pid: *pid, tid, wait });
                }
            }
        }
        stopping
    }
}

/// A thread that is being stopped.
struct Stopping {
    pid: i32,
    tid: Pid,
    /// By this host's clock.
    wait: Wait,
}

impl Stopping {
    fn go_on(self) {
        if next_stop(self.tid, Instant::now() + STOP_LIMIT).is_some()
            && let Err(e) = thread::begin_again(self.pid, self.tid, &self.wait)
        {
            tracing::debug!(tid = self.tid.as_raw(), error = %e, "what it waits for may end early or late");
        }
        let _ = ptrace::detach(self.tid, None);
    }
}

impl Wait {
    /// What is left of it, by this host's clock; never nothing, since that might mean for ever, or not at all.
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_sub(Clocks::here()?.monotonic);
        Ok(Duration::from_nanos(u64::try_from(left).unwrap_or(0).max(1000)))
    }
}

/// A time as calls take it: seconds and fractions of so many nanoseconds.
#[cfg(target_arch = "x86_64")]
fn time(time: Duration, fraction: u32) -> [u8; 16] {
    let (seconds, rest) = (time.as_secs(), u64::from(time.subsec_nanos() / fraction));
    (u128::from(rest) << 64 | u128::from(seconds)).to_le_bytes()
}

impl Place {
    fn of(pid: i32, tid: Pid) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?)
    }

    /// `NUMBER ARGUMENT ... STACK INSTRUCTION`, all but the first hexadecimal.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let words: Option<Vec<u64>> = words.map(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok()).collect();
        let [a, b, c, d, e, f, stack, instruction] = words?[..] else { return None };
        Some(Self { number, arguments: [a, b, c, d, e, f], stack, instruction })
    }

    /// Which wait it is, if any, and until when, by this host's clock; `now` is when it was interrupted.
    fn wait(&self, pid: i32, block: Option<&Block>, now: i64) -> Option<(Call, i64)> {
        /// The first argument of clock_nanosleep(2) is a small number, where nanosleep(2) has an address.
        const NO_ADDRESS: u64 = 4096;
        let [first, second, third, fourth, fifth, _] = self.arguments;
        let select = |left: u64, fraction: u32| {
            let until = now.checked_add(time_at(pid, left, fraction)?)?;
            Some((Call::Select { left, fraction }, until))
        };
        let kind = |of: &[libc::c_long]| of.contains(&self.number);
        match self.number {
            libc::SYS_select => return select(fifth, 1000),
            libc::SYS_pselect6 => return select(fifth, 1),
            libc::SYS_ppoll => return select(third, 1),
            _ => {}
        }
        let (call, until) = match *block? {
            Block::Sleep(until) if kind(&[libc::SYS_nanosleep]) || (self.is_restart() && first > NO_ADDRESS) => {
                (Call::Nanosleep, until)
            }
            // Until a moment that it names itself: nothing to be noted. Or by a clock of its own.
            Block::Sleep(_) if second & TIMER_ABSTIME != 0 || first > LAST_OF_CLOCKS => return None,
            Block::Sleep(until) if kind(&[libc::SYS_clock_nanosleep]) || self.is_restart() => {
                (Call::ClockNanosleep, until)
            }
            Block::Poll(until) if kind(&[libc::SYS_poll]) || self.is_restart() => {
                (Call::Poll, if is_for_ever(third) { i64::MAX } else { until })
            }
            Block::Futex(until) if (kind(&[libc::SYS_futex]) || self.is_restart()) && fourth != 0 => {
                (Call::Futex, until)
            }
            _ => return None,
        };
        // That of an earlier call.
        (until > now).then_some((call, until))
    }

    fn is_restart(&self) -> bool {
        self.number == libc::SYS_restart_syscall
    }
}

const TIMER_ABSTIME: u64 = 1;
/// Durations by CLOCK_REALTIME (0) and CLOCK_MONOTONIC (1) are all by the latter (hrtimer_init(), "POSIX magic").
const LAST_OF_CLOCKS: u64 = 1;

/// A time limit of poll(2), in milliseconds, that is none.
fn is_for_ever(milliseconds: u64) -> bool {
    (milliseconds as u32).cast_signed() < 0
}

/// Seconds and fractions at an address of a process, in nanoseconds.
fn time_at(pid: i32, address: u64, fraction: u32) -> Option<i64> {
    let mut words = [[0; 8]; 2];
    let memory = File::open(format!("/proc/{pid}/mem")).ok().filter(|_| address != 0)?;
    memory.read_exact_at(words.as_flattened_mut(), address).ok()?;
    let [seconds, rest] = words.map(i64::from_ne_bytes);
    seconds.checked_mul(1_000_000_000)?.checked_add(rest.checked_mul(fraction.into())?)
}

/// How far the clock of these processes' pod is ahead of this host's, in nanoseconds.
fn ahead(pids: &[i32]) -> Option<i64> {
    let pod = Clocks::of(*pids.first()?).ok()?;
    Some(pod.ahead_of(Clocks::here().ok()?).monotonic)
}

#[cfg(test)]
mod tests;
