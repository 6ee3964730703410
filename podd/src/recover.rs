//! After a start of the daemon: records against reality. Every half-done action is finished or undone.

use std::sync::Arc;

use checkpoint::image::Image;

use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::pod::freeze::thaw;
use crate::pod::journal::{Migration, Role, Step};
use crate::pod::state::{PodRecord, PodState};
use crate::pod::{arrive, migrate, start};
use crate::shim::{Status, client};
use crate::supervisor::{Daemon, Doing};
use crate::sys::process::ProcessId;

/// Settles everything that can be settled alone, then starts tasks for what needs other hosts.
///
/// # Errors
/// The store's. A single pod that cannot be recovered is logged and does not keep the daemon from starting.
pub async fn recover(daemon: &Arc<Daemon>) -> Result<()> {
    let open: Vec<Migration> = daemon.store.migrations()?.into_iter().filter(|m| !m.step.is_final()).collect();
    // First what this host has not given away: from here on it may answer other hosts' queries.
    for mut migration in open.iter().filter(|m| matches!(m.step, Step::Preparing | Step::Freezing)).cloned() {
        migration.step = Step::Aborted;
        migration.error = Some("podd ended in mid-move".into());
        daemon.journal(&migration, None)?;
    }
    // Given, answered for and deleted here: only the last entry was cut short.
    for mut migration in open.iter().filter(|m| m.step == Step::Given && daemon.pod(&m.pod_id).is_err()).cloned() {
        migration.step = Step::Done;
        daemon.journal(&migration, None)?;
    }
    for pod in daemon.pods() {
        let claim = daemon.claim_in_turn(pod, Doing::Recover).await;
        let record = claim.record();
        let mine = open.iter().find(|m| m.pod_id == record.id && !matches!(m.step, Step::Preparing | Step::Freezing));
        let recovered = match (mine, &record.state) {
            (Some(migration), _) => {
                settle(daemon, claim, migration.clone());
                Ok(())
            }
            (None, PodState::Running { init, boot }) => {
                let alive = *boot == daemon.boot && init.is_alive();
                recover_running(daemon, &claim, *init, alive).await
            }
            (None, PodState::Arriving { .. }) => {
                // Reserved, but the migration is final or unknown: only the deletion was cut short.
                crate::pod::stop::delete(daemon, &record).await
            }
            (None, PodState::Given { .. }) => crate::pod::stop::delete(daemon, &record).await,
            (None, _) => {
                let cleared = start::clear_up(daemon, &record).await.attempt("clear up");
                // The last podd may have died in the pause before a restart.
                if start::will_restart(&record) {
                    start::restart_later(daemon, &record.id);
                }
                cleared
            }
        };
        if let Err(e) = recovered {
            tracing::error!(pod = record.spec.name, error = %e, "could not recover the pod");
        }
    }
    remove_strays(daemon);
    tokio::task::block_in_place(|| remove_unused_layers(daemon));
    Ok(())
}

/// Layers that no pod and no image of ours names. Only at a start, before anybody can create a pod; later, the next pod may want them again.
fn remove_unused_layers(daemon: &Daemon) {
    let records: Vec<PodRecord> = daemon.pods().iter().map(|p| p.record()).collect();
    let images = std::fs::read_dir(daemon.config.images()).into_iter().flatten().flatten();
    let images: Vec<Image> = images.filter_map(|entry| Image::open(&entry.path()).ok()).collect();
    let of_images = images.iter().flat_map(|image| &image.manifest().meta.layers);
    let in_use = records.iter().flat_map(|r| &r.layers).chain(of_images).filter_map(|l| l.parse().ok()).collect();
    if let Err(e) = daemon.layers.remove_unused(&in_use) {
        tracing::warn!(error = %e, "could not remove unused layers");
    }
}

/// A pod that was running: it may be frozen by a move or a checkpoint that did not come to its end.
async fn recover_running(
    daemon: &Arc<Daemon>,
    claim: &crate::supervisor::Claim,
    init: ProcessId,
    alive: bool,
) -> Result<()> {
    let record = claim.record();
    if !alive {
        start::ended(daemon, claim, false).await?;
        start::restart_later(daemon, &record.id);
        return Ok(());
    }
    // A dump that is still under way must end before the thaw: the shim answers when it has.
    match client::status(&daemon.config.bundle(&record.id), std::time::Duration::from_secs(330)).await {
        Ok(Status::Alive { .. }) => {}
        Ok(other) => {
            tracing::warn!(pod = record.spec.name, status = ?other, "the shim disagrees with the process table")
        }
        Err(_) => {
            if let Err(e) = start::ensure_shim(daemon, &record).await {
                tracing::warn!(pod = record.spec.name, error = %e, "the pod runs on without a shim");
            }
        }
    }
    thaw(daemon, &record, &[])?;
    if record.wakes {
        // It was to sleep for a boot, and does not; should its owner put it to sleep later, nobody wakes it up.
        claim.update(daemon, |record| record.wakes = false)?;
    }
    start::watch(daemon, &record.id, init);
    Ok(())
}

/// Finishes a move whose outcome depends on the other host, in a task of its own.
fn settle(daemon: &Arc<Daemon>, claim: crate::supervisor::Claim, mut migration: Migration) {
    let daemon = daemon.clone();
    tokio::spawn(async move {
        let pod = migration.pod.clone();
        let settled: Result<()> = match (migration.role, migration.step) {
            (Role::Source, Step::Given) => migrate::conclude(&daemon, &claim, &mut migration, None, None, |_| {}).await,
            (Role::Target, Step::Receiving) => {
                arrive::discard(&daemon, &claim, &mut migration, Some("podd ended while it was receiving")).await
            }
            (Role::Target, Step::Held) => {
                // A rehearsal lets the clone run while it is no more than held.
                let cgroup = daemon.cgroup(&migration.pod_id);
                let _ = tokio::task::block_in_place(|| cgroup.freeze(std::time::Duration::from_secs(10)));
                arrive::settle(&daemon, claim, migration).await
            }
            (Role::Target, Step::Committed) => arrive::commit(&daemon, &claim, &mut migration, &[]).await.map(drop),
            (role, step) => Err(ApiError::failed(format!("{role:?} cannot be at {}", step.word()))),
        };
        if let Err(e) = settled {
            tracing::error!(pod, error = %e, "a move was settled with an error");
        }
    });
}

/// Removes folders and memory of pods that no record knows, as a crash came between the two deletions, and half images.
fn remove_strays(daemon: &Daemon) {
    let known: Vec<PodRecord> = daemon.pods().iter().map(|p| p.record()).collect();
    let open: Vec<String> = daemon
        .store
        .migrations()
        .unwrap_or_default()
        .into_iter()
        .filter(|m| !m.step.is_final())
        .map(|m| m.id)
        .collect();
    let stray = |folder: std::path::PathBuf, keep: &dyn Fn(&str) -> bool| {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if !keep(&entry.file_name().to_string_lossy()) {
                tracing::info!(path = %entry.path().display(), "removing what a crash left behind");
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    };
    stray(daemon.config.state.join("pods"), &|name| known.iter().any(|r| r.id == name));
    for entry in std::fs::read_dir(daemon.config.images()).into_iter().flatten().flatten() {
        // Nobody else writes there: its writer has died with the last podd.
        if entry.path().extension().is_some_and(|e| e == "partial") {
            tracing::info!(path = %entry.path().display(), "removing an image that was never finished");
            let _ = std::fs::remove_file(entry.path());
        }
    }
    stray(daemon.config.flight(), &|name| open.iter().any(|id| name.starts_with(id.as_str())));
}
