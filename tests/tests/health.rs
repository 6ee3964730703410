//! Health probes: what they say of a pod, and what a move makes of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::Lab;
use tests::lab::{eventually, rootfs, run};

const SOON: Duration = Duration::from_secs(15);

fn health(lab: &Lab, host: &str, pod: &str) -> Value {
    let list = lab.json(host, &["ls"]);
    list.as_array().unwrap().iter().find(|p| p["name"] == pod).map_or(Value::Null, |p| p["health"].clone())
}

#[track_caller]
fn becomes(lab: &Lab, host: &str, pod: &str, state: &str) -> Value {
    eventually(&format!("{pod} is {state}"), SOON, || health(lab, host, pod)["state"] == state);
    health(lab, host, pod)
}

/// A pod that sleeps, with these flags.
fn sleeper(lab: &Lab, host: &str, name: &str, flags: &[&str]) {
    let root = rootfs("busybox");
    let mut words = vec!["run", "--name", name, "--rootfs", &root, "--health-interval", "1s", "--health-retries", "2"];
    words.extend(flags);
    words.extend(["--", "sh", "-c", "httpd -p 8080 -h /tmp; while :; do sleep 0.2; done"]);
    lab.ok(host, &words);
}

#[test]
fn three_kinds_of_probes_tell_well_from_ill() {
    let lab = Lab::up(1);
    sleeper(&lab, "a", "command", &["--health-cmd", "test -e /tmp/well || { echo no file >&2; exit 3; }"]);
    sleeper(&lab, "a", "http", &["--health-http", ":8080/well"]);
    sleeper(&lab, "a", "tcp", &["--ip", "10.77.1.1/16", "--health-tcp", "8081"]);
    sleeper(&lab, "a", "listens", &["--health-tcp", "8080"]);
    lab.ok("a", &["run", "--name", "unasked", "--rootfs", &rootfs("busybox"), "--", "sleep", "1000"]);
    becomes(&lab, "a", "listens", "healthy");
    let reason = |pod: &str| becomes(&lab, "a", pod, "unhealthy")["reason"].as_str().unwrap().to_owned();
    assert!(reason("command").ends_with("ended with 3: no file"), "{}", reason("command"));
    assert!(reason("http").contains("404"), "{}", reason("http"));
    assert!(reason("tcp").contains("refused"), "{}", reason("tcp"));
    assert_eq!(health(&lab, "a", "unasked"), Value::Null);
    for pod in ["command", "http"] {
        lab.ok("a", &["exec", pod, "--", "touch", "/tmp/well"]);
        becomes(&lab, "a", pod, "healthy");
    }
    assert!(lab.ok("a", &["ls"]).contains("running, healthy"));
    // A command that hangs is killed when its time is over.
    sleeper(&lab, "a", "hangs", &["--health-cmd", "sleep 77 | sleep 77; true", "--health-timeout", "1s"]);
    assert_eq!(reason("hangs"), "no answer within 1 s");
    std::thread::sleep(Duration::from_secs(5));
    let sleepers = lab.ok("a", &["top", "hangs"]).lines().filter(|l| l.contains("sleep 77")).count();
    assert!(sleepers <= 4, "{sleepers} are left of commands that were killed");
    lab.ok("a", &["stop", "-t", "1", "http"]);
    assert_eq!(health(&lab, "a", "http"), Value::Null, "a stopped pod is not asked");
}

#[test]
fn a_move_is_confirmed_or_what_was_before_it_is_kept() {
    let lab = Lab::up(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    // A place that differs between the hosts: on b the pod misses a file.
    for host in ["a", "b"] {
        run(lab.on(host, &["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", &path])).must();
    }
    run(lab.on("a", &["touch", &format!("{path}/well")])).must();
    sleeper(&lab, "a", "sick", &["--volume", &format!("{path}:/mark:ro"), "--health-cmd", "test -e /mark/well"]);
    sleeper(&lab, "a", "well", &["--health-cmd", "true"]);
    sleeper(&lab, "a", "page", &["--volume", &format!("{path}:/tmp/mark:ro"), "--health-http", ":8080/mark/well"]);
    sleeper(&lab, "a", "port", &["--health-tcp", "8080"]);
    for pod in ["sick", "well", "page", "port"] {
        becomes(&lab, "a", pod, "healthy");
    }
    lab.ok("a", &["exec", "sick", "--", "sh", "-c", "echo before >/tmp/file"]);
    lab.ok("a", &["migrate", "well", "--to", "b"]);
    lab.ok("a", &["migrate", "port", "--to", "b"]);
    for pod in ["well", "port"] {
        assert_eq!(health(&lab, "b", pod)["state"], "healthy", "it was asked before the move ended");
    }
    let moved = lab.podctl("a", &["migrate", "page", "--to", "b"]);
    assert!(moved.code == 1 && moved.err.contains("not healthy there"), "{moved:?}");
    assert!(moved.err.contains("404"), "{moved:?}");

    let moved = lab.podctl("a", &["--json", "migrate", "sick", "--to", "b"]);
    let error: Value =
        serde_json::from_str(moved.err.lines().last().unwrap()).unwrap_or_else(|e| panic!("{e}: {moved:?}"));
    assert_eq!(moved.code, 1, "{moved:?}");
    assert!(error["message"].as_str().unwrap().starts_with("sick went to b, but it is not healthy there"), "{error}");
    let cure = error["cure"].as_str().unwrap();
    let image = cure.split('`').find_map(|w| w.strip_prefix("podctl restore ")).unwrap_or_else(|| panic!("{cure}"));
    assert_eq!((lab.state("a", "sick"), lab.state("b", "sick").as_deref()), (None, Some("running")));
    let images = lab.dir().join("a/state/images");
    assert_eq!(fs::read_dir(&images).unwrap().count(), 2, "of those that are well, nothing is kept");
    // Back to how it was.
    lab.ok("b", &["rm", "-f", "sick"]);
    lab.ok("a", &["restore", image]);
    assert_eq!(lab.ok("a", &["exec", "sick", "--", "cat", "/tmp/file"]), "before\n");
    becomes(&lab, "a", "sick", "healthy");
}

#[test]
fn probes_do_not_hold_a_move_back() {
    let lab = Lab::up(2);
    sleeper(&lab, "a", "asked", &["--health-cmd", "sleep 0.7"]);
    becomes(&lab, "a", "asked", "healthy");
    for (from, to) in [("a", "b"), ("b", "a")].repeat(3) {
        lab.ok(from, &["migrate", "asked", "--to", to]);
    }
}
