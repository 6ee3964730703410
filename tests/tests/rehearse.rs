//! Rehearsals: a clone comes to life on the target and goes again; the pod notices a pause and nothing else.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use tests::invariants::{Subject, end_of, kill_podd, start_podds};
use tests::lab::{eventually, rootfs};
use tests::{Lab, traces, workload};

fn rehearse(lab: &Lab, pod: &str) -> Value {
    lab.json("a", &["rehearse", pod, "--to", "b"])
}

#[test]
fn a_clone_runs_and_goes_and_the_pod_does_not_notice() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.9");
    let subject = Subject::new(&lab, "redis", "10.77.1.9");
    for _ in 0..3 {
        let report = rehearse(&lab, "redis");
        assert!(report["pause_ms"].as_f64().unwrap() > 0.0 && report["restore_ms"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!((&report["ran"], &report["health"]), (&Value::Bool(true), &Value::Null));
        // The client's connection has seen no packet of the clone, and nothing is left on either host.
        assert_eq!(subject.settled(Duration::from_secs(10)), "a");
    }
    let moves = lab.json("a", &["migrations"]);
    assert_eq!(moves.as_array().unwrap().iter().filter(|m| m["rehearsal"] == true).count(), 3, "{moves}");
    lab.ok("a", &["migrate", "redis", "--to", "b", "--rehearse"]);
    assert_eq!(subject.settled(Duration::from_secs(10)), "b");
    // Both hosts and both verbs say the same of moves that are over: two of the subject, four rehearsals, one more.
    for host in ["a", "b"] {
        let moves = lab.ok(host, &["migrations"]);
        let steps =
            ["done", "rehearsed"].map(|step| moves.lines().filter(|l| l.contains(&format!(" {step} "))).count());
        assert_eq!((steps, moves.lines().count()), ([3, 4], 8), "{host}: {moves}");
    }
    let words = lab.ok("b", &["inspect", "redis"]);
    let steps = [": done", ": rehearsed"]
        .map(|step| words.lines().filter(|l| l.starts_with("move:") && l.contains(step)).count());
    assert_eq!(steps, [3, 4], "{words}");
}

#[test]
fn what_would_break_is_told_and_nothing_moves() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let folder = tempfile::tempdir().unwrap();
    let volume = format!("{}:/data:ro", folder.path().display());
    let pod = |name: &str, flags: &[&str], probe: &str| {
        let asked = ["--health-cmd", probe, "--health-interval", "1s", "--health-retries", "2"];
        lab.ok(
            "a",
            &[&["run", "--name", name, "--rootfs", &root][..], flags, &asked, &["--", "sleep", "1000"]].concat(),
        );
    };
    // What needs the network is ill without it.
    pod("sick", &["--ip", "10.77.1.3/16"], "nc 10.77.0.1 7443 -w 1 </dev/null");
    pod("well", &[], "true");
    pod("volume", &["--volume", &volume], "true");
    eventually("it reaches the host", Duration::from_secs(15), || lab.ok("a", &["ls"]).matches("healthy").count() == 3);
    assert_eq!(rehearse(&lab, "well")["health"]["state"], "healthy");
    assert_eq!(rehearse(&lab, "volume")["ran"], false, "its clone could do twice what the pod does to its volumes");
    let before = traces::settled(&lab, "b");
    for words in [&["rehearse", "sick", "--to", "b"][..], &["migrate", "sick", "--to", "b", "--rehearse"]] {
        let answer = lab.podctl("a", words);
        assert_eq!(answer.code, 1, "{answer:?}");
        assert!(answer.err.contains("a clone of sick was not well on b: "), "{answer:?}");
        assert_eq!((lab.state("a", "sick").as_deref(), lab.state("b", "sick")), (Some("running"), None));
    }
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "b")), "");
    let moves = lab.ok("a", &["migrations"]);
    assert_eq!(moves.lines().filter(|l| l.contains("was not well on b")).count(), 2, "{moves}");
    assert_eq!(moves.lines().filter(|l| l.contains("rehearsed")).count(), 2, "{moves}");
    let answer = lab.podctl("a", &["rehearse", "sick", "--to", "a"]);
    assert_eq!(answer.code, 2, "{answer:?}");
}

#[test]
fn a_pod_that_two_hosts_cannot_restore_goes_nowhere_until_a_rehearsal_succeeds() {
    // A CRIU that does nothing while a file is there.
    let lab = Lab::prepared(|lab| {
        let criu = std::env::var("PODD_CRIU").unwrap_or_else(|_| "/usr/local/libexec/podd/criu".to_owned());
        for host in ["b", "c"] {
            let home = lab.dir().join(host);
            fs::create_dir_all(&home).unwrap();
            let here = home.display();
            let script = |name: &str, text: String| {
                fs::write(home.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
                fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            };
            script("criu", format!("[ ! -e {here}/broken ] || exit 1\nexec {here}/real \"$@\""));
            script("boot", format!("cp {criu} {here}/real && mount --bind {here}/criu {criu}"));
        }
    });
    lab.script(&["up", "--hosts", "3"]).must();
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "1000"]);
    assert!(lab.ok("a", &["preflight", "web", "--to", "b"]).contains("go"));
    for (host, words) in [("b", &["rehearse", "web", "--to", "b"][..]), ("c", &["migrate", "web", "--to", "c"])] {
        // Its podd has seen beforehand that it works.
        assert!(lab.ok(host, &["doctor"]).contains("dumps and restores"));
        fs::write(lab.dir().join(host).join("broken"), "").unwrap();
        let answer = lab.podctl("a", words);
        assert_eq!((answer.code, lab.state("a", "web").as_deref()), (1, Some("running")), "{answer:?}");
    }
    for host in ["b", "c"] {
        fs::remove_file(lab.dir().join(host).join("broken")).unwrap();
    }
    let answer = lab.podctl("a", &["migrate", "web", "--to", "b"]);
    assert!(answer.code == 3 && answer.err.contains("quarantine: b and c could not restore it"), "{answer:?}");
    assert!(lab.podctl("a", &["preflight", "web", "--to", "b"]).out.contains("podctl rehearse web"));
    rehearse(&lab, "web");
    lab.ok("a", &["migrate", "web", "--to", "b"]);
    assert_eq!(lab.state("b", "web").as_deref(), Some("running"));
}

#[test]
fn podds_may_die_in_a_rehearsal() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.9");
    let subject = Subject::new(&lab, "redis", "10.77.1.9");
    for (dies, after_ms) in
        [("a", 60), ("b", 60), ("a", 150), ("b", 150), ("a", 400), ("b", 400), ("a", 800), ("b", 800)]
    {
        let mut command = lab.podctl_command("a", &["rehearse", "redis", "--to", "b"]);
        let rehearsal =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        kill_podd(&lab, dies);
        start_podds(&lab);
        assert!(end_of(rehearsal, Duration::from_secs(30)).is_some());
        eventually("nothing is left on b", Duration::from_secs(25), || lab.state("b", "redis").is_none());
        assert_eq!(subject.settled(Duration::from_secs(25)), "a", "podd of {dies} died after {after_ms} ms");
    }
}
