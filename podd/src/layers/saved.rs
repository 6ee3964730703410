//! What `docker save` writes: `manifest.json` names configuration and layers. Docker 25 and newer put an OCI layout
//! into the same tar; `manifest.json` is preferred, since its tags are those that `docker` shows.

use serde::Deserialize;

use super::archive::Archive;
use super::blob::Blobs;
use super::image::{LayerBlob, Resolved};
use super::reference::tag_matches;
use super::{Error, Result, config, oci};

const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the image of `tag` in the archive; no tag: the only one.
pub(super) fn resolve(archive: Archive, tag: Option<&str>) -> Result<(Blobs, Resolved)> {
    let saved_by_docker = archive.has(MANIFEST);
    let blobs = Blobs::Archive(archive);
    let resolved = if saved_by_docker { from_manifest(&blobs, tag)? } else { oci::resolve(&blobs, tag)? };
    Ok((blobs, resolved))
}

fn from_manifest(blobs: &Blobs, tag: Option<&str>) -> Result<Resolved> {
    let image = blobs.image();
    let images: Vec<Saved> = blobs.open(MANIFEST)?.json("the manifest", None)?;
    let chosen = choose(&image, images, tag)?;
    let digest = digest_in_name(&chosen.config);
    let json = blobs.open(&chosen.config)?.bytes("the configuration", digest.as_ref())?;
    let (config, diff_ids) = config::parse(&image, &json)?;
    let names = chosen.layers.unwrap_or_default();
    if names.len() != diff_ids.len() {
        return Err(Error::LayerCount { layers: names.len(), diff_ids: diff_ids.len() });
    }
    // The layer's content is verified by its diff id alone: the archive announces nothing else.
    let layers = names.into_iter().zip(diff_ids);
    let layers = layers.map(|(name, diff_id)| LayerBlob { name, announced: None, diff_id }).collect();
    Ok(Resolved { config, layers })
}

fn choose(image: &str, images: Vec<Saved>, tag: Option<&str>) -> Result<Saved> {
    let known: Vec<String> = images.iter().flat_map(|saved| saved.repo_tags.iter().flatten().cloned()).collect();
    let several = images.len() > 1;
    let tagged = |saved: &Saved, tag: &str| saved.repo_tags.iter().flatten().any(|name| tag_matches(name, tag));
    let mut fitting = images.into_iter().filter(|saved| tag.is_none_or(|tag| tagged(saved, tag)));
    match (fitting.next(), tag) {
        (Some(_), None) if several => Err(Error::TagNeeded { image: image.to_owned(), known }),
        (Some(saved), _) => Ok(saved),
        (None, Some(tag)) => Err(Error::UnknownTag { image: image.to_owned(), tag: tag.to_owned(), known }),
        (None, None) => Err(Error::NoImage { path: image.to_owned(), reason: "its manifest.json is empty" }),
    }
}

/// The configuration is mostly named by its content: `HEX.json` or `blobs/sha256/HEX`.
fn digest_in_name(name: &str) -> Option<super::Digest> {
    let last = name.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}
