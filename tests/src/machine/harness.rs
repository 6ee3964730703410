//! Machines for tests: they vanish with the value, however a test ends, and leave their logs if it fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::kernels::Kernel;
use super::room::{Ready, Room};
use super::{Failure, program, tools};
use crate::Run;
use crate::lab::root;
use crate::workload::Counted;

/// Memory of a test's machine, MiB.
const MEMORY: u32 = 2048;

const UNDER_SYSTEMD: &str = include_str!("../../machine/systemd/under-systemd");

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A lab of emulated machines on one LAN, 10.78.0.0/16. Whatever fails fails the test, with its sentence.
#[derive(Debug)]
pub struct Lab {
    room: Room,
    dir: PathBuf,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// An empty lab.
    #[must_use]
    pub fn new() -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var_os("PODD_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = base.join(format!("podd-vm-test-{}-{number}", std::process::id()));
        Self { room: good(Room::open(&dir)), dir }
    }

    /// Machines with these names and series of kernels, in one fleet; made one after the other, as emulation keeps all
    /// cores busy.
    #[track_caller]
    #[must_use]
    pub fn with(machines: &[(&str, &str)]) -> Self {
        let lab = Self::new();
        for (name, kernel) in machines {
            lab.up(name, kernel);
        }
        lab
    }

    /// Makes and starts a machine with the newest kernel of a series.
    #[track_caller]
    pub fn up(&self, name: &str, kernel: &str) -> Ready {
        self.up_on(name, kernel, "max")
    }

    /// Makes and starts a machine with the newest kernel of a series on a CPU model of QEMU's.
    #[track_caller]
    pub fn up_on(&self, name: &str, kernel: &str, cpu: &str) -> Ready {
        said(name, good(self.room.up(name, kernel, cpu, MEMORY)))
    }

    /// Makes and starts a machine with this very kernel.
    #[track_caller]
    pub fn up_with(&self, name: &str, kernel: &Kernel) -> Ready {
        said(name, good(self.room.up_with(name, kernel, "max", MEMORY)))
    }

    /// Writes a `[baseline]` into the configuration of a machine's podd, and restarts that.
    #[track_caller]
    pub fn set_baseline(&self, name: &str, baseline: &str) {
        self.reconfigure(name, "printf '\\n[baseline]\\n%s\\n' \"$1\" >>/etc/podd/podd.toml", baseline);
    }

    /// Puts lines at the top of the configuration of a machine's podd, and restarts that.
    #[track_caller]
    pub fn configure(&self, name: &str, lines: &str) {
        let script =
            "{ echo \"$1\"; cat /etc/podd/podd.toml; } >/run/podd.toml && mv /run/podd.toml /etc/podd/podd.toml";
        self.reconfigure(name, script, lines);
    }

    #[track_caller]
    fn reconfigure(&self, name: &str, change: &str, text: &str) {
        let restart = "
            kill \"$(cat /run/podd.pid)\"
            while [ -d \"/proc/$(cat /run/podd.pid)\" ]; do sleep 0.1; done
            setsid /usr/local/lib/vm/podd &
            for i in $(seq 100); do podctl ls >/dev/null 2>&1 && exit; sleep 0.1; done
            exit 1";
        self.exec(name, &["sh", "-c", &format!("{change}{restart}"), "sh", text]).must();
    }

    /// Does the same in several machines at once: each of them keeps one core busy.
    pub fn each(&self, machines: &[&'static str], work: impl Fn(&'static str) + Sync) {
        std::thread::scope(|scope| {
            for machine in machines {
                scope.spawn(|| work(machine));
            }
        });
    }

    /// Starts a machine anew with systemd as its init, and podd's shipped units.
    #[track_caller]
    pub fn under_systemd(&self, name: &str) -> Ready {
        let units = [
            "tests/machine/systemd/vm-boot.service",
            "tests/machine/systemd/vm-agent.service",
            "podd/podd.service",
            "podd/podd-patch.service",
            "podd/podd-patch.timer",
            "podd/podd-patch-run.service",
            "podd/podd-patch-run.timer",
        ];
        good(self.room.copy_in(name, &units.map(|unit| root().join(unit)), "/etc/systemd/system"));
        self.exec(name, &["sh", "-c", UNDER_SYSTEMD]).must();
        // The old init would not know the new one's commands.
        self.powercut(name);
        self.start(name)
    }

    /// Starts a machine that was switched off.
    #[track_caller]
    pub fn start(&self, name: &str) -> Ready {
        said(name, good(self.room.start(name)))
    }

    /// Reboots a machine, if asked with another kernel.
    #[track_caller]
    pub fn reboot(&self, name: &str, kernel: Option<&str>) -> Ready {
        said(name, good(self.room.reboot(name, kernel)))
    }

    /// Kills a machine without a sync. [`Self::start`] starts it again.
    #[track_caller]
    pub fn powercut(&self, name: &str) {
        good(self.room.powercut(name));
    }

    /// Cuts a machine off the LAN or lets it in again. Commands reach it all the time.
    #[track_caller]
    pub fn link(&self, name: &str, up: bool) {
        good(self.room.link(name, up));
    }

    /// Runs a command in a machine.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, name: &str, command: &[&str]) -> Run {
        good(self.room.exec(name, command))
    }

