//! podd may die at any time, a shim too, and the whole host: what ran runs on, what ended is known to have ended.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tests::invariants::{Subject, api, kill_podd, podd, start_podds};
use tests::lab::{eventually, rootfs};
use tests::{Lab, traces, workload};

const SOON: Duration = Duration::from_secs(15);

fn run(lab: &Lab, name: &str, options: &[&str], script: &str) {
    let root = rootfs("busybox");
    let mut arguments = vec!["run", "--name", name, "--rootfs", &root];
    arguments.extend(options);
    arguments.extend(["--", "sh", "-c", script]);
    lab.ok("a", &arguments);
}

fn pod(lab: &Lab, name: &str) -> Value {
    api(lab, "a", &format!("/v1/pods/{name}")).expect("podd answers")
}

/// The pod's init on the host.
fn init(lab: &Lab, name: &str) -> i32 {
    let pid = pod(lab, name)["pid"].as_i64().expect("it runs");
    i32::try_from(pid).expect("a PID")
}

fn log(lab: &Lab, name: &str) -> Vec<String> {
    lab.ok("a", &["logs", name]).lines().map(str::to_owned).collect()
}

/// Lines `1` to the end without a gap; how many.
#[track_caller]
fn counted(lines: &[String]) -> usize {
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(*line, (at + 1).to_string(), "the log has a gap");
    }
    lines.len()
}

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

#[test]
fn pods_outlive_podd() {
    let lab = Lab::up(2);
    run(&lab, "counts", &["--ip", "10.77.1.9/16"], COUNT);
    run(&lab, "ends", &[], "sleep 1; echo last words; exit 7");
    run(&lab, "falls", &[], "sleep 1; kill -9 $$");
    run(&lab, "again", &["--restart", "always"], "echo born; sleep 2");
    run(
        &lab,
        "failing",
        &["--restart", "on-failure"],
        "[ -e /second ] && exec sleep 1000; touch /second; sleep 1; exit 3",
    );
    let before = init(&lab, "counts");
    let first = init(&lab, "again");
    // Several times, as an upgrade would: the program is another one each time, the pods are the same.
    for _ in 0..3 {
        kill_podd(&lab, "a");
        start_podds(&lab);
        assert_eq!(init(&lab, "counts"), before, "the pod runs on");
    }
    kill_podd(&lab, "a");
    // All but one end while nobody looks.
    eventually("the pod that shall be restarted has ended", SOON, || {
        std::fs::read_to_string(format!("/proc/{first}/stat")).map_or(true, |s| s.contains(") Z "))
    });
    std::thread::sleep(Duration::from_millis(500));
    start_podds(&lab);
    let exit = |name: &str| pod(&lab, name)["exit"].clone();
    assert_eq!((exit("ends")["code"].clone(), exit("ends")["signal"].clone()), (7.into(), Value::Null));
    assert_eq!((exit("falls")["code"].clone(), exit("falls")["signal"].clone()), (137.into(), 9.into()));
    assert_eq!(log(&lab, "ends"), ["last words"]);
    eventually("the restart policies are followed", SOON, || {
        ["again", "failing"].iter().all(|name| pod(&lab, name)["restarts"].as_u64() >= Some(1))
            && lab.state("a", "failing").as_deref() == Some("running")
    });
    eventually("it is born again", SOON, || log(&lab, "again").len() >= 2);
    assert_eq!(init(&lab, "counts"), before);
    let lines = counted(&log(&lab, "counts"));
    eventually("the log goes on", SOON, || counted(&log(&lab, "counts")) > lines);
    // The new podd manages what the old one started.
    assert_eq!(lab.ok("a", &["exec", "counts", "--", "echo", "inside"]).trim(), "inside");
    lab.ok("a", &["stop", "--timeout", "1", "counts"]);
    assert_eq!(lab.state("a", "counts").as_deref(), Some("exited"));
    for name in ["counts", "ends", "falls", "again", "failing"] {
        lab.ok("a", &["rm", "-f", name]);
    }
    let left = traces::of(&lab, "a");
    assert!(
        !left.iter().any(|l| l.contains("podd shim") || l.contains("folder pods") || l.contains("link pod0")),
        "{left:#?}"
    );
}

