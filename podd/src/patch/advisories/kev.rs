//! CISA's catalog of known exploited vulnerabilities: which CVEs, nothing about packages.

use std::fmt;
use std::io::Read;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::cache::Extract;
use super::error::{Error, Result};
use super::{Feed, guard};

/// Largest entry in bytes.
const MAX_ENTRY: u64 = 1 << 20;

/// Reads all, keeps the names; the result is the catalog's own date.
pub(super) fn parse(file: impl Read, from: &str, out: &mut Extract) -> Result<Timestamp> {
    let text = guard::json(file, from, Feed::Kev.limit(), 3, MAX_ENTRY)?;
    let mut json = serde_json::Deserializer::from_reader(text);
    let mut reading = Reading { from, out, refused: None };
    let read = Catalog(&mut reading).deserialize(&mut json).and_then(|told| json.end().map(|()| told));
    let (count, released) = match reading.refused.take() {
        Some(refused) => return Err(refused),
        None => read.map_err(|e| Error::json(e, from))?,
    };
    let found = reading.out.entries();
    if found == 0 {
        return Err(Error::Empty { from: from.to_owned(), release: "any vulnerability".into() });
    }
    if count != found {
        let reason = format!("it has {found} entries, but says that it has {count}");
        return Err(Error::Format { from: from.to_owned(), reason });
    }
    guard::date(from, "dateReleased", released.parse().ok(), &released)
}

struct Reading<'a> {
    from: &'a str,
    out: &'a mut Extract,
    /// Our own error, which serde cannot carry.
    refused: Option<Error>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "cveID")]
    id: String,
    date_added: String,
    due_date: Option<String>,
}

impl Reading<'_> {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        if !guard::is_cve(&entry.id) {
            return Err(Error::entry(self.from, &entry.id, "?", "this is not the name of a CVE"));
        }
        for date in std::iter::once(&entry.date_added).chain(&entry.due_date) {
            let day = date.parse::<Date>().ok().and_then(|day| day.to_zoned(TimeZone::UTC).ok());
            guard::date(self.from, "a date", day.map(|day| day.timestamp()), date).map_err(|_| {
                Error::entry(self.from, &entry.id, "?", format!("{date:?} is not a date from 1990 to 2200"))
            })?;
        }
        self.out.add_line(&entry.id, "")
    }
}

/// The catalog; gives `count` and `dateReleased`.
struct Catalog<'a, 'b>(&'a mut Reading<'b>);

/// Its entries.
struct Entries<'a, 'b>(&'a mut Reading<'b>);

impl<'de> DeserializeSeed<'de> for Catalog<'_, '_> {
    type Value = (u64, String);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Catalog<'_, '_> {
    type Value = (u64, String);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a catalog")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let (mut count, mut released) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "count" => count = Some(map.next_value()?),
                "dateReleased" => released = Some(map.next_value()?),
                "vulnerabilities" => map.next_value_seed(Entries(self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let count = count.ok_or_else(|| A::Error::missing_field("count"))?;
        Ok((count, released.ok_or_else(|| A::Error::missing_field("dateReleased"))?))
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of vulnerabilities")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            if let Err(e) = self.0.take(&entry) {
                self.0.refused = Some(e);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
