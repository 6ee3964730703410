//! What is kept of a feed: an extract for one release, and its state. A reader sees the old or the new of each, never half.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Crc;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::error::{Error, Result};
use super::{Feed, FeedState, Fix, Urgency};

/// First line of an extract; other content, another number.
const HEADER: &str = "podd advisories 1\n";
/// Most entries of an extract. The tracker had some 40,000 for one release in 2023.
const MAX_ENTRIES: u64 = 500_000;
/// Largest extract in bytes.
const MAX_EXTRACT: u64 = 256 << 20;
/// Longest line of an extract in bytes; debsecan's, the longest, are of 256 KiB and become twice as long.
const MAX_LINE: u64 = 1 << 20;
/// Largest state in bytes.
const MAX_STATE: u64 = 64 << 10;
/// Begins the names of unfinished files.
const UNFINISHED: &str = ".new-";

/// What a feed says about one package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    /// None: the release is not affected, which overrules what less trusted feeds say.
    pub fixed: Option<Fix>,
    /// None: the feed has no opinion.
    pub urgency: Option<Urgency>,
    pub remote: Option<bool>,
    pub summary: String,
}

/// The state of a feed, as kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    #[serde(flatten)]
    pub shown: FeedState,
    /// For `If-None-Match`.
    pub etag: Option<String>,
    /// For `If-Modified-Since`, as the server wrote it.
    pub modified: Option<String>,
}

/// Where a feed's extract and state are.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    dir: PathBuf,
    name: String,
}

impl Slot {
    /// The release must be a codename: it is part of the file's name.
    pub(super) fn new(dir: &Path, feed: Feed, release: &str) -> Self {
        Self { dir: dir.to_owned(), name: format!("{}-{release}", feed.name()) }
    }

    pub(super) fn list(&self) -> PathBuf {
        self.dir.join(format!("{}.list", self.name))
    }

    fn state(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    /// The state; none: there is none, or none that can be read, and the next refresh writes one.
    pub(super) fn load(&self) -> Option<State> {
        let mut text = String::new();
        File::open(self.state()).ok()?.take(MAX_STATE).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(super) fn store(&self, state: &State) -> Result<()> {
        let mut file = temporary(&self.dir)?;
        let path = self.state();
        serde_json::to_writer(&mut file, state).map_err(|e| Error::io("write", &path)(e.into()))?;
        rename(file, &path)
    }

    /// Reads the extract: `line` gets the key and the rest of lines whose key is wanted. What it was given before an error must
    /// be forgotten: the file is damaged.
    pub(super) fn scan(
        &self,
        wanted: impl Fn(&[u8]) -> bool,
        mut line: impl FnMut(&str, &str) -> Result<()>,
    ) -> Result<u64> {
        let path = self.list();
        let damaged = || Error::Cache(path.clone());
        let mut file = BufReader::with_capacity(256 << 10, File::open(&path).map_err(Error::io("open", &path))?);
        let (mut crc, mut entries, mut text) = (Crc::new(), 0, Vec::new());
        // Lines of a package mostly follow each other.
        let mut last = (Vec::new(), false);
        loop {
            text.clear();
            let mut bounded = (&mut file).take(MAX_LINE);
            if bounded.read_until(b'\n', &mut text).map_err(Error::io("read", &path))? == 0 {
                return Err(damaged());
            }
            if text.starts_with(b"end ") && text == end(entries, &crc).as_bytes() {
                return Ok(entries);
            }
            let first = crc.amount() == 0;
            crc.update(&text);
            if first {
                match text == HEADER.as_bytes() {
                    true => continue,
                    false => return Err(damaged()),
                }
            }
            entries += 1;
            let tab = text.iter().position(|byte| *byte == b'\t').ok_or_else(damaged)?;
            if last.0 != text[..tab] {
                last = (text[..tab].to_owned(), wanted(&text[..tab]));
            }
            if last.1 {
                let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
                line(&text[..tab], text[tab + 1..].trim_end_matches('\n'))?;
            }
        }
    }

    /// Whether the extract is as it was written.
    pub(super) fn is_whole(&self) -> bool {
        self.scan(|_| false, |_, _| Ok(())).is_ok()
    }
}

/// An extract that is being written: lines of a key (source package, or CVE), a tab and JSON.
#[derive(Debug)]
pub(super) struct Extract {
    file: BufWriter<NamedTempFile>,
    from: String,
    crc: Crc,
    bytes: u64,
    entries: u64,
}

impl Extract {
    pub(super) fn new(dir: &Path, from: &str) -> Result<Self> {
        let file = BufWriter::with_capacity(256 << 10, temporary(dir)?);
        let mut new = Self { file, from: from.to_owned(), crc: Crc::new(), bytes: 0, entries: 0 };
        new.write(HEADER)?;
        Ok(new)
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    pub(super) fn add(&mut self, package: &str, record: &Record) -> Result<()> {
        let json = serde_json::to_string(record).map_err(|e| Error::io("write", self.path())(e.into()))?;
        self.add_line(package, &json)
    }

    pub(super) fn add_line(&mut self, key: &str, rest: &str) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Error::TooMany { from: self.from.clone(), limit: MAX_ENTRIES });
        }
        self.write(&format!("{key}\t{rest}\n"))
    }

    /// Puts it in place of the old one.
    pub(super) fn finish(mut self, slot: &Slot) -> Result<u64> {
        self.write(&end(self.entries, &self.crc))?;
        let path = self.path();
        let file = self.file.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        rename(file, &slot.list())?;
        Ok(self.entries)
    }

    fn path(&self) -> PathBuf {
        self.file.get_ref().path().to_owned()
    }

    fn write(&mut self, line: &str) -> Result<()> {
        self.bytes += line.len() as u64;
        if self.bytes > MAX_EXTRACT {
            return Err(Error::TooLarge { what: format!("the extract of {}", self.from), limit: MAX_EXTRACT });
        }
        self.crc.update(line.as_bytes());
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", self.path())(e))
    }
}

/// Last line of an extract: without it the file is not whole.
fn end(entries: u64, crc: &Crc) -> String {
    format!("end {entries} {:08x}\n", crc.sum())
}

/// Makes the folder, and forgets what was left unfinished by a crash. Refreshes of one cache must not overlap.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            match fs::remove_file(entry.path()) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", entry.path())(e)),
                _ => {}
            }
        }
    }
    Ok(())
}

pub(super) fn temporary(dir: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(Error::io("write into", dir))
}

#[expect(clippy::disallowed_methods, reason = "file and folder are synced here")]
fn rename(file: NamedTempFile, path: &Path) -> Result<()> {
    file.as_file().sync_all().map_err(Error::io("sync", path))?;
    file.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}
