//! Memory that changes in every way while it goes ahead is what it was after each move.

#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::Lab;
use tests::invariants::{api, groups, shim};
use tests::lab::{eventually, rootfs};
use tests::traces::inside;
use tests::workload::migrate;

/// Checks all of its memory in each round, then changes some: writes, discards, grows and shrinks, makes parts unreadable for a
/// while, and has a page wiped in forks. Children check what they have inherited. The first page of a mapping is what Linux 6.16 to 6.18
/// might lose in a fork.
const SCRIPT: &str = r#"
import ctypes, itertools, mmap, os, random, struct, sys
PAGE, PAGES, MORE = 4096, 6000, 1500
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

class Memory:
    def __init__(self, flags=ANONYMOUS):
        self.map, self.numbers = mmap.mmap(-1, PAGES * PAGE, flags=flags), [0] * PAGES

    def write(self, page):
        self.numbers[page] = number = random.getrandbits(62) + 1
        for offset in (0, PAGE - 8):
            struct.pack_into('Q', self.map, page * PAGE + offset, number)

    def forget(self, page, count):
        count = min(count, len(self.numbers) - page)
        self.map.madvise(mmap.MADV_DONTNEED, page * PAGE, count * PAGE)
        self.numbers[page:page + count] = [0] * count

    def resize(self, pages):
        self.map.resize(pages * PAGE)
        self.numbers = self.numbers[:pages] + [0] * (pages - len(self.numbers))

    # Divides the mapping into three, for a while. (One that is divided as it is frozen stays so: CRIU makes three of it.)
    def protect(self, page, count, protection):
        count = min(count, len(self.numbers) - page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + page * PAGE
        if LIBC.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(count * PAGE), protection) != 0:
            print('FAIL mprotect', flush=True)

    def check(self):
        for page, number in enumerate(self.numbers):
            for offset in (0, PAGE - 8):
                found, = struct.unpack_from('Q', self.map, page * PAGE + offset)
                if found != number:
                    print(f'FAIL {os.getpid()}: page {page} at {offset} is {found}, not {number}', flush=True)
                    sys.exit(1)

LIBC = ctypes.CDLL(None, use_errno=True)
WIPED = mmap.mmap(-1, PAGE, flags=ANONYMOUS)
WIPED.madvise(18)
WIPED[0] = 1
# Another one, that writes so much that memory is left behind by post-copy.
if os.fork() == 0:
    large = mmap.mmap(-1, 24 << 20, flags=ANONYMOUS)
    for n in itertools.count():
        content = bytes([n % 255 + 1]) * (24 << 20)
        large[:] = content
        if large[:] != content:
            print('FAIL', n, flush=True)
memories, divided = [Memory(), Memory(ANONYMOUS | 0x4000)], Memory()
for memory in memories:
    for page in range(0, PAGES, 2):
        memory.write(page)
# A child that shares all of it, and writes a little.
if os.fork() == 0:
    while True:
        for memory in memories:
            memory.write(random.randrange(PAGES))
            memory.check()
rounds = 0
while True:
    for memory in memories:
        memory.check()
        for _ in range(150):
            memory.write(random.randrange(len(memory.numbers)))
        memory.forget(random.randrange(len(memory.numbers)), random.choice([1, 30, 700]))
        if rounds % 7 == 0:
            memory.resize(PAGES + random.randrange(MORE))
    page = random.randrange(PAGES - 700)
    divided.protect(page, 700, mmap.PROT_READ)
    divided.check()
    divided.protect(page, 700, mmap.PROT_READ | mmap.PROT_WRITE)
    for _ in range(150):
        divided.write(random.randrange(PAGES))
    # New memory all the time, and a child that has it for a moment.
    extra = Memory()
    for page in range(0, PAGES, 50):
        extra.write(page)
    WIPED[0] = 1
    child = os.fork()
    if child == 0:
        if WIPED[0] != 0:
            print('FAIL: not wiped', flush=True)
        extra.check()
        memories[0].check()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print('FAIL a child', flush=True)
    extra.map.close()
    rounds += 1
    print('ok', rounds, flush=True)
"#;

