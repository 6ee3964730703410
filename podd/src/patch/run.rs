//! A patch run: hosts are patched one after the other, and whatever dies meanwhile, the run goes on or stops safely.
//!
//! The record of the run is its journal. A step is in it before it is done, and each step may be done twice. It is also the
//! *slot*: hosts keep copies, and no step that cannot be taken back begins before a majority of the fleet keeps a copy that says
//! so. A host keeps one open run at a time, so two runs never have a majority both; and none of an older term, so a coordinator
//! that was taken for dead is refused wherever it comes back ([`Run::judge`]). The slot has no lease: a host that does not come
//! back keeps it, until an operator says otherwise.
//!
//! Rules here are pure. [`drive`] is the coordinator, `steps` what it does in each step, [`keep`] the copies, [`orders`] what the coordinator has hosts do.

pub mod drive;
pub mod keep;
pub mod orders;
mod report;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use report::markdown;

use super::decide::Mechanism;
use super::plan::{Plan, Sleep};
use super::policy::RunPolicy;

/// A patch run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Identifier: 12 hex digits.
    pub id: String,
    /// Who wanted it.
    pub by: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended, if it did.
    pub ended: Option<Timestamp>,
    /// The host that carries it out.
    pub coordinator: String,
    /// Fencing number: grows with each coordinator.
    pub term: u64,
    /// Counts the changes of this record within a term.
    pub revision: u64,
    /// Hosts of the fleet when it began: a majority is one of these.
    pub members: Vec<String>,
    /// Where it stands.
    pub state: State,
    /// Hosts that did not answer when an operator had it go on all the same.
    #[serde(default)]
    pub despite: Vec<String>,
    /// When later hosts had been asked what keeps them from being patched; none: they were not, or there are none.
    #[serde(default)]
    pub looked_ahead: Option<Timestamp>,
    /// Hosts, in the order of the plan.
    pub hosts: Vec<HostRun>,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// It goes on.
    Running,
    /// Somebody wants it to stand still.
    Paused {
        /// Who.
        by: String,
    },
    /// The breaker is open: nothing is begun until an operator says so.
    Stopped {
        /// Why.
        why: String,
    },
    /// It came to its end.
    Done,
    /// It was called off.
    Cancelled {
        /// Why.
        why: String,
    },
}

/// A host of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRun {
    /// Its name.
    pub host: String,
    /// Number of its wave.
    pub wave: usize,
    /// How it is patched.
    pub mechanism: Mechanism,
    /// Whether it is patched: hardware that fails is only left.
    pub patch: bool,
    /// How long all of it was likely to take, in seconds; none: that was not known.
    #[serde(default)]
    pub expected_s: Option<u64>,
    /// Why.
    pub why: String,
    /// What is being done.
    pub step: Step,
    /// When each step began.
    pub begun: Vec<Begun>,
    /// The boot in which it was told to boot; none: it was not.
    pub boot_id: Option<String>,
    /// It must have come back by then; some: it is away, or about to be.
    pub back_by: Option<Timestamp>,
    /// What would have kept it from being patched before the first pod moved.
    #[serde(default)]
    pub foretold: Option<Foretold>,
    /// What is installed.
    pub change: Option<Change>,
    /// Where the plan has its pods go, by their names.
    pub places: BTreeMap<String, String>,
    /// Ids of pods that sleep on its disk while it boots.
    pub asleep: Vec<String>,
    /// How long they slept.
    #[serde(default)]
    pub slept: Vec<Sleep>,
    /// Pods that leave it, and that come back.
    pub moves: Vec<PodMove>,
    /// What was looked at afterwards.
    pub proofs: Vec<Proof>,
    /// What went wrong.
    pub trouble: Option<Trouble>,
    /// What else people should know.
    pub remarks: Vec<String>,
}

/// What stands in the way of a host whose turn has not come. It is looked at again then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foretold {
    /// When that was seen.
    pub at: Timestamp,
    /// What it is.
    pub what: String,
    /// What the operator can do.
    pub cure: Option<String>,
}

