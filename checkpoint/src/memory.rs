//! Memory ahead of a dump: what a running process has is copied while it runs, so that the dump has to take along only what
//! was written since.
//!
//! The kernel tells what was written: private mappings are registered with userfaultfd(2) for write protection that is lifted
//! *asynchronously*, that is by the kernel alone, at the first write to each page (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7).
//! `PAGEMAP_SCAN` (Documentation/admin-guide/mm/pagemap.rst) lists the pages that have been written and protects them again,
//! in one step. No soft-dirty bits are needed, which many kernels are built without, and nobody ever waits for us. Where there
//! is no such thing, but soft-dirty bits, these do (`soft_dirty`): the processes stand still for a moment in each round then.
//!
//! 1. [`Tracker::arm`] registers the larger mappings of processes, and most of small ones. Only a process itself can make a
//!    userfaultfd, so each is stopped for a moment and made to (`arm`); registering is then done from outside, while it stands still too.
//! 2. [`Tracker::round`] copies what was written since the last round: first all, then less and less.
//! 3. [`crate::criu::Dumper`] finds the rounds' page maps in the image folder (`pre1`, `pre2` ...), and, if the kernel tells that
//!    a page has not been written since the last, refers to them (`in_parent`), as in CRIU's own incremental dumps. That takes
//!    `scripts/patches/criu-written.patch`: see [`Understood`].
//! 4. [`unfold`] puts on the target what came in these rounds where CRIU's restore looks for it; a [`Nursery`] has CRIU load them
//!    as they come.
//!
//! A page that is not known for sure to be unwritten goes into the dump: of mappings that were never registered, or lost that by
//! mremap(2) or exec(2); of processes that were forked since. So whatever fails here costs time and nothing else. Shared
//! memory, huge pages and processes with asynchronous I/O (the kernel writes for them later) are left to the dump.

mod ahead;
mod arm;
mod gather;
pub mod lazy;
mod pages;
mod soft_dirty;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memchr::memmem;
use nix::unistd::Pid;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use crate::process::pod_pid;
use crate::sys;
pub(crate) use ahead::is_prepared;
pub use ahead::{A_MOMENT, Nursery, do_without, prepare};
pub use gather::{Gathered, Pages, gather};
use pages::{Map, Ranges};
use soft_dirty::Found;

/// Smaller mappings are not worth a registration, in bytes.
const WORTH_IT: u64 = 256 << 10;
/// The same of what a [`Nursery`] cannot load: copies of files, and stacks. A restore has to read the rounds for them.
const WORTH_READING: u64 = 16 << 20;
/// Processes whose mappings of private memory are smaller than this together are small, in bytes: the page maps of their rounds are read
/// in no time.
const SMALL: u64 = 16 << 20;
/// Of these, any mapping of this size is worth it, in bytes, if there are no more processes than this: a [`Nursery`] takes some dozens,
/// which should be the large ones.
const WORTH_IT_IN_SMALL: u64 = 16 << 10;
const FEW: usize = 16;
/// Read and sent in pieces of at most this, in bytes.
const PIECE: u64 = 1 << 20;
/// A round is of at most this, in bytes, or of one of [`PARTS`] of what was found: while the target loads one, the next is on its way.
const PART: u64 = 256 << 20;
const PARTS: u64 = 8;
const PAGE: u64 = 4096;
/// Told to CRIU in its environment.
pub(crate) const TRACK_WRITTEN: &str = "CRIU_TRACK_WRITTEN";
/// How a link begins by which CRIU finds pages in the middle of a file.
pub(crate) const PAGES_ELSEWHERE: &str = "pages@";
/// In a dump's folder: the latest round.
pub(crate) const PARENT: &str = "parent";

/// How the kernel tells what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By asynchronous write protection (userfaultfd(2), Linux 6.7).
    WriteProtection,
    /// By soft-dirty bits, if it has them.
    SoftDirty,
}

