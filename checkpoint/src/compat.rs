//! Preflight rules: can this pod go to that host? Pure: facts in, findings out.
//!
//! Each rule is a function in one of the modules below, with the source of the rule in its documentation, and an entry in
//! [`RULES`]. A rule that has nothing to object says so with the fact, so that the table is a full account; a rule that does not
//! apply (no target given) says nothing.

mod content;
mod machine;
mod processor;
mod room;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::baseline::ReliesOn;
use crate::host::HostFacts;
use crate::process::{PodFacts, ProcessFacts};

/// What one rule found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule's name, such as `cpu-features`.
    pub rule: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// What was seen.
    pub fact: String,
    /// What the operator can do; none where nothing needs doing.
    pub cure: Option<String>,
}

/// A rule's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No objection.
    Go,
    /// Go, with a consequence that the fact names.
    GoWith,
    /// Refused.
    No,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The pod's name.
    pub pod: String,
    /// Its addresses, with or without prefix length.
    pub addresses: Vec<String>,
    /// First host uid of its range of 65,536.
    pub id_base: u32,
    /// Its memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// What it counts on since its program started; none: started by a podd that did not note it.
    pub relies_on: Option<ReliesOn>,
    /// Host directories that it uses.
    pub volumes: Vec<VolumeRequest>,
    /// Bytes of its writable layer that are still to be sent.
    pub writable_bytes: u64,
    /// Bytes of its read-only layers that the target lacks.
    pub layer_bytes: u64,
    /// Largest deleted-but-open file that CRIU is told to carry, in bytes.
    pub ghost_limit: u64,
}

/// A host directory that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Path on the host.
    pub host: PathBuf,
    /// It exists on the target; none: not asked.
    pub on_target: Option<bool>,
}

/// Uids (and gids) of a pod.
pub const ID_RANGE: u32 = 65_536;

/// Judges whether `pod`, now on `source`, can be checkpointed and restored: on `target`, or again on `source` if none is given.
///
/// Read the facts of both hosts within a second of each other, or the `clock` rule sees a difference. The target must not count
/// what it has reserved for this very pod.
pub fn check(pod: &PodFacts, source: &HostFacts, target: Option<&HostFacts>, request: &Request) -> Vec<Finding> {
    let context = Context { pod, source, target, host: target.unwrap_or(source), request };
    RULES.iter().filter_map(|rule| rule(&context)).collect()
}

/// Judges whether what a pod counts on is there on a host, when the pod itself is not at hand: its image is.
pub fn check_relied_on(relies_on: &ReliesOn, host: &HostFacts) -> Vec<Finding> {
    let (pod, request) = (PodFacts::default(), Request { relies_on: Some(relies_on.clone()), ..Request::default() });
    let context = Context { pod: &pod, source: host, target: Some(host), host, request: &request };
    [machine::kernel_direction, processor::cpu_features].iter().filter_map(|rule| rule(&context)).collect()
}

/// The gravest verdict; [`Verdict::Go`] of no findings.
pub fn verdict(findings: &[Finding]) -> Verdict {
    findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Go)
}

/// All rules, in the order in which they are shown.
const RULES: [Rule; 41] = [
    machine::criu_round_trip,
    machine::arch,
    machine::kernel_direction,
    processor::cpu_features,
    machine::time_namespace,
    machine::user_namespaces,
    machine::clock,
    content::exec_sessions,
    content::nested_namespaces,
    content::traced,
    content::fd_count,
    content::rlimits,
    content::mappings,
    content::pids,
    content::io_uring,
    content::mptcp,
    content::rare_sockets,
    content::unix_peers,
    content::memfd_secret,
    content::userfaultfd,
    content::perf,
    content::bpf,
    content::message_queues,
    content::devices,
    content::other_descriptors,
    content::terminals,
    content::ghost_files,
    content::unlinked_files,
    content::packet_pipes,
    content::file_locks,
    content::hugetlb,
    room::name_conflict,
    room::address_conflict,
    room::uid_range_conflict,
    room::memory_on_target,
    room::memory_limit,
    room::image_space,
    room::disk_on_target,
    room::filesystem_features,
    room::idmapped_mounts,
    room::volumes,
];

type Rule = fn(&Context) -> Option<Finding>;

/// What a rule sees.
struct Context<'a> {
    pod: &'a PodFacts,
    source: &'a HostFacts,
    target: Option<&'a HostFacts>,
    /// Where the pod is to be restored: the target, else the source.
    host: &'a HostFacts,
    request: &'a Request,
}

fn go(rule: &str, fact: impl Into<String>) -> Option<Finding> {
    Some(Finding { rule: rule.into(), verdict: Verdict::Go, fact: fact.into(), cure: None })
}

fn go_with(rule: &str, fact: impl Into<String>, cure: impl Into<String>) -> Option<Finding> {
    Some(Finding { rule: rule.into(), verdict: Verdict::GoWith, fact: fact.into(), cure: Some(cure.into()) })
}

fn no(rule: &str, fact: impl Into<String>, cure: impl Into<String>) -> Option<Finding> {
    Some(Finding { rule: rule.into(), verdict: Verdict::No, fact: fact.into(), cure: Some(cure.into()) })
}

impl Context<'_> {
    /// Names of the processes that have it; none: no process has.
    fn holders(&self, has: impl Fn(&ProcessFacts) -> bool) -> Option<String> {
        some_of(self.pod.processes.iter().filter(|p| has(p)).map(ToString::to_string))
    }
}

/// The first few, and how many more.
fn some_of(items: impl IntoIterator<Item = String>) -> Option<String> {
    const SHOWN: usize = 5;
    let mut items = items.into_iter();
    let mut shown: Vec<String> = items.by_ref().take(SHOWN).collect();
    let more = items.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    (!shown.is_empty()).then(|| shown.join(", "))
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Of an address with or without prefix length.
fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
