//! The life of a pod on one host: run, look, talk to it, end it, forget it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::lab::{Run, eventually, rootfs, run};
use tests::{Lab, traces};

const SOON: Duration = Duration::from_secs(10);

/// Runs a pod from busybox with these flags and this script.
#[track_caller]
fn pod(lab: &Lab, name: &str, flags: &[&str], script: &str) -> String {
    let root = rootfs("busybox");
    let mut words = vec!["run", "--name", name, "--rootfs", &root];
    words.extend(flags);
    words.extend(["--", "sh", "-c", script]);
    lab.ok("a", &words)
}

fn inspect(lab: &Lab, name: &str) -> Value {
    lab.json("a", &["inspect", name])[0].clone()
}

#[track_caller]
fn until_it_ended(lab: &Lab, name: &str) -> Value {
    eventually(&format!("{name} ends"), SOON, || lab.state("a", name).as_deref() == Some("exited"));
    inspect(lab, name)["exit"].clone()
}

fn exec(lab: &Lab, name: &str, script: &str) -> Run {
    lab.podctl("a", &["exec", name, "--", "sh", "-c", script])
}

/// What the host shows once podd has tried CRIU and the first pod has brought its layer.
fn warm_traces(lab: &Lab) -> Vec<String> {
    pod(lab, "warm", &[], "exit");
    until_it_ended(lab, "warm");
    lab.ok("a", &["rm", "warm"]);
    traces::settled(lab, "a")
}

/// Whether the LAN's client gets an echo from there.
fn answers(lab: &Lab, address: &str) -> bool {
    let busybox = format!("{}/bin/busybox", rootfs("busybox"));
    run(lab.client(&[&busybox, "ping", "-c", "1", "-W", "2", address])).code == 0
}

#[test]
fn exit_codes_and_reasons_are_kept() {
    let lab = Lab::up(1);
    let root = rootfs("busybox");
    for (name, command, code, signal, reason) in [
        ("fine", &["true"][..], 0, Value::Null, ""),
        ("three", &["sh", "-c", "echo because >&2; exit 3"], 3, Value::Null, "because"),
        ("killed", &["sh", "-c", "kill -9 $$"], 137, json!(9), ""),
        ("segv", &["sh", "-c", "kill -SEGV $$"], 139, json!(11), ""),
        ("missing", &["no-such-program"], 127, Value::Null, "podd: there is no command no-such-program in the pod"),
        ("gone", &["/no/such/program"], 127, Value::Null, "podd: there is no command /no/such/program in the pod"),
        ("data", &["/etc/passwd"], 126, Value::Null, "podd: cannot run /etc/passwd: Permission denied (os error 13)"),
    ] {
        let mut words = vec!["run", "--attach", "--name", name, "--rootfs", &root, "--"];
        words.extend(command);
        let attached = lab.podctl("a", &words);
        assert_eq!(attached.code, code, "{name}: {}", attached.err);
        assert_eq!(attached.err.trim(), reason, "{name}: what it says on standard error comes out there");
        assert_eq!(until_it_ended(&lab, name), json!({"code": code, "signal": signal, "oom": false}), "{name}");
        assert!(lab.podctl("a", &["logs", name]).err.contains(reason), "{name}");
    }
    // A daemon that comes back knows them still.
    lab.script(&["kill", "a"]).must();
    lab.script(&["start", "a"]).must();
    assert_eq!(inspect(&lab, "killed")["exit"], json!({"code": 137, "signal": 9, "oom": false}));
    let impossible =
        lab.podctl("a", &["run", "--attach", "--name", "u", "--user", "nobody-here", "--rootfs", &root, "--", "true"]);
    assert_eq!((impossible.code, impossible.err.contains("no user \"nobody-here\"")), (125, true), "{impossible:?}");
}

