//! Who may talk to whom: invitations, foreign hosts, nonsense on every port. And what `doctor` says of a host.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::lab::{Run, binary, eventually, rootfs, run};
use tests::{Lab, traces};

const A: &str = "10.77.0.1:7443";
const B: &str = "10.77.0.2:7443";

fn init(lab: &Lab, host: &str, address: &str) -> Run {
    lab.podctl(host, &["host", "init", "--name", host, "--listen", address])
}

fn invite(lab: &Lab, host: &str, name: &str, valid: &str) -> String {
    lab.ok(host, &["host", "invite", name, "--valid", valid]).trim().to_owned()
}

fn join(lab: &Lab, host: &str, authority: &str, token: &str, listen: &str) -> Run {
    lab.podctl(host, &["host", "join", authority, token, "--name", host, "--listen", listen])
}

#[track_caller]
fn refused(run: &Run, sentence: &str) {
    assert!(matches!(run.code, 1 | 2 | 4) && run.err.contains(sentence), "{sentence}: {run:?}");
    assert!(run.err.lines().count() <= 2 && run.err.starts_with("podctl: "), "{run:?}");
}

fn hosts(lab: &Lab, host: &str) -> Vec<(String, bool)> {
    let list = lab.json(host, &["host", "ls"]);
    let view = |h: &Value| (h["name"].as_str().unwrap().to_owned(), h["reachable"] == true);
    list.as_array().unwrap().iter().map(view).collect()
}

#[test]
fn invitations_are_for_one_host_once_and_not_for_ever() {
    let lab = Lab::of_strangers(3);
    refused(&lab.podctl("a", &["host", "invite", "b"]), "no identity");
    assert_eq!(hosts(&lab, "a"), []);
    init(&lab, "a", A).must();
    refused(&init(&lab, "a", A), "already has an identity");
    refused(&join(&lab, "b", A, "nonsense", B), "not a whole invitation token");
    let token = invite(&lab, "a", "b", "1h");
    // Damaged on the way, for another host, from another address than the authority's.
    let half = &token[..token.len() / 2];
    refused(&join(&lab, "b", A, half, B), "not a whole invitation token");
    refused(&join(&lab, "c", A, &token, "10.77.0.3:7443"), "the invitation is for `b`");
    refused(&join(&lab, "b", "10.77.0.9:7443", &token, B), "10.77.0.9");
    refused(&join(&lab, "b", "10.77.0.3:7443", &token, B), "10.77.0.3");
    refused(&join(&lab, "b", A, &token, "0.0.0.0:7443"), "other hosts must be able to dial it");
    assert_eq!(lab.json("b", &["host", "ls"]), json!([]), "nothing of that made it a member");
    join(&lab, "b", A, &token, B).must();
    assert_eq!(hosts(&lab, "b"), [("a".into(), true), ("b".into(), true)]);
    assert_eq!(hosts(&lab, "a"), [("a".into(), true), ("b".into(), true)]);
    refused(&join(&lab, "b", A, &token, B), "already has an identity");
    // A used token is of no use to another host that took the name.
    lab.script(&["kill", "c"]).must();
    let config = lab.dir().join("c/podd.toml");
    let text = fs::read_to_string(&config).unwrap().replace("host = \"c\"", "host = \"b\"");
    fs::write(&config, text).unwrap();
    lab.script(&["start", "c"]).must();
    let thief = lab.podctl("c", &["host", "join", A, &token, "--name", "b", "--listen", "10.77.0.3:7443"]);
    refused(&thief, "the invitation was used");
    assert_eq!(hosts(&lab, "c"), []);
    refused(&lab.podctl("a", &["host", "invite", "b"]), "has joined already");
    refused(&lab.podctl("b", &["host", "invite", "d"]), "not the authority of its fleet");
    // One that is too late; and one that was replaced by a newer one.
    let late = invite(&lab, "a", "c", "1s");
    let replaced = invite(&lab, "a", "d", "1h");
    let newer = invite(&lab, "a", "d", "1h");
    assert_ne!(replaced, newer);
    for name in ["c", "d"] {
        lab.script(&["kill", "c"]).must();
        let text = fs::read_to_string(&config).unwrap();
        let line = text.lines().find(|l| l.starts_with("host = ")).unwrap().to_owned();
        fs::write(&config, text.replace(&line, &format!("host = \"{name}\""))).unwrap();
        lab.script(&["start", "c"]).must();
        let attempt =
            |token: &str| lab.podctl("c", &["host", "join", A, token, "--name", name, "--listen", "10.77.0.3:7443"]);
        if name == "c" {
            // It was good for one second.
            std::thread::sleep(Duration::from_millis(1100));
            refused(&attempt(&late), "the invitation expired on");
        } else {
            refused(&attempt(&replaced), "replaced it by a newer one");
            attempt(&newer).must();
        }
    }
    assert_eq!(hosts(&lab, "a").len(), 3);
    // Keys are for podd alone.
    use std::os::unix::fs::PermissionsExt;
    for host in ["a", "b", "c"] {
        for entry in fs::read_dir(lab.dir().join(host).join("state/pki")).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
            assert_eq!(mode, 0, "{}", entry.path().display());
        }
    }
}

