//! Reads a file's content, leaving out holes and blocks that the target is known to have.

use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::sync::mpsc;
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};
use xxhash_rust::xxh3::xxh3_128;

use super::{MAX_CHUNK, Op, Result};

/// Unit of comparison, in bytes.
const BLOCK: u64 = 64 << 10;
/// Files from this size on are read by several threads, in bytes.
const DIVIDED_FROM: u64 = 8 << 20;
const MAX_WORKERS: usize = 4;

/// Which blocks of a file the target has, by hash, sorted by number; where one is missing the target has a hole.
///
/// xxh3 is no defence against a pod that makes collisions; it could only spoil its own file.
#[derive(Debug, Default)]
pub(super) struct Blocks(Vec<(u64, u128)>);

/// What to do with a file's content.
pub(super) enum Against<'a> {
    /// The target's file is empty; blocks are not worth remembering.
    Nothing,
    /// The target's file is empty.
    Empty,
    /// The target's file holds these.
    Copy(&'a Blocks),
}

/// Why reading stopped.
pub(super) enum Fault {
    /// The file could not be read.
    Read(Errno),
    /// The sink failed.
    Sink(super::Error),
}

/// Emits what makes this range of `file`, which begins with a block and ends with one or with the file, out of what the target has,
/// in any order, and returns what it has then. A file that is cut short meanwhile reads as zeros from there on.
pub(super) fn send(
    file: BorrowedFd,
    range: Range<u64>,
    against: &Against,
    sink: &mut dyn FnMut(Op) -> Result<()>,
) -> std::result::Result<Blocks, Fault> {
    let mut sent = Blocks::default();
    if range.end - range.start < DIVIDED_FROM {
        sent = send_range(file, range.clone(), against, sink)?;
    } else {
        for part in send_parts(file, &range, against, sink)? {
            sent.0.extend(part.0);
        }
    }
    if let Against::Copy(old) = against {
        for op in vanished(old, &sent, &range) {
            sink(op).map_err(Fault::Sink)?;
        }
    }
    Ok(sent)
}

/// Reads and hashes with several threads: while the pod is frozen, this is what it waits for.
fn send_parts(
    file: BorrowedFd,
    range: &Range<u64>,
    against: &Against,
    sink: &mut dyn FnMut(Op) -> Result<()>,
) -> std::result::Result<Vec<Blocks>, Fault> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS) as u64;
    let part = (range.end - range.start).div_ceil(workers).next_multiple_of(BLOCK);
    let begin = |worker: u64| range.end.min(range.start + worker * part);
    let (ops, received) = mpsc::sync_channel(MAX_WORKERS);
    thread::scope(|scope| {
        let parts = (0..workers).map(|worker| begin(worker)..begin(worker + 1));
        let workers = parts.map(|range| {
            let ops = ops.clone();
            let mut hand_over = move |op| ops.send(op).map_err(|_| super::Error::Sink(ErrorKind::BrokenPipe.into()));
            scope.spawn(move || send_range(file, range, against, &mut hand_over))
        });
        let workers: Vec<_> = workers.collect();
        drop(ops);
        // Dropping the receiver ends the workers if the sink failed.
        let delivered = received.into_iter().try_for_each(sink);
        let parts = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let parts: Vec<_> = parts.collect();
        delivered.map_err(Fault::Sink)?;
        parts.into_iter().collect()
    })
}

/// The same by this thread alone.
fn send_range(
    file: BorrowedFd,
    range: Range<u64>,
    against: &Against,
    sink: &mut dyn FnMut(Op) -> Result<()>,
) -> std::result::Result<Blocks, Fault> {
    let mut sent = Blocks::default();
    let mut windows = Windows { file, at: range.start, end: range.end, pending: None };
    let mut buffer = Vec::new();
    while let Some(window) = windows.next().map_err(Fault::Read)? {
        window.read(file, &mut buffer).map_err(Fault::Read)?;
        for op in window.compare(&buffer, against, &mut sent) {
            sink(op).map_err(Fault::Sink)?;
        }
    }
    Ok(sent)
}

/// At most [`MAX_CHUNK`] bytes of a file, from a block's start on, and where in them data is.
struct Window {
    start: u64,
    end: u64,
    extents: Vec<(u64, u64)>,
}

struct Windows<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    end: u64,
    pending: Option<(u64, u64)>,
}

