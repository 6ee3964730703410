//! Nothing gets out of a pod: a program that tries everything it can think of, hostile root file systems, volumes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use tests::lab::{Run, binary, eventually, rootfs, run};
use tests::{Lab, traces};

/// Attempts that `breakout` makes at least: fewer mean that it did not get to its end.
const ATTEMPTS: usize = 70;

#[test]
fn no_attempt_gets_out_and_the_host_is_unharmed() {
    let lab = Lab::up(1);
    let root = rootfs("shell");
    // The first pod of a host leaves the parent cgroup and the layer, which later ones share.
    lab.ok("a", &["run", "--name", "first", "--rootfs", &root, "--", "sleep", "1000"]);
    lab.ok("a", &["rm", "-f", "first"]);
    let before = Host::look(&lab);
    // In the host's own network namespace, where abstract names live.
    let host = traces::holder(&lab, "a");
    let listener = traces::in_network_of(host, || UnixListener::bind_addr(&abstract_name())).unwrap();
    // The host itself reaches the socket, or the attempt would prove nothing.
    traces::in_network_of(host, || UnixStream::connect_addr(&abstract_name())).unwrap();

    let arguments = breakout_arguments(&lab, &root);
    let command = format!("until [ -e /tmp/go ]; do sleep 0.05; done; exec {arguments}");
    lab.ok("a", &["run", "--name", "x", "--rootfs", &root, "--ip", "10.77.1.1/16", "--", "sh", "-c", &command]);
    put(&lab, "x", &binary("breakout"), "/tmp/breakout");
    for user in ["root", "alice"] {
        let run = lab.podctl("a", &["exec", "--user", user, "x", "--", "sh", "-c", &arguments]);
        judge(user, &run.out);
        assert_eq!(run.code, 0, "{user}: {}", run.err);
    }
    // And as the pod's own command, which has another parent and other descriptors.
    lab.ok("a", &["exec", "x", "--", "touch", "/tmp/go"]);
    eventually("the pod's command ends", Duration::from_secs(20), || lab.state("a", "x").as_deref() == Some("exited"));
    judge("the pod's command", &lab.ok("a", &["logs", "x"]));
    assert_eq!(lab.json("a", &["inspect", "x"])[0]["exit"]["code"], 0);

    drop(listener);
    lab.ok("a", &["rm", "x"]);
    before.must_equal(&Host::look(&lab));
}

