//! Images with right checksums and wrong contents: what a bug or a hostile sender makes.

use std::io;

use proptest::prelude::*;

use super::*;

fn part(name: &str, offset: usize, bytes: &[u8]) -> Part {
    Part {
        name: name.into(),
        kind: Kind::Criu,
        size: bytes.len() as u64,
        stored_size: bytes.len() as u64,
        offset: offset as u64,
        checksum: xxh3_128(bytes),
        compression: Compression::None,
    }
}

/// Two sound parts of 4 bytes and the manifest that fits.
fn two_parts() -> (Vec<u8>, Manifest) {
    let parts = vec![part("one", HEADER, b"1111"), part("two", HEADER + 4, b"2222")];
    (b"11112222".to_vec(), Manifest { format: FORMAT, meta: meta(), parts })
}

fn open(parts: &[u8], manifest: &Manifest) -> Result<Image, Error> {
    let (_dir, path) = place();
    forge(&path, parts, &raw(manifest));
    Image::open(&path)
}

/// What the reader says to the sound manifest after `change`.
fn changed(change: impl FnOnce(&mut Manifest)) -> String {
    let (parts, mut manifest) = two_parts();
    change(&mut manifest);
    let error = open(&parts, &manifest).unwrap_err();
    let Error::DamagedManifest { source, .. } = &error else { panic!("{error}") };
    source.to_string()
}

#[test]
fn a_forged_but_sound_image_is_accepted() {
    let (parts, manifest) = two_parts();
    open(&parts, &manifest).unwrap().verify().unwrap();
}

#[test]
fn parts_that_overlap_leave_gaps_or_lie_outside_are_refused() {
    let place = "the place or size of part two is impossible";
    assert_eq!(changed(|m| m.parts[1].offset -= 1), place);
    assert_eq!(changed(|m| m.parts[1].offset += 1), place);
    assert_eq!(changed(|m| m.parts[1].offset = u64::MAX), place);
    assert_eq!(changed(|m| (m.parts[1].size, m.parts[1].stored_size) = (u64::MAX, u64::MAX)), place);
    assert_eq!(changed(|m| m.parts[1].size = 5), place);
    assert_eq!(changed(|m| m.parts.truncate(1)), "its parts do not fill the file");
    let total = |m: &mut Manifest| {
        for part in &mut m.parts {
            (part.size, part.compression) = (u64::MAX, Compression::Zstd);
        }
    };
    assert_eq!(changed(total), place);
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in ["", ".", "..", "/etc/passwd", "a/b", "../x", "a\0b", "a\nb", "a..b"] {
        assert_eq!(changed(|m| m.parts[1].name = name.into()), format!("{name:?} is no name for a part"));
    }
    assert_eq!(changed(|m| m.parts[1].name = "one".into()), "part one occurs twice");
    for digest in ["", "../x", "sha256/00", ".hidden", "a b", "a\0"] {
        let wanted = format!("{digest:?} is no digest");
        assert_eq!(changed(|m| m.parts[1].kind = Kind::Layer(digest.into())), wanted);
        assert_eq!(changed(|m| m.meta.layers.push(digest.into())), wanted);
    }
}

#[test]
fn every_field_is_bounded_while_it_is_decoded() {
    let long = || "x".repeat(limits::TEXT + 1);
    type Change = Box<dyn FnOnce(&mut Manifest)>;
    let fields: [(&str, Change); 10] = [
        ("at most 255 bytes", Box::new(move |m| m.parts[0].name = long())),
        ("at most 255 bytes", Box::new(move |m| m.parts[0].kind = Kind::Layer(long()))),
        ("at most 255 bytes", Box::new(move |m| m.meta.host = long())),
        ("at most 255 bytes", Box::new(move |m| m.meta.kernel_release = long())),
        ("at most 255 bytes", Box::new(move |m| m.meta.kernel_version = long())),
        ("at most 255 bytes", Box::new(move |m| m.meta.criu = long())),
        ("at most 255 bytes", Box::new(move |m| m.meta.layers = vec![long()])),
        ("at most 512 items", Box::new(|m| m.meta.layers = vec!["a".into(); limits::LAYERS + 1])),
        ("at most 4096 items", Box::new(|m| m.meta.cpu_features = vec!["a".into(); limits::FEATURES + 1])),
        ("at most 4194304 bytes", Box::new(|m| m.meta.pod = vec![0; limits::POD + 1])),
    ];
    for (wanted, change) in fields {
        let said = changed(change);
        assert!(said.starts_with("it cannot be decoded") && said.contains(wanted), "{said}");
    }
    let many = changed(|m| m.parts = vec![m.parts[0].clone(); limits::PARTS + 1]);
    assert!(many.contains("at most 65536 items"), "{many}");
}

