//! The source's side: looks at the tree, emits what the target lacks, and remembers what it has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, Stat, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::blocks::{self, Against, Blocks, Fault};
use super::diff::inodes;
use super::tree::is_gone;
use super::{Action, Entry, Error, Inode, Kind, Node, Op, Open, Plan, RelPath, Result, Tree, What, diff, handle};

/// Files from this size on are compared block by block, in bytes.
const COMPARED_FROM: u64 = 1 << 20;

/// Whether others write to the tree during a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The pod runs: what changes under our hands is left to the next pass.
    Live,
    /// Nobody writes: what changes all the same is an error.
    Frozen,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassReport {
    /// Files of which content was looked at and, where it differed, sent.
    pub files: u64,
    /// Bytes of content sent.
    pub bytes: u64,
    /// Names removed.
    pub removed: u64,
    /// Files that the next pass has to look at again, because they changed meanwhile; 0 after a frozen pass.
    pub unsettled: u64,
}

/// Sends one tree to one target, in passes.
///
/// ```text
/// sender.pass(Live, ...)      everything
/// sender.pass(Live, ...)      what changed since; again while that shrinks
/// freeze the pod
/// sender.pass(Frozen, ...)    the rest
/// ```
///
/// Instead of the last one, [`Sender::last_pass`] and [`Sender::verify`] together do the same.
#[derive(Debug)]
pub struct Sender {
    root: PathBuf,
    dir: OwnedFd,
    have: Option<Have>,
}

/// What the target has: a tree as it was scanned, with what could not be sent left out.
#[derive(Debug)]
struct Have {
    tree: Tree,
    blocks: HashMap<Inode, Blocks>,
}

impl Sender {
    /// A sender of the tree under `root`.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be opened.
    pub fn new(root: &Path) -> Result<Sender> {
        Ok(Sender { root: root.to_owned(), dir: handle::open_root(root)?, have: None })
    }

    /// Emits what the target lacks. The first pass, and one after a failed pass, has the target emptied first.
    ///
    /// `assume_changed` names files (relative to the root) that the pod has mapped shared and writable *now*: in a
    /// frozen pass all of them. In a live pass it matters only where the file system gives no new mtime to a clean
    /// page that is written (tmpfs).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Device`] if the tree holds a device node; [`Error::Changed`] if a frozen pass finds
    /// somebody writing; and whatever `sink` returns.
    pub fn pass(
        &mut self,
        mode: Mode,
        assume_changed: &BTreeSet<PathBuf>,
        sink: &mut dyn FnMut(Op) -> Result<()>,
    ) -> Result<PassReport> {
        let (have, _, report) = self.run(mode, false, assume_changed, sink)?;
        self.have = Some(have);
        Ok(report)
    }

    /// A frozen pass, but for what takes long in it: of large files that the target has a copy of, only the end is compared, where
    /// logs grow. The rest is for [`Self::verify`].
    ///
    /// # Errors
    /// Those of [`Self::pass`].
    pub fn last_pass(
        &mut self,
        assume_changed: &BTreeSet<PathBuf>,
        sink: &mut dyn FnMut(Op) -> Result<()>,
    ) -> Result<(PassReport, Unverified)> {
        let (_, unverified, report) = self.run(Mode::Frozen, true, assume_changed, sink)?;
        Ok((report, unverified))
    }

    /// Compares what the last pass has left, and emits what the target lacks of it: content alone, as names, sizes and metadata are
    /// right by now.
    ///
    /// # Errors
    /// Those of a frozen pass.
    pub fn verify(&self, unverified: Unverified, sink: &mut dyn FnMut(Op) -> Result<()>) -> Result<PassReport> {
        let mut report = PassReport::default();
        for Part { entry, copy, end } in unverified.0 {
            let changed = || Error::Changed(self.root.join(entry.path.as_path()));
            let (file, stat) = self.open(&entry)?.ok_or_else(changed)?;
            let mut differs = false;
            let sent = blocks::send(file.as_fd(), 0..end, &Against::Copy(&copy), &mut |op| {
                if !std::mem::replace(&mut differs, true) {
                    emit(sink, Op::Open { path: entry.path.clone(), size: stat.st_size as u64, how: Open::Patch })?;
                }
                report.note(&op);
                emit(sink, op)
            });
            sent.map_err(|fault| self.failed(&entry, fault))?;
            if differs {
                emit(sink, Op::Meta { path: entry.path.clone(), meta: entry.meta.portable() })?;
            }
            report.files += 1;
            let after = fstat(&file).map_err(self.error("look at", &entry))?;
            if !is_as_scanned(&entry, &after) {
                return Err(changed());
            }
        }
        Ok(report)
    }

