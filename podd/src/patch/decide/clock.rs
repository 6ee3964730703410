//! Whether a host's clock can be right.

use jiff::{SignedDuration, Timestamp};

use crate::patch::facts::Facts;

/// This was written then: no clock is right that shows less.
const WRITTEN: Timestamp = Timestamp::constant(1_767_225_600, 0); // 2026-01-01
/// Clocks of mirrors, too, are a little wrong.
const TOLERANCE: SignedDuration = SignedDuration::from_hours(24);
/// Long after all sources of packages should have been renewed.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(180 * 24);

/// Why it cannot be; none if nothing speaks against it.
pub(super) fn implausible(facts: &Facts, now: Timestamp) -> Option<String> {
    if now < WRITTEN {
        return Some(format!("the clock shows {now}, before this podd was written"));
    }
    let sources = facts.sources.known().map_or(&[][..], Vec::as_slice);
    if let Some(source) = sources.iter().find(|source| source.date.duration_since(now) > TOLERANCE) {
        let name = &source.origin.codename;
        return Some(format!("the clock shows {now}, and apt's source {name} was made at {}", source.date));
    }
    if facts.at.duration_since(now) > TOLERANCE {
        return Some(format!("the clock shows {now}, and facts were read at {}", facts.at));
    }
    let ends: Vec<Timestamp> = sources.iter().filter_map(|source| source.valid_until).collect();
    let last = ends.into_iter().max()?;
    (facts.synchronized == Some(false) && now.duration_since(last) > FORGOTTEN)
        .then(|| format!("the clock shows {now}, no time service keeps it, and all of apt's sources ended by {last}"))
}
