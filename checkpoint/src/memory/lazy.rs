//! Memory that stays behind (post-copy): a pod goes on while a part of its memory is still on its source, where its frozen processes
//! keep it, and comes when it is touched, or by and by.
//!
//! 1. CRIU leaves what has not gone ahead where it is (`scripts/patches/criu-yet-to-come.patch`), if that was [expected](expect) of the folder that
//!    it dumps into: page maps name it, as lazy.
//! 2. If it is expected of the folder that it restores from, CRIU registers the mappings concerned with userfaultfd(2), and hands that to
//!    a [`Pager`].
//! 3. The [`Pager`] lives in the process that the pod is a child of. It asks whoever has connected to it for pages, those first that
//!    somebody waits for, and puts them in place. What the pod does to its mappings meanwhile, forks included, the kernel tells.
//!
//! A userfaultfd that nobody has open any more lets go of the memory: what has not come would be *zero*. So there are two who have
//! each of them, the pager and whoever asks for it ([`Request::Hold`]), and the second one ends the pod before it lets go. Nor is the kernel
//! to fill what is missing with huge pages: CRIU switches that off until the mappings are registered.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::PAGE;
use super::arm::{self, Memory};
use super::pages::{Map, Ranges};
use crate::sys;

/// In a folder of images: some of the memory stays where it is, and who brings it listens there.
pub(super) const MARK: &str = "memory-later";
/// In the pager's folder: for CRIU, and for the one whom pages are asked of.
const FOR_CRIU: &str = "uffd.sock";
const FOR_PAGES: &str = "pages.sock";
/// `LAZY_PAGES_RESTORE_FINISHED` (criu/uffd.c).
const RESTORED: i32 = 0x5253_5446;
/// Asked for at once if somebody waits for the first page of it, and if nobody does, in bytes.
const READ_AHEAD: u64 = 64 << 10;
const PIECE: u64 = 256 << 10;
/// Among so many processes, those that have ended need not be looked for.
const FEW: usize = 8;
/// The most that is asked for at once: bytes, and ranges.
const MOST: u64 = 1 << 20;
const MOST_RANGES: usize = 256;
/// Between two tries to do what the kernel cannot do while the process changes its mappings.
const A_MOMENT: Duration = Duration::from_micros(20);

/// Whether this host can restore pods whose memory comes later.
#[must_use]
pub fn is_possible() -> bool {
    Path::new("/dev/userfaultfd").exists()
}

/// Notes in a folder of images that some of the memory stays where it is: in a restore, the pager of this folder brings it.
///
/// # Errors
/// I/O errors.
pub fn expect(images: &Path, pager: &Path) -> io::Result<()> {
    let mark = images.join(MARK);
    super::remove(&mark)?;
    symlink(pager.join(FOR_CRIU), mark)
}

/// Whether that was [noted](expect).
#[must_use]
pub fn is_expected(images: &Path) -> bool {
    images.join(MARK).is_symlink()
}

/// How much a dump has left behind, in bytes.
///
/// # Errors
/// I/O errors, or a damaged page map.
pub fn left(images: &Path) -> io::Result<u64> {
    Ok(maps(images)?.iter().map(|(_, map)| map.left_behind().bytes()).sum())
}

/// The page maps of a dump that was to leave memory behind, by name; of another one none.
pub(super) fn maps(images: &Path) -> io::Result<Vec<(String, Map)>> {
    let mut maps = Vec::new();
    if is_expected(images) {
        for entry in fs::read_dir(images)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("pagemap-") {
                let map = Map::parse(&fs::read(images.join(&name))?)?;
                maps.push((name, map));
            }
        }
    }
    Ok(maps)
}

/// Where a pager of this folder waits for the one whom it can ask for pages.
#[must_use]
pub fn socket(folder: &Path) -> PathBuf {
    folder.join(FOR_PAGES)
}