/// Follows what the processes of a pod write, until it is dropped.
#[derive(Debug)]
pub struct Tracker {
    backend: Backend,
    processes: BTreeMap<i32, Tracked>,
    rounds: u32,
    /// [`PART`].
    part: u64,
    /// A round is of at most this, in bytes.
    most: u64,
    /// Whether there are [few](FEW) processes.
    few: bool,
}

#[derive(Debug)]
struct Tracked {
    pid: i32,
    /// PID inside the pod, by which CRIU names images.
    own: i32,
    /// When it started: a PID can be given to another process.
    start: u64,
    pagemap: File,
    /// Memory is registered as long as this is open; none: soft-dirty bits tell.
    userfaultfd: Option<OwnedFd>,
    armed: Ranges,
    /// What of it is mapped files, or was.
    files: Ranges,
    copied: Ranges,
    /// Found to be written, and not copied since.
    waiting: Ranges,
    /// All of its memory was asked for once, and its soft-dirty bits cleared.
    seen: bool,
}

/// What one round copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Its number, from 1.
    pub number: u32,
    /// Bytes of memory.
    pub bytes: u64,
    /// Bytes of what was found that are left for the next rounds.
    pub left: u64,
}

/// Memory of processes that can go ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// How much there is, in bytes.
    pub bytes: u64,
    /// How much of it they write to in a second, each page counted once, in bytes.
    pub written_per_s: u64,
}

/// Part of a file of a round, as the target shall have it: under [this name](unfold), from this offset.
#[derive(Debug)]
pub struct Piece {
    /// The file.
    pub name: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// The content.
    pub data: Vec<u8>,
}

impl Backend {
    /// What the running kernel offers. (For x86-64 alone are we able to have a process make calls.)
    #[must_use]
    pub fn of_kernel() -> Option<Self> {
        let write_protection = || -> io::Result<()> {
            sys::start_tracking(&sys::userfaultfd()?)?;
            sys::written_pages(&File::open("/proc/self/pagemap")?, 0..PAGE, false, Some(&mut Vec::new()))?;
            Ok(())
        };
        if !arm::reads_what_is_protected() {
            return None;
        }
        if cfg!(target_arch = "x86_64") && write_protection().is_ok() {
            return Some(Self::WriteProtection);
        }
        crate::host::has_soft_dirty_bits().then_some(Self::SoftDirty)
    }

    /// Its name, for people and for CRIU.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteProtection => "write-protection",
            Self::SoftDirty => "soft-dirty",
        }
    }
}

/// What a CRIU program can do with memory that goes ahead or lies elsewhere, by its patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Understood {
    /// It asks the kernel what was written since.
    pub written: bool,
    /// It loads rounds as they come.
    pub loaded: bool,
    /// It restores pages out of the middle of a file.
    pub elsewhere: bool,
    /// It leaves pages where they are, to be brought later.
    pub lazy: bool,
}

impl Understood {
    /// Looks for the names that the patches bring along.
    #[must_use]
    pub fn by(criu: &Path) -> Self {
        let program = fs::read(criu).unwrap_or_default();
        let mentions = |name: &str| memmem::find(&program, name.as_bytes()).is_some();
        Self {
            written: mentions(TRACK_WRITTEN),
            loaded: mentions(ahead::PIPE),
            elsewhere: mentions(PAGES_ELSEWHERE),
            lazy: mentions(lazy::MARK),
        }
    }
}