/// Writes to all of a large mapping as fast as it can, so that much is left behind, and looks whether it is what it wrote.
const WRITER: &str = r#"
import itertools, mmap
PIECE, PIECES = 1 << 20, 80
memory = mmap.mmap(-1, PIECE * PIECES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in itertools.count(1):
    content = bytes([n % 255 + 1]) * PIECE
    for piece in range(PIECES):
        memory[piece * PIECE:(piece + 1) * PIECE] = content
    for piece in range(PIECES):
        if memory[piece * PIECE:(piece + 1) * PIECE] != content:
            print('FAIL', n, piece, flush=True)
    print('ok', n, flush=True)
"#;

#[test]
fn it_is_right_in_six_moves() {
    let lab = Lab::up(2);
    let root = rootfs("shell");
    lab.ok("a", &["run", "--name", "memory", "--rootfs", &root, "--", "python3", "-c", SCRIPT]);
    let rounds = |host: &str| {
        let log = lab.ok(host, &["logs", "memory"]);
        assert!(!log.contains("FAIL"), "{log}");
        log.lines().filter(|line| line.starts_with("ok")).count()
    };
    eventually("it works", Duration::from_secs(20), || rounds("a") > 3);
    for (from, to) in [("a", "b"), ("b", "a")].repeat(3) {
        let before = rounds(from);
        let report = migrate(&lab, "memory", from, to);
        assert!(report["bytes"]["memory"].as_u64() > Some(30 << 20), "{report}");
        eventually("it goes on", Duration::from_secs(20), || rounds(to) > before + 5);
    }
    // The other way on request, and back by the one that is usual here.
    let modes = ["stop-copy", "pre-copy", "post-copy", "post-copy", "post-copy", "post-copy"];
    for (mode, (from, to)) in modes.into_iter().zip([("a", "b"), ("b", "a")].into_iter().cycle()) {
        let before = rounds(from);
        let report = lab.json(from, &["migrate", "memory", "--to", to, "--mode", mode]);
        assert_eq!(report["mode"], mode, "{report}");
        let frozen = report["bytes"]["frozen"].as_u64();
        match mode {
            "post-copy" => assert!(report["bytes"]["later"].as_u64() > Some(0), "{report}"),
            "stop-copy" => assert!(report["why"] == "as asked for" && frozen > Some(30 << 20), "{report}"),
            _ => assert!(report["why"].as_str().is_some_and(|why| why.starts_with("write-protection")), "{report}"),
        }
        eventually("it goes on", Duration::from_secs(20), || rounds(to) > before + 5);
    }
    for host in ["a", "b"] {
        assert!(!lab.log(host).contains("does not load memory ahead"), "{}", lab.log(host));
    }
    // Also when all of it is read by the restore.
    lab.ok("a", &["suspend", "memory"]);
    lab.ok("a", &["resume", "memory"]);
    let before = rounds("a");
    eventually("it goes on", Duration::from_secs(20), || rounds("a") > before + 5);
}

/// While memory that was left behind comes, the source loses it, or the shim dies that puts it in place: the pod ends, and never sees a
/// page that is not right. As long as the source has it, it is kept there as it was.
#[test]
fn what_cannot_come_any_more_ends_the_pod() {
    let lab = Lab::up(2);
    let root = rootfs("shell");
    for (pod, source_loses_it) in [("one", true), ("two", false)] {
        lab.ok("a", &["run", "--name", pod, "--rootfs", &root, "--", "python3", "-c", WRITER]);
        eventually("it works", Duration::from_secs(20), || lab.ok("a", &["logs", pod]).matches("ok").count() > 3);
        let id = api(&lab, "a", &format!("/v1/pods/{pod}")).unwrap()["id"].as_str().unwrap().to_owned();
        lab.fault("a", "source lent pause 4000");
        let fault = inside(&lab, "a", "/run/podd/fault");
        let mut command = lab.podctl_command("a", &["migrate", pod, "--to", "b", "--mode", "post-copy"]);
        let mover = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("it runs there", Duration::from_secs(30), || {
            std::fs::read_to_string(&fault).is_ok_and(|text| !text.contains("lent"))
        });
        let victims = match source_loses_it {
            true => processes(&lab, "a", &id),
            false => shim(&lab, "b", &id).into_iter().collect(),
        };
        // (With its init, the others of a pod die by themselves.)
        let killed = victims.into_iter().filter(|pid| kill(*pid, Signal::SIGKILL).is_ok());
        assert_ne!(killed.count(), 0);
        let said = mover.wait_with_output().unwrap();
        let moved = String::from_utf8_lossy(&said.stdout).into_owned();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let reason = if source_loses_it { "lost the pod's processes" } else { "its shim died" };
        assert!(said.contains(reason), "{pod}: {said}{moved}");
        eventually("it has ended", Duration::from_secs(10), || {
            lab.state("b", pod).is_some_and(|state| state != "running")
        });
        assert_eq!(lab.state("a", pod), None);
        let log = lab.ok("b", &["logs", pod]);
        assert!(!log.contains("FAIL"), "{log}");
        if !source_loses_it {
            // Its words name the image.
            let image = said.split_whitespace().find(|word| word.ends_with(".img")).expect("an image").to_owned();
            lab.ok("b", &["rm", pod]);
            lab.ok("a", &["restore", &image]);
            let rounds = || lab.ok("a", &["logs", pod]).matches("ok").count();
            let before = rounds();
            eventually("it goes on", Duration::from_secs(20), || rounds() > before + 5);
            assert!(!lab.ok("a", &["logs", pod]).contains("FAIL"));
        }
    }
}

/// The pod's processes on a host.
fn processes(lab: &Lab, host: &str, id: &str) -> Vec<Pid> {
    let lists =
        groups(lab, host, id).into_iter().filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok());
    let pids: Vec<String> = lists.flat_map(|list| list.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    pids.iter().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}
