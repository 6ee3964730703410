//! debsecan's data for a release: zlib-compressed text. Read as `usr/bin/debsecan` 0.4.20.1 does.
//!
//! ```text
//! VERSION 1
//! CVE-2024-1234,,description                                the issues, numbered from 0
//!
//! openssl,0,SHRF,3.0.12-1,1.1.1n-0+deb11u6 3.0.11-1~deb12u2   package, issue, flags, in unstable, others
//!
//! openssl,libssl3 openssl                                   source and binary packages; not needed here
//! ```
//! Flags (`Vulnerability.__init__`): `B` if it is a binary package's name; urgency `L`, `M`, `H` or blank; remote `R`, blank
//! for no, `?`; `F` if the release has a fix.
//!
//! The rule (`Vulnerability.is_vulnerable`): an installed version is vulnerable if it is older than the one in unstable,
//! or that is missing, and it is none of the others. The others are of all releases in one list, and nothing says which
//! belongs to which (`calculateDebsecan1` in the tracker's `security_db.py` merges them), so no single version
//! stands for the release, and [`Fix::Listed`] keeps the rule as it is. `F` tells whether one of them is of this release.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};

use debversion::Version;
use flate2::read::ZlibDecoder;

use super::cache::{Extract, Record};
use super::error::{Error, Result};
use super::version::parse as version;
use super::{Feed, Fix, Urgency, guard};

/// Longest line in bytes. The kernel's list of other versions has some thousands.
const MAX_LINE: u64 = 256 << 10;
/// Most memory for the names of issues: 45,000 in 2023, at most 74 characters each.
const MAX_NAMES: usize = 24 << 20;

/// Reads all and keeps it, as the data is of one release.
pub(super) fn parse(file: impl Read, from: &str, release: &str, out: &mut Extract) -> Result<()> {
    let limit = Feed::Debsecan.limit();
    let text = guard::Capped::new(ZlibDecoder::new(guard::Capped::new(file, from, limit)), from, limit);
    let mut lines = Lines { text: BufReader::new(text), from, line: Vec::new(), number: 0 };
    if lines.next()? != Some("VERSION 1") {
        return Err(lines.wrong("its first line is not \"VERSION 1\""));
    }
    let issues = issues(&mut lines)?;
    let mut known = Known::default();
    while let Some(line) = lines.section()? {
        let (package, record) = record(line, &issues, &mut known).map_err(|why| why.error(from, lines.number))?;
        out.add(&package, &record)?;
    }
    while lines.next()?.is_some() {} // The rest too must be there.
    match out.entries() {
        0 => Err(Error::Empty { from: from.to_owned(), release: release.to_owned() }),
        _ => Ok(()),
    }
}

struct Lines<'a, R> {
    text: BufReader<R>,
    from: &'a str,
    line: Vec<u8>,
    number: u64,
}

impl<R: Read> Lines<'_, R> {
    fn next(&mut self) -> Result<Option<&str>> {
        self.line.clear();
        self.number += 1;
        let mut bounded = (&mut self.text).take(MAX_LINE);
        if bounded.read_until(b'\n', &mut self.line).map_err(|e| Error::read(e, self.from))? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() as u64 == MAX_LINE {
            return Err(Error::TooLarge { what: format!("line {} of {}", self.number, self.from), limit: MAX_LINE });
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(Error::format(self.from, &format!("line {} is not UTF-8", self.number))),
        }
    }

    /// The next line of a section, which an empty line ends.
    fn section(&mut self) -> Result<Option<&str>> {
        Ok(self.next()?.filter(|line| !line.is_empty()))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::format(self.from, &format!("{what} (line {})", self.number))
    }
}

