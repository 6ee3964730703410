//! `podctl patch check`, `start-now`, `choose` and `as-scheduled`.

use jiff::Timestamp;
use podd::api::{ChooseRequest, StatusView};
use podd::client::path;

use super::Podctl;
use super::status::{code, encoded, in_words, query};
use crate::error::{DONE, Outcome};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Tell whether hosts need patching; for cron and monitoring.
    Check(CheckArgs),
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
    /// Say nothing unless something is due, unknown or blocked.
    #[arg(long)]
    auto: bool,
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
        Verb::Check(CheckArgs { of, auto }) => {
            let hosts: Vec<StatusView> = ctl.daemon.get(&query(of.as_deref(), false, false)).await?;
            let shown: Vec<StatusView> =
                hosts.iter().filter(|host| !auto || host.decision.exit_code() != DONE).cloned().collect();
            if !(auto && shown.is_empty()) {
                ctl.out.show(&shown, |hosts| in_words(hosts));
            }
            Ok(code(&hosts))
        }
        Verb::StartNow(args) => choose(ctl, args.of, ChooseRequest { at_once: true, at: None }).await,
        Verb::Choose(args) => choose(ctl, args.of, ChooseRequest { at_once: false, at: Some(args.time) }).await,
        Verb::AsScheduled(args) => choose(ctl, args.of, ChooseRequest::default()).await,
    }
}

async fn choose(ctl: &Podctl<'_>, host: Option<String>, request: ChooseRequest) -> Outcome {
    let host = host.map(|host| format!("?host={}", encoded(&host))).unwrap_or_default();
    let status: StatusView = ctl.daemon.post(&format!("{}{host}", path(&["patch", "choose"])), &request).await?;
    ctl.out.show(&status, |status| in_words(std::slice::from_ref(status)));
    Ok(DONE)
}