#[test]
fn a_removed_host_is_a_stranger_until_it_joins_anew() {
    let lab = Lab::up(3);
    lab.ok("c", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "100000"]);
    refused(&lab.podctl("b", &["host", "rm", "d"]), "no host named \"d\"");
    refused(&lab.podctl("b", &["host", "rm", "c"]), "c has 1 pod(s), such as web");
    refused(&lab.podctl("b", &["host", "rm", "a"]), "a signs for all hosts of the fleet");
    lab.ok("c", &["rm", "--force", "web"]);
    let removed = lab.json("b", &["host", "rm", "c"]);
    assert_eq!(removed, json!({"removed": ["c"], "run": null, "in_doubt": [], "untold": []}));
    lab.script(&["kill", "a"]).must();
    lab.script(&["start", "a"]).must();
    let two = [("a".to_owned(), true), ("b".to_owned(), true)];
    assert_eq!((hosts(&lab, "a"), hosts(&lab, "b")), (two.to_vec(), two.to_vec()));
    lab.ok("c", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "100000"]);
    refused(&lab.podctl("c", &["patch", "run", "--fleet"]), "removed from its fleet");
    for to in ["a", "b"] {
        refused(&lab.podctl("c", &["preflight", "web", "--to", to]), "c was removed from this fleet");
    }
    assert!(lab.ok("c", &["history"]).contains("c was removed from the fleet"));
    let token = invite(&lab, "a", "c", "1h");
    lab.script(&["kill", "c"]).must();
    fs::remove_dir_all(lab.dir().join("c/state/pki")).unwrap();
    lab.script(&["start", "c"]).must();
    join(&lab, "c", A, &token, "10.77.0.3:7443").must();
    lab.ok("c", &["preflight", "web", "--to", "b"]);
    assert_eq!([hosts(&lab, "a"), hosts(&lab, "b"), hosts(&lab, "c")].map(|hosts| hosts.len()), [3, 3, 3]);
}

#[test]
fn cordons_count_by_owner_and_end_by_themselves() {
    let lab = Lab::up(2);
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "100000"]);
    lab.ok("b", &["host", "cordon", "--reason", "a new disk", "--for", "20s"]);
    // Another user, who may talk to podd.
    let socket = lab.dir().join("b/podd.sock").display().to_string();
    let mut other = Command::new("setpriv");
    other.args(["--reuid=daemon", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]).arg(binary("podctl"));
    other.args(["--socket", &socket, "host", "cordon", "--reason", "a backup"]);
    run(other).must();
    let owners = || {
        let cordons = lab.json("b", &["host", "cordons"]);
        let owner = |cordon: &Value| cordon["owner"].as_str().unwrap().to_owned();
        cordons.as_array().unwrap().iter().map(owner).collect::<Vec<_>>()
    };
    assert_eq!(owners(), ["root", "daemon"]);
    let go = || lab.podctl("a", &["migrate", "web", "--to", "b"]);
    let first = go();
    assert!(first.code != 0 && first.err.contains("cordoned by root (a new disk), until"), "{first:?}");
    let started = lab.podctl("b", &["run", "--name", "new", "--rootfs", &rootfs("busybox"), "--", "true"]);
    assert!(started.code != 0 && started.err.contains("takes no pods"), "{started:?}");
    eventually("the first one ends by itself", Duration::from_secs(60), || owners() == ["daemon"]);
    let second = go();
    assert!(second.code != 0 && second.err.contains("cordoned by daemon (a backup)"), "{second:?}");
    refused(&lab.podctl("b", &["host", "uncordon"]), "b is not cordoned by root");
    lab.ok("b", &["host", "uncordon", "--owner", "daemon"]);
    lab.ok("a", &["migrate", "web", "--to", "b"]);
}

