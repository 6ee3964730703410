#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Threads that wait: for how many seconds, and how.
const SLEEP: i64 = 3000;
const POLL: i64 = 4000;
const FUTEX: i64 = 5000;
const SELECT: i64 = 6000;

#[test]
#[ignore = "a helper process of the other tests"]
fn victim() {
    let time = |seconds| libc::timespec { tv_sec: seconds, tv_nsec: 0 };
    std::thread::spawn(move || {
        let time = time(SLEEP);
        // SAFETY: it reads the time, and writes none.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) }
    });
    // SAFETY: no descriptors are passed.
    std::thread::spawn(|| unsafe { libc::poll(std::ptr::null_mut(), 0, POLL as i32 * 1000) });
    // SAFETY: as above.
    std::thread::spawn(|| unsafe { libc::poll(std::ptr::null_mut(), 0, -1) });
    std::thread::spawn(move || {
        let (word, time) = (0u32, time(FUTEX));
        // SAFETY: it reads a word and a time.
        unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, &raw const time) }
    });
    std::thread::spawn(|| {
        let none = std::ptr::null_mut::<u8>();
        let mut time = libc::timeval { tv_sec: SELECT, tv_usec: 0 };
        // SAFETY: no descriptors are passed, and it writes the time.
        unsafe { libc::syscall(libc::SYS_select, 0, none, none, none, &raw mut time) }
    });
    println!("READY");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn interrupted_calls_are_found_with_their_ends() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "waits::tests::victim", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(victim.id().cast_signed());
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.into_iter().any(|line| line.contains("READY")));
    // Until all wait.
    std::thread::sleep(Duration::from_millis(500));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let waits = Waits::of(&[pid.as_raw()], Clocks::here().unwrap());
    let now = Clocks::here().unwrap().monotonic;
    victim.kill().unwrap();
    victim.wait().unwrap();
    let left = |of: fn(&Call) -> bool| {
        let found = waits.0.iter().filter(|wait| of(&wait.call) && wait.until < i64::MAX / 2);
        found.map(|wait| wait.until - now).map(|ns| (ns as f64 / 1e9).round() as i64).collect::<Vec<_>>()
    };
    let sleeps = left(|call| matches!(call, Call::Nanosleep | Call::ClockNanosleep));
    assert!(sleeps.contains(&(SLEEP - 1)), "{waits:?}");
    assert_eq!(left(|call| *call == Call::Poll), [POLL - 1], "{waits:?}");
    assert!(waits.0.iter().any(|wait| wait.call == Call::Poll && wait.until > i64::MAX / 2), "{waits:?}");
    // The other threads of the test wait too.
    assert!(left(|call| *call == Call::Futex).contains(&(FUTEX - 1)), "{waits:?}");
    assert_eq!(left(|call| matches!(call, Call::Select { .. })), [SELECT - 1], "{waits:?}");

    let folder = tempfile::tempdir().unwrap();
    waits.note(folder.path()).unwrap();
    assert_eq!(Waits::noted(folder.path()), waits);
    assert_eq!(Waits::take(folder.path()), waits);
    assert_eq!(Waits::take(folder.path()), Waits::default(), "it holds once");
}

#[test]
fn places_are_read_as_the_kernel_writes_them() {
    let text = "35 0x7ffd10 0x0 0x1 0x2 0x3 0x4 0x7ffd00 0x7f1234\n";
    let place = Place::parse(text).unwrap();
    assert_eq!(place.number, 35);
    assert_eq!(place.arguments, [0x7f_fd10, 0, 1, 2, 3, 4]);
    assert_eq!((place.stack, place.instruction), (0x7f_fd00, 0x7f_1234));
    assert_eq!(Place::parse("running\n"), None);
    assert_eq!(Place::parse("-1 0x7ffd00 0x7f1234\n"), None);
}
