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
    at: usize,
}

impl<'a> Podd<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server, at: 0 }
    }
}

impl Contender for Podd<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let ip = self.server.address.ip().to_string();
        if self.server.workload == Workload::Nginx {
            web::nginx(self.lab, HOSTS[0], POD, &ip);
            return Ok(());
        }
        let (root, cidr) = (rootfs("redis"), format!("{ip}/16"));
        let server = self.server.redis("/tmp");
        let mut all = vec!["run", "--name", POD, "--rootfs", &root, "--ip", &cidr, "--"];
        all.extend(server.iter().map(String::as_str));
        must("podctl run", self.lab.podctl(HOSTS[0], &all))?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (HOSTS[self.at], HOSTS[1 - self.at]);
        let said = must("podctl migrate", self.lab.podctl(from, &["--json", "migrate", POD, "--to", to]))?.out;
        self.at = 1 - self.at;
        let said: serde_json::Value =
            serde_json::from_str(&said).map_err(|e| Failure(format!("podctl migrate printed no JSON: {e}")))?;
        let time = |name: &str| said["phases"][format!("{name}_ms")].as_f64();
        Ok(PHASES.into_iter().filter_map(|name| Some((name.to_owned(), time(name)?))).collect())
    }

    fn end(&mut self) {
        for host in HOSTS {
            // It is on one of them at most.
            let _ = self.lab.podctl(host, &["rm", "--force", POD]);
        }
    }
}
