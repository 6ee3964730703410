//! The benchmark: podd and other ways to move a server with its memory, in turns in one run, as a client sees them.
//! `scripts/bench` is the command. It tests nothing: figures of one machine say little about another one, and none
//! about a busy one.
//!
//! | module | job |
//! |---|---|
//! | `plan` | whose turn it is |
//! | `probe` | the client's view of one move |
//! | `host` | commands on the lab's hosts; the redis that rivals move |
//! | `podd` `criu` `lazy` `runc` `podman` `restart` | the contenders |
//! | `report` `plot` | BENCH.json, BENCH.md, pictures |
//! | `sleep` | suspend and resume |
//! | `status` | the status service, which moves nothing |
//! | `steady` | pods that stay where they are |

mod criu;
mod host;
mod lazy;
mod plan;
mod plot;
mod podd;
mod podman;
mod probe;
mod report;
mod restart;
mod runc;
pub mod sleep;
pub mod status;
pub mod steady;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

pub use host::Failure;
use host::{Server, Workload};
use report::{Move, Report, Series};

use crate::Lab;

/// Every contender; the first two are ours.
pub const CONTENDERS: [&str; 7] = ["podd", "podd-post-copy", "criu", "criu-lazy", "runc", "podman", "restart"];
/// How the name of one begins that is ours.
const OURS: &str = "podd";
/// Those that are not asked unless they are named.
pub const ON_REQUEST: [&str; 2] = ["podd-post-copy", "podman"];
/// Every workload.
pub const WORKLOADS: [&str; 2] = ["redis", "nginx"];
/// The client works for so long before a move; and after one, for the throughput three seconds later.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_millis(4300);

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// Of [`WORKLOADS`].
    pub workloads: Vec<String>,
    /// Of redis's data, MB.
    pub sizes: Vec<u64>,
    /// Moves of each contender, workload and size.
    pub moves: u32,
    /// Of [`CONTENDERS`].
    pub contenders: Vec<String>,
    /// Writes a second of others than the client; 0: none.
    pub load: f64,
    /// Folder of BENCH.md and BENCH.json; pictures go to `tests/bench` in it.
    pub out: PathBuf,
    /// Date of the run, as it is to be printed.
    pub date: String,
    /// How this run was started.
    pub command: String,
}

/// One way to move a server.
trait Contender {
    /// Starts a server and gives it its data.
    fn start(&mut self) -> Result<(), Failure>;
    /// Moves it to the other place; milliseconds of each phase, in their order, as far as the tools tell.
    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure>;
    /// How long it was said that the last move's blackout would be, ms.
    fn expected_ms(&self) -> Option<f64> {
        None
    }
    /// Ends the server.
    fn end(&mut self);
}

/// Runs all of it; writes the results after each size.
///
/// # Errors
/// Arguments make no sense, or results cannot be written. A contender that cannot run is a result, not an error.
pub fn run(options: &Options) -> Result<(), Failure> {
    check(options)?;
    let lab = Lab::up(2);
    let mut report = Report::new(options, &lab);
    for workload in &options.workloads {
        // Nobody but podd is asked to move nginx: its workers are of another user, which is an affair of its own.
        let (sizes, contenders) = match workload.as_str() {
            "nginx" => (vec![20], options.contenders.iter().filter(|name| name.starts_with(OURS)).cloned().collect()),
            _ => (options.sizes.clone(), options.contenders.clone()),
        };
        for size in sizes {
            let workload = if workload == "nginx" { Workload::Nginx } else { Workload::Redis { megabytes: size } };
            report.results.extend(measure(options, &lab, workload, size, &contenders));
            report.save(&options.out)?;
        }
    }
    Ok(())
}

