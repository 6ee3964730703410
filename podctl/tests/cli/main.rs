//! podctl as its users meet it: the binary against a fake daemon.

#![allow(clippy::unwrap_used)]

mod exec;
mod fake;

use std::process::{Output, Stdio};

use fake::{Fake, podctl};
use serde_json::Value;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let fake = Fake::start();
    for (name, code) in [
        ("no-usage", 2),
        ("no-not-found", 1),
        ("no-conflict", 1),
        ("no-refused", 3),
        ("no-failed", 1),
        ("no-unreachable", 4),
    ] {
        let output = fake.run(&["migrate", name, "--to", "b"]);
        assert_eq!(output.status.code(), Some(code), "{name}");
        let kind = name.strip_prefix("no-").unwrap();
        assert_eq!(stderr(&output), format!("podctl: {name} is {kind}\n  cure: try another\n"));
        assert_eq!(stdout(&output), "");
        let output = fake.run(&["migrate", name, "--to", "b", "--json"]);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((error["kind"].as_str(), output.status.code()), (Some(kind), Some(code)));
    }
}

#[test]
fn without_a_daemon_the_exit_code_is_4() {
    let folder = tempfile::tempdir().unwrap();
    let output = podctl(&["ls"]).env("PODD_SOCKET", folder.path().join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("  cure: start it with `systemctl start podd`"), "{}", stderr(&output));
    let output = podctl(&["version"]).env("PODD_SOCKET", folder.path().join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stdout(&output).starts_with("podctl "));
}

#[test]
fn wrong_usage_is_a_sentence_and_exit_code_2() {
    let output = podctl(&["start", "BAD"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("podctl: invalid value 'BAD'"), "{}", stderr(&output));
    let output = podctl(&["start", "--json"]).output().unwrap();
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["kind"], "usage");
    assert_eq!(podctl(&["--help"]).output().unwrap().status.code(), Some(0));
    assert_eq!(podctl(&[]).output().unwrap().status.code(), Some(2));
}

#[test]
fn all_pods_are_tried_and_a_failure_shows_in_the_exit_code() {
    let fake = Fake::start();
    let output = fake.run(&["stop", "-t", "2m", "a", "no-not-found", "b"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), "a\nb\n"));
    assert_eq!(stderr(&output), "podctl: no-not-found is not-found\n  cure: try another\n");
    assert_eq!(fake.seen()[2], "POST /v1/pods/b/stop {\"timeout_s\":120}");

    let output = fake.run(&["start", "a", "no-refused", "no-refused", "--json"]);
    assert_eq!(output.status.code(), Some(3), "failures of one kind keep its code");
    assert_eq!(json(&output).as_array().unwrap().len(), 1);

    assert_eq!(stdout(&fake.run(&["kill", "-s", "HUP", "a"])), "a\n");
    assert_eq!(fake.seen().last().unwrap(), "POST /v1/pods/a/kill {\"signal\":1}");
    assert_eq!(stdout(&fake.run(&["rm", "-f", "a"])), "a\n");
    assert_eq!(fake.seen().last().unwrap(), "DELETE /v1/pods/a?force=true");
}

