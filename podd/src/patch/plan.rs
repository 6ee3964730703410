//! What would be done to the hosts of a fleet, in which order, and where their pods would go. Pure: whoever asks has looked at all
//! hosts before, and asks each move's preflight afterwards.
//!
//! 1. Hosts are touched by the mildest means that [`decide`](super::decide) found, and only when they are due.
//! 2. Mild means (nothing moves) come first; of each kind one host, the *canary*, goes alone. The coordinator goes last of all.
//! 3. At most `max-unavailable` hosts are away together, no two of one failure domain: a *wave*. Those that do not answer are away.
//! 4. Pods of a host that is evacuated go where they fit: memory twice for a moment, a kernel and a processor that they can do with,
//!    no other pod of their group; rather to hosts that need no patch (any more), the emptiest first. The fleet keeps its headroom.
//! 5. A host of which one pod has nowhere to go is left alone, and it is said why.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use checkpoint::baseline::{KernelVersion, ReliesOn};
use checkpoint::host::Cpu;
use serde::{Deserialize, Serialize};

use super::decide::{Decision, Mechanism, Verdict};
use super::policy::Policy;

/// A host, as plans need it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub decision: Decision,
    /// The kernel that runs.
    pub kernel: KernelVersion,
    /// What it shares with others that can fail as a whole, such as a rack.
    #[serde(default)]
    pub domain: Option<String>,
    /// Its processor.
    pub cpu: Cpu,
    /// All memory, in bytes.
    pub memory: u64,
    /// Memory that pods can have, in bytes.
    pub available: u64,
    /// Why it takes no pods; none: it does.
    #[serde(default)]
    pub cordoned: Option<String>,
    /// Its running pods.
    pub pods: Vec<Pod>,
    /// How long its pods would sleep while it boots, in ms; none: that is not known.
    #[serde(default)]
    pub asleep_ms: Option<f64>,
    /// It does not answer.
    #[serde(default)]
    pub is_away: bool,
}

/// A running pod, as plans need it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Memory that it has, in bytes.
    pub memory: u64,
    /// What it counts on; none: nobody noted it.
    pub relies_on: Option<ReliesOn>,
    /// No two pods of a group go to one host.
    pub group: Option<String>,
    /// How long it would stand still in a move, in ms.
    pub blackout_ms: f64,
    /// Hosts to which its preflight has refused to let it go, and why.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
}

/// What would be done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In this order; those of one wave together.
    pub steps: Vec<Step>,
    /// Hosts of which something should be done, and is not.
    pub left: Vec<Left>,
}

/// What would be done to a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Number of its wave, from 1: one begins when all hosts of the one before are well.
    pub wave: usize,
    /// The host.
    pub host: String,
    /// How.
    pub mechanism: Mechanism,
    /// Whether it is patched: hardware that fails is only left.
    pub patch: bool,
    /// Where its pods go; they come back afterwards, unless the host is failing.
    pub moves: Vec<Move>,
    /// Pods that sleep there while it boots.
    #[serde(default)]
    pub sleeps: Vec<Sleep>,
    /// How long all of it is likely to take, in seconds; none: that is not known.
    #[serde(default)]
    pub takes_s: Option<u64>,
    /// Why it is done, and now.
    pub why: String,
}

/// A pod that would sleep on its host while that boots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sleep {
    /// The pod.
    pub pod: String,
    /// So long, in ms; none: that is not known.
    pub asleep_ms: Option<f64>,
}

/// Where a pod would go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The pod.
    pub pod: String,
    /// The host.
    pub to: String,
    /// How long it would stand still on the way there, in ms.
    pub blackout_ms: f64,
}

/// A host that is left as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// The host.
    pub host: String,
    /// Why.
    pub why: String,
    /// What the operators can do; empty: nothing but wait.
    pub cure: String,
}

