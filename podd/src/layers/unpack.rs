//! A layer's tar becomes a directory as overlayfs wants it.
//!
//! The tar is not trusted. Nothing outside the directory is read or written, whatever the tar holds:
//! - Parents are opened with openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS), see [`super::tree`]. An entry below
//!   a path which is a symlink in this layer is *refused*. Following it inside the layer (as a chroot would)
//!   makes directories of default mode which then hide the lower layers' own, since the symlink's target mostly
//!   is in another layer; replacing it loses the link. Layers made from a file tree never contain this.
//! - Absolute names and `..` are refused, for entries and for targets of hard links. Targets of symlinks are data.
//! - Devices are refused, except 0:0, overlayfs's own whiteout. Sparse members are refused (the image
//!   specification advises against them and no builder writes them).
//! - Bytes, entries, depth and length of paths are bounded. Entries that come twice replace each other.
//!
//! Of the extended attributes those that mean something inside a pod are kept, see [`super::xattr`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::tarball::{Entry, Kind, TarStream};
use super::tree::{self, There, Tree, omit_atime};
use super::{Limits, xattr};

/// Largest number of directories above a file: tree walkers hold a descriptor or two for each.
pub(super) const MAX_DEPTH: usize = 128;

/// Largest user or group id of a pod, see the pod's id range of 65,536.
pub(super) const MAX_ID: u64 = 65_535;

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of the tar stream.
    pub bytes: u64,
    /// Entries, and directories that the tar implies but does not name.
    pub entries: u64,
    /// Directories that the tar implies got owner and mode from the layers below: the result depends on them.
    pub depends_on_lower: bool,
}

