//! An image appears whole or not at all.

use std::fs::File;
use std::io::{self, Write};

use super::*;

fn partial(path: &Path) -> PathBuf {
    path.with_extension("pod.partial")
}

#[test]
fn the_old_image_stays_until_the_new_one_is_whole() {
    let (_dir, path) = place();
    write_small(&path, Compression::None);
    let old = fs::read(&path).unwrap();
    let mut writer = Writer::create(&path, Compression::None).unwrap();
    writer.part("core-9.img", Kind::Criu, &mut &b"new"[..]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), old);
    assert!(matches!(check(&partial(&path)), Err(Error::Unfinished { .. })));
    writer.finish(meta()).unwrap();
    assert_eq!(content(&Image::open(&path).unwrap(), "core-9.img"), b"new");
    assert!(!partial(&path).exists());
}

#[test]
fn an_unfinished_image_leaves_nothing() {
    let (dir, path) = place();
    let mut writer = Writer::create(&path, Compression::Zstd).unwrap();
    writer.part("core-1.img", Kind::Criu, &mut &b"registers"[..]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_part_left_half_written_spoils_the_image() {
    let (dir, path) = place();
    let mut writer = Writer::create(&path, Compression::None).unwrap();
    writer.part_writer("pages-1.img", Kind::Memory).unwrap().write_all(b"half").unwrap();
    let again = writer.part("core-1.img", Kind::Criu, &mut &b""[..]).unwrap_err().to_string();
    assert!(again.ends_with("part pages-1.img was left half-written"), "{again}");
    assert!(matches!(writer.finish(meta()), Err(Error::HalfPart { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn large_parts_are_whole_in_whatever_order_they_are_written() {
    let large: Vec<u8> = (0..9 * BUFFER as u64 + 5).map(|n| ((n * n) >> 7) as u8).collect();
    for compression in [Compression::None, Compression::Zstd] {
        let (_dir, path) = place();
        let mut writer = Writer::create(&path, compression).unwrap();
        writer.part("first", Kind::Criu, &mut &b"before"[..]).unwrap();
        let written = writer.part_of("large", Kind::Memory, large.len() as u64, &give(&large)).unwrap();
        assert_eq!(written, large.len() as u64);
        writer.part("last", Kind::Criu, &mut &b"after"[..]).unwrap();
        writer.finish(meta()).unwrap();
        let image = Image::open(&path).unwrap();
        assert!(content(&image, "large") == large, "{compression:?}");
        assert_eq!((content(&image, "first"), content(&image, "last")), (b"before".to_vec(), b"after".to_vec()));
    }
}

#[test]
fn content_that_cannot_be_read_spoils_the_image() {
    for compression in [Compression::None, Compression::Zstd] {
        let (dir, path) = place();
        let mut writer = Writer::create(&path, compression).unwrap();
        let fails = |at, _: &mut [u8]| match at >= 3 * BUFFER as u64 {
            true => Err(io::Error::other("the process is gone")),
            false => Ok(()),
        };
        let error = writer.part_of("large", Kind::Memory, 9 * BUFFER as u64, &fails).unwrap_err().to_string();
        assert!(error.contains("read what belongs into image") && error.contains("the process is gone"), "{error}");
        assert!(matches!(writer.finish(meta()), Err(Error::HalfPart { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_source_that_fails_spoils_the_image() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("disk on fire"))
        }
    }
    let (_dir, path) = place();
    let mut writer = Writer::create(&path, Compression::None).unwrap();
    let error = writer.part("files", Kind::Files, &mut Fails).unwrap_err().to_string();
    assert!(error.contains("disk on fire"), "{error}");
    assert!(matches!(writer.finish(meta()), Err(Error::HalfPart { .. })));
}

#[test]
fn what_no_reader_would_accept_is_not_written() {
    let (_dir, path) = place();
    let mut writer = Writer::create(&path, Compression::None).unwrap();
    writer.part("one", Kind::Criu, &mut &b""[..]).unwrap();
    for (name, kind) in [("one", Kind::Criu), ("../two", Kind::Criu), ("two", Kind::Layer("a/b".into()))] {
        assert!(matches!(writer.part(name, kind, &mut &b""[..]), Err(Error::Refused { .. })), "{name}");
    }
    let meta = Meta { host: "x".repeat(300), ..meta() };
    assert!(matches!(writer.finish(meta), Err(Error::Refused { .. })));
    assert!(!path.exists() && !partial(&path).exists());
}

#[test]
fn two_writers_do_not_meet_and_a_dead_ones_file_is_replaced() {
    let (_dir, path) = place();
    let writer = Writer::create(&path, Compression::None).unwrap();
    let busy = Writer::create(&path, Compression::None).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    assert!(partial(&path).exists());
    drop(writer);
    File::create(partial(&path)).unwrap().write_all(b"left by a dead writer").unwrap();
    write_small(&path, Compression::None);
    check(&path).unwrap();
}

#[test]
fn a_link_in_the_partial_files_place_is_not_followed() {
    let (dir, path) = place();
    let victim = dir.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    std::os::unix::fs::symlink(&victim, partial(&path)).unwrap();
    assert!(matches!(Writer::create(&path, Compression::None), Err(Error::Io { op: "open", .. })));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
}
