//! `podctl stop`.

use podd::api::StopRequest;
use podd::client::path;

use super::{Podctl, each, pod_name_of};
use crate::error::Outcome;
use crate::flags::pod_name;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to stop.
    #[arg(required = true, value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
    /// Kill them after this time [default: the pod's own].
    #[arg(short, long, value_name = "TIME", value_parser = seconds)]
    timeout: Option<u32>,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let request = StopRequest { timeout_s: args.timeout };
    each(ctl, &args.names, pod_name_of, async |name| ctl.daemon.post(&path(&["pods", name, "stop"]), &request).await)
        .await
}

fn seconds(text: &str) -> Result<u32, String> {
    let seconds = podd::pod::file::quantity::seconds(text).and_then(|seconds| u32::try_from(seconds).ok());
    seconds.ok_or_else(|| "write seconds, or a duration such as 2m".to_owned())
}
