//! Limits hold, are reported, and travel with the pod. On whichever cgroup version has the controllers.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::lab::{Run, eventually, rootfs};
use tests::{Lab, traces};

const SOON: Duration = Duration::from_secs(20);

fn pod(lab: &Lab, name: &str, flags: &[&str], script: &str) {
    let root = rootfs("busybox");
    let mut words = vec!["run", "--name", name, "--rootfs", &root];
    words.extend(flags);
    words.extend(["--", "sh", "-c", script]);
    lab.ok("a", &words);
}

/// What the host shows once podd has tried CRIU and the first pod has brought its layer.
fn warm_traces(lab: &Lab) -> Vec<String> {
    pod(lab, "warm", &[], "exit");
    eventually("it ends", SOON, || lab.state("a", "warm").as_deref() == Some("exited"));
    lab.ok("a", &["rm", "warm"]);
    traces::settled(lab, "a")
}

fn exec(lab: &Lab, host: &str, name: &str, script: &str) -> Run {
    lab.podctl(host, &["exec", name, "--", "sh", "-c", script])
}

fn stats(lab: &Lab, host: &str, name: &str) -> Value {
    lab.json(host, &["stats", name])[0].clone()
}

/// Takes 200 MB of memory that cannot be given back (a tmpfs, without swap here), or what it gets.
const GREEDY: &str = "head -c 200000000 /dev/zero | tail";

#[test]
fn the_memory_limit_kills_and_says_so() {
    let lab = Lab::up(1);
    let before = warm_traces(&lab);
    pod(&lab, "big", &["--memory", "32M"], &format!("exec {}", "tail /dev/zero"));
    eventually("it is killed", SOON, || lab.state("a", "big").as_deref() == Some("exited"));
    let exit = lab.json("a", &["inspect", "big"])[0]["exit"].clone();
    assert_eq!(exit, json!({"code": 137, "signal": 9, "oom": true}));
    assert!(lab.ok("a", &["ls"]).contains("memory"), "people see it too: {}", lab.ok("a", &["ls"]));
    // Only the one that takes too much is killed; an exec session counts, and others are not touched.
    pod(&lab, "host", &["--memory", "32M"], "sleep 1000");
    pod(&lab, "other", &["--memory", "32M"], "sleep 1000");
    let greedy = exec(&lab, "a", "host", "tail /dev/zero");
    assert_eq!(greedy.code, 137, "{greedy:?}");
    assert_eq!(stats(&lab, "a", "host")["memory_limit"], json!(32 << 20));
    assert!(stats(&lab, "a", "host")["memory"].as_u64().unwrap() <= 32 << 20);
    for name in ["host", "other"] {
        assert_eq!(lab.state("a", name).as_deref(), Some("running"));
    }
    // Enough is enough, though.
    let modest = exec(&lab, "a", "other", "head -c 8000000 /dev/zero | tail | wc -c");
    assert_eq!((modest.code, modest.out.trim()), (0, "8000000"), "{modest:?}");
    assert_ne!(exec(&lab, "a", "other", GREEDY).out.len(), 200_000_000);
    lab.ok("a", &["rm", "-f", "big", "host", "other"]);
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "a")), "");
}

#[test]
fn the_processor_is_shared_out() {
    let lab = Lab::up(1);
    pod(&lab, "busy", &["--cpus", "0.2"], "while :; do :; done & while :; do :; done");
    let read = || (stats(&lab, "a", "busy")["cpu_usec"].as_u64().unwrap(), Instant::now());
    let first = read();
    std::thread::sleep(Duration::from_secs(3));
    let second = read();
    let cores = Duration::from_micros(second.0 - first.0).as_secs_f64() / (second.1 - first.1).as_secs_f64();
    // Less than its share on a busy machine is right, more is not.
    assert!((0.02..0.3).contains(&cores), "{cores} cores");
}

#[test]
fn a_fork_bomb_stays_inside() {
    let lab = Lab::up(1);
    let before = warm_traces(&lab);
    pod(&lab, "bomb", &["--pids", "20"], "(b() { b | b & }; sleep 0.3; for i in 1 2 3; do b; done) & exec sleep 1000");
    let mut most = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        most = most.max(stats(&lab, "a", "bomb")["pids"].as_u64().unwrap());
    }
    assert!((2..=20).contains(&most), "{most} processes");
    lab.ok("a", &["rm", "-f", "bomb"]);
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "a")), "");
    pod(&lab, "calm", &["--pids", "20"], "sleep 1000");
    let refused = exec(&lab, "a", "calm", "for i in $(seq 30); do sleep 100 & done; wait");
    assert!(refused.code != 0 && refused.err.contains("can't fork"), "{refused:?}");
}

#[test]
fn limits_travel() {
    let lab = Lab::up(2);
    pod(&lab, "x", &["--memory", "32M", "--pids", "20", "--cpus", "0.5"], "sleep 1000");
    let check = |host: &str, when: &str| {
        assert_eq!(exec(&lab, host, "x", "tail /dev/zero").code, 137, "{when}");
        let refused = exec(&lab, host, "x", "for i in $(seq 30); do sleep 1 & done; wait");
        assert!(refused.err.contains("can't fork"), "{when}: {refused:?}");
        eventually("sessions end", SOON, || stats(&lab, host, "x")["pids"].as_u64() == Some(2));
        let before = stats(&lab, host, "x")["cpu_usec"].as_u64().unwrap();
        let spin = exec(&lab, host, "x", "for i in 1 2; do timeout 2 sh -c 'while :; do :; done' & done; wait");
        assert_eq!(spin.code, 0, "{spin:?}");
        let used = stats(&lab, host, "x")["cpu_usec"].as_u64().unwrap() - before;
        assert!(used < 1_900_000, "{when}: {used} us within 2 s");
        // What an exec session leaves behind would be in the way of a move.
        eventually("sessions end", SOON, || stats(&lab, host, "x")["pids"].as_u64() == Some(2));
    };
    check("a", "started");
    lab.ok("a", &["migrate", "x", "--to", "b"]);
    check("b", "moved");
    lab.ok("b", &["suspend", "x"]);
    lab.ok("b", &["resume", "x"]);
    check("b", "resumed");
}