#[test]
fn names_and_addresses_inside_are_the_pods() {
    let lab = Lab::up(1);
    let root = rootfs("shell");
    lab.ok(
        "a",
        &[
            "run",
            "--name",
            "web",
            "--hostname",
            "shop",
            "--rootfs",
            &root,
            "--ip",
            "10.77.1.1/16",
            "--",
            "sleep",
            "600",
        ],
    );
    let inside = |script: &str| lab.ok("a", &["exec", "web", "--", "sh", "-c", script]);
    assert_eq!(inside("hostname; cat /proc/sys/kernel/hostname; uname -n"), "shop\nshop\nshop\n");
    assert_eq!(inside("ls /sys/class/net | sort | xargs"), "eth0 lo\n");
    let addresses = inside("ip -o -4 addr show | awk '{print $2, $4}' | sort");
    assert_eq!(addresses, "eth0 10.77.1.1/16\nlo 127.0.0.1/8\n");
    assert_eq!(inside("cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "/\n");
    // PIDs begin anew, and only the pod's are there: its init, its command, and this shell with what it runs.
    assert_eq!(inside("cat /proc/1/comm; cat /proc/2/comm; ls -d /proc/[0-9]* | wc -l").lines().next(), Some("init"));
    let count: u32 = inside("ls -d /proc/[0-9]* | wc -l").trim().parse().unwrap();
    assert!((3..=6).contains(&count), "{count} processes");
    // Ids too: the whole range, beginning with 0.
    let map = inside("cat /proc/self/uid_map");
    let fields: Vec<&str> = map.split_whitespace().collect();
    assert_eq!((fields[0], fields[2]), ("0", "65536"));
    assert_ne!(fields[1], "0", "root inside is nobody outside");
    // An overlay names its layers in the mount table: by names that say nothing about the host.
    let table = inside("cat /proc/self/mountinfo /proc/1/mountinfo");
    let state = lab.dir().join("a/state").display().to_string();
    assert!(!table.contains(&state) && !table.contains("lowerdir=/") && !table.contains("upperdir=/"), "{table}");
}

/// A root file system in which podd's own mount points are links to a folder that everyone on the host may write to.
#[test]
fn links_in_a_rootfs_do_not_lead_out() {
    let lab = Lab::up(1);
    let host = HostFolder::new();
    for place in ["proc", "sys", "dev", ".podd", "etc", "dev/pts", "dev/shm", "tmp"] {
        let root = tempfile::tempdir().unwrap();
        small_root(root.path());
        let path = root.path().join(place);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        }
        // The same path exists inside: whoever resolves the link in the pod's root finds something, too.
        fs::create_dir_all(root.path().join(host.path().strip_prefix("/").unwrap()).join("folder")).unwrap();
        symlink(host.path(), &path).unwrap();
        let name = format!("h{}", place.replace(['/', '.'], "-"));
        let root = root.path().display().to_string();
        let started = lab.podctl("a", &["run", "--name", &name, "--rootfs", &root, "--", "sleep", "600"]);
        match started.code {
            0 => {
                let look = lab.podctl(
                    "a",
                    &["exec", &name, "--", "sh", "-c", "cat /etc/* /tmp/* 2>&1; ls -R /proc/self/ns /dev"],
                );
                assert!(!look.out.contains("of the host"), "{place}: {}", look.out);
                let terminal = lab.podctl("a", &["exec", "-t", &name, "--", "true"]);
                assert_eq!(terminal.code, 0, "{place}: {}", terminal.err);
                lab.ok("a", &["rm", "-f", &name]);
            }
            1 => assert!(started.err.contains(&format!("/{place} is a symbolic link")), "{place}: {}", started.err),
            other => panic!("{place}: exit code {other}: {}", started.err),
        }
        host.must_be_untouched(place);
    }
}

#[test]
fn volumes_cannot_be_led_astray() {
    let lab = Lab::up(1);
    let host = HostFolder::new();
    let root = tempfile::tempdir().unwrap();
    small_root(root.path());
    symlink(host.path(), root.path().join("absolute")).unwrap();
    symlink(format!("../../../../..{}", host.path().display()), root.path().join("relative")).unwrap();
    symlink("/proc/1/root", root.path().join("magic")).unwrap();
    let root = root.path().display().to_string();
    let source = tempfile::tempdir().unwrap();
    for target in ["/absolute", "/absolute/new", "/relative/new", "/magic/new"] {
        let volume = format!("{}:{target}", source.path().display());
        let refused =
            lab.podctl("a", &["run", "--name", "v", "--rootfs", &root, "--volume", &volume, "--", "sleep", "600"]);
        assert_eq!(refused.code, 1, "{target}: {}", refused.err);
        assert!(refused.err.contains("is a symbolic link"), "{target}: {}", refused.err);
        assert_eq!(lab.state("a", "v"), None);
        host.must_be_untouched(target);
    }
}

#[test]
fn volumes_are_what_was_asked_for_and_stay_so() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().display().to_string();
    fs::create_dir(folder.path().join("below")).unwrap();
    fs::write(folder.path().join("file"), "from the host").unwrap();
    // A device of the host, and a file system mounted below the volume, which is not part of it.
    for host in ["a", "b"] {
        run(lab.on(host, &["mount", "-t", "tmpfs", "tmpfs", &format!("{path}/below")])).must();
        run(lab.on(host, &["touch", &format!("{path}/below/other")])).must();
    }
    run(lab.on("a", &["mknod", "-m", "666", &format!("{path}/zero"), "c", "1", "5"])).must();
    let read_only = format!("{path}:/made/for/it:ro");
    let writable = format!("{path}:/data");
    lab.ok("a", &["run", "--name", "v", "--rootfs", &root, "-v", &read_only, "-v", &writable, "--", "sleep", "600"]);
    let inside = |host: &str, script: &str| lab.podctl(host, &["exec", "v", "--", "sh", "-c", script]);
    let check = |host: &str, when: &str| {
        assert_eq!(inside(host, "cat /made/for/it/file").out, "from the host", "{when}");
        for denied in ["echo x >/made/for/it/file", "echo x >/made/for/it/new", "rm /made/for/it/file"] {
            let tried = inside(host, denied);
            assert!(tried.code != 0 && tried.err.contains("Read-only file system"), "{when}: {denied}: {tried:?}");
        }
        assert_eq!(inside(host, "ls /data/below").out, "", "{when}");
        let device = inside(host, "head -c 1 /data/zero");
        assert!(device.code != 0 && device.err.contains("Permission denied"), "{when}: {device:?}");
        assert_eq!(
            inside(host, &format!("echo {when} >/data/{when} && cat /made/for/it/{when}")).out,
            format!("{when}\n")
        );
        assert_eq!(fs::read_to_string(folder.path().join(when)).unwrap(), format!("{when}\n"));
    };
    check("a", "started");
    assert_eq!(inside("a", "stat -c %u /made /made/for").out, "0\n0\n", "folders on the way belong to the pod");
    lab.ok("a", &["suspend", "v"]);
    lab.ok("a", &["resume", "v"]);
    check("a", "resumed");
    lab.ok("a", &["migrate", "v", "--to", "b"]);
    check("b", "moved");
    lab.ok("b", &["suspend", "v"]);
    lab.ok("b", &["resume", "v"]);
    check("b", "resumed-there");
}