/// Makes a plan. `coordinator`: the host that would carry it out.
#[must_use]
pub fn plan(hosts: &[Host], policy: &Policy, coordinator: &str) -> Plan {
    let (mut due, mut left) = (Vec::new(), Vec::new());
    for (index, host) in hosts.iter().enumerate() {
        match wanted(host) {
            Ok(Some((mechanism, patch))) => due.push(Due { index, mechanism, patch }),
            Ok(None) => {}
            Err(why) => left.push(why),
        }
    }
    // The canary is the host of which the least depends.
    due.sort_by_key(|due| {
        let host = &hosts[due.index];
        let load: u64 = host.pods.iter().map(|pod| pod.memory).sum();
        (host.name == coordinator, due.mechanism, host.pods.len(), load, &host.name)
    });
    let mut fleet = Fleet::new(hosts, &due, policy);
    let (mut steps, mut wave, mut together) = (Vec::new(), 0, 0);
    let mut before = None;
    let mut leaves = false;
    while let Some(first) = due.first() {
        let room = match first.mechanism {
            Mechanism::LivePatch | Mechanism::Restart => usize::MAX,
            Mechanism::InPlace | Mechanism::Evacuate => {
                (policy.limits.max_unavailable as usize).saturating_sub(fleet.silent.len())
            }
        };
        // The first of its kind, and whoever comes right after it, begin a wave.
        let is_full = before != Some(first.mechanism) || together >= room || (together == 1 && fleet.canary);
        let clashes = |index: usize| room < usize::MAX && fleet.misses_domain_of(index);
        // Rather somebody later in the order than nobody; but the coordinator does not go before its time.
        let mut like =
            due.iter().take_while(|due| due.mechanism == first.mechanism && hosts[due.index].name != coordinator);
        let next = if is_full { 0 } else { like.position(|due| !clashes(due.index)).unwrap_or(0) };
        let begins = is_full || fleet.is_visited(due[next].index) || clashes(due[next].index);
        let due = due.remove(next);
        let host = &hosts[due.index];
        if room < usize::MAX
            && due.patch
            && let Some(why) = fleet.keeps(due.index, room)
        {
            let cure = "see that it answers; if it is gone for good: `podctl host rm NAME --gone`".to_owned();
            left.push(Left { host: host.name.clone(), why, cure });
            continue;
        }
        if !due.patch && leaves {
            // So many in a day are allowed: what was left counts when the next one is decided on.
            let (why, cure) = ("another host with failing hardware is left first".to_owned(), String::new());
            left.push(Left { host: host.name.clone(), why, cure });
            continue;
        }
        let moves = match due.mechanism {
            Mechanism::Evacuate => fleet.evacuate(due.index, begins),
            Mechanism::LivePatch | Mechanism::Restart | Mechanism::InPlace => Ok(Vec::new()),
        };
        let moves = match moves {
            Ok(moves) => moves,
            Err(why) => {
                let cure =
                    "make room, or let this pod go elsewhere by hand; `podctl patch plan` looks again".to_owned();
                left.push(Left { host: host.name.clone(), why, cure });
                continue;
            }
        };
        if begins {
            (wave, together) = (wave + 1, 0);
            fleet.domains.clear();
            fleet.canary = before != Some(due.mechanism);
        }
        (before, together) = (Some(due.mechanism), together + 1);
        fleet.domains.extend(host.domain.as_deref());
        fleet.patched[due.index] = due.patch;
        leaves |= !due.patch;
        // Nobody comes back to a host that is failing.
        if !due.patch || !policy.run.return_pods {
            fleet.stay(due.index, &moves);
        }
        let sleep = |pod: &Pod| Sleep { pod: pod.name.clone(), asleep_ms: host.asleep_ms };
        let sleeps = match due.mechanism {
            Mechanism::InPlace => host.pods.iter().map(sleep).collect(),
            Mechanism::LivePatch | Mechanism::Restart | Mechanism::Evacuate => Vec::new(),
        };
        let why = host.decision.chain.last().cloned().unwrap_or_default();
        let (host, mechanism, patch) = (host.name.clone(), due.mechanism, due.patch);
        steps.push(Step { wave, host, mechanism, patch, moves, sleeps, takes_s: None, why });
    }
    Plan { steps, left }
}

/// Hosts to which a pod of this host can go as they are now, the best first.
#[must_use]
pub fn candidates(hosts: &[Host], from: &str, pod: &Pod, policy: &Policy) -> Vec<String> {
    let is_due = |(index, host): (usize, &Host)| {
        let (mechanism, patch) = wanted(host).ok()??;
        Some(Due { index, mechanism, patch })
    };
    let due: Vec<Due> = hosts.iter().enumerate().filter_map(is_due).collect();
    let mut fleet = Fleet::new(hosts, &due, policy);
    fleet.away.extend(hosts.iter().position(|host| host.name == from));
    let mut fit: Vec<usize> = (0..hosts.len()).filter(|index| fleet.obstacle(*index, pod).is_none()).collect();
    fit.sort_by_key(|index| Reverse(fleet.rank(*index)));
    fit.into_iter().map(|index| hosts[index].name.clone()).collect()
}

