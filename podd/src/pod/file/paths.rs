//! Paths on the host and in the pod, and the things that contain them.

use std::path::{Component, Path, PathBuf};

use super::PodFileError;
use crate::pod::spec::{RootSource, Volume};

const IMAGE_KINDS: [&str; 2] = ["oci:", "docker-archive:"];

/// Exactly one of the two.
pub(super) fn source(rootfs: Option<&str>, image: Option<&str>) -> Result<RootSource, PodFileError> {
    match (rootfs, image) {
        (Some(rootfs), None) => Ok(RootSource::Rootfs(on_host("rootfs", rootfs)?)),
        (None, Some(image)) => checked_image(image),
        (Some(_), Some(image)) => Err(PodFileError::invalid(
            "image",
            image,
            "is given together with a rootfs",
            "give one of the two: a directory as rootfs, or an image",
        )),
        (None, None) => Err(PodFileError::Missing {
            key: "rootfs or image",
            cure: "give --rootfs DIR, or --image oci:DIR[:TAG], or --image docker-archive:FILE",
        }),
    }
}

/// `HOST:POD[:ro|rw]`.
pub(super) fn volume(text: &str) -> Result<Volume, PodFileError> {
    let invalid = |problem| {
        PodFileError::invalid("volumes", text, problem, "write HOST:POD or HOST:POD:ro, such as /srv/www:/data:ro")
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, pod, read_only) = match parts[..] {
        [host, pod] | [host, pod, "rw"] => (host, pod, false),
        [host, pod, "ro"] => (host, pod, true),
        [_, _, _] => return Err(invalid("ends in something other than ro or rw")),
        _ => return Err(invalid("is not of the form HOST:POD[:ro]")),
    };
    let volume = Volume { host: on_host("volumes", host)?, pod: in_pod("volumes", pod)?, read_only };
    if volume.pod == Path::new("/") {
        return Err(invalid("covers the pod's root"));
    }
    // These are made and masked by podd: a host's directory over them would undo the isolation.
    if ["/proc", "/sys", "/dev"].iter().any(|kept| volume.pod.starts_with(kept)) {
        return Err(invalid("lies in a file system that podd makes itself"));
    }
    Ok(volume)
}

/// Absolute, without `..`, without doubled or trailing slashes.
pub(super) fn in_pod(key: &'static str, text: &str) -> Result<PathBuf, PodFileError> {
    clean(text).map_err(|problem| {
        PodFileError::invalid(key, text, problem, "write an absolute path inside the pod, such as /data")
    })
}

pub(super) fn on_host(key: &'static str, text: &str) -> Result<PathBuf, PodFileError> {
    clean(text).map_err(|problem| {
        PodFileError::invalid(key, text, problem, "write an absolute path on the host, such as /srv/www")
    })
}

/// `path` if it is absolute, else `base/path`.
pub(super) fn absolute(base: &Path, path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let joined = base.join(path);
    let parts = joined.components().filter(|part| *part != Component::CurDir);
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

pub(super) fn image_absolute(base: &Path, image: &str) -> String {
    match IMAGE_KINDS.iter().find_map(|kind| image.strip_prefix(kind).map(|rest| (kind, rest))) {
        Some((kind, rest)) => format!("{kind}{}", absolute(base, rest)),
        None => image.to_owned(),
    }
}

pub(super) fn volume_absolute(base: &Path, volume: &str) -> String {
    match volume.split_once(':') {
        Some((host, rest)) => format!("{}:{rest}", absolute(base, host)),
        None => volume.to_owned(),
    }
}

fn checked_image(image: &str) -> Result<RootSource, PodFileError> {
    const CURE: &str = "write oci:DIR, oci:DIR:TAG or docker-archive:FILE";
    let rest = IMAGE_KINDS.iter().find_map(|kind| image.strip_prefix(kind));
    let rest = rest.ok_or_else(|| PodFileError::invalid("image", image, "is of no known kind", CURE))?;
    let path = match image.starts_with("oci:") {
        true => rest.split(':').next().unwrap_or(rest),
        false => rest,
    };
    clean(path).map_err(|problem| PodFileError::invalid("image", image, problem, CURE))?;
    Ok(RootSource::Image(image.to_owned()))
}

fn clean(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("is not an absolute path");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("contains `..`");
    }
    if text.len() >= 4096 {
        return Err("is longer than the kernel allows");
    }
    if text.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    Ok(path.components().collect())
}