#[test]
fn a_life_from_create_to_rm_leaves_nothing() {
    let lab = Lab::up(1);
    let before = warm_traces(&lab);
    let folders = || -> Vec<String> {
        let mut all = Vec::new();
        for folder in ["pods", "images"] {
            let entries = fs::read_dir(lab.dir().join("a/state").join(folder));
            all.extend(entries.into_iter().flatten().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()));
        }
        all
    };
    let root = rootfs("busybox");
    let script = "trap 'echo polite; exit 7' TERM; echo hello; while :; do sleep 0.1; done";
    lab.ok("a", &["create", "--name", "web", "--rootfs", &root, "--ip", "10.77.1.1/16", "--", "sh", "-c", script]);
    assert_eq!(lab.state("a", "web").as_deref(), Some("created"));
    assert!(lab.podctl("a", &["exec", "web", "--", "true"]).err.contains("web is not running: it is created"));
    for round in 1..=2 {
        assert_eq!(lab.ok("a", &["start", "web"]), "web\n");
        assert_eq!(lab.state("a", "web").as_deref(), Some("running"));
        eventually("it says hello", SOON, || lab.ok("a", &["logs", "web"]).matches("hello").count() == round);
        assert!(answers(&lab, "10.77.1.1"));
        assert_eq!(lab.ok("a", &["stop", "web"]), "web\n");
        assert_eq!(until_it_ended(&lab, "web"), json!({"code": 7, "signal": null, "oom": false}));
        assert_eq!(lab.ok("a", &["logs", "web"]).matches("polite").count(), round);
        assert!(!answers(&lab, "10.77.1.1"), "its address is free again");
    }
    lab.ok("a", &["rm", "web"]);
    assert_eq!(lab.json("a", &["ls"]), json!([]));
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "a")), "");
    assert_eq!(folders(), Vec::<String>::new());
    // And with force, from every state.
    pod(&lab, "busy", &["--ip", "10.77.1.2/16"], "sleep 1000 & sleep 1000 & wait");
    lab.ok("a", &["create", "--name", "idle", "--rootfs", &root, "--", "true"]);
    pod(&lab, "asleep", &[], "sleep 1000");
    lab.ok("a", &["suspend", "asleep"]);
    lab.ok("a", &["rm", "-f", "busy", "idle", "asleep"]);
    assert_eq!(traces::difference(&before, &traces::settled(&lab, "a")), "");
    assert_eq!(folders(), Vec::<String>::new());
}

