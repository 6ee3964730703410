//! Brings the cache up to date, feed by feed.

use std::fs::File;
use std::path::Path;

use jiff::Timestamp;

use super::cache::{self, Extract, Slot, State};
use super::config::{Config, is_url, resolve};
use super::error::{Error, Result};
use super::fetch::{self, Got};
use super::{Feed, FeedState, debsecan, guard, kev, osv, tracker};

/// Fetches what changed into the cache folder, each feed on its own: the failure of one keeps its last good data, and its
/// `problem` says why. One refresh at a time may work on a cache.
///
/// `release` is the codename; feeds of which the configuration has no place are not in the result.
#[must_use = "a feed's problem is told here"]
pub fn refresh(config: &Config, cache: &Path, release: &str, now: Timestamp) -> Vec<FeedState> {
    let configured = Feed::ALL.into_iter().filter_map(|feed| Some((feed, config.place(feed)?)));
    configured.map(|(feed, place)| Job { config, feed, cache, release, now }.run(&resolve(place, release))).collect()
}

/// The state of a feed as the cache has it.
pub(super) fn last(slot: &Slot, feed: Feed, from: &str) -> State {
    let none = FeedState { feed, from: from.to_owned(), fetched: None, dated: None, entries: 0, problem: None };
    slot.load().filter(|state| state.shown.feed == feed).unwrap_or(State { shown: none, etag: None, modified: None })
}

struct Job<'a> {
    config: &'a Config,
    feed: Feed,
    cache: &'a Path,
    release: &'a str,
    now: Timestamp,
}

impl Job<'_> {
    fn run(&self, from: &str) -> FeedState {
        if !guard::is_release(self.release) {
            let problem = Some(Error::Release(self.release.chars().take(64).collect()).to_string());
            let feed = self.feed;
            return FeedState { feed, from: from.to_owned(), fetched: None, dated: None, entries: 0, problem };
        }
        let slot = Slot::new(self.cache, self.feed, self.release);
        let mut old = last(&slot, self.feed, from);
        if old.shown.fetched.is_some() && !slot.is_whole() {
            old = State {
                shown: FeedState { fetched: None, dated: None, entries: 0, ..old.shown },
                etag: None,
                modified: None,
            };
        }
        let result = cache::prepare(self.cache).and_then(|()| self.take(from, &slot, &old));
        let state = result.unwrap_or_else(|e| {
            tracing::warn!(feed = self.feed.name(), release = self.release, from, "advisories not refreshed: {e}");
            State { shown: FeedState { problem: Some(e.to_string()), ..old.shown }, ..old }
        });
        match slot.store(&state) {
            Ok(()) => state.shown,
            // What is on disk now is the old state with the new extract: it looks older than it is, which is safe.
            Err(e) => FeedState { problem: state.shown.problem.or_else(|| Some(e.to_string())), ..state.shown },
        }
    }

    /// The new state, after the extract was put in place.
    fn take(&self, from: &str, slot: &Slot, old: &State) -> Result<State> {
        let (fetched, problem) = (Some(self.now), None);
        if !is_url(from) {
            let (entries, dated) = self.files(from, slot)?;
            let shown = FeedState { feed: self.feed, from: from.to_owned(), fetched, dated, entries, problem };
            return Ok(State { shown, etag: None, modified: None });
        }
        let known = (old.shown.fetched.is_some() && old.shown.from == from).then_some(old);
        match fetch::get(self.config, self.feed, from, self.cache, known)? {
            Got::Same => Ok(State { shown: FeedState { fetched, problem, ..old.shown.clone() }, ..old.clone() }),
            Got::New(new) => {
                let mut out = Extract::new(self.cache, from)?;
                let mut bytes = 0;
                let own = self.parse(new.file, from, &mut bytes, &mut out)?;
                let entries = self.finish(out, from, slot)?;
                let dated = own.or(new.dated);
                let shown = FeedState { feed: self.feed, from: from.to_owned(), fetched, dated, entries, problem };
                Ok(State { shown, etag: new.etag, modified: new.modified })
            }
        }
    }

    fn files(&self, path: &str, slot: &Slot) -> Result<(u64, Option<Timestamp>)> {
        let mut out = Extract::new(self.cache, path)?;
        let (mut dated, mut bytes) = (None, 0);
        for file in fetch::find(self.feed, Path::new(path), self.release)? {
            let (open, time) = fetch::open(self.config, self.feed, &file)?;
            let own = self.parse(open, &file.display().to_string(), &mut bytes, &mut out)?;
            dated = dated.max(own.or(Some(time)));
        }
        Ok((self.finish(out, path, slot)?, dated))
    }

    /// Reads one file to its end; the result is the data's own date, if the format has one.
    fn parse(&self, file: File, from: &str, bytes: &mut u64, out: &mut Extract) -> Result<Option<Timestamp>> {
        match self.feed {
            Feed::Tracker => tracker::parse(file, from, self.release, out).map(|()| None),
            Feed::Debsecan => debsecan::parse(file, from, self.release, out).map(|()| None),
            Feed::Kev => kev::parse(file, from, out).map(Some),
            Feed::Osv => {
                let ecosystem =
                    osv::ecosystem(self.release).ok_or_else(|| Error::Unnumbered(self.release.to_owned()))?;
                osv::Reading { ecosystem: &ecosystem, out, bytes }.file(file, from).map(|()| None)
            }
        }
    }

    /// OSV comes in many files, so only here can be seen that none had anything for the release.
    fn finish(&self, out: Extract, from: &str, slot: &Slot) -> Result<u64> {
        match out.entries() {
            0 => Err(Error::Empty { from: from.to_owned(), release: self.release.to_owned() }),
            _ => out.finish(slot),
        }
    }
}
