//! Does a host need patching: what the fleet's podds say of it, to people, to cron, to Prometheus. (Verdicts on real kernels and a
//! real apt are in `kernels.rs`.)

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::Lab;
use tests::lab::eventually;

/// podctl's answer as JSON, and its exit code.
fn asked(lab: &Lab, host: &str, arguments: &[&str]) -> (Value, i32) {
    let run = lab.podctl(host, &[&["--json"], arguments].concat());
    (serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{run:?}: {e}")), run.code)
}

/// Of a host of which something is not known.
fn missing(status: &Value) -> String {
    assert_eq!(status["decision"]["verdict"], "unknown", "{status:#}");
    status["decision"]["missing"].to_string()
}

/// No policy is there, so there are no advisories: nobody can know. If the clock of this very host is doubtful, too, that is
/// said before.
const NO_ALL_CLEAR: [i32; 2] = [12, 13];

#[test]
fn the_status_of_a_fleet_is_never_a_false_all_clear() {
    let lab = Lab::up(2);
    let (fleet, code) = asked(&lab, "a", &["status"]);
    let hosts: Vec<&str> = fleet.as_array().into_iter().flatten().filter_map(|host| host["host"].as_str()).collect();
    assert!(hosts == ["a", "b"] && NO_ALL_CLEAR.contains(&code), "{fleet:#}");
    for host in fleet.as_array().expect("a list") {
        let verdict = host["decision"]["verdict"].as_str();
        assert!(verdict == Some("blocked") || missing(host).contains("no source of advisories is set"), "{host:#}");
        assert!(host["facts_at"].is_string(), "whoever asks first has it read: {host:#}");
    }
    let lines = lab.podctl("a", &["status", "b"]);
    assert!(lines.code == code && lines.out.lines().count() == 2, "{lines:?}");
    let why = lab.podctl("a", &["why", "b"]);
    assert!(why.code == code && why.out.contains("cure: "), "{why:?}");
    let check = lab.podctl("a", &["patch", "check", "--auto"]);
    assert!(check.code == code && check.out.lines().count() == 3, "it is quiet only if all is well: {check:?}");
    let stranger = lab.podctl("a", &["status", "nobody"]);
    assert!(stranger.code != 0 && stranger.err.contains("nobody"), "{stranger:?}");

    // A host that is away is unknown, and keeps no other one from being told.
    lab.script(&["cut", "b"]).must();
    let (fleet, _) = asked(&lab, "a", &["status"]);
    assert_eq!(fleet.as_array().map(Vec::len), Some(2));
    assert!(missing(&fleet[1]).contains('b') && fleet[1]["facts_at"].is_null(), "{fleet:#}");
    lab.script(&["join", "b"]).must();

    // What the owner of a host wants, also from another host.
    eventually("b answers again", Duration::from_secs(20), || lab.podctl("a", &["status", "b"]).code == code);
    let (b, _) = asked(&lab, "a", &["patch", "start-now", "b"]);
    assert_eq!((b["host"].as_str(), b["at_once"].as_bool()), (Some("b"), Some(true)));
    assert_eq!(asked(&lab, "b", &["status", "b"]).0[0]["at_once"], true);
    let past = lab.podctl("a", &["patch", "choose", "2026-01-01T00:00:00Z"]);
    assert!(past.code == 2 && past.err.contains("is past") && past.err.contains("cure: "), "{past:?}");
    let (a, code) = asked(&lab, "a", &["patch", "choose", "2099-01-01T00:00:00Z"]);
    assert_eq!((a["chosen"].as_str(), code), (Some("2099-01-01T00:00:00Z"), 0));
    let (a, _) = asked(&lab, "a", &["patch", "as-scheduled"]);
    assert_eq!((a["chosen"].is_null(), a["at_once"].as_bool()), (true, Some(false)));
}

#[test]
fn a_broken_policy_leaves_the_last_good_one_in_force() {
    let lab = Lab::up(1);
    let policy = lab.dir().join("a/policy.toml");
    let advisories = lab.dir().join("a/advisories");
    fs::create_dir(&advisories).expect("a folder");
    let set = |text: &str| fs::write(&policy, text).expect("it is written");
    // It never knew a better one.
    lab.script(&["kill", "a"]).must();
    set("[deadlines]\nhigh = \"tomorrow\"\n");
    lab.script(&["start", "a"]).must();
    let (status, code) = asked(&lab, "a", &["status", "a"]);
    assert!(code == 12 && missing(&status[0]).contains("is wrong in line 2"), "{status:#}");
    set(&format!("[advisories]\ntracker = \"{}\"\n", advisories.display()));
    let problem = |status: &Value| status[0]["feeds"][0]["problem"].to_string();
    let (status, _) = asked(&lab, "a", &["status", "a", "--refresh"]);
    assert!(problem(&status).contains("there is no *.json"), "an empty folder: {status:#}");
    set("[[windows]]\nstart = \"02:00\"\nduration = \"1h\"\nzone = \"Nowhere/Land\"\n");
    let (status, _) = asked(&lab, "a", &["status", "a", "--refresh"]);
    assert!(status[0]["remarks"].to_string().contains("the last good policy holds"), "{status:#}");
    assert!(problem(&status).contains("there is no *.json"), "{status:#}");
    // Also for a podd that has never seen it.
    lab.script(&["kill", "a"]).must();
    lab.script(&["start", "a"]).must();
    let (status, _) = asked(&lab, "a", &["status", "a", "--refresh"]);
    assert!(status[0]["remarks"].to_string().contains("the last good policy holds"), "{status:#}");
    assert!(problem(&status).contains("there is no *.json"), "{status:#}");
}

#[test]
fn prometheus_reads_what_podctl_shows() {
    let lab = Lab::up(1);
    let socket = lab.dir().join("a/podd.sock");
    let read = || {
        let mut stream = UnixStream::connect(&socket).expect("podd listens");
        let request = "GET /metrics HTTP/1.1\r\nHost: podd\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is text");
        let (head, text) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        text.to_owned()
    };
    let has = |text: &str, line: &str| text.lines().any(|l| l == line);
    let before = read();
    assert!(has(&before, "podd_patch_verdict{verdict=\"unknown\"} 1"), "{before}");
    assert!(!before.contains("podd_facts_age_seconds"), "nothing was read yet: {before}");
    asked(&lab, "a", &["status", "a"]);
    let after = read();
    assert!(after.contains("\npodd_facts_age_seconds ") || after.starts_with("# HELP podd_facts_age"), "{after}");
    assert!(has(&after, "podd_migration_blackout_seconds_count 0"), "{after}");
}

