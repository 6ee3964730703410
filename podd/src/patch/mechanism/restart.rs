//! Programs of the host that run with files that were replaced. Pods are not touched; podd itself comes last, and finds them again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::tool;
use crate::api::ApiError;
use crate::error::Result;
use crate::patch::watch;
use crate::supervisor::Daemon;

const LIMIT: Duration = Duration::from_secs(300);
/// Ours: it cannot wait for its own end.
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
    if units.contains(PODD) {
        tool::run(daemon, run, &["systemctl", "--no-block", "restart", PODD], LIMIT).await?;
        // It ends us.
        tokio::time::sleep(LIMIT).await;
    }
    Ok(())
}
