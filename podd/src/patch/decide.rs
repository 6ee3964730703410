//! What to do about a host, and when: a pure function of facts, advisories, policy and time.
//!
//! 1. A host whose hardware is about to fail is left, whatever else is known about it ([`hardware`]).
//! 2. A clock that cannot be right blocks: no deadline or window means anything by it ([`clock`]).
//! 3. Whatever is missing or too old makes the answer `unknown`: never `current` ([`missing`]).
//! 4. What the host is exposed to, and which steps would end that ([`exposure`], [`steps`]).
//! 5. The mildest step that suffices and is not forbidden, by the deadline of the worst that it ends, in a window ([`timing`]).

mod clock;
mod exposure;
mod hardware;
mod missing;
mod steps;
#[cfg(test)]
mod tests;
mod timing;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::advisories::{Advisories, Urgency};
use super::facts::{Facts, Missing};
use super::policy::{Policy, Windows};

pub use exposure::{Exposure, LINUX, Standing, is_before};
pub use hardware::LATELY;
pub use steps::needs_boot;

/// A way to patch, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Functions of the running kernel are replaced; nobody notices.
    LivePatch,
    /// Programs of the host are restarted; pods are not touched.
    Restart,
    /// Pods stay in memory while the host boots.
    InPlace,
    /// Pods go to other hosts while the host boots.
    Evacuate,
}

/// How bad it is, by the worst that a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Of low urgency, or of none that anybody has told.
    Low,
    /// Of medium urgency, or it can be used from afar.
    Medium,
    /// Of high urgency.
    High,
    /// It is being used.
    Exploited,
}

/// What becomes of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// There is nothing to do.
    Current,
    /// Live patches keep from the running kernel all that a newer one would.
    Covered {
        /// Their names.
        patches: Vec<String>,
    },
    /// Now.
    Due {
        /// How.
        mechanism: Mechanism,
    },
    /// Later.
    Wait {
        /// From then on.
        until: Timestamp,
        /// How.
        mechanism: Mechanism,
        /// What is waited for.
        why: String,
    },
    /// Pods should leave: the hardware is about to fail. Nothing is patched.
    Leave {
        /// The signs.
        signs: Vec<String>,
    },
    /// Something must be done, and cannot.
    Blocked {
        /// Why.
        reason: String,
        /// What the operator can do.
        cure: String,
    },
    /// It cannot be told.
    Unknown {
        /// What is not known.
        missing: Vec<Missing>,
    },
}

/// A verdict, and all that it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What becomes of the host.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How bad it is, if something is to be done.
    pub severity: Option<Severity>,
    /// Until when it must be done.
    pub deadline: Option<Timestamp>,
    /// That is past.
    pub overdue: bool,
    /// All is known, but why apt does not bring an update that an advisory tells of.
    #[serde(default)]
    pub update_missing: bool,
    /// [Keys](Exposure::key) of what the step ends, and of reasons for it that are no advisories (`update linux`, `restart`).
    pub ends: BTreeSet<String>,
    /// All that the host is exposed to, or would be but for a live patch; the worst first.
    pub exposures: Vec<Exposure>,
    /// How the verdict came about, sentence by sentence.
    pub chain: Vec<String>,
}

/// What is remembered of a host from one decision to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When a fix was seen first: by advisory and package (`CVE-2026-1 linux`).
    pub seen: BTreeMap<String, Timestamp>,
    /// The time that the owner chose.
    pub chosen: Option<Timestamp>,
    /// The owner wants it done now, in a window or not.
    pub at_once: bool,
    /// When hosts of the fleet were left because of their hardware. Not stored: it follows from past runs.
    #[serde(skip)]
    pub left: Vec<Timestamp>,
    /// The breaker is open: nobody leaves. Not stored either.
    #[serde(skip)]
    pub breaker_open: bool,
    /// The last verdict that was told as an event; empty: none.
    pub verdict: String,
}

/// What is known of the host beside its facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Its memory can outlast a boot.
    pub keeps_memory: bool,
    /// What trusted manifests say that live patches cover.
    pub covers: Vec<Cover>,
}

/// What a live patch covers, by a manifest that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cover {
    /// Name of its module.
    pub patch: String,
    /// Versions of kernel packages that it is made for.
    pub kernels: Vec<String>,
    /// Advisories that it ends.
    pub advisories: Vec<String>,
    /// File of the module, if it is there to be loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// All that a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// About the host.
    pub facts: &'a Facts,
    /// What is published.
    pub advisories: &'a Advisories,
    /// What the operators want.
    pub policy: &'a Policy,
    /// The policy's [windows](Policy::windows).
    pub windows: &'a Windows,
    /// What was so before.
    pub record: &'a Record,
    /// What else is so.
    pub situation: &'a Situation,
    /// By the host's clock.
    pub now: Timestamp,
}

