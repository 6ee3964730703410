//! Pods and hosts on real kernels of different ages, in emulated machines: `scripts/vm test`. Emulation takes several
//! times as long as a real machine, so nothing here asserts how long something takes.

use serde_json::Value;
use tests::lab::{binary, eventually};
use tests::machine::Lab;
use tests::machine::archive::Archive;
use tests::machine::cache::Cache;
use tests::machine::harness::Counter;
use tests::machine::kernels::{self, Package};
use tests::machine::version;
use tests::workload;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const OLD: &str = "6.1";
const NEW: &str = "7.x";
/// A podd that stands at a recorded step for this long stands there until its machine loses its power, ms.
const FOR_EVER: u32 = 600_000;
/// A move whose machine lost its power is settled after this long at most. Emulated.
const SETTLED: Duration = Duration::from_secs(150);

/// A redis pod with a data set; the digest of what it holds, beside the counter's key.
fn redis(lab: &Lab, host: &str, name: &str, address: &str) -> String {
    let cidr = format!("{address}/16");
    let server =
        ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--enable-debug-command", "yes"];
    let mut arguments = vec!["run", "--name", name, "--rootfs", "/srv/rootfs/redis", "--ip", &cidr, "--"];
    arguments.extend(server);
    lab.ok(host, &arguments);
    eventually("redis answers", Duration::from_secs(60), || cli(lab, host, name, &["ping"]).contains("PONG"));
    cli(lab, host, name, &["debug", "populate", "20000", "key", "1000"]);
    digest(lab, host, name)
}

fn cli(lab: &Lab, host: &str, pod: &str, arguments: &[&str]) -> String {
    let mut all = vec!["exec", pod, "--", "redis-cli"];
    all.extend(arguments);
    lab.podctl(host, &all).out.trim().to_owned()
}

/// Of some of the values: all of them would take long under emulation.
fn digest(lab: &Lab, host: &str, pod: &str) -> String {
    let keys: Vec<String> = (0..20000).step_by(500).map(|i| format!("key:{i}")).collect();
    let mut arguments = vec!["debug", "digest-value"];
    arguments.extend(keys.iter().map(String::as_str));
    let digest = cli(lab, host, pod, &arguments);
    assert!(digest.lines().count() == keys.len() && !digest.contains("0000000000000000"), "{digest}");
    digest
}

/// Moves a pod, as preflight says that it goes.
#[track_caller]
fn go(lab: &Lab, pod: &str, from: &str, to: &str) {
    let preflight = lab.podctl(from, &["preflight", pod, "--to", to]);
    assert_eq!(preflight.code, 0, "{preflight:?}");
    let report = lab.json(from, &["migrate", pod, "--to", to]);
    eprintln!("{pod} from {from} to {to}: {} ms", report["blackout_ms"]);
    assert_eq!(lab.state(to, pod).as_deref(), Some("running"));
    assert_eq!(lab.state(from, pod), None, "the source has forgotten it");
}

#[test]
fn a_pod_goes_to_the_newest_kernel_and_back_with_memory_and_connection() {
    let lab = Lab::with(&[("old", OLD), ("new", NEW)]);
    let before = redis(&lab, "old", "up", "10.78.1.5");
    let counter = Counter::start(&lab, "10.78.1.5");
    let rehearsed = lab.json("old", &["rehearse", "up", "--to", "new"]);
    eprintln!("rehearsed: {rehearsed}");
    assert_eq!((lab.state("old", "up").as_deref(), lab.state("new", "up")), (Some("running"), None));
    go(&lab, "up", "old", "new");
    assert_eq!(digest(&lab, "new", "up"), before);
    go(&lab, "up", "new", "old");
    assert_eq!(digest(&lab, "old", "up"), before);
    let counted = counter.finish();
    assert_eq!(counted.error, None, "the connection lasts");
    assert_eq!(counted.gaps, 0);
    assert!(counted.increments > 100, "{counted:?}");
    assert_eq!(
        cli(&lab, "old", "up", &["get", "n"]),
        counted.last.to_string(),
        "every acknowledged increment is there"
    );

    // One that was born on the newer kernel, and may use what the older one lacks.
    let before = redis(&lab, "new", "down", "10.78.1.6");
    let counter = Counter::start(&lab, "10.78.1.6");
    go(&lab, "down", "new", "old");
    assert_eq!(digest(&lab, "old", "down"), before);
    let counted = counter.finish();
    assert_eq!((counted.error, counted.gaps), (None, 0));

    // The newer kernel has pages that it may drop (since 6.11). Pods do without, as the older one could not restore them.
    let root = "/srv/rootfs/shell";
    assert_eq!(lab.exec("new", &["chroot", root, "python3", "-c", MAP_DROPPABLE]).must().out, "mapped\n");
    lab.ok("new", &["run", "--name", "asks", "--rootfs", root, "--", "sleep", "1000"]);
    assert_eq!(lab.ok("new", &["exec", "asks", "--", "python3", "-c", MAP_DROPPABLE]), "errno 22\n");
}

