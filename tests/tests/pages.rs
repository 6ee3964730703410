//! Pages that are not plain memory are right after a move: huge ones of both kinds, merged ones (KSM), swapped ones; what they
//! contain, and who shares them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use tests::Lab;
use tests::lab::{eventually, rootfs};
use tests::workload::migrate;

/// Says what it has made, and then in each round that all is as it was left.
const SCRIPT: &str = r#"
import mmap, os, struct, sys, time
PAGE, MB, ANONYMOUS, HUGETLB = 4096, 1 << 20, mmap.MAP_ANONYMOUS, 0x40000
PAGEOUT, MERGEABLE, HUGEPAGE, DONTFORK = 21, 12, 14, 10

def made(size, flags=mmap.MAP_PRIVATE):
    return mmap.mmap(-1, size, flags=flags | ANONYMOUS)

def fill(memory, number):
    for at in range(0, len(memory), PAGE):
        struct.pack_into('QQ', memory, at, number, at)

def check(memory, number, what):
    for at in range(0, len(memory), PAGE):
        if struct.unpack_from('QQ', memory, at) != (number, at):
            print(f'FAIL {what}: {struct.unpack_from("QQ", memory, at)} at {at}, not {number}', flush=True)
            sys.exit(1)

def kilobytes(file, name):
    return sum(int(line.split()[1]) for line in open(f'/proc/self/{file}') if line.startswith(name))

kinds = {
    'hugetlb': made(4 * MB, mmap.MAP_PRIVATE | HUGETLB),
    'hugetlb, shared': made(4 * MB, mmap.MAP_SHARED | HUGETLB),
    'huge': made(8 * MB),
    'swapped': made(8 * MB),
    'merged': made(2 * MB),
    'merged with it': made(2 * MB),
}
kinds['huge'].madvise(HUGEPAGE)
# Pages that processes share are not swapped on request.
kinds['swapped'].madvise(DONTFORK)
for memory in kinds.values():
    fill(memory, 1)
for name in 'merged', 'merged with it':
    kinds[name].madvise(MERGEABLE)

# Answers in shared pages: the second number of each shall be the first one.
asked = made(2 * MB, mmap.MAP_SHARED | HUGETLB)
if os.fork() == 0:
    while os.getppid() != 1:
        asked[8:16] = asked[0:8]
        check(kinds['hugetlb'], 1, 'hugetlb of the child')
        time.sleep(0.01)
    sys.exit(0)

kinds['swapped'].madvise(PAGEOUT)
end = time.monotonic() + 60
while int(open('/proc/self/ksm_merging_pages').read()) < 500 and time.monotonic() < end:
    time.sleep(0.1)
print('made', int(open('/proc/self/ksm_merging_pages').read()), kilobytes('status', 'VmSwap'),
      kilobytes('smaps_rollup', 'AnonHugePages'), kilobytes('status', 'HugetlbPages'), flush=True)
number = 1
while True:
    for name, memory in kinds.items():
        check(memory, number, name)
    number += 1
    # Merged pages are written to one after the other: the copy must not change with them.
    for name, memory in kinds.items():
        fill(memory, number)
        if name == 'merged':
            check(kinds['merged with it'], number - 1, 'merged with it')
    kinds['swapped'].madvise(PAGEOUT)
    struct.pack_into('Q', asked, 0, number)
    while struct.unpack_from('Q', asked, 8)[0] != number:
        time.sleep(0.01)
    print('ok', number, flush=True)
    # Time to be merged and to be moved.
    time.sleep(0.5)
"#;

/// What this test changes of the machine, and how it was.
struct Machine {
    before: Vec<(&'static str, String)>,
    swap: tempfile::NamedTempFile,
}

impl Machine {
    fn prepared() -> Self {
        let set = [
            ("/proc/sys/vm/nr_hugepages", "32"),
            ("/sys/kernel/mm/ksm/pages_to_scan", "5000"),
            ("/sys/kernel/mm/ksm/run", "1"),
        ];
        let before = set.map(|(path, value)| {
            let before = fs::read_to_string(path).unwrap();
            fs::write(path, value).unwrap();
            (path, before)
        });
        // Not in memory itself.
        let swap = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let machine = Self { before: before.to_vec(), swap };
        let script = "fallocate -l 64M \"$0\" && mkswap \"$0\" >/dev/null && swapon \"$0\"";
        let made = Command::new("sh").args(["-c", script]).arg(machine.swap.path()).status().unwrap();
        assert!(made.success(), "no swap space");
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(self.swap.path()).status();
        for (path, value) in &self.before {
            let _ = fs::write(path, value);
        }
    }
}

#[test]
fn huge_merged_and_swapped_ones_are_right_in_four_moves() {
    let _machine = Machine::prepared();
    let lab = Lab::up(2);
    lab.ok("a", &["run", "--name", "pages", "--rootfs", &rootfs("shell"), "--", "python3", "-c", SCRIPT]);
    let log = |host: &str| {
        let log = lab.ok(host, &["logs", "pages"]);
        assert!(!log.contains("FAIL") && !log.contains("Error"), "{log}");
        log
    };
    let rounds = |host: &str| log(host).lines().filter(|line| line.starts_with("ok")).count();
    eventually("it works", Duration::from_secs(90), || rounds("a") > 1);
    let made = log("a").lines().next().unwrap().to_owned();
    let numbers: Vec<u64> = made.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    let [merged, swapped, huge, hugetlb] = numbers[..] else { panic!("{made}") };
    assert!(merged >= 500 && swapped > 4 << 10 && huge >= 2 << 10 && hugetlb >= 8 << 10, "all kinds are there: {made}");
    for (from, to) in [("a", "b"), ("b", "a")].repeat(2) {
        let before = rounds(from);
        migrate(&lab, "pages", from, to);
        eventually("it goes on", Duration::from_secs(30), || rounds(to) > before + 2);
    }
    lab.ok("a", &["suspend", "pages"]);
    lab.ok("a", &["resume", "pages"]);
    let before = rounds("a");
    eventually("it goes on", Duration::from_secs(30), || rounds("a") > before + 2);
}
