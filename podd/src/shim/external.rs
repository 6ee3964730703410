//! Mounts of a pod that come from the host and that CRIU must not look into: devices, masks and volumes.
//! Both sides of a move derive the same keys from the pod's spec.

use std::path::{Path, PathBuf};

use crate::pod::spec::Volume;

/// Device nodes in the pod's `/dev`, each bound from the host's.
pub const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files that pods cannot read: the host's `/dev/null` lies over them.
pub const MASKED: [&str; 1] = ["/proc/keys"];
/// What the pod's root could otherwise change, since it owns the pod's network namespace. Whatever only the host's
/// root may read or write (`/proc/kcore`, `/proc/sysrq-trigger`, `/proc/timer_list`, `/sys/firmware`) needs no mask:
/// the pod's root is nobody there; and a masked path that the target's kernel lacks would end a move.
pub const READ_ONLY: [&str; 1] = ["/proc/sys"];

/// One external mount.
#[derive(Debug, PartialEq, Eq)]
pub struct External {
    /// Name by which dump and restore mean the same mount.
    key: String,
    /// Where it is in the pod.
    inside: PathBuf,
    /// Where it comes from on this host.
    outside: PathBuf,
}

impl External {
    /// CRIU's `--external` argument for a dump.
    #[must_use]
    pub fn for_dump(&self) -> String {
        format!("mnt[{}]:{}", self.inside.display(), self.key)
    }

    /// CRIU's `--external` argument for a restore.
    #[must_use]
    pub fn for_restore(&self) -> String {
        format!("mnt[{}]:{}", self.key, self.outside.display())
    }
}

/// Every external mount of a pod. A restore finds its volumes in `shown` (see [`super::root::shown`]).
#[must_use]
pub fn mounts(volumes: &[Volume], shown: &Path) -> Vec<External> {
    let devices = DEVICES.iter().map(|name| External {
        key: format!("dev-{name}"),
        inside: Path::new("/dev").join(name),
        outside: Path::new("/dev").join(name),
    });
    let masks = MASKED.iter().map(|path| External {
        key: format!("mask{}", path.replace('/', "-")),
        inside: path.into(),
        outside: "/dev/null".into(),
    });
    let volumes = volumes.iter().enumerate().map(|(i, volume)| External {
        key: format!("volume-{i}"),
        inside: volume.pod.clone(),
        outside: shown.join(i.to_string()),
    });
    devices.chain(masks).chain(volumes).collect()
}
