#![allow(clippy::unwrap_used)]

mod damage;
mod hostile;
mod round_trip;
mod writer;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

use super::header::{HEADER, Header};
use super::*;

fn meta() -> Meta {
    Meta {
        created: 1_709_164_800_000_000_000,
        pod: br#"{"name":"web"}"#.to_vec(),
        host: "a".into(),
        kernel_release: "6.1.0-32-amd64".into(),
        kernel_version: "#1 SMP Debian 6.1.129-1".into(),
        cpu_features: vec!["avx2".into(), "sse4_2".into()],
        criu: "4.2.1".into(),
        layers: vec!["sha256:0123".into()],
    }
}

/// A folder and the path of an image in it, not yet made.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.pod");
    (dir, path)
}

/// Gives these bytes, from any offset on.
fn give(bytes: &[u8]) -> impl Fn(u64, &mut [u8]) -> std::io::Result<()> + Sync {
    move |at, content| {
        content.copy_from_slice(&bytes[at as usize..][..content.len()]);
        Ok(())
    }
}

/// Writes a small image with a part of each kind.
fn write_small(path: &Path, compression: Compression) -> Manifest {
    let mut writer = Writer::create(path, compression).unwrap();
    writer.part("core-1.img", Kind::Criu, &mut &b"registers"[..]).unwrap();
    writer.part("empty.img", Kind::Criu, &mut &b""[..]).unwrap();
    writer.part("pages-1.img", Kind::Memory, &mut &[7; 300][..]).unwrap();
    writer.part("layer", Kind::Layer("sha256:0123".into()), &mut &b"tar"[..]).unwrap();
    writer.part("files", Kind::Files, &mut &b"more"[..]).unwrap();
    writer.finish(meta()).unwrap()
}

/// Opens and reads everything, as callers do.
fn check(path: &Path) -> Result<(), Error> {
    Image::open(path)?.verify()
}

fn content(image: &Image, part: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.read_part(part).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// An image whose checksums are right, around parts and a manifest that may be anything: what a hostile sender makes.
fn forge(path: &Path, parts: &[u8], manifest: &[u8]) {
    let header = Header {
        format: FORMAT,
        length: (HEADER + parts.len() + manifest.len()) as u64,
        manifest_length: manifest.len() as u64,
        manifest_checksum: xxh3_128(manifest),
    };
    fs::write(path, [&header.encode()[..], parts, manifest].concat()).unwrap();
}

/// Encodes without any of the checks.
fn raw(manifest: &Manifest) -> Vec<u8> {
    bincode::serde::encode_to_vec(manifest, bincode::config::standard().with_fixed_int_encoding()).unwrap()
}
