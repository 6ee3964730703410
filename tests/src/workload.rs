//! Applications in pods, and clients that hold them to their word.

pub mod everyday;
pub mod postgres;
pub mod web;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::Lab;
use crate::lab::{binary, eventually, rootfs};

/// A program of this crate (`src/bin`), as cargo has built it for the running test.
#[must_use]
pub fn helper(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors().nth(2).expect("a test is in target/PROFILE/deps").join(name)
}

/// A client on the LAN that works until its standard input ends, and then says what it saw.
#[derive(Debug)]
pub struct Client(Child);

impl Client {
    /// Starts a [`helper`] on the LAN's client.
    #[must_use]
    pub fn start(lab: &Lab, program: &str, arguments: &[&str]) -> Self {
        let program = helper(program).display().to_string();
        let mut all = vec![program.as_str()];
        all.extend(arguments);
        let mut command = lab.client(&all);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client starts"))
    }

    /// Whether it has not ended yet.
    pub fn is_at_work(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Tells it to come to an end; what it saw.
    #[must_use]
    pub fn finish<T: DeserializeOwned>(mut self) -> T {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().expect("the client ends");
        serde_json::from_slice(&output.stdout).expect("the client prints JSON")
    }
}

/// Starts redis in a pod named `name` on `host`, without persistence, and waits until it answers.
pub fn redis(lab: &Lab, host: &str, name: &str, address: &str) {
    let root = rootfs("redis");
    let cidr = format!("{address}/16");
    let server =
        ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--enable-debug-command", "yes"];
    let mut arguments = vec!["run", "--name", name, "--rootfs", &root, "--ip", &cidr, "--"];
    arguments.extend(server);
    lab.ok(host, &arguments);
    eventually("redis answers", Duration::from_secs(10), || {
        lab.podctl(host, &["exec", name, "--", "redis-cli", "ping"]).out.contains("PONG")
    });
}

/// A client that counts up over one connection.
#[derive(Debug)]
pub struct Counter(Child);

/// What a [`Counter`] saw.
#[derive(Debug, serde::Deserialize)]
pub struct Counted {
    /// Answers received.
    pub increments: u64,
    /// Last value.
    pub last: u64,
    /// Answers that were not the previous one plus one.
    pub gaps: u64,
    /// Longest time between two answers, ms.
    pub longest_silence_ms: f64,
    /// Why it ended early, if it did.
    pub error: Option<String>,
}

impl Counter {
    /// Starts counting on the LAN's client for this many seconds.
    #[must_use]
    pub fn start(lab: &Lab, address: &str, seconds: u32) -> Self {
        let program = binary("counter").display().to_string();
        let address = format!("{address}:6379");
        let seconds = seconds.to_string();
        let mut command = lab.client(&[&program, "--addr", &address, "--key", "n", "--seconds", &seconds, "--json"]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the counter starts"))
    }

    /// Waits for its end.
    #[must_use]
    pub fn finish(self) -> Counted {
        let output = self.0.wait_with_output().expect("the counter ends");
        serde_json::from_slice(&output.stdout).expect("the counter prints JSON")
    }
}

/// Moves a pod; podd's report.
#[track_caller]
pub fn migrate(lab: &Lab, pod: &str, from: &str, to: &str) -> serde_json::Value {
    let report = lab.json(from, &["migrate", pod, "--to", to]);
    assert_eq!(lab.state(to, pod).as_deref(), Some("running"));
    assert_eq!(lab.state(from, pod), None, "the source has forgotten it");
    report
}
