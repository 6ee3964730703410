//! A lab of hosts (`scripts/lab`) that vanishes with the value, however a test ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Hosts `a`, `b`, ... and a client on one LAN.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Run {
    /// Exit code; 128 + N after a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Lab {
    /// Brings a lab up.
    #[must_use]
    pub fn up(hosts: u32) -> Self {
        let lab = Self::new();
        lab.script(&["up", "--hosts", &hosts.to_string()]).must();
        lab
    }

    /// Brings a lab up whose hosts belong to no fleet yet.
    #[must_use]
    pub fn of_strangers(hosts: u32) -> Self {
        let lab = Self::prepared(|lab| {
            // The lab's own mark that a host has joined.
            for host in ["a", "b", "c", "d"].iter().take(hosts as usize) {
                std::fs::create_dir_all(lab.dir.join(host)).expect("the lab's folder can be made");
                std::fs::write(lab.dir.join(host).join("joined"), "").expect("the lab's folder can be written to");
            }
        });
        lab.script(&["up", "--hosts", &hosts.to_string()]).must();
        lab
    }

    /// Brings a lab of three hosts up, of which `c` speaks the protocol of before.
    #[must_use]
    pub fn with_an_older_host() -> Self {
        let lab = Self::prepared(|lab| {
            std::fs::create_dir_all(lab.dir.join("c")).expect("the lab's folder can be made");
            std::fs::write(lab.dir.join("c/extra.toml"), "protocol = 1\n").expect("the lab's folder can be written to");
        });
        lab.script(&["up", "--hosts", "3"]).must();
        lab
    }

    /// A lab with this in its folder, still down.
    #[must_use]
    pub fn prepared(prepare: impl FnOnce(&Self)) -> Self {
        let lab = Self::new();
        std::fs::create_dir_all(&lab.dir).expect("the lab's folder can be made");
        std::fs::write(lab.dir.join("lock"), "").expect("the lab's folder can be written to");
        prepare(&lab);
        lab
    }

    fn new() -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        // `scripts/test` names a folder and clears up the labs in it, should we be killed.
        let base = std::env::var_os("PODD_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = base.join(format!("podd-test-{}-{number}", std::process::id()));
        Self { dir }
    }

    /// The lab's folder: `HOST/podd.log`, `HOST/state` and so on.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `scripts/lab` with these arguments.
    #[must_use]
    pub fn script(&self, arguments: &[&str]) -> Run {
        run(self.lab_command(arguments))
    }

    fn lab_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(root().join("scripts/lab"));
        command.env("PODD_LAB", &self.dir).args(arguments);
        command
    }

    /// `podctl` against one host.
    #[must_use]
    pub fn podctl(&self, host: &str, arguments: &[&str]) -> Run {
        run(self.podctl_command(host, arguments))
    }

    /// `podctl` against one host, not yet started.
    #[must_use]
    pub fn podctl_command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("podctl"));
        command.args(["--socket"]).arg(self.dir.join(host).join("podd.sock")).args(arguments);
        command
    }

    /// `podctl` that must succeed; its output.
    #[track_caller]
    pub fn ok(&self, host: &str, arguments: &[&str]) -> String {
        self.podctl(host, arguments).must().out
    }

    /// `podctl --json` that must succeed; its output parsed.
    #[track_caller]
    pub fn json(&self, host: &str, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(host, &all)).expect("podctl --json prints JSON")
    }

    /// A command on the LAN's client, not yet started.
    #[must_use]
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["client", "--"];
        all.extend(arguments);
        self.lab_command(&all)
    }

    /// A command on a host, not yet started.
    #[must_use]
    pub fn on(&self, host: &str, arguments: &[&str]) -> Command {
        let mut all = vec!["exec", host, "--"];
        all.extend(arguments);
        self.lab_command(&all)
    }

    /// Asks podd of a host for a fault (see `podd::fault`), such as `source given crash`.
    pub fn fault(&self, host: &str, line: &str) {
        run(self.on(host, &["sh", "-c", "echo \"$1\" >> /run/podd/fault", "sh", line])).must();
    }

    /// The state that `podctl ls` shows for a pod on a host; none if it is not there.
    #[must_use]
    pub fn state(&self, host: &str, pod: &str) -> Option<String> {
        let list = self.podctl(host, &["--json", "ls"]);
        let list: serde_json::Value = serde_json::from_str(&list.out).ok()?;
        let found = list.as_array()?.iter().find(|p| p["name"] == pod)?;
        found["state"].as_str().map(str::to_owned)
    }

    /// podd's log on a host.
    #[must_use]
    pub fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.dir.join(host).join("podd.log")).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in ["a", "b", "c"] {
                let log = self.log(host);
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                for line in tail.iter().rev() {
                    eprintln!("{host}: {line}");
                }
            }
        }
        let down = self.script(&["down"]);
        if down.code != 0 {
            eprintln!("the lab in {} did not come down: {}", self.dir.display(), down.err);
        }
    }
}

impl Run {
    /// Demands success.
    #[track_caller]
    #[must_use]
    pub fn checked(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Demands success.
    #[track_caller]
    pub fn must(self) -> Self {
        self.checked()
    }
}

/// Runs a command to its end, without input.
#[must_use]
pub fn run(mut command: Command) -> Run {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    from_output(&output)
}

fn from_output(output: &Output) -> Run {
    use std::os::unix::process::ExitStatusExt;
    let code = output.status.code().or_else(|| output.status.signal().map(|s| 128 + s)).unwrap_or(255);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { code, out: text(&output.stdout), err: text(&output.stderr) }
}

/// Waits until `true`; fails the test with `what` after `limit`.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A rootfs made by `scripts/rootfs`: `busybox`, `redis`, `nginx`, `postgres` or `shell`.
#[must_use]
pub fn rootfs(name: &str) -> String {
    let mut command = Command::new(root().join("scripts/rootfs"));
    command.arg(name);
    run(command).must().out.trim().to_owned()
}

/// The checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout exists")
}

/// A program of the release build, which `scripts/setup` makes.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::env::var_os("PODD_BIN").map_or_else(|| target.join("release"), PathBuf::from).join(name)
}
