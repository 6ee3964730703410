//! The kernel matrix: pods under load between every two of several series of kernels, in both directions, born on either
//! side. For each move: what preflight said, what became of it, and whether the two agree.
//!
//! Results are written after each move, and found again by the next run. A pod that fails leaves its machines' logs and
//! does not keep others from their turn.

pub mod pods;
pub mod results;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use pods::{KINDS, Kind, Place};
use results::{KernelSeen, Move, Outcome, Preflight, Results};
use serde_json::Value;

use super::cache::Cache;
use super::{Failure, Lab, kernels, tools, version};
use crate::lab::root;

/// The machines of a pair.
const HOSTS: [&str; 2] = ["a", "b"];
/// Longer than any move: seconds.
const MOVE: &str = "900";
/// `AT_RSEQ_FEATURE_SIZE` (include/uapi/linux/auxvec.h).
const AT_RSEQ_FEATURE_SIZE: u64 = 27;
/// What every kernel restores, and the first one that restores larger ones (kernel/rseq.c).
const RSEQ_EVERYWHERE: u64 = 28;
const RSEQ_ANY_SIZE: &str = "6.12";

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// Series, such as `6.1` or `7.x`; none for the five of the default.
    pub series: Vec<String>,
    /// Kinds of pods; none for all.
    pub pods: Vec<String>,
    /// The JSON file; the one for people lies beside it.
    pub out: PathBuf,
    /// Leave out what is in the file already, agrees, and was run on this day or later: `2026-11-30`, or empty for any day.
    pub resume: Option<String>,
    /// Where logs of what fails are kept.
    pub logs: PathBuf,
}

/// Runs pair after pair; false if preflight and result disagree anywhere.
///
/// # Errors
/// There is no such series or pod; or the files cannot be read or written.
pub fn run(options: &Options) -> Result<bool, Failure> {
    let kinds: Vec<Kind> = KINDS
        .into_iter()
        .filter(|kind| match &options.pods[..] {
            [] => !kind.extra,
            names => names.iter().any(|name| name == kind.name),
        })
        .collect();
    if let Some(name) = options.pods.iter().find(|name| KINDS.iter().all(|kind| kind.name != **name)) {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        return Err(Failure::Refused(format!("there is no pod {name:?}; the matrix has {}", known.join(", "))));
    }
    if options.out.extension().is_none_or(|end| end != "json") {
        let out = options.out.display();
        return Err(Failure::Refused(format!("--out {out} does not end in .json; the file for people ends in .md")));
    }
    let cache = Cache::open()?;
    let every = default_series(&kernels::catalog(&cache)?);
    let mut series = Vec::new();
    for asked in if options.series.is_empty() { &every } else { &options.series } {
        let found = kernels::fetch(&cache, asked)?.series;
        if !series.contains(&found) {
            series.push(found);
        }
    }
    let mut results = Results::load(&options.out)?;
    let checkout = root().to_string_lossy().into_owned();
    let commit = first_line("git", &["-C", &checkout, "describe", "--always", "--dirty", "--abbrev=7"]);
    let commit = Some(commit).filter(|commit| !commit.is_empty());
    for (i, b) in series.iter().enumerate() {
        for a in &series[..i] {
            let (a, b) = if version::compare(a, b).is_le() { (a, b) } else { (b, a) };
            let is_done = |kind: &Kind, born, other| {
                options.resume.as_ref().is_some_and(|since| is_done(&results, since, kind.name, born, other))
            };
            let wanted = |born, other| kinds.iter().copied().filter(|kind| !is_done(kind, born, other)).collect();
            let wanted: [Vec<Kind>; 2] = [wanted(a, b), wanted(b, a)];
            if wanted.iter().all(Vec::is_empty) {
                eprintln!("{a} and {b}: all is there already");
                continue;
            }
            let commit = commit.clone();
            let pair = Pair { options, every: &every, series: [a, b], results: Mutex::new(results), commit };
            // A machine that does not start keeps no other pair from its turn.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| pair.run(&wanted))) {
                let why = words(panic);
                for (kinds, [born, other]) in wanted.iter().zip([[a, b], [b, a]]) {
                    kinds.iter().for_each(|kind| pair.fail(kind.name, [born, other], born, &why, ""));
                }
            }
            results = pair.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
    }
    Ok(results.moves.iter().all(|m| m.agree))
}

