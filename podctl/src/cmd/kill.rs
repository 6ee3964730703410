//! `podctl kill`.

use podd::api::KillRequest;
use podd::client::path;
use podd::pod::file::quantity;

use super::{Podctl, each};
use crate::error::Outcome;
use crate::flags::pod_name;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to signal.
    #[arg(required = true, value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
    /// Send this signal, by name or number; any but STOP, which only podctl exec can send.
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: i32,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let request = KillRequest { signal: args.signal };
    each(ctl, &args.names, String::clone, async |name| {
        ctl.daemon.post::<_, serde_json::Value>(&path(&["pods", name, "kill"]), &request).await?;
        Ok(name.to_owned())
    })
    .await
}

fn signal(text: &str) -> Result<i32, String> {
    quantity::signal(text).ok_or_else(|| "write a signal's name or number, such as HUP or 1".to_owned())
}
