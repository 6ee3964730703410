//! podd: a pod goes from host a to host b, and back the next time.

use super::Contender;
use super::host::{Failure, Server, Workload, fill, must};
use crate::Lab;
use crate::lab::rootfs;
use crate::workload::web;

pub const POD: &str = "bench";
const HOSTS: [&str; 2] = ["a", "b"];
/// In the order in which they happen, with what podd calls them.
const PHASES: [&str; 7] = ["preflight", "prepare", "freeze", "dump", "transfer", "restore", "announce"];

pub struct Podd<'a> {
    lab: &'a Lab,
    server: Server,
    mode: &'static str,
    pod: String,
    at: usize,
    expected_ms: Option<f64>,
}

impl<'a> Podd<'a> {
    pub fn new(lab: &'a Lab, server: Server, mode: &'static str) -> Self {
        let pod = if mode == "auto" { POD.to_owned() } else { format!("{POD}-{mode}") };
        Self { lab, server, mode, pod, at: 0, expected_ms: None }
    }
}

impl Contender for Podd<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let ip = self.server.address.ip().to_string();
        if self.server.workload == Workload::Nginx {
            web::nginx(self.lab, HOSTS[0], &self.pod, &ip);
            return Ok(());
        }
        let (root, cidr) = (rootfs("redis"), format!("{ip}/16"));
        let server = self.server.redis("/tmp");
        let mut all = vec!["run", "--name", &self.pod, "--rootfs", &root, "--ip", &cidr, "--"];
        all.extend(server.iter().map(String::as_str));
        must("podctl run", self.lab.podctl(HOSTS[0], &all))?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (HOSTS[self.at], HOSTS[1 - self.at]);
        let all = ["--json", "migrate", &self.pod, "--to", to, "--mode", self.mode];
        let said = must("podctl migrate", self.lab.podctl(from, &all))?.out;
        self.at = 1 - self.at;
        let said: serde_json::Value =
            serde_json::from_str(&said).map_err(|e| Failure(format!("podctl migrate printed no JSON: {e}")))?;
        self.expected_ms = said["predicted"]["expected"]["blackout_ms"].as_f64();
        let time = |name: &str| said["phases"][format!("{name}_ms")].as_f64();
        Ok(PHASES.into_iter().filter_map(|name| Some((name.to_owned(), time(name)?))).collect())
    }

    fn expected_ms(&self) -> Option<f64> {
        self.expected_ms
    }

    fn end(&mut self) {
        for host in HOSTS {
            // It is on one of them at most.
            let _ = self.lab.podctl(host, &["rm", "--force", &self.pod]);
        }
    }
}
