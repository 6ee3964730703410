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

/// The timers of these processes, now; and what time it is, if one of them is set for a date.
pub fn timers(pids: &[i32]) -> Vec<PodTimer> {
    let of_process = |pid: &i32| {
        let own = pod_pid(*pid)?;
        Some(all(*pid).map(move |(fd, timer)| PodTimer { pid: own, fd, timer }))
    };
    let mut timers: Vec<PodTimer> = pids.iter().filter_map(of_process).flatten().collect();
    if timers.iter().any(|timer| timer.timer.is_for_a_date())
        && let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME)
    {
        let now = Timer { clock: 0, ticks: 0, flags: 0, remaining: now.into(), interval: Duration::ZERO };
        timers.push(PodTimer { pid: 0, fd: TIME_OF_DAY, timer: now });
    }
    timers
}

fn all(pid: i32) -> impl Iterator<Item = (i32, Timer)> {
    anonymous(pid, "anon_inode:[timerfd]").filter_map(|(fd, info)| Some((fd, parse(&info)?)))
}

/// Descriptor of what is no timer: it "remains" since 1970.
const TIME_OF_DAY: i32 = -1;
/// Name of the file beside CRIU's images.
const NOTE: &str = "timers-noted";

/// Notes beside a dump how its timers were so long ago.
///
/// # Errors
/// I/O errors.
pub fn note(images: &Path, timers: &[PodTimer], ago: Duration) -> io::Result<()> {
    let ago = i64::try_from(ago.as_nanos()).map_err(io::Error::other)?;
    let noted = (Clocks::here()?.monotonic - ago, timers);
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
    let passed = i128::from(Clocks::here()?.monotonic.abs_diff(moment));
    let ahead = ahead(&noted, passed, clock_gettime(ClockId::CLOCK_REALTIME)?.into());
    for &pid in pids {
        let own = pod_pid(pid);
        for (fd, restored) in all(pid) {
            let before = noted.iter().find(|t| Some(t.pid) == own && t.fd == fd).map(|t| &t.timer);
            let corrected = match before {
                // One that fires once, and did so in the dump: CRIU has taken down what remained before.
                Some(before) if before.has_ended() && !restored.has_ended() => restored.after(i128::MAX),
                Some(before) if before.is_for_a_date() => before.after(passed.saturating_add(ahead)),
                Some(before) => before.after(passed),
                None => restored.after(0),
            };
            if let Some(timer) = corrected {
                timer.set(pid, fd)?;
            }
        }
    }
    Ok(())
}

/// By how much this host's time of day is ahead of that on which these were noted, in ns: dates come so much earlier.
fn ahead(noted: &[PodTimer], passed: i128, now: Duration) -> i128 {
    let then = noted.iter().find(|timer| timer.fd == TIME_OF_DAY);
    then.map_or(0, |then| nanoseconds(now) - nanoseconds(then.timer.remaining) - passed)
}

impl Timer {
    /// Whether it fires at a time of day.
    fn is_for_a_date(&self) -> bool {
        let dates = [ClockId::CLOCK_REALTIME, ClockId::CLOCK_REALTIME_ALARM].map(ClockId::as_raw);
        dates.contains(&self.clock) && self.flags & TimerfdTimerFlags::ABSTIME.bits() != 0
    }

    /// What it should be after this time, in ns; none: as CRIU has restored it.
    fn after(&self, passed: i128) -> Option<Self> {
        let fired = self.remaining.is_zero();
        // One that was never armed, that a program stopped, or that fires once. Or nothing has changed.
        if (fired && (self.ticks == 0 || self.interval.is_zero())) || (!fired && passed == 0) {
            return None;
        }
        // It fires as soon as time passes, if it is late, and at its intervals from then on.
        let remaining = nanoseconds(self.remaining).saturating_sub(passed).max(1);
        let remaining = Duration::from_nanos(u64::try_from(remaining).unwrap_or(u64::MAX));
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

fn nanoseconds(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
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
            stopped.after(nanoseconds(MS(70))).unwrap().set(std::process::id().cast_signed(), fd.as_raw_fd()).unwrap();
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
        assert_eq!(timer(0, 500, 0).after(nanoseconds(MS(120))), Some(timer(0, 380, 0)));
        assert_eq!(timer(0, 500, 30).after(nanoseconds(MS(120))), Some(timer(0, 380, 30)));
        let late = timer(0, 100, 0).after(nanoseconds(MS(120))).unwrap();
        assert_eq!(late.remaining, Duration::from_nanos(1), "it fires at once");
        assert_eq!(timer(0, 500, 0).after(0), None);
        assert_eq!(timer(3, 0, 0).after(nanoseconds(MS(120))), None, "it has fired, once and for all");
        assert_eq!(timer(0, 0, 30).after(nanoseconds(MS(120))), None, "a program stopped it");
        assert_eq!(timer(3, 500, 30).after(0), None, "CRIU does that well");
        assert_eq!(timer(3, 0, 30).after(0).unwrap().remaining, Duration::from_nanos(1));
    }

    /// On a host whose time of day is ahead by 30 ms, or behind, 120 ms later.
    #[test]
    fn a_date_is_one_of_the_host() {
        let date = Timer { clock: 0, flags: TimerfdTimerFlags::ABSTIME.bits(), ..timer(0, 500, 0) };
        assert!(date.is_for_a_date() && !timer(0, 500, 0).is_for_a_date());
        let now = Timer { clock: 0, ..timer(0, 70_000, 0) };
        let noted = [PodTimer { pid: 0, fd: TIME_OF_DAY, timer: now }];
        let passed = nanoseconds(MS(120));
        for (time, remaining) in [(70_150, 350), (70_090, 410), (70_120, 380)] {
            let ahead = ahead(&noted, passed, MS(time));
            assert_eq!(date.after(passed + ahead).unwrap().remaining, MS(remaining));
        }
        assert_eq!(ahead(&[], passed, MS(1)), 0, "by a podd that does not tell");
        // It is told with the timers.
        let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::empty()).unwrap();
        let far = Timer { remaining: MS(3_600_000), ..date };
        far.set(std::process::id().cast_signed(), fd.as_raw_fd()).unwrap();
        assert!(timers(&[std::process::id().cast_signed()]).iter().any(|timer| timer.fd == TIME_OF_DAY));
    }

    #[test]
    fn descriptions_are_understood() {
        let info = "pos:\t0\nflags:\t02004002\nclockid: 7\nticks: 3\nsettime flags: 01\nit_value: (0, 20)\nit_interval: (1, 500000000)\n";
        let found = Timer { clock: 7, flags: 1, remaining: Duration::from_nanos(20), ..timer(3, 0, 1500) };
        assert_eq!(parse(info), Some(found));
        assert_eq!(parse(""), None);
    }
}
