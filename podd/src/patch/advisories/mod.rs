//! Which advisories concern a Debian host: fetched from feeds, checked, cached, merged.
//!
//! ```text
//! mirror or file -> fetch -> parse completely -> extract for the release -> rename into the cache     refresh()
//! extracts of all feeds -> lines of the wanted packages -> one advisory per id and package            read()
//! ```
//! In the cache, per feed and release, `<feed>-<release>.list` is the extract and `<feed>-<release>.json` its [`FeedState`]
//! with what a conditional request needs. A feed that cannot be had, or has a single entry that cannot be, changes nothing
//! but its `problem`: the last good data stays, and ages. What is stale or missing is for the caller to call unknown.
//!
//! Everything here blocks, and knows nothing of what is installed: that is asked of [`Fix`].

mod cache;
mod config;
mod debsecan;
mod error;
mod fetch;
mod fix;
mod guard;
mod kev;
mod merge;
mod osv;
mod refresh;
#[cfg(test)]
mod tests;
mod tracker;
mod version;
mod zip;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use config::{Config, ConfigError};
pub use error::Error;
pub use fetch::agent;
pub use fix::Fix;
pub use merge::read;
pub use refresh::refresh;
pub use version::{BadVersion, compare};

/// How bad, as Debian says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// No security problem in practice.
    Unimportant,
    /// Debian has not said: also for releases at their end of life.
    Unassigned,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
}

impl Urgency {
    /// From a feed's word; the tracker marks what it took from the NVD with `**`. Words that are not known assign nothing.
    fn from_word(word: &str) -> Self {
        match word.trim_end_matches('*') {
            "unimportant" => Self::Unimportant,
            "low" => Self::Low,
            "medium" => Self::Medium,
            "high" => Self::High,
            _ => Self::Unassigned,
        }
    }
}

/// A source of advisories. The order is the one of trust: the first that knows an advisory says what fixes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// The Debian security tracker's JSON.
    Tracker,
    /// debsecan's data.
    Debsecan,
    /// OSV.
    Osv,
    /// CISA's list of known exploited vulnerabilities; it names no packages.
    Kev,
}

impl Feed {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Tracker, Self::Debsecan, Self::Osv, Self::Kev];

    /// As in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Debsecan => "debsecan",
            Self::Osv => "osv",
            Self::Kev => "kev",
        }
    }

    /// Largest file, and largest content if it is compressed, in bytes.
    fn limit(self) -> u64 {
        match self {
            Self::Tracker => 512 << 20,
            Self::Debsecan => 64 << 20,
            Self::Osv => 1 << 30,
            Self::Kev => 32 << 20,
        }
    }

    /// For how long the publisher may have nothing new. Debian's data changes daily, CISA's list not for days.
    fn quiet(self) -> SignedDuration {
        match self {
            Self::Kev => SignedDuration::from_hours(14 * 24),
            _ => SignedDuration::ZERO,
        }
    }
}

/// A vulnerability of a source package in the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advisory {
    /// The CVE, else the feed's own name.
    pub id: String,
    /// The source package.
    pub package: String,
    /// What fixes it.
    pub fixed: Fix,
    /// The highest that a feed gives.
    pub urgency: Urgency,
    /// Whether it can be exploited over a network; none: no feed says.
    pub remote: Option<bool>,
    /// Whether it is known to be exploited.
    pub exploited: bool,
    /// One line of at most 200 characters; may be empty.
    pub summary: String,
    /// Who lists it.
    pub feeds: Vec<Feed>,
}

/// How a feed is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedState {
    /// Which.
    pub feed: Feed,
    /// Where the data came from, or should have.
    pub from: String,
    /// When the mirror last confirmed the data, or the file was last read; none: there is no data.
    pub fetched: Option<Timestamp>,
    /// The data's own time, if told: `Last-Modified`, the file's time, CISA's `dateReleased`.
    pub dated: Option<Timestamp>,
    /// How many entries concern the release.
    pub entries: u64,
    /// Why the last attempt failed; none: it did not.
    pub problem: Option<String>,
}

impl FeedState {
    /// Whether the data says too little about now: there is none, it was not confirmed for longer than `max_age`, its own
    /// time is older than that (for the exploited list: and two weeks), or one of the times is more than a day ahead.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp, max_age: SignedDuration) -> bool {
        let beyond = |time: Timestamp, patience: SignedDuration| {
            let age = now.duration_since(time);
            age > patience || age < SignedDuration::from_hours(-24)
        };
        let quiet = max_age.saturating_add(self.feed.quiet());
        self.fetched.is_none_or(|time| beyond(time, max_age)) || self.dated.is_some_and(|time| beyond(time, quiet))
    }

    /// How old the data is: since it was confirmed, or its own time if that is older.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let since = self.fetched?;
        Some(now.duration_since(self.dated.map_or(since, |dated| dated.min(since))))
    }
}

/// What the feeds say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advisories {
    /// By package, then by id.
    pub list: Vec<Advisory>,
    /// Each configured feed.
    pub feeds: Vec<FeedState>,
}
