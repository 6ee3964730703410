//! What an image says about itself. Decoding is pure and bounded; what decodes has a sound table of parts.

use std::collections::HashSet;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Deserialize, Serialize};

use super::bounded;
use super::header::HEADER;

/// Largest encoded manifest, in bytes.
pub const MAX_MANIFEST: usize = 32 << 20;

/// Fixed width, as the byte limit counts integers at full width: what encodes within it also decodes within it.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_MANIFEST>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit();

/// Bounds of a manifest's fields: counts, or bytes for text.
pub mod limits {
    /// Parts: CRIU writes about 20 for each process.
    pub const PARTS: usize = 65_536;
    /// Layers of a root file system.
    pub const LAYERS: usize = 512;
    /// CPU features.
    pub const FEATURES: usize = 4096;
    /// Bytes of a name, a digest, a version or a feature.
    pub const TEXT: usize = 255;
    /// Bytes of podd's record of the pod.
    pub const POD: usize = 4 << 20;
}

/// The manifest: what the writer was told, and the table of parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version of the image.
    pub format: u32,
    /// The pod and the host it was taken on.
    pub meta: Meta,
    /// Parts, in the order in which they lie in the file.
    #[serde(deserialize_with = "bounded::list::<{limits::PARTS}, _, _>")]
    pub parts: Vec<Part>,
}

/// What only the maker of an image knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// When the pod was frozen: nanoseconds since 1970 UTC.
    pub created: u64,
    /// podd's record of the pod (JSON); this crate does not look into it.
    #[serde(with = "blob")]
    pub pod: Vec<u8>,
    /// Host on which it ran.
    #[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")]
    pub host: String,
    /// `uname -r` of that host.
    #[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")]
    pub kernel_release: String,
    /// `uname -v` of that host.
    #[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")]
    pub kernel_version: String,
    /// CPU features of that host.
    #[serde(deserialize_with = "bounded::strings::<{limits::FEATURES}, {limits::TEXT}, _>")]
    pub cpu_features: Vec<String>,
    /// Version of the CRIU that wrote the dump.
    #[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")]
    pub criu: String,
    /// Digests of the pod's layers, lowest first.
    #[serde(deserialize_with = "bounded::strings::<{limits::LAYERS}, {limits::TEXT}, _>")]
    pub layers: Vec<String>,
}

/// A part as the table describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name, which is also a safe file name.
    #[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")]
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content.
    pub size: u64,
    /// Bytes that it takes in the file.
    pub stored_size: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// xxh3-128 of the stored bytes.
    pub checksum: u128,
    /// How it is stored.
    pub compression: Compression,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A file of CRIU's image folder, under its own name.
    Criu,
    /// The pod's writable layer.
    Files,
    /// Pages of memory.
    Memory,
    /// A layer of the root file system, by digest.
    Layer(#[serde(deserialize_with = "bounded::string::<{limits::TEXT}, _>")] String),
}