/// What is to be done to a host now.
fn wanted(host: &Host) -> Result<Option<(Mechanism, bool)>, Left> {
    let left = |why: String, cure: &str| Err(Left { host: host.name.clone(), why, cure: cure.to_owned() });
    match &host.decision.verdict {
        Verdict::Current | Verdict::Covered { .. } => Ok(None),
        Verdict::Due { mechanism } => Ok(Some((*mechanism, true))),
        // Once all have left there is nothing more to do.
        Verdict::Leave { .. } if host.pods.is_empty() => Ok(None),
        Verdict::Leave { .. } => Ok(Some((Mechanism::Evacuate, false))),
        Verdict::Wait { until, why, .. } => left(format!("it waits until {until} ({why})"), ""),
        Verdict::Blocked { reason, cure } => left(format!("it is blocked: {reason}"), cure),
        Verdict::Unknown { missing } => {
            let first = missing.first();
            let what = first.map_or("something", |missing| missing.what.as_str());
            left(format!("it is unknown: {what}"), first.map_or("", |missing| missing.cure.as_str()))
        }
    }
}

struct Due {
    index: usize,
    mechanism: Mechanism,
    patch: bool,
}

/// The fleet while a wave is away. Pods are back when the next one begins.
struct Fleet<'a> {
    hosts: &'a [Host],
    /// Where pods are, by the indices of their hosts: they may not come back.
    pods: Vec<Vec<&'a Pod>>,
    headroom: u8,
    /// The present wave is a canary's.
    canary: bool,
    /// Needs no patch, or has been patched by this plan.
    patched: Vec<bool>,
    /// Failing, or unknown: nothing goes there.
    shunned: Vec<bool>,
    /// Hosts that do not answer.
    silent: Vec<&'a Host>,
    /// Of the present wave: hosts that are away, and hosts to which their pods go.
    away: BTreeSet<usize>,
    visited: BTreeSet<usize>,
    /// Failure domains of which somebody is away in the present wave.
    domains: BTreeSet<&'a str>,
    /// Memory that is left on each host, in bytes: now, and when a wave begins.
    free: Vec<u64>,
    first_free: Vec<u64>,
    /// Groups of pods that have come: in this wave, and for good.
    came: Vec<BTreeSet<&'a str>>,
    first_came: Vec<BTreeSet<&'a str>>,
}

impl<'a> Fleet<'a> {
    fn new(hosts: &'a [Host], due: &[Due], policy: &Policy) -> Self {
        let mut patched = vec![true; hosts.len()];
        for due in due {
            patched[due.index] = false;
        }
        let shunned = |host: &Host| match host.decision.verdict {
            Verdict::Leave { .. } => true,
            Verdict::Unknown { .. } => !host.decision.update_missing,
            _ => false,
        };
        Self {
            hosts,
            pods: hosts.iter().map(|host| host.pods.iter().collect()).collect(),
            headroom: policy.limits.headroom,
            canary: false,
            patched,
            shunned: hosts.iter().map(shunned).collect(),
            silent: hosts.iter().filter(|host| host.is_away).collect(),
            away: BTreeSet::new(),
            visited: BTreeSet::new(),
            domains: BTreeSet::new(),
            free: hosts.iter().map(|host| host.available).collect(),
            first_free: hosts.iter().map(|host| host.available).collect(),
            came: vec![BTreeSet::new(); hosts.len()],
            first_came: vec![BTreeSet::new(); hosts.len()],
        }
    }

    /// Why a host may not be away, too, if there is room for so many.
    fn keeps(&self, index: usize, room: usize) -> Option<String> {
        let domain = self.hosts[index].domain.as_deref();
        let alike = self.silent.iter().find(|host| domain.is_some() && host.domain.as_deref() == domain);
        match (alike, self.silent.first()) {
            (Some(host), _) => Some(format!("{}, of the same domain, does not answer", host.name)),
            (None, Some(host)) if room == 0 => {
                Some(format!("{} does not answer, and no more than max-unavailable may be away", host.name))
            }
            _ => None,
        }
    }

    /// Pods of this wave go there: it cannot be away together with their hosts.
    fn is_visited(&self, index: usize) -> bool {
        self.visited.contains(&index)
    }

    fn misses_domain_of(&self, index: usize) -> bool {
        self.hosts[index].domain.as_deref().is_some_and(|domain| self.domains.contains(domain))
    }

    /// Finds places for all pods of a host; changes nothing if there are not enough.
    fn evacuate(&mut self, index: usize, begins: bool) -> Result<Vec<Move>, String> {
        let before = (self.away.clone(), self.visited.clone(), self.free.clone(), self.came.clone());
        if begins {
            self.away.clear();
            self.visited.clear();
            self.free.clone_from(&self.first_free);
            self.came.clone_from(&self.first_came);
        }
        self.away.insert(index);
        let placed = self.place_all(index);
        if placed.is_err() {
            (self.away, self.visited, self.free, self.came) = before;
        }
        placed
    }

