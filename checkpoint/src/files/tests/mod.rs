//! Tests of the whole path from a tree to its copy. They need root, as the code does.
#![allow(clippy::unwrap_used)]

mod cases;
mod change;
mod hostile;
mod live;
mod mapping;
mod property;
mod speed;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A tree, its copy, and the two ends.
struct Pair {
    dir: tempfile::TempDir,
    sender: Sender,
    receiver: Receiver,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        let (sender, receiver) = (Sender::new(&source).unwrap(), Receiver::new(&target).unwrap());
        Pair { dir, sender, receiver }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn pass(&mut self, mode: Mode) -> PassReport {
        self.pass_with(mode, &[], &mut |_| {})
    }

    /// Every operation goes through its encoding and is applied twice.
    fn pass_with(&mut self, mode: Mode, assume_changed: &[&str], during: &mut dyn FnMut(usize)) -> PassReport {
        let assume_changed: BTreeSet<PathBuf> = assume_changed.iter().map(PathBuf::from).collect();
        let mut count = 0;
        let receiver = &mut self.receiver;
        let report = self.sender.pass(mode, &assume_changed, &mut |op| {
            during(count);
            count += 1;
            let op = recode(&op);
            receiver.apply(op.clone())?;
            receiver.apply(op)
        });
        self.receiver.finish(false).unwrap();
        report.unwrap()
    }

    /// A last pass, and what it had left.
    fn last_pass(&mut self) -> (PassReport, PassReport) {
        let (sender, receiver) = (&mut self.sender, &mut self.receiver);
        let mut apply = |op: Op| {
            let op = recode(&op);
            receiver.apply(op.clone())?;
            receiver.apply(op)
        };
        let (report, unverified) = sender.last_pass(&BTreeSet::new(), &mut apply).unwrap();
        let verified = sender.verify(unverified, &mut apply).unwrap();
        self.receiver.finish(false).unwrap();
        (report, verified)
    }

    fn assert_equal(&self) {
        assert_equal(&self.source(), &self.target());
    }
}

fn recode(op: &Op) -> Op {
    let config = bincode::config::standard();
    let bytes = bincode::serde::encode_to_vec(op, config).unwrap();
    assert!(bytes.len() < 3 << 19);
    bincode::serde::decode_from_slice(&bytes, config).unwrap().0
}

fn assert_equal(source: &Path, target: &Path) {
    let (a, b) = (listing(source), listing(target));
    for (path, line) in &a {
        assert_eq!(Some(line), b.get(path), "{path:?}");
    }
    assert_eq!(a.len(), b.len());
    assert_eq!(digest(source).unwrap(), digest(target).unwrap());
}

/// All that a copy must share: type, size, target, metadata with times, and with whom the inode is shared.
fn listing(root: &Path) -> BTreeMap<RelPath, String> {
    let tree = Tree::scan(root).unwrap();
    let mut names: BTreeMap<Inode, Vec<&RelPath>> = BTreeMap::new();
    for entry in tree.entries.iter().filter(|entry| entry.is_linkable()) {
        names.entry(entry.inode).or_default().push(&entry.path);
    }
    let line = |entry: &Entry| {
        let same = names.get(&entry.inode).filter(|_| entry.is_linkable());
        format!("{:?} {:?} {same:?}", entry.kind, entry.meta.portable())
    };
    tree.entries.iter().map(|entry| (entry.path.clone(), line(entry))).collect()
}

/// Longer than the slack in which a scan distrusts a file's time.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(80));
}

/// Bytes that differ from place to place.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(size);
    bytes
}