impl Foretold {
    /// In a sentence.
    #[must_use]
    pub fn in_words(&self) -> String {
        let cure = self.cure.as_ref().map(|cure| format!("; {cure}")).unwrap_or_default();
        format!("as it is now, it cannot be patched: {}{cure}", self.what)
    }
}

/// When a step began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The step.
    pub step: Step,
    /// Then.
    pub at: Timestamp,
}

/// What is done to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Its wave has not come.
    Waiting,
    /// It is seen whether it can be patched; packages are fetched.
    Check,
    /// No pod comes, or is started there, any more.
    Cordon,
    /// A clone of each pod goes where the pod will go.
    Rehearse,
    /// Pods leave.
    Evacuate,
    /// Packages are installed.
    Patch,
    /// Live patches are loaded.
    LivePatch,
    /// Programs that run with what was replaced are started again.
    Restart,
    /// Pods go to sleep, on this host's disk.
    Suspend,
    /// It boots.
    Reboot,
    /// It is seen whether all is well.
    Prove,
    /// Pods come back.
    Return,
    /// It is watched for a while.
    Soak,
    /// Pods may come again.
    Uncordon,
    /// Something went wrong before it was touched: pods come back, and may come again.
    PutBack,
    /// All is done.
    Done,
    /// There was nothing to do any more.
    Skipped,
    /// It is left as it is.
    Failed,
}

/// What is installed on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Packages that apt installs.
    pub packages: Vec<String>,
    /// Version of the kernel's package that runs afterwards; none: the kernel stays.
    pub kernel: Option<String>,
    /// Its release, as `uname -r` tells it.
    pub release: Option<String>,
    /// What it ends, as [`Decision::ends`](super::decide::Decision::ends) has it.
    pub ends: Vec<String>,
}

/// A pod that goes to another host, for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodMove {
    /// The pod's id.
    pub id: String,
    /// Its name.
    pub pod: String,
    /// From there.
    pub from: String,
    /// To there.
    pub to: String,
    /// It comes back.
    pub back: bool,
    /// It is there. False: it was about to go when this was written.
    pub done: bool,
    /// How long it stood still, in ms, if that is known.
    pub blackout_ms: Option<f64>,
    /// Why it did not go.
    pub error: Option<String>,
    /// When that was known.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

/// Something that was looked at on a host that was patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What, such as `kernel`: the same failure on two hosts has the same name.
    pub what: String,
    /// It is as it should be.
    pub well: bool,
    /// What was seen.
    pub seen: String,
}

/// Why a host could not be patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When.
    pub at: Timestamp,
    /// In this step.
    pub step: Step,
    /// The same fault on another host has the same signature.
    pub signature: String,
    /// What happened.
    pub what: String,
    /// What the operator can do.
    pub cure: Option<String>,
    /// A pod does not run any more.
    pub pod_lost: bool,
    /// The host has not come back.
    pub host_gone: bool,
}

/// What a host says of a copy that it shall keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "keep")]
pub enum Kept {
    /// It keeps it.
    Yes,
    /// It has a newer one: of this coordinator.
    Newer {
        /// The coordinator.
        coordinator: String,
    },
    /// It keeps another run, which has not ended.
    Busy {
        /// That run.
        run: String,
        /// The host that carries it out.
        coordinator: String,
    },
}

impl State {
    /// In a word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
            Self::Done => "done",
            Self::Cancelled { .. } => "cancelled",
        }
    }
}

impl Step {
    /// Whether nothing more is done to the host.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Skipped | Self::Failed)
    }

    /// Whether a majority must know of it before it begins: somebody who takes the run over must not miss it.
    #[must_use]
    pub fn is_grave(self) -> bool {
        use Step::{Cordon, Evacuate, LivePatch, Patch, PutBack, Reboot, Restart, Return, Suspend};
        matches!(self, Cordon | Evacuate | Patch | LivePatch | Restart | Suspend | Reboot | Return | PutBack)
    }

    /// Whether the host is as it was before, so that its pods are better off there than away.
    fn is_harmless(self) -> bool {
        use Step::{Check, Cordon, Evacuate, Patch, Rehearse, Suspend};
        matches!(self, Check | Cordon | Rehearse | Evacuate | Patch | Suspend)
    }

    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Check => "check",
            Self::Cordon => "cordon",
            Self::Rehearse => "rehearse",
            Self::Evacuate => "evacuate",
            Self::Patch => "patch",
            Self::LivePatch => "live-patch",
            Self::Restart => "restart",
            Self::Suspend => "suspend",
            Self::Reboot => "reboot",
            Self::Prove => "prove",
            Self::Return => "return",
            Self::Soak => "soak",
            Self::Uncordon => "uncordon",
            Self::PutBack => "put-back",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

