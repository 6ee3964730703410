//! `podctl rehearse`.

use podd::api::{MemoryMode, MigrateRequest, RehearsalReport};
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::words;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The pod runs on; it stands still only while it is dumped, which is reported. Its clone on the other host has no link to
any network, is asked for its health if the pod has a probe, and is destroyed. The clone of a pod with volumes is
restored but not let run.

Exit code 1 means that the move would have failed, with the reason; 3, that preflight refused.")]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Restore a clone of it on this host of the fleet.
    #[arg(long, value_name = "HOST")]
    to: String,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let report = rehearse(&args.name, &args.to, ctl).await?;
    ctl.out.show(&report, in_words);
    Ok(DONE)
}

pub(super) async fn rehearse(name: &str, to: &str, ctl: &Podctl<'_>) -> Result<RehearsalReport, podd::api::ApiError> {
    let progress = ctl.out.progress(&format!("rehearsing {name} to {to}"));
    let url = path(&["pods", name, "rehearse"]);
    let request = MigrateRequest { to: to.to_owned(), mode: MemoryMode::Auto, notice_s: None };
    ctl.daemon.stream(&url, &request, |p| progress.update(&p)).await
}

fn in_words(report: &RehearsalReport) -> String {
    let RehearsalReport { pod, from: _, to, pause_ms, restore_ms, ran, health } = report;
    let how = match (ran, health) {
        (false, _) => "was not let run, as the pod has volumes",
        (true, Some(_)) => "was healthy",
        (true, None) => "ran",
    };
    format!(
        "{pod} can move to {to}: its clone was restored there in {} ms and {how}; {pod} paused for {} ms",
        words::ms(*restore_ms),
        words::ms(*pause_ms)
    )
}