/// 6.1, 6.12, the two newest others of 6, and the newest release of 7, as far as they can be had whole.
fn default_series(catalog: &kernels::Catalog) -> Vec<String> {
    let offered: Vec<String> = catalog.newest().into_iter().map(|(series, _)| series).collect();
    let long_term = ["6.1", "6.12"];
    let others: Vec<&String> =
        offered.iter().filter(|s| s.starts_with("6.") && !long_term.contains(&s.as_str())).collect();
    let mut newest = catalog.newest().into_iter().filter(|(s, p)| s.starts_with("7.") && !p.version.contains("~rc"));
    let newest = newest.next_back().map(|(series, _)| series);
    let mut all: Vec<String> = offered.iter().filter(|s| long_term.contains(&s.as_str())).cloned().collect();
    all.extend(others[others.len().saturating_sub(2)..].iter().map(|s| (*s).clone()));
    all.extend(newest);
    all
}

/// Whether all of a pod between two kernels is known since a day, and well: of one that is born there, and comes home.
fn is_done(results: &Results, since: &str, pod: &str, born: &str, other: &str) -> bool {
    let well = |from, to| results.find(pod, born, from, to).filter(|m| m.agree && m.at.as_str() >= since);
    // A pod that did not go cannot come back.
    well(born, other).is_some_and(|m| m.outcome == Outcome::Refused || well(other, born).is_some())
}

struct Pair<'a> {
    options: &'a Options,
    every: &'a [String],
    /// Older, newer; on the machines of the same place in [`HOSTS`].
    series: [&'a str; 2],
    results: Mutex<Results>,
    /// Of the checkout.
    commit: Option<String>,
}

