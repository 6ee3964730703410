//! Two hundred moves back and forth: nothing grows in either podd, on either host, or in the pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::invariants::podd;
use tests::lab::{eventually, rootfs};
use tests::{Lab, traces};

const MOVES: u32 = 200;
/// By then caches are filled and the allocator has what it needs.
const WARM: u32 = 20;

/// What could grow.
#[derive(Debug)]
struct Size {
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    /// Of podd, in KiB.
    memory: u64,
    /// Of the host's state and runtime folders, in KiB.
    disk: u64,
    traces: Vec<String>,
}

fn size(lab: &Lab, host: &str) -> Size {
    let pid = podd(lab, host).expect("podd runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("podd runs");
    let field = |name: &str| -> u64 {
        let value = status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        value.expect("the kernel says so")
    };
    let mut descriptors = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("podd runs").flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            // Sockets and pipes by kind: their numbers differ.
            let kind = target.to_string_lossy().split(":[").next().unwrap_or_default().to_owned();
            *descriptors.entry(kind).or_default() += 1;
        }
    }
    let threads = usize::try_from(field("Threads:")).expect("a small number");
    let disk = folder_size(&lab.dir().join(host).join("state")) + folder_size(&traces::inside(lab, host, "/run/podd"));
    Size { descriptors, threads, memory: field("VmRSS:"), disk, traces: without_short_lived(traces::of(lab, host)) }
}

/// The pod's shell starts a `sleep` twenty times a second.
fn without_short_lived(mut traces: Vec<String>) -> Vec<String> {
    traces.retain(|line| line != "process sleep 0.05" && !line.starts_with("zombie"));
    traces
}

/// KiB that a folder occupies, with all below it.
fn folder_size(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = folder.symlink_metadata().map_or(0, |m| m.blocks() / 2);
    let below = fs::read_dir(folder).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
    own + below
        .iter()
        .map(|e| {
            if e.is_dir() && !e.is_symlink() {
                folder_size(e)
            } else {
                e.symlink_metadata().map_or(0, |m| m.blocks() / 2)
            }
        })
        .sum::<u64>()
}

/// The sizes once the last move's tasks have ended, and podd has no more threads than these.
fn at_rest(lab: &Lab, host: &str, threads: usize) -> Size {
    let mut last = size(lab, host);
    eventually("podd comes to rest", Duration::from_secs(30), || {
        // Blocking threads of the runtime end after 10 idle seconds; descriptors go with the last connection.
        std::thread::sleep(Duration::from_millis(500));
        let now = size(lab, host);
        let same = now.descriptors == last.descriptors && now.threads == last.threads && now.threads <= threads;
        last = now;
        same
    });
    last
}

#[test]
fn two_hundred_moves() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let script = "echo $$ >/tmp/pid; n=0; while :; do n=$((n+1)); echo $n >/tmp/n; sleep 0.05; done";
    lab.ok("a", &["run", "--name", "small", "--rootfs", &root, "--ip", "10.77.1.8/16", "--", "sh", "-c", script]);
    let count = |host: &str| -> u64 {
        let mut number = None;
        // The shell empties the file before it writes, and may not have come to it.
        eventually("the pod counts", Duration::from_secs(10), || {
            number = lab.podctl(host, &["exec", "small", "--", "cat", "/tmp/n"]).out.trim().parse().ok();
            number.is_some()
        });
        number.expect("a number")
    };
    // Mappings of the pod's processes.
    let mappings = |host: &str| -> usize {
        let text = lab.ok(host, &["exec", "small", "--", "sh", "-c", "cat /proc/1/maps /proc/$(cat /tmp/pid)/maps"]);
        text.lines().count()
    };
    let mut before = count("a");
    let born_with = mappings("a");
    let mut early = Vec::new();
    for number in 1..=MOVES {
        let (from, to) = if number % 2 == 1 { ("a", "b") } else { ("b", "a") };
        lab.ok(from, &["migrate", "small", "--to", to]);
        if number % 20 == 0 {
            let now = count(to);
            assert!(now > before, "the pod has stood still since {before}");
            before = now;
        }
        if number == WARM {
            early = ["a", "b"].map(|host| at_rest(&lab, host, 6)).into();
        }
    }
    for (host, early) in ["a", "b"].iter().zip(early) {
        let late = at_rest(&lab, host, early.threads);
        eprintln!(
            "{host}: memory {} to {} KiB, threads {} to {}, disk {} to {} KiB",
            early.memory, late.memory, early.threads, late.threads, early.disk, late.disk
        );
        assert_eq!(early.descriptors, late.descriptors, "descriptors of podd on {host}");
        assert!(
            late.memory * 100 <= early.memory * 120,
            "memory of podd on {host}: {} to {} KiB",
            early.memory,
            late.memory
        );
        // The journal keeps a line a move, and SQLite's log is up to 4 MiB before it is folded in.
        assert!(late.disk <= early.disk + 4096 + 1024, "disk on {host}: {} to {} KiB", early.disk, late.disk);
        let difference = traces::difference(&early.traces, &late.traces);
        assert!(difference.is_empty(), "{host} does not look as before:\n{difference}");
    }
    assert_eq!(mappings("a"), born_with, "a restore leaves no mappings behind");
    let moves = lab.json("a", &["migrations"]);
    let ended = moves.as_array().map_or(0, |all| all.iter().filter(|m| m["error"].is_null()).count());
    assert_eq!(ended, 200, "every move is in the journal, none with an error");
}
