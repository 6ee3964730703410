//! Why an image or layer could not be used, in a sentence, with a cure.

use std::io;
use std::path::{Path, PathBuf};

use super::UnpackError;
use super::unpack::show;

/// Why the layer store refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// Verb.
        doing: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The store's file system, or the daemon's privilege, does not do for overlayfs layers.
    #[error("the layer store {} cannot hold trusted.* attributes: {source}", root.display())]
    NoTrustedXattrs {
        /// The store.
        root: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Neither `oci:` nor `docker-archive:`.
    #[error("{reference:?} is not an image reference")]
    Reference {
        /// As given.
        reference: String,
    },
    /// A path that depends on who reads it.
    #[error("{} is not an absolute path", path.display())]
    Relative {
        /// As given.
        path: PathBuf,
    },
    /// There is no image.
    #[error("there is no image at {path}: {reason}")]
    NoImage {
        /// Path and perhaps tag, as given.
        path: String,
        /// What was looked for.
        reason: &'static str,
    },
    /// A rootfs that is no directory.
    #[error("{} is not a directory", path.display())]
    NotDirectory {
        /// As given.
        path: PathBuf,
    },
    /// A rootfs that contains the layer store, such as `/`.
    #[error("{} contains the layer store itself", path.display())]
    ContainsStore {
        /// As given.
        path: PathBuf,
    },
    /// A file of a rootfs has an id that no pod has.
    #[error("{} belongs to {kind} {id}, but pods have ids 0 to 65535", path.display())]
    ForeignId {
        /// File.
        path: PathBuf,
        /// `user` or `group`.
        kind: &'static str,
        /// Id.
        id: u32,
    },
    /// A rootfs with too many directories in each other.
    #[error("{} lies deeper than 128 directories", path.display())]
    TooDeep {
        /// Directory.
        path: PathBuf,
    },
    /// A JSON part of an image does not parse.
    #[error("{what} of the image is not valid: {}", brief(source))]
    Json {
        /// Which part.
        what: String,
        /// Cause.
        source: serde_json::Error,
    },
    /// A part which is read into memory is too large.
    #[error("{what} of the image has {size} bytes, more than {limit}")]
    TooLarge {
        /// Which part.
        what: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// A media type that is no part of a container image.
    #[error("{what} of the image has the media type {:?}, which is not supported", brief(found))]
    MediaType {
        /// Which part.
        what: &'static str,
        /// As found.
        found: String,
    },
    /// Not a digest, or not a SHA-256.
    #[error("{digest:?} is not a sha256 digest")]
    BadDigest {
        /// As found.
        digest: String,
    },
    /// A part that the image names but does not have.
    #[error("the image lacks {}", brief(name))]
    MissingBlob {
        /// Path in the image.
        name: String,
    },
    /// A part that is no plain file.
    #[error("{} of the image is not a regular file", brief(name))]
    NotRegular {
        /// Path in the image.
        name: String,
    },
    /// A part with another size than announced.
    #[error("{} of the image is damaged: it has {found} bytes instead of {expected}", brief(name))]
    WrongSize {
        /// Path in the image.
        name: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A part with another content than announced.
    #[error("{} of the image is damaged: its digest is {found} instead of {expected}", brief(name))]
    WrongDigest {
        /// Path in the image.
        name: String,
        /// Announced.
        expected: String,
        /// Computed.
        found: String,
    },
    /// No tag was given and there are several images.
    #[error("{image} holds several images")]
    TagNeeded {
        /// Path.
        image: String,
        /// Tags that exist.
        known: Vec<String>,
    },
    /// There is no image of that tag.
    #[error("{image} has no image tagged {tag:?}")]
    UnknownTag {
        /// Path.
        image: String,
        /// As given.
        tag: String,
        /// Tags that exist.
        known: Vec<String>,
    },
    /// There is no image for this kind of machine.
    #[error("{image} has no image for {wanted}")]
    Platform {
        /// Path.
        image: String,
        /// This machine's.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Indexes that refer to indexes without end.
    #[error("{image} nests its indexes more than {limit} deep")]
    NestedTooDeep {
        /// Path.
        image: String,
        /// Most.
        limit: usize,
    },
    /// Manifest and configuration contradict each other.
    #[error("the image lists {layers} layers, but its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// An image without files.
    #[error("the image has no layers")]
    NoLayers,
    /// A layer could not be unpacked.
    #[error("layer {layer} {source}")]
    Layer {
        /// Its diff id.
        layer: String,
        /// Cause.
        source: UnpackError,
    },
    /// An archive could not be read.
    #[error("{} {source}", path.display())]
    Archive {
        /// Archive.
        path: PathBuf,
        /// Cause.
        source: UnpackError,
    },
    /// A tree could not be digested.
    #[error("cannot digest the layer: {0}")]
    Tree(#[source] checkpoint::files::Error),
    /// A received layer is not the one announced.
    #[error("the received layer is {found} instead of {expected}")]
    WrongTree {
        /// Announced.
        expected: String,
        /// Received.
        found: String,
    },
}

impl Error {
    /// What the operator can do about it.
    pub fn cure(&self) -> Option<String> {
        let some = |known: &[String]| known.iter().take(50).map(brief).collect::<Vec<_>>().join(", ");
        let list = |what: &str, known: &[String]| match known {
            [] => format!("the image names no {what}"),
            known => format!("give one of these {what}: {}", some(known)),
        };
        Some(match self {
            Error::NoTrustedXattrs { .. } => "run podd as root, with its state on ext4, xfs or btrfs".into(),
            Error::Reference { .. } => "write oci:DIR[:TAG] or docker-archive:FILE[:TAG], or use --rootfs DIR".into(),
            Error::Relative { path } => format!("give the path from the root, such as /srv/{}", path.display()),
            Error::NoImage { .. } => "check the path; an OCI layout has a file index.json in it".into(),
            Error::NotDirectory { .. } => "give the directory that is to become the pod's /".into(),
            Error::ContainsStore { .. } => "copy the files the pod needs into a directory of their own".into(),
            Error::ForeignId { .. } => "unpack the rootfs as root, without id mapping, and chown this file".into(),
            Error::MediaType { .. } => "export a container image, e.g. with skopeo copy SOURCE oci:DIR:TAG".into(),
            Error::MissingBlob { .. }
            | Error::WrongSize { .. }
            | Error::WrongDigest { .. }
            | Error::NotRegular { .. } => "copy or export the image again".into(),
            Error::TagNeeded { known, .. } | Error::UnknownTag { known, .. } => list("tags", known),
            Error::Platform { known, .. } if known.is_empty() => "export the image for this machine".into(),
            Error::Platform { known, .. } => {
                format!("export the image for this machine; it is there for {}", some(known))
            }
            Error::Layer { source, .. } | Error::Archive { source, .. } => match source {
                UnpackError::TooManyBytes { .. } | UnpackError::TooManyEntries { .. } => {
                    "use a smaller image, or raise the daemon's image limits if you trust it".into()
                }
                UnpackError::Entry { .. } => "rebuild the image without this entry; it may be hostile".into(),
                _ => "copy or export the image again".into(),
            },
            Error::WrongTree { .. } => "try again; if it repeats, check the other host's disk".into(),
            _ => return None,
        })
    }

    pub(super) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { doing, path: path.to_owned(), source: source.into() }
    }
}

/// Images are not trusted to be short: what they say is cut before it reaches people.
fn brief(text: impl std::fmt::Display) -> String {
    show(text.to_string().as_bytes())
}
