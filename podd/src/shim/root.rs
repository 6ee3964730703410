//! The pod's root, seen from the host: layers shifted to the pod's ids, the writable layer, volumes.
//!
//! All of it lives in the shim's own mount namespace, so that it vanishes with shim and pod.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::ShimConfig;
use crate::sys::mounts;
use crate::sys::namespaces::user_namespace;

/// The root's mount point, relative to the bundle. The pod's first process, which is nobody on the host, reaches it from
/// its working directory only: the folders above are closed to it.
pub const ROOT: &str = "root";

/// Assembles the root and returns its mount point. Changes the working directory to the bundle.
///
/// # Errors
/// With the step that failed.
pub fn assemble(config: &ShimConfig) -> io::Result<PathBuf> {
    step("make a mount namespace", mounts::private_mount_namespace())?;
    nix::unistd::chdir(&config.bundle)?;
    let ids = step("make the pod's id map", user_namespace(config.id_base))?;
    let mut lower = Vec::new();
    for (i, layer) in config.layers.iter().enumerate() {
        let target = format!("l/{i}");
        fs::create_dir_all(&target)?;
        let shifted = mounts::id_mapped_bind(layer, Path::new(&target), ids.as_fd(), true);
        step(&format!("shift the ids of layer {}", layer.display()), shifted)?;
        lower.push(target);
    }
    // Both folders must lie on one mount, and its name must not tell where it is on the host.
    fs::create_dir_all("rw")?;
    step("show the writable layer", mounts::bind(&config.writable, Path::new("rw")))?;
    fs::create_dir_all(ROOT)?;
    step("mount the overlay", mounts::overlay(&lower, "rw/upper", "rw/work", ROOT))?;
    let root = config.bundle.join(ROOT);
    let inside = fs::File::open(&root)?;
    for volume in &config.volumes {
        let source = volume.host.metadata().map_err(|e| {
            io::Error::new(e.kind(), format!("the volume's host path {} cannot be used: {e}", volume.host.display()))
        })?;
        let what = format!("show the volume {} at {}", volume.host.display(), volume.pod.display());
        let target = mounts::make_target(inside.as_fd(), &volume.pod, source.is_dir(), Some(config.id_base));
        step(&what, target.and_then(|target| mounts::show(&volume.host, target.as_fd(), volume.read_only)))?;
    }
    Ok(root)
}

/// Says what failed.
pub fn step<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("cannot {what}: {e}")))
}
