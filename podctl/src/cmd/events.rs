//! `podctl events`.

use podd::client::path;
use podd::events::Entry;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::printable;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Events are changes of the host's verdict, what its owner chose, notices to pods and their answers, ends of moves, and the steps of
patch runs that this host carries out.
With --json, each is an object in a line of its own; `id` grows with time, so that a program can go on where it was:
  podctl events --json --follow --after 41")]
pub struct Args {
    /// Go on with those to come.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N.
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "after")]
    tail: u64,
    /// Begin after the event of this number.
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let from = match args.after {
        Some(after) => format!("after={after}"),
        None => format!("tail={}", args.tail),
    };
    let url = format!("{}?{from}&follow={}", path(&["events"]), args.follow);
    let print = |entry: Entry| {
        if ctl.out.is_json() {
            ctl.out.value_line(&entry);
        } else {
            ctl.out.text(&in_words(&entry));
        }
        !ctl.out.gone()
    };
    ctl.daemon.lines(&url, print).await?;
    Ok(DONE)
}

fn in_words(entry: &Entry) -> String {
    format!("{:.0} {} ({})", entry.at, printable(&entry.what.in_words()), printable(&entry.by))
}
