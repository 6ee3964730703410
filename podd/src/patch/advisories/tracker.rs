//! The Debian security tracker's JSON: package, then issue, then release.
//!
//! Written by `_get_json` of the tracker's `bin/tracker_service.py`, which drops keys without a value.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::cache::{Extract, Record};
use super::error::{Error, Result};
use super::version::{check, compare};
use super::{Feed, Fix, Urgency, guard};

/// Largest issue of a package in bytes.
const MAX_ENTRY: u64 = 1 << 20;

/// Reads all, keeps what concerns the release.
pub(super) fn parse(file: impl Read, from: &str, release: &str, out: &mut Extract) -> Result<()> {
    let text = guard::json(file, from, Feed::Tracker.limit(), 3, MAX_ENTRY)?;
    let mut json = serde_json::Deserializer::from_reader(text);
    let mut reading = Reading { from, release, out, refused: None };
    let read = Packages(&mut reading).deserialize(&mut json).and_then(|()| json.end());
    match reading.refused.take() {
        Some(refused) => return Err(refused),
        None => read.map_err(|e| Error::json(e, from))?,
    }
    match reading.out.entries() {
        0 => Err(Error::Empty { from: from.to_owned(), release: release.to_owned() }),
        _ => Ok(()),
    }
}

struct Reading<'a> {
    from: &'a str,
    release: &'a str,
    out: &'a mut Extract,
    /// Our own error, which serde cannot carry.
    refused: Option<Error>,
}

/// An issue as far as it concerns the release.
#[derive(Default)]
struct Issue {
    description: Option<String>,
    scope: Option<String>,
    release: Option<Release>,
}

#[derive(Deserialize)]
struct Release {
    status: String,
    fixed_version: Option<String>,
    urgency: Option<String>,
    #[serde(default)]
    repositories: std::collections::BTreeMap<String, String>,
}

impl Reading<'_> {
    fn take(&mut self, package: &str, id: &str, issue: Issue) -> Result<()> {
        let Some(release) = issue.release else { return Ok(()) };
        let fixed = self.fix(package, id, &release)?;
        let record = Record {
            id: id.to_owned(),
            fixed,
            urgency: release.urgency.as_deref().map(Urgency::from_word),
            remote: match issue.scope.as_deref() {
                Some("remote") => Some(true),
                Some("local") => Some(false),
                _ => None,
            },
            summary: guard::summary(issue.description.as_deref().unwrap_or_default()),
        };
        self.out.add(package, &record)
    }

    /// `resolved` with version 0 is the tracker's "not affected". `undetermined` is nobody's all-clear. A `resolved` without
    /// version, which the tracker's query allows, is fixed at the latest in what the release has now.
    fn fix(&self, package: &str, id: &str, release: &Release) -> Result<Option<Fix>> {
        let wrong = |reason: String| Error::entry(self.from, id, package, reason);
        let bad = |e| Error::version(self.from, id, package, &e);
        match (release.status.as_str(), &release.fixed_version) {
            ("open" | "undetermined", _) => Ok(Some(Fix::NotYet)),
            ("resolved", Some(version)) if version == "0" => Ok(None),
            ("resolved", Some(version)) => {
                check(version).map_err(bad)?;
                Ok(Some(Fix::Version(version.clone())))
            }
            ("resolved", None) => {
                let mut newest = None;
                for version in release.repositories.values() {
                    if newest.map_or(Ok(true), |newest| compare(version, newest).map(|o| o.is_gt())).map_err(bad)? {
                        check(version).map_err(bad)?;
                        newest = Some(version);
                    }
                }
                let newest = newest.ok_or_else(|| wrong("it is resolved, but no version is named".into()))?;
                Ok(Some(Fix::Version(newest.to_owned())))
            }
            (status, _) => Err(wrong(format!("its status is {:?}", status.chars().take(32).collect::<String>()))),
        }
    }

    /// Stops serde, and keeps the error.
    fn refuse<E: serde::de::Error>(&mut self, error: Error) -> E {
        self.refused = Some(error);
        E::custom("refused")
    }
}

/// `{package: {...}}`.
struct Packages<'a, 'b>(&'a mut Reading<'b>);

/// `{issue: {...}}`.
struct Issues<'a, 'b>(&'a mut Reading<'b>, String);

/// `{"description", "scope", "releases"}`.
struct OneIssue<'a>(&'a str);

/// `{release: {...}}`.
struct Releases<'a>(&'a str);

/// Each of them is read as a map, by its visitor below.
macro_rules! read_as_map {
    ($seed:ident<$($life:lifetime),+>, $value:ty) => {
        impl<'de, $($life),+> DeserializeSeed<'de> for $seed<$($life),+> {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<$value, D::Error> {
                deserializer.deserialize_map(self)
            }
        }
    };
}

read_as_map!(Packages<'a, 'b>, ());
read_as_map!(Issues<'a, 'b>, ());
read_as_map!(OneIssue<'a>, Issue);
read_as_map!(Releases<'a>, Option<Release>);

impl<'de> Visitor<'de> for Packages<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packages")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(package) = map.next_key::<String>()? {
            if !guard::is_package(&package) {
                let wrong = Error::entry(self.0.from, "?", &package, "this is not the name of a source package");
                return Err(self.0.refuse(wrong));
            }
            map.next_value_seed(Issues(self.0, package))?;
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Issues<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("issues of a package")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Self(reading, package) = self;
        while let Some(id) = map.next_key::<String>()? {
            if !guard::is_id(&id) {
                let wrong = Error::entry(reading.from, &id, &package, "this is not the name of an advisory");
                return Err(reading.refuse(wrong));
            }
            let issue = map.next_value_seed(OneIssue(reading.release))?;
            reading.take(&package, &id, issue).map_err(|e| reading.refuse::<A::Error>(e))?;
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for OneIssue<'_> {
    type Value = Issue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an issue")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Issue, A::Error> {
        let mut issue = Issue::default();
        let mut told = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "description" => issue.description = map.next_value()?,
                "scope" => issue.scope = map.next_value()?,
                "releases" => {
                    issue.release = map.next_value_seed(Releases(self.0))?;
                    told = true;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if told { Ok(issue) } else { Err(A::Error::missing_field("releases")) }
    }
}

impl<'de> Visitor<'de> for Releases<'_> {
    type Value = Option<Release>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("releases of an issue")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Option<Release>, A::Error> {
        let mut found = None;
        while let Some(release) = map.next_key::<String>()? {
            if release == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}
