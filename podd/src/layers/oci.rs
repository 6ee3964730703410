//! OCI image layouts: index, nested indexes, manifest, configuration. Only blobs that are asked for are read, and
//! each is verified. <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};

use super::blob::{Blobs, blob_name, parse};
use super::image::{LayerBlob, Resolved};
use super::reference::tag_matches;
use super::{Digest, Error, Result, config};

/// Deepest nesting of indexes; builders make two.
const MAX_NESTING: usize = 4;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd and Docker write beside it: the full name.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// BuildKit's provenance records look like images for the platform unknown/unknown.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Finds the image of `tag` for this machine; no tag: the only one.
pub(super) fn resolve(blobs: &Blobs, tag: Option<&str>) -> Result<Resolved> {
    let image = blobs.image();
    let json = blobs.open("index.json")?.bytes("the index", None)?;
    let mut chosen = choose(&image, &json, Level::Top { tag })?;
    for _ in 0..MAX_NESTING {
        match kind(chosen.media_type()) {
            Some(Part::Manifest) => return from_manifest(blobs, &chosen),
            Some(Part::Index) => {
                let json = read(blobs, &chosen, "the nested index")?;
                chosen = choose(&image, &json, Level::Nested)?;
            }
            None => return Err(wrong_type("the manifest", chosen.media_type())),
        }
    }
    Err(Error::NestedTooDeep { image, limit: MAX_NESTING })
}

/// Parses an index and chooses from it as an import does. For the fuzzer, which has no files.
///
/// # Errors
/// As the import's.
pub fn check_index(json: &[u8], tag: Option<&str>) -> Result<()> {
    choose("the image", json, Level::Top { tag }).map(drop)
}

/// Which index it is.
enum Level<'a> {
    /// index.json, which lists images by tag.
    Top { tag: Option<&'a str> },
    /// A blob, which lists one image for several platforms.
    Nested,
}

/// Parts that an index lists.
enum Part {
    Index,
    Manifest,
}

fn choose(image: &str, json: &[u8], level: Level<'_>) -> Result<Descriptor> {
    let index: ImageIndex = parse("the index", json)?;
    let listed: Vec<&Descriptor> =
        index.manifests().iter().filter(|entry| annotation(entry, ATTESTATION).is_none()).collect();
    let known = || names(&listed);
    let tagged: Vec<&Descriptor> = match level {
        Level::Top { tag: Some(tag) } => listed.iter().copied().filter(|entry| has_tag(entry, tag)).collect(),
        _ => listed.clone(),
    };
    if let (Level::Top { tag: Some(tag) }, true) = (&level, tagged.is_empty()) {
        return Err(Error::UnknownTag { image: image.to_owned(), tag: (*tag).to_owned(), known: known() });
    }
    let fitting: Vec<&Descriptor> = tagged.iter().copied().filter(|entry| fits(entry)).collect();
    match (fitting.as_slice(), level) {
        ([], _) if listed.is_empty() => {
            Err(Error::NoImage { path: image.to_owned(), reason: "its index lists no image" })
        }
        ([], _) => Err(Error::Platform {
            image: image.to_owned(),
            wanted: config::platform(),
            known: tagged.iter().filter_map(|entry| platform(entry)).collect(),
        }),
        // The specification: of several that match, the first.
        ([first, rest @ ..], Level::Top { tag: None }) if rest.iter().any(|other| other.digest() != first.digest()) => {
            Err(Error::TagNeeded { image: image.to_owned(), known: known() })
        }
        ([first, ..], _) => Ok((*first).clone()),
    }
}

fn from_manifest(blobs: &Blobs, descriptor: &Descriptor) -> Result<Resolved> {
    let manifest: ImageManifest = parse("the manifest", &read(blobs, descriptor, "the manifest")?)?;
    match manifest.config().media_type() {
        MediaType::ImageConfig => {}
        MediaType::Other(other) if other == "application/vnd.docker.container.image.v1+json" => {}
        other => return Err(wrong_type("the configuration", other)),
    }
    let json = read(blobs, manifest.config(), "the configuration")?;
    let (config, diff_ids) = config::parse(&blobs.image(), &json)?;
    if manifest.layers().len() != diff_ids.len() {
        return Err(Error::LayerCount { layers: manifest.layers().len(), diff_ids: diff_ids.len() });
    }
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        if !is_layer(layer.media_type()) {
            return Err(wrong_type("a layer", layer.media_type()));
        }
        let digest = digest(layer)?;
        layers.push(LayerBlob { name: blob_name(&digest), announced: Some((digest, layer.size())), diff_id });
    }
    Ok(Resolved { config, layers })
}

fn read(blobs: &Blobs, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
    let digest = digest(descriptor)?;
    blobs.open_digest(&digest)?.expect_size(descriptor.size())?.bytes(what, Some(&digest))
}

fn digest(descriptor: &Descriptor) -> Result<Digest> {
    config::digest(descriptor.digest().as_ref())
}

fn kind(media_type: &MediaType) -> Option<Part> {
    match media_type {
        MediaType::ImageIndex => Some(Part::Index),
        MediaType::ImageManifest => Some(Part::Manifest),
        MediaType::Other(other) => match other.as_str() {
            "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Part::Index),
            "application/vnd.docker.distribution.manifest.v2+json" => Some(Part::Manifest),
            _ => None,
        },
        _ => None,
    }
}

fn is_layer(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageLayer
        | MediaType::ImageLayerGzip
        | MediaType::ImageLayerZstd
        | MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => true,
        MediaType::Other(other) => matches!(
            other.as_str(),
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        ),
        _ => false,
    }
}

fn wrong_type(what: &'static str, media_type: &MediaType) -> Error {
    Error::MediaType { what, found: media_type.to_string() }
}

fn fits(entry: &Descriptor) -> bool {
    match entry.platform() {
        None => true,
        Some(platform) => *platform.os() == Os::Linux && *platform.architecture() == Arch::from(config::arch()),
    }
}

fn platform(entry: &Descriptor) -> Option<String> {
    entry.platform().as_ref().map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
}

fn has_tag(entry: &Descriptor, tag: &str) -> bool {
    [REF_NAME, IMAGE_NAME].iter().any(|key| annotation(entry, key).is_some_and(|name| tag_matches(name, tag)))
}

/// The tags in an index, for messages.
fn names(listed: &[&Descriptor]) -> Vec<String> {
    let names = listed.iter().filter_map(|entry| annotation(entry, REF_NAME).or(annotation(entry, IMAGE_NAME)));
    names.map(str::to_owned).collect()
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations().as_ref()?.get(key).map(String::as_str)
}
