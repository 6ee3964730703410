//! Applications in pods, and clients that hold them to their word.

pub mod everyday;
pub mod postgres;
pub mod web;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::lab::{eventually, root, rootfs};
use crate::{Lab, Run, machine};

/// How long an application may take until it answers, in an emulated machine, too.
const STARTS: Duration = Duration::from_secs(300);

/// Where workloads live: hosts that share this machine's kernel, or machines with kernels of their own.
pub trait Hosts {
    /// `podctl` on a host.
    fn podctl(&self, host: &str, arguments: &[&str]) -> Run;
    /// A command of this machine on the LAN's client, not yet started.
    fn on_client(&self, arguments: &[&str]) -> Command;
    /// Where hosts have a root file system for pods.
    fn rootfs(&self, name: &str) -> String;
    /// Where hosts have a folder of the checkout.
    fn folder(&self, path: &str) -> String;

    /// `podctl` that must succeed; its output.
    #[track_caller]
    fn ok(&self, host: &str, arguments: &[&str]) -> String {
        self.podctl(host, arguments).must().out
    }
}

impl Hosts for Lab {
    fn podctl(&self, host: &str, arguments: &[&str]) -> Run {
        Lab::podctl(self, host, arguments)
    }

    fn on_client(&self, arguments: &[&str]) -> Command {
        self.client(arguments)
    }

    fn rootfs(&self, name: &str) -> String {
        rootfs(name)
    }

    fn folder(&self, path: &str) -> String {
        root().join(path).display().to_string()
    }
}

impl Hosts for machine::Lab {
    fn podctl(&self, host: &str, arguments: &[&str]) -> Run {
        machine::Lab::podctl(self, host, arguments)
    }

    fn on_client(&self, arguments: &[&str]) -> Command {
        let mut command = self.client(arguments[0]);
        command.args(&arguments[1..]);
        command
    }

    fn rootfs(&self, name: &str) -> String {
        format!("/srv/rootfs/{name}")
    }

    fn folder(&self, path: &str) -> String {
        format!("/srv/checkout/{path}")
    }
}

/// A program of this crate (`src/bin`), as cargo has built it.
#[must_use]
pub fn helper(name: &str) -> PathBuf {
    machine::program(name)
}

/// A client on the LAN that works until its standard input ends, and then says what it saw.
#[derive(Debug)]
pub struct Client(Child);

impl Client {
    /// Starts a [`helper`] on the LAN's client.
    #[must_use]
    pub fn start(lab: &impl Hosts, program: &str, arguments: &[&str]) -> Self {
        let program = helper(program).display().to_string();
        let mut all = vec![program.as_str()];
        all.extend(arguments);
        let mut command = lab.on_client(&all);
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
pub fn redis(lab: &impl Hosts, host: &str, name: &str, address: &str) {
    let root = lab.rootfs("redis");
    let cidr = format!("{address}/16");
    let server =
        ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--enable-debug-command", "yes"];
    let mut arguments = vec!["run", "--name", name, "--rootfs", &root, "--ip", &cidr, "--"];
    arguments.extend(server);
    lab.ok(host, &arguments);
    eventually("redis answers", STARTS, || {
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
        let program = helper("counter").display().to_string();
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
    let state = lab.state(to, pod);
    assert_eq!(
        state.as_deref(),
        Some("running"),
        "{report} {:?}",
        [lab.podctl(to, &["inspect", pod]), lab.podctl(to, &["logs", pod])]
    );
    assert_eq!(lab.state(from, pod), None, "the source has forgotten it");
    report
}
