//! A whole image from a stranger, with right checksums around a zstd part and a manifest of the fuzzer's making, and
//! the raw bytes as they are: nothing panics, and no part gives more than its declared size.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use checkpoint::image::{Compression, FORMAT, Image, Kind, Manifest, Meta, Part};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (size, zstd, bytes) = input;
    read(bytes);
    let part = Part {
        name: "part".into(),
        kind: Kind::Memory,
        size: if zstd {
            size.into()
        } else {
            bytes.len() as u64
        },
        stored_size: bytes.len() as u64,
        offset: 64,
        checksum: xxh3_128(bytes),
        compression: if zstd {
            Compression::Zstd
        } else {
            Compression::None
        },
    };
    let manifest = Manifest {
        format: FORMAT,
        meta: Meta::default(),
        parts: vec![part],
    };
    let manifest = manifest
        .encode(64 + bytes.len() as u64)
        .expect("a sound manifest");
    read(&sealed(bytes, &manifest));
    read(&sealed(b"", bytes));
});

fn sealed(parts: &[u8], manifest: &[u8]) -> Vec<u8> {
    let mut header = [0; 64];
    header[..8].copy_from_slice(b"PODIMG\0\x01");
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&((64 + parts.len() + manifest.len()) as u64).to_le_bytes());
    header[24..32].copy_from_slice(&(manifest.len() as u64).to_le_bytes());
    header[32..48].copy_from_slice(&xxh3_128(manifest).to_le_bytes());
    let checksum = xxh3_64(&header[..56]);
    header[56..].copy_from_slice(&checksum.to_le_bytes());
    [&header[..], parts, manifest].concat()
}

fn read(bytes: &[u8]) {
    let mut file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all(bytes).expect("memory");
    let Ok(image) = Image::from_file(file, Path::new("fuzzed")) else {
        return;
    };
    let _ = image.verify();
    for part in &image.manifest().parts {
        let (mut out, limit) = (Vec::new(), part.size);
        if let Ok(reader) = image.read_part(&part.name) {
            let whole = reader.take(1 << 20).read_to_end(&mut out).is_ok();
            assert!(
                out.len() as u64 <= limit && (!whole || out.len() as u64 == limit.min(1 << 20))
            );
        }
    }
}
