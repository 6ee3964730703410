//! What must be known, and is not, or is too old.

use jiff::{SignedDuration, Timestamp};

use super::Question;
use crate::patch::advisories::{Feed, FeedState};
use crate::patch::facts::{Fact, Missing, Release};
use crate::patch::policy::words;

/// Debian's security archive is signed anew each day; a mirror that drops how long that is valid may be this old.
const UNTOUCHED: SignedDuration = SignedDuration::from_hours(14 * 24);

pub(super) fn missing(question: Question<'_>) -> Vec<Missing> {
    let Question { facts, policy, now, .. } = question;
    let mut missing: Vec<Missing> = [
        facts.boot_id.missing(),
        facts.system.missing(),
        facts.kernel.missing(),
        facts.installed.missing(),
        facts.boot_default.missing(),
        facts.candidate.missing(),
        facts.sources.missing(),
        facts.packages.missing(),
        facts.stale.missing(),
    ]
    .into_iter()
    .flatten()
    .cloned()
    .collect();
    let limit = policy.facts.max_age.0;
    let age = now.duration_since(facts.at);
    if age > limit {
        let what = format!("the facts are {} old", words(age));
        missing.push(Missing { what, cure: "look at podd's log: it reads them again and again".to_owned() });
    }
    if let (Some(system), Some(sources)) = (facts.system.known(), facts.sources.known()) {
        missing.extend(of_sources(&system.codename, sources, now));
    }
    missing.extend(of_feeds(&question.advisories.feeds, now, policy.advisories.max_age));
    // One reason for several facts is said once.
    let mut said: Vec<Missing> = Vec::new();
    for missing in missing {
        if !said.contains(&missing) {
            said.push(missing);
        }
    }
    said
}

fn of_sources(codename: &str, sources: &[Release], now: Timestamp) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !sources.iter().any(|source| source.origin.is_security_of(codename)) {
        missing.push(Missing {
            what: format!("apt has no source of security updates for {codename:?} (label Debian-Security)"),
            cure: format!("add {codename}-security to apt's sources and run `apt-get update`"),
        });
    }
    for source in sources {
        let age = now.duration_since(source.date);
        if source.valid_until.is_none() && source.origin.is_security_of(codename) && age > UNTOUCHED {
            missing.push(Missing {
                what: format!(
                    "apt's source {} is {} old, and does not say how long it is valid",
                    source.origin.codename,
                    words(age)
                ),
                cure: "run `apt-get update`; if it stays so, the mirror is out of date".to_owned(),
            });
        }
        if let Some(end) = source.valid_until.filter(|end| *end < now) {
            let (name, ago) = (&source.origin.codename, now.duration_since(end));
            missing.push(Missing {
                what: format!("apt's source {name} is {} old and lost its validity {} ago", words(age), words(ago)),
                cure: "run `apt-get update`; if it stays so, the mirror is out of date".to_owned(),
            });
        }
    }
    missing
}

fn of_feeds(feeds: &[FeedState], now: Timestamp, limit: SignedDuration) -> Vec<Missing> {
    let mut missing = Vec::new();
    if feeds.iter().all(|feed| feed.feed == Feed::Kev) {
        missing.push(Missing {
            what: "no source of advisories is set".to_owned(),
            cure: "name one in [advisories] of podd's policy: tracker, debsecan or osv".to_owned(),
        });
    }
    for feed in feeds.iter().filter(|feed| feed.is_stale(now, limit)) {
        let age = feed.age(now).map(words);
        let age = age.map_or_else(|| "were never fetched".to_owned(), |age| format!("are {age} old"));
        let problem = feed.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        missing.push(Missing {
            what: format!("the advisories of {} ({}) {age}{problem}", feed.feed.name(), feed.from),
            cure: "make its address or path right in [advisories] of podd's policy".to_owned(),
        });
    }
    missing
}

/// A fact that was asked for before.
pub(super) fn known<T>(fact: &Fact<T>) -> Result<&T, Missing> {
    match fact {
        Fact::Known(value) => Ok(value),
        Fact::Unknown(missing) => Err(missing.clone()),
    }
}
