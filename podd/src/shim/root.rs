//! The pod's root, seen from the host: layers shifted to the pod's ids, the writable layer, volumes.
//!
//! All of it lives in the shim's own mount namespace, so that it vanishes with shim and pod.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::{Mode, ShimConfig};
use crate::sys::mounts;
use crate::sys::namespaces::user_namespace;

/// The root's mount point, relative to the bundle. The pod's first process, which is nobody on the host, reaches it from
/// its working directory only: the folders above are closed to it.
pub const ROOT: &str = "root";

/// Enters a mount namespace in which the root will be, with its layers shifted to the pod's ids, and returns where; makes the
/// bundle the working directory.
///
/// # Errors
/// With the step that failed.
pub fn place(config: &ShimConfig) -> io::Result<PathBuf> {
    step("make a mount namespace", mounts::private_mount_namespace())?;
    nix::unistd::chdir(&config.bundle)?;
    fs::create_dir_all(ROOT)?;
    let ids = step("make the pod's id map", user_namespace(config.id_base))?;
    for (layer, target) in config.layers.iter().zip(layers(config)) {
        fs::create_dir_all(&target)?;
        let shifted = mounts::id_mapped_bind(layer, Path::new(&target), ids.as_fd(), true);
        step(&format!("shift the ids of layer {}", layer.display()), shifted)?;
    }
    Ok(config.bundle.join(ROOT))
}

/// Where the layers are, relative to the bundle, lowest first.
fn layers(config: &ShimConfig) -> impl Iterator<Item = String> {
    (0..config.layers.len()).map(|i| format!("l/{i}"))
}

/// Assembles the root in [its place](place), from a writable layer that nobody else changes from now on.
///
/// # Errors
/// With the step that failed.
pub fn assemble(config: &ShimConfig) -> io::Result<()> {
    let lower: Vec<String> = layers(config).collect();
    // Both folders must lie on one mount, and its name must not tell where it is on the host.
    fs::create_dir_all("rw")?;
    step("show the writable layer", mounts::bind(&config.writable, Path::new("rw")))?;
    step("mount the overlay", mounts::overlay(&lower, "rw/upper", "rw/work", ROOT))?;
    let inside = fs::File::open(ROOT)?;
    if matches!(config.mode, Mode::Restore { .. }) && !config.volumes.is_empty() {
        let shown = shown(config);
        fs::create_dir_all(&shown)?;
        step("make a place for volumes", mounts::file_system("tmpfs", &shown, MsFlags::empty(), "mode=711,size=1m"))?;
    }
    for (i, volume) in config.volumes.iter().enumerate() {
        let source = volume.host.metadata().map_err(|e| {
            io::Error::new(e.kind(), format!("the volume's host path {} cannot be used: {e}", volume.host.display()))
        })?;
        let what = format!("show the volume {} at {}", volume.host.display(), volume.pod.display());
        let target = mounts::make_target(inside.as_fd(), &volume.pod, source.is_dir(), Some(config.id_base));
        let target = match (&config.mode, step(&what, target)?) {
            (Mode::Start | Mode::Adopt { .. }, target) => target,
            (Mode::Restore { .. }, _) => {
                let place = fs::File::open(shown(config))?;
                mounts::make_target(place.as_fd(), Path::new(&i.to_string()), source.is_dir(), None)?
            }
        };
        step(&what, mounts::show(&volume.host, target.as_fd(), volume.read_only))?;
    }
    Ok(())
}

/// Where a restore finds the pod's volumes, under their numbers: not in the root, as CRIU binds that without what is
/// mounted in it, which the kernel forbids in the pod's user namespace (mount_namespaces(7), locked mounts); and not at
/// their own paths, which the pod's root, nobody on this host, need not be able to reach.
///
/// The folder is one for all pods, but what is mounted there is in each shim's own mount namespace.
#[must_use]
pub fn shown(config: &ShimConfig) -> PathBuf {
    let run = config.bundle.ancestors().nth(2).unwrap_or(&config.bundle);
    run.join("volumes")
}

/// Says what failed.
pub fn step<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("cannot {what}: {e}")))
}
