//! What the operators want: `/etc/podd/policy.toml`. How soon, when, by which means, and who is told.
//!
//! Every key has a default; an empty file is a policy, and no file is one, too. Unknown keys are refused: a deadline that is
//! misspelt would never be kept.

mod spans;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use spans::{Length, words};
pub use windows::{Slot, Window, Windows};

use super::advisories;
use super::decide::{Mechanism, Severity};

/// Where it stands unless told otherwise.
pub const PATH: &str = "/etc/podd/policy.toml";
/// A larger file is none of ours, in bytes.
const LARGEST: u64 = 256 << 10;
/// A policy must have a window within this, and windows are looked for no further.
pub const HORIZON: SignedDuration = SignedDuration::from_hours(400 * 24);

/// All that operators decide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Policy {
    /// How soon.
    pub deadlines: Deadlines,
    /// Who may choose the time, and for how long.
    pub phases: Phases,
    /// When hosts may be touched; none: at any time.
    pub windows: Vec<Window>,
    /// When they may not, whatever the windows say.
    pub exclusions: Vec<windows::Exclusion>,
    /// By which means.
    pub mechanisms: Mechanisms,
    /// How much at once.
    pub limits: Limits,
    /// What may be relied on.
    pub facts: FactsPolicy,
    /// Where advisories come from.
    pub advisories: advisories::Config,
    /// When hardware counts as failing.
    pub hardware: HardwarePolicy,
    /// How patch runs go about it.
    pub run: RunPolicy,
    /// Who is told.
    pub notify: Notify,
    /// Commands of which each must succeed on a patched host before pods return to it.
    pub verify: Vec<String>,
}

/// Time from the moment a fix can be had to the moment it must run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Deadlines {
    /// Of what is exploited already.
    pub exploited: Length,
    /// Of what is of high urgency.
    pub high: Length,
    /// Of all else.
    pub rest: Length,
}

/// Phases of a step that is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Phases {
    /// So long the host's owner may choose the time; then the next window is taken, or before, if the deadline wants it.
    pub self_service: Length,
    /// Pods are told so long before they are touched.
    pub notice: Length,
    /// They may ask for so much more time, together.
    pub delay: Length,
    /// What a missed deadline allows.
    pub overdue: Overdue,
}

/// What a missed deadline allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overdue {
    /// Nothing more: the next window is waited for.
    #[default]
    InWindow,
    /// To do it now.
    AnyTime,
}

/// Means of patching.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Mechanisms {
    /// Never these.
    pub forbid: BTreeSet<Mechanism>,
    /// These before others that suffice, though they are not the mildest.
    pub prefer: Vec<Mechanism>,
}

/// How much at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Hosts of a fleet that may be away together.
    pub max_unavailable: u32,
    /// Part of the fleet's memory that stays free, in percent.
    pub headroom: u8,
}

/// What may be relied on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FactsPolicy {
    /// Facts are read again after this.
    pub interval: Length,
    /// Older ones say nothing.
    pub max_age: Length,
    /// Whether a new kernel is due though no advisory names it.
    pub any_update: bool,
}

/// When hardware counts as failing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct HardwarePolicy {
    /// Whether hosts that are about to fail are left at all.
    pub evacuate: bool,
    /// Corrected memory errors in a day that are a sign.
    pub corrected_per_day: u64,
    /// Hosts of a fleet that may be left for this in a day.
    pub per_day: u32,
}

/// How patch runs go about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RunPolicy {
    /// Whether each move is rehearsed before the first pod moves: a pod stands still once more for that.
    pub rehearse: bool,
    /// Whether pods come back to a host that was patched; else they stay where they went.
    pub return_pods: bool,
    /// A host that was patched is watched so long before the next one is touched.
    pub soak: Length,
    /// A host that was told to boot must be back within this.
    pub back_within: Length,
    /// Hosts that may fail before the run stops, in percent of those that were tried.
    pub failures: u8,
}

/// Who is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Notify {
    /// Events are posted here.
    pub webhook: Option<String>,
    /// File with the secret that signs them.
    pub secret: Option<PathBuf>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { exploited: Length::hours(48), high: Length::days(7), rest: Length::days(35) }
    }
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            self_service: Length::days(35),
            notice: Length::minutes(15),
            delay: Length::hours(24),
            overdue: Overdue::InWindow,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_unavailable: 1, headroom: 10 }
    }
}

impl Default for FactsPolicy {
    fn default() -> Self {
        Self { interval: Length::minutes(15), max_age: Length::days(3), any_update: false }
    }
}

impl Default for HardwarePolicy {
    fn default() -> Self {
        Self { evacuate: true, corrected_per_day: 1000, per_day: 1 }
    }
}

impl Default for RunPolicy {
    fn default() -> Self {
        let (soak, back_within) = (Length::minutes(1), Length::minutes(15));
        Self { rehearse: true, return_pods: true, soak, back_within, failures: 20 }
    }
}

