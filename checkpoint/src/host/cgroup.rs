//! How control groups are mounted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use procfs::process::MountInfo;
use serde::{Deserialize, Serialize};

use super::HostError;

/// Control groups of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// How they are mounted.
    pub layout: CgroupLayout,
    /// Where version 2 is mounted.
    pub v2: Option<PathBuf>,
    /// Controllers of version 2, such as `memory`.
    pub v2_controllers: Vec<String>,
    /// Where version 1 is mounted, by controller.
    pub v1: BTreeMap<String, PathBuf>,
}

/// How control groups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupLayout {
    /// Version 2 only.
    V2,
    /// Both: version 1 has at least one controller.
    Hybrid,
    /// Version 1 only.
    V1,
    /// Not mounted.
    Missing,
}

impl Cgroups {
    pub(super) fn read(mounts: &[MountInfo]) -> Result<Cgroups, HostError> {
        let v2 = mounts.iter().find(|m| m.fs_type == "cgroup2").map(|m| m.mount_point.clone());
        let mut v1 = BTreeMap::new();
        for mount in mounts.iter().filter(|m| m.fs_type == "cgroup") {
            for option in mount.super_options.keys().filter(|o| is_controller(o)) {
                v1.entry(option.clone()).or_insert_with(|| mount.mount_point.clone());
            }
        }
        let v2_controllers = v2.as_deref().map(controllers).transpose()?.unwrap_or_default();
        let layout = match (&v2, v1.is_empty()) {
            (Some(_), true) => CgroupLayout::V2,
            (Some(_), false) => CgroupLayout::Hybrid,
            (None, false) => CgroupLayout::V1,
            (None, true) => CgroupLayout::Missing,
        };
        Ok(Cgroups { layout, v2, v2_controllers, v1 })
    }

    /// The controller can be used in either version.
    pub fn has(&self, controller: &str) -> bool {
        self.v1.contains_key(controller) || self.v2_controllers.iter().any(|c| c == controller)
    }
}

fn controllers(root: &Path) -> Result<Vec<String>, HostError> {
    Ok(super::text(root.join("cgroup.controllers"))?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Options of a version 1 mount are controllers, but for these. Named hierarchies (systemd's) have none.
fn is_controller(option: &str) -> bool {
    const OTHERS: [&str; 6] = ["rw", "ro", "name", "release_agent", "clone_children", "xattr"];
    !OTHERS.contains(&option) && !option.contains("noprefix") && !option.starts_with("cpuset_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mounts(lines: &[&str]) -> Vec<MountInfo> {
        lines.iter().map(|l| MountInfo::from_line(l).unwrap()).collect()
    }

    #[test]
    fn layouts() {
        let v1 = "30 24 0:26 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer";
        let both = "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct";
        let named = "32 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
        let tmpfs = "29 24 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755";

        let cgroups = Cgroups::read(&mounts(&[tmpfs, v1, both, named])).unwrap();
        assert_eq!(cgroups.layout, CgroupLayout::V1);
        assert_eq!(cgroups.v1.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "freezer"]);
        assert!(cgroups.has("freezer") && !cgroups.has("memory"));

        assert_eq!(Cgroups::read(&mounts(&[tmpfs, named])).unwrap().layout, CgroupLayout::Missing);
    }

    #[test]
    fn this_host_is_understood() {
        let mounts = procfs::process::Process::myself().unwrap().mountinfo().unwrap().0;
        let cgroups = Cgroups::read(&mounts).unwrap();
        assert_ne!(cgroups.layout, CgroupLayout::Missing, "pods need cgroups: mount cgroup2");
        if let Some(root) = &cgroups.v2 {
            assert!(root.join("cgroup.procs").exists());
        }
    }
}