impl Tracker {
    /// One that follows nobody yet.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self { backend, processes: BTreeMap::new(), rounds: 0, part: PART, most: PART, few: true }
    }

    /// How it is told what was written.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Registers what is not registered yet of these processes. What cannot be is left to the dump.
    pub fn arm(&mut self, pids: &[i32]) {
        self.few = pids.len() <= FEW;
        let same = |pid: i32, tracked: &Tracked| started(pid).is_ok_and(|start| start == tracked.start);
        self.processes.retain(|pid, tracked| pids.contains(pid) && same(*pid, tracked));
        for &pid in pids {
            if let Err(error) = self.arm_one(pid) {
                tracing::debug!(pid, %error, "its memory cannot be copied ahead");
            }
        }
    }

    /// Looks at what processes write for a while.
    #[must_use]
    pub fn look_on(backend: Backend, pids: &[i32], time: Duration) -> Activity {
        let mut tracker = Self::new(backend);
        tracker.arm(pids);
        let mut written = || tracker.processes.values_mut().map(|process| process.written().bytes()).sum::<u64>();
        let bytes = written();
        let begun = Instant::now();
        std::thread::sleep(time);
        Activity { bytes, written_per_s: (written() as f64 / begun.elapsed().as_secs_f64()) as u64 }
    }

    fn arm_one(&mut self, pid: i32) -> io::Result<()> {
        let process = Process::new(pid).map_err(io::Error::other)?;
        let wanted = worthwhile(&process, self.few)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let tracked = match self.processes.entry(pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Tracked::start(&process, self.backend)?),
        };
        if self.backend == Backend::SoftDirty {
            tracked.armed = Ranges::default();
        } else if !wanted.iter().all(|mapping| tracked.follows(mapping)) {
            return tracked.register(&process, self.few);
        }
        tracked.note(&wanted);
        Ok(())
    }

    /// Copies what was written since this was looked for last, and notes in `images`, the folder of the dump to come, what that was.
    /// If it is much, only a part of it: the next rounds copy the rest, before one looks again, and no dump may begin before
    /// nothing is [left](Round::left), as the kernel counts it as unwritten already. With soft-dirty bits, `still` has the
    /// processes stand still, and go on again.
    ///
    /// # Errors
    /// Those of `still` and `emit`, and of writing to `images`.
    pub fn round(
        &mut self,
        images: &Path,
        still: &dyn Fn(bool) -> io::Result<()>,
        emit: &mut dyn FnMut(Piece) -> io::Result<()>,
    ) -> io::Result<Round> {
        if self.waiting() == 0 {
            self.look(still)?;
        }
        self.rounds += 1;
        let mut round = Round { number: self.rounds, bytes: 0, left: 0 };
        let folder = images.join(format!("pre{}", round.number));
        fs::create_dir_all(&folder)?;
        let mut lost = Vec::new();
        for (id, (pid, tracked)) in self.processes.iter_mut().enumerate() {
            // It has ended. (Or not: what was written is not copied then, and its memory goes with the dump.)
            let Ok(memory) = arm::Memory::of(*pid) else {
                lost.push(*pid);
                continue;
            };
            let written = tracked.waiting.take(self.most - round.bytes);
            let map = Map::of_round(id as u32 + 1, &written, &tracked.copied).encode();
            let (map_name, pages_name) = (format!("pagemap-{}.img", tracked.own), format!("pages-{}.img", id + 1));
            fs::write(folder.join(&map_name), &map)?;
            // CRIU opens it, but in a dump it reads nothing.
            File::create(folder.join(&pages_name))?;
            let prefix = |name: &str| format!("pre{}-{name}", round.number);
            let mut offset = 0;
            let name = prefix(&pages_name);
            for ranges in written.pieces(PIECE) {
                let data = memory.read_or_zeros(&ranges);
                let length = data.len() as u64;
                emit(Piece { name: name.clone(), offset, data })?;
                offset += length;
            }
            if offset == 0 {
                emit(Piece { name, offset, data: Vec::new() })?;
            }
            // Writes here and there make it long.
            for (piece, data) in (0..).step_by(PIECE as usize).zip(map.chunks(PIECE as usize)) {
                emit(Piece { name: prefix(&map_name), offset: piece, data: data.to_vec() })?;
            }
            round.bytes += offset;
            tracked.copied.add_all(&written);
        }
        self.processes.retain(|pid, _| !lost.contains(pid));
        link(images, round.number)?;
        round.left = self.waiting();
        Ok(round)
    }

    /// Looks for what was written since the last time.
    fn look(&mut self, still: &dyn Fn(bool) -> io::Result<()>) -> io::Result<()> {
        let stop = self.backend == Backend::SoftDirty;
        if stop {
            still(true).inspect_err(|_| drop(still(false)))?;
        }
        for tracked in self.processes.values_mut() {
            tracked.waiting = tracked.written();
            // What was copied of that is of no use to later rounds.
            tracked.copied = tracked.copied.without(&tracked.waiting);
        }
        if stop {
            still(false)?;
        }
        self.most = self.part.max(self.waiting() / PARTS / PAGE * PAGE);
        Ok(())
    }

    /// Bytes that were found and not copied yet.
    fn waiting(&self) -> u64 {
        self.processes.values().map(|tracked| tracked.waiting.bytes()).sum()
    }

    /// Forgets what was copied of processes that have ended since. To be called when these stand still, before the dump: with
    /// soft-dirty bits, the child of one that is followed counts as unwritten, also if it has got the number of a dead one.
    ///
    /// # Errors
    /// I/O errors.
    pub fn forget_the_dead(&self, images: &Path) -> io::Result<()> {
        let mut dead = self.processes.iter().filter(|(pid, tracked)| started(**pid).ok() != Some(tracked.start));
        let rounds = images.join(format!("pre{}", self.rounds));
        dead.try_for_each(|(_, tracked)| remove(&rounds.join(format!("pagemap-{}.img", tracked.own))))
    }
}

