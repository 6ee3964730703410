//! Timers behind descriptors (timerfd_create(2)) across a restore.
//!
//! CRIU (timerfd.c) arms a timer again for the time that remained of it at some moment of the dump, as if no time had
//! passed since. And one that fires at intervals, had fired, and was not read, it does not arm at all: the kernel arms such
//! a timer for its next round when the program reads it, says until then that nothing remains, and CRIU takes nothing for
//! an answer. So while the restored pod still stands still, both are put right: the latter always, the former if it is
//! [noted](note) beside the images what remained at a known moment.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use serde::{Deserialize, Serialize};

use super::pod_pid;
use super::watch::anonymous;
use crate::clocks::Clocks;
use crate::sys;

/// A timer as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    /// CLOCK_*.
    clock: i32,
    /// Times that it has fired and nobody has read.
    ticks: u64,
    /// TFD_TIMER_*, of the call that armed it.
    flags: u32,
    /// Until it fires next; zero: it is not armed, or has fired.
    remaining: Duration,
    /// Zero: it fires once.
    interval: Duration,
}

/// A timer of a process of a pod, at some moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTimer {
    /// PID inside the pod.
    pid: i32,
    fd: i32,
    timer: Timer,
}

/// The timers of these processes, now.
pub fn timers(pids: &[i32]) -> Vec<PodTimer> {
    let of_process = |pid: &i32| {
        let own = pod_pid(*pid)?;
        Some(all(*pid).map(move |(fd, timer)| PodTimer { pid: own, fd, timer }))
    };
    pids.iter().filter_map(of_process).flatten().collect()
}

fn all(pid: i32) -> impl Iterator<Item = (i32, Timer)> {
    anonymous(pid, "anon_inode:[timerfd]").filter_map(|(fd, info)| Some((fd, parse(&info)?)))
}

/// Name of the file beside CRIU's images.
const NOTE: &str = "timers-noted";

/// Notes beside a dump how its timers are at this moment.
///
/// # Errors
/// I/O errors.
pub fn note(images: &Path, timers: &[PodTimer]) -> io::Result<()> {
    let noted = (Clocks::here()?.monotonic, timers);
    let bytes = bincode::serde::encode_to_vec(noted, bincode::config::standard()).map_err(io::Error::other)?;
    std::fs::write(images.join(NOTE), bytes)
}

/// Puts the timers of frozen processes right that were just restored from these images.
///
/// # Errors
/// A timer that cannot be reached.
pub fn correct_timers(pids: &[i32], images: &Path) -> io::Result<()> {
    let noted = std::fs::read(images.join(NOTE)).ok();
    let noted: Option<((i64, Vec<PodTimer>), usize)> =
        noted.and_then(|bytes| bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).ok());
    let ((moment, noted), _) = noted.unwrap_or_default();
    let passed = Duration::from_nanos(Clocks::here()?.monotonic.abs_diff(moment));
    for &pid in pids {
        let own = pod_pid(pid);
        for (fd, restored) in all(pid) {
            let before = noted.iter().find(|t| Some(t.pid) == own && t.fd == fd).map(|t| &t.timer);
            let corrected = match before {
                // One that fires once, and did so in the dump: CRIU has taken down what remained before.
                Some(before) if before.has_ended() && !restored.has_ended() => restored.after(Duration::MAX),
                Some(before) => before.after(passed),
                None => restored.after(Duration::ZERO),
            };
            if let Some(timer) = corrected {
                timer.set(pid, fd)?;
            }
        }
    }
    Ok(())
}

impl Timer {
    /// What it should be after this time; none: as CRIU has restored it.
    fn after(&self, passed: Duration) -> Option<Self> {
        let fired = self.remaining.is_zero();
        // One that was never armed, that a program stopped, or that fires once. Or nothing has changed.
        if (fired && (self.ticks == 0 || self.interval.is_zero())) || (!fired && passed.is_zero()) {
            return None;
        }
        // It fires as soon as time passes, if it is late, and at its intervals from then on.
        let remaining = self.remaining.saturating_sub(passed).max(Duration::from_nanos(1));
        Some(Self { remaining, ..self.clone() })
    }

