//! What can be wrong with an image: one sentence each.

use std::io;
use std::path::{Path, PathBuf};

use super::header::{FORMAT, OLDEST};
use super::manifest::ManifestError;

/// Why an image was not written or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image of ours at all.
    #[error("{} is not a pod image", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The end is missing.
    #[error("image {} is truncated: expected {expected} bytes, has {actual}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have; at least so many if not even the header is whole.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Something follows the end.
    #[error("image {} is damaged: expected {expected} bytes, has {actual}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Its writer stopped before the end.
    #[error("image {} was never finished", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// The first bytes do not match their checksum.
    #[error("the header of image {} is damaged", path.display())]
    DamagedHeader {
        /// The file.
        path: PathBuf,
    },
    /// The manifest does not match its checksum, does not decode or contradicts itself.
    #[error("the manifest of image {} is damaged: {source}", path.display())]
    DamagedManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A part does not match its checksum or its size.
    #[error("part {part} of image {} is damaged: {reason}", path.display())]
    DamagedPart {
        /// The file.
        path: PathBuf,
        /// The part's name.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a newer podd.
    #[error("image {} has format version {found}, this build reads up to {FORMAT}: upgrade podd", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Written by a podd that is too old.
    #[error("image {} has format version {found}, this build reads {OLDEST} to {FORMAT}: restore it with the podd that wrote it", path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The image has no such part.
    #[error("image {} has no part {part}", path.display())]
    NoPart {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        part: String,
    },
    /// What was to be written would not be accepted by a reader.
    #[error("image {} cannot be written: {source}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: ManifestError,
    },
    /// A part was begun and not finished: the image is of no more use.
    #[error("image {} cannot be written: part {part} was left half-written", path.display())]
    HalfPart {
        /// The file.
        path: PathBuf,
        /// The part's name.
        part: String,
    },
    /// Another writer is at work on the same image.
    #[error("image {} is being written by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the system refused `op` on `path`. An error of ours that had to pass through [`io::Error`]
    /// comes out as it was.
    pub(super) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => Self::Io { op, path: path.to_owned(), source },
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the error inside; `downcast` gives it back.
    fn from(error: Error) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
