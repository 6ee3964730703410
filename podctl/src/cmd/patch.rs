//! `podctl patch check`, `plan`, `start-now`, `choose` and `as-scheduled`; [`run`](mod@run) has what carries plans out.

mod run;

use jiff::{SignedDuration, Timestamp};
use podd::api::{ApiError, ChooseRequest, StatusView};
use podd::client::path;
use podd::patch::decide::Verdict;
use podd::patch::plan::Plan;
use podd::patch::policy::words as length;
use podd::patch::run::drive::Wish;

use super::Podctl;
use super::status::{code, encoded, in_words, query};
use crate::error::{DONE, Outcome};
use crate::output::{printable, table, words};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Tell whether hosts need patching; for cron and monitoring.
    Check(CheckArgs),
    /// Show what would be done: which hosts, in which order, by which means, and where their pods would go. Nothing is done.
    Plan(PlanArgs),
    /// Patch hosts as `podctl patch plan` shows: pods leave, packages come, the host boots, proves that it is well, pods return.
    Run(run::RunArgs),
    /// List patch runs.
    Runs,
    /// Tell of a patch run: every step, its time, and how long each pod was silent.
    History(run::OfRun),
    /// Have a patch run begin nothing more; moves under way come to their end.
    Pause(run::OfRun),
    /// Have a patch run go on that was paused or stopped, or whose coordinator is dead.
    Resume(run::OfRun),
    /// End a patch run where it is.
    Cancel(run::OfRun),
    /// Have a host patched now, in a window or not.
    StartNow(HostArgs),
    /// Choose when a host is patched, as long as its owner may.
    Choose(ChooseArgs),
    /// Leave the time to the policy again.
    AsScheduled(HostArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 nothing to do, 10 a patch is due, 11 it is overdue, 12 unknown, 13 blocked; of several hosts the highest.")]
pub struct CheckArgs {
    /// Tell of this host only, not of all of the fleet.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Tell of the host that is asked only.
    #[arg(long, conflicts_with = "of")]
    here: bool,
    /// Say nothing, and end with 0, unless something is due now, overdue, unknown or blocked.
    #[arg(long)]
    auto: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Hosts of one wave are away together; a wave begins when all hosts of the one before are well. The first host of each kind, the
canary, goes alone. Preflight has been asked about each move.")]
pub struct PlanArgs {
    /// Of this host; without it, of the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Of all hosts.
    #[arg(long, conflicts_with = "of")]
    fleet: bool,
    /// As it always does: show, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct HostArgs {
    /// The host; without it, the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct ChooseArgs {
    /// When: in a window, and before the deadline, such as 2026-12-05T02:00:00Z.
    time: Timestamp,
    /// The host; without it, the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
}

pub async fn run(verb: Verb, ctl: &Podctl<'_>) -> Outcome {
    match verb {
        Verb::Check(CheckArgs { of, here, auto }) => {
            let asked = if here { path(&["status"]) } else { query(of.as_deref(), false, false) };
            let mut hosts: Vec<StatusView> = ctl.daemon.get(&asked).await?;
            if auto {
                // One that waits for its window is nobody's affair before that.
                let waits =
                    |host: &StatusView| matches!(host.decision.verdict, Verdict::Wait { .. }) && !host.decision.overdue;
                hosts.retain(|host| host.decision.exit_code() != DONE && !waits(host));
            }
            if !(auto && hosts.is_empty()) {
                ctl.out.show(&hosts, |hosts| in_words(hosts));
            }
            Ok(code(&hosts))
        }
        Verb::Plan(PlanArgs { of, fleet, dry_run: _ }) => {
            let plan = plan(ctl, of.as_deref(), fleet).await?;
            ctl.out.show(&plan, plan_in_words);
            Ok(DONE)
        }
        Verb::Run(args) => run::run(args, ctl).await,
        Verb::Runs => run::runs(ctl).await,
        Verb::History(args) => run::history(args, ctl).await,
        Verb::Pause(args) => run::steer(args, Wish::Pause, ctl).await,
        Verb::Resume(args) => run::steer(args, Wish::Resume, ctl).await,
        Verb::Cancel(args) => run::steer(args, Wish::Cancel, ctl).await,
        Verb::StartNow(args) => choose(ctl, args.of, ChooseRequest { at_once: true, at: None }).await,
        Verb::Choose(args) => choose(ctl, args.of, ChooseRequest { at_once: false, at: Some(args.time) }).await,
        Verb::AsScheduled(args) => choose(ctl, args.of, ChooseRequest::default()).await,
    }
}

async fn plan(ctl: &Podctl<'_>, host: Option<&str>, fleet: bool) -> Result<Plan, ApiError> {
    let host = host.map(|host| format!("&host={}", encoded(host))).unwrap_or_default();
    ctl.daemon.get(&format!("{}?fleet={fleet}{host}", path(&["patch", "plan"]))).await
}

async fn choose(ctl: &Podctl<'_>, host: Option<String>, request: ChooseRequest) -> Outcome {
    let host = host.map(|host| format!("?host={}", encoded(&host))).unwrap_or_default();
    let status: StatusView = ctl.daemon.post(&format!("{}{host}", path(&["patch", "choose"])), &request).await?;
    ctl.out.show(&status, |status| in_words(std::slice::from_ref(status)));
    Ok(DONE)
}

fn plan_in_words(plan: &Plan) -> String {
    let mut text = String::new();
    if plan.steps.is_empty() {
        text += "nothing is to be done now\n";
    } else {
        let rows = plan.steps.iter().map(|step| {
            let how = match step.patch {
                true => step.mechanism.verdict().to_owned(),
                false => "leave: the hardware is failing".to_owned(),
            };
            let pods = match step.sleeps.len() {
                0 => words::count(step.moves.len() as u32, "pod"),
                asleep => format!("{asleep} asleep"),
            };
            let takes = step.takes_s.and_then(|seconds| i64::try_from(seconds).ok()).map(SignedDuration::from_secs);
            let takes = takes.map_or_else(|| "not known".to_owned(), length);
            [step.wave.to_string(), step.host.clone(), how, pods, takes, step.why.clone()]
        });
        text += &table(["WAVE", "HOST", "STEP", "MOVES", "TAKES", "WHY"], rows);
    }
    let silent = |ms: Option<f64>| ms.map_or_else(|| "not known".to_owned(), |ms| format!("{} ms", words::ms(ms)));
    let rows = plan.steps.iter().flat_map(|step| {
        let row = |pod: &String, to: &str, ms| [pod.clone(), step.host.clone(), to.to_owned(), silent(ms)];
        let moves = step.moves.iter().map(move |m| row(&m.pod, &m.to, Some(m.blackout_ms)));
        moves.chain(step.sleeps.iter().map(move |sleep| row(&sleep.pod, "stays, asleep", sleep.asleep_ms)))
    });
    if rows.clone().next().is_some() {
        text += "\n";
        text += &table(["POD", "FROM", "TO", "SILENT"], rows);
    }
    for left in &plan.left {
        text += &format!("\n{} is left as it is: {}\n", left.host, printable(&left.why));
        if !left.cure.is_empty() {
            text += &format!("  cure: {}\n", printable(&left.cure));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use podd::patch::decide::Mechanism;
    use podd::patch::plan::{Left, Move, Sleep, Step};

    use super::*;

    #[test]
    fn a_plan_in_words() {
        let moves = vec![Move { pod: "web".into(), to: "b".into(), blackout_ms: 94.4 }];
        let (host, why) = ("a".to_owned(), "the window night is open".to_owned());
        let (mechanism, takes_s) = (Mechanism::Evacuate, Some(300));
        let away = Step { wave: 1, host, mechanism, patch: true, moves, sleeps: vec![], takes_s, why: why.clone() };
        let sleeps = vec![Sleep { pod: "db".into(), asleep_ms: None }];
        let (host, mechanism, moves) = ("d".to_owned(), Mechanism::InPlace, vec![]);
        let stays = Step { wave: 2, host, mechanism, patch: true, moves, sleeps, takes_s: None, why };
        let left =
            Left { host: "c".into(), why: "it is blocked: linux is held".into(), cure: "apt-mark unhold linux".into() };
        assert_eq!(
            plan_in_words(&Plan { steps: vec![away, stays], left: vec![left] }),
            "\
WAVE  HOST  STEP                 MOVES     TAKES      WHY
1     a     evacuate-and-reboot  1 pod     5m         the window night is open
2     d     in-place             1 asleep  not known  the window night is open

POD  FROM  TO             SILENT
web  a     b              94 ms
db   d     stays, asleep  not known

c is left as it is: it is blocked: linux is held
  cure: apt-mark unhold linux
"
        );
        assert_eq!(plan_in_words(&Plan::default()), "nothing is to be done now\n");
    }
}
