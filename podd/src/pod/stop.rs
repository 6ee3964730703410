//! Ending a pod: politely (`stop`), by any signal (`kill`), or for good (`rm`).

use std::sync::Arc;
use std::time::Duration;

use super::start::{KILL_LIMIT, clear_up, ended, will_restart};
use super::state::{PodRecord, PodState};
use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::supervisor::{Claim, Daemon};
use crate::sys::process::wait_ended;

/// Sends the stop signal, waits, kills what is left. Of a pod that the restart policy is about to start again, it only
/// ends the policy's work.
///
/// # Errors
/// It does not run.
pub async fn stop(daemon: &Arc<Daemon>, claim: &Claim, timeout_s: Option<u32>) -> Result<PodRecord> {
    let record = claim.record();
    if let PodState::Exited { exit, .. } = record.state
        && will_restart(&record)
    {
        // In the pause before its next start: it stays as it is.
        return claim.update(daemon, |r| r.state = PodState::Exited { exit, asked: true });
    }
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, &record)) };
    let limit = Duration::from_secs(timeout_s.unwrap_or(record.spec.stop_timeout_s).into());
    let cgroup = daemon.cgroup(&record.id);
    let signal = record.spec.stop_signal();
    tokio::task::spawn_blocking(move || {
        if let Ok(pidfd) = init.pidfd() {
            let asked = init.signal(signal).is_ok();
            if !asked || !wait_ended(std::os::fd::AsFd::as_fd(&pidfd), limit) {
                cgroup.kill(KILL_LIMIT)?;
            }
        }
        Ok::<_, std::io::Error>(())
    })
    .await
    .attempt("wait for the pod")?
    .attempt(format!("stop {}", record.spec.name))?;
    ended(daemon, claim, true).await
}

/// Sends a signal to the pod's init, which forwards it to the pod's command.
///
/// # Errors
/// It does not run, or there is no such signal, or init cannot forward it.
pub fn kill(daemon: &Daemon, record: &PodRecord, signal: i32) -> Result<()> {
    crate::sys::process::signal_of(signal).map_err(|_| ApiError::usage(format!("there is no signal {signal}")))?;
    if signal == nix::libc::SIGSTOP {
        // Nor would TSTP do: the kernel drops it for a session leader whose parent is in another session, as init's is.
        let name = &record.spec.name;
        return Err(ApiError::usage("SIGSTOP would stop the pod's init, which cannot pass it on, but nothing else")
            .cure(format!(
                "`podctl suspend {name}` stops the pod; `podctl exec {name} -- kill -STOP PID` one process of it"
            )));
    }
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    init.signal(signal).attempt(format!("send signal {signal} to {}", record.spec.name))
}

/// Removes a pod that does not run, with its writable layer and its own image; with `force`, ends it first.
///
/// # Errors
/// It runs, or another host depends on it.
pub async fn remove(daemon: &Arc<Daemon>, claim: &Claim, force: bool) -> Result<()> {
    let mut record = claim.record();
    if force && matches!(record.state, PodState::Running { .. }) {
        daemon.cgroup(&record.id).kill(KILL_LIMIT).attempt(format!("kill {}", record.spec.name))?;
        record = ended(daemon, claim, true).await?;
    }
    let name = &record.spec.name;
    if !record.state.can_remove() {
        let error = ApiError::conflict(format!("{name} cannot be removed: it is {}", daemon.stands(&record)));
        return Err(match record.state {
            PodState::Running { .. } => error.cure(format!("`podctl stop {name}` first, or `podctl rm -f {name}`")),
            _ => error.cure("its migration must end first; see `podctl migrations`"),
        });
    }
    delete(daemon, &record).await
}

/// Deletes everything of a pod on this host: processes, files, record.
///
/// # Errors
/// Files that cannot be deleted.
pub async fn delete(daemon: &Daemon, record: &PodRecord) -> Result<()> {
    clear_up(daemon, record).await.attempt(format!("clear up {}", record.spec.name))?;
    // The record goes last but for the files: a crash in between leaves a folder that recovery removes.
    // Of a pod that runs, a crash just after its resume may have left the image.
    let image = daemon.config.own_image(&record.id);
    let _ = std::fs::remove_file(&image);
    crate::reserved::forget(&daemon.config, &image);
    daemon.forget(&record.id)?;
    let folder = daemon.config.pod_state(&record.id);
    tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    })
    .await
    .attempt("delete files")?
    .attempt(format!("delete the files of {}", record.spec.name))
}

/// The refusal for a pod without processes.
#[must_use]
pub fn not_running(daemon: &Daemon, record: &PodRecord) -> ApiError {
    let name = &record.spec.name;
    let error = ApiError::conflict(format!("{name} is not running: it is {}", daemon.stands(record)));
    match record.state {
        PodState::Suspended { .. } => error.cure(format!("`podctl resume {name}` lets it go on")),
        PodState::Arriving { .. } | PodState::Given { .. } => {
            error.cure("wait until it runs there; `podctl migrations` shows how far the move is")
        }
        _ if record.state.can_start() => error.cure(format!("`podctl start {name}` starts it")),
        _ => error,
    }
}