/// Names and descriptions, by number.
fn issues<R: Read>(lines: &mut Lines<'_, R>) -> Result<Vec<(Box<str>, Box<str>)>> {
    let (mut issues, mut bytes) = (Vec::new(), 0);
    while let Some(line) = lines.section()? {
        let mut fields = line.splitn(3, ',');
        let issue = fields.next().zip(fields.nth(1)).filter(|(id, _)| guard::is_id(id));
        let issue = issue.map(|(id, text)| (id.into(), guard::summary(text).into_boxed_str()));
        let issue: (Box<str>, Box<str>) = issue.ok_or_else(|| lines.wrong("this names no issue"))?;
        bytes += issue.0.len() + issue.1.len() + 2 * size_of::<Box<str>>();
        if bytes > MAX_NAMES {
            let what = format!("the list of issues of {}", lines.from);
            return Err(Error::TooLarge { what, limit: MAX_NAMES as u64 });
        }
        issues.push(issue);
    }
    Ok(issues)
}

/// Why a line is no record.
enum Wrong {
    Line(&'static str),
    Entry { id: String, package: String, reason: String },
}

impl Wrong {
    fn error(self, from: &str, number: u64) -> Error {
        match self {
            Self::Line(what) => Error::format(from, &format!("{what} (line {number})")),
            Self::Entry { id, package, reason } => Error::entry(from, &id, &package, reason),
        }
    }
}

type Issues = [(Box<str>, Box<str>)];

fn record(line: &str, issues: &Issues, known: &mut Known) -> std::result::Result<(String, Record), Wrong> {
    let fields: Vec<&str> = line.splitn(5, ',').collect();
    let &[package, number, flags, unstable, others] = &fields[..] else {
        return Err(Wrong::Line("a record has five fields"));
    };
    let issue = number.parse().ok().and_then(|number: usize| issues.get(number));
    let (id, summary) = issue.ok_or(Wrong::Line("a record's issue is not in the list"))?;
    let wrong =
        |reason: String| Wrong::Entry { id: id.to_string(), package: package.chars().take(64).collect(), reason };
    if !guard::is_package(package) {
        return Err(wrong("this is not the name of a package".into()));
    }
    let &[_, urgency, remote, released, ..] = flags.as_bytes() else {
        return Err(wrong(format!("its flags are {flags:?}")));
    };
    // The script takes no other letters either.
    let urgency = match urgency {
        b' ' => None,
        b'L' => Some(Urgency::Low),
        b'M' => Some(Urgency::Medium),
        b'H' => Some(Urgency::High),
        _ => return Err(wrong(format!("its flags are {flags:?}"))),
    };
    let remote = match remote {
        b'?' => None,
        b'R' => Some(true),
        b' ' => Some(false),
        _ => return Err(wrong(format!("its flags are {flags:?}"))),
    };
    let fixed = fix(unstable, others, released == b'F', known).map_err(wrong)?;
    Ok((package.to_owned(), Record { id: id.to_string(), fixed, urgency, remote, summary: summary.to_string() }))
}

/// Versions that were read: a package's records all list much the same ones, and follow each other.
#[derive(Default)]
struct Known(HashMap<String, Version>);

impl Known {
    const MOST: usize = 4096;

    fn get(&mut self, text: &str) -> std::result::Result<&Version, String> {
        if !self.0.contains_key(text) {
            let read = version(text).map_err(|e| format!("{:?} is not a Debian version: {}", e.version, e.reason))?;
            if self.0.len() >= Self::MOST {
                self.0.clear();
            }
            self.0.insert(text.to_owned(), read);
        }
        Ok(&self.0[text])
    }
}

/// Others that are not older than the one in unstable are left out: that makes them sound anyway.
fn fix(unstable: &str, others: &str, released: bool, known: &mut Known) -> std::result::Result<Option<Fix>, String> {
    if unstable == "0" {
        return Ok(None);
    }
    let below = if unstable.is_empty() { None } else { Some(known.get(unstable)?.clone()) };
    let mut sound = Vec::new();
    for other in others.split(' ').filter(|other| !other.is_empty()) {
        let version = known.get(other)?;
        if below.as_ref().is_none_or(|below| version < below) {
            sound.push(other.to_owned());
        }
    }
    Ok(Some(match (below, sound.is_empty()) {
        (None, true) => Fix::NotYet,
        (Some(_), true) if released => Fix::Version(unstable.to_owned()),
        (below, _) => Fix::Listed { below: below.map(|_| unstable.to_owned()), sound, released },
    }))
}
