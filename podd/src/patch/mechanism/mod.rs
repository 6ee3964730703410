//! What a host does for a patch run: one file a means.

mod apt;
mod in_place;
mod livepatch;
mod pods;
mod prove;
mod reboot;
mod restart;
mod tool;

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::cordon::{self, Cordon};
use super::run::State;
use super::run::orders::Order;
use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::supervisor::Daemon;

pub use in_place::{expected_ms as expected_in_place_ms, wake_first};
pub use pods::stand;

/// Carries an order out. Each may be carried out twice, and after a crash in mid-work.
///
/// # Errors
/// What keeps it from being done, with the cure.
pub async fn perform(daemon: &Arc<Daemon>, (run, term): (&str, u64), order: Order) -> Result<Value> {
    match order {
        Order::Boot => said(&daemon.boot),
        Order::Pods => said(&pods::stand(daemon)),
        Order::Check { mechanism } => said(&apt::check(daemon, run, mechanism).await?),
        Order::Cordon { reason } => {
            let (owner, since) = (owner(run), jiff::Timestamp::now());
            said(&daemon.store.put_cordon(&Cordon { owner, reason, since, until: None })?)
        }
        Order::Uncordon => said(&cordon::end(daemon, &owner(run))?),
        Order::Rehearse { pod, to } => said(&pods::rehearse(daemon, &pod, &to).await?),
        Order::Move { pod, to } => said(&pods::go(daemon, (run, term), &pod, &to).await?),
        Order::Patch { change } => said(&apt::install(daemon, run, &change).await?),
        Order::LivePatch => said(&livepatch::load(daemon, run).await?),
        Order::Restart => said(&restart::restart(daemon, run).await?),
        Order::Suspend => said(&in_place::suspend(daemon, (run, term), true).await?),
        Order::Resume => said(&in_place::wake(daemon).await?),
        Order::Reboot { boot_id } => said(&reboot::reboot(daemon, (run, term), &boot_id).await?),
        Order::Prove { change, boot_id, peers } => {
            said(&prove::prove(daemon, run, &change, boot_id.as_deref(), &peers).await?)
        }
    }
}

fn said(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).attempt("say it")
}

/// Refuses what takes pods along unless the run still is to go on: somebody may have paused it, or taken it over, since the order.
fn goes_on(daemon: &Daemon, (run, term): (&str, u64)) -> Result<()> {
    match daemon.store.run(run)? {
        Some(known) if known.term == term && known.state == State::Running => Ok(()),
        _ => Err(ApiError::conflict(format!("run {run} is not to go on"))),
    }
}

/// By this name a run cordons hosts.
fn owner(run: &str) -> String {
    format!("run {run}")
}
