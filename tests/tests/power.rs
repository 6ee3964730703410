//! A host loses its power in mid-move: what was in its memory is gone, what it has recorded holds.

use std::process::{Output, Stdio};
use std::time::Duration;

use tests::lab::{eventually, run};
use tests::{Lab, workload};

const LIMIT: Duration = Duration::from_secs(30);

/// Moves a redis with a value in it from `a` to `b`; `dies` loses its power once `role` has recorded `step`, and boots
/// again. Returns the lab when `settled` is true, and what podctl said.
fn power_cut(role: &str, step: &str, dies: &str, settled: impl Fn(&Lab) -> bool) -> (Lab, Output) {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.5");
    assert!(lab.ok("a", &["exec", "redis", "--", "redis-cli", "set", "k", "kept"]).contains("OK"));
    lab.ok("a", &["checkpoint", "redis", "--leave-running"]);
    let paused = if role == "source" { "a" } else { "b" };
    // A podd that loses its power must not get past the step before; another one must go on afterwards.
    let pause = if paused == dies { 60_000 } else { 3000 };
    lab.fault(paused, &format!("{role} {step} pause {pause}"));
    let mover = lab
        .podctl_command("a", &["migrate", "redis", "--to", "b"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podctl starts");
    eventually(&format!("{role} is at {step}"), LIMIT, || {
        let left = run(lab.on(paused, &["cat", "/run/podd/fault"]));
        left.code == 0 && !left.out.contains(step)
    });
    lab.script(&["crash", dies]).must();
    lab.script(&["up", "--hosts", "2"]).must();
    eventually("the move is settled", LIMIT, || settled(&lab));
    let said = mover.wait_with_output().expect("podctl ends");
    (lab, said)
}

fn value(lab: &Lab, host: &str) -> String {
    lab.ok(host, &["exec", "redis", "--", "redis-cli", "get", "k"]).trim().to_owned()
}

#[test]
fn target_before_the_commit_then_the_source_takes_the_pod_back() {
    // The source is stopped right after `given`, so that no commit reaches the target before its end.
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.5");
    assert!(lab.ok("a", &["exec", "redis", "--", "redis-cli", "set", "k", "kept"]).contains("OK"));
    lab.fault("a", "source given crash");
    let moved = lab.podctl("a", &["migrate", "redis", "--to", "b"]);
    assert_ne!(moved.code, 0);
    lab.script(&["crash", "b"]).must();
    lab.script(&["up", "--hosts", "2"]).must();
    eventually("the source runs it again", LIMIT, || lab.state("a", "redis").as_deref() == Some("running"));
    eventually("the target has forgotten it", LIMIT, || lab.state("b", "redis").is_none());
    assert_eq!(value(&lab, "a"), "kept");
}

#[test]
fn target_after_the_commit_then_the_source_does_not_go_on_from_an_older_state() {
    let (lab, said) = power_cut("target", "committed", "b", |lab| {
        lab.state("b", "redis").as_deref() == Some("lost") && lab.state("a", "redis").is_none()
    });
    assert_eq!(lab.podctl("b", &["start", "redis"]).code, 0, "it can be started anew where it belongs");
    // Whoever asked for the move learns of it, and the state before is there for those who want it.
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{words}");
    assert!(words.contains("redis went to b, but it has ended there"), "{words}");
    let image = words.split_whitespace().find(|w| w.contains("/images/redis-before-")).expect("the image is named");
    lab.ok("b", &["rm", "--force", "redis"]);
    lab.ok("a", &["restore", image.trim_end_matches([':', ';', ','])]);
    assert_eq!(value(&lab, "a"), "kept");
}

#[test]
fn source_after_the_handover_then_the_target_runs_it() {
    let (lab, _) = power_cut("source", "given", "a", |lab| {
        lab.state("b", "redis").as_deref() == Some("running") && lab.state("a", "redis").is_none()
    });
    assert_eq!(value(&lab, "b"), "kept");
}

#[test]
fn source_before_the_handover_then_nothing_is_left_on_the_target() {
    let (lab, _) = power_cut("target", "held", "a", |lab| lab.state("b", "redis").is_none());
    assert_eq!(lab.state("a", "redis").as_deref(), Some("lost"));
    // podctl says what it can be restored from.
    assert!(lab.ok("a", &["ls"]).contains("lost, checkpoint of"));
    let image = lab.json("a", &["inspect", "redis"])[0]["last_checkpoint"]["image"].clone();
    let image = image.as_str().expect("the image is named");
    assert!(lab.ok("a", &["inspect", "redis"]).contains(&format!("`podctl restore {image}` on a")));
    lab.ok("a", &["rm", "redis"]);
    lab.ok("a", &["restore", image]);
    assert_eq!(value(&lab, "a"), "kept");
}

/// A move whose other host burns down: nobody but people can say that it does not come back.
fn gone(lab: &Lab, here: &str, other: &str) {
    let unsure = lab.podctl(here, &["resume", "redis"]);
    let cure = format!("host rm {other} --gone");
    assert!(unsure.code != 0 && unsure.err.contains(&cure), "{unsure:?}");
    let removed = lab.json(here, &["host", "rm", other, "--gone"]);
    assert_eq!(removed["in_doubt"], serde_json::json!(["redis"]), "{removed:#}");
    // Another one may have it.
    lab.script(&["cut", "c"]).must();
    let unsure = lab.podctl(here, &["resume", "redis"]);
    assert!(unsure.code != 0 && unsure.err.contains("c does not say whether it has redis"), "{unsure:?}");
    lab.script(&["join", "c"]).must();
    eventually("c answers again", LIMIT, || lab.podctl(here, &["resume", "redis"]).code == 0);
    assert_eq!(lab.state(here, "redis").as_deref(), Some("running"));
    assert_eq!(value(lab, here), "kept");
}

fn three_hosts() -> Lab {
    let lab = Lab::up(3);
    workload::redis(&lab, "a", "redis", "10.77.1.5");
    assert!(lab.ok("a", &["exec", "redis", "--", "redis-cli", "set", "k", "kept"]).contains("OK"));
    lab
}

#[test]
fn target_for_good_then_the_source_goes_on_when_told() {
    let lab = three_hosts();
    lab.fault("a", "source given pause 4000");
    let mut mover = lab.podctl_command("a", &["migrate", "redis", "--to", "b"]);
    let mover = mover.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("podctl starts");
    eventually("it is given", LIMIT, || {
        let left = run(lab.on("a", &["cat", "/run/podd/fault"]));
        left.code == 0 && !left.out.contains("given")
    });
    lab.script(&["crash", "b"]).must();
    gone(&lab, "a", "b");
    let said = mover.wait_with_output().expect("podctl ends");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("b is gone for good, and root has the pod go on here"), "{said}");
}

#[test]
fn source_for_good_then_the_target_goes_on_when_told() {
    let lab = three_hosts();
    lab.fault("a", "source given crash");
    assert_ne!(lab.podctl("a", &["migrate", "redis", "--to", "b"]).code, 0);
    lab.script(&["crash", "a"]).must();
    gone(&lab, "b", "a");
}
