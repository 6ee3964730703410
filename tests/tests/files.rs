//! Large files that a program writes to, in place and at their end, while its pod moves.

use std::time::Duration;

use tests::Lab;
use tests::invariants::{podd, start_podds};
use tests::lab::{eventually, rootfs};

/// Numbers its writes: the number tells which block of one file is written, and comes behind the others in another one. Says what is
/// wrong with them in the end.
const SCRIPT: &str = "\
import os, time
BLOCKS = 16384
place = lambda n: n * 7919 % BLOCKS * 4096
block = lambda n: b'%015d\\n' % n * 256
data = os.open('/data', os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(data, BLOCKS * 4096)
log = os.open('/log', os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
n = 0
while not os.path.exists('/enough'):
    n += 1
    os.pwrite(data, block(n), place(n))
    os.write(log, b'%063d\\n' % n)
    if n == 2 * BLOCKS:
        print('begun', flush=True)
    if n % 8 == 0 and n > BLOCKS:
        time.sleep(0.001)
wrong = [m for m in range(n - BLOCKS + 1, n + 1) if os.pread(data, 4096, place(m)) != block(m)]
lines = open('/log').read().split()
if [int(line) for line in lines] != list(range(1, n + 1)):
    wrong.append('log')
print('wrong:', wrong[:9], flush=True)
time.sleep(600)
";

fn write(lab: &Lab) {
    lab.ok("a", &["run", "--name", "writer", "--rootfs", &rootfs("shell"), "--", "python3", "-c", SCRIPT]);
    eventually("all blocks are written", Duration::from_secs(60), || {
        lab.ok("a", &["logs", "writer"]).contains("begun")
    });
}

fn look(lab: &Lab, host: &str) {
    lab.ok(host, &["exec", "writer", "--", "touch", "/enough"]);
    eventually("it has looked", Duration::from_secs(60), || lab.ok(host, &["logs", "writer"]).contains("wrong"));
    let said = lab.ok(host, &["logs", "writer"]);
    assert!(said.contains("wrong: []"), "{said}");
}

#[test]
fn they_are_right_after_four_moves() {
    // Whoever speaks the protocol of before gets all of them before it restores.
    let lab = Lab::with_an_older_host();
    write(&lab);
    // A clone of what goes on to write is whole, too.
    lab.ok("a", &["rehearse", "writer", "--to", "b"]);
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b")] {
        let report = lab.json(from, &["migrate", "writer", "--to", to]);
        assert!(report["bytes"]["files"].as_u64() > Some(64 << 20), "{report}");
    }
    look(&lab, "b");
}

#[test]
fn podd_dies_while_they_are_compared() {
    let lab = Lab::up(2);
    write(&lab);
    for (role, host) in [("source", "a"), ("target", "b")] {
        lab.fault(host, &format!("{role} compares crash"));
        let moved = lab.podctl("a", &["migrate", "writer", "--to", "b"]);
        assert_ne!(moved.code, 0, "{moved:?}");
        eventually("podd is dead", Duration::from_secs(10), || podd(&lab, host).is_none());
        start_podds(&lab);
        eventually("it runs on", Duration::from_secs(25), || lab.state("a", "writer").as_deref() == Some("running"));
        eventually("it is nowhere else", Duration::from_secs(25), || lab.state("b", "writer").is_none());
    }
    lab.ok("a", &["migrate", "writer", "--to", "b"]);
    look(&lab, "b");
}
