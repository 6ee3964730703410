//! What the feeds say together.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use jiff::Timestamp;

use super::cache::{Record, Slot};
use super::config::{Config, resolve};
use super::error::{Error, Result};
use super::refresh::last;
use super::{Advisories, Advisory, Feed, FeedState, Urgency, guard};

/// Reads from the cache what concerns these source packages; fetches nothing.
///
/// The same vulnerability of a package from several feeds becomes one advisory. What fixes it says the first of them in the
/// order of [`Feed`], and if that says that the release is not affected there is no advisory. The urgency is the highest,
/// and it is remote if any says so. A feed whose data is damaged counts as missing.
#[must_use]
pub fn read(config: &Config, cache: &Path, release: &str, packages: &BTreeSet<String>, now: Timestamp) -> Advisories {
    let mut feeds = Vec::new();
    let mut merged = Merged::default();
    for (feed, place) in Feed::ALL.into_iter().filter_map(|feed| Some((feed, config.place(feed)?))) {
        let from = resolve(place, release);
        let state = match guard::is_release(release) {
            true => merged.take(&Slot::new(cache, feed, release), feed, &from, packages),
            false => Err(Error::Release(release.chars().take(64).collect())),
        };
        feeds.push(state.unwrap_or_else(|e| missing(feed, from, &e, now)));
    }
    Advisories { list: merged.list(), feeds }
}

fn missing(feed: Feed, from: String, e: &Error, now: Timestamp) -> FeedState {
    tracing::warn!(feed = feed.name(), from, %now, "advisories not readable: {e}");
    FeedState { feed, from, fetched: None, dated: None, entries: 0, problem: Some(e.to_string()) }
}

/// Package and id; then what each feed says.
#[derive(Default)]
struct Merged {
    found: BTreeMap<(String, String), Vec<(Feed, Record)>>,
    exploited: HashSet<String>,
}

impl Merged {
    /// Adds what a feed says; gives its state.
    fn take(&mut self, slot: &Slot, feed: Feed, from: &str, packages: &BTreeSet<String>) -> Result<FeedState> {
        let shown = last(slot, feed, from).shown;
        match (shown.fetched, feed) {
            (None, _) => {}
            (Some(_), Feed::Kev) => self.exploited(slot)?,
            (Some(_), _) => self.records(slot, feed, packages)?,
        }
        Ok(shown)
    }

    fn records(&mut self, slot: &Slot, feed: Feed, packages: &BTreeSet<String>) -> Result<()> {
        let mut new = Vec::new();
        let wanted = |package: &[u8]| std::str::from_utf8(package).is_ok_and(|package| packages.contains(package));
        slot.scan(wanted, |package, json| {
            let record: Record = serde_json::from_str(json).map_err(|_| Error::Cache(slot.list()))?;
            new.push((package.to_owned(), record));
            Ok(())
        })?;
        // Only now is it known that the file is whole.
        for (package, record) in new {
            self.found.entry((package, record.id.clone())).or_default().push((feed, record));
        }
        Ok(())
    }

    fn exploited(&mut self, slot: &Slot) -> Result<()> {
        let mut new = HashSet::new();
        let keep = |cve: &str, _: &str| {
            new.insert(cve.to_owned());
            Ok(())
        };
        slot.scan(|_| true, keep)?;
        self.exploited = new;
        Ok(())
    }

    fn list(self) -> Vec<Advisory> {
        let exploited = self.exploited;
        self.found
            .into_iter()
            .filter_map(|((package, id), records)| merge(package, exploited.contains(&id), id, records))
            .collect()
    }
}

/// The records are in the order of trust.
fn merge(package: String, exploited: bool, id: String, mut records: Vec<(Feed, Record)>) -> Option<Advisory> {
    let mut feeds: Vec<Feed> = records.iter().map(|(feed, _)| *feed).chain(exploited.then_some(Feed::Kev)).collect();
    feeds.dedup();
    let urgency = records.iter().filter_map(|(_, r)| r.urgency).max().unwrap_or(Urgency::Unassigned);
    let says = |remote| records.iter().any(|(_, r)| r.remote == Some(remote));
    let remote = if says(true) { Some(true) } else { says(false).then_some(false) };
    let summary = records.iter().map(|(_, r)| &r.summary).find(|s| !s.is_empty()).cloned().unwrap_or_default();
    let (_, first) = winner(&mut records)?;
    Some(Advisory { id, package, fixed: first.fixed?, urgency, remote, exploited, summary, feeds })
}

/// The most trusted feed's record. A feed can have two: OSV has an advisory for the CVE and one for the DSA. The one that
/// knows a fix says more; of two fixes the newer one includes the other (a regression update supersedes its DSA).
fn winner(records: &mut Vec<(Feed, Record)>) -> Option<(Feed, Record)> {
    let best = records.first()?.0;
    records.retain(|(feed, _)| *feed == best);
    records.drain(..).reduce(|a, b| match (&a.1.fixed, &b.1.fixed) {
        (Some(super::Fix::Version(x)), Some(super::Fix::Version(y))) => {
            if super::compare(x, y).is_ok_and(std::cmp::Ordering::is_lt) { b } else { a }
        }
        (Some(super::Fix::NotYet), Some(_)) => b,
        _ => a,
    })
}
