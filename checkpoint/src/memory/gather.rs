//! What a dump has left behind in its processes, which still stand still, on its way into an image: copied once, and not through CRIU's
//! pipes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::arm::Memory;
use super::lazy;
use super::pages::{Entry, Map, Ranges};
use crate::process::pod_pid;

/// In place of a file of a dump.
pub enum Gathered {
    /// A page map.
    Map(Vec<u8>),
    /// A page file.
    Pages(Pages),
}

/// All content that a page map speaks of.
pub struct Pages {
    /// In the order of addresses.
    parts: Vec<Part>,
    process: Memory,
    /// The page file of the dump.
    file: File,
}

/// A range of pages.
struct Part {
    /// Where it begins in the content.
    at: u64,
    range: Range<u64>,
    /// Where it begins in the page file of the dump; none: in the process.
    dumped: Option<u64>,
}

/// For each process of which the dump in `images` has [left memory behind](super::lazy::expect), its page map and page file by name, with
/// that in them. `pids`: all of the pod's.
///
/// # Errors
/// I/O errors, a damaged page map, or one of a process that is not there.
pub fn gather(images: &Path, pids: &[i32]) -> io::Result<BTreeMap<String, Gathered>> {
    let mut gathered = BTreeMap::new();
    let pids: HashMap<i32, i32> = pids.iter().filter_map(|pid| Some((pod_pid(*pid)?, *pid))).collect();
    for (name, Map { id, entries }) in lazy::maps(images)? {
        if !entries.iter().any(Entry::is_left_behind) {
            continue;
        }
        let process = name.strip_prefix("pagemap-").and_then(|rest| rest.strip_suffix(".img")?.parse::<i32>().ok());
        let pid = process.and_then(|process| pids.get(&process));
        let pid = pid.ok_or_else(|| io::Error::other(format!("the process of {name} is gone")))?;
        let pages_name = format!("pages-{id}.img");
        let (pages, ranges) = Pages::new(entries, Memory::of(*pid)?, File::open(images.join(&pages_name))?)?;
        gathered.insert(name, Gathered::Map(Map::present(id, &ranges).encode()));
        gathered.insert(pages_name, Gathered::Pages(pages));
    }
    Ok(gathered)
}

impl Pages {
    /// And what they are.
    fn new(entries: Vec<Entry>, process: Memory, file: File) -> io::Result<(Self, Ranges)> {
        let mut parts = Vec::new();
        let mut of_dump = 0;
        for entry in entries {
            let length = entry.range.end - entry.range.start;
            let dumped = entry.is_present().then_some(of_dump);
            of_dump += dumped.map_or(0, |_| length);
            if dumped.is_none() && !entry.is_left_behind() {
                return Err(io::Error::other("a page map refers to another dump"));
            }
            parts.push(Part { at: 0, range: entry.range, dumped });
        }
        parts.sort_by_key(|part| part.range.start);
        let (mut at, mut ranges) = (0, Ranges::default());
        for part in &mut parts {
            ranges.add(part.range.clone());
            part.at = at;
            at += part.range.end - part.range.start;
        }
        // Or a page would be another one's.
        if at != ranges.bytes() || of_dump != file.metadata()?.len() {
            return Err(io::Error::other("a page map and its page file do not fit"));
        }
        Ok((Self { parts, process, file }, ranges))
    }

