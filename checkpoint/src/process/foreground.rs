//! Terminals whose foreground process group is gone.
//!
//! For a moment after a foreground job has ended, its terminal still belongs to it, until the shell takes it back
//! (tcsetpgrp(3)). CRIU dumps such a terminal, and then cannot restore it, as nobody can put a group into the foreground
//! that does not exist (`tty: Failed to set group`, tty.c). So a pod is not dumped in such a moment.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, test_kill_process_group};

use super::watch::descriptors;

/// The terminals (pty(7)) whose masters these processes hold.
#[derive(Debug, Default)]
pub struct Terminals(Vec<(String, OwnedFd)>);

impl Terminals {
    /// Looks for them; takes a few microseconds a descriptor. What vanishes meanwhile is left out.
    pub fn of(pids: &[i32]) -> Terminals {
        Terminals(pids.iter().flat_map(|pid| masters(*pid)).collect())
    }

    /// A terminal whose foreground group has no process any more.
    pub fn abandoned(&self) -> Option<&str> {
        let gone = |master: &OwnedFd| {
            rustix::termios::tcgetpgrp(master)
                .is_ok_and(|group| test_kill_process_group(group) == Err(rustix::io::Errno::SRCH))
        };
        self.0.iter().find(|(_, master)| gone(master)).map(|(name, _)| name.as_str())
    }
}

fn masters(pid: i32) -> Vec<(String, OwnedFd)> {
    let Some(process) = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok()) else {
        return Vec::new();
    };
    let master = |fd: i32| {
        let master = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()?;
        let number = super::descriptor::terminal_index(pid, fd.cast_unsigned())?;
        Some((format!("/dev/pts/{number}"), master))
    };
    let masters = descriptors(pid).filter(|(_, link)| link.file_name() == Some(OsStr::new("ptmx")));
    masters.filter_map(|(fd, _)| master(fd)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    /// A session leader whose foreground job runs until it is told to end it.
    const SHELL: &str = r#"
        $| = 1;
        setsid();
        ioctl(STDIN, 0x540E, 0) or die; # TIOCSCTTY
        $job = fork;
        if (!$job) { setpgid(0, 0); sleep 1000; exit }
        setpgid($job, $job);
        tcsetpgrp(0, $job) or die;
        print "ready\n";
        open($go, "<&=", $ARGV[0]); <$go>;
        kill 9, $job; waitpid $job, 0;
        print "gone\n";
        sleep 1000;
    "#;

    #[test]
    fn a_terminal_is_abandoned_once_its_job_is_reaped() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (go, mut tell) = std::io::pipe().unwrap();
        let number = 9;
        let mut shell = Command::new("sh")
            .args(["-c", &format!("exec perl -MPOSIX -e \"$0\" {number} {number}<&2 2>&1"), SHELL])
            .stdin(pty.slave)
            .stdout(Stdio::piped())
            .stderr(go)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "ready");
        let terminals = Terminals::of(&[std::process::id().cast_signed()]);
        assert_eq!(terminals.abandoned(), None);
        tell.write_all(b"\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "gone");
        let found = terminals.abandoned().unwrap();
        assert!(found.starts_with("/dev/pts/"), "{found}");
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(Terminals::of(&[shell.id().cast_signed()]).0.len(), 0);
    }
}