/// How a part is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// One zstd frame.
    Zstd,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not what was written.
    #[error("its checksum does not match")]
    Checksum,
    /// It does not decode.
    #[error("it cannot be decoded ({0})")]
    Decode(#[source] bincode::error::DecodeError),
    /// It does not encode.
    #[error("it cannot be encoded ({0})")]
    Encode(#[source] bincode::error::EncodeError),
    /// Bytes are left after it.
    #[error("{0} bytes follow it")]
    Trailing(usize),
    /// It names another format version than the header.
    #[error("it has format version {0}, unlike the header")]
    Format(u32),
    /// A field is above its limit.
    #[error("its {field} is above the limit of {limit}")]
    Limit {
        /// Which field.
        field: &'static str,
        /// Most bytes or items allowed.
        limit: usize,
    },
    /// A part's name is no safe file name.
    #[error("{0:?} is no name for a part")]
    Name(String),
    /// Two parts have one name.
    #[error("part {0} occurs twice")]
    Twice(String),
    /// A digest is no plain word.
    #[error("{0:?} is no digest")]
    Digest(String),
    /// A part does not lie where its neighbours leave room.
    #[error("the place or size of part {0} is impossible")]
    Place(String),
    /// The parts do not fill the space before the manifest.
    #[error("its parts do not fill the file")]
    Gap,
}

impl Manifest {
    /// Reads a manifest of `format` whose parts end at byte `end` of the file.
    pub fn decode(bytes: &[u8], format: u32, end: u64) -> Result<Self, ManifestError> {
        let (manifest, used) =
            bincode::serde::borrow_decode_from_slice::<Self, _>(bytes, CONFIG).map_err(ManifestError::Decode)?;
        match bytes.len() - used {
            0 => manifest.check(format, end).map(|()| manifest),
            left => Err(ManifestError::Trailing(left)),
        }
    }

    /// Its bytes, if a reader would accept them.
    pub fn encode(&self, end: u64) -> Result<Vec<u8>, ManifestError> {
        self.check(self.format, end)?;
        let bytes = bincode::serde::encode_to_vec(self, CONFIG).map_err(ManifestError::Encode)?;
        at_most("size", bytes.len(), MAX_MANIFEST)?;
        Ok(bytes)
    }

    /// The part of that name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// Bytes of content of all parts of `kind`: what extracting them takes on disk.
    pub fn size_of(&self, kind: &Kind) -> u64 {
        self.parts.iter().filter(|part| part.kind == *kind).map(|part| part.size).sum()
    }

    fn check(&self, format: u32, end: u64) -> Result<(), ManifestError> {
        if self.format != format {
            return Err(ManifestError::Format(self.format));
        }
        self.meta.check()?;
        at_most("number of parts", self.parts.len(), limits::PARTS)?;
        let mut names = HashSet::with_capacity(self.parts.len());
        let (mut offset, mut total) = (HEADER as u64, 0_u64);
        for part in &self.parts {
            part.check()?;
            if !names.insert(&part.name) {
                return Err(ManifestError::Twice(part.name.clone()));
            }
            let place = || ManifestError::Place(part.name.clone());
            if part.offset != offset {
                return Err(place());
            }
            offset = offset.checked_add(part.stored_size).filter(|next| *next <= end).ok_or_else(place)?;
            total = total.checked_add(part.size).ok_or_else(place)?;
        }
        if offset == end { Ok(()) } else { Err(ManifestError::Gap) }
    }
}

impl Meta {
    fn check(&self) -> Result<(), ManifestError> {
        at_most("record of the pod", self.pod.len(), limits::POD)?;
        at_most("list of CPU features", self.cpu_features.len(), limits::FEATURES)?;
        at_most("list of layers", self.layers.len(), limits::LAYERS)?;
        let text = [&self.host, &self.kernel_release, &self.kernel_version, &self.criu];
        for text in text.into_iter().chain(&self.cpu_features) {
            at_most("text", text.len(), limits::TEXT)?;
        }
        self.layers.iter().try_for_each(|digest| check_digest(digest))
    }
}

impl Part {
    /// Its own fields, without regard to its neighbours.
    fn check(&self) -> Result<(), ManifestError> {
        check_name(&self.name)?;
        if let Kind::Layer(digest) = &self.kind {
            check_digest(digest)?;
        }
        match self.compression {
            Compression::None if self.size != self.stored_size => Err(ManifestError::Place(self.name.clone())),
            _ => Ok(()),
        }
    }
}

/// A name becomes a file on the restoring host: no path, nothing hidden behind control characters.
pub(super) fn check_name(name: &str) -> Result<(), ManifestError> {
    let safe = !name.is_empty()
        && name.len() <= limits::TEXT
        && name != "."
        && !name.contains("..")
        && !name.contains(|c: char| c == '/' || c.is_control());
    if safe { Ok(()) } else { Err(ManifestError::Name(name.chars().take(limits::TEXT).collect())) }
}

/// A digest is a key of the layer store: letters, digits, `:`, `+`, `-`, `_`, and single dots.
pub(super) fn check_digest(digest: &str) -> Result<(), ManifestError> {
    let word = |c: char| c.is_ascii_alphanumeric() || ":+-_.".contains(c);
    let safe = !digest.is_empty()
        && digest.len() <= limits::TEXT
        && !digest.starts_with('.')
        && !digest.contains("..")
        && digest.chars().all(word);
    if safe { Ok(()) } else { Err(ManifestError::Digest(digest.chars().take(limits::TEXT).collect())) }
}

fn at_most(field: &'static str, count: usize, limit: usize) -> Result<(), ManifestError> {
    if count > limit { Err(ManifestError::Limit { field, limit }) } else { Ok(()) }
}

/// Bytes in one piece, not a number at a time.
mod blob {
    use serde::{Deserializer, Serializer};

    use super::{bounded, limits};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        bounded::bytes::<{ limits::POD }, _>(from)
    }
}
