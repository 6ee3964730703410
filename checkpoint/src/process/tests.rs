//! Real processes that hold what checkpoints trip over, looked at from outside.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::libc;

use super::holder::FEATURES;
use super::*;

/// A process that lives until this is dropped.
struct Held {
    child: Child,
    /// The process ends by itself when this closes, also if the test dies.
    _stdin: ChildStdin,
    /// What it could not get, and the error.
    lacks: BTreeMap<String, String>,
    /// Its files.
    _dir: Option<tempfile::TempDir>,
}

impl Held {
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn spawn(command: &mut Command) -> Held {
        // What the tests themselves inherited, and terminals, must not leak into the process.
        let close_the_rest = || {
            const CLOSE_RANGE_CLOEXEC: i64 = 4;
            // SAFETY: close_range takes integers only; with this flag nothing is closed before exec.
            nix::errno::Errno::result(unsafe {
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, CLOSE_RANGE_CLOEXEC)
            })?;
            Ok(())
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(close_the_rest) };
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        Held { child, _stdin: stdin, lacks: BTreeMap::new(), _dir: None }
    }

    /// This test program again, holding all of [`FEATURES`] that the kernel has.
    fn everything(stderr: Stdio) -> Held {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "process::holder::hold_everything", "--ignored", "--nocapture"]);
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        command.env(super::holder::DIRECTORY, dir.path());
        let mut held = Held::spawn(command.stdout(Stdio::piped()).stderr(stderr));
        held._dir = Some(dir);
        for line in BufReader::new(held.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.ends_with("READY") {
                return held;
            }
            if let Some((_, what)) = line.split_once("LACKS ") {
                let (feature, error) = what.split_once(' ').unwrap();
                held.lacks.insert(feature.to_owned(), error.to_owned());
            }
        }
        panic!("the helper process ended early");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn facts(held: &Held) -> PodFacts {
    PodFacts::read(held.pid(), &[held.pid()]).unwrap()
}

