//! Programs that still run what has been replaced on disk: they keep the old code, fault and all, until they are restarted.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Fact;
use crate::patch::reader::{Reader, word};

/// A process of the host, none of a pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleProcess {
    /// Its number.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// Its systemd unit, if it has one of the host's.
    pub unit: Option<String>,
    /// The replaced files that it has mapped.
    pub files: Vec<String>,
}

impl StaleProcess {
    /// Whether the host's service manager can start it again: one of its services, or itself. A user's session ends when its user
    /// wants.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        self.pid == 1 || self.unit.as_ref().is_some_and(|unit| unit.ends_with(".service"))
    }
}

pub(super) fn stale(reader: &dyn Reader) -> Fact<Vec<StaleProcess>> {
    let Ok(names) = reader.names("/proc") else { return Fact::unknown("/proc cannot be read", "mount /proc") };
    let pids = names.iter().filter_map(|name| name.parse().ok());
    Fact::Known(pids.filter_map(|pid| process(reader, pid)).collect())
}

fn process(reader: &dyn Reader, pid: u32) -> Option<StaleProcess> {
    // A process that has ended meanwhile has nothing.
    let lines = reader.lines_with(&format!("/proc/{pid}/maps"), "(deleted)").ok()?;
    let files: BTreeSet<&str> = lines.iter().filter_map(|line| replaced(line)).collect();
    if files.is_empty() {
        return None;
    }
    let cgroup = reader.head(&format!("/proc/{pid}/cgroup"), 4096).unwrap_or_default();
    // Pods have files of their own, and are none of the host's business here.
    if cgroup.lines().any(|line| line.split('/').any(|part| part == "podd")) {
        return None;
    }
    // Units of a user's own service manager are the user's.
    let of_host = cgroup.lines().filter(|line| !line.split('/').any(|part| part == "user.slice"));
    // Some have cgroups of their own below their unit's.
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let unit = of_host.filter_map(|line| line.rsplit('/').find(is_unit)).map(str::to_owned).next();
    let name = word(reader, &format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(StaleProcess { pid, name, unit, files: files.into_iter().map(str::to_owned).collect() })
}

/// `7f..-7f.. r-xp 00000000 08:01 1234 /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)`: of code alone. Temporary files,
/// shared memory and memfds are deleted on purpose.
fn replaced(line: &str) -> Option<&str> {
    let (fields, path) = line.split_at(line.find('/')?);
    let path = path.strip_suffix(" (deleted)")?;
    let is_code = fields.split(' ').nth(1).is_some_and(|permissions| permissions.contains('x'));
    let is_installed = ["/usr/", "/lib", "/bin/", "/sbin/", "/opt/"].iter().any(|folder| path.starts_with(folder));
    (is_code && is_installed).then_some(path)
}
