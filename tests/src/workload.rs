//! Applications in pods, and clients that hold them to their word.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::Lab;
use crate::lab::{binary, eventually, rootfs};

/// Starts redis in a pod named `name` on `host`, without persistence, and waits until it answers.
pub fn redis(lab: &Lab, host: &str, name: &str, address: &str) {
    let root = rootfs("redis");
    let cidr = format!("{address}/16");
    let server = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--enable-debug-command", "yes"];
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
