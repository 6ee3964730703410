//! The pod's init: its parts, and the built program as PID 1 of a small root (needs root and unshare).

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../init/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../init/events.rs"]
mod events;
#[allow(dead_code)]
#[path = "../init/lines.rs"]
mod lines;
#[allow(dead_code)]
#[path = "../init/log.rs"]
mod log;
#[allow(dead_code)]
#[path = "../init/sys.rs"]
mod sys;
#[allow(dead_code)]
#[path = "../init/time.rs"]
mod time;
#[allow(dead_code)]
#[path = "../init/user.rs"]
mod user;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww:x:33:\nlogs:x:4:web\n";

/// Makes the root in `$0`: the host's programs, its own /proc, and a small file system for /.podd that can be filled.
/// Waits until the test holds that file system open, as it goes away with the pod.
const PREPARE: &str = r#"
    for dir in usr bin lib lib64 sbin; do [ ! -e /$dir ] || mount --bind "/$dir" "$0/$dir"; done
    mount --bind /dev/null "$0/dev/null"
    mount -t proc proc "$0/proc"
    mount -t tmpfs -o size=4m,mode=755 tmpfs "$0/.podd"
    mv "$0/tmp/init" "$0/.podd/init"
    until [ -e "$0/tmp/go" ]; do sleep 0.01; done
    exec chroot "$0" /.podd/init "$@""#;

/// init as PID 1 of a PID namespace.
struct Pod {
    unshare: Child,
    state: File,
    _root: tempfile::TempDir,
}

/// What a pod that has ended left behind.
struct Left {
    code: i32,
    log: String,
    exit: String,
}

