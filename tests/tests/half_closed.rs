//! Connections within a pod of which one direction has ended survive a restore that takes seconds from one half to the other.

use std::time::Duration;

use tests::Lab;
use tests::lab::{eventually, rootfs};
use tests::workload::migrate;

const NAME: &str = "halves";
/// So little that the restore of each process waits for its turn again and again: CRIU works in the pod's cgroup.
const CPUS: &str = "0.02";
/// Ten connections between two processes. Of every other one the client's direction has ended, of the rest the server's; in the
/// other direction go numbers.
const PROGRAM: &str = r#"
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
pairs = []
for _ in range(10):
    client = socket.create_connection(listener.getsockname())
    pairs.append((client, listener.accept()[0]))
listener.close()
parent = os.fork() != 0
mine = []
for k, (client, server) in enumerate(pairs):
    ours, theirs = (client, server) if parent else (server, client)
    theirs.close()
    sends = parent == (k % 2 == 1)
    if not sends:
        ours.shutdown(socket.SHUT_WR)
    mine.append((ours, sends))
n = 0
try:
    while True:
        n += 1
        for s, sends in mine:
            if sends:
                s.sendall(b"%08d" % n)
            else:
                got = s.recv(8, socket.MSG_WAITALL)
                assert got == b"%08d" % n, got
        if parent:
            print("ok", n, flush=True)
        time.sleep(0.2)
except BaseException as e:
    print("FAIL", "parent" if parent else "child", repr(e), flush=True)
    raise
"#;

#[test]
fn they_survive_a_slow_restore() {
    let lab = Lab::up(2);
    let layer = rootfs("shell");
    let mut arguments = vec!["run", "--name", NAME, "--rootfs", &layer, "--ip", "10.77.1.9/16", "--cpus", CPUS];
    arguments.extend(["--", "python3", "-c", PROGRAM]);
    lab.ok("a", &arguments);
    let goes_on = |host: &str| {
        let steps = || {
            let log = lab.ok(host, &["logs", NAME]);
            assert!(!log.contains("FAIL"), "on {host}: {log}");
            log.lines().filter(|line| line.starts_with("ok ")).count()
        };
        let before = steps();
        eventually("all connections go on", Duration::from_secs(60), || steps() >= before + 5);
    };
    goes_on("a");
    for (from, to) in [("a", "b"), ("b", "a")] {
        migrate(&lab, NAME, from, to);
        goes_on(to);
    }
}
