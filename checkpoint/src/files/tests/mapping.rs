//! Writes through a shared mapping, of which the kernel tells only the first to a clean page.

use std::fs::OpenOptions;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::*;

const SIZE: usize = 2 << 20;

/// A file mapped for writing, as a database does it.
struct Mapping(*mut u8);

impl Mapping {
    fn new(path: &Path) -> Mapping {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; the file is SIZE bytes long and stays so.
        let start = unsafe { mmap(null_mut(), SIZE, protection, flags, &file, 0) }.unwrap();
        Mapping(start.cast())
    }

    fn write(&self, at: usize, byte: u8) {
        assert!(at < SIZE);
        // SAFETY: within the mapping, which lives as long as self.
        unsafe { self.0.add(at).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, used by nobody any more.
        unsafe { munmap(self.0.cast(), SIZE) }.unwrap();
    }
}

fn mapped() -> (Pair, PathBuf) {
    let pair = Pair::new();
    let path = pair.source().join("mapped");
    fs::write(&path, noise(1, SIZE)).unwrap();
    (pair, path)
}

#[test]
fn named_as_mapped() {
    let (mut pair, path) = mapped();
    let mapping = Mapping::new(&path);
    mapping.write(5, 1);
    settle();
    pair.pass_with(Mode::Live, &["mapped"], &mut |_| {});
    mapping.write(5, 2);
    settle();
    pair.pass_with(Mode::Frozen, &["mapped"], &mut |_| {});
    pair.assert_equal();
    // The pod goes on after all, and drops the mapping.
    settle();
    mapping.write(5, 3);
    drop(mapping);
    pair.pass(Mode::Frozen);
    pair.assert_equal();
}

#[test]
fn unnamed_because_unmapped_before_the_last_pass() {
    let (mut pair, path) = mapped();
    let tmpfs = rustix::fs::statfs(&path).unwrap().f_type == 0x0102_1994;
    let mapping = Mapping::new(&path);
    mapping.write(5, 1);
    settle();
    // On tmpfs, which never gives a new time, the file must be named at least while it is mapped.
    let named: &[&str] = if tmpfs { &["mapped"] } else { &[] };
    pair.pass_with(Mode::Live, named, &mut |_| {});
    mapping.write(5, 2);
    drop(mapping);
    pair.pass(Mode::Frozen);
    pair.assert_equal();
}

/// What the flush in a live pass is for: without it this test's page would be written unnoticed.
#[test]
fn a_page_dirtied_long_ago_and_written_after_a_live_pass() {
    let (mut pair, path) = mapped();
    if rustix::fs::statfs(&path).unwrap().f_type == 0x0102_1994 {
        return;
    }
    let mapping = Mapping::new(&path);
    pair.pass(Mode::Live);
    mapping.write(5, 1);
    settle();
    // Its time is old by now and can be trusted.
    pair.pass(Mode::Live);
    let time = path.metadata().unwrap().modified().unwrap();
    mapping.write(5, 2);
    assert_ne!(path.metadata().unwrap().modified().unwrap(), time);
    drop(mapping);
    pair.pass(Mode::Frozen);
    pair.assert_equal();
}