    /// It has fired, for the last time.
    fn has_ended(&self) -> bool {
        self.remaining.is_zero() && self.ticks > 0 && self.interval.is_zero()
    }

    fn set(&self, pid: i32, fd: i32) -> io::Result<()> {
        let process = pidfd_open(Pid::from_raw(pid).ok_or(nix::errno::Errno::ESRCH)?, PidfdFlags::empty())?;
        let timer = pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?;
        let spec =
            |time: Duration| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        // A date is one of our clock, whatever the time namespace of the timer's owner.
        let flags = TimerfdTimerFlags::from_bits_retain(self.flags);
        let now = match flags.contains(TimerfdTimerFlags::ABSTIME) {
            true => clock_gettime(ClockId::from_raw(self.clock))?.into(),
            false => Duration::ZERO,
        };
        let times = Itimerspec { it_interval: spec(self.interval), it_value: spec(now + self.remaining) };
        timerfd_settime(&timer, flags, &times)?;
        if self.ticks > 0 {
            sys::set_timer_ticks(&timer, self.ticks)?;
        }
        Ok(())
    }
}

/// The description of a timer in fdinfo (Documentation/filesystems/proc.rst).
fn parse(info: &str) -> Option<Timer> {
    let field = |name: &str| info.lines().find_map(|l| Some(l.strip_prefix(name)?.trim()));
    let time = |name: &str| {
        let (seconds, nanoseconds) = field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
        Some(Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?))
    };
    Some(Timer {
        clock: field("clockid:")?.parse().ok()?,
        ticks: field("ticks:")?.parse().ok()?,
        flags: u32::from_str_radix(field("settime flags:")?, 8).ok()?,
        remaining: time("it_value:")?,
        interval: time("it_interval:")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsRawFd;

    use super::*;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn timer(ticks: u64, remaining: u64, interval: u64) -> Timer {
        Timer { clock: 1, ticks, flags: 0, remaining: MS(remaining), interval: MS(interval) }
    }

    #[test]
    fn a_timer_that_criu_stopped_runs_again_and_keeps_its_ticks() {
        for flags in [0, TimerfdTimerFlags::ABSTIME.bits()] {
            let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
            let stopped = Timer { flags, ..timer(1000, 0, 5) };
            stopped.after(MS(70)).unwrap().set(std::process::id().cast_signed(), fd.as_raw_fd()).unwrap();
            std::thread::sleep(MS(20));
            let mut ticks = [0; 8];
            nix::unistd::read(&fd, &mut ticks).unwrap();
            assert!((1003..1100).contains(&u64::from_ne_bytes(ticks)), "{ticks:?}");
            std::thread::sleep(MS(20));
            nix::unistd::read(&fd, &mut ticks).unwrap();
            assert!((2..100).contains(&u64::from_ne_bytes(ticks)), "{ticks:?}");
        }
    }

    #[test]
    fn what_remains_gets_less_by_what_has_passed() {
        assert_eq!(timer(0, 500, 0).after(MS(120)), Some(timer(0, 380, 0)));
        assert_eq!(timer(0, 500, 30).after(MS(120)), Some(timer(0, 380, 30)));
        let late = timer(0, 100, 0).after(MS(120)).unwrap();
        assert_eq!(late.remaining, Duration::from_nanos(1), "it fires at once");
        assert_eq!(timer(0, 500, 0).after(Duration::ZERO), None);
        assert_eq!(timer(3, 0, 0).after(MS(120)), None, "it has fired, once and for all");
        assert_eq!(timer(0, 0, 30).after(MS(120)), None, "a program stopped it");
        assert_eq!(timer(3, 500, 30).after(Duration::ZERO), None, "CRIU does that well");
        assert_eq!(timer(3, 0, 30).after(Duration::ZERO).unwrap().remaining, Duration::from_nanos(1));
    }

    #[test]
    fn descriptions_are_understood() {
        let info = "pos:\t0\nflags:\t02004002\nclockid: 7\nticks: 3\nsettime flags: 01\nit_value: (0, 20)\nit_interval: (1, 500000000)\n";
        let found = Timer { clock: 7, flags: 1, remaining: Duration::from_nanos(20), ..timer(3, 0, 1500) };
        assert_eq!(parse(info), Some(found));
        assert_eq!(parse(""), None);
    }
}