impl Windows<'_> {
    fn next(&mut self) -> std::result::Result<Option<Window>, Errno> {
        let Some(mut extent) = self.extent()? else {
            return Ok(None);
        };
        let start = extent.0 - extent.0 % BLOCK;
        let end = self.end.min(start + MAX_CHUNK as u64);
        let mut extents = Vec::new();
        loop {
            extents.push((extent.0, extent.1.min(end)));
            if extent.1 > end {
                self.pending = Some((end, extent.1));
                break;
            }
            match self.extent()? {
                Some(next) if next.0 < end => extent = next,
                next => {
                    self.pending = next;
                    break;
                }
            }
        }
        Ok(Some(Window { start, end, extents }))
    }

    /// The next range with data.
    fn extent(&mut self) -> std::result::Result<Option<(u64, u64)>, Errno> {
        if let Some(extent) = self.pending.take() {
            return Ok(Some(extent));
        }
        if self.at >= self.end {
            return Ok(None);
        }
        let from = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(from) if from < self.end => from,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            // This file system does not tell.
            Err(Errno::INVAL) => self.at,
            Err(errno) => return Err(errno),
        };
        let to = match seek(self.file, SeekFrom::Hole(from)) {
            Ok(to) if to > from => to.min(self.end),
            Ok(_) | Err(Errno::NXIO | Errno::INVAL) => self.end,
            Err(errno) => return Err(errno),
        };
        self.at = to;
        Ok(Some((from, to)))
    }
}

impl Window {
    fn read(&self, file: BorrowedFd, buffer: &mut Vec<u8>) -> std::result::Result<(), Errno> {
        let size = (self.end - self.start) as usize;
        if self.extents[..] != [(self.start, self.end)] {
            buffer.clear();
        }
        buffer.resize(size, 0);
        for (from, to) in &self.extents {
            let mut rest = &mut buffer[(from - self.start) as usize..(to - self.start) as usize];
            let mut offset = *from;
            while !rest.is_empty() {
                match pread(file, &mut *rest, offset) {
                    Ok(0) => {
                        rest.fill(0);
                        break;
                    }
                    Ok(count) => {
                        rest = &mut rest[count..];
                        offset += count as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    /// Notes the window's blocks in `sent`; returns what the target lacks of them.
    fn compare(&self, buffer: &[u8], against: &Against, sent: &mut Blocks) -> Vec<Op> {
        let mut holes = Vec::new();
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut next_extent = 0;
        for start in (self.start..self.end).step_by(BLOCK as usize) {
            let end = self.end.min(start + BLOCK);
            while self.extents.get(next_extent).is_some_and(|extent| extent.1 <= start) {
                next_extent += 1;
            }
            let within = self.extents[next_extent..].iter().take_while(|extent| extent.0 < end);
            let within: Vec<_> = within.map(|extent| (extent.0.max(start), extent.1.min(end))).collect();
            if within.is_empty() {
                continue;
            }
            if !matches!(against, Against::Nothing) {
                let hash = xxh3_128(&buffer[(start - self.start) as usize..(end - self.start) as usize]);
                let number = start / BLOCK;
                sent.0.push((number, hash));
                if let Against::Copy(old) = against {
                    match old.get(number) {
                        Some(known) if known == hash => continue,
                        Some(_) if within[..] != [(start, end)] => holes.push((start, end)),
                        _ => {}
                    }
                }
            }
            for piece in within {
                join(&mut pieces, piece);
            }
        }
        let holes = holes.into_iter().map(|(from, to)| Op::Hole { offset: from, len: to - from });
        let data = pieces.into_iter().map(|(from, to)| Op::Data {
            offset: from,
            bytes: buffer[(from - self.start) as usize..(to - self.start) as usize].to_vec(),
        });
        holes.chain(data).collect()
    }
}

/// Holes where the target still has blocks that the file has no more.
fn vanished(old: &Blocks, new: &Blocks, range: &Range<u64>) -> impl Iterator<Item = Op> {
    let mut ranges = Vec::new();
    for (number, _) in &old.0 {
        let start = number * BLOCK;
        if range.contains(&start) && new.get(*number).is_none() {
            join(&mut ranges, (start, range.end.min(start + BLOCK)));
        }
    }
    ranges.into_iter().map(|(from, to)| Op::Hole { offset: from, len: to - from })
}

fn join(ranges: &mut Vec<(u64, u64)>, range: (u64, u64)) {
    match ranges.last_mut() {
        Some(last) if last.1 == range.0 => last.1 = range.1,
        _ => ranges.push(range),
    }
}

impl Blocks {
    /// Where the last one begins, or the last one of a file that is `size` bytes long by now.
    pub(super) fn last_start(&self, size: u64) -> u64 {
        let last = self.0.last().map_or(0, |(number, _)| number * BLOCK);
        last.min(size / BLOCK * BLOCK)
    }

    fn get(&self, number: u64) -> Option<u128> {
        let at = self.0.binary_search_by_key(&number, |block| block.0).ok()?;
        Some(self.0[at].1)
    }
}