impl Mechanism {
    /// All, the mildest first.
    pub const ALL: [Self; 4] = [Self::LivePatch, Self::Restart, Self::InPlace, Self::Evacuate];

    /// Its name in policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LivePatch => "live-patch",
            Self::Restart => "restart",
            Self::InPlace => "in-place",
            Self::Evacuate => "evacuate",
        }
    }

    /// As a verdict.
    #[must_use]
    pub fn verdict(self) -> &'static str {
        match self {
            Self::LivePatch => "live-patch",
            Self::Restart => "restart-only",
            Self::InPlace => "in-place",
            Self::Evacuate => "evacuate-and-reboot",
        }
    }
}

impl Severity {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Exploited => "exploited",
        }
    }

    /// Of an advisory; none if nobody need mind it.
    fn of(urgency: Urgency, remote: Option<bool>, exploited: bool) -> Option<Self> {
        match urgency {
            _ if exploited => Some(Self::Exploited),
            Urgency::High => Some(Self::High),
            Urgency::Medium => Some(Self::Medium),
            Urgency::Unassigned if remote == Some(true) => Some(Self::Medium),
            Urgency::Low | Urgency::Unassigned => Some(Self::Low),
            Urgency::Unimportant => None,
        }
    }
}

impl Verdict {
    /// In a word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Covered { .. } => "covered",
            Self::Due { mechanism } => mechanism.verdict(),
            Self::Wait { .. } => "wait",
            Self::Leave { .. } => "leave",
            Self::Blocked { .. } => "blocked",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl Decision {
    /// For cron and monitoring: 0 nothing to do, 10 a patch is due, 11 it is overdue, 12 unknown, 13 blocked.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match &self.verdict {
            Verdict::Unknown { .. } => 12,
            Verdict::Blocked { .. } => 13,
            _ if self.overdue => 11,
            Verdict::Current | Verdict::Covered { .. } => 0,
            Verdict::Due { .. } | Verdict::Wait { .. } | Verdict::Leave { .. } => 10,
        }
    }

    /// Of a host of which something is not known.
    #[must_use]
    pub fn unknown(missing: Missing) -> Self {
        Self::plain(Verdict::Unknown { missing: vec![missing] }, Vec::new())
    }

    /// Keys of all that could be ended, whatever the step is.
    #[must_use]
    pub fn fixes(&self) -> BTreeSet<String> {
        let fixed = self.exposures.iter().filter(|exposure| exposure.is_fixed());
        self.ends.iter().cloned().chain(fixed.map(Exposure::key)).collect()
    }

    fn plain(verdict: Verdict, chain: Vec<String>) -> Self {
        let (exposures, ends) = (Vec::new(), BTreeSet::new());
        Self { verdict, severity: None, deadline: None, overdue: false, update_missing: false, ends, exposures, chain }
    }
}

/// Decides.
#[must_use]
pub fn decide(question: Question<'_>) -> Decision {
    let mut chain = Vec::new();
    if let Some(verdict) = hardware::decide(question, &mut chain) {
        return Decision::plain(verdict, chain);
    }
    if let Some(why) = clock::implausible(question.facts, question.now) {
        let cure = "set the clock, and have a time service keep it (systemd-timesyncd, chrony)".to_owned();
        chain.push(why.clone());
        return Decision::plain(Verdict::Blocked { reason: why, cure }, chain);
    }
    let missing = missing::missing(question);
    if !missing.is_empty() {
        chain.extend(missing.iter().map(|missing| missing.what.clone()));
        return Decision::plain(Verdict::Unknown { missing }, chain);
    }
    let exposures = match exposure::exposures(question) {
        Ok(exposures) => exposures,
        Err(missing) => return Decision::plain(Verdict::Unknown { missing: vec![missing] }, chain),
    };
    let due = match steps::due(question, &exposures, &mut chain) {
        steps::Due::Nothing(verdict) => {
            let is_well = matches!(verdict, Verdict::Current | Verdict::Covered { .. });
            let relapse = if is_well { steps::relapse(question, &exposures, &mut chain) } else { None };
            let verdict = relapse.unwrap_or(verdict);
            let kept = exposures.iter().find(|exposure| exposure.is_fixed()).map(|exposure| exposure.severity);
            let update_missing = matches!(verdict, Verdict::Unknown { .. }) && steps::not_offered(&exposures).is_some();
            return Decision { severity: kept, exposures, update_missing, ..Decision::plain(verdict, chain) };
        }
        steps::Due::Step(step) => step,
    };
    timing::decide(question, due, exposures, chain)
}
