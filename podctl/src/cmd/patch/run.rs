//! `podctl patch run`, `runs`, `history`, `pause`, `resume` and `cancel`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use podd::api::{ApiError, ErrorKind, HostView, RunRequest, SteerRequest};
use podd::client::path;
use podd::patch::policy::words as length;
use podd::patch::run::drive::{Wish, busy};
use podd::patch::run::{Run, State, Step, markdown};

use super::{Podctl, plan, plan_in_words};
use crate::error::{DONE, FAILED, Outcome, failed};
use crate::output::{printable, table, words};

/// Between two looks at a run.
const LOOK: Duration = Duration::from_millis(500);
/// podd may be away for so long: its own host is patched, too.
const AWAY: Duration = Duration::from_secs(1800);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl patch run --fleet           what is due, host after host
  podctl patch run a                 this host only
  podctl patch run --fleet --auto    for cron: nothing is said unless something is done, or cannot be

The run goes on if podctl is ended; `podctl patch runs` shows it, `podctl patch pause` has it stand still. Exit code 1: a host
failed, or the run does not go on.")]
pub struct RunArgs {
    /// Patch this host; without it, the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Patch all hosts.
    #[arg(long, conflicts_with = "of")]
    fleet: bool,
    /// Say nothing if nothing is due, or another run is under way.
    #[arg(long)]
    auto: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, clap::Args)]