impl Tracked {
    fn start(process: &Process, backend: Backend) -> io::Result<Self> {
        let pid = process.pid();
        let own = pod_pid(pid).ok_or(io::ErrorKind::NotFound)?;
        // Before the other one: should the process call exec(2) in between, this is of memory that is gone, and is empty.
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let userfaultfd = match backend {
            Backend::WriteProtection => {
                let its = Pid::from_raw(pid);
                Some(arm::still(its, |borrowed| arm::userfaultfd_of(its, borrowed))?)
            }
            Backend::SoftDirty => None,
        };
        userfaultfd.as_ref().map_or(Ok(()), sys::start_tracking)?;
        Ok(Self {
            pid,
            own,
            start: started(pid)?,
            pagemap,
            userfaultfd,
            armed: Ranges::default(),
            files: Ranges::default(),
            copied: Ranges::default(),
            waiting: Ranges::default(),
            seen: false,
        })
    }

    /// Whether all of a mapping is registered: all of it is, or nothing.
    fn follows(&self, Mapping { range, anonymous, .. }: &Mapping) -> bool {
        let first = range.start..range.start + PAGE;
        self.armed.contains(range.start) && sys::written_pages(&self.pagemap, first, *anonymous, None).is_ok()
    }

    /// Registers all mappings, while the process stands still, and with their kin: of one that grew or moved meanwhile, or is divided by
    /// mprotect(2) for a while, a part would be registered, and it would be two from then on, to which mremap(2) as a whole fails with
    /// EFAULT. What is of a kind that cannot be stays unregistered.
    fn register(&mut self, process: &Process, is_one_of_few: bool) -> io::Result<()> {
        let userfaultfd = self.userfaultfd.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (mut mappings, new, runs) = arm::still(Pid::from_raw(self.pid), |_| {
            let all = worthwhile(process, is_one_of_few)?.into_iter();
            let (known, mut new): (Vec<_>, Vec<_>) = all.partition(|mapping| self.follows(mapping));
            // Each run once: of thousands of stacks it takes its time.
            let mut runs = Ranges::default();
            new.retain(|Mapping { range, kin, .. }| {
                let track = |range: &Range<u64>| sys::track(userfaultfd, range);
                runs.contains(range.start)
                    || track(kin).map(|()| runs.add(kin.clone())).or_else(|_| track(range)).is_ok()
            });
            Ok((known, new, runs))
        })?;
        // This takes its time, and does no harm to what has been moved meanwhile.
        for part in runs.without(&self.armed).iter() {
            let _ = sys::count_as_written(userfaultfd, &part);
        }
        mappings.extend(new.into_iter().filter(|new| sys::count_as_written(userfaultfd, &new.range).is_ok()));
        self.note(&mappings);
        Ok(())
    }