impl Pair<'_> {
    /// Runs pods that are born on either side.
    fn run(&self, kinds: &[Vec<Kind>; 2]) {
        let lab = Lab::new();
        for (host, series) in HOSTS.into_iter().zip(self.series) {
            let release = lab.up(host, series).kernel;
            let rseq_bytes = rseq(&lab, host);
            self.results().kernels.insert(series.to_owned(), KernelSeen { release, rseq_bytes });
            // Volumes do not travel: they are there on both.
            lab.room()
                .copy_in(host, &[root().join("tests/everyday")], "/srv/checkout/tests")
                .unwrap_or_else(|failure| panic!("{failure}"));
        }
        self.results().lab = about(&lab);
        // Those born on either side at the same time: a pod keeps one machine busy, mostly. A large one keeps both.
        let turn = Mutex::new(());
        thread::scope(|scope| {
            for (born, kinds) in kinds.iter().enumerate() {
                let (pair, lab, turn) = (&*self, &lab, &turn);
                scope.spawn(move || {
                    for (kind, number) in kinds.iter().zip(1..) {
                        let _alone = kind.extra.then(|| turn.lock().unwrap_or_else(PoisonError::into_inner));
                        pair.pod(lab, *kind, born, &format!("10.78.{}.{number}", born + 1));
                    }
                });
            }
        });
    }

    /// Adds a result, and writes it down at once.
    fn add(&self, result: Move) {
        let mut results = self.results();
        results.add(result);
        if let Err(failure) = results.save(&self.options.out, self.every) {
            panic!("{failure}");
        }
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod that is born on one of the two, goes to the other one, and comes home.
    fn pod(&self, lab: &Lab, kind: Kind, born: usize, address: &str) {
        let name = format!("{}-{}", kind.name, HOSTS[born]);
        let place = |host: usize| Place { lab, host: HOSTS[host], name: &name, address };
        let there = 1 - born;
        let started = catch_unwind(AssertUnwindSafe(|| (kind.start)(place(born))));
        if let Err(panic) = started {
            let logs = self.keep_logs(lab, kind, born, "start");
            let why = format!("it does not start: {}", words(panic));
            self.fail(kind.name, [self.series[born], self.series[there]], self.series[born], &why, &logs);
        } else if self.go(kind, born, place(born), place(there)) {
            self.go(kind, born, place(there), place(born));
        }
        for host in HOSTS {
            // It is on one of them at most.
            let _ = lab.exec(host, &["timeout", "60", "podctl", "rm", "--force", &name]);
        }
    }

    /// Asks preflight, moves the pod if it may, and looks at both; whether it has moved and is well.
    fn go(&self, kind: Kind, born: usize, from: Place<'_>, to: Place<'_>) -> bool {
        let of = |place: Place<'_>| self.series[usize::from(place.host == HOSTS[1])];
        let (from_series, to_series, born_series) = (of(from), of(to), self.series[born]);
        let mut preflight = Preflight::Unasked;
        let mut registered = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let load = (kind.load)(from);
            registered = kind.rseq.map(|ask| ask(from));
            preflight = ask(from, to.host);
            let moved = migrate(from, to);
            // A move that failed leaves the pod running where it was, and its load notices nothing of it either.
            let looked = catch_unwind(AssertUnwindSafe(|| load(if matches!(moved, Ok(Some(_))) { to } else { from })));
            match (moved, looked) {
                (Ok(moved), Ok(())) => moved,
                (Ok(_), Err(panic)) => resume_unwind(panic),
                (Err(why), Ok(())) => panic!("{why}\non the source its load is well"),
                (Err(why), Err(panic)) => panic!("{why}\non the source its load says {}", words(panic)),
            }
        }));
        let outcome = match outcome {
            Ok(Some(blackout_ms)) => Outcome::Moved { blackout_ms },
            Ok(None) => Outcome::Refused,
            Err(panic) => {
                let logs = self.keep_logs(from.lab, kind, born, &format!("to-{to_series}"));
                Outcome::Failed { why: words(panic), logs }
            }
        };
        let agree = match (&preflight, &outcome) {
            (Preflight::Go, Outcome::Moved { .. }) => true,
            (Preflight::No(why), Outcome::Refused) => {
                let offered = self.results().kernels.get(born_series).and_then(|kernel| kernel.rseq_bytes);
                why.iter().all(|why| is_true(why, offered, registered, to_series))
            }
            _ => false,
        };
        eprintln!(
            "{} from {from_series} to {to_series}, born on {born_series}: {preflight:?}, {outcome:?}{}",
            kind.name,
            if agree { "" } else { ": DISAGREE" }
        );
        let moved = matches!(outcome, Outcome::Moved { .. });
        let unasked = self.unasked(kind.name, [from_series, to_series], born_series, outcome);
        self.add(Move { preflight, registered, agree, ..unasked });
        moved
    }

    /// A pod that did not come as far as a move.
    fn fail(&self, pod: &str, [from, to]: [&str; 2], born: &str, why: &str, logs: &str) {
        eprintln!("{pod} from {from} to {to}: {why}");
        let outcome = Outcome::Failed { why: why.to_owned(), logs: logs.to_owned() };
        self.add(self.unasked(pod, [from, to], born, outcome));
    }

    /// The result of a move before which preflight was not asked.
    fn unasked(&self, pod: &str, [from, to]: [&str; 2], born: &str, outcome: Outcome) -> Move {
        let releases = [from, to].map(|series| self.release(series));
        let [pod, born, from, to] = [pod, born, from, to].map(str::to_owned);
        let (preflight, at, commit) = (Preflight::Unasked, now(), self.commit.clone());
        Move { pod, born, from, to, releases, preflight, registered: None, outcome, agree: false, at, commit }
    }

    fn release(&self, series: &str) -> String {
        self.results().kernels.get(series).map(|kernel| kernel.release.clone()).unwrap_or_default()
    }

    /// Name of the folder.
    fn keep_logs(&self, lab: &Lab, kind: Kind, born: usize, what: &str) -> String {
        let [a, b] = self.series;
        let name = format!("{a}-{b}-{}-born-{}-{what}", kind.name, self.series[born]);
        for host in HOSTS {
            let to = self.options.logs.join(&name).join(host);
            let kept = lab.room().logs(host, &to);
            let list = lab.room().exec(host, &["sh", "-c", "podctl ls; podctl migrations; ps -ef"]);
            let text = list.map(|run| run.out).unwrap_or_default();
            if let Err(failure) = kept.and_then(|()| {
                let path = to.join("podctl.log");
                std::fs::write(&path, text).map_err(Failure::io("write", &path))
            }) {
                eprintln!("{host}: its logs cannot be kept: {failure}");
            }
        }
        eprintln!("logs: {}", self.options.logs.join(&name).display());
        name
    }
}