/// Policies and manifests are files; whoever writes them needs no podd.
#[test]
fn policies_and_keys_are_looked_at_without_podd() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let podctl = |arguments: &[&str]| {
        let mut command = Command::new(tests::lab::binary("podctl"));
        command.args(arguments).env("PODD_SOCKET", "/nonexistent");
        tests::lab::run(command)
    };
    let absent = podctl(&["policy", "check", &path("policy.toml")]);
    assert!(absent.code == 0 && absent.out.contains("the defaults hold"), "{absent:?}");
    fs::write(path("policy.toml"), "[deadlines]\nhigh = \"40d\"\n").expect("a policy");
    let wrong = podctl(&["policy", "check", &path("policy.toml")]);
    assert!(wrong.code == 2 && wrong.err.contains("gives what is worse more time"), "{wrong:?}");
    assert!(wrong.err.contains("\n  cure: "), "{wrong:?}");
    let night = "[[windows]]\nstart = \"02:00\"\nduration = \"3h\"\nzone = \"America/New_York\"\n";
    fs::write(path("policy.toml"), night).expect("a policy");
    let explained = podctl(&["policy", "explain", &path("policy.toml")]);
    assert!(explained.code == 0 && explained.out.lines().count() > 12 && explained.out.contains("3h"), "{explained:?}");
    let shown = podctl(&["policy", "show", &path("policy.toml")]);
    fs::write(path("shown.toml"), &shown.out).expect("a policy");
    assert_eq!(podctl(&["policy", "check", &path("shown.toml")]).code, 0, "what is shown is a policy: {shown:?}");

    // A manifest as whoever makes live patches makes it.
    let script = "cd \"$1\" && openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out vendor.pem &&
        echo '{\"patch\": \"p\", \"kernels\": [\"6.1.170-3\"], \"advisories\": [\"CVE-2026-1\"]}' >fix.json &&
        openssl pkeyutl -sign -rawin -inkey key.pem -in fix.json -out fix.json.sig";
    let mut made = Command::new("sh");
    made.args(["-c", script, "sh"]).arg(folder.path());
    assert!(made.status().expect("sh runs").success());
    let dir = folder.path().to_string_lossy().into_owned();
    let before = podctl(&["livepatch", "ls", "--folder", &dir]);
    assert!(before.out.contains("none of 0 trusted key(s) has signed it"), "{before:?}");
    podctl(&["livepatch", "trust", &path("vendor.pem"), "--folder", &dir]).must();
    let after = podctl(&["livepatch", "ls", "--folder", &dir]);
    assert!(after.out.contains("vendor") && !after.out.contains("trusted key(s)"), "{after:?}");
    let private = podctl(&["livepatch", "trust", &path("key.pem"), "--folder", &dir]);
    assert!(private.code == 1 && private.err.contains("is no public Ed25519 key"), "{private:?}");
}