    /// These are followed from now on.
    fn note(&mut self, mappings: &[Mapping]) {
        for Mapping { range, anonymous, .. } in mappings {
            self.armed.add(range.clone());
            if *anonymous {
                self.files.remove(range);
            } else {
                self.files.add(range.clone());
            }
        }
    }

    /// What was written since this was asked last; from now on only what is written later. A mapping that is not registered any
    /// more is forgotten.
    fn written(&mut self) -> Ranges {
        if self.userfaultfd.is_none() {
            return self.soft_dirty();
        }
        let mut written = Ranges::default();
        let mut lost = Vec::new();
        for range in self.armed.iter() {
            let mut found = Vec::new();
            let anonymous = self.files.iter().all(|file| file.end <= range.start || range.end <= file.start);
            if sys::written_pages(&self.pagemap, range.clone(), anonymous, Some(&mut found)).is_err() {
                lost.push(range);
            }
            // Before a failure, too: these are protected now, and count as copied.
            found.into_iter().for_each(|range| written.add(range));
        }
        lost.iter().for_each(|range| self.armed.remove(range));
        written
    }

    /// The same by soft-dirty bits. If they cannot be read, as after exec(2), or cleared, all counts as written.
    ///
    /// To clear them is to clear those of all memory: so what was copied earlier is asked for too, though its mapping may be too small
    /// by now to be worth it (as glibc's arenas, which shrink), or of another kind. What of it is gone is forgotten: another mapping
    /// may come there.
    fn soft_dirty(&mut self) -> Ranges {
        let mut asked = self.armed.clone();
        asked.add_all(&self.copied);
        let mut found = Found::default();
        let read = asked.iter().try_for_each(|range| soft_dirty::find(&self.pagemap, &range, &mut found));
        let Found { own, written } = found;
        let gone = if read.is_ok() { self.copied.without(&own) } else { self.copied.clone() };
        self.copied = self.copied.without(&gone);
        let written = if self.seen { written } else { own };
        self.seen = read.and_then(|()| soft_dirty::clear(self.pid)).is_ok();
        written
    }
}

/// When a process started, in ticks since the boot.
fn started(pid: i32) -> io::Result<u64> {
    Ok(Process::new(pid).and_then(|process| process.stat()).map_err(io::Error::other)?.starttime)
}

/// A mapping that is to be followed.
struct Mapping {
    range: Range<u64>,
    /// With what touches it and may become one mapping with it, as soon as their access is the same.
    kin: Range<u64>,
    anonymous: bool,
}