impl HostRun {
    /// Its steps, in order.
    fn steps(&self) -> &'static [Step] {
        use Step::*;
        match (self.mechanism, self.patch) {
            (Mechanism::LivePatch, _) => &[Waiting, LivePatch, Prove, Soak, Done],
            (Mechanism::Restart, _) => &[Waiting, Check, Patch, Restart, Prove, Soak, Done],
            (Mechanism::InPlace, _) => &[Waiting, Check, Cordon, Patch, Suspend, Reboot, Prove, Soak, Uncordon, Done],
            (Mechanism::Evacuate, true) => {
                &[Waiting, Check, Cordon, Rehearse, Evacuate, Patch, Reboot, Prove, Return, Soak, Uncordon, Done]
            }
            // Hardware that fails stays cordoned.
            (Mechanism::Evacuate, false) => &[Waiting, Cordon, Evacuate, Done],
        }
    }

    /// What comes after the present step has gone well.
    #[must_use]
    pub fn next(&self) -> Step {
        let steps = self.steps();
        let here = steps.iter().position(|step| *step == self.step);
        // What is put back is left as it is.
        here.and_then(|here| steps.get(here + 1)).copied().unwrap_or(Step::Failed)
    }

    /// Begins a step.
    pub fn begin(&mut self, step: Step, now: Timestamp) {
        self.step = step;
        self.begun.push(Begun { step, at: now });
    }

    /// Notes that the present step did not go well.
    pub fn fail(&mut self, trouble: Trouble) {
        // Nobody goes back to a host that is left because its hardware fails.
        let (now, harmless) = (trouble.at, trouble.step.is_harmless() && !trouble.pod_lost && self.patch);
        self.trouble = Some(trouble);
        self.begin(if harmless { Step::PutBack } else { Step::Failed }, now);
    }

    /// How long it was away, from the order to boot until all was there again; none: it was not, or that is not known.
    #[must_use]
    pub fn away_for(&self) -> Option<SignedDuration> {
        let begun = |step| self.begun.iter().rev().find(|begun| begun.step == step).map(|begun| begun.at);
        let (reboot, prove) = (begun(Step::Reboot)?, begun(Step::Prove)?);
        (prove > reboot).then(|| prove.duration_since(reboot))
    }

    /// How long all of it took, in seconds; none: it did not come to its end.
    fn took_s(&self) -> Option<u64> {
        let (first, last) = (self.begun.first()?, self.begun.last()?);
        (self.step == Step::Done).then(|| last.at.duration_since(first.at).unsigned_abs().as_secs())
    }

    /// When the present step began.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        self.begun.last().map(|begun| begun.at)
    }
}

/// How long a host takes by these means, in seconds: the median of those of these runs; none: there are none.
#[must_use]
pub fn usual_s(runs: &[Run], mechanism: Mechanism, patch: bool) -> Option<u64> {
    let alike =
        runs.iter().flat_map(|run| &run.hosts).filter(|host| (host.mechanism, host.patch) == (mechanism, patch));
    let mut took: Vec<u64> = alike.filter_map(HostRun::took_s).collect();
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}

