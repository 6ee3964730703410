//! Patch runs and cordons over HTTP.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::caller::Caller;
use super::http::{Answer, App, Said, json};
use super::plan;
use crate::api::{ApiError, CordonRequest, ReserveRequest, RunRequest, SteerRequest};
use crate::error::Attempt;
use crate::patch::cordon::{self, Cordon};
use crate::patch::plan::Plan;
use crate::patch::run::drive::{self, Steer};
use crate::patch::run::keep;
use crate::reserved;
use crate::supervisor::Daemon;

/// Routes of patch runs.
pub fn routes() -> axum::Router<Arc<Daemon>> {
    axum::Router::new()
        .route("/v1/patch/run", post(run))
        .route("/v1/patch/steer", post(steer))
        .route("/v1/patch/runs", get(runs))
        .route("/v1/patch/runs/{id}", get(one))
        .route("/v1/host/cordons", get(cordons))
        .route("/v1/host/cordon", post(put_cordon))
        .route("/v1/host/uncordon", post(delete_cordon))
        .route("/v1/host/reserved-memory", get(reserved_memory).post(reserve_memory))
}

async fn run(State(daemon): App, caller: Caller, Said(request): Said<RunRequest>) -> Answer {
    let now = plan::made(&daemon, request.host.as_deref()).await?;
    if let Some(shown) = &request.plan
        && let Some(difference) = difference(shown, &now)
    {
        return Err(ApiError::conflict(format!("the plan is another one by now: {difference}"))
            .cure("look at it again with `podctl patch plan`"));
    }
    if now.steps.is_empty() {
        return Err(ApiError::conflict("nothing is to be done now").cure("`podctl patch plan` tells why"));
    }
    json(drive::begin(&daemon, &now, &caller.name()).await?)
}

/// In which step two plans differ; how long pods would be silent is no difference.
fn difference(shown: &Plan, now: &Plan) -> Option<String> {
    let steps = |plan: &Plan| -> Vec<String> {
        let step = |step: &crate::patch::plan::Step| {
            let moves: Vec<String> = step.moves.iter().map(|m| format!("{} to {}", m.pod, m.to)).collect();
            let moves = if moves.is_empty() { String::new() } else { format!(" ({})", moves.join(", ")) };
            let how = if step.patch { step.mechanism.name() } else { "leaving it" };
            format!("{} by {how} in wave {}{moves}", step.host, step.wave)
        };
        plan.steps.iter().map(step).collect()
    };
    let (shown, now) = (steps(shown), steps(now));
    let gone = shown.iter().find(|step| !now.contains(step)).map(|step| format!("no longer {step}"));
    let new = now.iter().find(|step| !shown.contains(step)).map(|step| format!("now {step}"));
    match (gone, new) {
        (Some(gone), Some(new)) => Some(format!("{gone}; {new}")),
        (gone, new) => gone.or(new).or_else(|| (shown != now).then(|| "in another order".to_owned())),
    }
}

async fn steer(State(daemon): App, caller: Caller, Said(request): Said<SteerRequest>) -> Answer {
    let SteerRequest { run, what } = request;
    json(drive::steer_any(&daemon, Steer { run, by: caller.name(), what }).await?)
}

/// Those that this host knows; it may not be the one that carries them out.
async fn runs(State(daemon): App) -> Answer {
    let mut runs = daemon.store.runs(Timestamp::MIN)?;
    if let Ok(Some(newest)) = keep::newest(&daemon, None).await {
        runs.retain(|run| run.id != newest.id);
        runs.push(newest);
    }
    json(runs)
}

async fn one(State(daemon): App, Path(id): Path<String>) -> Answer {
    let own = daemon.store.run(&id)?;
    let known = match own.as_ref().is_some_and(|run| run.coordinator == daemon.config.host) {
        true => own,
        // Without the others: what we know of it, at least.
        false => keep::newest(&daemon, Some(&id)).await.ok().flatten().or(own),
    };
    let none = || ApiError::not_found(format!("there is no patch run {id}")).cure("`podctl patch runs` lists them");
    json(known.ok_or_else(none)?)
}

async fn cordons(State(daemon): App) -> Answer {
    json(cordon::all(&daemon)?)
}

async fn put_cordon(State(daemon): App, caller: Caller, Said(request): Said<CordonRequest>) -> Answer {
    let since = Timestamp::now();
    let until = request.seconds.map(|seconds| {
        let seconds = i64::try_from(seconds).attempt("reckon with such a length of time")?;
        since.checked_add(SignedDuration::from_secs(seconds)).attempt("reckon with such a length of time")
    });
    let cordon = Cordon { owner: caller.name(), reason: request.reason, since, until: until.transpose()? };
    daemon.store.put_cordon(&cordon)?;
    json(cordon::all(&daemon)?)
}

async fn delete_cordon(State(daemon): App, caller: Caller, Said(request): Said<UncordonRequest>) -> Answer {
    let owner = request.owner.unwrap_or_else(|| caller.name());
    let owners: Vec<String> = cordon::all(&daemon)?.into_iter().map(|cordon| cordon.owner).collect();
    if !owners.contains(&owner) {
        let owners = if owners.is_empty() { "nobody".to_owned() } else { owners.join(", ") };
        return Err(ApiError::not_found(format!("{} is not cordoned by {owner}", daemon.config.host))
            .cure(format!("it is cordoned by {owners}; name the owner with --owner")));
    }
    daemon.store.delete_cordon(&owner)?;
    json(cordon::all(&daemon)?)
}

async fn reserved_memory(State(daemon): App) -> Answer {
    json(tokio::task::block_in_place(|| reserved::view(&daemon.config))?)
}

async fn reserve_memory(State(daemon): App, Said(request): Said<ReserveRequest>) -> Answer {
    json(tokio::task::block_in_place(|| reserved::reserve(&daemon.config, request.bytes))?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncordonRequest {
    /// Whose cordon ends; none: the caller's.
    #[serde(default)]
    owner: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::decide::Mechanism;
    use crate::patch::plan::{Move, Step};

    #[test]
    fn a_plan_that_has_changed_is_told() {
        let step = |host: &str, wave, to: &str, blackout_ms| Step {
            wave,
            host: host.to_owned(),
            mechanism: Mechanism::Evacuate,
            patch: true,
            moves: vec![Move { pod: "web".to_owned(), to: to.to_owned(), blackout_ms }],
            sleeps: Vec::new(),
            takes_s: None,
            why: String::new(),
        };
        let plan = |steps: Vec<Step>| Plan { steps, left: Vec::new() };
        let shown = plan(vec![step("a", 1, "b", 90.0), step("c", 2, "b", 90.0)]);
        let told = |now: Vec<Step>| difference(&shown, &plan(now));
        assert_eq!(told(vec![step("a", 1, "b", 70.0), step("c", 2, "b", 80.0)]), None, "silence is no difference");
        let elsewhere = told(vec![step("a", 1, "d", 90.0), step("c", 2, "b", 90.0)]);
        assert_eq!(
            elsewhere.as_deref(),
            Some("no longer a by evacuate in wave 1 (web to b); now a by evacuate in wave 1 (web to d)")
        );
        assert_eq!(
            told(vec![step("a", 1, "b", 90.0)]).as_deref(),
            Some("no longer c by evacuate in wave 2 (web to b)")
        );
        assert_eq!(told(vec![step("c", 2, "b", 9.0), step("a", 1, "b", 9.0)]).as_deref(), Some("in another order"));
    }
}