    fn run(
        &mut self,
        mode: Mode,
        ends_only: bool,
        assume_changed: &BTreeSet<PathBuf>,
        sink: &mut dyn FnMut(Op) -> Result<()>,
    ) -> Result<(Have, Unverified, PassReport)> {
        // Taken out: if this pass fails half-way, nobody knows what the target has.
        let have = self.have.take();
        let fresh = have.is_none();
        let Have { tree: old, blocks } = have.unwrap_or_else(Have::nothing);
        let new = Tree::rescan(self.dir.as_fd(), &self.root, Some(&old), mode == Mode::Live)?;
        refuse_devices(&new)?;
        let plan = diff(&old, &new, assume_changed);
        let assumed = inodes(&new, assume_changed);
        let mut pass = Pass {
            sender: self,
            mode,
            old_blocks: blocks,
            blocks: HashMap::new(),
            unsettled: assumed,
            missing: HashSet::new(),
            unverified: ends_only.then(Unverified::default),
            report: PassReport::default(),
            sink,
        };
        pass.emit(Op::Begin { fresh })?;
        pass.run(&plan, &new)?;
        Ok(pass.finish(new))
    }

    /// Opens a file, and looks at it; none if another object, or nothing, has its name by now.
    fn open(&self, entry: &Entry) -> Result<Option<(OwnedFd, Stat)>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        let file = match handle::open_beneath(self.dir.as_fd(), &entry.path, flags) {
            Ok(file) => file,
            // NXIO: a socket has taken its place.
            Err(errno) if is_gone(errno) || errno == Errno::NXIO => return Ok(None),
            Err(errno) => return Err(self.error("open", entry)(errno)),
        };
        let stat = fstat(&file).map_err(self.error("look at", entry))?;
        let is_it = Inode::of(&stat) == entry.inode && FileType::from_raw_mode(stat.st_mode).is_file();
        Ok(is_it.then_some((file, stat)))
    }

    fn failed(&self, entry: &Entry, fault: Fault) -> Error {
        match fault {
            Fault::Read(errno) => self.error("read", entry)(errno),
            Fault::Sink(error) => error,
        }
    }

    fn error(&self, action: &'static str, entry: &Entry) -> impl FnOnce(Errno) -> Error + use<> {
        Error::io(action, self.root.join(entry.path.as_path()))
    }
}

/// What a last pass has left to be verified.
#[derive(Debug, Default)]
pub struct Unverified(Vec<Part>);

/// The part of a file before `end`, of which the target had a copy.
#[derive(Debug)]
struct Part {
    entry: Entry,
    copy: Blocks,
    end: u64,
}

impl Unverified {
    /// Whether there is nothing of the kind.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PassReport {
    fn note(&mut self, op: &Op) {
        if let Op::Data { bytes, .. } = op {
            self.bytes += bytes.len() as u64;
        }
    }
}

fn emit(sink: &mut dyn FnMut(Op) -> Result<()>, op: Op) -> Result<()> {
    op.check()?;
    sink(op)
}

impl Have {
    fn nothing() -> Have {
        let tree = Tree { entries: Vec::new(), started: std::time::SystemTime::UNIX_EPOCH, unsettled: HashSet::new() };
        Have { tree, blocks: HashMap::new() }
    }
}

fn refuse_devices(tree: &Tree) -> Result<()> {
    let is_device = |entry: &&Entry| match entry.kind {
        Kind::WHITEOUT => false,
        Kind::CharDev { .. } | Kind::BlockDev { .. } => true,
        _ => false,
    };
    match tree.entries.iter().find(is_device) {
        Some(entry) => Err(Error::Device(entry.path.as_path().to_owned())),
        None => Ok(()),
    }
}

struct Pass<'a> {
    sender: &'a Sender,
    mode: Mode,
    /// Blocks of files that were not looked at yet.
    old_blocks: HashMap<Inode, Blocks>,
    blocks: HashMap<Inode, Blocks>,
    unsettled: HashSet<Inode>,
    /// Names of the new tree that the target does not get in this pass.
    missing: HashSet<RelPath>,
    /// What is left for later, if only ends are compared.
    unverified: Option<Unverified>,
    report: PassReport,
    sink: &'a mut dyn FnMut(Op) -> Result<()>,
}

