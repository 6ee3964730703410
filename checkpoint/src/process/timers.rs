//! Periodic timers (timerfd_create(2)) that had fired when their process was frozen.
//!
//! The kernel arms such a timer for its next round when the program reads it, and until then says that nothing remains
//! of this one. CRIU takes nothing for an answer and restores a timer that is not armed (timerfd.c); only what had
//! fired is kept. So after a restore, while the pod still stands still, those timers are armed again.

use std::io;
use std::os::fd::AsRawFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use super::watch::anonymous;

mod ioctl {
    // include/uapi/linux/timerfd.h: TFD_IOC_SET_TICKS.
    nix::ioctl_write_ptr!(set_ticks, b'T', 0, u64);
}

/// A timer that has fired and was not read, and does not run.
#[derive(Debug, PartialEq, Eq)]
struct Stopped {
    /// Times that it has fired.
    ticks: u64,
    flags: TimerfdTimerFlags,
    interval: Timespec,
}

/// Arms the stopped timers of frozen processes: they fire once more as soon as time passes, then at their intervals.
///
/// # Errors
/// A timer that cannot be reached.
pub fn rearm_timers(pids: &[i32]) -> io::Result<()> {
    for &pid in pids {
        for (fd, info) in anonymous(pid, "anon_inode:[timerfd]") {
            if let Some(stopped) = parse(&info) {
                rearm(pid, fd, &stopped)?;
            }
        }
    }
    Ok(())
}

fn rearm(pid: i32, fd: i32, stopped: &Stopped) -> io::Result<()> {
    let process = pidfd_open(Pid::from_raw(pid).ok_or(nix::errno::Errno::ESRCH)?, PidfdFlags::empty())?;
    let timer = pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?;
    // Past by any clock, whether the flags make it a date or a duration.
    let first = Timespec { tv_sec: 0, tv_nsec: 1 };
    timerfd_settime(&timer, stopped.flags, &Itimerspec { it_interval: stopped.interval, it_value: first })?;
    // SAFETY: the descriptor is a timer's, and the kernel reads one u64 (fs/timerfd.c, timerfd_ioctl).
    unsafe { ioctl::set_ticks(timer.as_raw_fd(), &stopped.ticks) }?;
    Ok(())
}

/// The description of a timer in fdinfo (Documentation/filesystems/proc.rst); none: nothing is to be done to it.
fn parse(info: &str) -> Option<Stopped> {
    let field = |name: &str| info.lines().find_map(|l| Some(l.strip_prefix(name)?.trim()));
    let time = |name: &str| {
        let (seconds, nanoseconds) = field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
        Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds.parse().ok()? })
    };
    let ticks = field("ticks:")?.parse().ok()?;
    let flags = TimerfdTimerFlags::from_bits(u32::from_str_radix(field("settime flags:")?, 8).ok()?)?;
    let interval = time("it_interval:")?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    // One that was never armed, or that a program stopped, has no ticks.
    let stopped = ticks > 0 && time("it_value:")? == never && interval != never;
    stopped.then_some(Stopped { ticks, flags, interval })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    #[test]
    fn a_timer_that_criu_stopped_runs_again_and_keeps_its_ticks() {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
        let fd = timer.as_raw_fd();
        let stopped = Stopped {
            ticks: 1000,
            flags: TimerfdTimerFlags::empty(),
            interval: Timespec { tv_sec: 0, tv_nsec: 5_000_000 },
        };
        rearm(std::process::id().cast_signed(), fd, &stopped).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut ticks = [0; 8];
        nix::unistd::read(&timer, &mut ticks).unwrap();
        assert!((1003..1100).contains(&u64::from_ne_bytes(ticks)), "{ticks:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        nix::unistd::read(&timer, &mut ticks).unwrap();
        assert!((2..100).contains(&u64::from_ne_bytes(ticks)), "{ticks:?}");
    }

    #[test]
    fn only_periodic_timers_that_fired_and_do_not_run_are_meant() {
        let info = |ticks: &str, value: &str, interval: &str| {
            format!(
                "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1\nclockid: 1\nticks: {ticks}\nsettime flags: 01\nit_value: {value}\nit_interval: {interval}\n"
            )
        };
        let found = parse(&info("3", "(0, 0)", "(1, 500000000)")).unwrap();
        let flags = TimerfdTimerFlags::ABSTIME;
        assert_eq!(found, Stopped { ticks: 3, flags, interval: Timespec { tv_sec: 1, tv_nsec: 500_000_000 } });
        assert_eq!(parse(&info("3", "(0, 1)", "(1, 0)")), None, "it runs");
        assert_eq!(parse(&info("3", "(0, 0)", "(0, 0)")), None, "it fires once");
        assert_eq!(parse(&info("0", "(0, 0)", "(1, 0)")), None, "a program stopped it");
        assert_eq!(parse(""), None);
    }
}