#[test]
fn a_pod_that_loses_its_shim_gets_another() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.10");
    let subject = Subject::new(&lab, "redis", "10.77.1.10");
    let kill_shim = || {
        let shim = subject.shim("a").expect("the pod has a shim");
        kill(shim, Signal::SIGKILL).expect("it lives");
        shim
    };
    // podd sees it.
    let shim = kill_shim();
    eventually("there is another shim", SOON, || subject.shim("a").is_some_and(|now| now != shim));
    subject.settled(SOON);
    // podd does not see it; a pod under a substitute can be moved, and be checkpointed.
    kill_podd(&lab, "a");
    kill_shim();
    start_podds(&lab);
    subject.settled(SOON);
    lab.ok("a", &["suspend", "redis"]);
    lab.ok("a", &["resume", "redis"]);
    subject.settled(SOON);
    kill_shim();
    lab.ok("a", &["migrate", "redis", "--to", "b"]);
    assert_eq!(subject.settled(SOON), "b");
    lab.ok("b", &["migrate", "redis", "--to", "a"]);
    // The exit code of an adopted pod is the one that its init wrote down.
    run(&lab, "ends", &[], "while [ ! -e /end ]; do sleep 0.05; done; exit 9");
    let id = pod(&lab, "ends")["id"].as_str().expect("it has an id").to_owned();
    let shim_file = traces::inside(&lab, "a", "/run/podd/pods").join(id).join("shim.pid");
    let shim = || -> Option<i64> {
        let text = std::fs::read(&shim_file).ok()?;
        serde_json::from_slice::<Value>(&text).ok()?["pid"].as_i64()
    };
    let first = shim().expect("it has a shim");
    kill(nix::unistd::Pid::from_raw(i32::try_from(first).expect("a PID")), Signal::SIGKILL).expect("it lives");
    eventually("there is another shim", SOON, || shim().is_some_and(|now| now != first));
    lab.ok("a", &["exec", "ends", "--", "touch", "/end"]);
    eventually("it has ended", SOON, || lab.state("a", "ends").as_deref() == Some("exited"));
    assert_eq!(pod(&lab, "ends")["exit"]["code"], 9);
}

/// A pod that fails again and again waits longer and longer for its next start; its podd dies meanwhile.
#[test]
fn a_restart_that_is_due_outlives_podd() {
    let lab = Lab::up(2);
    run(&lab, "fails", &["--restart", "always"], "exit 1");
    let restarts = || pod(&lab, "fails")["restarts"].as_u64().expect("a number");
    eventually("it waits for its next start", SOON, || {
        restarts() >= 3 && lab.state("a", "fails").as_deref() == Some("exited")
    });
    let before = restarts();
    kill_podd(&lab, "a");
    start_podds(&lab);
    eventually("it has been started again", SOON, || restarts() > before);
}

/// A power cut: no process survives, the disk does.
#[test]
fn power_cut() {
    let lab = Lab::up(2);
    run(&lab, "plain", &[], COUNT);
    run(&lab, "always", &["--restart", "always"], "echo born; exec sleep 1000");
    run(&lab, "asleep", &["--ip", "10.77.1.11/16"], "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done");
    eventually("it has counted", SOON, || log(&lab, "asleep").len() > 10);
    lab.ok("a", &["suspend", "asleep"]);
    let counted_before = counted(&log(&lab, "asleep"));
    lab.script(&["crash", "a"]).must();
    assert!(podd(&lab, "a").is_none(), "podd died with its host");
    lab.script(&["up", "--hosts", "2"]).must();
    let state = |name: &str| lab.state("a", name).expect("it is known");
    assert!(["lost", "exited"].contains(&state("plain").as_str()), "{}", state("plain"));
    eventually("the restart policy is followed", SOON, || state("always") == "running");
    eventually("it has begun again", SOON, || log(&lab, "always") == ["born", "born"]);
    assert_eq!(state("asleep"), "suspended");
    lab.ok("a", &["resume", "asleep"]);
    eventually("it counts on", SOON, || counted(&log(&lab, "asleep")) > counted_before);
    lab.ok("a", &["start", "plain"]);
    assert_eq!(state("plain"), "running");
    // And it still moves.
    lab.ok("a", &["migrate", "asleep", "--to", "b"]);
    assert_eq!(lab.state("b", "asleep").as_deref(), Some("running"));
}
