//! CRIU is killed at every moment of a dump, and nothing happens to the processes. Needs root, a cgroup v2 and a CRIU that
//! `scripts/criu` has built (another one fails now and then, and with many threads soon).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use checkpoint::criu;
use checkpoint::guard::Saved;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, gettid};

const FILE: &str = "VICTIM_FILE";
/// Threads of the first process, and of each child of its.
const THREADS: [usize; 3] = [9, 4, 1];
const LIMIT: Duration = Duration::from_secs(20);

/// Not a test: what is dumped. Threads that count on, each in its own way.
#[test]
#[ignore = "a helper process of the other tests"]
fn victim() {
    let file = PathBuf::from(std::env::var_os(FILE).expect("only the tests beside this one start it"));
    // SAFETY: no handler is set. Most programs are killed by SIGPIPE; those in Rust are not.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    let first: usize = std::env::var("VICTIM_FIRST").map_or(0, |n| n.parse().unwrap());
    let threads: usize = std::env::var("VICTIM_THREADS").map_or(THREADS[0], |n| n.parse().unwrap());
    let mut children = Vec::new();
    if first == 0 && threads == THREADS[0] {
        let mut at = threads;
        for n in &THREADS[1..] {
            let mut command = Command::new("/proc/self/exe");
            command.args(["victim", "--exact", "--ignored"]).env("VICTIM_FIRST", at.to_string());
            children.push(command.env("VICTIM_THREADS", n.to_string()).spawn().unwrap());
            at += n;
        }
        // A zombie, before anybody counts: on a busy machine it would still be alive when it is looked at first.
        let zombie = Command::new("/bin/true").spawn().unwrap();
        let id = Id::Pid(Pid::from_raw(zombie.id().cast_signed()));
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        children.push(zombie);
    }
    let counters = File::options().write(true).open(file).unwrap();
    std::thread::scope(|scope| {
        for slot in first..first + threads {
            let counters = &counters;
            scope.spawn(move || count(counters, slot));
        }
    });
}

fn count(counters: &File, slot: usize) {
    if slot % 2 == 1 {
        SigSet::from_iter([Signal::SIGUSR1, Signal::SIGWINCH]).thread_block().unwrap();
    }
    let (_keep, nobody) = mpsc::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let mut sum = 0.5f64;
    for n in 1u64.. {
        match slot % 4 {
            0 => std::thread::sleep(Duration::from_millis(1)),
            1 => drop(nobody.recv_timeout(Duration::from_millis(1))),
            2 => {
                near.write_all(&[0]).unwrap();
                far.read_exact(&mut [1]).unwrap();
                std::thread::sleep(Duration::from_millis(if n % 64 == 0 { 100 } else { 1 }));
            }
            _ => {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_micros(200) {
                    sum += 1.0;
                }
                std::thread::sleep(Duration::from_micros(800));
            }
        }
        assert!((sum - sum.floor() - 0.5).abs() < f64::EPSILON, "floating point went wrong");
        counters.write_all_at(&n.to_ne_bytes(), slot as u64 * 8).unwrap();
    }
}

/// The one that `scripts/criu` has provided.
fn criu() -> PathBuf {
    std::env::var_os("PODD_CRIU").map_or("/usr/local/libexec/podd/criu".into(), PathBuf::from)
}

/// The victim in its cgroup.
struct Victim {
    child: Child,
    cgroup: PathBuf,
    folder: tempfile::TempDir,
}