impl Pod {
    fn start(options: &[&str], command: &[&str]) -> Pod {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in [".podd", "etc", "proc", "dev", "tmp", "usr", "bin", "lib", "lib64", "sbin"] {
            fs::create_dir(at(dir)).unwrap();
        }
        for (path, content) in [("etc/passwd", PASSWD), ("etc/group", GROUP), ("dev/null", "")] {
            fs::write(at(path), content).unwrap();
        }
        fs::write(at("tmp/init"), podd::pod::init::INIT).unwrap();
        for path in ["tmp/init", "tmp", ""] {
            fs::set_permissions(at(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-euc", PREPARE])
            .arg(root.path())
            .args(options)
            .arg("--")
            .args(command)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = eventually("the namespace is there", || first_child(unshare.id()));
        let dir = PathBuf::from(format!("/proc/{pid}/root")).join(at(".podd").strip_prefix("/").unwrap());
        let state = eventually("init is in place", || dir.join("init").exists().then(|| File::open(&dir).unwrap()));
        fs::write(at("tmp/go"), "").unwrap();
        Pod { unshare, state, _root: root }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}/{name}", self.state.as_raw_fd())).unwrap_or_default()
    }

    /// Init's PID on the host.
    fn init(&self) -> u32 {
        first_child(self.unshare.id()).unwrap()
    }

    fn send(&self, signal: &str) {
        assert!(Command::new("kill").args(["-s", signal, &self.init().to_string()]).status().unwrap().success());
    }

    fn logged(&self, text: &str) {
        eventually(text, || self.read("log").contains(text).then_some(()));
    }

    fn wait(mut self) -> Left {
        let status = eventually("init ends", || self.unshare.try_wait().unwrap());
        Left { code: status.code().unwrap(), log: self.read("log.1") + &self.read("log"), exit: self.read("exit") }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn run(options: &[&str], command: &[&str]) -> Left {
    Pod::start(options, command).wait()
}

fn first_child(pid: u32) -> Option<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn output_and_exit_code_are_kept() {
    let left = run(&[], &["sh", "-c", "echo out; echo err >&2; printf end; exit 7"]);
    assert_eq!((left.code, left.exit.as_str()), (7, "{\"code\":7,\"signal\":null}\n"));
    for line in ["stdout F out", "stderr F err", "stdout F end"] {
        assert!(left.log.lines().any(|logged| logged.ends_with(line)), "{line} in {}", left.log);
    }
}

#[test]
fn death_by_signal_is_kept() {
    let left = run(&[], &["sh", "-c", "kill -KILL $$"]);
    assert_eq!((left.code, left.exit.as_str()), (137, "{\"code\":137,\"signal\":9}\n"));
}

#[test]
fn what_cannot_be_run_is_told() {
    for (command, code, reason) in [
        ("nothing-here", 127, "there is no command nothing-here"),
        ("/nothing/here", 127, "there is no command /nothing/here"),
        ("", 127, "there is no command"),
        ("/etc/passwd", 126, "cannot run /etc/passwd: Permission denied"),
        ("/etc", 126, "cannot run /etc: Permission denied"),
    ] {
        let left = run(&[], &[command]);
        assert_eq!((left.code, left.exit), (code, format!("{{\"code\":{code},\"signal\":null}}\n")), "{command}");
        assert!(left.log.contains("stderr F podd: ") && left.log.contains(reason), "{command}: {}", left.log);
    }
}

#[test]
fn unknown_users_and_bad_arguments_end_with_125() {
    for options in [["--user", "nobody-here"], ["--user", "web:nogroup"], ["--log-bytes", "many"], ["--what", "x"]] {
        let left = run(&options, &["true"]);
        assert_eq!((left.code, left.exit.as_str()), (125, "{\"code\":125,\"signal\":null}\n"), "{options:?}");
        assert!(
            left.log.contains(options[1].trim_start_matches("web:")) || left.log.contains(options[0]),
            "{}",
            left.log
        );
    }
}

#[test]
fn a_missing_or_forbidden_working_directory_is_told() {
    for cwd in ["/nowhere", "/proc/1/cwd"] {
        let left = run(&["--user", "web", "--cwd", cwd], &["true"]);
        assert_eq!(left.code, 126, "{cwd}");
        assert!(left.log.contains(&format!("cannot enter the working directory {cwd}")), "{}", left.log);
    }
}

#[test]
fn the_application_is_another_user_in_its_own_session() {
    let script = "id -u; id -g; id -G; echo $HOME; pwd; cut -d' ' -f1,5,6 /proc/$$/stat; cat /proc/self/status; echo again >/proc/self/fd/2";
    let left = run(&["--user", "web", "--cwd", "/etc"], &["sh", "-c", script]);
    let text: Vec<&str> = left.log.lines().filter_map(|line| line.split_once(" F ").map(|parts| parts.1)).collect();
    assert_eq!(&text[..5], ["33", "33", "33 4", "/var/www", "/etc"]);
    let ids: Vec<&str> = text[5].split(' ').collect();
    assert!(ids[0] != "1" && ids.iter().all(|id| *id == ids[0]), "process, group, session: {ids:?}");
    let signals = ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"];
    for line in signals.into_iter().chain(["Uid:\t33\t33\t33\t33", "Gid:\t33\t33\t33\t33"]) {
        assert!(text.contains(&line), "{line} in {}", left.log);
    }
    assert!(text.contains(&"again"), "its standard error cannot be opened again: {}", left.log);
    assert_eq!(left.code, 0);
}

#[test]
fn signals_reach_the_application() {
    let signals = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "CONT", "ALRM"];
    let script =
        "for s in $0; do trap \"echo got-$s\" $s; done; trap 'exit 3' PWR; echo ready; while :; do sleep 0.02; done";
    let pod = Pod::start(&[], &["sh", "-c", script, &signals.join(" ")]);
    pod.logged("ready");
    for signal in signals {
        pod.send(signal);
        pod.logged(&format!("got-{signal}"));
    }
    pod.send("PWR");
    assert_eq!(pod.wait().code, 3);
}

#[test]
fn the_stop_signal_ends_an_application_without_handlers() {
    let pod = Pod::start(&[], &["sh", "-c", "echo ready; exec sleep 1000"]);
    pod.logged("ready");
    pod.send("TERM");
    let left = pod.wait();
    assert_eq!((left.code, left.exit.as_str()), (143, "{\"code\":143,\"signal\":15}\n"));
}

#[test]
fn orphans_are_reaped_and_init_stays_small() {
    let script = "for i in $(seq 50); do (sh -c 'sleep 0.01 & exit' &); done; sleep 0.3; echo done; exec sleep 1000";
    let pod = Pod::start(&[], &["sh", "-c", script]);
    pod.logged("done");
    let init = pod.init();
    eventually("one child is left", || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        (children.split_whitespace().count() == 1).then_some(())
    });
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let rss: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    // The rest of its resident memory is page cache, about 900 kB.
    assert!(rss < 128, "{rss} kB of its own");
    let fds: Vec<_> = fs::read_dir(format!("/proc/{init}/fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
        .collect();
    assert_eq!(fds.len(), 8, "three standard streams, signalfd, two pipes, log, the socket for events: {fds:?}");
}

#[test]
fn grandchildren_that_hold_the_pipes_do_not_hold_the_pod() {
    let begin = Instant::now();
    let left = run(&[], &["sh", "-c", "sleep 1000 & echo last words; exit 5"]);
    assert_eq!(left.code, 5);
    assert!(left.log.contains("last words"));
    let left = run(&[], &["sh", "-c", "while :; do echo talk; sleep 0.01; done & exit 6"]);
    assert_eq!(left.code, 6);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn the_log_is_bounded_and_keeps_the_newest() {
    let left = run(&["--log-bytes", "65536"], &["seq", "50000"]);
    assert_eq!(left.code, 0);
    assert!((30_000..=65_536).contains(&left.log.len()), "{}", left.log.len());
    let numbers: Vec<u32> = left.log.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&50_000));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn a_full_disk_neither_stops_the_application_nor_hides_the_loss() {
    let script = "echo before; sleep 0.2; yes >/.podd/fill 2>/dev/null; seq 20000; sleep 0.3; rm /.podd/fill; sleep 1.5; echo after";
    let left = run(&["--log-bytes", "1048576"], &["sh", "-c", script]);
    assert_eq!((left.code, left.exit.as_str()), (0, "{\"code\":0,\"signal\":null}\n"));
    assert!(left.log.contains("stdout F before\n"), "{}", left.log);
    assert!(left.log.contains("log lines were dropped"), "{}", left.log);
    assert!(left.log.ends_with("stdout F after\n"));
    assert!(
        left.log.lines().all(|line| line.len() > 40 && line.starts_with("20") && line.as_bytes()[29] == b'Z'),
        "a garbled line"
    );
}
