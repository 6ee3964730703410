//! What pods may count on: `[baseline]` of podd.toml, and what runtimes in a pod make of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tests::Lab;
use tests::lab::{eventually, rootfs, run};

const SOON: Duration = Duration::from_secs(10);
/// The dynamic linker of the rootfs tells what it made of processor and environment.
const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Restarts podd of a host with this baseline.
fn set_baseline(lab: &Lab, host: &str, baseline: &str) {
    let path = lab.dir().join(host).join("podd.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split("\n[baseline]").next().unwrap();
    let mut file = fs::File::create(&path).unwrap();
    writeln!(file, "{}\n[baseline]\n{baseline}", before.trim_end()).unwrap();
    lab.script(&["kill", host]).must();
    lab.script(&["start", host]).must();
}

/// A pod whose program says in its log what the C library found, and stays.
fn pod(lab: &Lab, name: &str, flags: &[&str]) {
    let root = rootfs("redis");
    let mut words = vec!["run", "--name", name, "--rootfs", &root];
    words.extend(flags);
    let script = format!("env; {LINKER} --help; {LINKER} --list-diagnostics; echo ready; exec sleep 1000");
    words.extend(["--", "sh", "-c", &script]);
    lab.ok("a", &words);
    until_ready(lab, "a", name, 1);
}

fn until_ready(lab: &Lab, host: &str, name: &str, runs: usize) {
    eventually(&format!("{name} has said all"), SOON, || {
        lab.ok(host, &["logs", name]).matches("ready\n").count() == runs
    });
}

fn relies_on(lab: &Lab, host: &str, name: &str) -> Value {
    lab.json(host, &["inspect", name])[0]["relies_on"].clone()
}

/// The value of a variable in the output of `env`.
fn variable<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn exec(lab: &Lab, host: &str, name: &str, command: &[&str]) -> String {
    let mut words = vec!["exec", name, "--"];
    words.extend(command);
    lab.ok(host, &words)
}

const HOLDING: [&str; 4] = ["GLIBC_TUNABLES", "GODEBUG", "LD_BIND_NOW", "OPENSSL_ia32cap"];

#[test]
fn the_c_library_of_a_pod_keeps_to_the_baseline() {
    let lab = Lab::up(2);
    // By default a pod may use all that the host has, and no restartable sequences.
    pod(&lab, "free", &[]);
    let free = lab.ok("a", &["logs", "free"]);
    assert_eq!(HOLDING.map(|name| variable(&free, name)), [Some("glibc.pthread.rseq=0"), None, None, None]);
    let relies = relies_on(&lab, "a", "free");
    assert_eq!((&relies["kernel"], &relies["cpu"], &relies["own"]), (&json!("6.1"), &Value::Null, &json!([])));
    assert!(relies["born"]["flags"].as_array().unwrap().contains(&json!("sse2")), "{relies}");

    set_baseline(&lab, "a", "cpu = \"x86-64-v1\"");
    pod(&lab, "held", &[]);
    let held = lab.ok("a", &["logs", "held"]);
    // Every processor on which this test can run has more than the first level.
    assert!(free.contains("x86-64-v2 (supported, searched)"), "{free}");
    assert!(held.contains("x86-64-v2\n") && !held.contains("x86-64-v2 (supported"), "{held}");
    // With this the dynamic linker saves registers as any processor can.
    assert!(held.contains("cpu_features.xsave_state_size=0x0\n"), "{held}");
    // And memmove uses no AVX, which it would by this word alone.
    assert!(held.contains("preferred.AVX_Fast_Unaligned_Load=0x0\n"), "{held}");
    assert!(HOLDING.iter().all(|name| variable(&held, name).is_some()), "{held}");
    // Sessions and the pods of before get what their pod was started with.
    for (name, said) in [("held", &held), ("free", &free)] {
        let session = exec(&lab, "a", name, &["env"]);
        assert_eq!(HOLDING.map(|v| variable(&session, v)), HOLDING.map(|v| variable(said, v)), "{name}");
    }
    assert!(!exec(&lab, "a", "held", &[LINKER, "--help"]).contains("x86-64-v2 (supported"));
    let words = lab.ok("a", &["inspect", "held"]);
    assert!(words.contains("relies on:      kernel 6.1 or later\nrelies on:      processor x86-64-v1\n"), "{words}");
    assert_eq!(relies_on(&lab, "a", "held")["cpu"]["name"], "x86-64-v1");

    // It counts on the same wherever it goes, until it starts anew there.
    assert!(lab.ok("a", &["host", "ls"]).contains("6.1 x86-64-v1"));
    assert!(lab.podctl("b", &["doctor"]).out.contains("but on a: 6.1 and x86-64-v1"));
    lab.ok("a", &["migrate", "held", "--to", "b"]);
    assert_eq!(relies_on(&lab, "b", "held")["cpu"]["name"], "x86-64-v1");
    assert_eq!(variable(&exec(&lab, "b", "held", &["env"]), "GODEBUG"), variable(&held, "GODEBUG"));
    // An image knows it, too.
    let image = lab.dir().join("b/held.img").display().to_string();
    lab.ok("b", &["checkpoint", "held", "-o", &image]);
    lab.ok("b", &["rm", "held"]);
    lab.ok("b", &["restore", &image]);
    assert_eq!(relies_on(&lab, "b", "held")["cpu"]["name"], "x86-64-v1");
    lab.ok("b", &["stop", "held"]);
    lab.ok("b", &["start", "held"]);
    until_ready(&lab, "b", "held", 2);
    assert_eq!(relies_on(&lab, "b", "held")["cpu"], Value::Null);
    assert_eq!(variable(&exec(&lab, "b", "held", &["env"]), "GODEBUG"), None);
}

#[test]
fn what_the_user_sets_is_joined_and_wins() {
    let lab = Lab::up(1);
    set_baseline(&lab, "a", "cpu = \"x86-64-v1\"");
    pod(&lab, "joined", &["-e", "GLIBC_TUNABLES=glibc.malloc.arena_max=2", "-e", "GODEBUG=gctrace=1"]);
    let said = lab.ok("a", &["logs", "joined"]);
    assert!(variable(&said, "GLIBC_TUNABLES").unwrap().ends_with(":glibc.malloc.arena_max=2"), "{said}");
    assert!(variable(&said, "GODEBUG").unwrap().ends_with(",gctrace=1"), "{said}");
    assert_eq!(relies_on(&lab, "a", "joined")["own"], json!([]));
    pod(&lab, "own", &["-e", "GODEBUG=cpu.avx2=on", "-e", "LD_BIND_NOW="]);
    let said = lab.ok("a", &["logs", "own"]);
    assert_eq!([variable(&said, "GODEBUG"), variable(&said, "LD_BIND_NOW")], [Some("cpu.avx2=on"), Some("")]);
    assert_eq!(relies_on(&lab, "a", "own")["own"], json!(["LD_BIND_NOW", "GODEBUG (cpu.*)"]));
    let words = lab.ok("a", &["inspect", "own"]);
    assert!(
        words.contains("not held to x86-64-v1, as its own environment sets LD_BIND_NOW, GODEBUG (cpu.*)"),
        "{words}"
    );
}

#[test]
fn a_file_lists_what_all_hosts_have() {
    let lab = Lab::up(2);
    let list = lab.ok("a", &["host", "cpu", "--fleet"]);
    assert!(list.starts_with("# Features of the processors of a, b (at least x86-64-"), "{list}");
    let names: Vec<&str> = list.lines().skip(1).collect();
    assert!(names.contains(&"sse2") && !names.contains(&"constant_tsc"), "{list}");
    assert_eq!(lab.json("a", &["host", "cpu"])["features"], json!(names), "hosts of a lab share their processor");
    let file = lab.dir().join("a/cpu");
    fs::write(&file, &list).unwrap();
    set_baseline(&lab, "a", &format!("cpu = \"{}\"", file.display()));
    pod(&lab, "held", &[]);
    assert_eq!(relies_on(&lab, "a", "held")["cpu"]["features"], json!(names));
    // Nothing that this processor has is withheld.
    let said = lab.ok("a", &["logs", "held"]);
    let active = |said: &str| -> Vec<String> {
        said.lines().filter(|l| l.contains("].active[") || l.contains("subdirs_active")).map(str::to_owned).collect()
    };
    assert_eq!(active(&said), active(&run(lab.on("a", &[LINKER, "--list-diagnostics"])).must().out));
    // Without an answer from each, there is no list.
    lab.script(&["kill", "b"]).must();
    let refused = lab.podctl("a", &["host", "cpu", "--fleet"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""), "{refused:?}");
    assert!(refused.err.starts_with("podctl: b: "), "{refused:?}");
}

#[test]
fn a_pod_for_newer_kernels_may_use_what_they_have() {
    let lab = Lab::up(2);
    for host in ["a", "b"] {
        set_baseline(&lab, host, "kernel = \"6.12\"");
    }
    pod(&lab, "new", &[]);
    let said = lab.ok("a", &["logs", "new"]);
    let kernel = relies_on(&lab, "a", "new")["kernel"].clone();
    // On an older kernel a host promises no more than that one has.
    let expected = if kernel == "6.12" { None } else { Some("glibc.pthread.rseq=0") };
    assert_eq!(variable(&said, "GLIBC_TUNABLES"), expected, "{kernel}");
    lab.ok("a", &["migrate", "new", "--to", "b"]);
    assert_eq!(exec(&lab, "b", "new", &["echo", "well"]), "well\n");
    lab.ok("b", &["migrate", "new", "--to", "a"]);
    assert_eq!(relies_on(&lab, "a", "new")["kernel"], kernel);
}
