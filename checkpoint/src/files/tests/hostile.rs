//! Nothing that a peer sends gets out of the root.

use std::os::unix::fs::symlink;

use super::*;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn meta() -> Meta {
    Meta { mode: 0o644, uid: 0, gid: 0, mtime: Time { secs: 1, nanos: 0 }, xattrs: Vec::new() }
}

#[test]
fn paths_that_leave_the_root_do_not_even_decode() {
    let config = bincode::config::standard();
    for bad in ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a\0"] {
        // The encoding of `Op::Mkdir` with an honest path of the same length.
        let honest = Op::Mkdir { path: path(&"x".repeat(bad.len())) };
        let mut bytes = bincode::serde::encode_to_vec(&honest, config).unwrap();
        let at = bytes.len() - bad.len();
        bytes[at..].copy_from_slice(bad.as_bytes());
        let decoded = bincode::serde::decode_from_slice::<Op, _>(&bytes, config);
        assert!(decoded.is_err(), "{bad:?}");
    }
}

#[test]
fn what_comes_late_changes_no_names() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "old").unwrap();
    let mut receiver = Receiver::new(dir.path()).unwrap().of_content_only();
    receiver.apply(Op::Open { path: path("file"), size: 3, how: Open::Patch }).unwrap();
    receiver.apply(Op::Data { offset: 0, bytes: b"new".to_vec() }).unwrap();
    for bad in [
        Op::Begin { fresh: true },
        Op::Remove { path: path("file") },
        Op::Open { path: path("other"), size: 1, how: Open::Create },
        Op::Mkdir { path: path("dir") },
        Op::Link { from: path("file"), path: path("link") },
    ] {
        assert!(receiver.apply(bad.clone()).is_err(), "{bad:?}");
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((names, fs::read(dir.path().join("file")).unwrap()), (vec!["file".into()], b"new".to_vec()));
}

#[test]
fn no_operation_goes_through_a_symlink() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for dir in [&root, &outside] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(outside.join("file"), "untouched").unwrap();
    let mut receiver = Receiver::new(&root).unwrap();
    for (name, target) in [("abs", outside.to_str().unwrap()), ("rel", "../outside"), ("self", ".")] {
        receiver.apply(Op::Symlink { path: path(name), target: target.into() }).unwrap();
    }
    symlink(outside.join("file"), root.join("file")).unwrap();
    receiver.apply(Op::Mkdir { path: path("dir") }).unwrap();
    let before = listing(&outside);
    for link in ["abs", "rel", "self", "self/dir"] {
        let inside = path(&format!("{link}/file"));
        let ops = [
            Op::Remove { path: inside.clone() },
            Op::Mkdir { path: path(&format!("{link}/new")) },
            Op::Open { path: inside.clone(), size: 0, how: Open::Create },
            Op::Open { path: inside.clone(), size: 0, how: Open::Replace },
            Op::Open { path: inside.clone(), size: 0, how: Open::Patch },
            Op::Link { from: inside.clone(), path: path("stolen") },
            Op::Link { from: path("file"), path: inside.clone() },
            Op::Symlink { path: inside.clone(), target: b"x".to_vec() },
            Op::Node { path: inside.clone(), node: Node::Fifo },
            Op::Meta { path: inside.clone(), meta: meta() },
        ];
        for op in ops {
            assert!(receiver.apply(op.clone()).is_err(), "{op:?}");
        }
    }
    for how in [Open::Replace, Open::Patch] {
        assert!(receiver.apply(Op::Open { path: path("file"), size: 0, how }).is_err());
    }
    // Changes the link itself; a new file takes the link's place.
    receiver.apply(Op::Meta { path: path("file"), meta: Meta { uid: 7, ..meta() } }).unwrap();
    receiver.apply(Op::Open { path: path("file"), size: 3, how: Open::Create }).unwrap();
    receiver.apply(Op::Data { offset: 0, bytes: b"new".to_vec() }).unwrap();
    // And a symlink that takes the place of the directory last worked in is not followed either.
    receiver.apply(Op::Mkdir { path: path("dir/sub") }).unwrap();
    receiver.apply(Op::Remove { path: path("dir/sub") }).unwrap();
    receiver.apply(Op::Remove { path: path("dir") }).unwrap();
    receiver.apply(Op::Symlink { path: path("dir"), target: b"../outside".to_vec() }).unwrap();
    assert!(receiver.apply(Op::Remove { path: path("dir/file") }).is_err());
    assert_eq!(listing(&outside), before);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
    receiver.apply(Op::Begin { fresh: true }).unwrap();
    assert_eq!(listing(&outside), before);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn operations_out_of_bounds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::new(dir.path()).unwrap();
    let root = RelPath::root;
    let xattr = |size| Xattr { name: b"user.x".to_vec(), value: vec![0; size] };
    receiver.apply(Op::Node { path: path("fifo"), node: Node::Fifo }).unwrap();
    let refused = [
        Op::Data { offset: 0, bytes: vec![0] },
        Op::Remove { path: root() },
        Op::Mkdir { path: root() },
        Op::Open { path: root(), size: 0, how: Open::Create },
        Op::Open { path: path("fifo"), size: 0, how: Open::Patch },
        Op::Link { from: root(), path: path("a") },
        Op::Link { from: path("fifo"), path: root() },
        Op::Symlink { path: path("a"), target: Vec::new() },
        Op::Symlink { path: path("a"), target: b"x\0".to_vec() },
        Op::Symlink { path: path("a"), target: vec![b'x'; 4096] },
        Op::Meta { path: root(), meta: Meta { mode: 0o100_644, ..meta() } },
        Op::Meta { path: root(), meta: Meta { xattrs: vec![xattr(60_000); 20], ..meta() } },
        Op::Meta { path: root(), meta: Meta { mtime: Time { secs: 0, nanos: 1_000_000_000 }, ..meta() } },
    ];
    for op in refused {
        assert!(matches!(receiver.apply(op.clone()), Err(Error::Op { .. })), "{op:?}");
    }
    receiver.apply(Op::Open { path: path("file"), size: 10, how: Open::Create }).unwrap();
    for (offset, len) in [(0, 11), (10, 1), (u64::MAX, 1), (u64::MAX, 2)] {
        assert!(receiver.apply(Op::Data { offset, bytes: vec![0; len] }).is_err());
        assert!(receiver.apply(Op::Hole { offset, len: len as u64 }).is_err());
    }
    assert!(receiver.apply(Op::Data { offset: 0, bytes: vec![0; MAX_CHUNK + 1] }).is_err());
    assert!(receiver.apply(Op::Meta { path: path("file"), meta: Meta { uid: u32::MAX, ..meta() } }).is_err());
}
