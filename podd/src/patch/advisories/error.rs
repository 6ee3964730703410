//! Why a feed could not be taken, in a sentence, with a cure. The last good data stays in every case.

use std::io;
use std::path::PathBuf;

use super::version::BadVersion;

/// Why a feed was refused or could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {doing} {}: {source}\n  cure: check the path, its owner and the space on its disk", path.display())]
    Io {
        /// Verb.
        doing: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Not the name of a release, which becomes part of file names and addresses.
    #[error("{0:?} is not the codename of a Debian release\n  cure: give one such as bookworm; /etc/os-release has it")]
    Release(String),
    /// OSV numbers releases, and this one has no number that we know.
    #[error("OSV has no name for the release {0:?}\n  cure: leave out `osv` for hosts of this release")]
    Unnumbered(String),
    /// A place that is neither a file nor a folder.
    #[error("{} is not a regular file\n  cure: name a file or a folder", .0.display())]
    NotFile(PathBuf),
    /// A folder without what was looked for.
    #[error("there is no {wanted} in {}\n  cure: copy the feed into the folder", dir.display())]
    NoFile {
        /// Folder.
        dir: PathBuf,
        /// Such as `*.json`.
        wanted: String,
    },
    /// The mirror does not answer, or breaks off.
    #[error("cannot fetch {url}: {reason}\n  cure: check the mirror and the network between")]
    Unreachable {
        /// Address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The mirror answers too slowly.
    #[error("{url} was not there after {seconds} s\n  cure: use a nearer mirror, or raise `timeout`")]
    Slow {
        /// Address.
        url: String,
        /// The limit that was reached.
        seconds: i64,
    },
    /// The mirror answers, but not with the feed.
    #[error("{url} answers with HTTP status {status}\n  cure: check the address, also in a browser")]
    Status {
        /// Address.
        url: String,
        /// Its status.
        status: u16,
    },
    /// More bytes than a feed has.
    #[error("{what} is larger than {limit} bytes\n  cure: check that it is the feed; no real one is so large")]
    TooLarge {
        /// Such as the address, or `one entry of ...`.
        what: String,
        /// Limit in bytes.
        limit: u64,
    },
    /// More entries than a feed has.
    #[error("{from} has more than {limit} entries\n  cure: check that it is the feed; no real one has so many")]
    TooMany {
        /// File or address.
        from: String,
        /// Limit.
        limit: u64,
    },
    /// The end is missing.
    #[error("{from} ends in the middle\n  cure: fetch it again; if it is a file, copy it again")]
    Half {
        /// File or address.
        from: String,
    },
    /// Not the format.
    #[error("{from} is not in the format of the feed: {reason}\n  cure: check that the address leads to the feed")]
    Format {
        /// File or address.
        from: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// An entry with something that cannot be: then none of the data is trusted.
    #[error(
        "{from} has a wrong entry, {id} of package {package}: {reason}\n  cure: fetch it again, or tell its publisher"
    )]
    Entry {
        /// File or address.
        from: String,
        /// Advisory.
        id: String,
        /// Source package, or `?`.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// Nothing is known about the release, which is no good news.
    #[error("{from} has no entry for {release}\n  cure: check that the feed still covers the release")]
    Empty {
        /// File or address.
        from: String,
        /// Release, or what else was looked for.
        release: String,
    },
    /// A date that cannot be.
    #[error(
        "{what} of {from} is {value:?}, not a date from 1990 to 2200\n  cure: fetch it again, or set the file's time"
    )]
    Date {
        /// File or address.
        from: String,
        /// Which date.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// Not the file that the checksum was made of.
    #[error("{from} has SHA-256 {found}, its checksum says {wanted}\n  cure: fetch it again; do not use it as it is")]
    Checksum {
        /// File or address.
        from: String,
        /// From the file beside.
        wanted: String,
        /// Of what was read.
        found: String,
    },
    /// The file beside holds no checksum.
    #[error("{0} does not begin with a SHA-256 in hex\n  cure: write it with sha256sum, or set checksum = false")]
    NoChecksum(String),
    /// What podd itself keeps is not as it was written.
    #[error("{} is damaged\n  cure: the next refresh replaces it", .0.display())]
    Cache(PathBuf),
}

/// Result of what can refuse a feed.
pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// A refused read, or what one of our readers put into it.
    pub(super) fn read(e: io::Error, from: &str) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Half { from: from.to_owned() },
            _ => e.downcast::<Self>().unwrap_or_else(|e| Self::Format { from: from.to_owned(), reason: e.to_string() }),
        }
    }

    pub(super) fn json(e: serde_json::Error, from: &str) -> Self {
        match e.classify() {
            serde_json::error::Category::Io => Self::read(e.into(), from),
            serde_json::error::Category::Eof => Self::Half { from: from.to_owned() },
            _ => Self::format(from, &e.to_string()),
        }
    }

    /// The reason may quote the feed, so it is shortened.
    pub(super) fn format(from: &str, reason: &str) -> Self {
        let reason = reason.chars().filter(|c| !c.is_control()).take(200).collect();
        Self::Format { from: from.to_owned(), reason }
    }

    pub(super) fn entry(from: &str, id: &str, package: &str, reason: impl Into<String>) -> Self {
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(64).collect();
        Self::Entry { from: from.to_owned(), id: short(id), package: short(package), reason: reason.into() }
    }

    pub(super) fn version(from: &str, id: &str, package: &str, e: &BadVersion) -> Self {
        Self::entry(from, id, package, format!("{:?} is not a Debian version: {}", e.version, e.reason))
    }
}
