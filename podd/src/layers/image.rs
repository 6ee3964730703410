//! From an image reference to layers in the store.

use std::io;

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::blob::{Blobs, Hashing, Reporting, Section, decompress};
use super::index::Origin;
use super::reference::{Kind, Reference};
use super::store::Hold;
use super::{
    Digest, Error, Image, ImageConfig, LayerStore, Limits, Progress, Result, UnpackError, Unpacked, oci, saved, tree,
    unpack,
};

/// An image whose parts are known.
pub(super) struct Resolved {
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<LayerBlob>,
}

/// A layer in an image.
pub(super) struct LayerBlob {
    /// Path in the image.
    pub name: String,
    /// Digest and size of the blob as stored; the form with `manifest.json` announces none.
    pub announced: Option<(Digest, u64)>,
    /// Digest of the unpacked tar.
    pub diff_id: Digest,
}

/// Unpacks the layers that the store does not have.
pub(super) fn import(store: &LayerStore, reference: &str, progress: Progress<'_>) -> Result<Image> {
    let reference = Reference::parse(reference)?;
    let tag = reference.tag.as_deref();
    let (blobs, resolved) = match reference.kind {
        Kind::Oci => {
            let blobs = Blobs::Layout(reference.path);
            let resolved = oci::resolve(&blobs, tag)?;
            (blobs, resolved)
        }
        Kind::Archive => saved::resolve(Archive::open(store, &reference.path)?, tag)?,
    };
    if resolved.layers.is_empty() {
        return Err(Error::NoLayers);
    }
    let total = resolved.layers.iter().map(|layer| size(&blobs, layer)).sum();
    let bytes_left = store.limits().max_image_bytes;
    let mut work = Work { store, blobs: &blobs, below: Vec::new(), chain: None, bytes_left, done: 0, total, progress };
    for layer in &resolved.layers {
        work.add(layer)?;
    }
    let layers = work.below.iter().map(|hold| *hold.layer()).collect();
    Ok(Image { layers, config: resolved.config, holds: work.below })
}

/// Stored size, for the progress; what is missing is found when it is needed.
fn size(blobs: &Blobs, layer: &LayerBlob) -> u64 {
    match layer.announced {
        Some((_, size)) => size,
        None => blobs.open(&layer.name).map_or(0, |section| section.len()),
    }
}

struct Work<'a, 'b> {
    store: &'a LayerStore,
    blobs: &'a Blobs,
    /// Layers done, lowest first.
    below: Vec<Hold>,
    /// Chain id of the layers done: names this sequence of layers.
    chain: Option<Digest>,
    /// What the rest of the image may still unpack to.
    bytes_left: u64,
    done: u64,
    total: u64,
    progress: Progress<'b>,
}

impl Work<'_, '_> {
    fn add(&mut self, layer: &LayerBlob) -> Result<()> {
        // https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
        let chain = match &self.chain {
            None => layer.diff_id,
            Some(below) => sha256(format!("{below} {}", layer.diff_id).as_bytes()),
        };
        self.chain = Some(chain);
        let _turn = self.store.turn(&layer.diff_id.to_string());
        let hold = match self.known(layer, chain) {
            Some(hold) => {
                self.done += size(self.blobs, layer);
                (self.progress)(self.done, self.total);
                hold
            }
            None => self.unpack(layer, chain)?,
        };
        if hides_all_below(&self.store.layer_path(hold.layer()))? {
            // Overlayfs does not heed the mark on a layer's root.
            self.below.clear();
        }
        // Overlayfs refuses a layer that it has twice (ELOOP). The lower one adds nothing to the upper one.
        self.below.retain(|below| below.layer() != hold.layer());
        self.below.push(hold);
        Ok(())
    }

    fn known(&self, layer: &LayerBlob, chain: Digest) -> Option<Hold> {
        let index = self.store.index();
        let find = |origin| index.get(&origin, "").and_then(|found| self.store.hold(&found));
        find(Origin::Diff(layer.diff_id)).or_else(|| find(Origin::Chain(chain)))
    }

    fn unpack(&mut self, layer: &LayerBlob, chain: Digest) -> Result<Hold> {
        let mut section = self.blobs.open(&layer.name)?;
        if let Some((_, size)) = layer.announced {
            section = section.expect_size(size)?;
        }
        let dir = self.store.temporary()?;
        let fs = dir.make_fs()?;
        let unpacked = self.unpack_verified(section, layer, &fs)?;
        self.bytes_left = self.bytes_left.saturating_sub(unpacked.bytes);
        let digest = checkpoint::files::digest(&fs).map_err(Error::Tree)?;
        let hold = self.store.publish(dir, &digest)?;
        let origin = match unpacked.depends_on_lower {
            true => Origin::Chain(chain),
            false => Origin::Diff(layer.diff_id),
        };
        self.store.index().set(&origin, "", &digest)?;
        tracing::info!(layer = %digest, diff_id = %layer.diff_id, bytes = unpacked.bytes, "unpacked a layer");
        Ok(hold)
    }

    /// Both digests are computed while the tar is unpacked; the directory is discarded if one is wrong.
    fn unpack_verified(&mut self, section: Section, layer: &LayerBlob, dir: &std::path::Path) -> Result<Unpacked> {
        let limits = self.store.limits();
        let limits = Limits { max_bytes: limits.max_bytes.min(self.bytes_left), ..limits.clone() };
        let lower: Vec<_> = self.below.iter().rev().map(|hold| self.store.layer_path(hold.layer())).collect();
        let progress = &mut self.progress;
        let mut stored =
            Hashing::new(Reporting { inner: section.clone(), done: &mut self.done, total: self.total, progress });
        let tar_error = |source| Error::Layer { layer: layer.diff_id.to_string(), source };
        let unpacked = decompress(&mut stored)
            .map_err(|source| UnpackError::Read { offset: 0, source })
            .and_then(|tar| unpack_hashed(tar, dir, &lower, &limits));
        // A damaged blob mostly shows as a damaged tar first: the digest tells the cause. A bomb is told as a bomb,
        // and what was wrong with an entry is of interest only if the blob is what it should be.
        if let (Some((expected, _)), false) =
            (layer.announced, matches!(unpacked, Err(UnpackError::TooManyBytes { .. })))
        {
            let found = stored.finish().map_err(|e| Error::io("read", std::path::Path::new(&layer.name), e))?;
            verify(&layer.name, expected, found)?;
        }
        let (unpacked, diff_id) = unpacked.map_err(tar_error)?;
        verify(&format!("{} (unpacked)", layer.name), layer.diff_id, diff_id)?;
        Ok(unpacked)
    }
}

fn unpack_hashed(
    tar: impl io::Read,
    dir: &std::path::Path,
    lower: &[std::path::PathBuf],
    limits: &Limits,
) -> std::result::Result<(Unpacked, Digest), UnpackError> {
    let mut tar = Hashing::new(tar);
    let unpacked = unpack(&mut tar, dir, lower, limits)?;
    let diff_id = tar.finish().map_err(|source| UnpackError::Read { offset: unpacked.bytes, source })?;
    Ok((unpacked, diff_id))
}

fn verify(name: &str, expected: Digest, found: Digest) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::WrongDigest { name: name.to_owned(), expected: expected.to_string(), found: found.to_string() })
}

fn hides_all_below(fs: &std::path::Path) -> Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::lgetxattr(fs, tree::OPAQUE, &mut value[..]) {
        Ok(n) => Ok(&value[..n] == b"y"),
        Err(Errno::NODATA) => Ok(false),
        Err(e) => Err(Error::io("inspect", fs, e)),
    }
}

/// The SHA-256 of a few bytes.
pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}
