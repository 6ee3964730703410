//! `podctl advisories`.

use super::Podctl;
use super::why::{exposures, one};
use crate::error::{DONE, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The host; without it, the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Read facts and advisories anew first.
    #[arg(long)]
    refresh: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let status = one(ctl, args.of.as_deref(), args.refresh).await?;
    ctl.out.show(&status.decision.exposures, |_| exposures(&status, usize::MAX));
    Ok(DONE)
}
