//! Plans of the fleet: asks all hosts how they are, plans, and has preflight look at every move before it is shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use checkpoint::compat::{Finding, Verdict};
use futures_util::future::join_all;
use serde::Deserialize;

use super::http::{Answer, App, Asked, json};
use super::status;
use crate::api::ApiError;
use crate::error::Result;
use crate::patch::decide::Decision;
use crate::patch::facts::Missing;
use crate::patch::plan::{self, Host, Plan, Pod};
use crate::patch::watch;
use crate::peer;
use crate::pod::state::PodState;
use crate::pod::{migrate, predict, preflight};
use crate::supervisor::Daemon;

/// A move that preflight refuses is planned elsewhere; so often at most.
const ROUNDS: usize = 8;

#[derive(Deserialize)]
pub(super) struct PlanQuery {
    /// Of this host; none: of the one that is asked.
    host: Option<String>,
    /// Of all hosts.
    #[serde(default)]
    fleet: bool,
}

/// `GET /v1/patch/plan`.
pub(super) async fn plan(State(daemon): App, Asked(query): Asked<PlanQuery>) -> Answer {
    let host = query.host.unwrap_or_else(|| daemon.config.host.clone());
    let mut hosts = all(&daemon).await?;
    if !query.fleet && !hosts.iter().any(|known| known.name == host) {
        return Err(daemon.host(&host).err().unwrap_or_else(|| ApiError::not_found(format!("no host {host}"))));
    }
    let policy = watch::policy(&daemon).0.unwrap_or_default();
    for _ in 0..ROUNDS {
        let mut plan = plan::plan(&hosts, &policy, &daemon.config.host);
        if !query.fleet {
            plan.steps.retain(|step| step.host == host);
            plan.left.retain(|left| left.host == host);
        }
        let refused = refused(&daemon, &plan).await;
        if refused.is_empty() {
            return json(plan);
        }
        for pod in hosts.iter_mut().flat_map(|host| &mut host.pods) {
            pod.refused.extend(refused.get(&pod.name).cloned().unwrap_or_default());
        }
    }
    Err(ApiError::failed("preflight refuses one host after the other")
        .cure("`podctl preflight POD --to HOST` tells why"))
}

/// All hosts of the fleet, those that do not answer too.
async fn all(daemon: &Arc<Daemon>) -> Result<Vec<Host>> {
    let asked = super::fleet::names(daemon).await?.into_iter().map(async |name| {
        let answer = match name == daemon.config.host {
            true => own(daemon).await,
            false => peer::plan_facts_of(daemon, &name).await,
        };
        answer.unwrap_or_else(|error| silent(name, error.message))
    });
    Ok(join_all(asked).await)
}

/// This host, as plans need it.
///
/// # Errors
/// The store's, or `/proc` cannot be read.
pub async fn own(daemon: &Arc<Daemon>) -> Result<Host> {
    let decision = status::own(daemon, false, false).await?.decision;
    tokio::task::block_in_place(|| {
        let facts = preflight::host_facts(daemon, None)?;
        let records = daemon.pods().into_iter().map(|pod| pod.record());
        let running = records.filter(|record| matches!(record.state, PodState::Running { .. }));
        let pods = running.map(|record| {
            let blackout_ms = predict::expected(daemon, &record, "", 0)?.expected.blackout_ms;
            let memory = predict::memory(&daemon.cgroup(&record.id).pids());
            let (name, group) = (record.spec.name, record.spec.group);
            Ok(Pod { name, memory, relies_on: record.relies_on, group, blackout_ms, refused: BTreeMap::new() })
        });
        Ok(Host {
            name: daemon.config.host.clone(),
            decision,
            kernel: facts.kernel.number.into(),
            cpu: facts.cpu,
            memory: facts.memory.total,
            available: facts.memory.available.min(facts.image_space.free_bytes),
            pods: pods.collect::<Result<_>>()?,
        })
    })
}

fn silent(name: String, why: String) -> Host {
    let cure = format!("see that podd runs on {name} and can be reached");
    let decision = Decision::unknown(Missing { what: why, cure });
    let (kernel, cpu, pods) = (checkpoint::baseline::OLDEST_KERNEL, checkpoint::host::Cpu::default(), Vec::new());
    Host { name, decision, kernel, cpu, memory: 0, available: 0, pods }
}

/// Moves of a plan that preflight refuses: by pod, the host and why.
async fn refused(daemon: &Arc<Daemon>, plan: &Plan) -> BTreeMap<String, BTreeMap<String, String>> {
    let moves = plan.steps.iter().flat_map(|step| step.moves.iter().map(|m| (step.host.as_str(), m)));
    let asked = moves.map(async |(from, m)| {
        let findings = match from == daemon.config.host {
            true => findings(daemon, &m.pod, &m.to).await,
            false => peer::preflight_of(daemon, from, &m.pod, &m.to).await,
        };
        let why = match findings {
            Ok(findings) => {
                findings.into_iter().find(|f| f.verdict == Verdict::No).map(|f| format!("{}: {}", f.rule, f.fact))
            }
            Err(error) => Some(error.message),
        };
        (m, why)
    });
    let mut refused: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (m, why) in join_all(asked).await {
        if let Some(why) = why {
            refused.entry(m.pod.clone()).or_default().insert(m.to.clone(), why);
        }
    }
    refused
}

/// What preflight says of a pod of this host.
///
/// # Errors
/// There is no such pod, it does not run, or the other host does not answer.
pub async fn findings(daemon: &Arc<Daemon>, pod: &str, to: &str) -> Result<Vec<Finding>> {
    migrate::preflight(daemon, &daemon.pod(pod)?.record(), to).await
}
