//! Memory is compressed on its way where the link is slow, and a podd that speaks the protocol of before gets it as it is.

use std::time::Duration;

use serde_json::Value;
use tests::Lab;
use tests::lab::{eventually, rootfs};

/// Memory that can be compressed, each page another, and its sum again and again.
const SCRIPT: &str = "\
import time, zlib
memory = b''.join(b'%07d ' % page * 512 for page in range(12000))
while True:
    print(zlib.crc32(memory), flush=True)
    time.sleep(0.1)
";
/// As large, in bytes.
const MEMORY: u64 = 12_000 * 4096;

fn go(lab: &Lab, from: &str, to: &str) -> Value {
    let report = lab.json(from, &["migrate", "web", "--to", to]);
    let lines = lab.ok(to, &["logs", "web"]).lines().count();
    eventually("it goes on", Duration::from_secs(20), || lab.ok(to, &["logs", "web"]).lines().count() > lines + 2);
    let log = lab.ok(to, &["logs", "web"]);
    let sums: Vec<&str> = log.lines().collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{log}");
    report
}

#[test]
fn memory_is_compressed_on_a_slow_link_for_whoever_understands_it() {
    let lab = Lab::with_an_older_host();
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("shell"), "--", "python3", "-c", SCRIPT]);
    eventually("it runs", Duration::from_secs(20), || !lab.ok("a", &["logs", "web"]).is_empty());
    let bytes = |report: &Value, what: &str| report["bytes"][what].as_u64().expect("a count");

    // 100 Mbit/s from each of them.
    for host in ["a", "b", "c"] {
        let shape =
            ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms"];
        assert!(lab.on(host, &shape).status().expect("tc runs").success());
    }
    let slow = go(&lab, "a", "b");
    let memory = bytes(&slow, "wire") - bytes(&slow, "files");
    assert!(bytes(&slow, "packed") > MEMORY / 2 && memory < MEMORY / 2, "{slow}");

    let there = go(&lab, "b", "c");
    assert_eq!(bytes(&there, "packed"), 0, "{there}");
    let back = go(&lab, "c", "b");
    assert_eq!(bytes(&back, "packed"), 0, "{back}");
}
