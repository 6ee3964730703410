//! Programs of the host that run with files that were replaced. Pods are not touched; podd itself comes last, and finds
//! them again; their shims after it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use super::tool;
use crate::api::ApiError;
use crate::error::Result;
use crate::patch::watch;
use crate::pod::start::ensure_shim;
use crate::pod::state::{PodRecord, PodState};
use crate::shim::client;
use crate::supervisor::{Daemon, Doing};

const LIMIT: Duration = Duration::from_secs(300);
/// Ours.
const PODD: &str = "podd.service";

/// Starts them again.
pub(super) async fn restart(daemon: &Arc<Daemon>, run: &str) -> Result<()> {
    watch::look(daemon, false).await?;
    let stale = watch::facts(daemon).and_then(|facts| facts.stale.known().cloned()).unwrap_or_default();
    let units: BTreeSet<&str> = stale.iter().filter_map(|process| process.unit.as_deref()).collect();
    for unit in units.iter().filter(|unit| unit.ends_with(".service") && **unit != PODD) {
        let said = tool::run(daemon, run, &["systemctl", "try-restart", unit], LIMIT).await?;
        if !said.is_well() {
            return Err(ApiError::failed(format!("{unit} did not start again: {}", said.last()))
                .cure(format!("see `systemctl status {unit}`")));
        }
    }
    if stale.iter().any(|process| process.pid == 1) {
        let said = tool::run(daemon, run, &["systemctl", "daemon-reexec"], LIMIT).await?;
        if !said.is_well() {
            return Err(ApiError::failed(format!("systemd does not start itself again: {}", said.last())));
        }
    }
    let stale: BTreeSet<u32> = stale.iter().map(|process| process.pid).collect();
    if stale.contains(&std::process::id()) {
        let said = tool::run(daemon, run, &["systemctl", "--no-block", "restart", PODD], LIMIT).await?;
        if said.is_well() {
            // It ends us; whoever comes after us is told to do all this again.
            tokio::time::sleep(LIMIT).await;
        }
        return Err(ApiError::failed(format!("{PODD} does not start podd again: {}", said.last()))
            .cure("restart podd yourself; pods run on"));
    }
    renew_shims(daemon, &stale).await
}

/// Shims outlive podd, and have its code.
async fn renew_shims(daemon: &Arc<Daemon>, stale: &BTreeSet<u32>) -> Result<()> {
    let old = |record: &PodRecord| {
        let shim = client::shim(&daemon.config.bundle(&record.id)).ok()?;
        let is_old = matches!(record.state, PodState::Running { .. }) && stale.contains(&shim.pid.cast_unsigned());
        is_old.then_some(shim)
    };
    // One that leaves may take long, and gets another shim where it goes.
    for pod in daemon.pods().into_iter().filter(|pod| old(&pod.record()).is_some()) {
        let claim = daemon.claim_in_turn(pod, Doing::ReplaceShim).await;
        let record = claim.record();
        if let Some(shim) = old(&record) {
            let _ = shim.signal(libc::SIGKILL);
            let _ = shim.ended().await;
            ensure_shim(daemon, &record).await?;
        }
    }
    Ok(())
}