#[test]
fn a_host_with_another_authority_is_a_stranger() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    for (host, ip) in [("a", "10.77.1.1/16"), ("b", "10.77.1.2/16")] {
        lab.ok(host, &["run", "--name", &format!("on-{host}"), "--rootfs", &root, "--ip", ip, "--", "sleep", "1000"]);
    }
    // b keeps its memory of a, but founds a fleet of its own.
    lab.script(&["kill", "b"]).must();
    let pki = lab.dir().join("b/state/pki");
    fs::rename(&pki, lab.dir().join("b/state/pki.old")).unwrap();
    lab.script(&["start", "b"]).must();
    init(&lab, "b", B).must();
    let look = || [traces::settled(&lab, "a"), traces::settled(&lab, "b")].concat();
    let before = look();
    assert_eq!(hosts(&lab, "b"), [("a".into(), false), ("b".into(), true)]);
    assert_eq!(hosts(&lab, "a"), [("a".into(), true), ("b".into(), false)]);
    for (from, to) in [("a", "b"), ("b", "a")] {
        let pod = format!("on-{from}");
        for words in [vec!["migrate", &pod, "--to", to], vec!["preflight", &pod, "--to", to]] {
            let answer = lab.podctl(from, &words);
            refused(&answer, "certificate");
        }
        assert_eq!(lab.state(from, &pod).as_deref(), Some("running"));
        assert_eq!(lab.state(to, &pod), None);
    }
    assert_eq!(traces::difference(&before, &look()), "");
    // Its certificate back, it is a member again.
    lab.script(&["kill", "b"]).must();
    fs::remove_dir_all(&pki).unwrap();
    fs::rename(lab.dir().join("b/state/pki.old"), &pki).unwrap();
    lab.script(&["start", "b"]).must();
    lab.ok("b", &["migrate", "on-b", "--to", "a"]);
    assert_eq!(lab.state("a", "on-b").as_deref(), Some("running"));
}

#[test]
fn nonsense_on_the_peer_port_disturbs_nobody() {
    let lab = Lab::up(2);
    let before = traces::settled(&lab, "a");
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", pid_of(&lab, "a"))).unwrap().count();
    let (first, at_first) = (pid_of(&lab, "a"), descriptors());
    let on_lan = || {
        let address: SocketAddr = A.parse().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(3)).unwrap();
        let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        let messages: [&[u8]; 6] = [
            b"GET /v1/pods HTTP/1.1\r\nHost: a\r\n\r\n",
            &noise,
            // TLS records: one of the largest length that never comes, one that is too long, an alert, a hello cut short.
            b"\x16\x03\x01\x40\x00",
            b"\x16\x03\x01\xff\xff\x01\x00\x00",
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        ];
        for message in messages {
            let mut stream = connect();
            // The other end may well have hung up.
            let _ = stream.write_all(message);
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 100, "an alert at most: {answer:?}");
        }
        // Callers who say nothing.
        Ok((0..60).map(|_| connect()).collect::<Vec<_>>())
    };
    let kept = traces::in_network_of(traces::holder(&lab, "client"), on_lan).unwrap();
    assert_eq!(hosts(&lab, "b"), [("a".into(), true), ("b".into(), true)], "others are served meanwhile");
    assert_eq!(lab.json("a", &["ls"]), json!([]));
    eventually("silent callers are shown out", Duration::from_secs(25), || descriptors() <= at_first + 3);
    drop(kept);
    assert_eq!(pid_of(&lab, "a"), first);
    assert!(!lab.log("a").contains("panicked"), "{}", lab.log("a"));
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "a")), "");
}

