//! Lengths of time, as people write them: `48h`, `7 days`, `1h 30m`. A day has 24 hours.

use std::fmt;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Serialize};

/// A length of time of at most ten years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Length(pub SignedDuration);

const DAY: i64 = 24;
const LONGEST: SignedDuration = SignedDuration::from_hours(3653 * DAY);

impl Length {
    pub(super) const fn minutes(n: i64) -> Self {
        Self(SignedDuration::from_mins(n))
    }

    pub(super) const fn hours(n: i64) -> Self {
        Self(SignedDuration::from_hours(n))
    }

    pub(super) const fn days(n: i64) -> Self {
        Self(SignedDuration::from_hours(n * DAY))
    }
}

impl TryFrom<String> for Length {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no length of time ({why}); write 48h, 7d or 1h 30m");
        let span: Span = text.parse().map_err(|_| wrong("it is not understood"))?;
        if span.get_years() != 0 || span.get_months() != 0 {
            return Err(wrong("years and months have no fixed length"));
        }
        let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong("it is too long"))?;
        if length.is_negative() || length > LONGEST {
            return Err(wrong("it is negative, or longer than ten years"));
        }
        Ok(Self(length))
    }
}

impl From<Length> for String {
    fn from(length: Length) -> Self {
        length.to_string()
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(self.0, 4))
    }
}

/// The two largest units of a length: `2d 3h`, `15m`, `0s`.
#[must_use]
pub fn words(length: SignedDuration) -> String {
    written(length, 2)
}

fn written(length: SignedDuration, most: usize) -> String {
    let seconds = length.unsigned_abs().as_secs();
    let units = [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let parts = units[first..].iter().take(most).filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}"));
    let text = parts.collect::<Vec<_>>().join(" ");
    let sign = if length.is_negative() { "-" } else { "" };
    if text.is_empty() { "0s".to_owned() } else { format!("{sign}{text}") }
}
