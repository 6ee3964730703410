//! What can be changed in a running kernel and processor: live patches, microcode.

use serde::{Deserialize, Serialize};

use super::{Fact, SHORT};
use crate::patch::reader::{Reader, word};

/// Live patches (Documentation/livepatch/livepatch.rst).
const LIVE_PATCHES: &str = "/sys/kernel/livepatch";
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// A live patch that the kernel has loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePatch {
    /// Name of its module.
    pub name: String,
    /// Its functions are in place.
    pub enabled: bool,
    /// Some tasks still run the old functions, or again.
    pub in_transition: bool,
}

/// Microcode of the processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Microcode {
    /// Revisions in use, each once; more than one is a fault.
    pub revisions: Vec<String>,
}

pub(super) fn patches(reader: &dyn Reader) -> Vec<LivePatch> {
    let flag = |name: &str, file: &str| word(reader, &format!("{LIVE_PATCHES}/{name}/{file}")).ok();
    let patch = |name: String| LivePatch {
        enabled: flag(&name, "enabled").as_deref() == Some("1"),
        // Not known is not done.
        in_transition: flag(&name, "transition").as_deref() != Some("0"),
        name,
    };
    reader.names(LIVE_PATCHES).unwrap_or_default().into_iter().map(patch).collect()
}

/// Whether a *newer* revision exists is not told: vendors' files name it by processor, and a revision that the firmware brought
/// may be newer than theirs; false alarms about it are a classic.
pub(super) fn microcode(reader: &dyn Reader) -> Fact<Microcode> {
    let flags = reader.head("/proc/cpuinfo", SHORT).unwrap_or_default();
    if flags.lines().any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor")) {
        return Fact::unknown("this is a virtual machine: its processors' microcode is its host's", "patch that host");
    }
    let revision = |name: String| word(reader, &format!("{PROCESSORS}/{name}/microcode/version")).ok();
    let mut revisions: Vec<String> =
        reader.names(PROCESSORS).unwrap_or_default().into_iter().filter_map(revision).collect();
    revisions.sort();
    revisions.dedup();
    if revisions.is_empty() {
        return Fact::unknown("the processors do not tell their microcode", "load the kernel's microcode driver");
    }
    Fact::Known(Microcode { revisions })
}
