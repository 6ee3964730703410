//! One file a verb: its flags and its one request.

pub mod advisories;
pub mod checkpoint;
pub mod completion;
pub mod create;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod history;
pub mod host;
pub mod inspect;
pub mod kill;
pub mod livepatch;
pub mod logs;
pub mod ls;
pub mod migrate;
pub mod migrations;
pub mod patch;
pub mod policy;
pub mod preflight;
pub mod rehearse;
pub mod restore;
pub mod resume;
pub mod rm;
pub mod run;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
pub mod suspend;
pub mod top;
pub mod version;
pub mod why;

use podd::api::{ApiError, PodView};
use podd::client::{Client, path};
use serde::Serialize;

use crate::cli::{Cli, Verb};
use crate::context;
use crate::error::{Outcome, combined, exit_code};
use crate::output::Output;

/// What every verb gets: the daemon to ask and the place to print.
pub struct Podctl<'a> {
    pub daemon: Client,
    pub out: &'a Output,
}

/// Carries the command out. Printing the error is the caller's.
pub async fn run(cli: Cli, out: &Output) -> Outcome {
    if let Verb::Completion(args) = &cli.verb {
        // Needs no daemon, hence no contexts file without faults.
        return completion::run(args, out);
    }
    if let Verb::Policy(verb) = &cli.verb {
        return policy::run(verb, out);
    }
    if let Verb::Livepatch(verb) = &cli.verb {
        return livepatch::run(verb, out);
    }
    let socket = context::socket(cli.socket, cli.host.as_deref())?;
    let ctl = Podctl { daemon: Client::local(&socket), out };
    match cli.verb {
        Verb::Run(args) => run::run(args, &ctl).await,
        Verb::Create(args) => create::run(args, &ctl).await,
        Verb::Start(args) => start::run(&args, &ctl).await,
        Verb::Stop(args) => stop::run(&args, &ctl).await,
        Verb::Kill(args) => kill::run(&args, &ctl).await,
        Verb::Rm(args) => rm::run(&args, &ctl).await,
        Verb::Ls(args) => ls::run(&args, &ctl).await,
        Verb::Inspect(args) => inspect::run(&args, &ctl).await,
        Verb::Logs(args) => logs::run(&args, &ctl).await,
        Verb::Exec(args) => exec::run(args, &ctl).await,
        Verb::Stats(args) => stats::run(&args, &ctl).await,
        Verb::Top(args) => top::run(&args, &ctl).await,
        Verb::Checkpoint(args) => checkpoint::run(args, &ctl).await,
        Verb::Restore(args) => restore::run(&args, &ctl).await,
        Verb::Suspend(args) => suspend::run(&args, &ctl).await,
        Verb::Resume(args) => resume::run(&args, &ctl).await,
        Verb::Migrate(args) => migrate::run(args, &ctl).await,
        Verb::Rehearse(args) => rehearse::run(args, &ctl).await,
        Verb::Preflight(args) => preflight::run(args, &ctl).await,
        Verb::Doctor(_) => doctor::run(&ctl).await,
        Verb::Migrations(args) => migrations::run(args, &ctl).await,
        Verb::Events(args) => events::run(&args, &ctl).await,
        Verb::History(args) => history::run(&args, &ctl).await,
        Verb::Host(verb) => host::run(verb, &ctl).await,
        Verb::Status(args) => status::run(&args, &ctl).await,
        Verb::Why(args) => why::run(&args, &ctl).await,
        Verb::Advisories(args) => advisories::run(&args, &ctl).await,
        Verb::Patch(verb) => patch::run(verb, &ctl).await,
        Verb::Policy(verb) => policy::run(&verb, out),
        Verb::Livepatch(verb) => livepatch::run(&verb, out),
        Verb::Completion(args) => completion::run(&args, out),
        Verb::Version(_) => version::run(&ctl).await,
    }
}

/// Does one thing to several pods. All are tried; each failure is printed when it happens. Words are printed as each
/// pod is done, JSON as one list of those that are.
async fn each<T: Serialize>(
    ctl: &Podctl<'_>,
    names: &[String],
    words: impl Fn(&T) -> String,
    act: impl AsyncFn(&str) -> Result<T, ApiError>,
) -> Outcome {
    let mut codes = Vec::new();
    let mut done = Vec::new();
    for name in names {
        match act(name).await {
            Ok(value) => {
                if !ctl.out.is_json() {
                    ctl.out.text(&words(&value));
                }
                done.push(value);
            }
            Err(error) => {
                ctl.out.error(&error);
                codes.push(exit_code(error.kind));
            }
        }
    }
    if ctl.out.is_json() {
        ctl.out.value(&done);
    }
    Ok(combined(codes))
}

/// The requests `start`, `suspend` and `resume`: no body, progress, and the pod as result.
async fn change(ctl: &Podctl<'_>, name: &str, verb: &str) -> Result<PodView, ApiError> {
    let progress = ctl.out.progress(name);
    ctl.daemon.stream(&path(&["pods", name, verb]), &(), |p| progress.update(&p)).await
}

fn pod_name_of(pod: &PodView) -> String {
    pod.name.clone()
}

/// A path as the daemon should understand it: relative to the caller's directory.
fn absolute(path: &str) -> Result<String, ApiError> {
    let absolute = std::path::absolute(path)
        .map_err(|e| crate::error::usage(format!("the path {path:?} cannot be used: {e}"), "write an absolute path"))?;
    Ok(absolute.to_string_lossy().into_owned())
}
