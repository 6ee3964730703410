//! Hostile tars, one by one: each is refused with the entry's name, and nothing outside is touched.

use std::fs;
use std::path::Path;

use super::*;
use crate::layers::{Error, UnpackError, unpack};

/// Unpacks into a directory with neighbours, which must not change.
fn refused(tar: Vec<u8>, limits: &Limits) -> UnpackError {
    let lab = tempfile::tempdir().unwrap();
    let dir = lab.path().join("layer");
    fs::create_dir(&dir).unwrap();
    fs::write(lab.path().join("secret"), "unharmed").unwrap();
    let error = unpack(&mut &tar[..], &dir, &[], limits).unwrap_err();
    let mut names: Vec<_> = fs::read_dir(lab.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["layer", "secret"]);
    assert_eq!(fs::read(lab.path().join("secret")).unwrap(), b"unharmed");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(lab.path().join("secret")).unwrap()), 1);
    error
}

fn says(tar: Tar, words: &str) {
    let error = refused(tar.end(), &Limits::default()).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn names_that_leave() {
    says(Tar::default().file("../secret", b"x"), r#"entry "../secret" has .. in its name"#);
    says(Tar::default().file("a/../../secret", b"x"), "has .. in its name");
    says(Tar::default().dir("..", 0o755), "has .. in its name");
    says(Tar::default().file("/secret", b"x"), r#"entry "/secret" has an absolute name"#);
    says(Tar::default().file("//secret", b"x"), "has an absolute name");
    says(Tar::default().pax(&[("path", b"../secret")]).file("a", b"x"), "has .. in its name");
    says(Tar::default().raw(b"l", &Head { kind: b'L', ..HEAD }, b"../secret\0").file("a", b"x"), "has .. in its name");
}

#[test]
fn names_that_are_none() {
    says(Tar::default().pax(&[("path", b"a\0b")]).file("a", b"x"), "NUL");
    says(Tar::default().raw(b"l", &Head { kind: b'L', ..HEAD }, b"a\0b\0").file("a", b"x"), "NUL");
    says(Tar::default().file("", b"x"), "no name");
    says(Tar::default().file("./", b"x"), "root but not a directory");
    says(Tar::default().symlink(".", "/etc"), "root but not a directory");
    says(Tar::default().symlink("a", ""), "no name");
    says(Tar::default().file(".wh.", b""), "no name");
    says(Tar::default().file(".wh...", b""), "no name");
    says(Tar::default().file("a/.wh..", b""), "no name");
    says(Tar::default().file(".wh.a/b", b""), "below a whiteout");
    let deep = "d/".repeat(200) + "f";
    says(Tar::default().pax(&[("path", deep.as_bytes())]).file("a", b""), "deeper than 128");
    let long = "d".repeat(4000);
    says(Tar::default().pax(&[("path", long.as_bytes())]).file("a", b""), "longer than 3840 bytes");
    says(Tar::default().pax(&[("path", &long.as_bytes()[..300])]).file("a", b""), "cannot be written");
}

#[test]
fn symlinks_on_the_way_are_not_followed() {
    says(Tar::default().symlink("up", "..").file("up/secret", b"x"), r#"lies below "up", which is a symlink"#);
    says(Tar::default().symlink("up", "/").file("up/tmp/x", b"x"), "which is a symlink");
    says(Tar::default().symlink("here", ".").file("here/x", b"x"), "which is a symlink");
    says(Tar::default().symlink("up", "..").hard_link("a", "up/secret"), "which is a symlink");
    says(Tar::default().symlink("up", "..").file("up/.wh.secret", b""), "which is a symlink");
    says(Tar::default().symlink("up", "..").file("up/.wh..wh..opq", b""), "which is a symlink");
    says(Tar::default().symlink("up", "..").symlink("up/link", "x"), "which is a symlink");
    says(Tar::default().symlink("up", "..").dir("up/dir", 0o755), "which is a symlink");
    says(Tar::default().dir("a", 0o755).symlink("a/b", "../..").file("a/b/c/d", b""), r#""a/b", which is a symlink"#);
    says(Tar::default().file("f", b"").file("f/x", b""), "which is not a directory");
}

#[test]
fn an_opened_directory_that_becomes_a_symlink() {
    // The parent of the entry before is remembered: replacing it must forget it.
    let tar = Tar::default().file("d/x", b"").symlink("d", "..").file("d/secret", b"x");
    says(tar, "which is a symlink");
    let tar = Tar::default().file("a/d/x", b"").symlink("a", "..").file("a/d/secret", b"x");
    says(tar, "which is a symlink");
}

#[test]
fn writing_to_a_symlink_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "unharmed").unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    let tar = Tar::default()
        .symlink("a", victim.to_str().unwrap())
        .raw(b"a", &Head { mode: 0o777, uid: 9, ..HEAD }, b"x")
        .end();
    unpack(&mut &tar[..], &layer, &[], &Limits::default()).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"unharmed");
    assert_eq!(fs::read(layer.join("a")).unwrap(), b"x");
}

#[test]
fn hard_links_that_leave() {
    says(Tar::default().hard_link("a", "../secret"), r#"entry "a" is a hard link to "../secret", which has .."#);
    says(Tar::default().hard_link("a", "/etc/shadow"), "absolute name");
    says(Tar::default().hard_link("a", "nothing"), "does not have before it");
    says(Tar::default().hard_link("a", "a"), "does not have before it");
    says(Tar::default().hard_link("a", "no/thing"), "does not have before it");
    says(Tar::default().dir("d", 0o755).hard_link("a", "d"), "a directory or a device");
    says(Tar::default().hard_link("a", "."), "a directory or a device");
    says(Tar::default().hard_link("a", ""), "a directory or a device");
    says(Tar::default().file(".wh.w", b"").hard_link("a", "w"), "a directory or a device");
    says(Tar::default().pax(&[("linkpath", b"a\0b")]).hard_link("a", "x"), "NUL");
    says(Tar::default().pax(&[("linkpath", b"a\0b")]).symlink("a", "x"), "NUL");
}

#[test]
fn devices_and_unknown_kinds() {
    let device = |kind, device| Tar::default().raw(b"dev/x", &Head { kind, device, ..HEAD }, b"");
    says(device(b'3', (1, 3)), r#"entry "dev/x" is a device node (1:3)"#);
    says(device(b'4', (8, 0)), "is a device node (8:0)");
    says(device(b'4', (0, 0)), "is a device node (0:0)");
    says(device(b'S', (0, 0)), "sparse");
    says(device(b'V', (0, 0)), "unknown tar type 'V'");
    says(Tar::default().pax(&[("GNU.sparse.major", b"1")]).file("a", b""), "sparse");
}

#[test]
fn ids_that_no_pod_has() {
    says(Tar::default().raw(b"a", &Head { uid: 65536, ..HEAD }, b""), r#"entry "a" belongs to user 65536"#);
    says(Tar::default().pax(&[("gid", b"4294967295")]).file("a", b""), "belongs to group 4294967295");
    says(Tar::default().raw(b"./", &Head { kind: b'5', uid: 100_000, ..HEAD }, b""), "belongs to user 100000");
    says(Tar::default().pax(&[("uid", b"18446744073709551616")]).file("a", b""), "PAX uid");
}

#[test]
fn bombs() {
    let limits = Limits { max_bytes: 1 << 20, max_entries: 100, ..Limits::default() };
    // One large file, announced and never delivered.
    let mut tar = Tar::default();
    tar.header(b"big", &HEAD, 8 << 30);
    assert!(matches!(refused(tar.0, &limits), UnpackError::TooManyBytes { .. }));
    // Zeros without end behind a sound archive.
    let mut endless = std::io::Read::chain(&*Tar::default().file("a", b"").0.leak(), std::io::repeat(0));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(unpack(&mut endless, dir.path(), &[], &limits), Err(UnpackError::TooManyBytes { .. })));
    // Many entries, and few entries that imply many directories.
    let many = (0..200).fold(Tar::default(), |tar, n| tar.file(&n.to_string(), b""));
    assert!(matches!(refused(many.end(), &limits), UnpackError::TooManyEntries { limit: 100 }));
    let deep = (0..3).fold(Tar::default(), |tar, n| tar.file(&format!("{n}{}", "/d".repeat(45)), b""));
    assert!(matches!(refused(deep.end(), &limits), UnpackError::TooManyEntries { limit: 100 }));
    // A name of 2 MiB must not be read into memory.
    let mut long = Tar::default();
    long.header(b"x", &Head { kind: b'L', ..HEAD }, 2 << 20);
    let error = refused(long.0, &Limits::default());
    assert!(error.to_string().contains("above 1 MiB"), "{error}");
}

#[test]
fn a_bomb_in_an_image_leaves_nothing_in_the_store() {
    let lab = Lab::with(Limits { max_bytes: 1 << 20, ..Limits::default() });
    let tar = Tar::default().file("zeros", &vec![0; 4 << 20]).end();
    for kind in [GZIP, ZSTD] {
        let error = lab.import(&lab.layout(kind.rsplit('+').next().unwrap()).single(&[(kind, &tar)])).unwrap_err();
        assert!(matches!(&error, Error::Layer { source: UnpackError::TooManyBytes { .. }, .. }), "{error}");
        assert!(error.cure().is_some());
    }
    assert!(lab.store.list().unwrap().is_empty());
    assert!(lab.leftovers().is_empty());
}

#[test]
fn the_image_as_a_whole_is_bounded() {
    let lab = Lab::with(Limits { max_image_bytes: 100_000, ..Limits::default() });
    let layers: Vec<Vec<u8>> = (0..3).map(|n| Tar::default().file("f", &vec![n; 40_000]).end()).collect();
    let two: Vec<(&str, &[u8])> = layers[..2].iter().map(|tar| (GZIP, &tar[..])).collect();
    lab.import(&lab.layout("two").single(&two)).unwrap();
    let lab = Lab::with(Limits { max_image_bytes: 100_000, ..Limits::default() });
    let three: Vec<(&str, &[u8])> = layers.iter().map(|tar| (GZIP, &tar[..])).collect();
    let error = lab.import(&lab.layout("three").single(&three)).unwrap_err();
    assert!(matches!(&error, Error::Layer { source: UnpackError::TooManyBytes { .. }, .. }), "{error}");
}

#[test]
fn damaged_streams() {
    let sound = Tar::default().file("a", &[1; 600]).end();
    let cut = |at: usize| refused(sound[..at].to_vec(), &Limits::default()).to_string();
    assert!(cut(100).contains("header that is cut short"));
    assert!(cut(600).contains("cut short"));
    assert!(cut(1200).contains("cut short"));
    let mut flipped = sound.clone();
    flipped[3] ^= 1;
    assert!(refused(flipped, &Limits::default()).to_string().contains("checksum"));
    says(Tar::default().raw(b"x", &Head { kind: b'x', ..HEAD }, b"99 a=b\n"), "PAX record");
    assert!(!Path::new("a").exists());
}
