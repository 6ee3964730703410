//! Pods that stay on their host while it boots: they sleep on its disk, and wake up with podd.

use std::sync::Arc;

use crate::error::Result;
use crate::pod::checkpoint::{self, Options};
use crate::pod::restore;
use crate::pod::state::{PodRecord, PodState};
use crate::supervisor::{Daemon, Doing};

fn records(daemon: &Daemon) -> impl Iterator<Item = PodRecord> {
    daemon.pods().into_iter().map(|pod| pod.record())
}

/// Puts all running pods to sleep; ids of all that sleep now.
pub(super) async fn suspend(daemon: &Arc<Daemon>) -> Result<Vec<String>> {
    for record in records(daemon).filter(|record| matches!(record.state, PodState::Running { .. })) {
        let claim = daemon.claim_in_turn(daemon.pod(&record.id)?, Doing::Suspend).await;
        // Before it sleeps: whatever ends us then, it wakes up again.
        claim.update(daemon, |record| record.wakes = true)?;
        let options = Options { output: None, leave_running: false, compress: false, whole: false };
        checkpoint::checkpoint(daemon, &claim, options).await?;
    }
    Ok(records(daemon).filter(sleeps).map(|record| record.id).collect())
}

fn sleeps(record: &PodRecord) -> bool {
    record.wakes && matches!(record.state, PodState::Suspended { .. })
}

/// Wakes up all that sleep for a boot.
pub(super) async fn wake(daemon: &Arc<Daemon>) -> Result<()> {
    let mut ended = Ok(());
    for record in records(daemon).filter(sleeps) {
        let claim = daemon.claim_in_turn(daemon.pod(&record.id)?, Doing::Resume).await;
        if !sleeps(&claim.record()) {
            continue;
        }
        match restore::resume(daemon, &claim).await {
            Ok(_) => {
                claim.update(daemon, |record| record.wakes = false)?;
            }
            Err(error) => {
                tracing::error!(pod = record.spec.name, error = error.message, "it does not wake up");
                ended = Err(error);
            }
        }
    }
    ended
}

/// The same, after podd's start.
pub fn wake_later(daemon: &Arc<Daemon>) {
    let daemon = daemon.clone();
    tokio::spawn(async move { wake(&daemon).await });
}
