//! Something dies at each step of a patch run: the run goes on or stops safely, the pod runs in one place, no write is lost.
//!
//! A few cases are of every test run. All of them: `PODD_TEST_LIMIT=5400 scripts/test at_every_step --ignored`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::debian::{Fleet, NEW, OLD};
use tests::invariants::{Writer, kill_podd};
use tests::workload;

const STEPS: [&str; 11] =
    ["check", "cordon", "rehearse", "evacuate", "patch", "reboot", "prove", "return", "soak", "uncordon", "done"];
/// What comes after [`STEPS`]' `evacuate`, if packages are installed and the host would not boot them.
const PUT_BACK: &str = "put-back";
/// Of a host alone, whose pods sleep while it boots.
const STEPS_IN_PLACE: [&str; 9] =
    ["check", "cordon", "patch", "suspend", "reboot", "prove", "soak", "uncordon", "done"];
const POLICY: &str = "[run]\nsoak = \"1s\"\nback-within = \"2m\"\n";
/// A run of one host takes some 8 s here; a host that is silent is waited for.
const LIMIT: Duration = Duration::from_secs(240);
const ADDRESS: &str = "10.77.1.8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    /// kill -9 of podd.
    Podd,
    /// Power.
    Host,
    /// The host's cable, for some seconds.
    Cable,
}

/// One case. The run is of `patched`, with the pod on it, and is carried out by a.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// There is no other host.
    alone: bool,
    patched: &'static str,
    step: &'static str,
    /// Before the step is done, or in the middle of it.
    late: bool,
    dies: Dies,
    of: &'static str,
}

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for patched in ["b", "a"] {
        for step in STEPS.into_iter().chain([PUT_BACK]) {
            for of in ["a", "b", "c"] {
                let case = Case { alone: false, patched, step, late: false, dies: Dies::Podd, of };
                cases.extend([case, Case { late: true, ..case }, Case { late: true, dies: Dies::Host, ..case }]);
                if of != "c" {
                    cases.push(Case { dies: Dies::Cable, ..case });
                }
            }
        }
    }
    for step in STEPS_IN_PLACE {
        let case = Case { alone: true, patched: "a", step, late: false, dies: Dies::Podd, of: "a" };
        cases.extend([case, Case { late: true, ..case }, Case { late: true, dies: Dies::Host, ..case }]);
    }
    cases
}

