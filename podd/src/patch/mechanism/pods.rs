//! The host's pods: how they are, and how they leave.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use crate::api::{ApiError, MemoryMode, RehearsalReport};
use crate::error::Result;
use crate::patch::notice::Kind;
use crate::patch::run::keep::own_part;
use crate::patch::run::orders::{Moved, PodStands};
use crate::patch::run::{HostRun, Step};
use crate::patch::told;
use crate::peer;
use crate::pod::elsewhere::last_gone;
use crate::pod::migrate::{self, Wish};
use crate::pod::rehearse as rehearsal;
use crate::pod::state::PodState;
use crate::supervisor::{Daemon, Doing};

/// How they are. One that is about to leave, or being dumped, runs.
#[must_use]
pub fn stand(daemon: &Daemon) -> Vec<PodStands> {
    let view = |pod: Arc<crate::supervisor::Pod>| {
        let (view, record) = (daemon.view(&pod), pod.record());
        let is_moving = matches!(record.state, PodState::Arriving { .. } | PodState::Given { .. });
        let health = view.health.map(|health| health.state);
        PodStands {
            id: view.id,
            name: view.name,
            is_moving,
            health,
            group: record.spec.group,
            slept_ms: record.slept.and_then(|slept| slept.ms()),
            wakes: Some(record.wakes),
            is_waking: record.wakes && view.state == "suspended" && daemon.hand.waking.load(Ordering::Relaxed),
            state: view.state,
        }
    };
    daemon.pods().into_iter().map(view).collect()
}

/// Sends a clone of a pod.
pub(super) async fn rehearse(daemon: &Arc<Daemon>, pod: &str, to: &str) -> Result<RehearsalReport> {
    let tell = mpsc::unbounded_channel().0;
    let _turn = migrate::turn(daemon, &tell).await?;
    let claim = daemon.claim_in_turn(daemon.pod(pod)?, Doing::Rehearse).await;
    rehearsal::rehearse(daemon, &claim, to, &tell).await
}

/// Sends a pod, once it has been told and its notice is over. One that has gone there already has gone.
pub(super) async fn go(daemon: &Arc<Daemon>, (run, term): (&str, u64), id: &str, to: &str) -> Result<Moved> {
    let Ok(pod) = daemon.pod(id) else { return has_gone(daemon, id, to).await };
    let by = super::owner(run);
    let goes_on = || super::goes_on(daemon, (run, term));
    // Those that come back have been told that they would be away; and hardware that fails waits for nobody.
    let is_told = |host: &HostRun| {
        host.patch && matches!(host.step, Step::Check | Step::Cordon | Step::Rehearse | Step::Evacuate)
    };
    let is_told = own_part(daemon)?.as_ref().is_some_and(is_told);
    told::until_ready(daemon, id, is_told.then_some((Kind::Evacuate, &by)), goes_on).await?;
    let tell = mpsc::unbounded_channel().0;
    let turn = migrate::turn(daemon, &tell).await?;
    let claim = daemon.claim_in_turn(pod, Doing::Migrate).await;
    match claim.record().state {
        // Somebody has moved it while we waited for our turn.
        PodState::Given { .. } => return has_gone(daemon, id, to).await,
        _ if daemon.pod(id).is_err() => return has_gone(daemon, id, to).await,
        PodState::Running { .. } => goes_on()?,
        // By itself, or somebody wanted it.
        _ => return Ok(Moved { has_ended: true, ..Moved::default() }),
    }
    let notice = told::settled(daemon, id).await?;
    let wish = Wish { to, by: &by, mode: MemoryMode::Auto };
    match migrate::migrate(daemon, &claim, turn, wish, &tell).await {
        Ok(report) => Ok(Moved { blackout_ms: Some(report.blackout_ms), ..Moved::default() }),
        Err(error) => {
            told::unsettled(daemon, id, notice).await?;
            Err(error)
        }
    }
}

/// A pod that is not here any more: it went to that host, or to another one, before.
async fn has_gone(daemon: &Arc<Daemon>, id: &str, to: &str) -> Result<Moved> {
    let moves = daemon.store.migrations()?;
    let last = last_gone(&moves, id);
    let blackout_ms = last.and_then(|last| last.report.as_ref()).map(|report| report.blackout_ms);
    let other = last.map(|last| last.peer.as_str()).filter(|other| *other != to);
    if peer::has_pod(daemon, to, id).await? {
        return Ok(Moved { blackout_ms: blackout_ms.filter(|_| other.is_none()), ..Moved::default() });
    }
    if let Some(other) = other
        && peer::has_pod(daemon, other, id).await?
    {
        return Ok(Moved { blackout_ms, at: Some(other.to_owned()), ..Moved::default() });
    }
    Err(ApiError::not_found(format!("the pod {id} is neither on {} nor on {to}", daemon.config.host))
        .cure("see `podctl migrations` on that host; somebody may have removed it"))
}