/// Mappings of a process that are followed: private memory that it can read and write, of some size. Of a small one also such that it
/// cannot write any more, as what the dynamic linker has written to libraries: that may be half of what it has.
fn worthwhile(process: &Process, is_one_of_few: bool) -> io::Result<Vec<Mapping>> {
    let maps = process.maps().map_err(io::Error::other)?;
    // The kernel writes what asynchronous I/O brings whenever it comes, without asking the page tables again.
    let asynchronous = |path: &MMapPath| matches!(path, MMapPath::Path(path) if path.starts_with("/[aio]"));
    if maps.iter().any(|map| asynchronous(&map.pathname)) {
        return Ok(Vec::new());
    }
    let size = |map: &MemoryMap| map.address.1 - map.address.0;
    // Private memory without files.
    let plain = |map: &&MemoryMap| {
        map.perms.contains(MMPermissions::PRIVATE)
            && matches!(map.pathname, MMapPath::Anonymous | MMapPath::Heap | MMapPath::Other(_))
    };
    let mut runs = Ranges::default();
    maps.iter().filter(plain).for_each(|map| runs.add(map.address.0..map.address.1));
    let kin = |map: &MemoryMap| runs.around(map.address.0).unwrap_or(map.address.0..map.address.1);
    let usable = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::PRIVATE;
    let own = maps.iter().filter(plain).filter(|map| map.perms.contains(usable)).map(size).sum::<u64>();
    let is_small = is_one_of_few && own < SMALL;
    let least = |map: &MemoryMap| match &map.pathname {
        // Huge pages have a file's name, and CRIU takes no earlier copy of them.
        MMapPath::Path(path) if path.starts_with("/anon_hugepage") || path.starts_with("/memfd:") => u64::MAX,
        MMapPath::Anonymous | MMapPath::Heap | MMapPath::Other(_) | MMapPath::Path(_) | MMapPath::Stack if is_small => {
            WORTH_IT_IN_SMALL
        }
        MMapPath::Anonymous | MMapPath::Heap | MMapPath::Other(_) => WORTH_IT,
        MMapPath::Path(_) | MMapPath::Stack => WORTH_READING,
        _ => u64::MAX,
    };
    let read_only = MMPermissions::READ | MMPermissions::PRIVATE;
    let has_written = |map: &MemoryMap| is_small && map.perms == read_only && size(map) < SMALL;
    let maps = maps.iter().filter(|map| map.perms.contains(usable) || has_written(map));
    let maps = maps.filter(|map| size(map) >= least(map));
    let mapping = |map: &MemoryMap| Mapping {
        range: map.address.0..map.address.1,
        kin: kin(map),
        anonymous: !matches!(map.pathname, MMapPath::Path(_)),
    };
    Ok(maps.map(mapping).collect())
}

/// Whether a dump has only what was written after the last round, or not even that.
#[must_use]
pub fn is_partial(images: &Path) -> bool {
    images.join(PARENT).is_symlink() || lazy::is_expected(images)
}

/// Has round `number` refer to the one before, and the dump to it.
fn link(images: &Path, number: u32) -> io::Result<()> {
    let replace = |to: String, link: PathBuf| remove(&link).and_then(|()| symlink(to, link));
    if number > 1 {
        replace(format!("../pre{}", number - 1), images.join(format!("pre{number}")).join(PARENT))?;
    }
    replace(format!("pre{number}"), images.join(PARENT))
}

/// Removes a file that need not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Puts files of the rounds up to this one, named `preN-NAME` in a dump's folder, where CRIU looks for them. Rounds in which
/// nothing was worth copying are there, too. Repeatable.
///
/// # Errors
/// I/O errors.
pub fn unfold(images: &Path, rounds: u32) -> io::Result<()> {
    (1..=rounds).try_for_each(|number| fs::create_dir_all(images.join(format!("pre{number}"))))?;
    for entry in fs::read_dir(images)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(place) = place(&name) {
            fs::rename(images.join(&name), images.join(place))?;
        }
    }
    (1..=rounds).try_for_each(|number| link(images, number))
}

/// Where a file is that came under this name, before or after it was [put in place](unfold), in the folder of images.
#[must_use]
pub fn find(images: &Path, name: &str) -> PathBuf {
    let placed = place(name).map(|place| images.join(place));
    placed.filter(|path| path.exists()).unwrap_or_else(|| images.join(name))
}

/// `preN-NAME` goes to `preN/NAME`.
fn place(name: &str) -> Option<PathBuf> {
    let (number, rest) = name.strip_prefix("pre")?.split_once('-')?;
    let number: u32 = number.parse().ok()?;
    Some(Path::new(&format!("pre{number}")).join(rest))
}
