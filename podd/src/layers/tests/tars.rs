//! What a sound tar becomes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::*;
use crate::layers::{UnpackError, Unpacked, unpack};

fn unpack_into(dir: &Path, tar: &[u8], lower: &[PathBuf]) -> std::result::Result<Unpacked, UnpackError> {
    unpack(&mut &tar[..], dir, lower, &Limits::default())
}

fn unpacked(tar: Tar) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    unpack_into(dir.path(), &tar.end(), &[]).unwrap();
    dir
}

#[test]
fn files_keep_owner_mode_and_time() {
    let head = Head { mode: 0o6755, uid: 33, gid: 65535, mtime: 1_234_567_890, ..HEAD };
    let pax: [(&str, &[u8]); 1] = [("mtime", b"1234567890.25")];
    let tar =
        Tar::default().dir("./", 0o700).dir("bin/", 0o1777).raw(b"bin/su", &head, b"#!").pax(&pax).file("late", b"");
    let dir = unpacked(tar);
    let su = fs::metadata(dir.path().join("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o6755, 33, 65535, 1_234_567_890));
    let late = fs::metadata(dir.path().join("late")).unwrap();
    assert_eq!((late.mtime(), late.mtime_nsec()), (1_234_567_890, 250_000_000));
    // Directories too, though files were put into them afterwards.
    let bin = fs::metadata(dir.path().join("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_000_000_000));
    let root = fs::metadata(dir.path()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.mtime()), (0o700, 1_000_000_000));
}

#[test]
fn links_pipes_and_long_names() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let tar = Tar::default()
        .file("a", b"content")
        .hard_link("b", "./a")
        .symlink("abs", "/etc/shadow")
        .hard_link("abs2", "abs")
        .raw(b"pipe", &Head { kind: b'6', mode: 0o622, uid: 5, ..HEAD }, b"")
        .raw(b"@LongLink", &Head { kind: b'L', ..HEAD }, format!("{long}\0").as_bytes())
        .file("ignored", b"x")
        .pax(&[("path", b"\xc3\xa9/\xff"), ("SCHILY.xattr.user.note", b"a\0b")])
        .file("ignored", b"y");
    let dir = unpacked(tar);
    let at = |name: &str| dir.path().join(name);
    assert_eq!(fs::metadata(at("a")).unwrap().ino(), fs::metadata(at("b")).unwrap().ino());
    assert_eq!(fs::read_link(at("abs")).unwrap(), Path::new("/etc/shadow"));
    let links = [at("abs"), at("abs2")].map(|path| fs::symlink_metadata(path).unwrap().ino());
    assert_eq!(links[0], links[1]);
    let pipe = fs::symlink_metadata(at("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert_eq!((pipe.permissions().mode() & 0o7777, pipe.uid()), (0o622, 5));
    assert_eq!(fs::read(at(&long)).unwrap(), b"x");
    let strange = at("\u{e9}").join(crate::layers::rootfs::os(b"\xff"));
    assert_eq!(fs::read(&strange).unwrap(), b"y");
    assert_eq!(xattr(&strange, "user.note").unwrap(), b"a\0b");
}

#[test]
fn file_capabilities_survive_and_host_attributes_do_not() {
    // VFS_CAP_REVISION_2 with cap_net_bind_service, effective.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let pax: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
    ];
    let dir = unpacked(Tar::default().pax(&pax).raw(b"ping", &Head { uid: 7, mode: 0o755, ..HEAD }, b"elf"));
    let ping = dir.path().join("ping");
    assert_eq!(xattr(&ping, "security.capability").unwrap(), capability);
    for name in ["trusted.overlay.redirect", "user.overlay.opaque", "security.selinux"] {
        assert_eq!(xattr(&ping, name), None, "{name}");
    }
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let tar = Tar::default()
        .file("etc/.wh.passwd", b"")
        .dir("var/", 0o755)
        .file("var/.wh..wh..opq", b"")
        .file(".wh..wh.plnk", b"")
        .raw(b"native", &Head { kind: b'3', ..HEAD }, b"");
    let dir = unpacked(tar);
    assert!(is_whiteout(&dir.path().join("etc/passwd")));
    assert!(is_whiteout(&dir.path().join("native")));
    assert_eq!(xattr(&dir.path().join("var"), "trusted.overlay.opaque").unwrap(), b"y");
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["etc", "native", "var"]);
}

#[test]
fn a_whiteout_never_hides_what_its_own_layer_has() {
    let before =
        Tar::default().file(".wh.d", b"").dir("d/", 0o750).file("d/x", b"").file(".wh.f", b"").file("f", b"new");
    let after =
        Tar::default().dir("d/", 0o750).file("d/x", b"").file(".wh.d", b"").file("f", b"new").file(".wh.f", b"");
    let implied = Tar::default().file(".wh.d", b"").file("d/x", b"").file("f", b"new");
    for tar in [before, after, implied] {
        let dir = unpacked(tar);
        assert!(dir.path().join("d/x").is_file());
        assert_eq!(xattr(&dir.path().join("d"), "trusted.overlay.opaque").unwrap(), b"y");
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
    }
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let tar = Tar::default()
        .file("a", b"first")
        .file("a", b"second")
        .dir("d/sub/", 0o755)
        .file("d/sub/x", b"")
        .file("d", b"now a file")
        .file("e", b"a file first")
        .dir("e/", 0o711)
        .symlink("s", "/etc")
        .dir("s/", 0o755)
        .file("s/x", b"inside");
    let dir = unpacked(tar);
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"second");
    assert_eq!(fs::read(dir.path().join("d")).unwrap(), b"now a file");
    assert_eq!(fs::metadata(dir.path().join("e")).unwrap().mode() & 0o7777, 0o711);
    assert!(fs::symlink_metadata(dir.path().join("s")).unwrap().is_dir());
    assert_eq!(fs::read(dir.path().join("s/x")).unwrap(), b"inside");
    assert!(!Path::new("/etc/x").exists());
}

#[test]
fn a_hard_link_to_itself_changes_nothing() {
    let dir = unpacked(Tar::default().file("a", b"content").hard_link("./a", "a"));
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"content");
}

#[test]
fn directories_that_are_only_implied_take_after_the_layer_below() {
    let base = unpacked(Tar::default().dir("tmp/", 0o1777).symlink("lib", "usr/lib"));
    let dir = tempfile::tempdir().unwrap();
    let lower = [base.path().to_owned()];
    let done = unpack_into(dir.path(), &Tar::default().file("tmp/x", b"").end(), &lower).unwrap();
    assert!(done.depends_on_lower);
    assert_eq!(fs::metadata(dir.path().join("tmp")).unwrap().mode() & 0o7777, 0o1777);

    let done = unpack_into(dir.path(), &Tar::default().dir("tmp/", 0o700).file("tmp/x", b"").end(), &lower).unwrap();
    assert!(!done.depends_on_lower);
    assert_eq!(fs::metadata(dir.path().join("tmp")).unwrap().mode() & 0o7777, 0o700);

    let hides = unpack_into(dir.path(), &Tar::default().file("lib/libc.so", b"").end(), &lower);
    assert!(hides.unwrap_err().to_string().contains("symlink"));
}
