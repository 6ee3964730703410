//! What must come out of particular situations.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{CWD, FileType, XattrFlags, lgetxattr, lsetxattr, makedev, mknodat};

use super::*;

#[test]
fn one_changed_block_of_a_big_file_is_little_to_send() {
    let mut pair = Pair::new();
    let path = pair.source().join("big");
    fs::write(&path, noise(1, 100_000_000)).unwrap();
    assert_eq!(pair.pass(Mode::Live).bytes, 100_000_000);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"changed", 50_000_000).unwrap();
    let report = pair.pass(Mode::Frozen);
    assert_eq!(report.files, 1);
    assert!(report.bytes > 0 && report.bytes < 1 << 20, "{report:?}");
    pair.assert_equal();
}

#[test]
fn of_a_large_file_only_the_end_is_compared_at_first() {
    let mut pair = Pair::new();
    let path = pair.source().join("log");
    fs::write(&path, noise(1, 20_000_000)).unwrap();
    fs::write(pair.source().join("small"), "1").unwrap();
    pair.pass(Mode::Live);
    fs::write(pair.source().join("small"), "22").unwrap();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, b"one line more").unwrap();
    let (last, verified) = pair.last_pass();
    assert!(last.files == 2 && last.bytes < 128 << 10, "{last:?}");
    assert_eq!((verified.files, verified.bytes), (1, 0));
    pair.assert_equal();
    // Nobody has to believe that only the end has changed.
    pair.pass(Mode::Live);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"changed", 10_000_000).unwrap();
    file.set_len(19_000_000).unwrap();
    let (_, verified) = pair.last_pass();
    assert!(verified.bytes > 0 && verified.bytes < 128 << 10, "{verified:?}");
    pair.assert_equal();
    // A program's bits and content are right before anybody looks at it, and so is what has a second name.
    for (mode, second_name) in [(0o4755, false), (0o644, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if second_name {
            fs::hard_link(&path, path.with_file_name("second")).unwrap();
        }
        pair.pass(Mode::Live);
        file.write_all_at(&mode.to_ne_bytes(), 5_000_000).unwrap();
        let (last, verified) = pair.last_pass();
        assert!(last.bytes > 0 && verified == PassReport::default(), "{last:?} {verified:?}");
        pair.assert_equal();
    }
}

#[test]
fn a_renamed_file_is_not_sent_again() {
    let mut pair = Pair::new();
    let source = pair.source();
    fs::create_dir(source.join("log")).unwrap();
    fs::write(source.join("log/app"), noise(1, 3 << 20)).unwrap();
    fs::write(source.join("log/app.1"), noise(2, 2 << 20)).unwrap();
    pair.pass(Mode::Live);
    fs::rename(source.join("log/app.1"), source.join("log/app.2")).unwrap();
    fs::rename(source.join("log/app"), source.join("log/app.1")).unwrap();
    fs::write(source.join("log/app"), "new").unwrap();
    fs::rename(source.join("log"), source.join("logs")).unwrap();
    assert_eq!(pair.pass(Mode::Frozen).bytes, 3);
    pair.assert_equal();
}

#[test]
fn swapped_files_keep_their_content() {
    let mut pair = Pair::new();
    let dir = pair.source().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a"), noise(1, 2 << 20)).unwrap();
    fs::write(dir.join("b"), noise(2, 2 << 20)).unwrap();
    settle();
    pair.pass(Mode::Live);
    fs::rename(dir.join("a"), dir.join("c")).unwrap();
    fs::rename(dir.join("b"), dir.join("a")).unwrap();
    fs::rename(dir.join("c"), dir.join("b")).unwrap();
    assert_eq!(pair.pass(Mode::Frozen).bytes, 0);
    pair.assert_equal();
}

#[test]
fn a_file_renamed_under_our_hands_is_found_again() {
    let mut pair = Pair::new();
    let source = pair.source();
    for name in ["a", "b", "b2"] {
        fs::write(source.join(name), name).unwrap();
    }
    fs::hard_link(source.join("b"), source.join("c")).unwrap();
    settle();
    pair.pass_with(Mode::Live, &[], &mut |count| {
        if count == 1 {
            fs::rename(source.join("b"), source.join("z")).unwrap();
            fs::rename(source.join("b2"), source.join("b")).unwrap();
        }
    });
    pair.pass(Mode::Frozen);
    pair.assert_equal();
}

#[test]
fn attributes_that_went_away_go_away() {
    let mut pair = Pair::new();
    let file = pair.source().join("file");
    fs::write(&file, "x").unwrap();
    for name in ["user.a", "user.b"] {
        lsetxattr(&file, name, b"value", XattrFlags::empty()).unwrap();
    }
    pair.pass(Mode::Live);
    rustix::fs::lremovexattr(&file, "user.a").unwrap();
    pair.pass(Mode::Frozen);
    pair.assert_equal();
}