impl Pass<'_> {
    fn run(&mut self, plan: &Plan, new: &Tree) -> Result<()> {
        if let Some(stash) = &plan.stash {
            self.emit(Op::Mkdir { path: stash.clone() })?;
        }
        for (from, slot) in &plan.stashed {
            self.emit(Op::Link { from: from.clone(), path: slot.clone() })?;
        }
        for path in &plan.remove {
            self.report.removed += 1;
            self.emit(Op::Remove { path: path.clone() })?;
        }
        for Action { entry, what } in &plan.actions {
            self.act(&new.entries[*entry], what)?;
        }
        for path in plan.stashed.iter().map(|(_, slot)| slot).chain(&plan.stash) {
            self.emit(Op::Remove { path: path.clone() })?;
        }
        for dir in &plan.dirs {
            self.meta(&new.entries[*dir])?;
        }
        Ok(())
    }

    fn finish(mut self, mut tree: Tree) -> (Have, Unverified, PassReport) {
        let missing = mem::take(&mut self.missing);
        tree.entries.retain(|entry| !missing.contains(&entry.path));
        for entry in &tree.entries {
            // Not looked at in this pass, so the target still has them as they were.
            if let Some(blocks) = self.old_blocks.remove(&entry.inode).filter(|_| entry.is_file()) {
                self.blocks.entry(entry.inode).or_insert(blocks);
            }
        }
        tree.unsettled = self.unsettled;
        (Have { tree, blocks: self.blocks }, self.unverified.unwrap_or_default(), self.report)
    }

    fn act(&mut self, entry: &Entry, what: &What) -> Result<()> {
        let path = entry.path.clone();
        match (what, &entry.kind) {
            (What::Link(from), _) if self.missing.contains(from) => {
                self.missing.insert(path);
                Ok(())
            }
            (What::Link(from), _) => self.emit(Op::Link { from: from.clone(), path }),
            (What::Meta, _) => self.meta(entry),
            (What::Make, Kind::Dir) => self.emit(Op::Mkdir { path }),
            (What::Make, Kind::Symlink(target)) => self.make(entry, Op::Symlink { path, target: target.clone() }),
            (What::Make, Kind::Fifo) => self.make(entry, Op::Node { path, node: Node::Fifo }),
            (What::Make, Kind::Socket) => self.make(entry, Op::Node { path, node: Node::Socket }),
            (What::Make, Kind::CharDev { .. } | Kind::BlockDev { .. }) => {
                self.make(entry, Op::Node { path, node: Node::Whiteout })
            }
            (What::Make, Kind::File { .. }) => {
                // The inode's number may have belonged to a file that the target loses in this pass.
                self.old_blocks.remove(&entry.inode);
                self.content(entry, Open::Create)
            }
            (What::Content, _) => self.content(entry, Open::Replace),
        }
    }

    fn make(&mut self, entry: &Entry, op: Op) -> Result<()> {
        self.emit(op)?;
        self.meta(entry)
    }

    fn meta(&mut self, entry: &Entry) -> Result<()> {
        self.emit(Op::Meta { path: entry.path.clone(), meta: entry.meta.portable() })
    }

    /// Sends a file's content and metadata, `Open::Replace` only where it differs from what the target has.
    fn content(&mut self, entry: &Entry, how: Open) -> Result<()> {
        let Some((file, before)) = self.sender.open(entry)? else { return self.gone(entry, how) };
        let size = before.st_size as u64;
        let old = self.old_blocks.remove(&entry.inode).filter(|_| size >= COMPARED_FROM);
        let (how, against) = match &old {
            Some(blocks) if how == Open::Replace => (Open::Patch, Against::Copy(blocks)),
            _ if size >= COMPARED_FROM => (how, Against::Empty),
            _ => (how, Against::Nothing),
        };
        let from = match &against {
            Against::Copy(blocks) if self.unverified.is_some() && can_wait(entry) => blocks.last_start(size),
            _ => 0,
        };
        self.emit(Op::Open { path: entry.path.clone(), size, how })?;
        let report = &mut self.report;
        let sink = &mut self.sink;
        let sent = blocks::send(file.as_fd(), from..size, &against, &mut |op| {
            report.note(&op);
            sink(op)
        });
        let sent = sent.map_err(|fault| self.sender.failed(entry, fault))?;
        self.meta(entry)?;
        self.report.files += 1;
        match (&mut self.unverified, old) {
            (Some(unverified), Some(copy)) if from > 0 => {
                unverified.0.push(Part { entry: entry.clone(), copy, end: from });
            }
            _ if size >= COMPARED_FROM => drop(self.blocks.insert(entry.inode, sent)),
            _ => {}
        }
        let after = fstat(&file).map_err(self.sender.error("look at", entry))?;
        if !is_as_scanned(entry, &before) || !is_as_scanned(entry, &after) {
            self.unsettle(entry)?;
        }
        Ok(())
    }

    fn gone(&mut self, entry: &Entry, how: Open) -> Result<()> {
        self.unsettle(entry)?;
        if how == Open::Create {
            self.missing.insert(entry.path.clone());
        }
        Ok(())
    }

    fn unsettle(&mut self, entry: &Entry) -> Result<()> {
        if self.mode == Mode::Frozen {
            return Err(Error::Changed(self.sender.root.join(entry.path.as_path())));
        }
        self.report.unsettled += 1;
        self.unsettled.insert(entry.inode);
        Ok(())
    }

    fn emit(&mut self, op: Op) -> Result<()> {
        emit(self.sink, op)
    }
}

/// Whether the target may look at a file before all of its content is right. Not at a program, since a write takes set-id bits, and CRIU
/// compares build-ids; nor at one with several names, of which CRIU removes those that it has made itself.
fn can_wait(entry: &Entry) -> bool {
    const EXECUTABLE: u32 = 0o111;
    entry.links == 1 && entry.meta.mode & EXECUTABLE == 0
}

fn is_as_scanned(entry: &Entry, stat: &Stat) -> bool {
    entry.kind == (Kind::File { size: stat.st_size as u64 })
        && (entry.ctime.secs, entry.ctime.nanos) == (stat.st_ctime, stat.st_ctime_nsec as u32)
}
