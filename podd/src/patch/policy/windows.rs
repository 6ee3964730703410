//! When hosts may be touched. Windows are in the time of a place: they keep their hour when its clocks are changed.
//!
//! In the night in which clocks go forward a window that begins in the missing hour begins after it; where an hour comes twice,
//! it begins the first time. It always lasts as long as it says.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cronexpr::{Crontab, MakeTimestamp};
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use super::Length;

/// A shorter rest of a window, once exclusions are taken away, is none.
const SHORTEST: SignedDuration = SignedDuration::from_mins(5);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Looked at from near to far: a window mostly is within days.
const AHEAD: [i64; 2] = [8, 64];
/// So much more is found at once, for whoever asks later.
const BEYOND: SignedDuration = SignedDuration::from_hours(14 * 24);

/// A window: on `days` at `start`, or as `cron` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Window {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// `mon` ... `sun`; none: all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub days: BTreeSet<Day>,
    /// `02:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// The five fields of crontab(5), instead of days and start; `6#2` is the second Saturday of a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// How long it lasts.
    pub duration: Length,
    /// IANA name of the place's time zone.
    #[serde(default = "utc")]
    pub zone: String,
}

/// Days on which nothing is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Exclusion {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// The first day.
    pub from: Date,
    /// The last day; none: there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Date>,
    /// IANA name of the place's time zone.
    #[serde(default = "utc")]
    pub zone: String,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// A time in which hosts may be touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// From then on.
    pub start: Timestamp,
    /// Until then.
    pub end: Timestamp,
    /// Of which window it is.
    pub window: String,
}

/// All windows and exclusions, understood.
#[derive(Clone, Debug)]
pub struct Windows {
    windows: Vec<Understood>,
    /// From, until.
    exclusions: Vec<(Timestamp, Timestamp)>,
}

#[derive(Clone, Debug)]
struct Understood {
    name: String,
    when: When,
    duration: SignedDuration,
}

#[derive(Clone, Debug)]
enum When {
    Weekly { days: Vec<Weekday>, start: Time, zone: TimeZone },
    Cron(Arc<Cron>),
}

/// It is looked at hour by hour, so what was found is kept.
#[derive(Debug)]
struct Cron {
    crontab: Crontab,
    zone: TimeZone,
    found: Mutex<Found>,
}

/// All starts from one time until another.
#[derive(Debug, Default)]
struct Found {
    from: Timestamp,
    until: Timestamp,
    starts: Vec<Timestamp>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Windows {
    pub(super) fn new(windows: &[Window], exclusions: &[Exclusion]) -> Result<Self, String> {
        // Whole days, so that there is a last one before a deadline.
        let always = [Window {
            name: "at any time".to_owned(),
            days: BTreeSet::new(),
            start: Some(Time::midnight()),
            cron: None,
            duration: Length::hours(24),
            zone: utc(),
        }];
        let windows = if windows.is_empty() { &always } else { windows };
        let windows = windows.iter().map(Understood::new).collect::<Result<_, _>>()?;
        let exclusions = exclusions.iter().map(bounds).collect::<Result<_, _>>()?;
        Ok(Self { windows, exclusions })
    }

    /// The slot that is open at `from`, or the first one after it, of those that begin before `until`.
    #[must_use]
    pub fn next(&self, from: Timestamp, until: Timestamp) -> Option<Slot> {
        let near =
            AHEAD.into_iter().filter_map(|days| from.checked_add(DAY * days as i32).ok()).filter(|end| *end < until);
        near.chain([until]).find_map(|until| self.slots(from, until).into_iter().next())
    }

    /// The last slot that begins in a time, or is open at its beginning.
    #[must_use]
    pub fn last(&self, from: Timestamp, until: Timestamp) -> Option<Slot> {
        let near = AHEAD
            .into_iter()
            .filter_map(|days| until.checked_sub(DAY * days as i32).ok())
            .filter(|begin| *begin > from);
        // One that is cut may have begun earlier.
        let whole =
            |begin: Timestamp| self.slots(begin, until).into_iter().next_back().filter(|slot| slot.start > begin);
        near.into_iter().find_map(whole).or_else(|| self.slots(from, until).into_iter().next_back())
    }

    /// Slots that are open at some moment from `from` on, and begin before `until`; in order. One that is open already is cut.
    #[must_use]
    pub fn slots(&self, from: Timestamp, until: Timestamp) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.windows.iter().flat_map(|window| window.slots(from, until)).collect();
        for (begin, end) in &self.exclusions {
            slots = slots.into_iter().flat_map(|slot| without(slot, *begin, *end)).collect();
        }
        for slot in &mut slots {
            slot.start = slot.start.max(from);
        }
        slots.retain(|slot| slot.start < until && slot.end.duration_since(slot.start) >= SHORTEST);
        slots.sort();
        slots
    }
}