fn check(options: &Options) -> Result<(), Failure> {
    let unknown = |kind: &str, asked: &[String], known: &[&str]| {
        let name = asked.iter().find(|name| !known.contains(&name.as_str()))?;
        Some(Failure(format!("there is no {kind} {name:?}; choose of {}", known.join(", "))))
    };
    let wrong = unknown("workload", &options.workloads, &WORKLOADS)
        .or_else(|| unknown("contender", &options.contenders, &CONTENDERS));
    match wrong {
        Some(failure) => Err(failure),
        None if options.moves == 0 || options.sizes.contains(&0) => {
            Err(Failure("--moves and --sizes must be at least 1".to_owned()))
        }
        None => Ok(()),
    }
}

/// All contenders in turns.
fn measure(options: &Options, lab: &Lab, workload: Workload, size: u64, contenders: &[String]) -> Vec<Series> {
    let together = plan::fits_together(size, contenders.len() as u64, host::available_megabytes());
    let mut all: BTreeMap<String, Series> =
        contenders.iter().map(|name| (name.clone(), Series::new(workload.name(), size, name, together))).collect();
    let mut running: BTreeMap<String, (Box<dyn Contender + '_>, Server)> = BTreeMap::new();
    for turn in plan::turns(options.moves, contenders, together) {
        let Some(series) = all.get_mut(turn.contender) else { continue };
        if series.cannot.is_some() {
            continue;
        }
        let outcome = guarded(|| {
            if !running.contains_key(turn.contender) {
                let server = Server::new(workload, turn.contender);
                let mut contender = contender(lab, turn.contender, &server);
                let started = contender.start();
                running.insert(turn.contender.to_owned(), (contender, server));
                started?;
            }
            let Some((contender, server)) = running.get_mut(turn.contender) else { return Ok(None) };
            one(options, lab, contender.as_mut(), server).map(Some)
        });
        match outcome {
            Ok(Some(moved)) => {
                eprintln!("{} {size} MB, {}: {:.1} ms", workload.name(), turn.contender, moved.blackout_ms);
                series.moves.push(moved);
            }
            Ok(None) => {}
            Err(failure) => {
                eprintln!("{} {size} MB, {}: {failure}", workload.name(), turn.contender);
                series.cannot = Some(failure.to_string());
            }
        }
        if (turn.is_last || series.cannot.is_some())
            && let Some((mut contender, _)) = running.remove(turn.contender)
        {
            let _ = guarded(|| {
                contender.end();
                Ok(())
            });
        }
    }
    let mut all: Vec<Series> = all.into_values().collect();
    all.sort_by_key(|series| CONTENDERS.iter().position(|name| *name == series.contender));
    all
}

fn contender<'a>(lab: &'a Lab, name: &str, server: &Server) -> Box<dyn Contender + 'a> {
    let server = server.clone();
    match name {
        "podd" => Box::new(podd::Podd::new(lab, server, "auto")),
        "podd-post-copy" => Box::new(podd::Podd::new(lab, server, "post-copy")),
        "criu" => Box::new(criu::Criu::new(lab, server)),
        "criu-lazy" => Box::new(lazy::Lazy::new(lab, server)),
        "runc" => Box::new(runc::Runc::new(lab, server)),
        "podman" => Box::new(podman::Podman::new(lab, server)),
        _ => Box::new(restart::Restart::new(lab, server)),
    }
}

/// One move under a client's eyes.
fn one(options: &Options, lab: &Lab, contender: &mut dyn Contender, server: &Server) -> Result<Move, Failure> {
    let mut probe = probe::Probe::start(lab, server, options.load)?;
    std::thread::sleep(BEFORE);
    let begun = probe::unix_ms();
    let phases = contender.go().inspect_err(|_| probe.abandon())?;
    let ended = probe::unix_ms();
    std::thread::sleep(AFTER);
    Ok(Move { expected_ms: contender.expected_ms(), ..probe.finish()?.judge(begun, ended, phases) })
}

/// The harness panics when a step fails; that ends a contender, and not the others.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure(words(panic))))
}

/// A panic's sentence.
fn words(panic: Box<dyn Any + Send>) -> String {
    panic.downcast::<String>().map_or_else(
        |other| other.downcast::<&str>().map_or_else(|_| "panicked".to_owned(), |text| (*text).to_owned()),
        |text| *text,
    )
}
