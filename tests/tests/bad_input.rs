//! What a mistake gets: one clear sentence, mostly a cure, the right exit code, and no change on the host.
//!
//! The answers are kept in `docs/BAD_INPUT.md`, as podctl gave them: a changed sentence is a changed document
//! (`UPDATE_DOCS=1 cargo test -p tests --test bad_input` writes it anew).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tests::lab::{Run, binary, eventually, root, rootfs, run};
use tests::{Lab, traces};

/// What is wrong, what is typed, and the exit code. Words in braces stand for what the lab provides.
type Row = (&'static str, &'static [&'static str], i32);

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const UNREACHABLE: i32 = 4;

const POD_FILES: [Row; 22] = [
    ("an impossible name", &["run", "--name", "Web!", "--rootfs", "{root}", "--", "sleep", "1"], USAGE),
    ("a name that is taken", &["run", "--name", "web", "--rootfs", "{root}", "--", "sleep", "1"], FAILED),
    ("no name", &["run", "--rootfs", "{root}", "--", "sleep", "1"], USAGE),
    (
        "an address of another pod",
        &["run", "--name", "x", "--rootfs", "{root}", "--ip", "10.77.1.1/16", "--", "sleep", "1"],
        FAILED,
    ),
    (
        "the address of the host",
        &["run", "--name", "x", "--rootfs", "{root}", "--ip", "10.77.0.1/16", "--", "sleep", "1"],
        FAILED,
    ),
    (
        "an address without prefix length",
        &["run", "--name", "x", "--rootfs", "{root}", "--ip", "10.77.1.9", "--", "sleep", "1"],
        USAGE,
    ),
    (
        "a gateway that is no neighbour",
        &[
            "run",
            "--name",
            "x",
            "--rootfs",
            "{root}",
            "--ip",
            "10.77.1.9/16",
            "--gateway",
            "10.1.1.1",
            "--",
            "sleep",
            "1",
        ],
        USAGE,
    ),
    ("an unknown key in a pod file", &["run", "-f", "{dir}/unknown-key.toml"], USAGE),
    ("a pod file that is not there", &["run", "-f", "{dir}/none.toml"], USAGE),
    ("no root file system", &["run", "--name", "x", "--", "sleep", "1"], USAGE),
    (
        "a root file system that is not there",
        &["run", "--name", "x", "--rootfs", "{dir}/none", "--", "sleep", "1"],
        FAILED,
    ),
    (
        "a root file system that is a file",
        &["run", "--name", "x", "--rootfs", "{dir}/unknown-key.toml", "--", "sleep", "1"],
        FAILED,
    ),
    ("an image of no known kind", &["run", "--name", "x", "--image", "docker.io/redis", "--", "sleep", "1"], USAGE),
    ("an image that is not there", &["run", "--name", "x", "--image", "oci:{dir}/none", "--", "sleep", "1"], FAILED),
    (
        "a damaged image",
        &["run", "--name", "x", "--image", "docker-archive:{dir}/unknown-key.toml", "--", "sleep", "1"],
        FAILED,
    ),
    ("no command", &["run", "--name", "x", "--rootfs", "{root}"], USAGE),
    (
        "an unknown capability",
        &["run", "--name", "x", "--rootfs", "{root}", "--cap-add", "FLY", "--", "sleep", "1"],
        USAGE,
    ),
    (
        "a volume whose host path is not there",
        &["run", "--name", "x", "--rootfs", "{root}", "--volume", "{dir}/none:/data", "--", "sleep", "1"],
        FAILED,
    ),
    (
        "a volume behind a link in the pod",
        &["run", "--name", "x", "--rootfs", "{root}", "--volume", "{dir}:/var/run/data", "--", "sleep", "1"],
        FAILED,
    ),
    (
        "a volume over a place of podd's own",
        &["run", "--name", "x", "--rootfs", "{root}", "--volume", "{dir}:/proc/data", "--", "sleep", "1"],
        USAGE,
    ),
    (
        "a memory limit that is no size",
        &["run", "--name", "x", "--rootfs", "{root}", "--memory", "lots", "--", "sleep", "1"],
        USAGE,
    ),
    (
        "an unknown restart policy",
        &["run", "--name", "x", "--rootfs", "{root}", "--restart", "maybe", "--", "sleep", "1"],
        USAGE,
    ),
];

const STATES: [Row; 22] = [
    ("a pod that is not there", &["inspect", "nosuch"], FAILED),
    ("the log of a pod that is not there", &["logs", "nosuch"], FAILED),
    ("start a pod that runs", &["start", "web"], FAILED),
    ("start a suspended pod", &["start", "asleep"], FAILED),
    ("stop a pod that does not run", &["stop", "idle"], FAILED),
    ("stop a pod that has ended", &["stop", "ended"], FAILED),
    ("send an unknown signal", &["kill", "-s", "NOPE", "web"], USAGE),
    ("send the signal that nobody can pass on", &["kill", "-s", "STOP", "web"], USAGE),
    ("remove a pod that runs", &["rm", "web"], FAILED),
    ("exec in a pod that does not run", &["exec", "idle", "--", "true"], FAILED),
    ("exec in a suspended pod", &["exec", "asleep", "--", "true"], FAILED),
    ("exec without a command", &["exec", "web"], USAGE),
    ("exec a command that is not there", &["exec", "web", "--", "nosuch"], 127),
    ("suspend a pod that does not run", &["suspend", "idle"], FAILED),
    ("resume a pod that runs", &["resume", "web"], FAILED),
    ("checkpoint a pod that does not run", &["checkpoint", "idle"], FAILED),
    ("checkpoint over a file", &["checkpoint", "web", "-o", "{dir}/unknown-key.toml"], FAILED),
    ("checkpoint into a folder that is not there", &["checkpoint", "web", "-o", "{dir}/none/web.img"], FAILED),
    ("restore a file that is not there", &["restore", "{dir}/none.img"], FAILED),
    ("restore a file that is no image", &["restore", "{dir}/unknown-key.toml"], FAILED),
    ("restore a pod that runs", &["restore", "web"], FAILED),
    ("restore an unknown pod", &["restore", "nosuch"], FAILED),
];

const HOSTS: [Row; 9] = [
    ("move to an unknown host", &["migrate", "web", "--to", "nowhere"], USAGE),
    ("move to where it is", &["migrate", "web", "--to", "a"], USAGE),
    ("move a pod that does not run", &["migrate", "idle", "--to", "b"], FAILED),
    ("move without a target", &["migrate", "web"], USAGE),
    ("found a second fleet", &["host", "init", "--name", "a", "--listen", "10.77.0.1:7443"], FAILED),
    ("give a host another name", &["host", "init", "--name", "z", "--listen", "10.77.0.1:7443"], USAGE),
    ("invite a host that is there", &["host", "invite", "b"], FAILED),
    (
        "join with a token that is none",
        &["host", "join", "10.77.0.2:7443", "nonsense", "--name", "a", "--listen", "10.77.0.1:7443"],
        USAGE,
    ),
    ("an unknown host for podctl", &["--host", "z", "ls"], USAGE),
];

const PATCHING: [Row; 10] = [
    ("remove a host that is not there", &["host", "rm", "nosuch"], USAGE),
    ("have a host remove itself", &["host", "rm", "a", "--gone"], USAGE),
    ("a plan of an unknown host", &["patch", "plan", "nosuch"], USAGE),
    ("a run of an unknown host", &["patch", "run", "nosuch"], USAGE),
    ("the report of an unknown run", &["patch", "history", "nosuch"], FAILED),
    ("pause when no run is under way", &["patch", "pause"], FAILED),
    ("resume a run that is not there", &["patch", "resume", "nosuch"], FAILED),
    ("a cordon without a reason", &["host", "cordon"], USAGE),
    ("a cordon for no length of time", &["host", "cordon", "--reason", "x", "--for", "soon"], USAGE),
    ("uncordon what nobody has cordoned", &["host", "uncordon"], FAILED),
];

const COMMAND_LINE: [Row; 5] = [
    ("an unknown verb", &["fly"], USAGE),
    ("an unknown flag", &["run", "--nonsense"], USAGE),
    ("no pod named", &["stop"], USAGE),
    ("podd does not run", &["--socket", "{dir}/none.sock", "ls"], UNREACHABLE),
    ("a socket that is none", &["--socket", "{dir}/unknown-key.toml", "ls"], UNREACHABLE),
];

/// While somebody has an exec session in the pod, and the target has no folder for the volume of another.
const PREFLIGHT: [Row; 3] = [
    ("checkpoint a pod with an exec session", &["checkpoint", "web", "-o", "{dir}/web.img"], REFUSED),
    ("move a pod with an exec session", &["migrate", "web", "--to", "b"], REFUSED),
    ("move a pod whose volume the target lacks", &["migrate", "bound", "--to", "b"], REFUSED),
];

/// After podd of b has died.
const TARGET_DOWN: [Row; 2] = [
    ("move to a host that does not answer", &["migrate", "web", "--to", "b"], UNREACHABLE),
    ("remove a host that does not answer", &["host", "rm", "b"], UNREACHABLE),
];

/// What is wrong in policy.toml.
const POLICIES: [(&str, &str); 14] = [
    ("half a file", "[deadlines]\nhigh = "),
    ("an unknown key", "[deadlines]\nurgent = \"1h\""),
    ("a time that is none", "[deadlines]\nhigh = \"tomorrow\""),
    ("more time for what is worse", "[deadlines]\nhigh = \"40d\""),
    ("a notice longer than a deadline", "[phases]\nnotice = \"72h\""),
    ("an unknown time zone", "[[windows]]\nstart = \"02:00\"\nduration = \"1h\"\nzone = \"Nowhere/Land\""),
    ("an hour that is none", "[[windows]]\nstart = \"25:00\"\nduration = \"1h\""),
    ("a window for ever", "[[windows]]\nstart = \"02:00\"\nduration = \"9999d\""),
    ("a date that is none", "[[exclusions]]\nfrom = \"2026-02-30\"\nto = \"2026-03-01\""),
    ("all windows excluded", "[[exclusions]]\nfrom = \"2000-01-01\"\nto = \"9999-12-31\""),
    ("a date that cron does not know", "[[windows]]\ncron = \"0 2 31 2 *\"\nduration = \"1h\""),
    ("no host at a time", "[limits]\nmax-unavailable = 0"),
    ("all means forbidden", "[mechanisms]\nforbid = [\"live-patch\", \"restart\", \"in-place\", \"evacuate\"]"),
    ("a webhook that is no address", "[notify]\nwebhook = \"ftp://x\""),
];

/// What is wrong in podd.toml, and what it says. podd does not start then.
const CONFIGURATION: [(&str, &str); 10] = [
    ("a kernel that is none", "baseline = { kernel = \"new\" }"),
    ("a kernel with three numbers", "baseline = { kernel = \"6.1.2\" }"),
    ("a kernel that is too old", "baseline = { kernel = \"5.10\" }"),
    ("a level that is none", "baseline = { cpu = \"x86-64-v5\" }"),
    ("a relative path", "baseline = { cpu = \"cpu\" }"),
    ("a list of features that is not there", "baseline = { cpu = \"{dir}/none\" }"),
    ("a list that names something else", "baseline = { cpu = \"{dir}/strange-cpu\" }"),
    ("an empty list", "baseline = { cpu = \"{dir}/empty-cpu\" }"),
    ("a feature that this host lacks", "baseline = { cpu = \"{dir}/future-cpu\" }"),
    ("an unknown key of the baseline", "baseline = { cpus = \"host\" }"),
];

#[test]
fn every_mistake_gets_a_sentence_and_changes_nothing() {
    let bench = Bench::new();
    let mut document = String::from(HEAD);
    bench.section(&mut document, "Describing a pod", &POD_FILES);
    bench.section(&mut document, "Pods in the wrong state", &STATES);
    bench.section(&mut document, "Hosts", &HOSTS);
    bench.section(&mut document, "Patching", &PATCHING);
    bench.section(&mut document, "podctl itself", &COMMAND_LINE);
    let mut session = bench.lab.podctl_command("a", &["exec", "web", "--", "sleep", "600"]).spawn().unwrap();
    eventually("the session is there", Duration::from_secs(10), || {
        bench.lab.ok("a", &["top", "web"]).contains("sleep 600")
    });
    bench.section(&mut document, "What preflight refuses", &PREFLIGHT);
    session.kill().unwrap();
    session.wait().unwrap();
    eventually("the session is over", Duration::from_secs(10), || {
        !bench.lab.ok("a", &["top", "web"]).contains("sleep 600")
    });
    bench.lab.script(&["kill", "b"]).must();
    bench.section(&mut document, "A host that is down", &TARGET_DOWN);
    bench.configuration(&mut document);
    bench.policies(&mut document);
    println!("{document}");
    let file = root().join("docs/BAD_INPUT.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &document).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap_or_default(),
        document,
        "docs/BAD_INPUT.md differs: see the head of this test"
    );
}

const HEAD: &str = "\
# What a mistake gets

One sentence, mostly a cure, and an exit code: 0 done, 1 failed, 2 wrong usage, 3 refused by preflight, 4 podd or the
other host unreachable. Nothing on the host has changed then. This page is what `tests/tests/bad_input.rs` saw.

In the examples `web` runs (at 10.77.1.1), `idle` was never started, `asleep` is suspended, `ended` has ended; the hosts
are `a` (10.77.0.1, where all this is typed) and `b`.
";

struct Bench {
    lab: Lab,
    dir: tempfile::TempDir,
    root: String,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::up(2);
        let (root, dir) = (rootfs("busybox"), tempfile::tempdir().unwrap());
        let run_pod = |verb: &str, name: &str, flags: &[&str], command: &[&str]| {
            let mut words = vec![verb, "--name", name, "--rootfs", &root];
            words.extend(flags);
            words.push("--");
            words.extend(command);
            lab.ok("a", &words);
        };
        run_pod("run", "web", &["--ip", "10.77.1.1/16"], &["sleep", "1000"]);
        run_pod("create", "idle", &[], &["sleep", "1000"]);
        run_pod("run", "asleep", &[], &["sleep", "1000"]);
        run_pod("run", "ended", &[], &["true"]);
        // Only a has this folder: it lies in a file system that is mounted there alone.
        let folder = dir.path().join("only-on-a").display().to_string();
        fs::create_dir(&folder).unwrap();
        tests::lab::run(lab.on("a", &["mount", "-t", "tmpfs", "tmpfs", &folder])).must();
        tests::lab::run(lab.on("a", &["mkdir", &format!("{folder}/data")])).must();
        run_pod("run", "bound", &["--volume", &format!("{folder}/data:/data")], &["sleep", "1000"]);
        lab.ok("a", &["suspend", "asleep"]);
        eventually("it ends", Duration::from_secs(10), || lab.state("a", "ended").as_deref() == Some("exited"));
        fs::write(dir.path().join("unknown-key.toml"), "name = \"x\"\nmemry = \"1G\"\n").unwrap();
        for (name, list) in
            [("strange-cpu", "sse2 # common\nfast"), ("empty-cpu", "# none"), ("future-cpu", "sse2 movrs")]
        {
            fs::write(dir.path().join(name), list).unwrap();
        }
        Self { lab, dir, root }
    }

    fn configuration(&self, document: &mut String) {
        write!(document, "\n## The baseline in podd.toml\n\npodd does not start, and exits with 1.\n\n").unwrap();
        document.push_str("| mistake | podd.toml | answer |\n|---|---|---|\n");
        let dir = self.dir.path().display().to_string();
        for (mistake, text) in CONFIGURATION {
            let config = self.dir.path().join("podd.toml");
            let places = "state = \"{dir}/state\"\nrun = \"{dir}/run\"\nsocket = \"{dir}/podd.sock\"";
            fs::write(&config, format!("{places}\n{text}\n").replace("{dir}", &dir)).unwrap();
            let mut command = std::process::Command::new("timeout");
            command.arg("20").arg(binary("podd")).args(["serve", "--config"]).arg(&config);
            let got = run(command);
            assert_eq!((got.code, got.out.as_str()), (1, ""), "{mistake}: {got:?}");
            assert!(!self.dir.path().join("state").exists(), "{mistake}: it has begun");
            let answer = without_processor(&self.shown(&got.err));
            judge(mistake, &answer);
            let cells = cell(&answer);
            writeln!(document, "| {mistake} | `{}` | {cells} |", self.shown(text)).unwrap();
        }
    }

    fn policies(&self, document: &mut String) {
        write!(
            document,
            "\n## Policies\n\n`podctl policy check` exits with 2; podd goes on with the last good policy.\n\n"
        )
        .unwrap();
        document.push_str("| mistake | policy.toml | answer |\n|---|---|---|\n");
        let file = self.dir.path().join("policy.toml").display().to_string();
        for (mistake, text) in POLICIES {
            fs::write(&file, text).unwrap();
            let got = self.podctl(&["policy", "check", &file]);
            assert_eq!((got.code, got.out.as_str()), (USAGE, ""), "{mistake}: {got:?}");
            let answer = self.shown(&got.err);
            judge(mistake, &answer);
            let cells = cell(&answer);
            writeln!(document, "| {mistake} | `{}` | {cells} |", text.replace('\n', "; ")).unwrap();
        }
    }

    fn section(&self, document: &mut String, title: &str, rows: &[Row]) {
        write!(document, "\n## {title}\n\n| mistake | command | exit | answer |\n|---|---|---|---|\n").unwrap();
        for (mistake, words, code) in rows {
            let before = self.everything();
            let got = self.podctl(words);
            assert_eq!(got.code, *code, "{mistake}: {got:?}");
            let answer = self.shown(&got.err);
            judge(mistake, &answer);
            assert_eq!(got.out, "", "{mistake}: an answer that is none goes to standard error alone");
            assert_eq!(traces::difference(&before, &self.everything()), "", "{mistake} changed something");
            // And for machines: the same sentence, as JSON.
            if *code != 127 {
                self.judge_json(mistake, words, &answer);
            }
            let command = self.shown(&quoted(words));
            let cells = cell(&answer);
            writeln!(document, "| {mistake} | `podctl {command}` | {code} | {cells} |").unwrap();
        }
    }

    fn judge_json(&self, mistake: &str, words: &[&str], answer: &str) {
        let mut all = vec!["--json"];
        all.extend(words);
        let got = self.podctl(&all);
        let error: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&got.err).unwrap_or_else(|e| panic!("{mistake}: {e}: {got:?}"));
        let message = self.shown(error["message"].as_str().unwrap());
        assert!(answer.starts_with(&format!("podctl: {message}")), "{mistake}: {answer} / {message}");
    }

    fn podctl(&self, words: &[&str]) -> Run {
        let dir = self.dir.path().display().to_string();
        let words: Vec<String> = words.iter().map(|w| w.replace("{root}", &self.root).replace("{dir}", &dir)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words.iter().any(|w| ["--host", "--socket"].contains(w)) {
            let mut command = std::process::Command::new(binary("podctl"));
            command.args(&words).env("PODCTL_CONFIG", self.lab.dir().join("podctl.toml"));
            return run(command);
        }
        let mut command = self.lab.podctl_command("a", &words);
        command.stdin(Stdio::null());
        run(command)
    }

    /// As the document shows it, without the paths and process numbers of this run.
    fn shown(&self, text: &str) -> String {
        without_pids(text)
            .replace("{root}", "/srv/root")
            .replace("{dir}", "/tmp")
            .replace(&self.root, "/srv/root")
            .replace(&self.dir.path().display().to_string(), "/tmp")
            .replace(&self.lab.dir().display().to_string(), "/lab")
    }

    /// All that a mistake could change.
    fn everything(&self) -> Vec<String> {
        let mut all = traces::settled(&self.lab, "a");
        all.extend(traces::settled(&self.lab, "b"));
        for host in ["a", "b"] {
            let mut pods = self.lab.podctl(host, &["--json", "ls"]).out;
            pods.push_str(&self.lab.podctl(host, &["--json", "host", "ls"]).out.replace("\"reachable\"", ""));
            all.push(pods);
        }
        let mut find = std::process::Command::new("find");
        let state = |host: &str| self.lab.dir().join(host).join("state");
        find.arg(self.dir.path()).args(["/none", "/no"]);
        for folder in ["pods", "images", "pki"] {
            find.args([state("a").join(folder), state("b").join(folder)]);
        }
        find.args(["-printf", "%p %s\n"]);
        let found = run(find).out;
        // What pods write while they run (logs, and the folder of a session) is no change.
        all.extend(found.lines().filter(|l| !l.contains("/.podd/")).map(str::to_owned));
        all
    }
}

/// An answer as a cell of a table.
fn cell(answer: &str) -> String {
    answer.trim().replace('|', "\\|").replace("\n  cure: ", "<br>cure: ")
}

/// One sentence, no panic, no list of causes, perhaps a cure.
#[track_caller]
fn judge(mistake: &str, answer: &str) {
    let mut lines = answer.lines();
    let sentence = lines.next().unwrap_or_default();
    assert!(sentence.starts_with("podctl: ") || sentence.starts_with("podd: "), "{mistake}: {answer}");
    assert!(sentence.len() < 400, "{mistake}: {answer}");
    for noise in ["panicked", "Error {", "Some(", "RUST_BACKTRACE", "/home/", ".rs:"] {
        assert!(!answer.contains(noise), "{mistake}: {answer}");
    }
    for line in lines {
        assert!(line.starts_with("  cure: "), "{mistake}: {answer}");
    }
}

/// `(pid 4711)` becomes `(pid N)`.
fn without_pids(text: &str) -> String {
    let mut parts = text.split("(pid ");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("(pid N");
        shown.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    shown
}

/// The processor of whoever runs this is of no interest.
fn without_processor(text: &str) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m);
    let level = (1..=4).map(|n| format!("write cpu = \"x86-64-v{n}\", or have")).find(|level| text.contains(level));
    let text = if model.is_empty() { text.to_owned() } else { text.replace(model, "MODEL") };
    level.map_or(text.clone(), |level| text.replace(&level, "write cpu = \"x86-64-vN\", or have"))
}

fn quoted(words: &[&str]) -> String {
    words.join(" ").replace("--rootfs {root} ", "--rootfs DIR ").replace("-- sleep 1", "-- CMD")
}
