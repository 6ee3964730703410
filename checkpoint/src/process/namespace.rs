//! Which namespaces a process is in, and which its children will be in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use procfs::process::Process;
use procfs::{ProcError, ProcResult};

/// The links in /proc/PID/ns by name.
pub(super) struct Links(BTreeMap<&'static str, PathBuf>);

/// Older kernels lack some (time: before 5.6). `mnt`, which every kernel has, is read last: an ending process leaves all
/// but its PID and user namespaces at once, so whoever still has this one had the others too.
const NAMES: [&str; 10] =
    ["cgroup", "ipc", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts", "mnt"];

impl Links {
    pub(super) fn read(process: &Process) -> ProcResult<Links> {
        let mut links = BTreeMap::new();
        for name in NAMES {
            match std::fs::read_link(format!("/proc/{}/ns/{name}", process.pid())) {
                Ok(link) => drop(links.insert(name, link)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(ProcError::from(e)),
            }
        }
        if links.contains_key("mnt") { Ok(Links(links)) } else { Err(ProcError::NotFound(None)) }
    }

    /// Names of those that are not `home`'s. What children will be put into is compared with where `home` itself is.
    pub(super) fn differing(&self, home: &Links) -> Vec<String> {
        let same = |name: &&str| match self.0.get(*name) {
            Some(link) => home.0.get(name.strip_suffix("_for_children").unwrap_or(name)) == Some(link),
            // Missing in this kernel; but after unshare(CLONE_NEWPID) pid_for_children is missing until the first fork.
            None => !home.0.contains_key(*name),
        };
        NAMES.iter().filter(|name| !same(name)).map(|name| (*name).to_owned()).collect()
    }
}
