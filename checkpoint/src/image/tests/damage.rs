//! Whatever happens to an image's bytes is noticed, and told in one sentence.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::xxh3_64;

use super::*;

const BOTH: [Compression; 2] = [Compression::None, Compression::Zstd];

#[test]
fn every_flipped_bit_is_noticed() {
    for compression in BOTH {
        let (_dir, path) = place();
        write_small(&path, compression);
        check(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                file.write_all_at(&[good[at] ^ 1 << bit], at as u64).unwrap();
                let error = check(&path).expect_err(&format!("{compression:?}: bit {bit} of byte {at}"));
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
            file.write_all_at(&good[at..=at], at as u64).unwrap();
        }
        check(&path).unwrap();
    }
}

#[test]
fn every_truncation_is_noticed_and_says_how_much_is_missing() {
    for compression in BOTH {
        let (_dir, path) = place();
        write_small(&path, compression);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let whole = file.metadata().unwrap().len();
        for length in (0..whole).rev() {
            file.set_len(length).unwrap();
            match check(&path).unwrap_err() {
                Error::Truncated { expected, actual, .. } if length >= HEADER as u64 => {
                    assert_eq!((expected, actual), (whole, length));
                }
                Error::Truncated { .. } if length > 0 => {}
                Error::Foreign { .. } if length == 0 => {}
                other => panic!("{length}: {other}"),
            }
        }
    }
}

#[test]
fn a_flip_in_a_part_names_the_part_and_gives_no_last_byte() {
    for compression in BOTH {
        let (dir, path) = place();
        let manifest = write_small(&path, compression);
        let part = manifest.part("core-1.img").unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"!", part.offset + part.stored_size - 1).unwrap();

        let error = check(&path).unwrap_err();
        assert!(matches!(&error, Error::DamagedPart { part, .. } if part == "core-1.img"), "{error}");
        let sentence = error.to_string();
        assert!(sentence.starts_with("part core-1.img of image /") && sentence.contains("damaged"), "{sentence}");

        let image = Image::open(&path).unwrap();
        assert!(matches!(image.extract_dir(&Kind::Criu, dir.path()), Err(Error::DamagedPart { .. })));
        let mut bytes = [0; 9];
        assert!(image.read_part("core-1.img").unwrap().read_exact(&mut bytes).is_err());
    }
}

#[test]
fn bytes_after_the_end_are_noticed() {
    let (_dir, path) = place();
    write_small(&path, Compression::None);
    let longer = [fs::read(&path).unwrap(), vec![0]].concat();
    fs::write(&path, &longer).unwrap();
    assert!(matches!(check(&path), Err(Error::TooLong { actual, .. }) if actual == longer.len() as u64));
}

#[test]
fn foreign_files_are_told_apart() {
    let (dir, path) = place();
    for bytes in [&b""[..], b"P", b"\x7fELF", b"PODIMG\0\x02 and more", &[0; 100]] {
        let foreign = |error: &Error| matches!(error, Error::Foreign { .. });
        fs::write(&path, bytes).unwrap();
        match check(&path).unwrap_err() {
            Error::Truncated { .. } if bytes == b"P" => {}
            error => assert!(foreign(&error), "{bytes:?}: {error}"),
        }
    }
    assert_eq!(check(&path).unwrap_err().to_string(), format!("{} is not a pod image", path.display()));
    assert!(matches!(check(dir.path()), Err(Error::Foreign { .. })));
    assert!(matches!(check(Path::new("/dev/zero")), Err(Error::Foreign { .. })));
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(check(&pipe), Err(Error::Foreign { .. })));
    let missing = check(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot open /") && missing.contains("No such file"), "{missing}");
}

#[test]
fn other_versions_say_what_to_do() {
    let (_dir, path) = place();
    write_small(&path, Compression::None);
    let good = fs::read(&path).unwrap();
    for (version, wanted) in [
        (FORMAT + 1, "has format version 2, this build reads up to 1: upgrade podd"),
        (OLDEST - 1, "has format version 0, this build reads 1 to 1: restore it with the podd that wrote it"),
    ] {
        let mut bytes = good.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let checksum = xxh3_64(&bytes[..56]);
        bytes[56..64].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let sentence = check(&path).unwrap_err().to_string();
        assert!(sentence.ends_with(wanted), "{sentence}");
    }
    // A flipped bit in the version is damage, not a newer version.
    let mut bytes = good;
    bytes[8] ^= 2;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(check(&path), Err(Error::DamagedHeader { .. })));
}
