//! A rehearsal of a move: a clone of the pod is restored on the real target, cut off from everything, looked at, and
//! destroyed. The pod itself stands still only while it is dumped.
//!
//! In the journals a rehearsal is a move that is always called off: `aborted` on the source before the target has restored
//! anything, `discarded` on the target. So whatever dies meanwhile, what is left of it is cleared up as after any such move.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::freeze::release;
use super::health::probe;
use super::migrate::{Run, Tell, Wish, call_off};
use super::spec::Health;
use super::state::{PodRecord, PodState};
use crate::api::{ApiError, HealthState, HealthView, MemoryMode, RehearsalReport};
use crate::error::{Attempt, Result};
use crate::peer::{Message, unexpected};
use crate::supervisor::{Claim, Daemon};
use crate::sys::process::ProcessId;

/// A clone without a health probe is watched for this long.
const WATCHED: Duration = Duration::from_secs(1);

/// Rehearses a move to another host.
///
/// # Errors
/// A refusal by preflight, or what broke: the move would have failed, or the pod would have been ill there.
pub async fn rehearse(daemon: &Arc<Daemon>, claim: &Claim, to: &str, tell: &Tell) -> Result<RehearsalReport> {
    let record = claim.record();
    let wish = Wish { to, by: "", mode: MemoryMode::Auto };
    let (mut run, mut migration) = Run::begin(daemon, claim, wish, true, tell).await?;
    let sent = run.until_sent(&record, &mut migration).await;
    // On record before the target restores anything: should it lose us, it is told that the pod was not given to it.
    call_off(daemon, &record, &mut migration, sent.as_ref().err().map(|e| e.message.clone()), run.hold())?;
    let pause_ms = run.frozen_ms();
    run.end_turn();
    sent?;
    let performed = on_target(&mut run, &record, to).await;
    match performed {
        Ok(_) if !record.failed_on.is_empty() => drop(claim.update(daemon, |record| record.failed_on.clear())?),
        Ok(_) => {}
        Err(_) => run.note_failure(claim)?,
    }
    if let Err(e) = &performed {
        migration.error = Some(e.message.clone());
        daemon.journal(&migration, None)?;
    }
    let (ran, health) = performed?;
    Ok(RehearsalReport {
        pod: record.spec.name,
        from: daemon.config.host.clone(),
        to: to.to_owned(),
        pause_ms,
        restore_ms: run.restore_ms(),
        ran,
        health,
    })
}

/// Has the clone restored and looked at: whether it ran, and what its probe said.
async fn on_target(run: &mut Run<'_>, record: &PodRecord, to: &str) -> Result<(bool, Option<HealthView>)> {
    run.restore(record).await?;
    let (ran, outcome) = match run.perform().await? {
        Message::Rehearsed { ran, outcome } => (ran, outcome),
        other => return Err(unexpected(&other)),
    };
    let name = &record.spec.name;
    match outcome {
        Ok(health) => Ok((ran, health)),
        Err(reason) => Err(ApiError::failed(format!("a clone of {name} was not well on {to}: {reason}"))
            .cure(format!("{name} runs on here; see why before it is moved"))),
    }
}

/// The target's part: lets the restored clone run without a link, and looks how it is. The caller destroys it.
pub async fn perform(daemon: &Daemon, record: &PodRecord, init: ProcessId) -> Message {
    // What it wrote to a volume, it would write twice; and sockets in a volume lead to programs of the host.
    if !record.spec.volumes.is_empty() {
        return Message::Rehearsed { ran: false, outcome: Ok(None) };
    }
    let outcome = look(daemon, record, init).await.map_err(|e| e.message);
    Message::Rehearsed { ran: true, outcome }
}

async fn look(daemon: &Daemon, record: &PodRecord, init: ProcessId) -> Result<Option<HealthView>> {
    let alive = || match init.is_alive() {
        true => Ok(()),
        false => Err(ApiError::failed("it has ended")),
    };
    tokio::task::block_in_place(|| release(daemon, record)).attempt("thaw the clone")?;
    let Some(health) = &record.spec.health else {
        tokio::time::sleep(WATCHED).await;
        return alive().map(|()| None);
    };
    let running = PodState::Running { init, boot: daemon.boot.clone() };
    let clone = PodRecord { state: running, ..record.clone() };
    let view = until_known(daemon, &clone, health).await;
    alive()?;
    match view.state {
        HealthState::Healthy => Ok(Some(view)),
        _ => Err(ApiError::failed(view.reason.unwrap_or_default())),
    }
}

/// Asks until the probe has succeeded, or failed often enough.
async fn until_known(daemon: &Daemon, record: &PodRecord, health: &Health) -> HealthView {
    let mut view = HealthView::STARTING;
    while view.state == HealthState::Starting {
        let begun = Instant::now();
        let answer = probe(daemon, record, health).await.map_err(|e| e.message);
        view = view.after(answer, health.retries);
        if view.state == HealthState::Starting {
            tokio::time::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
        }
    }
    view
}
