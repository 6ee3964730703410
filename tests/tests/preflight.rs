//! Preflight's rules, seen firing against real pods; each refusal names the rule, the fact and the cure, before anything
//! is frozen. (Nested namespaces, io_uring, perf and BPF cannot be made inside a pod at all: see `isolation.rs`. What
//! the rules make of them is tested with made-up facts in `checkpoint::compat`.)
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::lab::{eventually, rootfs, run};
use tests::{Lab, traces};

const SOON: Duration = Duration::from_secs(10);

#[track_caller]
fn pod(lab: &Lab, host: &str, name: &str, root: &str, flags: &[&str], command: &[&str]) {
    let mut words = vec!["run", "--name", name, "--rootfs", root];
    words.extend(flags);
    words.push("--");
    words.extend(command);
    lab.ok(host, &words);
    // Until then it is a second process of its init's.
    eventually("its program runs", SOON, || {
        let top = lab.ok(host, &["top", name]);
        top.matches("/.podd/init ").count() == 1 && top.lines().count() > 2
    });
}

/// The findings for a move of the pod from a to b, and the exit code.
fn findings(lab: &Lab, pod: &str) -> (Vec<Value>, i32) {
    let answer = lab.podctl("a", &["--json", "preflight", pod, "--to", "b"]);
    let list: Value = serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    (list.as_array().unwrap().clone(), answer.code)
}

fn rule<'a>(findings: &'a [Value], name: &str) -> &'a Value {
    findings.iter().find(|f| f["rule"] == name).unwrap_or_else(|| panic!("no rule {name}: {findings:#?}"))
}

/// Every rule that says no, in their order.
fn refusing(findings: &[Value]) -> Vec<&str> {
    findings.iter().filter(|f| f["verdict"] == "no").map(|f| f["rule"].as_str().unwrap()).collect()
}