/// Why a layer's tar was refused or could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// One entry is the reason.
    #[error("entry {entry:?} {fault}")]
    Entry {
        /// Its name, as written.
        entry: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The stream is not a tar, or a damaged one.
    #[error("not a sound tar: {what} at byte {offset}")]
    Damaged {
        /// Bytes read so far.
        offset: u64,
        /// The part which is wrong.
        what: &'static str,
    },
    /// The stream could not be read or decompressed.
    #[error("cannot be read after byte {offset}: {source}")]
    Read {
        /// Unpacked bytes read so far.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// More bytes than allowed.
    #[error("unpacks to more than {limit} bytes")]
    TooManyBytes {
        /// [`Limits::max_bytes`], or what is left of [`Limits::max_image_bytes`].
        limit: u64,
    },
    /// More entries than allowed.
    #[error("unpacks to more than {limit} files")]
    TooManyEntries {
        /// [`Limits::max_entries`].
        limit: u64,
    },
    /// The directory to unpack into failed.
    #[error("cannot prepare the directory: {0}")]
    Directory(io::Error),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its name begins with `/`.
    #[error("has an absolute name")]
    Absolute,
    /// Its name contains `..`.
    #[error("has .. in its name")]
    DotDot,
    /// Its name, or its link target, contains a NUL byte.
    #[error("has a NUL byte in its name")]
    Nul,
    /// Its name is empty, or only a whiteout's prefix.
    #[error("has no name")]
    NoName,
    /// Its name is longer than [`Limits::max_path`].
    #[error("has a name longer than {0} bytes")]
    LongPath(usize),
    /// It lies below too many directories.
    #[error("lies deeper than 128 directories")]
    Deep,
    /// It lies below a whiteout.
    #[error("lies below a whiteout")]
    UnderWhiteout,
    /// It lies below a symlink; writing there could leave the layer.
    #[error("lies below {0:?}, which is a symlink")]
    UnderSymlink(String),
    /// It lies below something that is no directory.
    #[error("lies below {0:?}, which is not a directory")]
    UnderFile(String),
    /// It is a device node.
    #[error("is a device node ({0}:{1}), which images may not bring")]
    Device(u64, u64),
    /// It is a sparse member.
    #[error("is a sparse member, which image layers may not contain")]
    Sparse,
    /// It is of an unknown kind.
    #[error("is of the unknown tar type {0:?}")]
    UnknownType(char),
    /// The layer's root is something else than a directory.
    #[error("is the layer's root but not a directory")]
    RootNotDirectory,
    /// A user or group id that no pod has.
    #[error("belongs to {kind} {id}; pods have ids 0 to 65535")]
    Id {
        /// `user` or `group`.
        kind: &'static str,
        /// The id.
        id: u64,
    },
    /// A hard link whose target is no plain name in the layer.
    #[error("is a hard link to {target:?}, which {fault}")]
    BadLink {
        /// As written.
        target: String,
        /// What is wrong with it.
        fault: Box<Fault>,
    },
    /// A hard link to nothing.
    #[error("is a hard link to {0:?}, which this layer does not have before it")]
    LinkMissing(String),
    /// A hard link to something that cannot be linked.
    #[error("is a hard link to {0:?}, which is a directory or a device")]
    LinkToDirectory(String),
    /// An extended attribute could not be set.
    #[error("has the attribute {name:?}, which cannot be set: {source}")]
    Xattr {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The file system refused.
    #[error("cannot be written: {0}")]
    Io(io::Error),
}

impl From<rustix::io::Errno> for Fault {
    fn from(errno: rustix::io::Errno) -> Self {
        Fault::Io(errno.into())
    }
}

/// Unpacks the tar read from `input` into `dir`, an empty directory of the caller's own. `lower` are the trees of
/// the layers below, topmost first: directories that the tar implies but does not name take owner, mode and time
/// from there. On an error `dir` holds a part of the layer and is to be removed.
pub fn unpack(input: &mut dyn Read, dir: &Path, lower: &[PathBuf], limits: &Limits) -> Result<Unpacked, UnpackError> {
    let mut stream = TarStream::new(input, limits.max_bytes);
    let mut unpacker = Unpacker { tree: Tree::open(dir, lower).map_err(UnpackError::Directory)?, limits, entries: 0 };
    while let Some(entry) = stream.next_entry()? {
        unpacker.count(1)?;
        unpacker.apply(&entry, &mut stream)?;
    }
    stream.drain()?;
    unpacker.tree.set_directory_times().map_err(UnpackError::Directory)?;
    Ok(Unpacked { bytes: stream.offset(), entries: unpacker.entries, depends_on_lower: unpacker.tree.implied > 0 })
}

struct Unpacker<'a> {
    tree: Tree,
    limits: &'a Limits,
    entries: u64,
}

impl Unpacker<'_> {
    fn count(&mut self, more: u64) -> Result<(), UnpackError> {
        self.entries += more;
        if self.entries > self.limits.max_entries {
            return Err(UnpackError::TooManyEntries { limit: self.limits.max_entries });
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry, content: &mut TarStream<&mut dyn Read>) -> Result<(), UnpackError> {
        let named = |fault| UnpackError::Entry { entry: show(&entry.path), fault };
        let path = components(&entry.path, self.limits.max_path).map_err(named)?;
        let Some((name, parents)) = path.split_last() else {
            return self.root(entry).map_err(named);
        };
        check_ids(entry).map_err(named)?;
        let implied = self.tree.implied;
        let parent = self.tree.parent(parents).map_err(named)?;
        self.count(self.tree.implied - implied)?;
        match name.strip_prefix(b".wh.") {
            Some(b".wh..opq") => return tree::set_opaque(&parent).map_err(|e| named(e.into())),
            // Bookkeeping of AUFS, which old builders leaked into layers.
            Some(aufs) if aufs.starts_with(b".wh.") => return Ok(()),
            Some(b"" | b"." | b"..") => return Err(named(Fault::NoName)),
            Some(hidden) => return self.tree.whiteout(&parent, hidden).map_err(named),
            None => {}
        }
        let here = Place { path: &path, parent: parent.as_fd(), name };
        match entry.kind {
            Kind::File => return self.file(&here, entry, content),
            Kind::Directory => self.directory(&here, entry),
            Kind::Symlink => self.symlink(&here, entry),
            Kind::HardLink => self.hard_link(&here, entry),
            Kind::Fifo => self.fifo(&here, entry),
            Kind::CharDevice if entry.device == (0, 0) => self.tree.whiteout(&parent, name),
            Kind::CharDevice | Kind::BlockDevice => Err(Fault::Device(entry.device.0, entry.device.1)),
            Kind::Sparse => Err(Fault::Sparse),
            Kind::Other(kind) => Err(Fault::UnknownType(char::from(kind))),
        }
        .map_err(named)
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.path.is_empty() {
            return Err(Fault::NoName);
        }
        if entry.kind != Kind::Directory {
            return Err(Fault::RootNotDirectory);
        }
        check_ids(entry)?;
        let root = self.tree.parent(&[])?;
        set_metadata(&root, entry, Times::Later)?;
        self.tree.remember_time(&[], entry.mtime);
        Ok(())
    }

    fn file(
        &mut self,
        here: &Place<'_>,
        entry: &Entry,
        content: &mut TarStream<&mut dyn Read>,
    ) -> Result<(), UnpackError> {
        let named = |fault| UnpackError::Entry { entry: show(&entry.path), fault };
        self.tree.clear(here.path, here.parent).map_err(named)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(here.parent, here.name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(|e| named(e.into()))?);
        let mut buffer = vec![0; (entry.size as usize).clamp(1, 256 * 1024)];
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(UnpackError::Read { offset: content.offset(), source });
                }
            };
            file.write_all(&buffer[..n]).map_err(|e| named(Fault::Io(e)))?;
        }
        set_metadata(file.as_fd(), entry, Times::Now).map_err(named)
    }

    fn directory(&mut self, here: &Place<'_>, entry: &Entry) -> Result<(), Fault> {
        let there = tree::there(here.parent, here.name)?;
        if there != There::Directory {
            self.tree.clear(here.path, here.parent)?;
            rustix::fs::mkdirat(here.parent, here.name, Mode::RWXU)?;
        }
        let dir = tree::open_directory(here.parent, here.name)?;
        if there == There::Whiteout {
            // Both are meant: what the lower layers have here is hidden, and this directory is in its place.
            tree::set_opaque(&dir)?;
        }
        set_metadata(&dir, entry, Times::Later)?;
        self.tree.remember_time(here.path, entry.mtime);
        Ok(())
    }

    fn symlink(&mut self, here: &Place<'_>, entry: &Entry) -> Result<(), Fault> {
        match entry.link.as_slice() {
            b"" => return Err(Fault::NoName),
            target if target.contains(&0) => return Err(Fault::Nul),
            _ => self.tree.clear(here.path, here.parent)?,
        }
        rustix::fs::symlinkat(entry.link.as_slice(), here.parent, here.name)?;
        set_own_metadata(here, entry)
    }

    fn fifo(&mut self, here: &Place<'_>, entry: &Entry) -> Result<(), Fault> {
        self.tree.clear(here.path, here.parent)?;
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::mknodat(here.parent, here.name, FileType::Fifo, mode, 0)?;
        set_own_metadata(here, entry)?;
        // After chown, which clears set-id bits, and past the umask.
        rustix::fs::chmodat(here.parent, here.name, mode, AtFlags::empty())?;
        Ok(())
    }

    fn hard_link(&mut self, here: &Place<'_>, entry: &Entry) -> Result<(), Fault> {
        let target = || show(&entry.link);
        let bad = |fault| Fault::BadLink { target: target(), fault: Box::new(fault) };
        let path = components(&entry.link, self.limits.max_path).map_err(bad)?;
        let Some((name, parents)) = path.split_last() else {
            return Err(Fault::LinkToDirectory(target()));
        };
        let dir = match self.tree.existing(parents) {
            Ok(Some(dir)) => dir,
            Ok(None) => return Err(Fault::LinkMissing(target())),
            Err(fault) => return Err(bad(fault)),
        };
        match tree::there(&dir, name)? {
            There::File => {}
            There::Nothing => return Err(Fault::LinkMissing(target())),
            There::Directory | There::Whiteout => return Err(Fault::LinkToDirectory(target())),
        }
        if path == here.path {
            return Ok(());
        }
        self.tree.clear(here.path, here.parent)?;
        // Without AT_SYMLINK_FOLLOW a link to a symlink is a second name of the symlink itself.
        Ok(rustix::fs::linkat(&dir, *name, here.parent, here.name, AtFlags::empty())?)
    }
}

