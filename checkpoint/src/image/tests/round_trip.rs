//! What goes in comes out.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Zstd)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Criu),
        Just(Kind::Files),
        Just(Kind::Memory),
        "[a-z0-9]{1,9}:[0-9a-f]{1,64}".prop_map(Kind::Layer)
    ]
}

prop_compose! {
    fn any_meta()(
        created: u64,
        pod in vec(any::<u8>(), 0..200),
        text in proptest::array::uniform4(".{0,60}"),
        cpu_features in vec("[a-z0-9_]{1,12}", 0..20),
        layers in vec("[a-z0-9]{1,9}:[0-9a-f]{1,64}", 0..5),
    ) -> Meta {
        let [host, kernel_release, kernel_version, criu] = text;
        Meta { created, pod, host, kernel_release, kernel_version, cpu_features, criu, layers }
    }
}

/// Content by name: random, or long and compressible.
fn parts() -> impl Strategy<Value = BTreeMap<String, (Kind, Vec<u8>)>> {
    let bytes = prop_oneof![
        vec(any::<u8>(), 0..3000),
        (any::<u8>(), 0..300_000_usize).prop_map(|(byte, count)| std::vec![byte; count])
    ];
    btree_map("[a-zA-Z0-9_-]{1,20}(\\.img)?", (kind(), bytes), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn images_come_back(meta in any_meta(), parts in parts(), compression in compression(), step in 1..5000_usize) {
        let (dir, path) = place();
        let mut writer = Writer::create(&path, compression).unwrap();
        for (name, (kind, bytes)) in &parts {
            // By turns as a stream, in any order, and bit by bit.
            let written = match step % 3 {
                0 => writer.part(name, kind.clone(), &mut &bytes[..]).unwrap(),
                1 => writer.part_of(name, kind.clone(), bytes.len() as u64, &give(bytes)).unwrap(),
                _ => {
                    let mut part = writer.part_writer(name, kind.clone()).unwrap();
                    bytes.chunks(step).for_each(|piece| part.write_all(piece).unwrap());
                    part.finish().unwrap()
                }
            };
            prop_assert_eq!(written, bytes.len() as u64);
        }
        let written = writer.finish(meta.clone()).unwrap();

        let image = Image::open(&path).unwrap();
        prop_assert_eq!(image.manifest(), &written);
        prop_assert_eq!(&image.manifest().meta, &meta);
        image.verify().unwrap();
        for (name, (kind, bytes)) in &parts {
            prop_assert_eq!(&image.manifest().part(name).unwrap().kind, kind);
            prop_assert_eq!(&content(&image, name), bytes);
            let (mut reader, mut copy, mut piece) = (image.read_part(name).unwrap(), Vec::<u8>::new(), std::vec![0; step]);
            while let count @ 1.. = reader.read(&mut piece).unwrap() {
                copy.extend(&piece[..count]);
            }
            prop_assert_eq!(&copy, bytes);
        }
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let criu: BTreeMap<_, _> = parts.iter().filter(|(_, (kind, _))| *kind == Kind::Criu).collect();
        let size = image.extract_dir(&Kind::Criu, &out).unwrap();
        prop_assert_eq!(size, image.manifest().size_of(&Kind::Criu));
        prop_assert_eq!(fs::read_dir(&out).unwrap().count(), criu.len());
        for (name, (_, bytes)) in criu {
            prop_assert_eq!(&fs::read(out.join(name)).unwrap(), bytes);
        }
    }
}

#[test]
fn parts_larger_than_any_buffer_survive() {
    let bytes: Vec<u8> = (0..5 * BUFFER as u32 + 17).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
    for compression in [Compression::None, Compression::Zstd] {
        let (_dir, path) = place();
        let mut writer = Writer::create(&path, compression).unwrap();
        writer.part("pages-1.img", Kind::Memory, &mut &bytes[..]).unwrap();
        writer.finish(meta()).unwrap();
        let image = Image::open(&path).unwrap();
        let mut copy = Vec::new();
        assert_eq!(image.read_part("pages-1.img").unwrap().copy_to(&mut copy).unwrap(), bytes.len() as u64);
        assert!(copy == bytes, "{compression:?}");
    }
}

#[test]
fn compression_compresses() {
    let (_dir, path) = place();
    let mut writer = Writer::create(&path, Compression::Zstd).unwrap();
    writer.part("pages-1.img", Kind::Memory, &mut &vec![0; 8 << 20][..]).unwrap();
    let manifest = writer.finish(meta()).unwrap();
    assert!(manifest.parts[0].stored_size < 8192, "{manifest:?}");
}

#[test]
fn a_reader_outlives_its_image_and_a_missing_part_is_named() {
    let (_dir, path) = place();
    write_small(&path, Compression::Zstd);
    let image = Image::open(&path).unwrap();
    let missing = image.read_part("core-2.img").err().unwrap().to_string();
    assert!(missing.ends_with("web.pod has no part core-2.img"), "{missing}");
    let mut reader = image.read_part("core-1.img").unwrap();
    drop(image);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"registers");
}

#[test]
fn images_are_for_their_owner_only_and_extracted_files_for_the_pods_root_too() {
    let (dir, path) = place();
    write_small(&path, Compression::None);
    Image::open(&path).unwrap().extract_dir(&Kind::Memory, dir.path()).unwrap();
    for (file, mode) in [(path, 0o600), (dir.path().join("pages-1.img"), 0o644)] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, mode, "{}", file.display());
    }
}
