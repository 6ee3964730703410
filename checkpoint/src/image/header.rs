//! The first 64 bytes: fixed in every format version, so that a newer image is told from a damaged one.
//!
//! ```text
//! 0       8        12         16       24                32                   48        56         64
//! | magic | format | reserved | length | manifest length | manifest checksum  | reserved | checksum |
//!   8 B     u32      u32 (0)    u64      u64               u128 (xxh3)          u64 (0)    u64 (xxh3 of the 56 before)
//! ```

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::error::Error;
use super::manifest::MAX_MANIFEST;

/// The format version that this build writes.
pub const FORMAT: u32 = 1;
/// The oldest format version that this build reads.
pub const OLDEST: u32 = 1;

/// Bytes of the header, where the first part begins.
pub(super) const HEADER: usize = 64;
const MAGIC: [u8; 8] = *b"PODIMG\0\x01";
const CHECKED: usize = 56;

/// Where the manifest is, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Format version.
    pub format: u32,
    /// Bytes of the whole file.
    pub length: u64,
    /// Bytes of the manifest, which ends the file.
    pub manifest_length: u64,
    /// xxh3-128 of the manifest.
    pub manifest_checksum: u128,
}

/// What stands in the header's place while the parts are written.
pub(super) fn unfinished() -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = unfinished();
        bytes[8..12].copy_from_slice(&self.format.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.manifest_length.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.manifest_checksum.to_le_bytes());
        let checksum = xxh3_64(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the first bytes of `path`, a file of `actual` bytes; `start` is shorter than a header only if the file is.
    pub fn decode(start: &[u8], actual: u64, path: &Path) -> Result<Self, Error> {
        let path = || path.to_owned();
        let shown = start.len().min(MAGIC.len());
        if shown == 0 || start[..shown] != MAGIC[..shown] {
            return Err(Error::Foreign { path: path() });
        }
        let Ok(bytes) = <&[u8; HEADER]>::try_from(start) else {
            return Err(Error::Truncated { path: path(), expected: HEADER as u64, actual });
        };
        if *bytes == unfinished() {
            return Err(Error::Unfinished { path: path() });
        }
        if u64_at(bytes, CHECKED) != xxh3_64(&bytes[..CHECKED]) {
            return Err(Error::DamagedHeader { path: path() });
        }
        let (format, length) = (u32_at(bytes, 8), u64_at(bytes, 16));
        if format > FORMAT {
            return Err(Error::Newer { path: path(), found: format });
        }
        if format < OLDEST {
            return Err(Error::TooOld { path: path(), found: format });
        }
        if actual < length {
            return Err(Error::Truncated { path: path(), expected: length, actual });
        }
        if actual > length {
            return Err(Error::TooLong { path: path(), expected: length, actual });
        }
        let header = Self {
            format,
            length,
            manifest_length: u64_at(bytes, 24),
            manifest_checksum: u128::from(u64_at(bytes, 32)) | u128::from(u64_at(bytes, 40)) << 64,
        };
        let room = length.saturating_sub(HEADER as u64).min(MAX_MANIFEST as u64);
        if header.manifest_length > room {
            return Err(Error::DamagedHeader { path: path() });
        }
        Ok(header)
    }

    /// Where the manifest begins, which is where the parts end.
    pub fn manifest_offset(&self) -> u64 {
        self.length - self.manifest_length
    }
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