/// Where an entry goes.
struct Place<'a> {
    path: &'a [&'a [u8]],
    parent: rustix::fd::BorrowedFd<'a>,
    name: &'a [u8],
}

/// Whether modification times are set now, or when everything has been written into the directory.
#[derive(PartialEq)]
enum Times {
    Now,
    Later,
}

/// Owner first: chown clears set-id bits and drops `security.capability`.
fn set_metadata(file: impl AsFd, entry: &Entry, times: Times) -> Result<(), Fault> {
    rustix::fs::fchown(&file, Some(Uid::from_raw(entry.uid as u32)), Some(Gid::from_raw(entry.gid as u32)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| xattr::travels(name)) {
        rustix::fs::fsetxattr(&file, name.as_slice(), value, rustix::fs::XattrFlags::empty())
            .map_err(|e| Fault::Xattr { name: show(name), source: e.into() })?;
    }
    if times == Times::Now {
        rustix::fs::futimens(&file, &omit_atime(entry.mtime))?;
    }
    Ok(())
}

/// For what cannot be opened: symlinks and pipes.
fn set_own_metadata(here: &Place<'_>, entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = (Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32));
    rustix::fs::chownat(here.parent, here.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(here.parent, here.name, &omit_atime(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn check_ids(entry: &Entry) -> Result<(), Fault> {
    for (kind, id) in [("user", entry.uid), ("group", entry.gid)] {
        if id > MAX_ID {
            return Err(Fault::Id { kind, id });
        }
    }
    Ok(())
}

/// The parts of a name; none for the layer's root.
fn components(raw: &[u8], max_path: usize) -> Result<Vec<&[u8]>, Fault> {
    if raw.contains(&0) {
        return Err(Fault::Nul);
    }
    if raw.len() > max_path {
        return Err(Fault::LongPath(max_path));
    }
    if raw.starts_with(b"/") {
        return Err(Fault::Absolute);
    }
    let parts: Vec<&[u8]> = raw.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(Fault::DotDot);
    }
    if parts.len() > MAX_DEPTH {
        return Err(Fault::Deep);
    }
    match parts.split_last() {
        Some((_, parents)) if parents.iter().any(|part| part.starts_with(b".wh.")) => Err(Fault::UnderWhiteout),
        _ => Ok(parts),
    }
}

/// A name for people; what is not UTF-8 is replaced, and no name fills the screen.
pub(super) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into_owned(),
    }
}
