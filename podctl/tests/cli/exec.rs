//! `podctl exec` with pipes and with a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::fake::Fake;

/// Longer than any of this takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Reads until `needle` has come.
fn read_until(from: &mut (impl Read + AsFd), needle: &str) -> String {
    let start = Instant::now();
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.contains(needle) {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "{needle:?} did not come, but {text:?}");
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(200_u16)).unwrap() > 0 {
            let mut buffer = [0; 4096];
            let count = from.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "{needle:?} did not come before the end, but {text:?}");
            seen.extend_from_slice(&buffer[..count]);
        }
    }
}

/// The exit code, which must come in time.
fn ended(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("podctl did not end");
}

#[test]
fn bytes_and_exit_code_pass_through() {
    let fake = Fake::start();
    let mut child = fake
        .podctl(&["exec", "-i", "-e", "A=1", "-u", "33", "web", "--", "cat", "-v"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == sent, "{} of {} bytes came back", output.stdout.len(), sent.len());
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stderr, b"ready None\r\n");
    assert_eq!(
        fake.seen()[0],
        "POST /v1/pods/web/exec {\"command\":[\"cat\",\"-v\"],\"env\":{\"A\":\"1\"},\"user\":\"33\",\"workdir\":null,\
         \"tty\":null,\"stdin\":true}"
    );
}

#[test]
fn signals_are_passed_on() {
    let fake = Fake::start();
    let mut child = fake
        .podctl(&["exec", "web", "report"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    read_until(child.stderr.as_mut().unwrap(), "ready");
    for (sent, number) in [(Signal::SIGTERM, 15), (Signal::SIGINT, 2), (Signal::SIGHUP, 1)] {
        signal(&child, sent);
        read_until(child.stdout.as_mut().unwrap(), &format!("frame 5 [{number}]"));
    }
    // A reader that leaves ends it, as it would end a command in a local pipe.
    drop(child.stdout.take());
    // Again and again: a child that another test is about to start may have the reading end for a moment too.
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE {
        signal(&child, Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ended(&mut child), Some(0));
}

#[test]
fn failures_of_the_command_are_errors() {
    let fake = Fake::start();
    let output = fake.run(&["exec", "web", "fail"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("podctl: web has ended"));
    let output = fake.podctl(&["exec", "-i", "web", "vanish"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let output = fake.podctl(&["exec", "-it", "web", "sh"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a terminal"));
}

/// podctl on a terminal of 100 by 40.
struct Session {
    child: Child,
    master: File,
    terminal: OwnedFd,
}

impl Session {
    fn start(fake: &Fake, command: &str) -> Self {
        let pty = openpty(None, None).unwrap();
        let (master, terminal) = (File::from(pty.master), pty.slave);
        resize(&master, 100, 40);
        let child = fake
            .podctl(&["exec", "-it", "web", command])
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut session = Self { child, master, terminal };
        session.expect("ready Some((100, 40))");
        assert!(!session.line_mode(), "raw while the command runs");
        session
    }

    fn expect(&mut self, needle: &str) {
        read_until(&mut self.master, needle);
    }

    fn line_mode(&self) -> bool {
        let flags = tcgetattr(&self.terminal).unwrap().local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// The exit code; the terminal must be as it was.
    fn end(mut self) -> Option<i32> {
        let code = ended(&mut self.child);
        assert!(self.line_mode(), "afterwards");
        code
    }
}

fn resize(master: &File, columns: u16, rows: u16) {
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}

#[test]
fn a_terminal_is_raw_meanwhile_and_restored_afterwards() {
    let fake = Fake::start();
    let mut session = Session::start(&fake, "report");
    session.master.write_all(b"\x03").unwrap();
    session.expect("frame 0 [3]");
    resize(&session.master, 120, 50);
    signal(&session.child, Signal::SIGWINCH);
    session.expect("frame 3 [0, 120, 0, 50]");
    session.master.write_all(b"q").unwrap();
    assert_eq!(session.end(), Some(7));
}

#[test]
fn a_terminal_is_restored_when_podctl_is_ended() {
    let fake = Fake::start();
    let session = Session::start(&fake, "report");
    signal(&session.child, Signal::SIGTERM);
    assert_eq!(session.end(), Some(143));
}

#[test]
fn a_terminal_is_restored_when_the_daemon_vanishes() {
    let fake = Fake::start();
    let mut session = Session::start(&fake, "vanish");
    session.master.write_all(b"x").unwrap();
    session.expect("the command's output broke off");
    assert_eq!(session.end(), Some(4));
}