    fn place_all(&mut self, index: usize) -> Result<Vec<Move>, String> {
        let hosts = self.hosts;
        let mut pods = self.pods[index].clone();
        pods.sort_by_key(|pod| (Reverse(pod.memory), &pod.name));
        let mut moves = Vec::new();
        for pod in pods {
            let to = self.place(pod)?;
            self.free[to] -= pod.memory;
            self.visited.insert(to);
            self.came[to].extend(pod.group.as_deref());
            moves.push(Move { pod: pod.name.clone(), to: hosts[to].name.clone(), blackout_ms: pod.blackout_ms });
        }
        let stay = |index: &usize| !self.away.contains(index);
        let total: u128 = (0..hosts.len()).filter(stay).map(|index| u128::from(hosts[index].memory)).sum();
        let free: u128 = (0..hosts.len()).filter(stay).map(|index| u128::from(self.free[index])).sum();
        if !moves.is_empty() && free * 100 < total * u128::from(self.headroom) {
            return Err(format!(
                "the other hosts would have {} of {} free, less than the headroom of {} %",
                megabytes(free),
                megabytes(total),
                self.headroom
            ));
        }
        Ok(moves)
    }

    /// Pods that left a host stay where they went.
    fn stay(&mut self, index: usize, moves: &[Move]) {
        for m in moves {
            let pod = self.pods[index].iter().position(|pod| pod.name == m.pod);
            let to = self.hosts.iter().position(|host| host.name == m.to);
            if let (Some(pod), Some(to)) = (pod, to) {
                let pod = self.pods[index].swap_remove(pod);
                self.pods[to].push(pod);
                self.free[index] += pod.memory;
            }
        }
        self.first_free.clone_from(&self.free);
        self.first_came.clone_from(&self.came);
    }

    /// The better a host is, the more.
    fn rank(&self, index: usize) -> impl Ord + use<> {
        (self.patched[index], self.free[index], Reverse(index))
    }

    fn place(&self, pod: &Pod) -> Result<usize, String> {
        let best = |is_left: &dyn Fn(&usize) -> bool| {
            (0..self.hosts.len()).filter(is_left).max_by_key(|index| self.rank(*index))
        };
        // Mostly the best one will do: the others are only looked at if it does not.
        let fits = |index: &usize| self.obstacle(*index, pod).is_none();
        best(&|index| !self.away.contains(index)).filter(fits).or_else(|| best(&fits)).ok_or_else(|| {
            let others = (0..self.hosts.len()).filter(|index| !self.away.contains(index));
            let why =
                others.filter_map(|index| Some(format!("{} {}", self.hosts[index].name, self.obstacle(index, pod)?)));
            let why: Vec<String> = why.take(4).collect();
            let why = if why.is_empty() { "there is no other host".to_owned() } else { why.join(", ") };
            format!("{} ({}) has nowhere to go: {why}", pod.name, megabytes(pod.memory.into()))
        })
    }

    /// Why a pod cannot go to a host. What costs the least is asked first.
    fn obstacle(&self, index: usize, pod: &Pod) -> Option<String> {
        let host = &self.hosts[index];
        if self.away.contains(&index) {
            return Some("is away itself".to_owned());
        }
        if let Some(why) = &host.cordoned {
            return Some(why.clone());
        }
        if self.shunned[index] {
            return Some("is not to be relied on".to_owned());
        }
        if self.free[index] < pod.memory.saturating_mul(2) {
            return Some(format!(
                "has {} free, and twice the pod's is needed for a moment",
                megabytes(self.free[index].into())
            ));
        }
        if let Some(group) = pod.group.as_deref()
            && (self.came[index].contains(group)
                || self.pods[index].iter().any(|other| other.group.as_deref() == Some(group)))
        {
            return Some(format!("has a pod of the group {group}"));
        }
        if let Some(why) = pod.refused.get(&host.name) {
            return Some(format!("is refused by preflight ({why})"));
        }
        let relies_on = pod.relies_on.as_ref()?;
        if host.kernel < relies_on.kernel {
            return Some(format!("runs Linux {}, the pod counts on {}", host.kernel, relies_on.kernel));
        }
        let lacks: Vec<&str> = match relies_on.held() {
            Some(held) => held.features.iter().map(String::as_str).filter(|feature| !host.cpu.has(feature)).collect(),
            None if relies_on.born.flags == host.cpu.flags => Vec::new(),
            None => relies_on.born.features().filter(|feature| !host.cpu.has(feature)).collect(),
        };
        if lacks.is_empty() { None } else { Some(format!("has a processor without {}", lacks.join(" "))) }
    }
}

fn megabytes(bytes: u128) -> String {
    format!("{} MB", bytes / 1_000_000)
}

#[cfg(test)]
mod tests;
