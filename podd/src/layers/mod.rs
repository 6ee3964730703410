//! The layer store: read-only layers, named by content, shared by pods, each unpacked once.
//!
//! On disk, below the store's root (mode 0700: layers hold set-id programs):
//! ```text
//! <sha256 of the tree>/fs   a layer, ready to be a lowerdir of overlayfs; ids are the image's own, 0 to 65535
//! index/                    which blob or host directory became which layer; a cache, see `index`
//! tmp-*                     imports under way: synced, then renamed; leftovers are removed when the store opens
//! lock                      held for an instant while a tmp-* is made or cleaned
//! ```
//! A layer never changes after the rename. Everything here blocks: call it off the async threads.

mod archive;
mod blob;
mod config;
mod copy;
mod error;
mod image;
mod index;
mod oci;
mod reference;
mod rootfs;
mod saved;
mod store;
mod tarball;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod xattr;

pub use checkpoint::files::Digest;

pub use config::ImageConfig;
pub use error::Error;
pub use oci::check_index;
pub use store::{Hold, Incoming, LayerStore};
pub use unpack::{Fault, UnpackError, Unpacked, unpack};

/// Result of the layer store.
pub type Result<T> = std::result::Result<T, Error>;

/// Called with bytes done and bytes to do.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What a pod's files are made from.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers, lowest first, no layer twice.
    pub layers: Vec<Digest>,
    /// What the image says about the program to run.
    pub config: ImageConfig,
    /// Keep this (or the image) until the pod's record names the layers: garbage collection spares held layers.
    pub holds: Vec<Hold>,
}

/// Bounds for images, which are not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest tar of one layer, unpacked, in bytes.
    pub max_bytes: u64,
    /// Largest sum over the layers of an image that are not in the store yet, in bytes.
    pub max_image_bytes: u64,
    /// Most files in a layer.
    pub max_entries: u64,
    /// Longest name in a layer, in bytes.
    pub max_path: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 32 << 30,
            max_image_bytes: 64 << 30,
            max_entries: 2_000_000,
            // The kernel's limit of 4,096 less room for the path of the store itself.
            max_path: 3_840,
        }
    }
}
