//! What a host is exposed to: each advisory about something that runs, or is installed, in a version before the fixed one.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::missing::known;
use super::{Question, Severity};
use crate::patch::advisories::{Advisory, BadVersion, compare};
use crate::patch::facts::{Facts, Missing, advisories_of};

/// Source package of kernels.
pub const LINUX: &str = "linux";

/// An advisory that a host has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// `CVE-2026-31431`.
    pub id: String,
    /// Source package.
    pub package: String,
    /// Version that runs; of what is no kernel: that is installed.
    pub running: String,
    /// Version that ends it; none: there is none yet.
    pub fixed_in: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub summary: String,
    /// What can be done.
    pub standing: Standing,
}

/// What can be done about an exposure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// This version can be had, and ends it.
    Fixed(String),
    /// This live patch keeps it away.
    Covered(String),
    /// Nothing that can be had ends it.
    Open,
}

impl Exposure {
    /// By which a [`Record`](super::Record) knows it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{} {}", self.id, self.package)
    }

    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.standing, Standing::Fixed(_))
    }
}

/// The worst first.
pub(super) fn exposures(question: Question<'_>) -> Result<Vec<Exposure>, Missing> {
    let facts = question.facts;
    let mut exposures = BTreeMap::new();
    for subject in subjects(facts)? {
        for advisory in question.advisories.list.iter().filter(|advisory| advisory.package == subject.source) {
            if let Some(mut exposure) = subject.exposure(advisory)? {
                if subject.source == LINUX
                    && let Some(patch) = covering(question, &exposure)
                {
                    exposure.standing = Standing::Covered(patch);
                }
                exposures.entry(exposure.key()).or_insert(exposure);
            }
        }
    }
    let mut exposures: Vec<Exposure> = exposures.into_values().collect();
    exposures.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.id.cmp(&b.id)));
    Ok(exposures)
}

/// Something that advisories are about.
struct Subject {
    source: String,
    /// As people know it, and as it is compared with advisories.
    running: String,
    compared: String,
    /// The same of what can be had.
    target: String,
    target_compared: String,
}

fn subjects(facts: &Facts) -> Result<Vec<Subject>, Missing> {
    let (kernel, candidate) = (known(&facts.kernel)?, known(&facts.candidate)?);
    let codename = &known(&facts.system)?.codename;
    let plain = |version: &str| {
        advisories_of(version, codename).map(|(_, plain)| plain.to_owned()).ok_or_else(|| Missing {
            what: format!("the kernel {version} is a backport of a release that this podd does not know"),
            cure: "update podd".to_owned(),
        })
    };
    let mut subjects = vec![Subject {
        source: LINUX.to_owned(),
        compared: plain(&kernel.version)?,
        running: kernel.version.clone(),
        target_compared: plain(&candidate.version)?,
        target: candidate.version.clone(),
    }];
    for package in known(&facts.packages)? {
        subjects.push(Subject {
            source: package.source.clone(),
            compared: without_rebuild(&package.installed),
            running: package.installed.clone(),
            target_compared: without_rebuild(&package.candidate),
            target: package.candidate.clone(),
        });
    }
    Ok(subjects)
}

/// `1.2-3+b1` was built again from `1.2-3` (Debian's binary-only uploads).
fn without_rebuild(version: &str) -> String {
    match version.rsplit_once("+b") {
        Some((source, n)) if !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()) => source.to_owned(),
        _ => version.to_owned(),
    }
}

impl Subject {
    fn exposure(&self, advisory: &Advisory) -> Result<Option<Exposure>, Missing> {
        let Some(severity) = Severity::of(advisory.urgency, advisory.remote, advisory.exploited) else {
            return Ok(None);
        };
        let fix = &advisory.fixed;
        let affects = |version: &str| fix.affects(version).map_err(|error| incomparable(&error));
        if !affects(&self.compared)? {
            return Ok(None);
        }
        let fixed_in = fix.target(&self.compared).map_err(|error| incomparable(&error))?.map(str::to_owned);
        let standing =
            if affects(&self.target_compared)? { Standing::Open } else { Standing::Fixed(self.target.clone()) };
        Ok(Some(Exposure {
            id: advisory.id.clone(),
            package: self.source.clone(),
            running: self.running.clone(),
            fixed_in,
            severity,
            summary: advisory.summary.clone(),
            standing,
        }))
    }
}

/// Whether dpkg has a version before another one.
///
/// # Errors
/// One of them is none.
pub fn is_before(a: &str, b: &str) -> Result<bool, Missing> {
    compare(a, b).map(Ordering::is_lt).map_err(|error| incomparable(&error))
}

/// What is installed has a version that dpkg would refuse.
fn incomparable(error: &BadVersion) -> Missing {
    Missing { what: error.to_string(), cure: "look at that package with `dpkg --audit`".to_owned() }
}

/// The live patch that keeps it away: made for the kernel that runs, by a trusted manifest; in place, and not half way.
fn covering(question: Question<'_>, exposure: &Exposure) -> Option<String> {
    let version = &question.facts.kernel.known()?.version;
    let covers = question.situation.covers.iter();
    let mut covers = covers.filter(|cover| cover.kernels.contains(version) && cover.advisories.contains(&exposure.id));
    let is_in_place = |name: &str| {
        let mut patches = question.facts.live_patches.iter();
        patches.any(|patch| patch.name == name && patch.enabled && !patch.in_transition)
    };
    covers.find(|cover| is_in_place(&cover.patch)).map(|cover| cover.patch.clone())
}
