//! What goes over the wire: the few operations from which the other host builds the tree.
//!
//! They hold no absolute path, no file descriptor and no device number, so a peer cannot even express most of what
//! must be refused. Their order matters: `Data` and `Hole` mean the file opened last.

use serde::{Deserialize, Serialize};

use super::{Error, Meta, RelPath, Result, bytes};

/// Most bytes in one [`Op::Data`].
pub const MAX_CHUNK: usize = 1 << 20;
/// Most bytes of names and values of one object's extended attributes.
const MAX_XATTRS: usize = 1 << 20;
/// `PATH_MAX` without the closing NUL.
const MAX_TARGET: usize = 4095;

/// One step; applying it twice in a row does no harm. Encoded it is never larger than 1.5 MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A pass starts.
    Begin {
        /// Empty the target first: the sender does not know what is there.
        fresh: bool,
    },
    /// Remove one name, of an empty directory or of anything else; it may be gone already.
    Remove {
        /// Which.
        path: RelPath,
    },
    /// Make a directory unless there is one.
    Mkdir {
        /// Where.
        path: RelPath,
    },
    /// Make `path` the file that `Data` and `Hole` mean, and give it a length.
    Open {
        /// Which.
        path: RelPath,
        /// Length in bytes.
        size: u64,
        /// What becomes of the present content.
        how: Open,
    },
    /// Write into the open file.
    Data {
        /// Where, in bytes.
        offset: u64,
        /// At most [`MAX_CHUNK`] bytes.
        #[serde(with = "bytes")]
        bytes: Vec<u8>,
    },
    /// Free a range of the open file; it reads as zeros.
    Hole {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Give what `from` names a further name; replaces what is there unless it is a directory.
    Link {
        /// A name that it has.
        from: RelPath,
        /// The new name.
        path: RelPath,
    },
    /// Make a symlink; replaces what is there unless it is a directory.
    Symlink {
        /// Where.
        path: RelPath,
        /// Where it points; any bytes but NUL.
        #[serde(with = "bytes")]
        target: Vec<u8>,
    },
    /// Make a special file; replaces what is there unless it is a directory.
    Node {
        /// Where.
        path: RelPath,
        /// Of which type.
        node: Node,
    },
    /// Set mode, owner, time and exactly these attributes. Comes after all that changes the object.
    Meta {
        /// Of which object; the root is allowed.
        path: RelPath,
        /// What it shall have.
        meta: Meta,
    },
}

/// What [`Op::Open`] does to present content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// A new file; another of that name is removed, its other hard links stay as they are.
    Create,
    /// The same file, emptied.
    Replace,
    /// The same file; what is not written stays.
    Patch,
}

/// Special files that are copied. Devices are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Overlayfs's mark for a deleted name: character device 0:0.
    Whiteout,
}

impl Op {
    /// Whether it changes neither names nor types.
    pub(super) fn is_content(&self) -> bool {
        matches!(self, Op::Open { how: Open::Patch, .. } | Op::Data { .. } | Op::Hole { .. } | Op::Meta { .. })
    }

    /// Checks the bounds above; both ends do, so that a sender notices first.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |path: &RelPath, reason| Err(Error::Op { path: path.text(), reason });
        match self {
            Op::Begin { .. } => Ok(()),
            Op::Remove { path }
            | Op::Mkdir { path }
            | Op::Open { path, .. }
            | Op::Link { path, .. }
            | Op::Symlink { path, .. }
            | Op::Node { path, .. }
                if path.is_root() =>
            {
                refuse(path, "it names the root")
            }
            Op::Link { from, .. } if from.is_root() => refuse(from, "it links the root"),
            Op::Symlink { path, target } if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) => {
                refuse(path, "the link's target is empty, too long or has a NUL byte")
            }
            Op::Data { bytes, .. } if bytes.len() > MAX_CHUNK => refuse(&RelPath::root(), "more than 1 MiB of data"),
            Op::Meta { path, meta } => {
                let size: usize = meta.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 16).sum();
                if size > MAX_XATTRS {
                    return refuse(path, "more than 1 MiB of extended attributes");
                }
                if meta.mode & !0o7777 != 0 || meta.mtime.nanos >= 1_000_000_000 {
                    return refuse(path, "mode or time out of range");
                }
                if meta.xattrs.iter().any(|xattr| xattr.name.is_empty() || xattr.name.contains(&0)) {
                    return refuse(path, "an attribute's name is empty or has a NUL byte");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