/// Memory of a process that stands still, one range after the other: all of it or an error.
///
/// # Errors
/// The process is gone, or has no such memory; or it is more than anybody asks for.
pub fn read(pid: i32, ranges: &[Range<u64>]) -> io::Result<Vec<u8>> {
    let bytes = ranges.iter().try_fold(0_u64, |sum, range| sum.checked_add(range.end.checked_sub(range.start)?));
    let bytes =
        bytes.filter(|bytes| *bytes <= MOST && ranges.len() <= MOST_RANGES).ok_or(io::ErrorKind::InvalidInput)?;
    let memory = Memory::of(pid)?;
    let mut data = vec![0; bytes as usize];
    arm::divided(ranges, &mut data).try_for_each(|(address, part)| memory.read_exact(address, part))?;
    Ok(data)
}

/// What a pager asks for: one at a time, each answered by bytes. It is sent as its size (u32, little-endian), and in bincode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Pages of a process on the source, by its PID in the pod; the answer is what they contain, one range after the other.
    Pages {
        /// PID.
        process: i32,
        /// Addresses in that process.
        ranges: Vec<Range<u64>>,
    },
    /// To hold a descriptor of the pager's; the answer is one byte.
    Hold {
        /// Its number.
        descriptor: RawFd,
    },
    /// Nothing more: all memory has come.
    Nothing,
    /// That the pod is killed: its memory is not what it should be.
    Kill {
        /// Why.
        reason: String,
    },
}

impl Request {
    /// The largest one has this many bytes.
    pub const MOST: usize = 16 << 10;

    /// What was read of the pager's socket, without the size.
    ///
    /// # Errors
    /// It is no request.
    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        let decoded = bincode::serde::decode_from_slice(bytes, bincode::config::standard());
        decoded.map(|(request, _)| request).map_err(io::Error::other)
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let bytes = bincode::serde::encode_to_vec(self, bincode::config::standard()).map_err(io::Error::other)?;
        let size = (bytes.len() as u32).to_le_bytes();
        Ok([size.as_slice(), &bytes].concat())
    }

    /// How many bytes the answer has.
    #[must_use]
    pub fn answer_size(&self) -> usize {
        match self {
            Self::Pages { ranges, .. } => ranges.iter().map(|range| (range.end - range.start) as usize).sum(),
            Self::Hold { .. } => 1,
            Self::Nothing | Self::Kill { .. } => 0,
        }
    }
}

/// A descriptor of another process, also ours.
///
/// # Errors
/// The process is gone, or has no such descriptor.
pub fn hold(pid: i32, descriptor: RawFd) -> io::Result<OwnedFd> {
    arm::take(Pid::from_raw(pid), descriptor)
}

/// Brings memory of a pod that is restored, or was.
#[derive(Debug)]
pub struct Pager {
    images: PathBuf,
    /// CRIU connects here, and hands processes in.
    for_criu: UnixListener,
    criu: Option<UnixStream>,
    restored: bool,
    /// Whoever can be asked connects here. The last one counts.
    for_pages: UnixListener,
    asked: Option<UnixStream>,
    under_way: Option<Request>,
    /// None of them is let go of before all memory has come: whoever asks has them, too, and would leave their changes unheard.
    processes: Vec<Paged>,
    /// Since ended ones were looked for.
    has_forked: bool,
    /// Why no more can be done for them.
    broken: Option<String>,
}

/// A process whose memory has not come yet.
#[derive(Debug)]
struct Paged {
    userfaultfd: OwnedFd,
    /// Whose memory it was on the source, by PID in the pod.
    source: i32,
    /// By where it began in the process on the source.
    missing: BTreeMap<u64, Part>,
    /// Pages that its threads wait for.
    wanted: VecDeque<u64>,
    is_held: bool,
}

/// Memory that has not come yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Where it is, by now.
    at: Range<u64>,
    /// Where it began in the process on the source.
    source: u64,
}

