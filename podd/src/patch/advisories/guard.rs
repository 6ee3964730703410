//! Readers that bound what is read, and checks of names and dates: feeds are not trusted.

use std::io::{self, BufRead, BufReader, Read};

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;

use super::error::{Error, Result};

/// Deepest nesting of a feed's JSON; the tracker has 5 levels, OSV 7.
const MAX_DEPTH: u32 = 32;
/// Longest summary, in characters.
const MAX_SUMMARY: usize = 200;

/// At most so many bytes; one more is an error, not an end.
pub(super) struct Capped<'a, R> {
    inner: R,
    what: &'a str,
    limit: u64,
    read: u64,
}

impl<'a, R> Capped<'a, R> {
    pub(super) fn new(inner: R, what: &'a str, limit: u64) -> Self {
        Self { inner, what, limit, read: 0 }
    }
}

impl<R: Read> Read for Capped<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        match self.read > self.limit {
            true => Err(io::Error::other(Error::TooLarge { what: self.what.to_owned(), limit: self.limit })),
            false => Ok(n),
        }
    }
}

/// Bounds JSON while it is read: how large one entry (a value so many levels deep) and how long one string may be, and how
/// deep values nest. `serde_json` holds a string, and skips nesting with a stack, in memory of any size.
pub(super) struct JsonGuard<'a, R> {
    inner: R,
    from: &'a str,
    entry_depth: u32,
    limit: u64,
    depth: u32,
    string: Option<u64>,
    escaped: bool,
    entry: u64,
}

impl<'a, R> JsonGuard<'a, R> {
    /// `entry_depth`: at how many open brackets an entry begins.
    pub(super) fn new(inner: R, from: &'a str, entry_depth: u32, limit: u64) -> Self {
        Self { inner, from, entry_depth, limit, depth: 0, string: None, escaped: false, entry: 0 }
    }

    /// Whether the byte is still within bounds.
    fn see(&mut self, byte: u8) -> bool {
        match (&mut self.string, byte) {
            (Some(_), _) if self.escaped => self.escaped = false,
            (Some(_), b'\\') => self.escaped = true,
            (Some(_), b'"') => self.string = None,
            (Some(length), _) => *length += 1,
            (None, b'"') => self.string = Some(0),
            (None, b'{' | b'[') => self.depth += 1,
            (None, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.entry = if self.depth >= self.entry_depth { self.entry + 1 } else { 0 };
        self.entry.max(self.string.unwrap_or(0)) <= self.limit && self.depth <= MAX_DEPTH
    }

    fn error(&self) -> Error {
        match self.depth > MAX_DEPTH {
            true => Error::format(self.from, &format!("its values nest deeper than {MAX_DEPTH} levels")),
            false => Error::TooLarge { what: format!("one entry of {}", self.from), limit: self.limit },
        }
    }
}

impl<R: Read> Read for JsonGuard<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        match buf[..n].iter().all(|byte| self.see(*byte)) {
            true => Ok(n),
            false => Err(io::Error::other(self.error())),
        }
    }
}

/// The text, unpacked if it is gzip, with both bounds.
pub(super) fn json<'a>(
    file: impl Read + 'a,
    from: &'a str,
    limit: u64,
    entry_depth: u32,
    entry_limit: u64,
) -> Result<BufReader<Box<dyn Read + 'a>>> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let gzip = file.fill_buf().map_err(|e| Error::read(e, from))?.starts_with(&[0x1f, 0x8b]);
    let text: Box<dyn Read + 'a> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let guard = JsonGuard::new(Capped::new(text, from, limit), from, entry_depth, entry_limit);
    Ok(BufReader::with_capacity(64 << 10, Box::new(guard)))
}

/// A source package's name: Debian Policy 5.6.1.
pub(super) fn is_package(name: &str) -> bool {
    (2..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

/// An advisory's name, such as `CVE-2024-1234`, `DSA-5678-1` or `TEMP-0000000-1A2B3C`.
pub(super) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
}

/// A CVE's name.
pub(super) fn is_cve(id: &str) -> bool {
    is_id(id) && id.starts_with("CVE-")
}

/// A release's codename; it becomes part of file names.
pub(super) fn is_release(release: &str) -> bool {
    (1..=32).contains(&release.len()) && release.bytes().all(|b| b.is_ascii_lowercase())
}

/// One line of at most 200 characters.
pub(super) fn summary(text: &str) -> String {
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
        let gap = usize::from(length > 0);
        let room = MAX_SUMMARY.saturating_sub(length + gap);
        if room == 0 {
            break;
        }
        line.push_str(&" "[..gap]);
        line.extend(word.chars().take(room));
        length += gap + word.chars().count().min(room);
    }
    line
}

/// A date from 1990 to 2200: others come from broken clocks and broken data.
pub(super) fn date(from: &str, what: &'static str, date: Option<Timestamp>, value: &str) -> Result<Timestamp> {
    const SECONDS: std::ops::Range<i64> = 631_152_000..7_289_654_400;
    match date {
        Some(date) if SECONDS.contains(&date.as_second()) => Ok(date),
        _ => Err(Error::Date { from: from.to_owned(), what, value: value.chars().take(64).collect() }),
    }
}