/// Preflight's verdict.
fn ask(from: Place<'_>, to: &str) -> Preflight {
    let run = from.lab.podctl(from.host, &["--json", "preflight", from.name, "--to", to]);
    let report: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("preflight said {run:?}: {e}"));
    let refusals = report.as_array().into_iter().flatten().filter(|finding| finding["verdict"] == "no");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let why: Vec<String> = refusals.map(|f| format!("{}: {}", text(&f["rule"]), text(&f["fact"]))).collect();
    match (run.code, why.is_empty()) {
        (0, true) => Preflight::Go,
        (3, false) => Preflight::No(why),
        _ => panic!("preflight said {run:?}"),
    }
}

/// Moves a pod; the blackout in ms. None if podd refuses, and then the pod is where it was. An error says why it failed, and
/// where the pod is then.
fn migrate(from: Place<'_>, to: Place<'_>) -> Result<Option<f64>, String> {
    let Place { lab, name, .. } = from;
    let run = lab.exec(from.host, &["timeout", MOVE, "podctl", "--json", "migrate", name, "--to", to.host]);
    if run.code == 3 {
        assert_eq!(lab.state(from.host, name).as_deref(), Some("running"), "it was refused");
        return Ok(None);
    }
    let states = [from, to].map(|place| lab.state(place.host, name));
    if run.code != 0 {
        let said = tools::tail(&format!("{}{}", run.out, run.err), 6);
        return Err(format!("migrate said {said}\nsource and target say {states:?}"));
    }
    assert!(states == [None, Some("running".to_owned())], "after the move source and target say {states:?}");
    let report: Value = serde_json::from_str(&run.out).expect("podctl --json prints JSON");
    Ok(Some(report["blackout_ms"].as_f64().expect("a move has a blackout")))
}

/// Whether a refusal's reason is so, by what the kernel of its birth offered and, if it can tell, the pod has registered.
/// Anything else than the known reason is not expected between these machines, which differ in their kernels alone.
fn is_true(why: &str, offered: Option<u64>, registered: Option<u64>, to: &str) -> bool {
    why.starts_with("kernel-direction: ")
        && why.contains("larger restartable sequences")
        && offered.is_some_and(|bytes| bytes > RSEQ_EVERYWHERE)
        && registered != Some(0)
        && version::compare(to, RSEQ_ANY_SIZE).is_lt()
}

/// What a machine's kernel tells programs about restartable sequences.
fn rseq(lab: &Lab, host: &str) -> Option<u64> {
    let words = lab.exec(host, &["od", "-A", "n", "-v", "-t", "u8", "-w16", "/proc/self/auxv"]).must().out;
    words.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(key)), Some(Ok(value))) = (numbers.next(), numbers.next()) else { return None };
        (key == AT_RSEQ_FEATURE_SIZE).then_some(value)
    })
}

/// What the matrix runs on.
fn about(lab: &Lab) -> String {
    let qemu = first_line("qemu-system-x86_64", &["--version"]);
    let qemu = qemu.split(" (").next().unwrap_or_default().replace("emulator ", "");
    let podd = lab.exec(HOSTS[0], &["podctl", "version"]).out;
    let podd = podd.lines().next().unwrap_or_default();
    format!("{podd}; Debian cloud kernels on {qemu}, TCG, CPU model max, x86-64")
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let out = tools::run(Command::new(program).args(arguments)).unwrap_or_default();
    out.lines().next().unwrap_or_default().trim().to_owned()
}

fn now() -> String {
    let out = tools::run(Command::new("date").args(["-u", "+%F %H:%M"])).unwrap_or_default();
    out.trim().to_owned()
}

/// A panic's sentence.
fn words(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map_or_else(
        |other| other.downcast::<&str>().map_or_else(|_| "panicked".to_owned(), |text| (*text).to_owned()),
        |text| *text,
    );
    tools::tail(text.trim(), 12)
}

/// Where logs go unless told otherwise.
#[must_use]
pub fn default_logs() -> PathBuf {
    std::env::var_os("PODD_VM_LOGS").map_or_else(|| super::program("").join("../vm-logs/matrix"), PathBuf::from)
}

/// Where results go unless told otherwise.
#[must_use]
pub fn default_out() -> PathBuf {
    root().join(Path::new("KERNELS.json"))
}