/// Waits until the program is what it will be: unshare(1) executes it after a moment.
fn wait_for(pid: i32, comm: &str) {
    for _ in 0..500 {
        if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {pid} never became {comm}");
}

fn child_of(pid: i32) -> i32 {
    for _ in 0..500 {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {pid} has no child");
}

#[test]
fn everything_a_process_holds_is_seen() {
    let held = Held::everything(Stdio::inherit());
    let pod = facts(&held);
    let process = &pod.processes[0];
    let fds = &process.descriptors;
    let memory = &process.memory;
    let protocol = |p: u32| pod.sockets.iter().any(|s| s.protocol == p);
    let seen = |feature: &str| match feature {
        "memfd_secret" => fds.of(FdKind::SecretMemory) == 1 && memory.secret,
        "io_uring" => fds.of(FdKind::IoUring) == 1 && memory.devices.iter().any(|d| d.contains("io_uring")),
        "userfaultfd" => fds.of(FdKind::Userfaultfd) == 1,
        "mptcp" => protocol(262),
        "tcp" => pod.sockets.iter().any(|s| (s.family, s.kind, s.protocol) == (2, 1, 6)),
        "unix" => pod.sockets.iter().any(|s| (s.family, s.kind, s.count) == (1, 1, 2)),
        "droppable" => memory.droppable,
        "ghost" => pod.ghosts.iter().any(|g| g.path.to_string_lossy().contains("ghost-open") && g.bytes >= 1 << 16),
        "mapped_ghost" => pod.ghosts.iter().any(|g| g.path.to_string_lossy().contains("ghost-mapped")),
        "unlinked" => matches!(&pod.unlinked[..], [path] if path.ends_with("unlinked")),
        "packet_pipe" => fds.of(FdKind::PacketPipe) >= 1,
        "shared_mapping" => {
            shared_writable_files(&[held.pid()]).iter().any(|f| f.to_string_lossy().contains("shared mapping"))
        }
        "lock" => fds.locks >= 1,
        "lease" => fds.leases == 1,
        "memfd" => fds.of(FdKind::Memfd) == 1,
        "eventfd" => fds.of(FdKind::Eventfd) >= 1,
        "epoll" => fds.of(FdKind::Epoll) >= 1,
        "perf" => fds.of(FdKind::Perf) == 1,
        "bpf" => fds.of(FdKind::Bpf) == 1,
        "mqueue" => fds.of(FdKind::MessageQueue) == 1,
        "pidfd" => fds.of(FdKind::Pidfd) == 1,
        "pty" => fds.of(FdKind::Terminal) >= 2,
        "high_fd" => fds.highest == Some(900),
        "namespace" => fds.of(FdKind::Namespace) == 1,
        "device" => fds.devices.contains("/dev/kmsg"),
        other => panic!("no test for {other}"),
    };
    for feature in FEATURES {
        match held.lacks.get(*feature) {
            None => assert!(seen(feature), "{feature} was missed in {pod:#?}"),
            // The kernel lacks it, and says so in one of these ways; then nothing may be seen of it.
            Some(error) => {
                assert!(
                    ["ENOSYS", "EPERM", "EINVAL", "EPROTONOSUPPORT", "ENOENT", "ENODEV"].contains(&error.as_str()),
                    "{feature}: {error}"
                );
                assert!(!seen(feature), "{feature} was seen though it failed with {error}");
            }
        }
    }
    assert_eq!(pod.outside_terminals, Vec::<String>::new(), "both ends are inside");
    assert_eq!(pod.outside_peers, []);
    assert_eq!(pod.peers_unknown, None);
    assert!(process.nested.is_empty() && !process.joined && process.tracer == 0 && !process.zombie);
    assert!(process.threads >= 1 && memory.resident > 1 << 18 && memory.mappings > 10);
    assert!(process.rlimits.iter().any(|l| l.resource == Resource::OpenFiles && l.soft.is_some()));

    let bytes = bincode::serde::encode_to_vec(&pod, bincode::config::standard()).unwrap();
    let (back, _): (PodFacts, usize) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
    assert_eq!(back, pod);
}

#[test]
fn an_ordinary_process_has_nothing_odd() {
    let held = Held::spawn(
        Command::new("cat").env("GLIBC_TUNABLES", "glibc.pthread.rseq=0").stdout(Stdio::null()).stderr(Stdio::null()),
    );
    wait_for(held.pid(), "cat");
    let pod = facts(&held);
    let process = &pod.processes[0];
    assert_eq!((process.comm.as_str(), process.descriptors.count, process.descriptors.highest), ("cat", 3, Some(2)));
    assert_eq!(process.descriptors.kinds, BTreeMap::from([(FdKind::Pipe, 1), (FdKind::MemoryDevice, 2)]));
    assert!(
        pod.sockets.is_empty()
            && pod.ghosts.is_empty()
            && pod.outside_peers.is_empty()
            && pod.outside_terminals.is_empty()
    );
    assert!(process.memory.devices.is_empty() && !process.memory.secret, "{:?}", process.memory);
    assert_eq!(process.rseq_bytes, None, "the C library was told not to register");
}

#[test]
fn the_rseq_area_offered_at_birth_is_known() {
    let held = Held::spawn(Command::new("cat").env_remove("GLIBC_TUNABLES").stdout(Stdio::null()));
    wait_for(held.pid(), "cat");
    // None on kernels before 6.3.
    let mine = Process::myself().unwrap().auxv().unwrap().get(&27).copied();
    assert_eq!(facts(&held).processes[0].rseq_bytes, mine);
}

#[test]
fn ends_outside_the_pod_are_seen() {
    let (inside, outside) = std::os::unix::net::UnixStream::pair().unwrap();
    let held = Held::everything(Stdio::from(OwnedFd::from(inside)));
    let peers = facts(&held).outside_peers;
    assert_eq!(peers.len(), 1, "{peers:?}");
    assert_eq!(peers[0].fault, UnixFault::PeerOutside);
    // With its holder counted in, the same pair is no matter.
    let both = PodFacts::read(held.pid(), &[held.pid(), std::process::id() as i32]).unwrap();
    assert!(!both.outside_peers.iter().any(|p| p.inode == peers[0].inode), "{:?}", both.outside_peers);
    drop(outside);
    drop(held);

    let pty = nix::pty::openpty(None, None).unwrap();
    let held = Held::spawn(Command::new("cat").stdout(Stdio::from(pty.slave)));
    wait_for(held.pid(), "cat");
    let terminals = facts(&held).outside_terminals;
    assert!(terminals.iter().any(|t| t.starts_with("/dev/pts/") && t.contains("cat")), "{terminals:?}");
}

#[test]
fn a_socket_bound_in_a_folder_that_is_gone_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let held = Held::everything(Stdio::from(OwnedFd::from(listener)));
    assert_eq!(facts(&held).outside_peers, []);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(facts(&held).outside_peers, [], "CRIU makes the socket's file again");
    drop(folder);
    let peers = facts(&held).outside_peers;
    assert!(
        matches!(peers.as_slice(), [OutsidePeer { fault: UnixFault::FolderGone(gone), .. }] if *gone == path),
        "{peers:?}"
    );
}

#[test]
fn a_socket_handed_in_from_another_network_namespace_is_seen() {
    let (inside, _outside) = std::os::unix::net::UnixStream::pair().unwrap();
    let held = Held::spawn(Command::new("unshare").args(["--net", "cat"]).stdout(Stdio::from(OwnedFd::from(inside))));
    wait_for(held.pid(), "cat");
    let peers = facts(&held).outside_peers;
    assert!(matches!(peers.as_slice(), [OutsidePeer { fault: UnixFault::MadeOutside, .. }]), "{peers:?}");
}

#[test]
fn nested_namespaces_are_named() {
    let plain = Held::spawn(Command::new("cat").stdout(Stdio::null()));
    for (flag, expected) in [
        ("--uts", "uts"),
        ("--ipc", "ipc"),
        ("--user", "user"),
        ("--cgroup", "cgroup"),
        ("--mount", "mnt"),
        ("--net", "net"),
        ("--pid", "pid_for_children"),
        ("--time", "time_for_children"),
    ] {
        let nested = Held::spawn(Command::new("unshare").args([flag, "cat"]).stdout(Stdio::null()));
        wait_for(nested.pid(), "cat");
        let pod = PodFacts::read(plain.pid(), &[plain.pid(), nested.pid()]).unwrap();
        // Executing in a new time namespace moves the process into it, from 6.x on; the rest is named once.
        assert!(pod.processes[1].nested.iter().any(|n| n == expected), "{flag}: {:?}", pod.processes[1].nested);
        assert!(pod.processes[0].nested.is_empty());
    }
}

#[test]
fn descendants_are_told_from_those_who_joined() {
    let init = Held::spawn(Command::new("sh").args(["-c", "sleep 60 & wait"]).stdout(Stdio::null()));
    let child = child_of(init.pid());
    let joined = Held::spawn(Command::new("cat").stdout(Stdio::null()));
    let pod = PodFacts::read(init.pid(), &[child, joined.pid(), init.pid()]).unwrap();
    let flags: BTreeMap<i32, bool> = pod.processes.iter().map(|p| (p.pid, p.joined)).collect();
    assert_eq!(flags, BTreeMap::from([(init.pid(), false), (child, false), (joined.pid(), true)]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_session_leader_outside_the_pid_namespace_is_seen() {
    let unshare =
        Held::spawn(Command::new("unshare").args(["--pid", "--fork", "--kill-child", "cat"]).stdout(Stdio::null()));
    let init = child_of(unshare.pid());
    wait_for(init, "cat");
    let pod = PodFacts::read(init, &[]).unwrap();
    assert_eq!(pod.processes[0].pod_pid, 1);
    assert!(pod.processes[0].leader_outside);

    let unshare = Held::spawn(
        Command::new("unshare").args(["--pid", "--fork", "--kill-child", "setsid", "cat"]).stdout(Stdio::null()),
    );
    let init = child_of(unshare.pid());
    wait_for(init, "cat");
    assert!(!PodFacts::read(init, &[]).unwrap().processes[0].leader_outside);
}

#[test]
fn processes_that_vanish_are_left_out() {
    let mut short = Command::new("true").spawn().unwrap();
    let gone = short.id() as i32;
    short.wait().unwrap();
    assert!(matches!(PodFacts::read(gone, &[gone]), Err(ProcessError::NoInit(pid)) if pid == gone));
    assert!(shared_writable_files(&[gone]).is_empty());

    let held = Held::spawn(Command::new("cat").stdout(Stdio::null()));
    let pod = PodFacts::read(held.pid(), &[held.pid(), gone]).unwrap();
    assert_eq!(pod.processes.len(), 1);

    // A zombie has a name and nothing else.
    let mut zombie = Command::new("true").spawn().unwrap();
    wait_for_state(zombie.id(), 'Z');
    let pod = PodFacts::read(held.pid(), &[held.pid(), zombie.id() as i32]).unwrap();
    assert!(pod.processes[1].zombie && pod.processes[1].descriptors.count == 0);
    zombie.wait().unwrap();
}

/// Whatever a process lets go of when, a look at it in its last moments is no error and finds nothing strange.
#[test]
fn processes_that_are_just_ending_are_not_strange() {
    // Bounded, should the test die.
    let restless = "n=50000; while [ $((n-=1)) -gt 0 ]; do /bin/true; done";
    let held: Vec<Held> = (0..4).map(|_| Held::spawn(Command::new("sh").args(["-c", restless]))).collect();
    let init = held[0].pid();
    let mut seen = 0;
    for _ in 0..1500 {
        let mut pids = vec![init];
        pids.extend(held.iter().flat_map(|held| children(held.pid())));
        let pod = PodFacts::read(init, &pids).unwrap();
        seen += pod.processes.len() - 1;
        for process in &pod.processes {
            assert!(process.nested.is_empty(), "{process}: {:?}", process.nested);
        }
    }
    assert!(seen > 100, "only {seen} processes were seen");
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn wait_for_state(pid: u32, state: char) {
    for _ in 0..500 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if stat.rsplit_once(") ").unwrap().1.starts_with(state) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {pid} never got into state {state}");
}

#[test]
fn a_list_of_a_cgroup_is_read() {
    let held = Held::spawn(Command::new("cat").stdout(Stdio::null()));
    let mut list = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut list, format!("{}\n", held.pid()).as_bytes()).unwrap();
    assert_eq!(PodFacts::read_cgroup(held.pid(), list.path()).unwrap().processes.len(), 1);
    let missing = PodFacts::read_cgroup(held.pid(), Path::new("/nonexistent/cgroup.procs")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/cgroup.procs"));
}