/// These rules and no others say no; a migration is refused for them, and the pod goes on as if nobody had asked.
#[track_caller]
fn refused(lab: &Lab, pod: &str, rules: &[&str], fact: &str) {
    let look = || [traces::settled(lab, "a"), traces::settled(lab, "b")].concat();
    let before = look();
    let (found, code) = findings(lab, pod);
    assert_eq!(refusing(&found), rules, "{found:#?}");
    assert_eq!(code, 3);
    let finding = rule(&found, rules[0]);
    assert!(finding["fact"].as_str().unwrap().contains(fact), "{finding}");
    assert!(finding["cure"].as_str().is_some_and(|c| !c.is_empty()), "{finding}");
    let answer = lab.podctl("a", &["migrate", pod, "--to", "b"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    for name in rules {
        assert!(answer.err.contains(&format!("{name}: ")) && answer.err.contains("cure: "), "{answer:?}");
    }
    assert_eq!(lab.state("a", pod).as_deref(), Some("running"));
    assert_eq!(traces::difference(&before, &look()), "");
}

#[track_caller]
fn goes(lab: &Lab, pod: &str) {
    let (found, code) = findings(lab, pod);
    assert_eq!((refusing(&found), code), (vec![], 0), "{found:#?}");
}

fn session(lab: &Lab, flags: &[&str], pod: &str, seconds: &str) -> Child {
    let mut words = vec!["exec"];
    words.extend(flags);
    words.extend([pod, "--", "sleep", seconds]);
    let child = lab.podctl_command("a", &words).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    eventually("the session is there", SOON, || lab.ok("a", &["top", pod]).contains(&format!("sleep {seconds}")));
    child
}

fn end(lab: &Lab, mut session: Child, pod: &str, seconds: &str) {
    session.kill().unwrap();
    session.wait().unwrap();
    eventually("the session is over", SOON, || !lab.ok("a", &["top", pod]).contains(&format!("sleep {seconds}")));
}

#[test]
fn a_sound_pod_may_go_and_every_rule_says_so() {
    let lab = Lab::up(2);
    pod(&lab, "a", "web", &rootfs("busybox"), &["--ip", "10.77.1.1/16", "--memory", "64M"], &["sleep", "1000"]);
    goes(&lab, "web");
    let (found, _) = findings(&lab, "web");
    let mut names: Vec<&str> = found.iter().map(|f| f["rule"].as_str().unwrap()).collect();
    for wanted in [
        "criu-round-trip",
        "kernel-direction",
        "cpu-features",
        "fd-count",
        "rlimits",
        "io-uring",
        "mptcp",
        "memfd-secret",
        "userfaultfd",
        "nested-namespaces",
        "exec-sessions",
        "unix-peers",
        "devices",
        "ghost-files",
        "name-conflict",
        "address-conflict",
        "pids",
        "memory",
        "disk",
        "filesystem-features",
    ] {
        assert!(names.iter().any(|n| n.starts_with(wanted)), "{wanted} is not in {names:?}");
    }
    for finding in &found {
        assert!(["go", "go-with"].contains(&finding["verdict"].as_str().unwrap()), "{finding}");
        assert!(!finding["fact"].as_str().unwrap().is_empty(), "{finding}");
        assert_eq!(finding["verdict"] == "go", finding["cure"].is_null(), "{finding}");
    }
    let table = lab.ok("a", &["preflight", "web", "--to", "b"]);
    assert!(table.starts_with("RULE"), "{table}");
    assert_eq!(table.lines().count(), found.len() + 1);
    for (line, finding) in table.lines().skip(1).zip(&found) {
        assert!(line.starts_with(finding["rule"].as_str().unwrap()), "{line}");
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    // For a checkpoint here, what is about a target says nothing.
    let here = lab.json("a", &["preflight", "web"]);
    assert!(here.as_array().unwrap().len() < count);
    assert!(!here.as_array().unwrap().iter().any(|f| f["rule"] == "name-conflict"), "{here}");
}

#[test]
fn exec_sessions_hold_a_pod_back() {
    let lab = Lab::up(2);
    pod(&lab, "a", "web", &rootfs("busybox"), &[], &["sleep", "1000"]);
    let plain = session(&lab, &[], "web", "501");
    refused(&lab, "web", &["exec-sessions"], "sleep");
    let frozen = lab.podctl("a", &["suspend", "web"]);
    assert_eq!((frozen.code, lab.state("a", "web").as_deref()), (3, Some("running")), "{frozen:?}");
    end(&lab, plain, "web", "501");
    goes(&lab, "web");
    let terminal = session(&lab, &["-t"], "web", "502");
    let (found, _) = findings(&lab, "web");
    assert_eq!(rule(&found, "exec-sessions")["verdict"], "no", "{found:#?}");
    end(&lab, terminal, "web", "502");
    lab.ok("a", &["migrate", "web", "--to", "b"]);
}

#[test]
fn files_that_cannot_travel() {
    let lab = Lab::up(2);
    // Its blocks are taken, but never written: CRIU leaves holes out, so that a sparse file is never too large.
    let script =
        "exec 3>/tmp/old; fallocate -l 300M /tmp/old; rm /tmp/old; mkfifo /go; read go </go; exec 3>&-; sleep 1000";
    pod(&lab, "a", "ghost", &rootfs("busybox"), &[], &["sh", "-c", script]);
    eventually("the file is gone", SOON, || lab.podctl("a", &["exec", "ghost", "--", "ls", "/go"]).code == 0);
    refused(&lab, "ghost", &["ghost-files"], "above the limit of 256.0 MiB: /tmp/old (300.0 MiB)");
    lab.ok("a", &["exec", "ghost", "--", "sh", "-c", "echo >/go"]);
    eventually("the file is closed", SOON, || findings(&lab, "ghost").1 == 0);
    lab.ok("a", &["migrate", "ghost", "--to", "b"]);
    // Its name is gone, another one remains.
    let script = "exec 3>/tmp/new; ln /tmp/new /tmp/kept; rm /tmp/new; mkfifo /go; read go </go; exec 3>&-; sleep 1000";
    pod(&lab, "a", "linked", &rootfs("busybox"), &[], &["sh", "-c", script]);
    eventually("it waits", SOON, || lab.podctl("a", &["exec", "linked", "--", "ls", "/go"]).code == 0);
    refused(&lab, "linked", &["unlinked-files"], "/tmp/new");
    lab.ok("a", &["exec", "linked", "--", "sh", "-c", "echo >/go"]);
    eventually("the file is closed", SOON, || findings(&lab, "linked").1 == 0);
    lab.ok("a", &["migrate", "linked", "--to", "b"]);
}

#[test]
fn what_the_target_has_already() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let sleep = ["sleep", "1000"];
    pod(&lab, "a", "web", &root, &["--ip", "10.77.1.1/16", "--ip", "fd77::1:1/64"], &sleep);
    pod(&lab, "b", "web", &root, &[], &sleep);
    refused(&lab, "web", &["name-conflict"], "web");
    lab.ok("b", &["rm", "-f", "web"]);
    goes(&lab, "web");
    pod(&lab, "b", "other", &root, &["--ip", "fd77::1:1/64"], &sleep);
    refused(&lab, "web", &["address-conflict"], "fd77::1:1");
    lab.ok("b", &["rm", "-f", "other"]);
}

#[test]
fn what_the_target_lacks() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    run(lab.on("a", &["mount", "-t", "tmpfs", "tmpfs", &path])).must();
    let data = format!("{path}/data");
    run(lab.on("a", &["mkdir", "-m", "777", &data])).must();
    pod(&lab, "a", "web", &root, &["--volume", &format!("{data}:/data")], &["sleep", "1000"]);
    refused(&lab, "web", &["volumes"], &data);
    fs::create_dir(&data).unwrap();
    goes(&lab, "web");
    lab.ok("a", &["migrate", "web", "--to", "b"]);
    // More memory than the target will ever have: it may go, with a word of warning.
    pod(&lab, "a", "big", &root, &["--memory", "100T"], &["sleep", "1000"]);
    let (found, code) = findings(&lab, "big");
    let limit = rule(&found, "memory-limit");
    assert_eq!((&limit["verdict"], code), (&Value::from("go-with"), 0), "{limit}");
}

#[test]
fn ties_to_the_host() {
    let lab = Lab::up(2);
    let root = rootfs("shell");
    let folder = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let accepting = listener.try_clone().unwrap();
    let accepted = std::thread::spawn(move || accepting.accept().unwrap());
    fs::set_permissions(folder.path().join("socket"), fs::Permissions::from_mode(0o777)).unwrap();
    let volume = format!("{}:/host", folder.path().display());
    let script = "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.connect('/host/socket')\nprint('connected', flush=True)\ntime.sleep(1000)";
    pod(&lab, "a", "tied", &root, &["--volume", &volume], &["python3", "-c", script]);
    eventually("it is connected", SOON, || lab.ok("a", &["logs", "tied"]).contains("connected"));
    let connection = accepted.join().unwrap();
    refused(&lab, "tied", &["unix-peers"], "python3");
    drop((connection, listener));
    // Locks in a volume are taken anew there: allowed, with a word of warning.
    let script = "import fcntl, time\nf = open('/host/lock', 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint('locked', flush=True)\ntime.sleep(1000)";
    pod(&lab, "a", "locks", &root, &["--volume", &volume], &["python3", "-c", script]);
    eventually("it has locked", SOON, || lab.ok("a", &["logs", "locks"]).contains("locked"));
    let (found, code) = findings(&lab, "locks");
    assert_eq!((&rule(&found, "file-locks")["verdict"], code), (&Value::from("go-with"), 0), "{found:#?}");
}

/// Whatever of this the kernel lets a pod make, a rule must know.
#[test]
fn sockets_and_descriptors_that_criu_refuses() {
    let lab = Lab::up(2);
    let root = rootfs("shell");
    let script = "\
import socket, time
try:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    s.bind(('0.0.0.0', 5000)); s.listen()
    print('made', flush=True)
except OSError as e:
    print('not made', e, flush=True)
time.sleep(1000)";
    pod(&lab, "a", "multipath", &root, &["--ip", "10.77.1.1/16"], &["python3", "-c", script]);
    eventually("it has tried", SOON, || lab.ok("a", &["logs", "multipath"]).contains("made"));
    match lab.ok("a", &["logs", "multipath"]).trim() {
        "made" => refused(&lab, "multipath", &["mptcp"], "python3"),
        // This kernel has none, or the pod's filter denies it: then nothing is in the way.
        _ => goes(&lab, "multipath"),
    }
    let script = "import os, time\nos.pipe2(os.O_DIRECT)\nprint('made', flush=True)\ntime.sleep(1000)";
    pod(&lab, "a", "packets", &root, &[], &["python3", "-c", script]);
    eventually("it has one", SOON, || lab.ok("a", &["logs", "packets"]).contains("made"));
    refused(&lab, "packets", &["packet-pipes"], "python3");
    // A descriptor so high that CRIU, with the limits that it has here, could not restore the process.
    let script = "\
import os, resource, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.dup2(1, most - 1)
print('high', most - 1, flush=True)
time.sleep(1000)";
    pod(&lab, "a", "high", &root, &[], &["python3", "-c", script]);
    eventually("it has one", SOON, || lab.ok("a", &["logs", "high"]).contains("high"));
    refused(&lab, "high", &["fd-count"], "python3");
}