/// Asks for a page that the kernel may drop.
const MAP_DROPPABLE: &str = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
print('mapped' if libc.mmap(None, 4096, 3, 0x28, -1, 0) != -1 else f'errno {ctypes.get_errno()}')
";

/// Upwards and downwards, and also when they ask what time it is all the time, in code that each kernel brings along (vDSO).
#[test]
fn programs_that_ask_for_the_time_do_not_notice() {
    let lab = Lab::with(&[("old", OLD), ("new", NEW)]);
    let script = "for i in 1 2 3 4 5 6; do python3 -c 'import time\nwhile True: time.monotonic()' & done; wait";
    let script = script.replace("\\n", "\n");
    lab.ok("old", &["run", "--name", "time", "--rootfs", "/srv/rootfs/shell", "--", "sh", "-c", &script]);
    let alive = |host: &str| lab.ok(host, &["top", "time"]).matches("time.monotonic").count();
    eventually("all six run", Duration::from_secs(30), || alive("old") >= 6);
    let before = alive("old");
    for (from, to) in [("old", "new"), ("new", "old")].repeat(3) {
        go(&lab, "time", from, to);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(alive(to), before);
    }
}

/// A CRIU that says it cannot, and one that dies as soon as it has made a process: both are put in place of the real one, which
/// lies beside it.
const BROKEN: [&str; 2] = [
    "exit 1",
    r#"exec 3<&0; "$0.good" "$@" <&3 3<&- &
       while [ -d /proc/$! ] && [ -z "$(cat /proc/$!/task/$!/children)" ]; do :; done; kill -9 $!; wait $!"#,
];

/// Upwards and downwards, a pod whose restore fails runs on where it was.
fn what_cannot_be_restored_stays(lab: &Lab, pod: &str, from: &str, to: &str) {
    let criu = "/usr/local/libexec/podd/criu";
    // podd has tried it out already, and believes in it.
    lab.ok(from, &["preflight", pod, "--to", to]);
    lab.exec(to, &["mv", criu, &format!("{criu}.good")]).must();
    for broken in BROKEN {
        let spoil = format!("printf '%s\n' '#!/bin/sh' \"$1\" >{criu} && chmod 755 {criu}");
        lab.exec(to, &["sh", "-c", &spoil, "sh", broken]).must();
        let failed = lab.podctl(from, &["migrate", pod, "--to", to]);
        assert!(failed.code != 0 && failed.err.contains("pod runs on here"), "{broken}: {failed:?}");
        assert_eq!((lab.state(from, pod).as_deref(), lab.state(to, pod)), (Some("running"), None));
    }
    lab.exec(to, &["mv", &format!("{criu}.good"), criu]).must();
    // Two failures on the same host are no quarantine.
    go(lab, pod, from, to);
}

/// A pod that may rely on a newer kernel is refused by an older one; one whose restore fails there runs on where it was.
#[test]
fn what_does_not_go_runs_on_where_it_is() {
    let lab = Lab::with(&[("old", OLD), ("new", NEW)]);
    lab.set_baseline("new", "kernel = \"6.12\"");
    let before = redis(&lab, "new", "late", "10.78.1.5");
    let counter = Counter::start(&lab, "10.78.1.5");
    let preflight = lab.podctl("new", &["--json", "preflight", "late", "--to", "old"]);
    let report: Value = serde_json::from_str(&preflight.out).expect("podctl --json prints JSON");
    let refusals: Vec<&Value> = report.as_array().into_iter().flatten().filter(|f| f["verdict"] == "no").collect();
    assert_eq!((preflight.code, refusals.len()), (3, 1), "{report}");
    assert_eq!(refusals[0]["rule"], "kernel-direction", "{report}");
    assert!(refusals[0]["fact"].as_str().is_some_and(|fact| fact.contains("6.12")), "{report}");
    let refused = lab.podctl("new", &["migrate", "late", "--to", "old"]);
    assert!(refused.code == 3 && refused.err.contains("kernel-direction"), "{refused:?}");
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps, digest(&lab, "new", "late")), (None, 0, before));

    let before = redis(&lab, "old", "pod", "10.78.1.6");
    let counter = Counter::start(&lab, "10.78.1.6");
    what_cannot_be_restored_stays(&lab, "pod", "old", "new");
    assert_eq!(digest(&lab, "new", "pod"), before);
    what_cannot_be_restored_stays(&lab, "pod", "new", "old");
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps, digest(&lab, "old", "pod")), (None, 0, before));
}

