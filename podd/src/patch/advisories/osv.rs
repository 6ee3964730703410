//! OSV advisories: single ones, or a zip of them.
//!
//! What Debian's look like was read from their converters, `vulnfeeds/cmd/converters/{debian,dsa-dla-dtsa}` in google/osv.dev:
//! `DEBIAN-CVE-...` has its CVE in `upstream` and Debian's urgency in `ecosystem_specific`; a DSA or DLA has all its CVEs in
//! `upstream` (earlier in `aliases` or `related`), and becomes one advisory for each. Ecosystems are `Debian:` and a number.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use jiff::Timestamp;
use serde::Deserialize;

use super::cache::{Extract, Record};
use super::error::{Error, Result};
use super::version::{check, compare};
use super::{Feed, Fix, Urgency, guard, zip};

/// Largest advisory in bytes. Those of the kernel list hundreds of versions.
const MAX_ADVISORY: u64 = 2 << 20;
/// How OSV calls a release; codenames are from Debian's distro-info-data.
pub(super) fn ecosystem(release: &str) -> Option<String> {
    const RELEASES: [(&str, u32); 8] = [
        ("jessie", 8),
        ("stretch", 9),
        ("buster", 10),
        ("bullseye", 11),
        ("bookworm", 12),
        ("trixie", 13),
        ("forky", 14),
        ("duke", 15),
    ];
    RELEASES.iter().find(|(name, _)| *name == release).map(|(_, number)| format!("Debian:{number}"))
}

/// Reads files one after the other: counts what is in them, and bounds the whole.
pub(super) struct Reading<'a> {
    pub ecosystem: &'a str,
    pub out: &'a mut Extract,
    /// Bytes read so far, unpacked.
    pub bytes: &'a mut u64,
}

#[derive(Deserialize)]
struct Advisory {
    id: String,
    modified: Option<String>,
    withdrawn: Option<String>,
    summary: Option<String>,
    details: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    upstream: Vec<String>,
    #[serde(default)]
    related: Vec<String>,
    #[serde(default)]
    affected: Vec<Affected>,
}

#[derive(Deserialize)]
struct Affected {
    package: Option<Package>,
    #[serde(default)]
    ranges: Vec<Range>,
    ecosystem_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Package {
    ecosystem: String,
    name: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    events: Vec<Event>,
}

/// Of `introduced`, `last_affected` and `fixed` only the last is of use.
#[derive(Deserialize)]
struct Event {
    introduced: Option<String>,
    fixed: Option<String>,
}

#[derive(Deserialize)]
struct Specific {
    urgency: Option<String>,
}

impl Reading<'_> {
    /// A zip, or one advisory.
    pub(super) fn file(&mut self, mut file: File, from: &str) -> Result<()> {
        let mut magic = [0; 2];
        let zip = file.read_exact(&mut magic).is_ok() && magic == *b"PK";
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", from))?;
        match zip {
            true => self.zip(&file, from),
            false => self.advisory(file, from),
        }
    }

    fn zip(&mut self, file: &File, from: &str) -> Result<()> {
        zip::each(file, from, |name, content| match name.ends_with(".json") {
            true => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
                self.advisory(content, &format!("{from}, {name}"))
            }
            false => Ok(()),
        })
    }

    fn advisory(&mut self, file: impl Read, from: &str) -> Result<()> {
        let text = Counted { inner: file, bytes: self.bytes, from };
        let text = guard::json(text, from, MAX_ADVISORY, 1, MAX_ADVISORY)?;
        let advisory: Advisory = serde_json::from_reader(text).map_err(|e| Error::json(e, from))?;
        if !guard::is_id(&advisory.id) {
            return Err(Error::entry(from, &advisory.id, "?", "this is not the name of an advisory"));
        }
        let date = |what, value: &Option<String>| match value {
            None => Ok(None),
            Some(value) => guard::date(from, what, value.parse::<Timestamp>().ok(), value).map(Some),
        };
        date("the date `modified`", &advisory.modified)?;
        if date("the date `withdrawn`", &advisory.withdrawn)?.is_some() {
            return Ok(());
        }
        advisory.affected.iter().try_for_each(|affected| self.affected(&advisory, affected, from))
    }

    fn affected(&mut self, advisory: &Advisory, affected: &Affected, from: &str) -> Result<()> {
        let Some(package) = affected.package.as_ref().filter(|p| p.ecosystem == self.ecosystem) else {
            return Ok(());
        };
        let name = &package.name;
        if !guard::is_package(name) {
            return Err(Error::entry(from, &advisory.id, name, "this is not the name of a source package"));
        }
        let urgency = affected.ecosystem_specific.as_ref().and_then(|s| s.urgency.as_deref());
        let mut record = Record {
            id: String::new(),
            fixed: Some(fix(affected).map_err(|e| Error::version(from, &advisory.id, name, &e))?),
            urgency: urgency.map(Urgency::from_word),
            remote: None,
            summary: guard::summary(advisory.summary.as_ref().or(advisory.details.as_ref()).map_or("", |text| text)),
        };
        for id in advisory.ids() {
            record.id = id.to_owned();
            self.out.add(name, &record)?;
        }
        Ok(())
    }
}

impl Advisory {
    /// The CVEs that it is about, else its own name.
    fn ids(&self) -> Vec<&str> {
        let own = self.id.strip_prefix("DEBIAN-").unwrap_or(&self.id);
        if guard::is_cve(own) {
            return vec![own];
        }
        let mut ids: Vec<&str> = self.upstream.iter().chain(&self.aliases).map(String::as_str).collect();
        ids.retain(|id| guard::is_cve(id));
        if ids.is_empty() {
            ids = self.related.iter().map(String::as_str).filter(|id| guard::is_cve(id)).collect();
        }
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() { vec![&self.id] } else { ids }
    }
}

/// The version from which on all are sound: the last `fixed`, unless something was introduced again after it. Debian's
/// ranges all begin at 0; one that begins later would be said to affect older versions too.
fn fix(affected: &Affected) -> std::result::Result<Fix, super::BadVersion> {
    let mut newest: Option<&str> = None;
    let mut open = affected.ranges.is_empty();
    for range in affected.ranges.iter().filter(|range| range.kind == "ECOSYSTEM") {
        let mut vulnerable = false;
        for event in &range.events {
            vulnerable |= event.introduced.is_some();
            if let Some(fixed) = &event.fixed {
                check(fixed)?;
                vulnerable = false;
                if newest.map_or(Ok(true), |newest| compare(fixed, newest).map(|o| o.is_gt()))? {
                    newest = Some(fixed);
                }
            }
        }
        open |= vulnerable;
    }
    Ok(match newest {
        Some(version) if !open => Fix::Version(version.to_owned()),
        _ => Fix::NotYet,
    })
}

/// Bounds the sum of all advisories: each alone is small.
struct Counted<'a, R> {
    inner: R,
    bytes: &'a mut u64,
    from: &'a str,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        *self.bytes += n as u64;
        let limit = Feed::Osv.limit();
        match *self.bytes > limit {
            true => Err(std::io::Error::other(Error::TooLarge { what: format!("all up to {}", self.from), limit })),
            false => Ok(n),
        }
    }
}