impl Understood {
    fn new(window: &Window) -> Result<Self, String> {
        let zone = zone(&window.zone)?;
        let duration = window.duration.0;
        if duration < SHORTEST || duration > DAY * 7 {
            return Err(format!("a window lasts {}, and five minutes to seven days are possible", window.duration));
        }
        let when = match (&window.cron, window.start) {
            (Some(cron), None) if window.days.is_empty() => {
                // Of the days and hours on a calendar, which know of no changes of clocks.
                let crontab = cronexpr::parse_crontab(&format!("{cron} UTC"));
                let crontab = crontab.map_err(|error| format!("cron = {cron:?} is not understood: {error}"))?;
                When::Cron(Arc::new(Cron { crontab, zone, found: Mutex::default() }))
            }
            (None, Some(start)) => {
                let all = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
                let days = if window.days.is_empty() { all.to_vec() } else { window.days.iter().copied().collect() };
                When::Weekly { days: days.into_iter().map(weekday).collect(), start, zone }
            }
            _ => return Err("a window has either `cron`, or `start` and perhaps `days`".to_owned()),
        };
        let name = if window.name.is_empty() { described(window) } else { window.name.clone() };
        Ok(Self { name, when, duration })
    }

    fn slots(&self, from: Timestamp, until: Timestamp) -> Vec<Slot> {
        // One that began before may still be open.
        let earliest = from.checked_sub(self.duration).unwrap_or(Timestamp::MIN);
        let starts: Vec<Timestamp> = match &self.when {
            When::Weekly { days, start, zone } => {
                // A day earlier: the missing hour moves a start.
                let first = zone.to_datetime(earliest.checked_sub(DAY).unwrap_or(Timestamp::MIN)).date();
                let last = zone.to_datetime(until).date();
                let dates = first.series(1.day()).take_while(|date| *date <= last);
                let dates = dates.filter(|date| days.contains(&date.weekday()));
                dates.filter_map(|date| zone.to_timestamp(date.to_datetime(*start)).ok()).collect()
            }
            When::Cron(cron) => cron.starts(earliest, until),
        };
        let slot = |start: Timestamp| {
            let end = start.checked_add(self.duration).ok()?;
            (start < until && end > from).then(|| Slot { start, end, window: self.name.clone() })
        };
        starts.into_iter().filter_map(slot).collect()
    }
}

impl Cron {
    fn starts(&self, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if from < found.from || until > found.until || found.starts.is_empty() {
            let beyond = until.checked_add(BEYOND).unwrap_or(until);
            let calendar = |at: Timestamp| TimeZone::UTC.to_timestamp(self.zone.to_datetime(at)).unwrap_or(at);
            let first = calendar(from).checked_sub(DAY).unwrap_or(from);
            let after = self.crontab.iter_after(MakeTimestamp(first)).into_iter().flatten().map_while(Result::ok);
            let starts = after.filter_map(|zoned| self.zone.to_timestamp(zoned.datetime()).ok());
            let mut starts: Vec<Timestamp> = starts.take_while(|start| *start < beyond).collect();
            // Those of a missing hour come later.
            starts.sort_unstable();
            starts.dedup();
            *found = Found { from, until: beyond, starts };
        }
        let place = |at: Timestamp| found.starts.partition_point(|start| *start < at);
        found.starts[place(from)..place(until)].to_vec()
    }
}

/// What an exclusion leaves of a slot.
fn without(slot: Slot, begin: Timestamp, end: Timestamp) -> Vec<Slot> {
    if end <= slot.start || slot.end <= begin {
        return vec![slot];
    }
    let before = Slot { end: begin, ..slot.clone() };
    let after = Slot { start: end, ..slot };
    [before, after].into_iter().filter(|slot| slot.start < slot.end).collect()
}

fn bounds(exclusion: &Exclusion) -> Result<(Timestamp, Timestamp), String> {
    let zone = zone(&exclusion.zone)?;
    let to = exclusion.to.unwrap_or(exclusion.from);
    if to < exclusion.from {
        return Err(format!("an exclusion is from {} to {to}", exclusion.from));
    }
    // Midnight is missing where clocks go forward at midnight.
    let begin = |date: Date| zone.to_timestamp(date.to_datetime(Time::midnight()));
    let end = to.tomorrow().and_then(begin).unwrap_or(Timestamp::MAX);
    let begin = begin(exclusion.from).map_err(|error| format!("an exclusion is from {}: {error}", exclusion.from))?;
    Ok((begin, end))
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name)
        .map_err(|_| format!("there is no time zone {name:?}; write an IANA name, such as Europe/Berlin or UTC"))
}

fn described(window: &Window) -> String {
    let days: Vec<String> = window.days.iter().map(|day| format!("{day:?}")).collect();
    let days = if days.is_empty() { "daily".to_owned() } else { days.join(",") };
    match (&window.cron, window.start) {
        (Some(cron), _) => format!("{cron} {}", window.zone),
        (None, start) => format!("{days} {} {}", start.unwrap_or_default(), window.zone),
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}