impl Case {
    /// What became of it, or what went wrong.
    fn tried(self) -> Result<&'static str, String> {
        std::panic::catch_unwind(|| self.run()).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    }

    fn run(self) -> &'static str {
        let fleet = if self.alone { Fleet::with(1, POLICY, "in_place = true", true) } else { Fleet::up(3, POLICY) };
        let lab = &fleet.lab;
        workload::redis(&**lab, self.patched, "redis", ADDRESS);
        let writer = Writer::start(lab, ADDRESS);
        let kernel = if self.step == PUT_BACK { OLD } else { NEW };
        if kernel == OLD {
            fs::write(fleet.file(self.patched, "pinned"), "").unwrap();
        }
        // The coordinator writes the step down, and waits a little before it goes on; or dies.
        let own = self.dies == Dies::Podd && self.of == "a" && !self.late;
        let fault = format!("run {} {}", self.step, if own { "crash" } else { "pause 300" });
        let after_boot =
            self.patched == "a" && STEPS.iter().skip_while(|step| **step != "prove").any(|s| *s == self.step);
        match after_boot {
            true => fs::write(fleet.file("a", "fault"), format!("{fault}\n")).unwrap(),
            false => lab.fault("a", &fault),
        }
        let run = lab.json("a", &["patch", "run", self.patched, "--detach"]);
        let id = run["id"].as_str().unwrap().to_owned();
        self.until("the step is reached", || {
            let left = tests::lab::run(lab.on("a", &["cat", "/run/podd/fault"]));
            // A boot takes the file along: then the step has been, unless the file comes with the boot.
            let gone = !after_boot && left.err.contains("No such file");
            gone || (left.code == 0 && !left.out.contains(self.step))
        });
        if self.late {
            std::thread::sleep(Duration::from_millis(450));
        }
        // What runs on a host goes with its power; what sleeps there does not.
        let was_there = lab.state(self.of, "redis").is_some_and(|state| state != "suspended");
        match self.dies {
            Dies::Podd if own => {}
            Dies::Podd => kill_podd(lab, self.of),
            Dies::Host => {
                lab.script(&["crash", self.of]).must();
                // The run may have it boot again while it comes up.
                let hosts = fleet.hosts.len().to_string();
                self.until("all hosts are up", || lab.script(&["up", "--hosts", &hosts]).code == 0);
            }
            Dies::Cable => {
                lab.script(&["cut", self.of]).must();
                std::thread::sleep(Duration::from_secs(4));
                lab.script(&["join", self.of]).must();
            }
        }
        let mut state = String::new();
        self.until("the run ends or stops", || {
            let run = fleet.run("a", &id);
            state = run.and_then(|run| run["state"]["state"].as_str().map(str::to_owned)).unwrap_or_default();
            matches!(state.as_str(), "done" | "stopped")
        });
        let report = lab.ok("a", &["patch", "history", &id]);
        // Who holds it for a host that died asks that host first.
        let mut stands: Vec<(&str, String)> = Vec::new();
        self.until("the pod is in one place", || {
            stands = fleet.hosts.iter().filter_map(|host| Some((*host, lab.state(host, "redis")?))).collect();
            assert!(stands.iter().filter(|(_, state)| state == "running").count() < 2, "{stands:?}: {report}");
            stands.len() == 1
        });
        // It may have come or gone at that very moment.
        let may_be_lost = self.dies == Dies::Host && (was_there || stands[0].0 == self.of);
        if may_be_lost && stands[0].1 != "running" {
            return "the pod went with its host's power, which is told; nobody else has a copy";
        }
        assert_eq!(stands[0].1, "running", "{report}");
        // A host that was without power may have missed what it was to prove, and people are asked then.
        if self.dies != Dies::Host || state == "done" {
            assert_eq!(state, if kernel == NEW { "done" } else { "stopped" }, "{report}");
            assert_eq!(stands[0].0, self.patched, "{report}");
            assert_eq!(fleet.runs(self.patched), kernel.0, "{report}");
            assert!(lab.ok(self.patched, &["host", "cordons"]).contains("takes pods"), "{report}");
        }
        // It checks each answer, and has had one connection all along.
        let before = writer.acknowledged();
        self.until("the client goes on", || writer.acknowledged() > before || !writer.complaints().is_empty());
        assert_eq!(writer.complaints(), "", "{report}");
        match state.as_str() {
            "done" => "done, the client goes on",
            _ if kernel == OLD && self.dies != Dies::Host => "stopped, the pod is home, the client goes on",
            _ => "stopped for people to look, the client goes on",
        }
    }

    fn until(self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Runs cases; of those of `PODD_TEST_CASES=3,36`, if that is set, only these. With `PODD_TEST_REPORT=FOLDER` the results go into
/// a file of this name there.
fn check(name: &str, cases: &[Case]) {
    let only = std::env::var("PODD_TEST_CASES").ok();
    let only: Option<Vec<usize>> = only.map(|list| list.split(',').map(|n| n.trim().parse().unwrap()).collect());
    let mut report = Report::open(name, cases.len(), only.is_some());
    let mut failed = String::new();
    for (n, case) in (1..).zip(cases).filter(|(n, _)| only.as_ref().is_none_or(|only| only.contains(n))) {
        let begun = Instant::now();
        let tried = case.tried();
        let (became, took) = (tried.as_ref().map_or("**failed**", |became| *became), begun.elapsed());
        eprintln!("{n} of {}: {case:?}: {became} ({took:.1?})", cases.len());
        if let Some(report) = &mut report {
            let Case { patched, step, late, dies, of, .. } = case;
            let when = if *late { "in" } else { "before" };
            let took = took.as_secs_f64();
            report.add(n, format!("| {n} | {patched} | {of}'s {dies:?} | {when} {step} | {became} | {took:.0} |"));
        }
        if let Err(why) = tried {
            let _ = writeln!(failed, "{case:?}: {why}");
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

/// Results for people.
struct Report {
    path: PathBuf,
    head: String,
    rows: BTreeMap<usize, String>,
}

impl Report {
    /// One that is there already goes on if `goes_on`.
    fn open(name: &str, cases: usize, goes_on: bool) -> Option<Self> {
        let path = Path::new(&std::env::var_os("PODD_TEST_REPORT")?).join(format!("{name}.md"));
        let said = |program: &str, arguments: &[&str]| {
            let out = Command::new(program).args(arguments).output().unwrap();
            String::from_utf8_lossy(&out.stdout).trim().to_owned()
        };
        let (commit, date) = (said("git", &["rev-parse", "--short", "HEAD"]), said("date", &["-u", "+%F %H:%M UTC"]));
        let head = format!(
            "# Patch runs in which something dies: {name}\n\n\
             {cases} cases, of `tests/tests/run_crashes.rs` at commit {commit}, {date}.\n\n\
             | | patched | dies | when | what became of the run | s |\n|---|---|---|---|---|---|\n"
        );
        let before = if goes_on { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let number = |row: &str| row.split('|').nth(1)?.trim().parse().ok();
        let rows = before.lines().filter_map(|row| Some((number(row)?, row.to_owned()))).collect();
        Some(Self { path, head, rows })
    }

    fn add(&mut self, n: usize, row: String) {
        self.rows.insert(n, row);
        let rows: Vec<&str> = self.rows.values().map(String::as_str).collect();
        fs::write(&self.path, format!("{}{}\n", self.head, rows.join("\n"))).unwrap();
    }
}

#[test]
fn at_some_steps_of_another_host() {
    check(
        "some-of-another-host",
        &[
            Case { alone: false, patched: "b", step: "patch", late: true, dies: Dies::Podd, of: "b" },
            Case { alone: false, patched: "b", step: "return", late: false, dies: Dies::Cable, of: "b" },
        ],
    );
}

#[test]
fn at_some_steps_of_the_coordinator() {
    check(
        "some-of-coordinator",
        &[
            Case { alone: false, patched: "a", step: "evacuate", late: true, dies: Dies::Podd, of: "a" },
            Case { alone: false, patched: "a", step: "reboot", late: false, dies: Dies::Podd, of: "a" },
        ],
    );
}

#[test]
fn at_some_steps_of_a_host_alone() {
    let case = Case { alone: true, patched: "a", step: "suspend", late: true, dies: Dies::Podd, of: "a" };
    check("some-of-alone", &[case, Case { step: "reboot", late: false, ..case }, Case { step: "reboot", ..case }]);
}

/// In parts, for as many threads.
#[test]
#[ignore = "takes most of an hour"]
fn at_every_step_of_another_host() {
    check("another-host", &all().into_iter().filter(|case| case.patched == "b").collect::<Vec<_>>());
}

#[test]
#[ignore = "takes some minutes"]
fn at_every_step_of_a_host_alone() {
    check("alone", &all().into_iter().filter(|case| case.alone).collect::<Vec<_>>());
}

#[test]
#[ignore = "takes most of an hour"]
fn at_every_step_of_the_coordinator() {
    check("coordinator", &all().into_iter().filter(|case| case.patched == "a" && !case.alone).collect::<Vec<_>>());
}
