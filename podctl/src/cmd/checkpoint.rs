//! `podctl checkpoint`.

use podd::api::{CheckpointReport, CheckpointRequest};
use podd::client::path;

use super::{Podctl, absolute};
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::words;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl checkpoint web                                     into podd's image folder, until podctl resume web
  podctl checkpoint web -o /backup/web.img --compress
  podctl checkpoint web -o /backup/web.img --leave-running  as a backup of a pod that goes on
  podctl checkpoint web --leave-running                     the same, under a new name in podd's image folder")]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Write this file on podd's host [default: in podd's image folder; the answer names it].
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Let the pod go on afterwards.
    #[arg(long)]
    leave_running: bool,
    /// Compress the image with zstd.
    #[arg(long)]
    compress: bool,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let request = CheckpointRequest {
        output: args.output.as_deref().map(absolute).transpose()?,
        leave_running: args.leave_running,
        compress: args.compress,
    };
    let progress = ctl.out.progress(&args.name);
    let report: CheckpointReport =
        ctl.daemon.stream(&path(&["pods", &args.name, "checkpoint"]), &request, |p| progress.update(&p)).await?;
    drop(progress);
    ctl.out.show(&report, in_words);
    Ok(DONE)
}

fn in_words(report: &CheckpointReport) -> String {
    let CheckpointReport { pod, image, bytes, frozen_ms } = report;
    format!("{pod} written to {image}: {}, frozen for {} ms", words::bytes(*bytes), words::ms(*frozen_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_in_words() {
        let report =
            CheckpointReport { pod: "web".into(), image: "/i/web.img".into(), bytes: 268_435_456, frozen_ms: 150.2 };
        assert_eq!(in_words(&report), "web written to /i/web.img: 268 MB, frozen for 150 ms");
    }
}