impl Pager {
    /// One that listens in `folder`, for a restore from the folder `images`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn listen(folder: &Path, images: &Path) -> io::Result<Self> {
        let bind = |name: &str| {
            super::remove(&folder.join(name))?;
            UnixListener::bind(folder.join(name))
        };
        Ok(Self {
            images: images.to_owned(),
            for_criu: bind(FOR_CRIU)?,
            criu: None,
            restored: false,
            for_pages: bind(FOR_PAGES)?,
            asked: None,
            under_way: None,
            processes: Vec::new(),
            has_forked: false,
            broken: None,
        })
    }

    /// Does its work for as long as this process lives.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn run(mut self) -> io::Result<()> {
        let mut zeros_are_put = true;
        loop {
            self.serve(if zeros_are_put { PollTimeout::NONE } else { PollTimeout::from(1u8) })?;
            zeros_are_put = self.processes.iter_mut().map(Paged::put_zeros).min().unwrap_or(true);
            // (Whoever is asked may just be taking hold of one of them.)
            if self.under_way.is_none() {
                // Of short-lived children.
                if std::mem::take(&mut self.has_forked) && self.processes.len() > FEW {
                    self.processes.retain(|process| !process.is_gone());
                }
                if self.restored && self.processes.iter().all(|process| process.missing.is_empty()) {
                    self.processes.clear();
                }
                self.ask();
            }
        }
    }

    /// Waits until something happens, or for so long, and sees to it.
    fn serve(&mut self, limit: PollTimeout) -> io::Result<()> {
        let streams = [&self.criu, &self.asked].map(|stream| stream.as_ref().map(AsFd::as_fd));
        let mut fds = vec![Some(self.for_criu.as_fd()), Some(self.for_pages.as_fd())];
        fds.extend(streams);
        // Whoever is not to go on waits for ever.
        let served = self.processes.iter().filter(|_| self.broken.is_none());
        fds.extend(served.map(|process| Some(process.userfaultfd.as_fd())));
        let ready = readable(&fds, limit)?;
        // Faults and changes first: what comes in this round may be for them.
        for index in (4..ready.len()).filter(|index| ready[*index]) {
            self.hear(index - 4);
        }
        if ready[0] {
            self.criu = self.for_criu.accept().ok().map(|(stream, _)| stream);
        } else if ready[2]
            && let Err(e) = self.take_process()
        {
            self.criu = None;
            if !self.restored {
                self.broken = Some(format!("CRIU has not handed all processes in: {e}"));
            }
        }
        if ready[1] {
            self.asked = self.for_pages.accept().ok().map(|(stream, _)| stream);
            // Whoever was asked before holds nothing any more.
            self.processes.iter_mut().for_each(|process| process.is_held = false);
            self.under_way = None;
        } else if ready[3] && self.take_answer().is_err() {
            self.asked = None;
            self.under_way = None;
        }
        Ok(())
    }

    /// CRIU hands a process in, or says that it has restored all.
    fn take_process(&mut self) -> io::Result<()> {
        let mut stream = self.criu.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut source = [0; size_of::<i32>()];
        stream.read_exact(&mut source)?;
        match i32::from_ne_bytes(source) {
            RESTORED => self.restored = true,
            // A zombie has no memory.
            source if source <= 0 => {}
            source => {
                let parts = left_behind(&self.images, source)?;
                let parts = parts.iter().map(|at| (at.start, Part { source: at.start, at })).collect();
                self.processes.push(Paged::new(receive_descriptor(stream)?, source, parts));
            }
        }
        Ok(())
    }

    /// Asks for what is needed most. Without anybody to ask, whoever waits goes on waiting.
    fn ask(&mut self) {
        let Some(request) = self.asked.is_some().then(|| self.next()).flatten() else { return };
        let asked = self.asked.as_mut().map(|stream| stream.write_all(&request.encode()?));
        match asked {
            Some(Ok(())) => self.under_way = Some(request),
            _ => self.asked = None,
        }
    }

    fn next(&mut self) -> Option<Request> {
        if let Some(reason) = &self.broken {
            return Some(Request::Kill { reason: reason.clone() });
        }
        if let Some(process) = self.processes.iter_mut().find(|process| !process.is_held && !process.missing.is_empty())
        {
            process.is_held = true;
            return Some(Request::Hold { descriptor: process.userfaultfd.as_raw_fd() });
        }
        if let Some(wanted) = self.processes.iter().find_map(Paged::wanted_pages) {
            return Some(wanted);
        }
        if !self.restored {
            // Nothing of the pod runs before that, and memory that comes takes time from the restore.
            return None;
        }
        let next = self.processes.iter().find_map(|process| process.pages(*process.missing.keys().next()?, PIECE));
        Some(next.unwrap_or(Request::Nothing))
    }

    /// What was asked for comes.
    fn take_answer(&mut self) -> io::Result<()> {
        let request = self.under_way.take().ok_or(io::ErrorKind::InvalidData)?;
        let mut stream = self.asked.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut answer = vec![0; request.answer_size()];
        stream.read_exact(&mut answer)?;
        match request {
            Request::Pages { process, ranges } => {
                let mut data = answer.as_slice();
                for range in ranges {
                    let (its, rest) = data.split_at((range.end - range.start) as usize);
                    self.put(process, range.start, its);
                    data = rest;
                }
            }
            Request::Hold { .. } => {}
            // Nobody says more after that.
            Request::Nothing | Request::Kill { .. } => self.asked = None,
        }
        Ok(())
    }

    /// Puts memory of a source process wherever it is missing: also in forks.
    fn put(&mut self, source: i32, address: u64, data: &[u8]) {
        let range = address..address + data.len() as u64;
        let mut index = 0;
        while index < self.processes.len() && self.broken.is_none() {
            let process = &self.processes[index];
            let part = Some(process.source).filter(|its| *its == source).and_then(|_| process.part_of(&range));
            match part {
                Some(part) => self.put_part(index, &part, &data[(part.source - address) as usize..]),
                None => index += 1,
            }
        }
    }

    /// Puts the first of this where it is missing.
    fn put_part(&mut self, index: usize, part: &Part, data: &[u8]) {
        let process = &mut self.processes[index];
        let (to, from) = (part.at.start, part.source);
        let all = &data[..(part.at.end - to) as usize];
        let put = sys::copy_to(&process.userfaultfd, to, all);
        // Also if this is more than one mapping: each of them was one before, or not registered at the same time.
        let put =
            if put == Err(Errno::ENOENT) { sys::copy_to(&process.userfaultfd, to, &all[..PAGE as usize]) } else { put };
        match put {
            Ok(copied) => process.came(&(from..from + copied as u64)),
            // In the midst of a change that the kernel tells of, if not yet; or there is no memory just now.
            Err(Errno::EAGAIN | Errno::ENOMEM) => {
                if !self.hear(index) {
                    std::thread::sleep(A_MOMENT);
                }
            }
            // It is not mapped any more, of which the kernel tells too late.
            Err(Errno::ENOENT) => {
                process.came(&(from..from + PAGE));
                sys::wake(&process.userfaultfd, to);
            }
            Err(Errno::ESRCH) => process.missing.clear(),
            // EEXIST, that is: somebody else has put something there, which cannot be right.
            Err(e) => self.broken = Some(format!("memory at {to:#x} cannot be put in place: {e}")),
        }
    }

    /// Hears what a process waits for, and what it has done to its mappings; whether that was anything.
    fn hear(&mut self, index: usize) -> bool {
        let events = match sys::memory_events(&self.processes[index].userfaultfd) {
            Ok(events) => events,
            Err(e) => {
                self.broken = Some(format!("what it does to its memory cannot be followed: {e}"));
                return false;
            }
        };
        let any = !events.is_empty();
        for event in events {
            let process = &mut self.processes[index];
            match event {
                sys::MemoryEvent::Fault(address) => process.wanted.push_back(address / PAGE * PAGE),
                sys::MemoryEvent::Removed(range) => drop(process.forget(&range)),
                sys::MemoryEvent::Moved { from, to } => process.moved(&from, to),
                sys::MemoryEvent::Forked(userfaultfd) => {
                    let child = Paged::new(userfaultfd, process.source, process.missing.clone());
                    self.processes.push(child);
                    self.has_forked = true;
                }
            }
        }
        any
    }
}