impl Run {
    /// A new run of this plan.
    #[must_use]
    pub fn new(plan: &Plan, members: Vec<String>, coordinator: &str, by: &str, now: Timestamp) -> Self {
        let hosts = plan.steps.iter().map(|step| HostRun {
            host: step.host.clone(),
            wave: step.wave,
            mechanism: step.mechanism,
            patch: step.patch,
            expected_s: step.takes_s,
            why: step.why.clone(),
            step: Step::Waiting,
            begun: Vec::new(),
            boot_id: None,
            back_by: None,
            foretold: None,
            change: None,
            places: step.moves.iter().map(|m| (m.pod.clone(), m.to.clone())).collect(),
            asleep: Vec::new(),
            slept: Vec::new(),
            moves: Vec::new(),
            proofs: Vec::new(),
            trouble: None,
            remarks: Vec::new(),
        });
        Self {
            id: format!("{:012x}", rand::random::<u64>() >> 16),
            by: by.to_owned(),
            began: now,
            ended: None,
            coordinator: coordinator.to_owned(),
            term: 1,
            revision: 0,
            members,
            state: State::Running,
            despite: Vec::new(),
            looked_ahead: None,
            hosts: hosts.collect(),
        }
    }

    /// Whether something may still be done, or is still away.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Running | State::Paused { .. } | State::Stopped { .. })
    }

    /// One of its hosts.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&HostRun> {
        self.hosts.iter().find(|host| host.host == name)
    }

    /// The same, to be changed.
    pub fn host_mut(&mut self, name: &str) -> Option<&mut HostRun> {
        self.hosts.iter_mut().find(|host| host.host == name)
    }

    /// Copies of so many members are a majority.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// So many members must tell of their copies before the newest of them is the newest there is, if these hosts are gone: one of
    /// them is in each majority that could have kept a copy. All of the rest, if such a majority may be gone altogether.
    #[must_use]
    pub fn enough(&self, gone: &[String]) -> usize {
        let all = self.members.len();
        let left = self.members.iter().filter(|member| !gone.contains(member)).count();
        match left == all {
            true => self.majority(),
            false => (all + 1 - self.majority()).clamp(left.min(left / 2 + 1), left),
        }
    }

    /// Hosts of the wave that is under way, or comes next.
    #[must_use]
    pub fn wave(&self) -> Vec<String> {
        let open = || self.hosts.iter().filter(|host| !host.step.is_final());
        let Some(wave) = open().map(|host| host.wave).min() else { return Vec::new() };
        open().filter(|host| host.wave == wave).map(|host| host.host.clone()).collect()
    }

    /// Whether this host takes pods though it is cordoned: its own, which come back.
    #[must_use]
    pub fn takes_back(&self, host: &str) -> bool {
        self.is_open() && self.host(host).is_some_and(|host| matches!(host.step, Step::Return | Step::PutBack))
    }

    /// Whether a host may keep `new`. `same`: what it has of this run; `open`: another one that has not ended.
    #[must_use]
    pub fn judge(new: &Self, same: Option<&Self>, open: Option<&Self>) -> Kept {
        let is_newer = |same: &&Self| {
            // Two may take a run over at the same moment: whoever comes first has it.
            let is_rival = same.term == new.term && same.coordinator != new.coordinator;
            is_rival || (same.term, same.revision) > (new.term, new.revision)
        };
        if let Some(same) = same.filter(is_newer) {
            return Kept::Newer { coordinator: same.coordinator.clone() };
        }
        match open.filter(|open| open.id != new.id && new.is_open()) {
            Some(open) => Kept::Busy { run: open.id.clone(), coordinator: open.coordinator.clone() },
            None => Kept::Yes,
        }
    }

    /// Why nothing more may be begun; none: it may go on. The same fault on two hosts is one of the change, not of the hosts, and
    /// a canary is there to be the first to fail.
    #[must_use]
    pub fn breaker(&self, policy: &RunPolicy) -> Option<String> {
        // What is put back is not done with yet.
        let over = || self.hosts.iter().filter(|host| host.step != Step::PutBack);
        let troubles = || over().filter_map(|host| Some((host, host.trouble.as_ref()?)));
        if let Some((host, trouble)) = troubles().find(|(_, trouble)| trouble.pod_lost) {
            return Some(format!("a pod was lost when {} was left: {}", host.host, trouble.what));
        }
        if let Some((host, trouble)) = troubles().find(|(_, trouble)| trouble.host_gone) {
            return Some(format!("{} has not come back: {}", host.host, trouble.what));
        }
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (host, trouble) in troubles() {
            if let Some(first) = seen.insert(&trouble.signature, &host.host) {
                return Some(format!("{first} and {} failed alike: {}", host.host, trouble.what));
            }
        }
        let canary = |host: &HostRun| {
            let alike = |other: &&HostRun| other.mechanism == host.mechanism;
            self.hosts.iter().find(alike).is_some_and(|first| first.host == host.host)
        };
        if let Some((host, trouble)) = troubles().find(|(host, _)| canary(host)) {
            return Some(format!("{} was the canary, and failed: {}", host.host, trouble.what));
        }
        let (failed, tried) = (troubles().count(), self.hosts.iter().filter(|host| host.step.is_final()).count());
        (failed * 100 > tried.max(1) * usize::from(policy.failures))
            .then(|| format!("{failed} of {tried} hosts failed, more than {} %", policy.failures))
    }

    /// Goes on after a breaker: hosts that failed after they were touched are looked at again.
    pub fn resume(&mut self, policy: &RunPolicy, now: Timestamp) {
        self.state = State::Running;
        for host in self.hosts.iter_mut().filter(|host| host.step == Step::Failed) {
            let Some(trouble) = host.trouble.take() else { continue };
            let again = match trouble.step {
                step if step.is_harmless() => Step::Waiting,
                // It may have come back meanwhile, and has as much time again.
                Step::Reboot => {
                    host.back_by =
                        host.back_by.map(|_| now.checked_add(policy.back_within.0).unwrap_or(Timestamp::MAX));
                    Step::Reboot
                }
                // What needs no boot is simply done again.
                _ if matches!(host.mechanism, Mechanism::LivePatch) => Step::LivePatch,
                _ if matches!(host.mechanism, Mechanism::Restart) => Step::Restart,
                _ => Step::Prove,
            };
            host.remarks.push(format!("tried again after: {}", trouble.what));
            host.begin(again, now);
        }
    }

    /// Goes on without these hosts, which have left the fleet: a majority is one of the others.
    pub fn dismiss(&mut self, gone: &[String], now: Timestamp) {
        self.members.retain(|member| !gone.contains(member));
        for host in self.hosts.iter_mut().filter(|host| gone.contains(&host.host)) {
            let trouble = host.trouble.take().map(|trouble| format!(", after: {}", trouble.what)).unwrap_or_default();
            host.remarks.push(format!("it was removed from the fleet{trouble}"));
            host.back_by = None;
            if !host.step.is_final() {
                host.begin(Step::Failed, now);
            }
        }
        // What went there stays there.
        for m in self.hosts.iter_mut().flat_map(|host| &mut host.moves).filter(|m| m.done && gone.contains(&m.to)) {
            (m.done, m.error) = (false, Some(format!("{} was removed from the fleet", m.to)));
        }
    }

    /// About how much longer it takes, in seconds: by hosts of this run that are done by the same means, else by what was expected;
    /// none: of a host neither is known.
    #[must_use]
    pub fn left_s(&self, now: Timestamp) -> Option<u64> {
        let mut waves: BTreeMap<usize, u64> = BTreeMap::new();
        for host in self.hosts.iter().filter(|host| !host.step.is_final()) {
            let usual = usual_s(std::slice::from_ref(self), host.mechanism, host.patch).or(host.expected_s)?;
            let begun = host.begun.first().map_or(0, |begun| now.duration_since(begun.at).unsigned_abs().as_secs());
            let left = waves.entry(host.wave).or_default();
            *left = (*left).max(usual.saturating_sub(begun));
        }
        Some(waves.values().sum())
    }

    /// The whole of it in a line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let count = |step| self.hosts.iter().filter(|host| host.step == step).count();
        let mut text = format!("{} of {} hosts done", count(Step::Done) + count(Step::Skipped), self.hosts.len());
        if count(Step::Failed) > 0 {
            text += &format!(", {} failed", count(Step::Failed));
        }
        match &self.state {
            State::Paused { by } => text += &format!("; paused by {by}"),
            State::Stopped { why } => text += &format!("; stopped: {why}"),
            State::Cancelled { why } => text += &format!("; cancelled: {why}"),
            State::Running | State::Done => {}
        }
        text
    }
}
