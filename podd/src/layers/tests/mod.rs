//! Images are built here, byte by byte where they are hostile. The tests run as root: layers need `trusted.*`.
#![allow(clippy::unwrap_used)]

mod hostile;
mod images;
mod overlay;
mod random;
mod rootfs;
mod saved;
mod store;
mod tars;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::image::sha256;
use super::{Digest, Image, LayerStore, Limits, Result, config};
use crate::pod::spec::RootSource;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A store in a directory of its own.
struct Lab {
    dir: tempfile::TempDir,
    store: LayerStore,
}

impl Lab {
    fn new() -> Lab {
        Lab::with(Limits::default())
    }

    fn with(limits: Limits) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open_with(&dir.path().join("layers"), limits).unwrap();
        Lab { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn layout(&self, name: &str) -> Layout {
        let dir = self.path(name);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir, entries: Vec::new() }
    }

    fn import(&self, reference: &str) -> Result<Image> {
        self.store.import(&RootSource::Image(reference.to_owned()), &mut |_, _| {})
    }

    /// Names of half-made things in the store.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.store.root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("tmp-")).collect()
    }

    fn layer(&self, image: &Image, n: usize) -> PathBuf {
        self.store.layer_path(&image.layers[n])
    }
}

/// An OCI layout being made.
struct Layout {
    dir: PathBuf,
    entries: Vec<Value>,
}

impl Layout {
    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    }

    fn json(&self, media_type: &str, value: &Value) -> Value {
        let bytes = serde_json::to_vec(value).unwrap();
        json!({"mediaType": media_type, "digest": self.blob(&bytes).to_string(), "size": bytes.len()})
    }

    /// A manifest with these layers (media type, tar); returns its descriptor.
    fn manifest(&self, layers: &[(&str, &[u8])], program: Value) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| sha256(tar).to_string()).collect();
        let config = json!({"architecture": config::arch(), "os": "linux", "config": program,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let mut blobs = Vec::new();
        for (media_type, tar) in layers {
            let bytes = pack(media_type, tar);
            let digest = self.blob(&bytes).to_string();
            blobs.push(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}));
        }
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": self.json(CONFIG, &config), "layers": blobs});
        self.json(MANIFEST, &manifest)
    }

    fn tag(&mut self, mut descriptor: Value, tag: &str) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.entries.push(descriptor);
    }

    /// Writes index.json; returns the reference.
    fn finish(&self) -> String {
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        format!("oci:{}", self.dir.display())
    }

    /// An image of one tag.
    fn single(mut self, layers: &[(&str, &[u8])]) -> String {
        let manifest = self.manifest(layers, json!({}));
        self.tag(manifest, "latest");
        self.finish()
    }
}

fn pack(media_type: &str, tar: &[u8]) -> Vec<u8> {
    if media_type.contains("gzip") {
        gzip(tar)
    } else if media_type.ends_with("zstd") {
        zstd::encode_all(tar, 1).unwrap()
    } else {
        tar.to_vec()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar being made, hostile if need be: nothing is checked.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

/// One entry's header.
struct Head<'a> {
    kind: u8,
    link: &'a [u8],
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    device: (u32, u32),
}

const HEAD: Head<'static> =
    Head { kind: b'0', link: b"", mode: 0o644, uid: 0, gid: 0, mtime: 1_000_000_000, device: (0, 0) };

impl Tar {
    fn raw(mut self, name: &[u8], head: &Head<'_>, content: &[u8]) -> Tar {
        self.header(name, head, content.len() as u64);
        self.0.extend_from_slice(content);
        self.pad();
        self
    }

    fn header(&mut self, name: &[u8], head: &Head<'_>, size: u64) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.as_mut_bytes()[157..157 + head.link.len()].copy_from_slice(head.link);
        header.as_mut_bytes()[156] = head.kind;
        header.set_mode(head.mode);
        header.set_uid(head.uid.into());
        header.set_gid(head.gid.into());
        header.set_mtime(head.mtime);
        header.set_size(size);
        header.set_device_major(head.device.0).unwrap();
        header.set_device_minor(head.device.1).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn file(self, name: &str, content: &[u8]) -> Tar {
        self.raw(name.as_bytes(), &HEAD, content)
    }

    fn dir(self, name: &str, mode: u32) -> Tar {
        self.raw(name.as_bytes(), &Head { kind: b'5', mode, ..HEAD }, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Tar {
        self.raw(name.as_bytes(), &Head { kind: b'2', link: target.as_bytes(), mode: 0o777, ..HEAD }, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Tar {
        self.raw(name.as_bytes(), &Head { kind: b'1', link: target.as_bytes(), ..HEAD }, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.raw(b"PaxHeaders/x", &Head { kind: b'x', ..HEAD }, &content)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}
