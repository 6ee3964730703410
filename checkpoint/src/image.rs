//! A checkpoint image: one file that holds everything a pod needs to run again, and that notices any change to itself.
//!
//! ```text
//! 0        64                                              length - manifest length        length
//! | header | part | part | part | ...                      | manifest                          |
//! ```
//!
//! The **header** has a fixed form in every format version: magic, version, length of the file, length and checksum of
//! the manifest, and its own checksum. **Parts** are stored bytes, plain or one zstd frame each, with nothing between
//! them. The **manifest** (bincode 2) comes last and describes the pod and each part.
//!
//! Sizes and checksums of streamed parts are known only at their end, so the file is written front to back in one
//! pass with a blank header, which is filled in at the very end. A footer in its place would allow writing to a pipe, which nobody
//! needs; a header that knows the file's length can say *how much* of a cut file is missing, and a file that was never
//! finished has no header at all. Every byte is covered by exactly one checksum: header, manifest, or a part's, which
//! is taken over the stored bytes (checking costs no decompression, and no bit of a zstd frame is left out).
//!
//! [`Image::open`] reads header and manifest alone; [`Image::verify`] reads everything and comes before anything on the
//! host is touched. Images hold the memory of processes: they are made with mode 0600, and their parts
//! belong into folders that are closed to others.

mod bounded;
mod error;
mod header;
mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use error::Error;
pub use header::{FORMAT, OLDEST};
pub use manifest::{Compression, Kind, MAX_MANIFEST, Manifest, ManifestError, Meta, Part, limits};
pub use read::{Image, PartReader};
pub use write::{PartWriter, ReadAt, Writer};

/// Bytes moved at once: large enough for few system calls, small enough to stay in a core's cache while hashed.
const BUFFER: usize = 1 << 20;
