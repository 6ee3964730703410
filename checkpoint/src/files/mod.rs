//! Copies a directory tree to another host: a pod's writable layer, or a read-only layer.
//!
//! A [`Sender`] looks at the tree and emits [`Op`]s; a [`Receiver`] on the other host applies them. The first pass
//! sends everything; every later one only what changed since, file by file, and block by block in big files. Passes
//! run while the pod does, except the last, which alone decides what the target ends up with.
//!
//! What must hold: whatever a live pass saw half-written, the frozen pass repairs; whatever a peer sends, nothing
//! outside the receiver's root is touched. This module knows no sockets: the caller carries the ops over.

mod blocks;
mod bytes;
mod diff;
mod digest;
mod handle;
mod meta;
mod op;
mod path;
mod receive;
mod send;
mod tree;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use diff::{Action, Plan, What, diff};
pub use digest::{Digest, digest};
pub use meta::{Meta, Time, Xattr};
pub use op::{MAX_CHUNK, Node, Op, Open};
pub use path::RelPath;
pub use receive::Receiver;
pub use send::{Mode, PassReport, Sender, Unverified};
pub use tree::{Entry, Inode, Kind, Tree, disk_usage};

/// Why a tree could not be read, sent or applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A path that cannot be sent or must not be accepted.
    #[error("path {path:?} refused: {reason}")]
    Path {
        /// The path, as text for people.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An operation that no sender of ours emits.
    #[error("operation on {path:?} refused: {reason}")]
    Op {
        /// The path it names.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device node in the tree, which is never copied.
    #[error("{} is a device node, which is not copied: remove it from the tree", .0.display())]
    Device(PathBuf),
    /// A file changed during a pass that expects nobody to write.
    #[error("{} changed while the pod was frozen", .0.display())]
    Changed(PathBuf),
    /// A text that is no digest.
    #[error("{0:?} is not a digest: sha256: and 64 hexadecimal digits expected")]
    Digest(String),
    /// The caller's sink did not take an operation.
    #[error("cannot hand over a file operation: {0}")]
    Sink(#[source] io::Error),
}

/// Result with this module's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let path = path.into();
        move |errno| Error::Io { action, path, source: errno.into() }
    }
}