#[test]
fn sparse_files_stay_sparse() {
    let mut pair = Pair::new();
    let path = pair.source().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"here", 5 << 30).unwrap();
    file.write_all_at(b"there", (1 << 40) - 5).unwrap();
    let report = pair.pass(Mode::Live);
    assert!(report.bytes < 1 << 20, "{report:?}");
    let copy = pair.target().join("sparse").metadata().unwrap();
    assert_eq!(copy.len(), 1 << 40);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 5 << 30, 1 << 20).unwrap();
    assert_eq!(pair.pass(Mode::Frozen).bytes, 0);
    let copy = fs::File::open(pair.target().join("sparse")).unwrap();
    let mut bytes = [1; 4];
    copy.read_exact_at(&mut bytes, 5 << 30).unwrap();
    assert_eq!(bytes, [0; 4]);
    assert_eq!(listing(&pair.source()), listing(&pair.target()));
}

#[test]
fn what_overlayfs_keeps_for_one_host_stays_there() {
    let mut pair = Pair::new();
    let dir = pair.source().join("d");
    fs::create_dir(&dir).unwrap();
    for name in ["origin", "impure", "opaque"] {
        lsetxattr(&dir, format!("trusted.overlay.{name}"), b"y", XattrFlags::empty()).unwrap();
    }
    pair.pass(Mode::Frozen);
    let copy = pair.target().join("d");
    let value = |name: &str| lgetxattr(&copy, format!("trusted.overlay.{name}"), &mut [0u8; 8][..]);
    assert_eq!(value("opaque"), Ok(1));
    assert_eq!(value("origin"), Err(rustix::io::Errno::NODATA));
    assert_eq!(value("impure"), Err(rustix::io::Errno::NODATA));
    pair.assert_equal();
}

#[test]
fn acls_and_capabilities_come_along() {
    let mut pair = Pair::new();
    let file = pair.source().join("ping");
    fs::write(&file, "binary").unwrap();
    // Version 2, effective; CAP_NET_RAW permitted.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(&file, "security.capability", &capability, XattrFlags::empty()).unwrap();
    // Version 2: user rwx, user 33 r, group r, mask r, other none.
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [entry(1, 7, none), entry(2, 4, 33), entry(4, 4, none), entry(16, 4, none), entry(32, 0, none)];
    let acl = [&2u32.to_le_bytes()[..], &acl.concat()].concat();
    for (name, path) in [("access", file.clone()), ("default", pair.source())] {
        lsetxattr(&path, format!("system.posix_acl_{name}"), &acl, XattrFlags::empty()).unwrap();
    }
    pair.pass(Mode::Live);
    // Inherits the default ACL on the source, and must not on the target without one.
    fs::write(pair.source().join("inherits"), "x").unwrap();
    std::os::unix::fs::chown(&file, Some(5), None).unwrap();
    lsetxattr(&file, "security.capability", &capability, XattrFlags::empty()).unwrap();
    pair.pass(Mode::Frozen);
    let copy = Tree::scan(&pair.target()).unwrap();
    let copy = copy.find(&RelPath::new("ping").unwrap()).unwrap();
    assert_eq!(copy.meta.xattrs.len(), 2, "{:?}", copy.meta);
    pair.assert_equal();
}

#[test]
fn a_device_is_refused_by_its_name() {
    let mut pair = Pair::new();
    let path = pair.source().join("null");
    mknodat(CWD, &path, FileType::CharacterDevice, rustix::fs::Mode::RUSR, makedev(1, 3)).unwrap();
    let error = pair.sender.pass(Mode::Live, &BTreeSet::new(), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Device(path) if path == Path::new("null")));
}

#[test]
fn after_a_broken_pass_the_target_starts_anew() {
    let mut pair = Pair::new();
    for name in ["a", "b", "c"] {
        fs::write(pair.source().join(name), name).unwrap();
    }
    fs::create_dir_all(pair.target().join("left/over")).unwrap();
    fs::write(pair.target().join("left/over/file"), "x").unwrap();
    pair.pass(Mode::Live);
    fs::write(pair.source().join("b"), "changed").unwrap();
    let mut left = 2;
    let broken = pair.sender.pass(Mode::Live, &BTreeSet::new(), &mut |_| {
        left -= 1;
        if left == 0 { Err(Error::Sink(io::ErrorKind::BrokenPipe.into())) } else { Ok(()) }
    });
    assert!(matches!(broken, Err(Error::Sink(_))));
    assert_eq!(pair.pass(Mode::Frozen).files, 3);
    pair.assert_equal();
}

#[test]
fn a_write_in_a_frozen_pass_is_an_error() {
    let mut pair = Pair::new();
    let path = pair.source().join("file");
    fs::write(&path, noise(1, 2 << 20)).unwrap();
    let result = pair.sender.pass(Mode::Frozen, &BTreeSet::new(), &mut |op| {
        if let Op::Data { offset: 0, .. } = op {
            settle();
            fs::write(&path, "changed").unwrap();
        }
        Ok(())
    });
    assert!(matches!(result, Err(Error::Changed(changed)) if changed == path));
}

#[test]
fn disk_usage_counts_hard_links_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(1, 1 << 20)).unwrap();
    fs::File::open(dir.path().join("a")).unwrap().sync_all().unwrap();
    let one = disk_usage(dir.path()).unwrap();
    assert!((1 << 20..2 << 20).contains(&one), "{one}");
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    assert_eq!(disk_usage(dir.path()).unwrap(), one);
}
