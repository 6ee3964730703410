//! A lab's processes, by cgroup: so they are found and ended without process ids, which are used again, and none
//! escapes, also of a lab that crashed or was half made.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Failure, tools};

/// The cgroup of a lab, with one below it for each machine and one for the network (`lan`).
#[derive(Clone, Debug)]
pub struct Group(PathBuf);

impl Group {
    /// The cgroup of the lab in this folder.
    ///
    /// # Errors
    /// This host has no cgroup v2.
    pub fn of(lab: &Path) -> Result<Self, Failure> {
        // Version 2 alone, or beside version 1.
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let root =
            roots.into_iter().find(|root| root.join("cgroup.procs").exists()).ok_or_else(|| Failure::Missing {
                what: "cgroup v2 is not mounted in /sys/fs/cgroup".to_owned(),
                cure: "mount it (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified)".to_owned(),
            })?;
        let id = tools::Name::default().text(&lab.to_string_lossy()).finish();
        Ok(Self(root.join(format!("podd-vm-{}", &id[..8]))))
    }

    /// Starts a command in a part of the lab, detached from whoever asked for it. It says what it says to `DIR/NAME.log`
    /// of its working directory only if it redirects itself.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, part: &str, command: Command, dir: &Path) -> Result<(), Failure> {
        let group = self.0.join(part);
        fs::create_dir_all(&group).map_err(Failure::io("make", &group))?;
        // It joins before it becomes the command, so that no child of it is ever outside.
        let mut shell = Command::new("setsid");
        shell.args(["--fork", "sh", "-ec", "echo 0 >\"$1\"; shift; exec \"$@\"", "sh"]).arg(group.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args()).current_dir(dir);
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        tools::run(&mut shell).map(drop)
    }

    /// Processes of a part.
    #[must_use]
    pub fn processes(&self, part: &str) -> Vec<i32> {
        let list = fs::read_to_string(self.0.join(part).join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Ends all processes of a part at once, without warning, and waits for their end.
    ///
    /// # Errors
    /// They do not end within 10 s.
    pub fn kill(&self, part: &str) -> Result<(), Failure> {
        let group = self.0.join(part);
        for _ in 0..200 {
            if !group.exists() {
                return Ok(());
            }
            // Errors show in that it is still there.
            let _ = fs::write(group.join("cgroup.kill"), "1");
            let _ = fs::remove_dir(&group);
            thread::sleep(Duration::from_millis(50));
        }
        let left = self.processes(part);
        Err(Failure::Refused(format!("processes {left:?} of {part} do not end; see dmesg for what holds them")))
    }

    /// Ends everything.
    ///
    /// # Errors
    /// It does not end within 10 s for each part.
    pub fn remove(&self) -> Result<(), Failure> {
        for part in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if part.path().is_dir() {
                self.kill(&part.file_name().to_string_lossy())?;
            }
        }
        match fs::remove_dir(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("remove", &self.0)(e)),
            _ => Ok(()),
        }
    }
}
