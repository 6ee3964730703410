//! Where advisories come from.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::Feed;

/// Where advisories come from. A place is an `https://` or `http://` address, or the absolute path of a file or a folder;
/// `{release}` in it becomes the codename. A feed without a place is not used.
///
/// None of the feeds is signed: over `http://` whoever controls the network can hide an advisory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// The Debian security tracker's JSON; in a folder the newest `*.json`.
    pub tracker: Option<String>,
    /// debsecan's data; in a folder the file that is named as the release.
    pub debsecan: Option<String>,
    /// OSV advisories, one JSON file each, or a zip of them; in a folder all `*.json` and `*.zip`.
    pub osv: Option<String>,
    /// CISA's list of vulnerabilities that are known to be exploited; in a folder the newest `*.json`.
    pub kev: Option<String>,
    /// Data that is older, or was not confirmed for longer, is stale.
    pub max_age: SignedDuration,
    /// Longest wait for a connection.
    pub connect_timeout: SignedDuration,
    /// Longest time for one download.
    pub timeout: SignedDuration,
    /// Whether each file has its SHA-256 in a file beside it, named `.sha256` in addition: then one without is refused.
    pub checksum: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tracker: None,
            debsecan: None,
            osv: None,
            kev: None,
            max_age: SignedDuration::from_hours(48),
            connect_timeout: SignedDuration::from_secs(10),
            timeout: SignedDuration::from_secs(600),
            checksum: false,
        }
    }
}

/// Why the configuration is not usable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither an address nor a path.
    #[error(
        "{} = {place:?} is neither an https:// or http:// address nor an absolute path\n  cure: write \
         such as https://security-tracker.debian.org/tracker/data/json or /srv/advisories", feed.name()
    )]
    Place {
        /// Whose.
        feed: Feed,
        /// As given.
        place: String,
    },
    /// A name or password in an address: addresses are shown and logged.
    #[error("the address of {} has a user name in it\n  cure: use a mirror that needs none", .0.name())]
    Login(Feed),
    /// A time that makes no sense.
    #[error("{key} = {value} is not from {least} to {most}\n  cure: write a time within, such as {example:?}")]
    Time {
        /// Key.
        key: &'static str,
        /// As given.
        value: SignedDuration,
        /// Shortest.
        least: SignedDuration,
        /// Longest.
        most: SignedDuration,
        /// What would do.
        example: &'static str,
    },
}

impl Config {
    /// The configured place of a feed.
    #[must_use]
    pub fn place(&self, feed: Feed) -> Option<&str> {
        match feed {
            Feed::Tracker => self.tracker.as_deref(),
            Feed::Debsecan => self.debsecan.as_deref(),
            Feed::Osv => self.osv.as_deref(),
            Feed::Kev => self.kev.as_deref(),
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`ConfigError`]: the first thing that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        for feed in Feed::ALL {
            match self.place(feed) {
                Some(place) if has_login(place) => return Err(ConfigError::Login(feed)),
                Some(place) if !is_place(place) => return Err(ConfigError::Place { feed, place: place.to_owned() }),
                _ => {}
            }
        }
        let (second, day) = (SignedDuration::from_secs(1), SignedDuration::from_hours(24));
        within("max-age", self.max_age, second * 60, day * 365, "48h")?;
        within("connect-timeout", self.connect_timeout, SignedDuration::from_millis(100), second * 600, "10s")?;
        within("timeout", self.timeout, SignedDuration::from_millis(100), day, "10m")
    }
}

/// The place with the release filled in.
pub(super) fn resolve(place: &str, release: &str) -> String {
    place.replace("{release}", release)
}

/// Whether a place is an address, not a path.
pub(super) fn is_url(place: &str) -> bool {
    place.starts_with("https://") || place.starts_with("http://")
}

/// For libraries that know no negative time.
pub(super) fn unsigned(time: SignedDuration) -> Duration {
    Duration::try_from(time).unwrap_or(Duration::ZERO)
}

fn is_place(place: &str) -> bool {
    let host = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') && !rest.contains(' ');
    let rest = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://"));
    place.len() <= 4096
        && !place.contains(|c: char| c.is_control())
        && rest.map_or_else(|| Path::new(place).is_absolute(), host)
}

fn has_login(place: &str) -> bool {
    let host = place.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    host.is_some_and(|host| host.contains('@'))
}

fn within(
    key: &'static str,
    value: SignedDuration,
    least: SignedDuration,
    most: SignedDuration,
    example: &'static str,
) -> Result<(), ConfigError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(ConfigError::Time { key, value, least, most, example }),
    }
}