pub struct OfRun {
    /// The run, as `podctl patch runs` lists it; without it, the one that is under way, or the last one.
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

pub async fn run(args: RunArgs, ctl: &Podctl<'_>) -> Outcome {
    if let Some(open) = all(ctl).await?.into_iter().find(Run::is_open) {
        return if args.auto { stand_back(ctl, &open).await } else { Err(busy(&open)) };
    }
    let plan = plan(ctl, args.of.as_deref(), args.fleet).await?;
    if plan.steps.is_empty() {
        if !args.auto {
            ctl.out.show(&plan, plan_in_words);
        }
        return Ok(DONE);
    }
    let shown = plan_in_words(&plan);
    if !ctl.out.is_json() && !args.auto {
        ctl.out.text(&shown);
    }
    let host = if args.fleet { None } else { Some(args.of.unwrap_or_else(|| plan.steps[0].host.clone())) };
    let request = RunRequest { host, plan: Some(plan) };
    let run: Run = match ctl.daemon.post(&path(&["patch", "run"]), &request).await {
        // Somebody was a moment earlier, or the plan is another one by now: cron comes again.
        Err(error) if args.auto && error.kind == ErrorKind::Conflict => return Ok(DONE),
        begun => begun?,
    };
    if !ctl.out.is_json() && args.auto {
        ctl.out.text(&shown);
    }
    match args.detach {
        true => ctl.out.show(&run, |run| format!("patch run {} has begun", run.id)),
        false => return follow(ctl, run).await,
    }
    Ok(DONE)
}

/// Another run is under way: whoever began it looks after it. What stands still is for people.
async fn stand_back(ctl: &Podctl<'_>, open: &Run) -> Outcome {
    if let State::Stopped { why } = &open.state {
        let what = format!("patch run {} is stopped: {why}", open.id);
        return Err(failed(what, Some("`podctl patch resume` has it go on")));
    }
    let hosts: Vec<HostView> = ctl.daemon.get(&path(&["hosts"])).await?;
    let silent = hosts.iter().any(|host| host.name == open.coordinator && host.reachable == Some(false));
    // Its own turn comes, too, and then it boots.
    let boots = open.host(&open.coordinator).is_some_and(|host| host.back_by.is_some_and(|by| by > Timestamp::now()));
    if silent && !boots && open.state == State::Running {
        let what =
            format!("patch run {} stands still: {}, which carries it out, does not answer", open.id, open.coordinator);
        return Err(failed(what, Some("`podctl patch resume` has this host take over")));
    }
    Ok(DONE)
}

/// Tells what happens until the run ends, or stands still.
async fn follow(ctl: &Podctl<'_>, mut run: Run) -> Outcome {
    let progress = ctl.out.progress(&format!("patch run {}", run.id));
    let mut told = BTreeSet::new();
    let mut away: Option<Instant> = None;
    loop {
        for (at, line) in lines(&run) {
            if told.insert((at, line.clone())) && !ctl.out.is_json() {
                ctl.out.text(&format!("{:.0} {}", at, printable(&line)));
            }
        }
        progress.say(&doing(&run, Timestamp::now()));
        if run.state != State::Running {
            break;
        }
        tokio::time::sleep(LOOK).await;
        match ctl.daemon.get(&path(&["patch", "runs", &run.id])).await {
            Ok(newer) => (run, away) = (newer, None),
            Err(error) if error.kind == ErrorKind::Unreachable => {
                if away.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    drop(progress);
    ctl.out.show(&run, |run| format!("patch run {}: {}", run.id, printable(&run.in_words())));
    Ok(outcome(&run))
}

/// Whether all went well.
fn outcome(run: &Run) -> u8 {
    let all_well = run.state == State::Done && run.hosts.iter().all(|host| host.step != Step::Failed);
    if all_well { DONE } else { FAILED }
}

/// What has happened so far, in order.
fn lines(run: &Run) -> Vec<(Timestamp, String)> {
    let mut lines = Vec::new();
    for host in &run.hosts {
        lines.extend(host.begun.iter().map(|begun| (begun.at, format!("{}: {}", host.host, begun.step.word()))));
        for m in host.moves.iter().filter(|m| m.done) {
            let silent = m.blackout_ms.map(|ms| format!(", silent for {} ms", words::ms(ms))).unwrap_or_default();
            lines.push((m.at.unwrap_or(run.began), format!("{} moved from {} to {}{silent}", m.pod, m.from, m.to)));
        }
        let foretold = host.foretold.as_ref();
        lines.extend(foretold.map(|told| (told.at, format!("{}: {}", host.host, told.in_words()))));
        lines.extend(host.trouble.as_ref().map(|trouble| (trouble.at, format!("{}: {}", host.host, trouble.what))));
    }
    lines.sort();
    lines
}

fn doing(run: &Run, now: Timestamp) -> String {
    let busy = run.hosts.iter().filter(|host| !host.step.is_final() && host.step != Step::Waiting);
    let busy: Vec<String> = busy.map(|host| format!("{} {}", host.host, host.step.word())).collect();
    let busy = if busy.is_empty() { "later hosts are looked at".to_owned() } else { busy.join(", ") };
    let left = run.left_s(now).and_then(|left| i64::try_from(left).ok()).map(SignedDuration::from_secs);
    let left = left.map(|left| format!(", about {} to go", length(left))).unwrap_or_default();
    format!("{busy}; {}{left}", run.in_words())
}

pub async fn runs(ctl: &Podctl<'_>) -> Outcome {
    ctl.out.show(&all(ctl).await?, |runs| in_words(runs));
    Ok(DONE)
}

async fn all(ctl: &Podctl<'_>) -> Result<Vec<Run>, ApiError> {
    ctl.daemon.get(&path(&["patch", "runs"])).await
}

fn in_words(runs: &[Run]) -> String {
    let rows = runs.iter().map(|run| {
        [
            run.id.clone(),
            run.state.word().to_owned(),
            format!("{:.0}", run.began),
            run.by.clone(),
            run.coordinator.clone(),
            run.in_words(),
        ]
    });
    table(["RUN", "STATE", "BEGUN", "BY", "COORDINATOR", "HOSTS"], rows)
}

pub async fn history(args: OfRun, ctl: &Podctl<'_>) -> Outcome {
    let id = match args.run {
        Some(id) => id,
        None => {
            let last = all(ctl).await?.pop();
            last.ok_or_else(|| failed("there was no patch run yet".to_owned(), Some("`podctl patch run` begins one")))?
                .id
        }
    };
    let run: Run = ctl.daemon.get(&path(&["patch", "runs", &id])).await?;
    ctl.out.show(&run, markdown);
    Ok(DONE)
}

pub async fn steer(args: OfRun, what: Wish, ctl: &Podctl<'_>) -> Outcome {
    let run: Run = ctl.daemon.post(&path(&["patch", "steer"]), &SteerRequest { run: args.run, what }).await?;
    ctl.out.show(&run, |run| format!("patch run {} is {}: {}", run.id, run.state.word(), printable(&run.in_words())));
    Ok(DONE)
}
