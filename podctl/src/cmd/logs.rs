//! `podctl logs`.

use podd::api::LogLine;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::{Output, Stream};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Go on as the pod writes more, until it has ended for good or left this host; its restart policy may start it again.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines.
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Put the time before each line.
    #[arg(long)]
    timestamps: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let mut url =
        format!("{}?follow={}&timestamps={}", path(&["pods", &args.name, "logs"]), args.follow, args.timestamps);
    if let Some(tail) = args.tail {
        url.push_str(&format!("&tail={tail}"));
    }
    ctl.daemon.lines(&url, |line| print(ctl.out, &line, args.timestamps)).await?;
    Ok(DONE)
}

/// Prints a line where the pod wrote it; false if nobody reads any more.
pub(super) fn print(out: &Output, line: &LogLine, timestamps: bool) -> bool {
    if out.is_json() {
        out.value_line(line);
        return !out.gone();
    }
    if line.stream == "podd" {
        out.note(&line.text);
        return !out.gone();
    }
    let stream = if line.stream == "stderr" { Stream::Stderr } else { Stream::Stdout };
    let text = match timestamps {
        true => format!("{} {}\n", line.time, line.text),
        false => format!("{}\n", line.text),
    };
    out.bytes(stream, text.as_bytes());
    !out.gone()
}
