//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst): the kernel notes which pages were written since somebody has
//! cleared the bits of a process.
//!
//! They are read and cleared in two steps, so nobody may write in between: the processes stand still for both.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::PAGE;
use super::pages::Ranges;

/// Bits of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const SOFT_DIRTY: u64 = 1 << 55;
/// Entries read at once: those of 32 MiB.
const ENTRIES: usize = 8192;

/// What a process has of a range.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Pages that belong to it alone.
    pub(super) own: Ranges,
    /// Those of them that were written since its bits were cleared.
    pub(super) written: Ranges,
}

/// Looks at the pages of a range.
pub(super) fn find(pagemap: &File, range: &Range<u64>, found: &mut Found) -> io::Result<()> {
    let mut buffer = vec![0; ENTRIES * 8];
    let mut start = range.start;
    while start < range.end {
        let entries = ((range.end - start) / PAGE).min(ENTRIES as u64);
        let buffer = &mut buffer[..entries as usize * 8];
        pagemap.read_exact_at(buffer, start / PAGE * 8)?;
        for (entry, address) in buffer.chunks_exact(8).zip((start..).step_by(PAGE as usize)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(entry);
            let entry = u64::from_ne_bytes(bytes);
            if entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0 {
                found.own.add(address..address + PAGE);
                if entry & SOFT_DIRTY != 0 {
                    found.written.add(address..address + PAGE);
                }
            }
        }
        start += entries * PAGE;
    }
    Ok(())
}

/// From now on, only what is written later counts.
pub(super) fn clear(pid: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "4")
}
