//! Can this pod be checkpointed, here or on its way to another host? Gathers the facts; `checkpoint::compat` judges.

use std::path::Path;

use checkpoint::compat::{self, Finding, ID_RANGE, Request, Verdict, VolumeRequest};
use checkpoint::host::{CriuFacts, HostFacts, UidRange};
use checkpoint::process::PodFacts;

use super::freeze::GHOST_LIMIT;
use super::state::{PodRecord, PodState};
use super::stop::not_running;
use crate::api::{ApiError, ErrorKind};
use crate::error::{Attempt, Result};
use crate::supervisor::Daemon;
use crate::sys::network;

/// What another host says of itself when asked about a pod.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct TargetFacts {
    /// The host.
    pub facts: HostFacts,
    /// For each volume of the pod, whether its host path exists there.
    pub volumes: Vec<bool>,
    /// The pod's layers that it lacks.
    pub missing_layers: Vec<String>,
}

/// Findings for a checkpoint on this host.
///
/// # Errors
/// The pod does not run, or its facts cannot be read.
pub fn here(daemon: &Daemon, record: &PodRecord) -> Result<Vec<Finding>> {
    let request = request(record, None, 0, 0);
    Ok(compat::check(&pod_facts(daemon, record)?, &host_facts(daemon, Some(&record.id))?, None, &request))
}

/// Findings for a move to another host, and the bytes of files that would go along.
///
/// # Errors
/// The pod does not run, or its facts cannot be read.
pub fn towards(daemon: &Daemon, record: &PodRecord, target: &TargetFacts) -> Result<(Vec<Finding>, u64)> {
    let usage = |path: &Path| checkpoint::files::disk_usage(path).unwrap_or(0);
    let missing = target.missing_layers.iter().filter_map(|l| l.parse().ok());
    let layers = missing.map(|digest| usage(&daemon.layers.layer_path(&digest))).sum();
    let writable = usage(&daemon.config.pod_state(&record.id).join("upper"));
    let request = request(record, Some(&target.volumes), writable, layers);
    let source = host_facts(daemon, Some(&record.id))?;
    let findings = compat::check(&pod_facts(daemon, record)?, &source, Some(&target.facts), &request);
    Ok((findings, writable + layers))
}

/// Turns a *no* into the refusal that names every rule which said it.
///
/// # Errors
/// [`ErrorKind::Refused`].
pub fn refuse_unless_go(findings: &[Finding]) -> Result<()> {
    let refused: Vec<&Finding> = findings.iter().filter(|f| f.verdict == Verdict::No).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let facts: Vec<String> = refused.iter().map(|f| format!("{}: {}", f.rule, f.fact)).collect();
    let cures: Vec<&str> = refused.iter().filter_map(|f| f.cure.as_deref()).collect();
    let error = ApiError::new(ErrorKind::Refused, format!("preflight says no; {}", facts.join("; ")));
    Err(if cures.is_empty() { error } else { error.cure(cures.join("; ")) })
}

/// This host's facts; a pod on its way here (`except`) is left out of them.
///
/// # Errors
/// `/proc` cannot be read.
pub fn host_facts(daemon: &Daemon, except: Option<&str>) -> Result<HostFacts> {
    let mut facts = HostFacts::read(&daemon.config.state, &daemon.config.flight()).attempt("read the host's facts")?;
    facts.state_dir.idmapped = Some(daemon.id_mapped_mounts);
    facts.criu = Some(CriuFacts {
        path: daemon.config.criu.clone(),
        version: daemon.criu_version(),
        round_trip: daemon.round_trip(),
    });
    let pods: Vec<PodRecord> =
        daemon.pods().iter().map(|p| p.record()).filter(|r| Some(r.id.as_str()) != except).collect();
    facts.pods = pods.iter().map(|r| r.spec.name.clone()).collect();
    facts.uid_ranges = pods.iter().map(|r| UidRange { first: r.id_base, count: ID_RANGE }).collect();
    facts.addresses = pods.iter().flat_map(|r| r.spec.network.iter().flat_map(|n| n.addresses.clone())).collect();
    let own = network::addresses_in_use().attempt("read the host's addresses")?;
    facts.addresses.extend(own.iter().filter(|ip| !ip.is_loopback()).map(ToString::to_string));
    Ok(facts)
}

fn pod_facts(daemon: &Daemon, record: &PodRecord) -> Result<PodFacts> {
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    PodFacts::read(init.pid, &daemon.cgroup(&record.id).pids())
        .attempt(format!("look at the processes of {}", record.spec.name))
}

fn request(record: &PodRecord, volumes: Option<&[bool]>, writable_bytes: u64, layer_bytes: u64) -> Request {
    let on_target = |i: usize| volumes.and_then(|v| v.get(i).copied());
    Request {
        pod: record.spec.name.clone(),
        addresses: record.spec.network.iter().flat_map(|n| n.addresses.clone()).collect(),
        id_base: record.id_base,
        memory_limit: record.spec.limits.memory,
        relies_on: record.relies_on.clone(),
        volumes: (record.spec.volumes.iter().enumerate())
            .map(|(i, v)| VolumeRequest { host: v.host.clone(), on_target: on_target(i) })
            .collect(),
        writable_bytes,
        layer_bytes,
        ghost_limit: GHOST_LIMIT.into(),
    }
}