#[test]
fn nonsense_on_the_api_socket_disturbs_nobody() {
    let lab = Lab::up(1);
    let root = rootfs("busybox");
    lab.ok("a", &["run", "--name", "web", "--rootfs", &root, "--", "sleep", "1000"]);
    let first = pid_of(&lab, "a");
    let socket = lab.dir().join("a/podd.sock");
    let send = |text: &[u8]| -> String {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let request = |method: &str, path: &str, body: &str| {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n");
        send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
    };
    let deep = format!("{{\"spec\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (method, path, body, status) in [
        ("GET", "/v1/nope", "", 404),
        ("GET", "/", "", 404),
        ("GET", "/v1/pods/nosuch", "", 404),
        ("GET", "/v1/pods/..%2f..%2fetc%2fpasswd", "", 404),
        ("GET", "/v1/pods/web%00/logs", "", 404),
        ("DELETE", "/v1/version", "", 405),
        ("POST", "/v1/pods", "{", 400),
        ("POST", "/v1/pods", "", 400),
        ("POST", "/v1/pods", "{\"spec\": 3, \"start\": true}", 400),
        ("POST", "/v1/pods", deep.as_str(), 400),
        ("POST", "/v1/pods/web/kill", "{\"signal\": 999}", 400),
        ("POST", "/v1/pods/web/kill", "{\"signal\": \"TERM\"}", 400),
        ("POST", "/v1/pods/web/exec", "{\"command\": []}", 400),
        ("DELETE", "/v1/pods/web?force=perhaps", "", 400),
        ("DELETE", "/v1/pods/web", "", 409),
        ("GET", "/v1/pods/web/logs?tail=-1", "", 400),
        ("POST", "/v1/host/invite", "{\"name\": \"../x\", \"valid_s\": 60}", 400),
    ] {
        let answer = request(method, path, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {path} {}: {answer}",
            &body[..body.len().min(60)]
        );
        let text = answer.split("\r\n\r\n").nth(1).unwrap();
        let error: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{method} {path}: {e}: {answer}"));
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
    }
    let noise: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 22) as u8).collect();
    send(&noise);
    send(format!("GET /v1/pods HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    send(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    send(b"POST /v1/pods HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{");
    send(b"POST /v1/pods HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n");
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(lab.state("a", "web").as_deref(), Some("running"));
    drop(silent);
    assert_eq!(pid_of(&lab, "a"), first, "the same podd");
    assert!(!lab.log("a").contains("panicked"), "{}", lab.log("a"));
}

#[test]
fn doctor_judges_a_host_and_names_cures() {
    let lab = Lab::up(1);
    let answer = lab.podctl("a", &["--json", "doctor"]);
    let checks: Value = serde_json::from_str(&answer.out).unwrap();
    let checks = checks.as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
    for wanted in [
        "kernel",
        "criu",
        "cgroups",
        "freezer",
        "open-files",
        "pipe-max-size",
        "run-tmpfs",
        "clock",
        "clock-sync",
        "disk",
        "memory",
        "overlay",
        "idmapped-mounts",
    ] {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
    for check in checks {
        assert!(!check["fact"].as_str().unwrap().is_empty(), "{check}");
        assert_eq!(check["verdict"] == "ok", check["cure"].is_null(), "a cure for each that is not ok: {check}");
    }
    let failed = checks.iter().any(|c| c["verdict"] == "fail");
    assert_eq!(answer.code, i32::from(failed), "{answer:?}");
    let table = lab.podctl("a", &["doctor"]);
    assert_eq!(table.code, answer.code);
    assert!(names.iter().all(|n| table.out.lines().any(|l| l.starts_with(n))), "{}", table.out);
    // A host without CRIU is not fit.
    lab.script(&["kill", "a"]).must();
    let config = lab.dir().join("a/podd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let line = text.lines().find(|l| l.starts_with("criu = ")).unwrap().to_owned();
    fs::write(&config, text.replace(&line, "criu = \"/no/criu\"")).unwrap();
    lab.script(&["start", "a"]).must();
    let unfit = lab.podctl("a", &["--json", "doctor"]);
    let checks: Value = serde_json::from_str(&unfit.out).unwrap();
    let criu = checks.as_array().unwrap().iter().find(|c| c["name"] == "criu").unwrap();
    assert_eq!((unfit.code, &criu["verdict"], &criu["cure"]), (1, &json!("fail"), &json!("run scripts/setup")));
}

fn pid_of(lab: &Lab, host: &str) -> i32 {
    fs::read_to_string(lab.dir().join(host).join("podd.pid")).unwrap().trim().parse().unwrap()
}