/// Asks the clock on the client and reads its own; the quickest of several answers. Prints both of its own clocks, that of
/// the client, and how long the answer took, in ns.
const READ_CLOCKS: &str = "
import socket, struct, time
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(5)
def ask():
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    asker.sendto(b'?', ('10.78.0.254', 3700))
    told = struct.unpack('<q', asker.recv(8))[0]
    after, boottime = (time.clock_gettime_ns(c) for c in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME))
    took = after - before
    return took, after - took // 2, boottime - took // 2, told
took, monotonic, boottime, told = min(ask() for _ in range(50))
print(monotonic, boottime, told, took)
";
/// How far a pod's clocks may be off after a move between emulated machines.
const OFF_NS: i64 = 50_000_000;

#[test]
fn clocks_of_a_pod_go_on_by_the_time_that_passed() {
    let lab = Lab::with(&[("old", OLD), ("new", NEW)]);
    let mut command = lab.client(&workload::helper("clock").to_string_lossy());
    let mut clock = command.arg("10.78.0.254:3700").stdin(Stdio::piped()).spawn().expect("a clock on the client");
    let shell =
        ["run", "--name", "pod", "--rootfs", "/srv/rootfs/shell", "--ip", "10.78.1.7/16", "--", "sleep", "9000"];
    lab.ok("old", &shell);
    let read = |host: &str| -> [i64; 4] {
        let text = lab.ok(host, &["exec", "pod", "--", "python3", "-c", READ_CLOCKS]);
        let numbers: Vec<i64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        numbers.try_into().expect("four numbers")
    };
    // The time of day is the host's, also if hosts do not agree about it.
    let today =
        |host: &str, command: &[&str]| lab.exec(host, command).must().out.trim().parse::<i64>().expect("seconds");
    lab.exec("new", &["sh", "-c", "date -s @$(($(date +%s) + 100))"]).must();
    let mut before = read("old");
    for (from, to) in [("old", "new"), ("new", "old")] {
        go(&lab, "pod", from, to);
        let now = read(to);
        let off = today(to, &["podctl", "exec", "pod", "--", "date", "+%s"]) - today(to, &["date", "+%s"]);
        assert!((-20..=0).contains(&off), "the pod's time of day is {off} s off its host's");
        let [monotonic, boottime, passed, _] = std::array::from_fn(|i| now[i] - before[i]);
        let unsure = (now[3] + before[3]) / 2;
        let off = [monotonic - passed, boottime - passed];
        eprintln!("{from} to {to}: of {passed} ns, the pod's clocks are off by {off:?}, give or take {unsure}");
        assert!(monotonic > 0 && boottime > 0);
        assert!(off.iter().all(|ns| ns.abs() < OFF_NS + unsure), "{off:?}");
        before = now;
    }
    drop(clock.stdin.take());
    clock.wait().expect("the clock ends");
}

/// What the rule about processors says of a move.
#[track_caller]
fn about_the_processor(lab: &Lab, pod: &str, from: &str, to: &str) -> (String, String) {
    let preflight = lab.podctl(from, &["--json", "preflight", pod, "--to", to]);
    let report: Value = serde_json::from_str(&preflight.out).expect("podctl --json prints JSON");
    let finding = report.as_array().and_then(|all| all.iter().find(|f| f["rule"] == "cpu-features")).expect("the rule");
    eprintln!("{pod} from {from} to {to}: {finding}");
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("fact"))
}