#[test]
fn stop_and_kill() {
    let lab = Lab::up(1);
    // A shell that is PID 1's child and waits in `wait` hears signals at once.
    let listens = "for s in HUP USR1 TERM QUIT; do trap \"echo got-$s\" $s; done; sleep 1000 & echo ready; while :; do wait; done";
    let ready = |name: &str| eventually("ready", SOON, || lab.ok("a", &["logs", name]).contains("ready"));
    pod(&lab, "deaf", &["--stop-timeout", "5s"], listens);
    ready("deaf");
    for signal in ["HUP", "SIGUSR1", "15"] {
        lab.ok("a", &["kill", "-s", signal, "deaf"]);
    }
    eventually("signals arrive", SOON, || {
        let log = lab.ok("a", &["logs", "deaf"]);
        ["got-HUP", "got-USR1", "got-TERM"].iter().all(|s| log.contains(s))
    });
    let begun = Instant::now();
    lab.ok("a", &["stop", "deaf"]);
    assert!((5..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(until_it_ended(&lab, "deaf"), json!({"code": 137, "signal": 9, "oom": false}));
    // The flag wins over the pod's own time.
    lab.ok("a", &["start", "deaf"]);
    let begun = Instant::now();
    lab.ok("a", &["stop", "--timeout", "0", "deaf"]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    pod(&lab, "quits", &["--stop-signal", "QUIT"], "trap 'exit 5' QUIT; trap '' TERM; sleep 1000 & echo ready; wait");
    ready("quits");
    lab.ok("a", &["stop", "quits"]);
    assert_eq!(until_it_ended(&lab, "quits")["code"], 5);
    // What stops a process reaches the command only from inside; init would stop, and nothing else.
    let of_command = |name: &str| {
        let all = lab.json("a", &["top", name]);
        all.as_array().unwrap().iter().find(|p| p["pid"] == 2).map(|p| p["state"].clone())
    };
    pod(&lab, "stopped", &[], "exec sleep 1000");
    for signal in ["STOP", "19"] {
        let refused = lab.podctl("a", &["kill", "-s", signal, "stopped"]);
        assert_eq!((refused.code, refused.err.contains("SIGSTOP")), (2, true), "{refused:?}");
    }
    lab.ok("a", &["kill", "-s", "TSTP", "stopped"]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(of_command("stopped"), Some("S".into()), "the kernel drops it, so it is no cure");
    exec(&lab, "stopped", "kill -STOP 2").must();
    eventually("the command is stopped", SOON, || of_command("stopped") == Some("T".into()));
    lab.ok("a", &["kill", "-s", "CONT", "stopped"]);
    eventually("the command goes on", SOON, || of_command("stopped") == Some("S".into()));
    // The default signal of kill ends a pod that does not listen to anything else.
    lab.ok("a", &["start", "deaf"]);
    lab.ok("a", &["kill", "deaf"]);
    assert_eq!(until_it_ended(&lab, "deaf")["signal"], 9);
}

#[test]
fn a_further_command_in_a_pod() {
    let lab = Lab::up(1);
    pod(&lab, "x", &["-e", "COLOUR=red", "-e", "A=1", "--workdir", "/tmp", "--user", "alice"], "sleep 1000");
    let said = |flags: &[&str], script: &str| {
        let mut words = vec!["exec"];
        words.extend(flags);
        words.extend(["x", "--", "sh", "-c", script]);
        lab.podctl("a", &words)
    };
    let plain = said(&[], "echo out; echo err >&2; exit 42");
    assert_eq!((plain.code, plain.out.as_str(), plain.err.as_str()), (42, "out\n", "err\n"));
    assert_eq!(said(&[], "kill -9 $$").code, 137);
    // The pod's own user, environment and folder, unless something else is asked for.
    assert_eq!(said(&[], "id -u; id -g; pwd; echo $COLOUR $A $HOME").out, "1000\n1000\n/tmp\nred 1 /home/alice\n");
    let other = said(&["-u", "bob", "-e", "A=2", "-w", "/etc"], "id -u; pwd; echo $COLOUR $A $HOME");
    assert_eq!(other.out, "1001\n/etc\nred 2 /home/bob\n");
    assert_eq!(said(&["-u", "0:33"], "id -u; id -g").out, "0\n33\n");
    // Its resource limits, not podd's.
    assert_eq!(said(&["-u", "0"], "diff /proc/1/limits /proc/self/limits").must().out, "");
    let missing = lab.podctl("a", &["exec", "x", "--", "no-such-program"]);
    assert_eq!((missing.code, missing.err.contains("no-such-program")), (127, true), "{missing:?}");
    let unknown = said(&["-u", "carol"], "true");
    assert!(unknown.code != 0 && unknown.err.contains("no user \"carol\""), "{unknown:?}");
    // Standard input: all of it, any bytes, and its end.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = lab
        .podctl_command("a", &["exec", "-i", "x", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let received = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(received.status.success() && received.stdout == sent, "{} of {} bytes", received.stdout.len(), sent.len());
    // Whoever leaves takes the command along.
    let mut left = lab.podctl_command("a", &["exec", "x", "--", "sleep", "777"]).spawn().unwrap();
    let runs = || lab.ok("a", &["top", "x"]).contains("sleep 777");
    eventually("the command runs", SOON, runs);
    left.kill().unwrap();
    left.wait().unwrap();
    eventually("the command is gone", SOON, || !runs());
}

#[test]
fn a_terminal_in_a_pod() {
    let lab = Lab::up(1);
    pod(&lab, "x", &[], "sleep 1000");
    let size = nix::pty::Winsize { ws_row: 37, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = lab
        .podctl_command("a", &["exec", "-it", "x", "--", "sh"])
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    let mut terminal = fs::File::from(pty.master);
    let mut reader = terminal.try_clone().unwrap();
    drop(pty.slave);
    let heard = std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        // EIO: the other end is closed.
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    // Typed, so that it is echoed; $(( )) tells the answer from the echo. Ctrl-C ends the sleep, not the shell.
    terminal.write_all(b"tty; stty size; echo answer-$((6*7)); sleep 600\n").unwrap();
    eventually("the sleep runs", SOON, || lab.ok("a", &["top", "x"]).contains("sleep 600"));
    terminal.write_all(b"\x03").unwrap();
    eventually("the sleep is over", SOON, || !lab.ok("a", &["top", "x"]).contains("sleep 600"));
    terminal.write_all(b"exit 9\n").unwrap();
    let code = child.wait().unwrap().code();
    let heard = heard.join().unwrap();
    assert_eq!(code, Some(9), "{heard}");
    for wanted in ["/dev/pts/", "37 101", "answer-42"] {
        assert!(heard.contains(wanted), "{wanted}: {heard}");
    }
}

#[test]
fn users_environment_and_processes() {
    let lab = Lab::up(1);
    let root = rootfs("shell");
    let script = "echo start $(id -un) $(pwd) $COLOUR $(hostname); \
        setpriv --reuid bob --regid bob --clear-groups sleep 1001 & \
        setpriv --reuid 33 --regid 33 --clear-groups sleep 1002 & \
        for i in 1 2 3 4 5; do (sh -c 'sleep 0.1 & exit' &) ; done; \
        sleep 1003";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.toml");
    let toml = format!(
        "name = \"web\"\nrootfs = \"{root}\"\ncommand = [\"bash\", \"-c\", '''{script}''']\nhostname = \"shop\"\nworkdir = \"/srv/www\"\n\
         ip = [\"10.77.1.1/16\", \"fd77::1:1/64\"]\nmemory = \"256M\"\nvolumes = [\"www:/srv/www:ro\"]\nenv = {{ COLOUR = \"blue\", KEEP = \"x\" }}\n"
    );
    fs::write(&file, toml).unwrap();
    fs::create_dir(folder.path().join("www")).unwrap();
    // Paths in the file are relative to it; flags win over it.
    lab.ok("a", &["run", "-f", &file.display().to_string(), "-e", "COLOUR=red"]);
    eventually("it starts", SOON, || lab.ok("a", &["logs", "web"]).contains("start root /srv/www red shop"));
    let detail = inspect(&lab, "web");
    assert_eq!(detail["addresses"], json!(["10.77.1.1/16", "fd77::1:1/64"]));
    assert_eq!((&detail["spec"]["limits"]["memory"], &detail["spec"]["env"]["KEEP"]), (&json!(256 << 20), &json!("x")));
    assert!(answers(&lab, "10.77.1.1") && answers(&lab, "fd77::1:1"));

    let top = || lab.json("a", &["top", "web"]).as_array().unwrap().clone();
    eventually("its programs run, and orphans are reaped", SOON, || {
        let all = top();
        let runs = |n: u32| all.iter().any(|p| p["command"] == format!("sleep {n}"));
        [1001, 1002, 1003].into_iter().all(runs) && all.iter().all(|p| p["state"] != "Z" && p["command"] != "sleep 0.1")
    });
    let all = top();
    let of =
        |command: &str| all.iter().find(|p| p["command"] == command).unwrap_or_else(|| panic!("{command}: {all:#?}"));
    let uids: Vec<i64> = [1001, 1002, 1003].map(|n| of(&format!("sleep {n}"))["uid"].as_i64().unwrap()).into();
    assert_eq!(uids, [1001, 33, 0]);
    assert_eq!((all[0]["pid"].as_i64(), all[0]["ppid"].as_i64()), (Some(1), Some(0)));
    // On the host each is somebody else, in the pod's own range.
    let base = detail["id_base"].as_u64().unwrap();
    let host_pid = of("sleep 1002")["host_pid"].as_i64().unwrap();
    assert_eq!(u64::from(fs::metadata(format!("/proc/{host_pid}")).unwrap().uid()), base + 33);
    assert!(base >= 0x8_0000 && base.is_multiple_of(65536));

    let stats = &lab.json("a", &["stats", "web"])[0];
    assert_eq!(stats["pids"].as_u64(), Some(all.len() as u64));
    assert_eq!(stats["memory_limit"], json!(256 << 20));
    for counter in ["cpu_usec", "memory", "rx_bytes", "tx_bytes"] {
        assert!(stats[counter].as_u64().unwrap() > 0, "{counter}: {stats}");
    }
}

#[test]
fn restart_policies() {
    let lab = Lab::up(1);
    let restarts = |name: &str| inspect(&lab, name)["restarts"].as_u64().unwrap();
    pod(&lab, "once", &["--restart", "no"], "exit 1");
    pod(&lab, "failing", &["--restart", "on-failure"], "echo run; exit 1");
    pod(&lab, "third-time", &["--restart", "on-failure"], "echo x >>/n; [ $(wc -l </n) -ge 3 ]");
    pod(&lab, "always", &["--restart", "always"], "echo run");
    let begun = Instant::now();
    eventually("they are restarted", Duration::from_secs(20), || restarts("failing") >= 4 && restarts("always") >= 4);
    // The pauses double from 0.1 s: four of them take 1.5 s.
    assert!(begun.elapsed() > Duration::from_millis(1000), "{:?}", begun.elapsed());
    assert_eq!(until_it_ended(&lab, "third-time")["code"], 0);
    assert_eq!((restarts("third-time"), restarts("once")), (2, 0));
    // A stop is an answer to a pod that keeps ending, also in the pause before its next start.
    lab.ok("a", &["stop", "always", "failing"]);
    let then = (restarts("always"), restarts("failing"));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((restarts("always"), restarts("failing")), then);
    assert_eq!(lab.state("a", "always").as_deref(), Some("exited"));
    // A pod that was killed from outside is one that ended; one that was asked to stop is not.
    pod(&lab, "steady", &["--restart", "always"], "exec sleep 1000");
    let pid = |name: &str| inspect(&lab, name)["pid"].as_i64();
    let first = pid("steady").unwrap();
    run({
        let mut kill = Command::new("kill");
        kill.args(["-9", &first.to_string()]);
        kill
    })
    .must();
    eventually("it runs again", SOON, || pid("steady").is_some_and(|now| now != first));
    lab.ok("a", &["stop", "steady"]);
    let then = restarts("steady");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((restarts("steady"), pid("steady")), (then, None));
}

#[test]
fn logs_are_whole_bounded_and_followed() {
    let lab = Lab::up(1);
    pod(
        &lab,
        "talker",
        &["--log-size", "1M"],
        "echo first; echo odd >&2; yes $(seq -s, 20) | head -c 100000000; echo; echo last",
    );
    let upper = inspect(&lab, "talker")["writable_layer"].as_str().unwrap().to_owned();
    let on_disk = || -> u64 {
        ["log", "log.1"]
            .iter()
            .filter_map(|f| fs::metadata(Path::new(&upper).join(".podd").join(f)).ok())
            .map(|m| m.len())
            .sum()
    };
    let mut most = 0;
    eventually("it has said everything", Duration::from_secs(60), || {
        most = most.max(on_disk());
        lab.state("a", "talker").as_deref() == Some("exited")
    });
    most = most.max(on_disk());
    assert!(most <= 1 << 20, "{most} bytes on disk");
    assert!(on_disk() > 400_000, "{}: the newer half stays", on_disk());
    assert_eq!(lab.ok("a", &["logs", "--tail", "1", "talker"]), "last\n");

    pod(
        &lab,
        "slow",
        &[],
        "echo one; echo two >&2; sleep 0.5; printf 'no line end'; sleep 0.5; echo; echo three; sleep 0.3",
    );
    let followed = lab.podctl("a", &["logs", "-f", "slow"]);
    assert_eq!((followed.out.as_str(), followed.err.as_str()), ("one\nno line end\nthree\n", "two\n"));
    let stamped = lab.ok("a", &["logs", "--timestamps", "slow"]);
    let first = stamped.lines().next().unwrap();
    assert!(first.starts_with("20") && first.ends_with("Z one"), "{first}");
    let lines: Vec<Value> =
        lab.ok("a", &["--json", "logs", "slow"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let streams: Vec<&str> = lines.iter().map(|l| l["stream"].as_str().unwrap()).collect();
    assert_eq!(streams, ["stdout", "stderr", "stdout", "stdout"]);
    assert!(lines.is_sorted_by_key(|l| l["time"].as_str().unwrap().to_owned()));
}

#[test]
fn a_log_is_followed_over_restarts_and_to_the_end() {
    let lab = Lab::up(2);
    pod(&lab, "thrice", &["--restart", "on-failure"], "echo x >>/n; echo run $(wc -l </n); [ $(wc -l </n) -ge 3 ]");
    let followed = lab.podctl("a", &["logs", "-f", "thrice"]);
    assert_eq!((followed.out.as_str(), followed.err.as_str()), ("run 1\nrun 2\nrun 3\n", ""));
    // One that is stopped ends for good; attached to it, one sees one run.
    let words = ["run", "--attach", "--restart", "always", "--name", "ever", "--rootfs", &rootfs("busybox"), "--"];
    let attached = lab.podctl("a", &[&words[..], &["sh", "-c", "echo run; sleep 0.3; exit 3"]].concat());
    assert_eq!((attached.code, attached.out.lines().next()), (3, Some("run")), "{attached:?}");
    let follow = |name: &str| {
        let mut command = lab.podctl_command("a", &["logs", "-f", name]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let following = follow("ever");
    eventually("it runs for the third time", SOON, || lab.ok("a", &["logs", "ever"]).lines().count() >= 3);
    lab.ok("a", &["stop", "ever"]);
    let said = following.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).matches("run").count() >= 3, "{said:?}");
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    // And one that leaves: where to, is told.
    pod(&lab, "cache", &["--restart", "always"], "echo here; exec sleep 1000");
    eventually("it has begun", SOON, || !lab.ok("a", &["logs", "cache"]).is_empty());
    let following = follow("cache");
    lab.ok("a", &["migrate", "cache", "--to", "b"]);
    let said = following.wait_with_output().unwrap();
    assert_eq!(
        (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)),
        ("here\n".into(), "cache went to b\n".into())
    );
}

#[test]
fn a_pod_between_two_hosts_says_where_it_goes() {
    let lab = Lab::up(2);
    pod(&lab, "web", &[], "exec sleep 1000");
    // The handover is over, and the target takes its time.
    lab.fault("b", "target committed pause 3000");
    let moving = lab.podctl_command("a", &["migrate", "web", "--to", "b"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("it is given", SOON, || lab.state("a", "web").as_deref() == Some("given"));
    for verb in [&["exec", "web", "--", "true"][..], &["kill", "-s", "HUP", "web"]] {
        let answer = lab.podctl("a", verb);
        assert!(answer.err.contains("web is not running: it is going to b\n"), "{answer:?}");
    }
    assert!(lab.podctl("a", &["stop", "web"]).err.contains("web is being migrated"));
    assert!(moving.wait_with_output().unwrap().status.success());
    assert_eq!((lab.state("a", "web"), lab.state("b", "web").as_deref()), (None, Some("running")));
}

#[test]
fn a_long_line_is_one_line() {
    let lab = Lab::up(1);
    pod(&lab, "long", &[], "head -c 50000 /dev/zero | tr '\\0' x; echo; echo after");
    until_it_ended(&lab, "long");
    let log = lab.ok("a", &["logs", "long"]);
    let lengths: Vec<usize> = log.lines().map(str::len).collect();
    assert_eq!(lengths, [50_000, 5]);
}

#[test]
fn images_of_others() {
    let lab = Lab::up(1);
    let made = tempfile::tempdir().unwrap();
    let layout = oci_layout(made.path());
    let archive = docker_archive(made.path());
    let mut layers = Vec::new();
    for (name, image) in [
        ("one", format!("oci:{layout}:v1")),
        ("two", format!("oci:{layout}")),
        ("three", format!("docker-archive:{archive}")),
    ] {
        lab.ok("a", &["run", "--name", name, "--image", &image]);
        assert_eq!(until_it_ended(&lab, name)["code"], 0, "{}", lab.podctl("a", &["logs", name]).err);
        assert_eq!(
            lab.ok("a", &["logs", name]),
            "entry default words 1000 /home/alice from-image\nupper\nno-hidden\n",
            "{name}"
        );
        layers.push(inspect(&lab, name)["layers"].clone());
    }
    assert_eq!(layers[0].as_array().unwrap().len(), 2);
    assert!(layers.iter().all(|l| *l == layers[0]), "the same content is the same layer: {layers:?}");
    let stored = fs::read_dir(lab.dir().join("a/state/layers"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| fs::read_dir(p).map_or(0, Iterator::count));
    assert!(stored.sum::<usize>() < 10, "layers are kept once");
    // The user's words win over the image's, but for the entry point.
    let flags = [
        "run",
        "--name",
        "four",
        "--image",
        &format!("oci:{layout}:v1"),
        "--user",
        "0",
        "-e",
        "WHENCE=flag",
        "-w",
        "/",
        "--",
        "own",
    ];
    lab.ok("a", &flags);
    until_it_ended(&lab, "four");
    assert!(lab.ok("a", &["logs", "four"]).starts_with("entry own 0 / flag\n"));
    // A layer that is shared is not changed by anyone.
    pod(&lab, "w1", &[], "echo changed >/etc/passwd; rm -rf /home; sleep 1000");
    pod(&lab, "w2", &[], "sleep 1000");
    eventually("the first has written", SOON, || exec(&lab, "w1", "cat /etc/passwd").out == "changed\n");
    assert_eq!(inspect(&lab, "w1")["layers"], inspect(&lab, "w2")["layers"]);
    assert!(exec(&lab, "w2", "cat /etc/passwd; ls /home").out.contains("alice"));
}

/// A folder for a layer, as root's.
fn tar(from: &Path, to: &Path) {
    let mut command = Command::new("tar");
    command
        .args(["--numeric-owner", "--owner=0", "--group=0", "--mtime=2024-02-29", "--sort=name", "-C"])
        .arg(from)
        .arg("-cf")
        .arg(to)
        .arg(".");
    run(command).must();
}

fn sha256(file: &Path) -> String {
    let mut command = Command::new("sha256sum");
    command.arg(file);
    run(command).must().out[..64].to_owned()
}

/// Two layers: busybox with a file to hide, and one that hides it.
fn layers(at: &Path) -> [std::path::PathBuf; 2] {
    let files = [at.join("base.tar"), at.join("top.tar")];
    if files[0].exists() {
        return files;
    }
    let base = at.join("base");
    for folder in ["bin", "etc", "home/alice", "tmp"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    fs::copy(Path::new(&rootfs("busybox")).join("bin/busybox"), base.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", base.join("bin/sh")).unwrap();
    fs::write(base.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n").unwrap();
    fs::write(base.join("etc/which"), "lower\n").unwrap();
    fs::write(base.join("etc/hidden"), "").unwrap();
    let top = at.join("top");
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("etc/which"), "upper\n").unwrap();
    fs::write(top.join("etc/.wh.hidden"), "").unwrap();
    let entry = "#!/bin/sh\necho entry \"$@\" $(busybox id -u) $(pwd) $WHENCE\nbusybox cat /etc/which\n[ -e /etc/hidden ] || echo no-hidden\n";
    fs::write(top.join("entry.sh"), entry).unwrap();
    fs::set_permissions(top.join("entry.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    tar(&base, &files[0]);
    tar(&top, &files[1]);
    files
}

fn image_config(layers: &[std::path::PathBuf]) -> String {
    let digests: Vec<String> = layers.iter().map(|l| format!("sha256:{}", sha256(l))).collect();
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/entry.sh"], "Cmd": ["default", "words"], "Env": ["PATH=/bin", "WHENCE=from-image"],
            "User": "alice", "WorkingDir": "/home/alice"},
        "rootfs": {"type": "layers", "diff_ids": digests}
    })
    .to_string()
}

fn oci_layout(at: &Path) -> String {
    let files = layers(at);
    let layout = at.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let add = |file: &Path, kind: &str| {
        let digest = sha256(file);
        fs::copy(file, blobs.join(&digest)).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": fs::metadata(file).unwrap().len()})
    };
    let text = |name: &str, text: String, kind: &str| {
        fs::write(at.join(name), text).unwrap();
        add(&at.join(name), kind)
    };
    let config = text("config", image_config(&files), "application/vnd.oci.image.config.v1+json");
    let listed: Vec<Value> = files.iter().map(|f| add(f, "application/vnd.oci.image.layer.v1.tar")).collect();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": listed});
    let mut manifest = text("manifest", manifest.to_string(), kind);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    layout.display().to_string()
}

fn docker_archive(at: &Path) -> String {
    let files = layers(at);
    let folder = at.join("docker");
    fs::create_dir(&folder).unwrap();
    let mut names = Vec::new();
    for (i, file) in files.iter().enumerate() {
        names.push(format!("layer{i}.tar"));
        fs::copy(file, folder.join(&names[i])).unwrap();
    }
    fs::write(folder.join("config.json"), image_config(&files)).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["test:v1"], "Layers": names}]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = at.join("docker.tar");
    tar(&folder, &archive);
    archive.display().to_string()
}

/// podd is killed and comes back: pods run on, and it finds them.
#[test]
fn the_daemon_may_die() {
    let lab = Lab::up(1);
    pod(&lab, "counts", &[], "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done");
    pod(&lab, "ends", &[], "until [ -e /go ]; do sleep 0.05; done; exit 11");
    let pid = inspect(&lab, "counts")["pid"].clone();
    let mut ends = Value::Null;
    eventually("its shell runs", SOON, || {
        let processes = lab.json("a", &["top", "ends"]);
        let shell = processes.as_array().unwrap().iter().find(|p| p["command"].as_str().unwrap().starts_with("sh -c"));
        ends = shell.map_or(Value::Null, |shell| shell["host_pid"].clone());
        !ends.is_null()
    });
    lab.script(&["kill", "a"]).must();
    let down = lab.podctl("a", &["ls"]);
    assert_eq!(down.code, 4, "{down:?}");
    // It ends while nobody looks.
    fs::write(format!("/proc/{ends}/root/go"), "").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    lab.script(&["start", "a"]).must();
    assert_eq!(until_it_ended(&lab, "ends"), json!({"code": 11, "signal": null, "oom": false}));
    assert_eq!(inspect(&lab, "counts")["pid"], pid);
    let numbers: Vec<u32> = lab.ok("a", &["logs", "counts"]).lines().map(|l| l.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
    let last = *numbers.last().unwrap();
    eventually("it counts on", SOON, || {
        lab.ok("a", &["logs", "--tail", "1", "counts"]).trim().parse::<u32>().unwrap() > last
    });
}
