//! Plans of the fleet: asks all hosts how they are, plans, and has preflight look at every move before it is shown.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use axum::extract::State;
use checkpoint::compat::{Finding, Verdict};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Deserialize;

use super::http::{Answer, App, Asked, json};
use super::status;
use crate::api::{ApiError, ErrorKind};
use crate::error::Result;
use crate::patch::decide::Decision;
use crate::patch::facts::Missing;
use crate::patch::plan::{self, Host, Left, Move, Plan, Pod, Step};
use crate::patch::run::{orders, usual_s};
use crate::patch::{mechanism, watch};
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
    json(made(&daemon, (!query.fleet).then_some(host.as_str())).await?)
}

/// A plan of one host, or of all of the fleet.
///
/// # Errors
/// There is no such host, this one was removed from its fleet; or the store's.
pub async fn made(daemon: &Arc<Daemon>, host: Option<&str>) -> Result<Plan> {
    super::refuse_if_removed(daemon)?;
    let mut hosts = all(daemon).await?;
    if let Some(host) = host.filter(|host| !hosts.iter().any(|known| known.name == **host)) {
        return Err(daemon.host(host).err().unwrap_or_else(|| ApiError::not_found(format!("no host {host}"))));
    }
    let policy = watch::policy(daemon).0.unwrap_or_default();
    let past = daemon.store.runs(Timestamp::MIN)?;
    for round in 1.. {
        let mut plan = plan::plan(&hosts, &policy, &daemon.config.host);
        for step in &mut plan.steps {
            step.takes_s = usual_s(&past, step.mechanism, step.patch);
        }
        if let Some(host) = host {
            plan.steps.retain(|step| step.host == host);
            plan.left.retain(|left| left.host == host);
        }
        let refused = refused(daemon, &hosts, &plan).await;
        if refused.is_empty() {
            return Ok(plan);
        }
        if round == ROUNDS {
            return Ok(without(plan, &refused));
        }
        for host in &mut hosts {
            for pod in &mut host.pods {
                let refused = refused.get(&(host.name.clone(), pod.name.clone()));
                pod.refused.extend(refused.cloned().unwrap_or_default());
            }
        }
    }
    Err(ApiError::failed("the plan has no end"))
}

/// Refusals: of a host's pod, by the host that it should have gone to.
type Refused = BTreeMap<(String, String), BTreeMap<String, String>>;

/// Leaves hosts alone of which a pod is refused wherever it is sent.
fn without(plan: Plan, refused: &Refused) -> Plan {
    let why = |step: &Step| {
        let whose = |m: &Move| refused.get(&(step.host.clone(), m.pod.clone())).map(|hosts| (m.pod.clone(), hosts));
        let (pod, hosts) = step.moves.iter().find_map(whose)?;
        let why: Vec<String> = hosts.iter().map(|(host, why)| format!("{host} ({why})")).collect();
        let why = format!("preflight refuses to let {pod} go to one host after the other, {} the last", why.join(", "));
        let cure = format!("see `podctl preflight {pod} --to HOST`");
        Some(Left { host: step.host.clone(), why, cure })
    };
    let (mut steps, mut left) = (Vec::new(), plan.left);
    for step in plan.steps {
        match why(&step) {
            Some(why) => left.push(why),
            None => steps.push(step),
        }
    }
    Plan { steps, left }
}

/// Hosts to which a pod of this host can go as they are now, the best first. Without the pod's facts: none.
///
/// # Errors
/// The store's.
pub async fn candidates(daemon: &Arc<Daemon>, from: &str, pod: &str) -> Result<Vec<String>> {
    let hosts = all(daemon).await?;
    let policy = watch::policy(daemon).0.unwrap_or_default();
    let its = hosts.iter().find(|host| host.name == from).and_then(|host| host.pods.iter().find(|p| p.name == pod));
    Ok(its.map(|its| plan::candidates(&hosts, from, its, &policy)).unwrap_or_default())
}

/// All hosts of the fleet, those that do not answer too.
async fn all(daemon: &Arc<Daemon>) -> Result<Vec<Host>> {
    let asked = super::fleet::names(daemon).await?.into_iter().map(async |name| {
        let answer = match name == daemon.config.host {
            true => own(daemon).await,
            false => peer::plan_facts_of(daemon, &name).await,
        };
        (name, answer)
    });
    // Racks do not change: of a host that does not answer, what it said last holds.
    let answers = join_all(asked).await;
    let mut domains = daemon.domains.lock().unwrap_or_else(PoisonError::into_inner);
    let host = |(name, answer): (String, Result<Host>)| match answer {
        Ok(host) => {
            domains.insert(name, host.domain.clone());
            host
        }
        Err(error) => Host { domain: domains.get(&name).cloned().flatten(), ..silent(name, error) },
    };
    Ok(answers.into_iter().map(host).collect())
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
            domain: daemon.config.domain.clone(),
            cpu: facts.cpu,
            memory: facts.memory.total,
            available: facts.memory.available.min(facts.image_space.free_bytes),
            cordoned: orders::cordoned(daemon)?.map(|cordon| cordon.in_words()),
            pods: pods.collect::<Result<_>>()?,
            asleep_ms: mechanism::expected_in_place_ms(daemon)?,
            is_away: false,
        })
    })
}

fn silent(name: String, error: ApiError) -> Host {
    let is_away = error.kind == ErrorKind::Unreachable;
    let cure = format!("see that podd runs on {name} and can be reached");
    let decision = Decision::unknown(Missing { what: error.message, cure });
    let (kernel, cpu, pods) = (checkpoint::baseline::OLDEST_KERNEL, checkpoint::host::Cpu::default(), Vec::new());
    let (domain, cordoned, asleep_ms) = (None, None, None);
    Host { name, decision, kernel, domain, cpu, memory: 0, available: 0, cordoned, pods, asleep_ms, is_away }
}

/// Moves of a plan that preflight refuses.
async fn refused(daemon: &Arc<Daemon>, hosts: &[Host], plan: &Plan) -> Refused {
    // A pod that would have come there in an earlier step is rehearsed when its turn comes.
    let is_there = |host: &str, pod: &str| {
        hosts.iter().any(|known| known.name == host && known.pods.iter().any(|other| other.name == pod))
    };
    let moves = plan.steps.iter().flat_map(|step| step.moves.iter().map(|m| (step.host.as_str(), m)));
    let moves = moves.filter(|(host, m)| is_there(host, &m.pod));
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
        (from.to_owned(), m, why)
    });
    let mut refused = Refused::new();
    for (from, m, why) in join_all(asked).await {
        if let Some(why) = why {
            refused.entry((from, m.pod.clone())).or_default().insert(m.to.clone(), why);
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