/// podd reads and deletes files that belong to the pod: links in there mean nothing to it.
#[test]
fn the_pods_own_files_cannot_mislead_podd() {
    let lab = Lab::up(1);
    let host = HostFolder::new();
    let root = rootfs("busybox");
    lab.ok("a", &["run", "--name", "x", "--rootfs", &root, "--", "sleep", "600"]);
    let target = host.path().join("file").display().to_string();
    let script = format!(
        "for f in log log.1 exit; do rm -f /.podd/$f; ln -s {target} /.podd/$f; done; ln -s {} /link; ln -s / /up",
        host.path().display()
    );
    lab.ok("a", &["exec", "x", "--", "sh", "-c", &script]);
    assert!(!lab.ok("a", &["logs", "x"]).contains("of the host"));
    // The folder cannot be put elsewhere while it is mounted upon.
    let moved = lab.podctl("a", &["exec", "x", "--", "mv", "/dev", "/dev2"]);
    assert_ne!(moved.code, 0, "{moved:?}");
    lab.ok("a", &["kill", "-s", "KILL", "x"]);
    eventually("the pod ends", Duration::from_secs(10), || lab.state("a", "x").as_deref() == Some("exited"));
    assert!(!lab.ok("a", &["logs", "x"]).contains("of the host"));
    lab.ok("a", &["rm", "x"]);
    host.must_be_untouched("rm");
}

fn abstract_name() -> SocketAddr {
    SocketAddr::from_abstract_name(format!("podd-test-{}", std::process::id())).unwrap()
}

fn breakout_arguments(lab: &Lab, root: &str) -> String {
    let holder = traces::holder(lab, "a").to_string();
    let outside = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    let dir = lab.dir().display().to_string();
    let mut words = vec!["/tmp/breakout".to_owned(), "--host-pid".into(), holder, "--abstract".into()];
    words.push(format!("podd-test-{}", std::process::id()));
    for marker in [&dir, root, "/run/podd", "podd-lab-", &outside] {
        words.extend(["--host-marker".into(), marker.to_owned()]);
    }
    words.join(" ")
}

/// Every line must say "blocked", and none may be missing.
fn judge(who: &str, output: &str) {
    let attempts: Vec<serde_json::Value> = output.lines().map(|l| serde_json::from_str(l).expect(l)).collect();
    let through: Vec<_> = attempts.iter().filter(|a| a["blocked"] != true).collect();
    assert!(through.is_empty(), "{who} got through: {through:#?}");
    assert!(attempts.len() >= ATTEMPTS, "{who} made {} attempts only", attempts.len());
    assert_eq!(attempts.last().unwrap()["name"], "unshare-mount", "{who} did not come to the end");
}

