//! `podctl rm`.

use podd::client::path;

use super::{Podctl, each};
use crate::error::Outcome;
use crate::flags::pod_name;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to remove.
    #[arg(required = true, value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
    /// Kill them first if they run.
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    each(ctl, &args.names, String::clone, async |name| {
        ctl.daemon.delete(&format!("{}?force={}", path(&["pods", name]), args.force)).await?;
        Ok(name.to_owned())
    })
    .await
}
