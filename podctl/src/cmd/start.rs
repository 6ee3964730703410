//! `podctl start`.

use super::{Podctl, change, each, pod_name_of};
use crate::error::Outcome;
use crate::flags::pod_name;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to start.
    #[arg(required = true, value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    each(ctl, &args.names, pod_name_of, async |name| change(ctl, name, "start").await).await
}