impl Paged {
    fn new(userfaultfd: OwnedFd, source: i32, missing: BTreeMap<u64, Part>) -> Self {
        Self { userfaultfd, source, missing, wanted: VecDeque::new(), is_held: false }
    }

    /// What threads wait for and never had content, or has it by now, is zero unless it is there. Whether that could be done.
    fn put_zeros(&mut self) -> bool {
        let is_missing = |page: &u64| self.missing.values().any(|part| part.at.contains(page));
        let (missing, others): (VecDeque<u64>, VecDeque<u64>) = self.wanted.iter().partition(|page| is_missing(page));
        self.wanted = missing;
        let mut all_done = true;
        for page in others {
            match sys::zero(&self.userfaultfd, page) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(Errno::EAGAIN | Errno::ENOMEM) => {
                    self.wanted.push_back(page);
                    all_done = false;
                }
                Err(_) => sys::wake(&self.userfaultfd, page),
            }
        }
        all_done
    }

    /// Whether the process has ended.
    fn is_gone(&self) -> bool {
        // Nobody has anything there but programs that are linked to be there.
        const LOWEST: u64 = 64 << 10;
        let is_missing = self.missing.values().any(|part| part.at.contains(&LOWEST));
        !is_missing && sys::zero(&self.userfaultfd, LOWEST) == Err(Errno::ESRCH)
    }

    /// What a thread waits for. It stays on the list until it has come, as whoever is asked may die.
    fn wanted_pages(&self) -> Option<Request> {
        let part_of = |page: &u64| self.missing.values().find(|part| part.at.contains(page));
        let (page, part) = self.wanted.iter().find_map(|page| Some((page, part_of(page)?)))?;
        self.pages(part.source + (page - part.at.start), READ_AHEAD)
    }

    /// A request for what is missing from an address of the source on.
    fn pages(&self, source: u64, most: u64) -> Option<Request> {
        let first = self.missing.range(..=source).next_back().map_or(source, |(start, _)| *start);
        let (mut ranges, mut room) = (Vec::new(), most);
        for part in self.missing.range(first..).map(|(_, part)| part).take(MOST_RANGES) {
            let start = part.source.max(source);
            let end = part.source_end().min(start + room);
            if start < end {
                room -= end - start;
                ranges.push(start..end);
            }
        }
        (!ranges.is_empty()).then_some(Request::Pages { process: self.source, ranges })
    }

    /// Something that is missing of this range of the source.
    fn part_of(&self, range: &Range<u64>) -> Option<Part> {
        let (_, part) = self.missing.range(..range.end).next_back()?;
        part.of_source(range)
    }

    /// What lies in this range of the source is in place.
    fn came(&mut self, range: &Range<u64>) {
        while let Some((start, _)) =
            self.missing.range(..range.end).next_back().filter(|(_, part)| part.source_end() > range.start)
        {
            let start = *start;
            let part = self.missing.remove(&start);
            let rest = |part: Part| [0..range.start, range.end..u64::MAX].map(|rest| part.of_source(&rest));
            self.missing.extend(part.into_iter().flat_map(rest).flatten().map(|part| (part.source, part)));
        }
    }

    /// What lies in this range is not wanted any more; returned.
    fn forget(&mut self, range: &Range<u64>) -> Vec<Part> {
        let gone: Vec<Part> = self.missing.values().filter_map(|part| part.at_within(range)).collect();
        gone.iter().for_each(|part| self.came(&(part.source..part.source_end())));
        gone
    }

    /// What lies in this range is elsewhere now.
    fn moved(&mut self, from: &Range<u64>, to: u64) {
        for part in self.forget(from) {
            let start = part.at.start - from.start + to;
            let at = start..start + (part.at.end - part.at.start);
            self.missing.insert(part.source, Part { at, ..part });
        }
    }
}