#[test]
fn other_faults_of_a_manifest_are_refused() {
    assert_eq!(changed(|m| m.format = 7), "it has format version 7, unlike the header");
    let (dir, path) = place();
    let (parts, manifest) = two_parts();
    forge(&path, &parts, &[raw(&manifest), vec![0]].concat());
    assert!(matches!(Image::open(&path), Err(Error::DamagedManifest { source: ManifestError::Trailing(1), .. })));
    // A manifest longer than the file, and than what is read at all.
    for manifest_length in [1000, MAX_MANIFEST as u64 + 1, u64::MAX] {
        let header = Header { format: FORMAT, length: HEADER as u64, manifest_length, manifest_checksum: 0 };
        fs::write(&path, header.encode()).unwrap();
        assert!(matches!(Image::open(&path), Err(Error::DamagedHeader { .. })));
    }
    drop(dir);
}

fn compressed(frame: &[u8], size: u64) -> Image {
    let mut part = part("bomb", HEADER, frame);
    (part.size, part.compression) = (size, Compression::Zstd);
    open(frame, &Manifest { format: FORMAT, meta: meta(), parts: vec![part] }).unwrap()
}

#[test]
fn decompression_is_bounded_by_the_declared_size() {
    let frame = zstd::encode_all(&vec![0; 64 << 20][..], 1).unwrap();
    compressed(&frame, 64 << 20).verify().unwrap();
    let too_small = compressed(&frame, 10_000).verify().unwrap_err().to_string();
    assert!(too_small.ends_with("is damaged: it is longer than the manifest says"), "{too_small}");
    let too_large = compressed(&frame, (64 << 20) + 1).verify().unwrap_err().to_string();
    assert!(too_large.ends_with("is damaged: it is shorter than the manifest says"), "{too_large}");

    let mut out = Vec::new();
    let error = compressed(&frame, 10_000).read_part("bomb").unwrap().read_to_end(&mut out).unwrap_err();
    assert!(out.len() <= 10_000 && error.get_ref().is_some());
}

#[test]
fn frames_that_are_broken_followed_by_more_or_hungry_are_refused() {
    let frame = zstd::encode_all(&b"hello"[..], 1).unwrap();
    let followed = [&frame[..], b"tail"].concat();
    for (frame, size) in [(&followed[..], 5), (&frame[..frame.len() - 1], 5), (b"garbage", 5), (b"", 5)] {
        let error = compressed(frame, size).verify().unwrap_err();
        assert!(matches!(error, Error::DamagedPart { .. }), "{error}");
    }
    // The decoder would have to take 128 MiB for this window.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    io::copy(&mut io::repeat(0).take(1000), &mut encoder).unwrap();
    let error = compressed(&encoder.finish().unwrap(), 1000).verify().unwrap_err();
    assert!(matches!(error, Error::DamagedPart { .. }), "{error}");
}

#[test]
fn extraction_overwrites_nothing_and_follows_no_link() {
    let (parts, manifest) = two_parts();
    let image = open(&parts, &manifest).unwrap();
    let (dir, path) = place();
    std::os::unix::fs::symlink(&path, dir.path().join("one")).unwrap();
    let error = image.extract_dir(&Kind::Criu, dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("cannot create /") && error.contains("File exists"), "{error}");
    assert!(!path.exists());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>, start: [u8; HEADER], end: u64) {
        let _ = Manifest::decode(&bytes, FORMAT, end);
        let _ = Header::decode(&start, end, Path::new("x"));
        let (_dir, path) = place();
        fs::write(&path, &bytes).unwrap();
        prop_assert!(check(&path).is_err());
        forge(&path, b"", &bytes);
        prop_assert!(check(&path).is_err());
    }

    #[test]
    fn a_changed_manifest_with_a_right_checksum_never_panics(at: prop::sample::Index, byte: u8) {
        let (parts, manifest) = two_parts();
        let mut bytes = raw(&manifest);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (_dir, path) = place();
        forge(&path, &parts, &bytes);
        let _ = check(&path);
    }

    #[test]
    fn random_stored_bytes_never_decompress_beyond_their_size(bytes: Vec<u8>, size in 0..1000_u64) {
        let mut out = Vec::new();
        let _ = compressed(&bytes, size).read_part("bomb").unwrap().read_to_end(&mut out);
        prop_assert!(out.len() as u64 <= size);
    }
}