/// Bad input, and hosts that lack something: one sentence with its cure, and no machine.
#[test]
fn what_a_lab_cannot_do_it_says_in_a_sentence() {
    for (before, series, sentence, cure) in [
        (":", "9.9", "no kernel of series `9.9` is to be had; ", "choose one of 6.1, "),
        (":", "six", "no kernel of series `six` is to be had; ", "choose one of 6.1, "),
        ("mount -t tmpfs none /dev/net", OLD, "/dev/net/tun is missing", "(modprobe tun)"),
        ("PATH=/nowhere", OLD, "there is no qemu-system-x86_64 on this host; ", "apt-get install qemu-system-x86"),
        ("mount -t tmpfs -o size=16m none $PODD_VM", OLD, " has 16 MiB free and needs ", "set PODD_VM to another disk"),
    ] {
        let folder = tempfile::tempdir().expect("there is room");
        let script = format!("{before} && exec \"$0\" up m {series}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(binary("vm")).env("PODD_VM", folder.path());
        let run = command.output().expect("unshare runs");
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{before}: {said}");
        assert!(said.starts_with("vm: ") && said.trim().lines().count() == 1, "{said}");
        assert!(said.contains(sentence) && said.contains(cure), "{said}");
        assert!(!folder.path().join("m").exists(), "{before}: it left a machine");
    }
}

#[test]
fn a_pod_that_is_held_to_a_baseline_goes_to_an_older_processor() {
    let lab = Lab::new();
    lab.up_on("new", OLD, "Haswell-noTSX");
    lab.up_on("old", OLD, "Nehalem");
    assert!(lab.ok("new", &["host", "cpu"]).lines().any(|feature| feature == "avx2"));
    assert!(!lab.ok("old", &["host", "cpu"]).contains("avx"));
    let common = lab.ok("old", &["host", "cpu", "--fleet"]);
    assert!(common.starts_with("# Features of the processors of new, old (at least x86-64-v2).\n"), "{common}");

    // As it is by default, a pod may use all that it was started on.
    let before = redis(&lab, "new", "free", "10.78.1.5");
    let (verdict, fact) = about_the_processor(&lab, "free", "new", "old");
    assert!(verdict == "no" && fact.contains("lacks ") && fact.contains("avx2"), "{verdict}: {fact}");
    let refused = lab.podctl("new", &["migrate", "free", "--to", "old"]);
    assert!(refused.code == 3 && refused.err.contains("cpu-features: "), "{refused:?}");
    assert_eq!(digest(&lab, "new", "free"), before, "it runs on");
    lab.ok("new", &["rm", "-f", "free"]);

    lab.set_baseline("new", "cpu = \"x86-64-v2\"");
    let before = redis(&lab, "new", "held", "10.78.1.6");
    let (verdict, fact) = about_the_processor(&lab, "held", "new", "old");
    assert!(verdict == "go-with" && fact.starts_with("the pod is held to x86-64-v2, which the target has"), "{fact}");
    let counter = Counter::start(&lab, "10.78.1.6");
    eventually("the client counts", Duration::from_secs(30), || counted(&lab, "new", "held") > 50);
    go(&lab, "held", "new", "old");
    // Every function that it calls from now on is called on this processor.
    assert_eq!(digest(&lab, "old", "held"), before);
    let on_arrival = counted(&lab, "old", "held");
    eventually("the client goes on", Duration::from_secs(60), || counted(&lab, "old", "held") > on_arrival + 50);
    cli(&lab, "old", "held", &["config", "set", "maxmemory", "900mb"]);
    assert!(cli(&lab, "old", "held", &["info", "all"]).contains("maxmemory:943718400"));
    // It counts on the same here, and may go back.
    assert_eq!(about_the_processor(&lab, "held", "old", "new").0, "go");
    go(&lab, "held", "old", "new");
    assert_eq!(digest(&lab, "new", "held"), before);
    let counted_by_client = counter.finish();
    assert_eq!((counted_by_client.error.as_deref(), counted_by_client.gaps), (None, 0), "{counted_by_client:?}");
    assert_eq!(counted(&lab, "new", "held"), counted_by_client.last, "every acknowledged increment is there");

    // One that is born on the older processor goes to the newer one and back, too.
    let before = redis(&lab, "old", "up", "10.78.1.7");
    go(&lab, "up", "old", "new");
    let (verdict, fact) = about_the_processor(&lab, "up", "new", "old");
    assert!(verdict == "go-with" && fact.contains("what was started in it later may use"), "{verdict}: {fact}");
    go(&lab, "up", "new", "old");
    assert_eq!(digest(&lab, "old", "up"), before);
}

#[test]
fn installing_a_kernel_and_rebooting_changes_the_kernel() {
    let lab = Lab::new();
    let first = lab.up("a", OLD).kernel;
    assert!(first.starts_with("6.1."), "{first}");
    lab.exec("a", &["sh", "-c", "echo kept >/root/mark"]).must();
    // podd's own idea of the running kernel's package: dpkg in the machine knows it.
    lab.exec("a", &["dpkg-query", "-W", &format!("linux-image-{first}")]).must();
    let second = lab.reboot("a", Some("6.12")).kernel;
    assert!(second.starts_with("6.12."), "{second}");
    assert_eq!(lab.exec("a", &["cat", "/root/mark"]).must().out, "kept\n");
    assert!(lab.json("a", &["host", "ls"]).to_string().contains("\"a\""), "its place in the fleet is kept");
    assert_eq!(lab.reboot("a", None).kernel, second, "the installed kernel stays the default");
    assert_eq!(lab.reboot("a", Some(OLD)).kernel, first, "and back, to one that is installed already");
    // A package whose kernel lies elsewhere, by the machine's own dpkg.
    let third = lab.reboot("a", Some(NEW)).kernel;
    assert!(third.starts_with("7."), "{third}");
    // podd's work goes on after a reboot.
    redis(&lab, "a", "redis", "10.78.1.5");
}

/// What the status service says of the machine, all read anew; and podctl's exit code.
fn status(lab: &Lab) -> (Value, i32) {
    let run = lab.podctl("a", &["--json", "status", "a", "--refresh"]);
    let report: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{run:?}: {e}"));
    (report[0]["decision"].clone(), run.code)
}

/// Real packages of two kernels of one series in a signed repository, a real apt: the verdict before and after the security
/// team sends the newer one, with it held, after it is installed, and after the boot.
#[test]
fn the_status_follows_apt_and_the_kernel_that_runs() {
    let (lab, archive) = (Lab::new(), Archive::new(&Cache::open().expect("a cache")));
    let Archive { codename, older, newer, .. } = &archive;
    let security = archive.security();
    assert_eq!(lab.up_with("a", &older.kernel).kernel, older.release);
    // It looks by itself.
    lab.exec("a", &["sed", "-i", "s/watch = false/watch = true/", "/etc/podd/podd.toml"]).must();
    lab.configure("a", "");
    archive.stock(&lab, &["a"], &[older, newer]);
    archive.publish(&lab, &["a"], "Debian", codename, &[older]);
    let apt = |words: &[&str]| {
        let mut all = vec!["env", "DEBIAN_FRONTEND=noninteractive"];
        all.extend(words);
        lab.exec("a", &all).must()
    };
    apt(&["apt-get", "install", "-y", "linux-image-cloud-amd64"]);
    archive.advise(&lab, &["a"], &newer.version, "");

    // Nobody has said where security updates come from.
    let (decision, code) = status(&lab);
    assert_eq!((decision["verdict"].as_str(), code), (Some("unknown"), 12), "{decision:#}");
    assert!(decision.to_string().contains("no source of security updates"), "{decision:#}");
    // It is known then, and does not have yet what the advisory tells of.
    archive.publish(&lab, &["a"], "Debian-Security", &security, &[older]);
    let (decision, code) = status(&lab);
    assert_eq!((decision["verdict"].as_str(), code), (Some("unknown"), 12), "{decision:#}");
    assert!(decision.to_string().contains("apt does not bring linux"), "{decision:#}");
    assert_eq!(decision["exposures"].as_array().map_or(9, Vec::len), 0, "status is brief");
    let all = lab.json("a", &["advisories"]);
    assert_eq!((all[0]["id"].as_str(), all[0]["standing"].as_str()), (Some("CVE-2026-1"), Some("open")), "{all:#}");
    // It comes.
    archive.publish(&lab, &["a"], "Debian-Security", &security, &[newer]);
    let due = |what: &str| {
        let (decision, code) = status(&lab);
        let said =
            [&decision["verdict"], &decision["mechanism"], &decision["severity"]].map(|v| v.as_str().unwrap_or("-"));
        assert_eq!((said, code), (["wait", "evacuate", "high"], 10), "{what}: {decision:#}");
        decision["deadline"].as_str().expect("there is one").to_owned()
    };
    let deadline = due("it can be had");
    // Pods are told once something will be done, and that it is off.
    lab.ok("a", &["run", "--name", "told", "--rootfs", "/srv/rootfs/busybox", "--", "sleep", "1000"]);
    let told = |count: usize| {
        let text = lab.podctl("a", &["exec", "told", "--", "cat", "/run/podd/events.json"]).out;
        let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        assert!(told["events"].as_array().is_none_or(|e| e.iter().all(|e| e["kind"] == "evacuate")), "{text}");
        told["events"].as_array().is_some_and(|events| events.len() == count)
    };
    eventually("its owner may choose for some days", Duration::from_secs(60), || told(0));
    lab.ok("a", &["patch", "start-now"]);
    eventually("the pod is told", Duration::from_secs(60), || told(1));
    lab.ok("a", &["patch", "as-scheduled"]);
    eventually("the pod is told that it is off", Duration::from_secs(60), || told(0));
    let history = lab.ok("a", &["history"]);
    for part in ["the host is wait, was unknown, severity high", "told leaves for another"] {
        assert!(history.contains(part), "{part}: {history}");
    }
    let why = lab.podctl("a", &["why"]);
    assert!(why.out.contains("CVE-2026-1") && why.out.contains(&newer.version), "{why:?}");
    apt(&["apt-mark", "hold", "linux-image-cloud-amd64"]);
    let (decision, code) = status(&lab);
    assert_eq!((decision["verdict"].as_str(), code), (Some("blocked"), 13), "{decision:#}");
    assert!(decision["reason"].as_str().is_some_and(|reason| reason.contains("is held")), "{decision:#}");
    apt(&["apt-mark", "unhold", "linux-image-cloud-amd64"]);
    apt(&["apt-get", "install", "-y", "linux-image-cloud-amd64"]);
    lab.exec("a", &["test", "-e", &format!("/boot/vmlinuz-{}", newer.release)]).must();
    assert_eq!(due("it is installed, and does not run"), deadline, "counted from when it could be had");
    assert_eq!(lab.reboot("a", None).kernel, newer.release);
    let (decision, code) = status(&lab);
    assert_eq!((decision["verdict"].as_str(), code), (Some("current"), 0), "{decision:#}");
    assert_eq!(lab.json("a", &["advisories"]).as_array().map_or(9, Vec::len), 0);
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_nothing_else() {
    let lab = Lab::new();
    lab.up("a", OLD);
    lab.exec("a", &["sh", "-c", "echo flushed >/root/flushed && sync"]).must();
    lab.exec("a", &["sh", "-c", "echo pending >/root/pending"]).must();
    lab.powercut("a");
    assert!(!lab.room().runs("a"));
    lab.start("a");
    assert_eq!(lab.exec("a", &["cat", "/root/flushed"]).must().out, "flushed\n");
    assert_ne!(lab.exec("a", &["cat", "/root/pending"]).out, "pending\n", "it was in memory alone");
    // In the middle of installing a kernel: whichever is the default then, the machine starts.
    let kernel = tests::machine::kernels::fetch(lab.room().cache(), "6.12").expect("a kernel");
    lab.room().copy_in("a", &kernel.files, "/var/tmp").expect("it is copied");
    lab.exec("a", &["sh", "-c", "setsid dpkg -i /var/tmp/linux-*.deb >/dev/null 2>&1 </dev/null & sleep 4"]).must();
    lab.powercut("a");
    let kernel = lab.start("a").kernel;
    assert!(kernel.starts_with("6.1"), "{kernel}");
}

#[test]
fn a_machine_cut_off_the_lan_still_takes_commands() {
    let lab = Lab::with(&[("a", OLD), ("b", OLD)]);
    let reachable = |from: &str| lab.ok(from, &["host", "ls"]).contains(" reachable");
    assert!(reachable("a") && reachable("b"));
    lab.link("b", false);
    assert!(!reachable("a"));
    assert!(!reachable("b"), "it answers, over the other cable");
    lab.link("b", true);
    eventually("they see each other again", Duration::from_secs(30), || reachable("a"));
}

#[test]
fn commands_have_input_output_errors_and_a_code() {
    let lab = Lab::new();
    lab.up("a", OLD);
    let run = lab.exec("a", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (7, "out\n", "err\n"));
    let run = lab.exec("a", &["no-such-program"]);
    assert!(run.code == 127 && run.err.contains("no-such-program"), "{run:?}");
    assert_eq!(lab.exec("a", &["sh", "-c", "kill -9 $$"]).code, 128 + 9);
    // What is left in the background keeps nobody waiting.
    lab.exec("a", &["sh", "-c", "sleep 1000 & echo started"]).must();
    // Files in and out, by way of a folder.
    let scratch = tempfile::tempdir().expect("a folder");
    let own = std::env::current_exe().expect("a running program has a path");
    let name = own.file_name().expect("a name").to_string_lossy().into_owned();
    lab.room().copy_in("a", std::slice::from_ref(&own), "/root/in").expect("it is copied in");
    lab.room().copy_out("a", &[format!("/root/in/{name}")], scratch.path()).expect("it is copied out");
    assert!(std::fs::read(scratch.path().join(&name)).ok() == std::fs::read(&own).ok(), "the same");
    assert!(lab.room().copy_out("a", &["/nonexistent".to_owned()], scratch.path()).is_err());
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (input, mut out) = (std::io::Cursor::new(content.clone()), Vec::new());
    let code = lab.room().exec_with("a", &["cat"], input, &mut out, std::io::sink());
    assert!(code.is_ok_and(|code| code == 0) && out == content, "{} bytes came back", out.len());
}

/// Mirrors drop the versions that they had yesterday: another one of the series is taken.
#[test]
fn a_kernel_that_has_vanished_is_replaced() {
    let mut catalog = kernels::catalog(&Cache::open().expect("a cache")).expect("the mirrors say what they have");
    let of_series = |package: &&mut Package| version::series(&package.version).as_deref() == Some(OLD);
    let mut vanished = 0;
    for package in catalog.kernels.iter_mut().filter(of_series) {
        package.version = format!("6.1.{vanished}-1");
        vanished += 1;
    }
    assert!(vanished > 0, "{catalog:?}");
    let folder = tempfile::tempdir_in(Cache::open().expect("a cache").path("")).expect("a folder");
    let cache = Cache::at(folder.path().to_owned()).expect("a cache");
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(12 * 3600);
    let path = cache.path("kernels.json");
    std::fs::write(&path, serde_json::to_vec(&catalog).expect("it is JSON")).expect("it is written");
    let file = std::fs::File::options().write(true).open(&path).expect("it is there");
    file.set_modified(yesterday).expect("its time is set");
    let kernel = kernels::fetch(&cache, OLD).expect("there is another one");
    assert_eq!(kernel.series, OLD);
    assert!(!kernel.files.is_empty() && kernel.files.iter().all(|file| file.is_file()), "{kernel:?}");
}

/// A move from `old` to `new` under a counting client, in which a machine loses its power.
struct CutMove {
    lab: Lab,
    data: String,
    counter: Counter,
}

impl CutMove {
    /// Brings the move to the moment at which `podd` of `role` has recorded `step`, cuts the power of `dies`, and starts it
    /// again. A podd that is not to die goes on after `pause` ms.
    fn at(role: &str, step: &str, pause: u32, dies: &str) -> Self {
        let lab = Lab::with(&[("old", OLD), ("new", NEW)]);
        let data = redis(&lab, "old", "pod", "10.78.1.5");
        let counter = Counter::start(&lab, "10.78.1.5");
        eventually("the client counts", Duration::from_secs(30), || counted(&lab, "old", "pod") > 50);
        let host = if role == "source" { "old" } else { "new" };
        let fault = "echo \"$1\" >/run/podd/fault";
        lab.exec(host, &["sh", "-c", fault, "sh", &format!("{role} {step} pause {pause}")]).must();
        // In the background: the machine that it runs in may die.
        let mover = "(podctl migrate pod --to new >/run/said 2>&1; echo $? >/run/code) &";
        lab.exec("old", &["sh", "-c", mover]).must();
        eventually(&format!("{role} is at {step}"), Duration::from_secs(120), || {
            lab.exec(host, &["cat", "/run/podd/fault"]).out.trim().is_empty()
        });
        lab.powercut(dies);
        lab.start(dies);
        let cut = Self { lab, data, counter };
        if dies == "new" {
            eventually("podctl comes to an end", SETTLED, || {
                !cut.lab.exec("old", &["cat", "/run/code"]).out.is_empty()
            });
            let said = cut.lab.exec("old", &["cat", "/run/said", "/run/code"]).out;
            eprintln!("podctl migrate said: {said}");
        }
        cut
    }

    /// Waits until `podctl ls` and `podctl migrations` of both machines say this and nothing else, and that it stays so.
    /// States are the pod's, steps the last ones of the move.
    #[track_caller]
    fn settles(&self, old: (Option<&str>, &str), new: (Option<&str>, &str)) {
        let begun = Instant::now();
        let expected = [old, new].map(|(state, step)| (state.map(str::to_owned), Some(step.to_owned())));
        let mut seen = self.seen();
        while seen != expected {
            assert!(begun.elapsed() < SETTLED, "after {SETTLED:?} old and new say {seen:?}, not {expected:?}");
            self.nowhere_twice(&seen);
            std::thread::sleep(Duration::from_millis(500));
            seen = self.seen();
        }
        eprintln!("settled {:.1} s after both answered: {seen:?}", begun.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(self.seen(), expected, "and so it stays");
    }

    fn seen(&self) -> [(Option<String>, Option<String>); 2] {
        ["old", "new"].map(|host| {
            let moves = self.lab.json(host, &["migrations"]);
            let step = moves.as_array().and_then(|all| all.iter().find(|m| m["pod"] == "pod"));
            (self.lab.state(host, "pod"), step.and_then(|m| m["step"].as_str()).map(str::to_owned))
        })
    }

    fn nowhere_twice(&self, seen: &[(Option<String>, Option<String>); 2]) {
        assert!(!seen.iter().all(|(state, _)| state.as_deref() == Some("running")), "it runs twice: {seen:?}");
    }

    /// The pod's memory lives on `host`: its data, each acknowledged increment, and the client's connection.
    #[track_caller]
    fn nothing_is_lost(self, host: &str) {
        let before = counted(&self.lab, host, "pod");
        eventually("the client goes on", Duration::from_secs(60), || counted(&self.lab, host, "pod") > before + 20);
        let counter = self.counter.finish();
        assert_eq!((counter.error.as_deref(), counter.gaps), (None, 0), "{counter:?}");
        assert_eq!(counted(&self.lab, host, "pod"), counter.last, "every acknowledged increment is there");
        assert_eq!(digest(&self.lab, host, "pod"), self.data);
        eprintln!("{} increments, longest silence {:.0} ms", counter.increments, counter.longest_silence_ms);
    }

    /// The pod's memory is gone, `host` says so, and can start it anew.
    #[track_caller]
    fn it_can_be_started_anew(self, host: &str) {
        self.lab.ok(host, &["start", "pod"]);
        eventually("redis answers", Duration::from_secs(60), || {
            cli(&self.lab, host, "pod", &["ping"]).contains("PONG")
        });
        assert_eq!(cli(&self.lab, host, "pod", &["dbsize"]), "0", "it kept nothing on its disk");
        let counter = self.counter.finish();
        assert!(counter.error.is_some(), "a new redis knows nothing of the old one's connections: {counter:?}");
    }
}

/// What the counting client has come to, as the server knows it.
fn counted(lab: &Lab, host: &str, pod: &str) -> u64 {
    cli(lab, host, pod, &["get", "n"]).parse().unwrap_or(0)
}

#[test]
fn power_cut_of_the_source_before_the_handover_loses_the_memory_and_says_so() {
    let cut = CutMove::at("source", "freezing", FOR_EVER, "old");
    cut.settles((Some("lost"), "aborted"), (None, "discarded"));
    cut.it_can_be_started_anew("old");
}

#[test]
fn power_cut_of_the_source_after_the_handover_loses_nothing() {
    let cut = CutMove::at("source", "given", FOR_EVER, "old");
    cut.settles((None, "done"), (Some("running"), "running"));
    cut.nothing_is_lost("new");
}

#[test]
fn power_cut_of_the_target_while_it_holds_the_pod_loses_nothing() {
    let cut = CutMove::at("target", "held", FOR_EVER, "new");
    cut.settles((Some("running"), "aborted"), (None, "discarded"));
    cut.nothing_is_lost("old");
}

#[test]
fn power_cut_of_the_target_between_handover_and_commit_loses_nothing() {
    // The source is slow to say commit, and finds nobody to say it to.
    let cut = CutMove::at("source", "given", 8000, "new");
    cut.settles((Some("running"), "returned"), (None, "discarded"));
    cut.nothing_is_lost("old");
}

#[test]
fn power_cut_of_the_target_after_the_commit_loses_the_memory_and_nobody_goes_on_from_an_older_state() {
    let cut = CutMove::at("target", "committed", FOR_EVER, "new");
    cut.settles((None, "done"), (Some("lost"), "running"));
    cut.it_can_be_started_anew("new");
}