impl Part {
    fn source_end(&self) -> u64 {
        self.source + (self.at.end - self.at.start)
    }

    /// What of it lies in this range, by where it is.
    fn at_within(&self, range: &Range<u64>) -> Option<Self> {
        let at = self.at.start.max(range.start)..self.at.end.min(range.end);
        (at.start < at.end).then(|| Self { source: self.source + (at.start - self.at.start), at })
    }

    /// What of it lies in this range, by where it was on the source.
    fn of_source(&self, range: &Range<u64>) -> Option<Self> {
        let (start, end) = (self.source.max(range.start), self.source_end().min(range.end));
        let at = |source| self.at.start + (source - self.source);
        (start < end).then(|| Self { source: start, at: at(start)..at(end) })
    }
}

/// What a dump has left behind of the memory of a process, by its page map.
fn left_behind(images: &Path, process: i32) -> io::Result<Ranges> {
    let map = images.join(format!("pagemap-{process}.img"));
    // One that has none has no memory of its own.
    if map.exists() { Ok(Map::parse(&fs::read(map)?)?.left_behind()) } else { Ok(Ranges::default()) }
}

/// Which of them can be read, or have ended.
fn readable(of: &[Option<BorrowedFd<'_>>], limit: PollTimeout) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> = of.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, limit) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut fds = fds.into_iter();
    Ok(of.iter().map(|fd| fd.and_then(|_| fds.next()).and_then(|fd| fd.any()).unwrap_or(false)).collect())
}

/// CRIU sends one with a byte.
fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!(RawFd));
    let mut data = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let rights = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    rights.map(sys::received).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(parts: &[Range<u64>]) -> Paged {
        let parts = parts.iter().map(|at| (at.start, Part { source: at.start, at: at.clone() })).collect();
        Paged::new(fs::File::open("/dev/null").unwrap().into(), 7, parts)
    }

    fn missing(process: &Paged) -> Vec<(Range<u64>, u64)> {
        process.missing.values().map(|part| (part.at.clone(), part.source)).collect()
    }

    #[test]
    fn what_is_moved_still_comes_from_where_it_was() {
        let mut process = paged(&[100..200, 300..310]);
        process.forget(&(120..130));
        process.moved(&(90..150), 1090);
        assert_eq!(missing(&process), [(1100..1120, 100), (1130..1150, 130), (150..200, 150), (300..310, 300)]);
        // Moved once more, in part.
        process.moved(&(1110..1135), 5010);
        assert_eq!(process.part_of(&(131..133)), Some(Part { at: 5031..5033, source: 131 }));
        assert_eq!(process.part_of(&(120..130)), None);
        assert_eq!(process.part_of(&(0..105)), Some(Part { at: 1100..1105, source: 100 }));
        process.came(&(105..305));
        assert_eq!(missing(&process), [(1100..1105, 100), (305..310, 305)]);
    }

    /// Against the plainest way to do it: where each page of the source is.
    #[test]
    fn parts_are_sets_of_pages() {
        let (mut process, mut pages): (_, BTreeMap<u64, u64>) =
            (paged(&[0..400, 400..500]), (0..500).map(|at| (at, at)).collect());
        let mut seed = 7_u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for n in 0..300 {
            let start = below(500);
            let range = start..start + below(20);
            match below(3) {
                0 => {
                    process.came(&range);
                    pages.retain(|source, _| !range.contains(source));
                }
                1 => {
                    process.forget(&range);
                    pages.retain(|_, at| !range.contains(at));
                }
                // To where nothing is.
                _ => {
                    let to = 1000 * (n + 1);
                    process.moved(&range, to);
                    pages.values_mut().filter(|at| range.contains(at)).for_each(|at| *at = *at - range.start + to);
                }
            }
            let now: Vec<(u64, u64)> =
                missing(&process).into_iter().flat_map(|(at, source)| (source..).zip(at)).collect();
            assert_eq!(now, pages.iter().map(|(source, at)| (*source, *at)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn requests_are_bounded() {
        let pieces: Vec<Range<u64>> = (0..1000).map(|n| n * 2 * PAGE..(n * 2 + 1) * PAGE).collect();
        let scattered = paged(&pieces);
        let request = scattered.pages(3 * PAGE, PIECE).unwrap();
        let Request::Pages { ranges, .. } = &request else { panic!("{request:?}") };
        assert_eq!(ranges[0], 4 * PAGE..5 * PAGE, "the first one from there on");
        assert_eq!(request.answer_size() as u64, PIECE);
        let bytes = request.encode().unwrap();
        assert!(bytes.len() < Request::MOST, "{}", bytes.len());
        assert_eq!(Request::decode(&bytes[4..]).unwrap(), request);
        let two = paged(&[0..10 * PIECE, 11 * PIECE..12 * PIECE]);
        let request = two.pages(9 * PIECE + PAGE, PIECE).unwrap();
        let ranges = vec![9 * PIECE + PAGE..10 * PIECE, 11 * PIECE..11 * PIECE + PAGE];
        assert_eq!(request, Request::Pages { process: 7, ranges });
        let backwards = Range { start: 5, end: 3 };
        assert!(read(1, &[0..MOST, 0..1]).is_err() && read(1, &[0..1, backwards]).is_err());
    }
}
