//! Threads that ask for the time all the time are led out of the vDSO. Needs root and a cgroup v2.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint::process::leave_vdso;

/// Not a test.
#[test]
#[ignore = "a helper process of the other test"]
fn victim() {
    let ask = || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {}
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask))));
}

struct Victim {
    child: Child,
    cgroup: PathBuf,
}

impl Victim {
    fn start() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let v2 = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup v2 is mounted");
        let cgroup = Path::new(v2.split(' ').nth(1).unwrap()).join(format!("podd-vdso-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("this test runs as root");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["victim", "--exact", "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        let victim = Self { child, cgroup };
        while victim.threads().len() < 5 {
            std::thread::yield_now();
        }
        victim
    }

    fn threads(&self) -> Vec<PathBuf> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().path()).collect()
    }

    fn freeze(&self, frozen: bool) -> std::io::Result<()> {
        fs::write(self.cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        while frozen != fs::read_to_string(self.cgroup.join("cgroup.events"))?.contains("frozen 1") {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// How many of its threads are in the vDSO.
    fn inside(&self) -> usize {
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let code = number(start)..number(end);
        // "running": in the kernel, on its way from one standstill to the other.
        let at = |task: &PathBuf| {
            let call = || fs::read_to_string(task.join("syscall")).unwrap();
            let stands = std::iter::repeat_with(call).find(|call| call.trim_end() != "running").unwrap();
            number(stands.trim_end().rsplit_once(" 0x").unwrap().1)
        };
        self.threads().iter().filter(|task| code.contains(&at(task))).count()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

#[test]
fn threads_that_ask_for_the_time_are_led_out_of_the_vdso() {
    let mut victim = Victim::start();
    let pid = victim.child.id().cast_signed();
    let mut were_inside = 0;
    for _ in 0..100 {
        victim.freeze(true).unwrap();
        were_inside += victim.inside();
        assert_eq!(leave_vdso(&victim.cgroup, &[pid]).unwrap(), None);
        assert_eq!(victim.inside(), 0);
        victim.freeze(false).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(were_inside > 20, "they are often there: {were_inside} times");
    assert!(victim.child.try_wait().unwrap().is_none(), "they go on");
    for task in victim.threads() {
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("TracerPid:\t0") && status.contains("SigBlk:\t0000000000000000"), "{status}");
    }
}