impl Victim {
    fn start(name: &str, threads: usize) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let v2 = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup v2 is mounted");
        let cgroup = Path::new(v2.split(' ').nth(1).unwrap()).join(format!("podd-guard-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("this test runs as root");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("counters");
        let slots = if threads == THREADS[0] { THREADS.iter().sum() } else { threads };
        fs::write(&file, vec![0; slots * 8]).unwrap();
        // What the tests themselves have inherited is not for CRIU to dump.
        let script = r#"
            for fd in /proc/self/fd/*; do n=${fd##*/}; [ "$n" -le 2 ] || exec {n}>&-; done
            echo 0 >"$0/cgroup.procs" && exec setsid "$@""#;
        let mut command = Command::new("/bin/bash");
        command.args(["-c", script]).arg(&cgroup).arg(std::env::current_exe().unwrap());
        command.args(["victim", "--exact", "--ignored"]).env(FILE, &file).env("VICTIM_THREADS", threads.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let victim = Self { child, cgroup, folder };
        victim.goes_on();
        victim
    }

    fn counters(&self) -> Vec<u64> {
        let bytes = fs::read(self.folder.path().join("counters")).unwrap();
        bytes.as_chunks::<8>().0.iter().map(|c| u64::from_ne_bytes(*c)).collect()
    }

    /// Every thread counts.
    #[track_caller]
    fn goes_on(&self) {
        let (before, begun) = (self.counters(), Instant::now());
        while !before.iter().zip(self.counters()).all(|(old, new)| new > *old) {
            assert!(begun.elapsed() < LIMIT, "after {before:?} it only came to {:?}", self.counters());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn freeze(&self, frozen: bool) {
        fs::write(self.cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" }).unwrap();
        while frozen != fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap().contains("frozen 1") {
            std::thread::yield_now();
        }
    }

    fn dump(&self) -> Result<Duration, criu::Error> {
        let images = tempfile::tempdir().unwrap();
        let what = criu::Dump {
            pid: self.child.id().cast_signed(),
            images: images.path(),
            freeze_cgroup: &self.cgroup,
            external: Vec::new(),
            ghost_limit: 1 << 20,
            watched: Vec::new(),
        };
        let begun = Instant::now();
        criu::Dumper::start(&criu(), &what, LIMIT)?.dump().map(|()| begun.elapsed())
    }

    fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        text.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// What a dump must leave as it is, thread by thread: states of signals, descriptors, code, mappings of files.
    fn looks(&self) -> BTreeMap<String, String> {
        let mut looks = BTreeMap::new();
        for pid in self.pids() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().path()) {
                let status = fs::read_to_string(task.join("status")).unwrap();
                let kept = ["SigBlk", "SigPnd", "ShdPnd", "SigIgn", "SigCgt", "TracerPid", "Seccomp"];
                let kept = status.lines().filter(|l| kept.iter().any(|k| l.starts_with(k)));
                looks.insert(task.display().to_string(), kept.collect::<Vec<_>>().join(" "));
            }
            let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else { continue };
            let of_files: Vec<&str> = maps.lines().filter(|l| l.contains('/')).collect();
            looks.insert(format!("{pid} maps"), of_files.join("\n"));
            let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
            for line in maps.lines().filter(|l| l.contains("r-x") && !l.contains("[v")) {
                let mut code = [0; 4096];
                mem.read_exact_at(&mut code, u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap())
                    .unwrap();
                looks.insert(format!("{pid} {line}"), format!("{code:02x?}"));
            }
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|f| f.unwrap().path()) {
                looks.insert(fd.display().to_string(), fs::read_link(&fd).unwrap().display().to_string());
            }
        }
        looks
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = self.child.wait();
        while fs::remove_dir(&self.cgroup).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Kills the CRIU that `parent` (a thread of this process) starts, so long after it has started.
fn kill_criu(parent: Pid, after: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let children = fs::read_to_string(format!("/proc/self/task/{parent}/children")).unwrap();
        let is_criu = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "criu");
        if let Some(pid) = children.split_whitespace().find(is_criu) {
            let seen = Instant::now();
            while seen.elapsed() < after {
                std::thread::yield_now();
            }
            return kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).is_ok();
        }
    }
    false
}

#[test]
fn criu_dies_at_every_moment() {
    let rounds: u32 = std::env::var("GUARD_ROUNDS").map_or(1, |n| n.parse().unwrap());
    let threads = std::env::var("GUARD_THREADS").map_or(THREADS[0], |n| n.parse().unwrap());
    let victim = Victim::start("dies", threads);
    victim.freeze(true);
    let before = victim.looks();
    let mut whole = victim.dump().unwrap();
    victim.freeze(false);
    victim.goes_on();
    let (mut killed, mut completed) = (0, 0);
    for step in 0..80 * rounds {
        let after = whole * (step % 80) / 80;
        victim.freeze(true);
        let parent = gettid();
        let (dumped, hit) = std::thread::scope(|scope| {
            let killer = scope.spawn(move || kill_criu(parent, after));
            let dumped = victim.dump();
            (dumped, killer.join().unwrap())
        });
        match &dumped {
            // The machine has become less busy.
            Ok(took) => (whole, completed) = (whole.min(*took), completed + 1),
            Err(e) => {
                assert!(matches!(e, criu::Error::Broken { .. }) && hit, "{e}");
                killed += 1;
            }
        }
        let now = victim.looks();
        for (what, old) in &before {
            assert_eq!(now.get(what), Some(old), "{what} is not what it was, CRIU killed after {after:?}");
        }
        assert_eq!(now.len(), before.len(), "something new, CRIU killed after {after:?}");
        victim.freeze(false);
        victim.goes_on();
        if step % 16 == 15 {
            victim.freeze(true);
            victim.dump().unwrap();
            victim.freeze(false);
            victim.goes_on();
        }
    }
    eprintln!("a dump takes {whole:?}; CRIU was killed {killed} times in it, and {completed} times too late");
    assert!(killed > 40 * rounds, "{killed} is too few");
}

/// What it costs: printed for a person, and bounded generously.
#[test]
fn saving_is_cheap() {
    for threads in [1, 5, 100] {
        let victim = Victim::start(&format!("cost{threads}"), threads);
        victim.freeze(true);
        let mut times: Vec<_> = (0..20)
            .map(|_| {
                let begun = Instant::now();
                let saved = Saved::of(&victim.cgroup);
                let time = begun.elapsed();
                drop(saved);
                time
            })
            .collect();
        times.sort();
        let mut dumps: Vec<_> = (0..10).map(|_| victim.dump().unwrap()).collect();
        dumps.sort();
        let [saved, saved_best, dumped, dumped_best] = [times[10], times[0], dumps[5], dumps[0]];
        eprintln!(
            "{threads} threads: saved in {saved:?} ({saved_best:?} at best), dumped in {dumped:?} ({dumped_best:?} at best)"
        );
        assert!(times[10] < Duration::from_millis(50), "{times:?}");
        victim.freeze(false);
        victim.goes_on();
    }
}