/// Why a policy is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}\n  cure: make it readable for root, or remove it to have the defaults")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not understood.
    #[error("{path} is wrong in line {line}: {message}\n  cure: the README's section \"Policy\" has all keys")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What.
        message: String,
    },
    /// It is understood, and cannot be kept.
    #[error("{path} cannot be kept: {message}\n  cure: {cure}")]
    Impossible {
        /// The file.
        path: PathBuf,
        /// What.
        message: String,
        /// What to do.
        cure: String,
    },
}

impl Policy {
    /// Reads a policy; the default one if there is no such file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(path: &Path, now: Timestamp) -> Result<Self, Error> {
        Ok(Self::load_present(path, now)?.unwrap_or_default())
    }

    /// The same; none: there is no such file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_present(path: &Path, now: Timestamp) -> Result<Option<Self>, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let mut text = String::new();
        match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => {
                let limit = LARGEST + 1;
                file.and_then(|file| file.take(limit).read_to_string(&mut text)).map_err(read)?;
            }
        }
        if text.len() as u64 > LARGEST {
            let message = format!("it is larger than {} KiB", LARGEST >> 10);
            return Err(Error::Parse { path: path.to_owned(), line: 1, message });
        }
        Self::parse(&text, path, now).map(Some)
    }

    /// Understands the text of a policy.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(text: &str, path: &Path, now: Timestamp) -> Result<Self, Error> {
        let policy: Self = toml::from_str(text).map_err(|error| Error::Parse {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
            message: error.message().to_owned(),
        })?;
        policy.possible(now).map_err(|(message, cure)| Error::Impossible {
            path: path.to_owned(),
            message,
            cure: cure.to_owned(),
        })?;
        Ok(policy)
    }

    /// Whether it can be kept, ever.
    fn possible(&self, now: Timestamp) -> Result<(), (String, &'static str)> {
        let Deadlines { exploited, high, rest } = &self.deadlines;
        if !(exploited <= high && high <= rest) {
            return Err((
                format!("[deadlines] gives what is worse more time: exploited {exploited}, high {high}, rest {rest}"),
                "order them: exploited <= high <= rest",
            ));
        }
        if self.phases.notice.0 + self.phases.delay.0 > exploited.0 {
            return Err((
                format!(
                    "[phases] notice {} and delay {} are longer than the shortest deadline, {exploited}",
                    self.phases.notice, self.phases.delay
                ),
                "shorten notice or delay, or allow more time in [deadlines]",
            ));
        }
        if self.facts.interval > self.facts.max_age {
            return Err((
                format!("[facts] are read every {} and are too old after {}", self.facts.interval, self.facts.max_age),
                "make interval shorter than max-age",
            ));
        }
        if Mechanism::ALL.iter().all(|mechanism| self.mechanisms.forbid.contains(mechanism)) {
            return Err(("[mechanisms] forbids all there are".to_owned(), "leave at least `evacuate` allowed"));
        }
        if let Some(mechanism) = self.mechanisms.prefer.iter().find(|m| self.mechanisms.forbid.contains(m)) {
            return Err((
                format!("[mechanisms] both prefers and forbids {}", mechanism.name()),
                "take it out of one of the two",
            ));
        }
        if self.limits.max_unavailable == 0 {
            return Err(("[limits] max-unavailable = 0 lets no host be patched".to_owned(), "make it 1 or more"));
        }
        if self.limits.headroom > 90 {
            return Err((
                format!("[limits] headroom = {} leaves no room for pods", self.limits.headroom),
                "make it 90 or less",
            ));
        }
        if self.run.back_within.0.is_zero() {
            return Err(("[run] back-within = 0 gives no host time to boot".to_owned(), "make it 15m or so"));
        }
        if let Some(url) = &self.notify.webhook
            && !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme))
        {
            return Err((format!("[notify] webhook = {url:?} is no address"), "write webhook = \"https://...\""));
        }
        if self.notify.secret.is_some() && self.notify.webhook.is_none() {
            return Err(("[notify] has a secret and no webhook".to_owned(), "add webhook = \"https://...\""));
        }
        self.advisories.check().map_err(|error| (format!("[advisories] {error}"), "make it so"))?;
        let windows = self.windows().map_err(|message| (message, "see the README's section \"Policy\""))?;
        let soon = now.checked_add(HORIZON).unwrap_or(Timestamp::MAX);
        if windows.next(now, soon).is_none() {
            return Err((
                "no window is left: within the next 400 days each is excluded, or never comes".to_owned(),
                "look at [[windows]] and [[exclusions]] with `podctl policy explain`",
            ));
        }
        Ok(())
    }

    /// When hosts may be touched.
    ///
    /// # Errors
    /// A window is not understood; never after [`parse`](Self::parse).
    pub fn windows(&self) -> Result<Windows, String> {
        Windows::new(&self.windows, &self.exclusions)
    }

    /// Time that a severity allows.
    #[must_use]
    pub fn allows(&self, severity: Severity) -> SignedDuration {
        match severity {
            Severity::Exploited => self.deadlines.exploited.0,
            Severity::High => self.deadlines.high.0,
            Severity::Medium | Severity::Low => self.deadlines.rest.0,
        }
    }
}