    /// `podctl` in a machine.
    #[track_caller]
    #[must_use]
    pub fn podctl(&self, name: &str, arguments: &[&str]) -> Run {
        let mut command = vec!["podctl"];
        command.extend(arguments);
        self.exec(name, &command)
    }

    /// `podctl` that must succeed; its output.
    #[track_caller]
    pub fn ok(&self, name: &str, arguments: &[&str]) -> String {
        self.podctl(name, arguments).must().out
    }

    /// `podctl --json` that must succeed; its output parsed.
    #[track_caller]
    pub fn json(&self, name: &str, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(name, &all)).expect("podctl --json prints JSON")
    }

    /// The state that `podctl ls` shows for a pod; none if it is not there.
    #[track_caller]
    #[must_use]
    pub fn state(&self, name: &str, pod: &str) -> Option<String> {
        let list = self.json(name, &["ls"]);
        let found = list.as_array()?.iter().find(|p| p["name"] == pod)?;
        found["state"].as_str().map(str::to_owned)
    }

    /// A program of this host on the machines' LAN, as 10.78.0.254; not yet started.
    #[track_caller]
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        good(self.room.lan()).command(program)
    }

    /// What is below the harness.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Where logs go when a test fails: `PODD_VM_LOGS`, or a folder of the build.
    fn logs(&self) -> PathBuf {
        let target = || program("").join("../vm-logs");
        let base = std::env::var_os("PODD_VM_LOGS").map_or_else(target, PathBuf::from);
        base.join(self.dir.file_name().unwrap_or_default())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.logs();
            for machine in self.room.machines() {
                let to = logs.join(&machine.name);
                if let Err(failure) = self.room.logs(&machine.name, &to) {
                    eprintln!("{}: its logs cannot be kept: {failure}", machine.name);
                }
                print_ends(&machine.name, &to);
            }
            eprintln!("all logs of the machines: {}", logs.display());
        }
        if let Err(failure) = self.room.down(None) {
            eprintln!("the lab in {} did not come down: {failure}", self.dir.display());
        }
    }
}

/// The ends of a machine's logs; CRIU's lie deeper, under `run/podd` as in the machine.
fn print_ends(name: &str, dir: &Path) {
    let mut find = Command::new("find");
    find.arg(dir).args(["-name", "*.log", "-not", "-name", "dmesg.log"]);
    let list = tools::run(&mut find).unwrap_or_default();
    for file in list.lines() {
        let text = std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let file = Path::new(file).strip_prefix(dir).unwrap_or(Path::new(file)).display();
        for line in tools::tail(&text, 25).lines() {
            eprintln!("{name}: {file}: {line}");
        }
    }
}

/// A client on the LAN that counts in a redis over one connection, for as long as it is wanted.
#[derive(Debug)]
pub struct Counter {
    child: Child,
    end: PathBuf,
}

impl Counter {
    /// Starts counting in the redis at this address.
    #[must_use]
    pub fn start(lab: &Lab, address: &str) -> Self {
        let end = lab.dir.join(format!("counter-{address}.end"));
        // An earlier counter's.
        let _ = std::fs::remove_file(&end);
        let mut command = lab.client(&program("counter").to_string_lossy());
        command.args(["--addr", &format!("{address}:6379"), "--key", "n", "--interval-us", "2000", "--json"]);
        command.arg("--until-file").arg(&end).stdin(Stdio::null()).stdout(Stdio::piped());
        Self { child: command.spawn().expect("the counter starts"), end }
    }

    /// Ends it; what it saw.
    #[must_use]
    pub fn finish(self) -> Counted {
        std::fs::write(&self.end, "").expect("the lab's folder can be written to");
        let output = self.child.wait_with_output().expect("the counter ends");
        serde_json::from_slice(&output.stdout).expect("the counter prints JSON")
    }
}

/// Into the test's output: figures of emulated machines are worth a look and no assertion.
fn said(name: &str, ready: Ready) -> Ready {
    eprintln!("{name} runs {}, podd answered after {:.1} s", ready.kernel, ready.took.as_secs_f64());
    ready
}

#[track_caller]
fn good<T>(result: Result<T, Failure>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => panic!("{failure}"),
    }
}