/// Copies a program into a pod through `exec`'s standard input.
fn put(lab: &Lab, pod: &str, program: &Path, to: &str) {
    let script = format!("cat >{to} && chmod 755 {to}");
    let mut command = lab.podctl_command("a", &["exec", "-i", pod, "--", "sh", "-c", &script]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(program).unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// busybox and the usual folders.
fn small_root(at: &Path) {
    let from = rootfs("busybox");
    for folder in ["bin", "dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::copy(Path::new(&from).join("bin/busybox"), at.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "ls", "cat", "true"] {
        symlink("busybox", at.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder on the host that everyone may write to.
struct HostFolder {
    dir: tempfile::TempDir,
    before: String,
}

impl HostFolder {
    fn new() -> Self {
        // Not below /tmp, which a root file system of these tests lacks.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("file"), "1970-01-01T00:00:00Z stdout F of the host\n").unwrap();
        fs::write(dir.path().join("passwd"), "of the host\n").unwrap();
        for path in ["", "folder", "file"] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let before = Self::listing(dir.path());
        Self { dir, before }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn listing(path: &Path) -> String {
        let mut command = std::process::Command::new("find");
        command.arg(path).args(["-printf", "%P %y %U:%G %m %s %l\n"]);
        run(command).must().out
    }

    #[track_caller]
    fn must_be_untouched(&self, by: &str) {
        assert_eq!(Self::listing(self.path()), self.before, "changed by {by}");
    }
}

/// What must be the same afterwards.
struct Host {
    facts: Vec<(String, String)>,
    clock: (SystemTime, Instant),
}

impl Host {
    fn look(lab: &Lab) -> Self {
        let read = |host: &str, script: &str| -> Run { run(lab.on(host, &["sh", "-c", script])).must() };
        // What counts on its own, and what each read changes, is left out.
        let kernel = "grep -r . /proc/sys/kernel /proc/sys/vm /proc/sys/fs --exclude-dir=random --exclude-dir=keys \
            --exclude-dir=pty --exclude-dir=quota --exclude=ns_last_pid --exclude=*-nr --exclude=*-state --exclude=aio-nr --exclude=perf_* \
            --exclude=sched_* 2>/dev/null | sort; true";
        let mut facts = vec![
            ("hostname".to_owned(), read("a", "hostname").out),
            ("kernel settings".to_owned(), read("a", kernel).out),
            ("mounts".to_owned(), read("a", "cat /proc/mounts").out),
            ("devices".to_owned(), read("a", "ls -la /dev /dev/shm").out),
        ];
        facts.push((
            "name of this machine".to_owned(),
            nix::unistd::gethostname().unwrap().to_string_lossy().into_owned(),
        ));
        for process in ["holder", "podd"] {
            let pid = fs::read_to_string(lab.dir().join("a").join(format!("{process}.pid"))).unwrap();
            let stat =
                fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_else(|e| panic!("{process}: {e}"));
            let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().to_owned();
            facts.push((process.to_owned(), format!("{pid} {start}")));
        }
        facts.push(("traces".to_owned(), traces::settled(lab, "a").join("\n")));
        Self { facts, clock: (SystemTime::now(), Instant::now()) }
    }

    #[track_caller]
    fn must_equal(&self, after: &Self) {
        for ((name, before), (_, after)) in self.facts.iter().zip(&after.facts) {
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
            let (before, after) = (lines(before), lines(after));
            let gone: Vec<_> = before.iter().filter(|l| !after.contains(l)).collect();
            let new: Vec<_> = after.iter().filter(|l| !before.contains(l)).collect();
            assert!(gone.is_empty() && new.is_empty(), "{name}: {gone:?} became {new:?}");
        }
        let wall = after.clock.0.duration_since(self.clock.0).expect("the clock went on");
        let real = after.clock.1 - self.clock.1;
        assert!(wall.abs_diff(real) < Duration::from_secs(2), "the clock was set: {wall:?} in {real:?}");
    }
}
