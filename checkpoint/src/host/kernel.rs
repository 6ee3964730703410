//! The running kernel and its limits.

use serde::{Deserialize, Serialize};

use super::{HostError, sys, text};

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`; Debian puts the package version there.
    pub version: String,
    /// First and second number of the release; (0, 0) if it has none.
    pub number: (u32, u32),
    /// `uname -m`.
    pub arch: String,
    /// Pages carry a soft-dirty bit (CONFIG_MEM_SOFT_DIRTY).
    pub soft_dirty: bool,
    /// The PAGEMAP_SCAN ioctl exists (6.7 and later).
    pub pagemap_scan: bool,
}

impl Kernel {
    /// Asks the running kernel.
    #[must_use]
    pub fn read() -> Kernel {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        Kernel {
            number: number(&release),
            version: uname.version().to_string_lossy().into_owned(),
            arch: uname.machine().to_string_lossy().into_owned(),
            soft_dirty: sys::has_soft_dirty_bits(),
            pagemap_scan: sys::pagemap_scan(),
            release,
        }
    }
}

/// Kernel limits that pods and CRIU run into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    /// fs.nr_open: ceiling of any RLIMIT_NOFILE.
    pub nr_open: u64,
    /// fs.pipe-max-size in bytes.
    pub pipe_max_size: u64,
    /// vm.unprivileged_userfaultfd; none where the kernel has no userfaultfd.
    pub unprivileged_userfaultfd: Option<bool>,
    /// vm.max_map_count.
    pub max_map_count: u64,
    /// kernel.pid_max.
    pub pid_max: u64,
    /// user.max_user_namespaces; 0 where the kernel has none.
    pub max_user_namespaces: u64,
    /// fs.inotify.max_user_instances.
    pub inotify_instances: u64,
    /// fs.inotify.max_user_watches.
    pub inotify_watches: u64,
}

impl Sysctls {
    pub(super) fn read() -> Result<Sysctls, HostError> {
        Ok(Sysctls {
            nr_open: sysctl("fs/nr_open")?,
            pipe_max_size: sysctl("fs/pipe-max-size")?,
            unprivileged_userfaultfd: sysctl("vm/unprivileged_userfaultfd").ok().map(|n| n != 0),
            max_map_count: sysctl("vm/max_map_count")?,
            pid_max: sysctl("kernel/pid_max")?,
            max_user_namespaces: sysctl("user/max_user_namespaces").unwrap_or(0),
            inotify_instances: sysctl("fs/inotify/max_user_instances").unwrap_or(0),
            inotify_watches: sysctl("fs/inotify/max_user_watches").unwrap_or(0),
        })
    }
}

fn sysctl(name: &str) -> Result<u64, HostError> {
    let path = format!("/proc/sys/{name}");
    let text = text(&path)?;
    text.parse().map_err(|_| HostError::Parse { path: path.into(), text, expected: "a number" })
}

fn number(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn release_numbers() {
        for (release, expected) in [
            ("6.1.0-44-cloud-amd64", (6, 1)),
            ("6.18.44-fc-v657", (6, 18)),
            ("7.2-rc3", (7, 2)),
            ("7.3+deb14-amd64", (7, 3)),
            ("odd", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(number(release), expected, "{release}");
        }
    }
}