    /// Bytes of content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.parts.last().map_or(0, |last| last.at + (last.range.end - last.range.start))
    }

    /// Reads as much as there is room for, from `at` on.
    ///
    /// # Errors
    /// The process is gone, or there is not so much.
    pub fn read(&self, at: u64, mut content: &mut [u8]) -> io::Result<()> {
        if at + content.len() as u64 > self.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = self.parts.partition_point(|part| part.at <= at).saturating_sub(1);
        for part in &self.parts[first..] {
            if content.is_empty() {
                break;
            }
            let skipped = at.saturating_sub(part.at);
            let start = part.range.start + skipped;
            let length = (part.range.end - start).min(content.len() as u64) as usize;
            let (its, rest) = std::mem::take(&mut content).split_at_mut(length);
            match part.dumped {
                Some(offset) => self.file.read_exact_at(its, offset + skipped)?,
                None => self.process.read_exact(start, its)?,
            }
            content = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::memory::PAGE;
    use crate::memory::lazy::expect;

    /// Ours, as that of a process whose dump has taken along some pages, and left others.
    #[test]
    fn what_was_dumped_and_what_was_left_become_one() {
        const PAGES: u64 = 1000;
        let content = |salt: u64| move |page: u64| vec![(page * 7 + salt) as u8; PAGE as usize];
        let memory: Vec<u8> = (0..PAGES + 1).flat_map(content(1)).collect();
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let skew = (start - memory.as_ptr() as u64) as usize;
        let dir = tempfile::tempdir().unwrap();
        let page = |n: u64| start + n * PAGE;
        // A dump may give them in any order.
        let dumped = [700..800, 3..4, 4..40];
        let left = [0..3, 40..600, 800..801, 900..PAGES];
        let entry = |pages: &Range<u64>, is_left| {
            let range = page(pages.start)..page(pages.end);
            if is_left { Entry::left_behind(range) } else { Entry::present(range) }
        };
        let mut entries: Vec<Entry> = dumped.iter().map(|pages| entry(pages, false)).collect();
        entries.extend(left.iter().map(|pages| entry(pages, true)));
        let own = pod_pid(std::process::id().cast_signed()).unwrap();
        let of_dump: Vec<u8> = dumped.iter().cloned().flatten().flat_map(content(2)).collect();
        fs::write(dir.path().join("pages-7.img"), of_dump).unwrap();
        fs::write(dir.path().join(format!("pagemap-{own}.img")), Map { id: 7, entries }.encode()).unwrap();
        let us = [std::process::id().cast_signed()];
        assert!(gather(dir.path(), &us).unwrap().is_empty(), "nothing was to be left behind");
        expect(dir.path(), dir.path()).unwrap();
        assert!(gather(dir.path(), &[]).is_err(), "the process is not there");

        let mut gathered = gather(dir.path(), &us).unwrap();
        let Some(Gathered::Map(map)) = gathered.remove(&format!("pagemap-{own}.img")) else { panic!("no page map") };
        let Some(Gathered::Pages(pages)) = gathered.remove("pages-7.img") else { panic!("no pages") };
        assert!(gathered.is_empty());
        let mut expected = Vec::new();
        let mut all: Vec<_> = dumped.iter().map(|p| (p, true)).chain(left.iter().map(|p| (p, false))).collect();
        all.sort_by_key(|(pages, _)| pages.start);
        for (pages, is_dumped) in all {
            let its = skew + (pages.start * PAGE) as usize..skew + (pages.end * PAGE) as usize;
            expected.extend(if is_dumped {
                pages.clone().flat_map(content(2)).collect()
            } else {
                memory[its].to_vec()
            });
        }
        assert_eq!(pages.size(), expected.len() as u64);
        let map = Map::parse(&map).unwrap();
        let ranges: Vec<_> = map.entries.iter().map(|entry| entry.range.clone()).collect();
        assert!(map.entries.iter().all(Entry::is_present));
        assert_eq!(ranges, [page(0)..page(600), page(700)..page(801), page(900)..page(PAGES)]);
        for piece in [4096, 12_288, 70_000, 1 << 20] {
            let mut read = vec![0; expected.len()];
            for (at, content) in (0..).step_by(piece).zip(read.chunks_mut(piece)) {
                pages.read(at, content).unwrap();
            }
            assert!(read == expected, "{piece} bytes at once");
        }
        assert!(pages.read(pages.size() - PAGE, &mut vec![0; 2 * PAGE as usize]).is_err());
        // A page file that is shorter than its map says.
        File::options().write(true).open(dir.path().join("pages-7.img")).unwrap().set_len(PAGE).unwrap();
        assert!(gather(dir.path(), &us).is_err());
    }
}