#[test]
fn run_sends_the_pod_of_file_and_flags() {
    let fake = Fake::start();
    let file = fake
        .file("web.toml", "name = 'web'\nrootfs = 'root'\ncommand = ['sleep']\nmemory = '512M'\nip = '10.0.0.5/24'");
    let output = fake.run(&["run", "-f", file.to_str().unwrap(), "--memory", "1G", "-e", "A=1"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "web\n"), "{}", stderr(&output));
    let seen = fake.seen();
    let body: Value = serde_json::from_str(seen[0].strip_prefix("POST /v1/pods ").unwrap()).unwrap();
    assert_eq!(body["start"], true);
    let spec: podd::pod::spec::PodSpec = serde_json::from_value(body["spec"].clone()).unwrap();
    assert_eq!((spec.limits.memory, spec.env["A"].as_str()), (Some(1 << 30), "1"));
    assert_eq!(spec.source, podd::pod::spec::RootSource::Rootfs(file.with_file_name("root")));
    assert_eq!(spec.network.unwrap().mac[0] & 3, 2);

    let output = fake.run(&["create", "-f", file.to_str().unwrap(), "--json"]);
    assert_eq!(json(&output)["name"], "web");
    assert!(fake.seen()[1].contains("\"start\":false"));

    let output = fake.run(&["run", "-f", fake.file("bad.toml", "nam = 'web'").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the pod file is wrong in line 1: unknown field `nam`"), "{}", stderr(&output));
    assert_eq!(fake.seen().len(), 2, "nothing is sent");
}

#[test]
fn run_attached_prints_the_log_and_passes_the_exit_code_on() {
    let fake = Fake::start();
    let output = fake.run(&["run", "--name", "web", "--rootfs", "/r", "--attach", "--", "x"]);
    assert_eq!(output.status.code(), Some(42), "{}", stderr(&output));
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("one\n", "two\n"));
}

#[test]
fn migrate_reports_in_words_or_exactly() {
    let fake = Fake::start();
    let output = fake.run(&["migrate", "web", "--to", "b"]);
    assert_eq!(
        stdout(&output),
        "web moved from a to b in 1.8 s: 312 ms blackout, 280 expected (freeze 4, dump 150, transfer 60, restore 90, announce 8); \
         stop-copy (as asked for): 268 MB memory (12 MB in the freeze), 4 MB files\n"
    );
    assert_eq!(stderr(&output), "", "no progress without a terminal");
    assert_eq!(fake.seen()[0], "POST /v1/pods/web/migrate {\"to\":\"b\",\"mode\":\"auto\"}");
    assert_eq!(json(&fake.run(&["migrate", "web", "--to", "b", "--json"])), fake::report());
}

#[test]
fn verdicts_show_in_the_exit_code() {
    let fake = Fake::start();
    let output = fake.run(&["preflight", "web", "--to", "b"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stdout(&output), "RULE      VERDICT  FACT    CURE\nio-uring  no       a ring  none of it\n");
    let output = fake.run(&["doctor", "--json"]);
    assert_eq!((output.status.code(), json(&output)[0]["verdict"].as_str()), (Some(1), Some("fail")));
}

#[test]
fn logs_keep_the_streams_apart() {
    let fake = Fake::start();
    let output = fake.run(&["logs", "web", "--tail", "5", "--timestamps"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("T1 one\n", "T2 two\n"));
    assert_eq!(fake.seen()[0], "GET /v1/pods/web/logs?follow=false&timestamps=true&tail=5");
    let output = fake.run(&["logs", "web", "--json"]);
    assert_eq!(stdout(&output).lines().count(), 2);
}

#[test]
fn invite_prints_only_the_token() {
    let fake = Fake::start();
    let output = fake.run(&["host", "invite", "b", "--valid", "30m"]);
    assert_eq!(stdout(&output), "s3cret\n");
    assert_eq!(fake.seen()[0], "POST /v1/host/invite {\"name\":\"b\",\"valid_s\":1800}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let fake = Fake::start();
    for arguments in [&["ls"][..], &["ls", "--json"], &["completion", "bash"], &["stop", "a", "b"]] {
        let mut child = fake.podctl(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
    assert_eq!(fake.seen().iter().filter(|line| line.ends_with("stop {\"timeout_s\":null}")).count(), 2);
}

#[test]
fn a_full_disk_is_an_error() {
    let fake = Fake::start();
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = fake.podctl(&["ls", "-q"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("could not be written"), "{}", stderr(&output));
}

#[test]
fn hosts_come_from_the_contexts_file() {
    let fake = Fake::start();
    let file = fake.file("podctl.toml", &format!("default = 'none'\n[hosts.b]\nsocket = {:?}\n", fake.socket()));
    let with_file = |arguments: &[&str]| podctl(arguments).env("PODCTL_CONFIG", &file).output().unwrap();
    assert_eq!(with_file(&["--host", "b", "doctor"]).status.code(), Some(1), "it answered");
    let output = with_file(&["--host", "c", "ls"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("knows no host \"c\"\n  cure: known hosts: b"), "{}", stderr(&output));
    assert!(stderr(&with_file(&["ls"])).contains("knows no host \"none\""));
    let missing = podctl(&["ls"]).env("PODCTL_CONFIG", "/nonexistent/file").output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn completions_name_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = podctl(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && stdout(&output).contains("checkpoint"), "{shell}");
    }
}
