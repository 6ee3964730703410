//! Commands on the lab's hosts, and the redis server that contenders without pods move.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::Lab;
use crate::lab::{Run, eventually, rootfs, run};
use crate::machine::tools;

/// Two places on a host's own tmpfs, which goes with the host.
pub const PLACES: [&str; 2] = ["/run/bench/1", "/run/bench/2"];
/// Bytes of a value; a key with its value then takes 700 bytes of redis's memory.
pub const VALUE: usize = 600;
const BYTES_PER_KEY: u64 = 700;
/// Keys made by one call.
const STEP: u64 = 32_768;
/// Longer than any step takes, seconds.
const LIMIT: &str = "300";

/// Why something could not be run: one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Redis { megabytes: u64 },
    Nginx,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis { .. } => "redis",
            Self::Nginx => "nginx",
        }
    }

    pub fn keys(self) -> u64 {
        match self {
            Self::Redis { megabytes } => (megabytes * 1_000_000 / BYTES_PER_KEY).max(1),
            Self::Nginx => 0,
        }
    }
}

/// Where it answers.
#[derive(Clone, Debug)]
pub struct Server {
    pub workload: Workload,
    pub address: SocketAddr,
}

impl Server {
    /// Each contender has an address of its own, as they stand side by side. Those that can move no address serve at
    /// one of host a.
    pub fn new(workload: Workload, contender: &str) -> Self {
        let (ip, port) = match (contender, workload) {
            ("podd", Workload::Nginx) => ([10, 77, 1, 6], 80),
            ("podd", _) => ([10, 77, 1, 5], 6379),
            ("podd-post-copy", Workload::Nginx) => ([10, 77, 1, 8], 80),
            ("podd-post-copy", _) => ([10, 77, 1, 9], 6379),
            ("criu-lazy", _) => ([10, 77, 1, 7], 6379),
            ("runc", _) => ([10, 77, 0, 1], 7001),
            ("podman", _) => ([10, 77, 0, 1], 7002),
            ("restart", _) => ([10, 77, 0, 1], 7003),
            _ => ([10, 77, 0, 1], 7000),
        };
        Self { workload, address: SocketAddr::from((ip, port)) }
    }

    /// The command line of a redis; `folder` is where it saves, if it is told to.
    pub fn redis(&self, folder: &str) -> Vec<String> {
        let (ip, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let words =
            ["redis-server", "--bind", &ip, "--port", &port, "--protected-mode", "no", "--save", "", "--dir", folder];
        words.map(String::from).to_vec()
    }
}

/// Waits until redis answers, and gives it its data.
pub fn fill(lab: &Lab, server: &Server) -> Result<(), Failure> {
    eventually("redis answers", Duration::from_secs(30), || redis_cli(lab, server, &["ping"]).out.trim() == "PONG");
    let keys = server.workload.keys();
    let script = format!(
        "for i = ARGV[1] + 1, ARGV[2] do redis.call('SET', 'key:' .. i, string.rep(redis.sha1hex(i), {})) end",
        VALUE / 40
    );
    for first in (0..keys).step_by(STEP as usize) {
        let (first, last) = (first.to_string(), (first + STEP).min(keys).to_string());
        must("redis-cli eval", redis_cli(lab, server, &["eval", &script, "0", &first, &last]))?;
    }
    let found = redis_cli(lab, server, &["dbsize"]).out;
    match found.trim().parse::<u64>() {
        Ok(found) if found == keys => Ok(()),
        _ => Err(Failure(format!("redis has {} keys and should have {keys}", found.trim()))),
    }
}

/// Asks redis from the LAN's client.
pub fn redis_cli(lab: &Lab, server: &Server, words: &[&str]) -> Run {
    let root = rootfs("redis");
    let (ip, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let mut all = vec!["timeout", "60", "chroot", &root, "redis-cli", "-h", &ip, "-p", &port];
    all.extend(words);
    run(lab.client(&all))
}

/// Ends a redis, wherever it runs.
pub fn shut_down(lab: &Lab, server: &Server) {
    let _ = redis_cli(lab, server, &["shutdown", "nosave"]);
}

/// Files that were opened outside of the host's mounts are none that CRIU can find again.
const CLEAN: &str = r#"
set -eu; exec </dev/null; cd /
for fd in /proc/$$/fd/*; do case ${fd##*/} in 0 | 1 | 2 | 255) ;; *) eval "exec ${fd##*/}>&-" ;; esac; done
"#;

/// Runs a bash script on host a, with arguments; what it printed. What it leaves running must not hold its output.
pub fn bash(lab: &Lab, what: &str, script: &str, arguments: &[&str]) -> Result<String, Failure> {
    let script = format!("{CLEAN}{script}");
    let mut all = vec!["timeout", "-k", "5", LIMIT, "bash", "-c", &script, what];
    all.extend(arguments);
    must(what, run(lab.on("a", &all))).map(|run| run.out)
}

/// Demands success.
pub fn must(what: &str, run: Run) -> Result<Run, Failure> {
    if run.code == 0 {
        return Ok(run);
    }
    // Marks, and a complaint of CRIU's about what does not matter.
    let noise = |line: &&str| !line.starts_with("mark ") && !line.contains("Can't setup RLIMIT_NOFILE for self");
    let said: Vec<&str> = run.out.lines().chain(run.err.lines()).filter(noise).collect();
    let said = tools::tail(&said.join("\n"), 4);
    Err(Failure(format!("{what} failed with exit code {}: {said}", run.code)))
}

/// Phases of a script that printed `mark NAME SECONDS` at the begin and at the end of each (see [`MARK`]).
pub fn phases(printed: &str) -> Vec<(String, f64)> {
    let marks: Vec<(&str, f64)> = printed
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("mark ")?.split_whitespace();
            Some((words.next()?, words.next()?.replace(',', ".").parse().ok()?))
        })
        .collect();
    marks.windows(2).map(|pair| (pair[1].0.to_owned(), (pair[1].1 - pair[0].1) * 1000.0)).collect()
}

/// The server's new PID, of a script that printed `pid NUMBER`.
pub fn restored_pid(printed: &str) -> Result<String, Failure> {
    let pid = printed.lines().find_map(|line| line.strip_prefix("pid "));
    pid.map(|pid| pid.trim().to_owned()).ok_or_else(|| Failure("criu restore wrote no PID".to_owned()))
}

/// For [`phases`].
pub const MARK: &str = "mark() { echo \"mark $1 $EPOCHREALTIME\"; }\n";

/// The rivals' CRIU: `scripts/criu --plain` makes it.
pub fn criu() -> PathBuf {
    let ours = std::env::var_os("PODD_CRIU").map_or_else(|| "/usr/local/libexec/podd/criu".into(), PathBuf::from);
    ours.with_file_name("plain").join("criu")
}

/// Memory that is to be had, MB.
pub fn available_megabytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_times_between_marks() {
        let found = phases("mark begin 10.5\nnoise\nmark dump 10.75\nmark copy 11,0\n");
        assert_eq!(found, [("dump".to_owned(), 250.0), ("copy".to_owned(), 250.0)]);
        assert!(phases("nothing").is_empty());
    }

    #[test]
    fn keys_follow_from_the_size() {
        assert_eq!(Workload::Redis { megabytes: 700 }.keys(), 1_000_000);
    }
}
