//! Booting the host.

use std::time::Duration;

use super::tool;
use crate::api::ApiError;
use crate::error::Result;
use crate::pod::state::PodState;
use crate::supervisor::Daemon;

/// The command only asks for it.
const LIMIT: Duration = Duration::from_secs(60);

/// Boots, unless the host has since this boot. Never with a pod that runs.
pub(super) async fn reboot(daemon: &Daemon, run: &str, boot_id: &str) -> Result<()> {
    if daemon.boot != boot_id {
        return Ok(());
    }
    let records = daemon.pods().into_iter().map(|pod| pod.record());
    let alive = |state: &PodState| {
        matches!(state, PodState::Running { .. } | PodState::Arriving { .. } | PodState::Given { .. })
    };
    if let Some(pod) = records.into_iter().find(|record| alive(&record.state)) {
        let what = format!("{} is still on {}, which is not booted with it", pod.spec.name, daemon.config.host);
        return Err(ApiError::conflict(what).cure("move it, or stop it"));
    }
    nix::unistd::sync();
    let command: Vec<&str> = daemon.config.reboot.iter().map(String::as_str).collect();
    let said = tool::run(daemon, run, &command, LIMIT).await?;
    match said.status {
        Some(status) if !status.success() => {
            Err(ApiError::failed(format!("{} does not boot: {}", daemon.config.host, said.last()))
                .cure("set `reboot` in podd.toml to a command that boots this host"))
        }
        _ => Ok(()),
    }
}
