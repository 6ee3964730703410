//! `podctl history`.

use jiff::Timestamp;
use podd::client::path;
use podd::events::Entry;

use super::{Podctl, migrations};
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::table;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl history --pod web --since 2026-11-01T00:00:00Z
  podctl history --json >history.json
Nothing is ever removed from it.")]
pub struct Args {
    /// What happened to this pod only.
    #[arg(long, value_name = "NAME", value_parser = pod_name)]
    pod: Option<String>,
    /// What happened since then only, such as 2026-11-01T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// What was expected of each move, and what it took.
    #[arg(long, conflicts_with_all = ["pod", "since"])]
    predictions: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    if args.predictions {
        return migrations::run(migrations::Args { predictions: true }, ctl).await;
    }
    let mut entries = Vec::new();
    let wanted = |entry: &Entry| {
        args.since.is_none_or(|since| entry.at >= since)
            && args.pod.as_deref().is_none_or(|pod| entry.what.pod() == Some(pod))
    };
    let keep = |entry: Entry| {
        if wanted(&entry) {
            entries.push(entry);
        }
        true
    };
    ctl.daemon.lines(&path(&["events"]), keep).await?;
    ctl.out.show(&entries, |entries| in_words(entries));
    Ok(DONE)
}

fn in_words(entries: &[Entry]) -> String {
    let rows = entries.iter().map(|entry| [format!("{:.0}", entry.at), entry.by.clone(), entry.what.in_words()]);
    table(["WHEN", "WHO", "WHAT"], rows)
}
