//! What is known about a host, as far as patching goes; what cannot be known is said, with the reason, and never guessed.
//!
//! Debian is read whole. Of other systems it is known that they are others: each fact of theirs that needs their package
//! manager is [`Fact::Unknown`], so that no decision takes them for patched.

mod apt;
mod boot;
mod hardware;
mod kernel;
mod live;
mod userland;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::reader::{Reader, word};

pub use apt::{Candidate, Origin, Package, Release};
pub use hardware::{Disk, Hardware};
pub use kernel::{InstalledKernel, Kernel, advisories_of};
pub use live::{LivePatch, Microcode};
pub use userland::StaleProcess;

/// Something that is known, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    /// It is so.
    Known(T),
    /// It cannot be told.
    Unknown(Missing),
}

/// A fact that is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Missing {
    /// What, and why.
    pub what: String,
    /// What the operator can do.
    pub cure: String,
}

impl<T> Fact<T> {
    /// A fact that is missing.
    pub fn unknown(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Unknown(Missing { what: what.into(), cure: cure.into() })
    }

    /// What is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// What is missing.
    pub fn missing(&self) -> Option<&Missing> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(missing) => Some(missing),
        }
    }
}

/// The system of a host (os-release(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// `debian`, `ubuntu` ...
    pub id: String,
    /// `12`, or `testing` if there is none yet.
    pub version: String,
    /// `bookworm`.
    pub codename: String,
    /// As dpkg calls it: `amd64`.
    pub architecture: String,
}

/// All facts about a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When they were read, by the host's own clock.
    pub at: Timestamp,
    /// Whether a time service keeps that clock.
    pub synchronized: Option<bool>,
    /// A new one at each boot.
    pub boot_id: Fact<String>,
    /// Since the boot, in seconds.
    pub uptime_s: Fact<u64>,
    /// The system.
    pub system: Fact<System>,
    /// The kernel that runs.
    pub kernel: Fact<Kernel>,
    /// Kernels whose packages are installed.
    pub installed: Fact<Vec<InstalledKernel>>,
    /// Release of the kernel that the next boot takes.
    pub boot_default: Fact<String>,
    /// The newest kernel of the running one's flavour that apt would install.
    pub candidate: Fact<Candidate>,
    /// Where apt gets packages from.
    pub sources: Fact<Vec<Release>>,
    /// Packages outside the kernel that matter to pods, of those that are installed.
    pub packages: Fact<Vec<Package>>,
    /// Programs of the host that run with libraries, or from files, that have been replaced.
    pub stale: Fact<Vec<StaleProcess>>,
    /// Live patches in the kernel.
    pub live_patches: Vec<LivePatch>,
    /// The processors' microcode.
    pub microcode: Fact<Microcode>,
    /// Packages that asked for a reboot. A hint: any package of a kernel asks, whether it is the running one's or not.
    pub reboot_hints: Vec<String>,
    /// How the hardware is.
    pub hardware: Hardware,
}

/// Longer files are cut, in bytes.
const SHORT: u64 = 64 << 10;

impl Facts {
    /// Reads them.
    #[must_use]
    pub fn read(reader: &dyn Reader) -> Self {
        let system = system(reader);
        let (kernel, live_patches) = (kernel::running(reader, &system), live::patches(reader));
        let installed = on_debian(&system, |_| kernel::installed(reader));
        let sources = on_debian(&system, |_| apt::releases(reader));
        let policies = on_debian(&system, |_| apt::policies(reader, kernel.known()));
        let candidate = match (&kernel, &policies) {
            (Fact::Known(kernel), Fact::Known(policies)) => apt::candidate(reader, kernel, policies),
            (Fact::Unknown(missing), _) | (_, Fact::Unknown(missing)) => Fact::Unknown(missing.clone()),
        };
        let packages = match policies {
            Fact::Known(policies) => Fact::Known(apt::packages(&policies)),
            Fact::Unknown(missing) => Fact::Unknown(missing),
        };
        Self {
            at: reader.now(),
            synchronized: reader.is_synchronized(),
            boot_id: boot::id(reader),
            uptime_s: boot::uptime_s(reader),
            boot_default: boot::next(reader),
            stale: userland::stale(reader),
            microcode: live::microcode(reader),
            reboot_hints: boot::hints(reader),
            hardware: hardware::read(reader),
            system,
            kernel,
            installed,
            candidate,
            sources,
            packages,
            live_patches,
        }
    }
}

fn system(reader: &dyn Reader) -> Fact<System> {
    let Ok(text) = reader.head("/etc/os-release", SHORT) else {
        return Fact::unknown("/etc/os-release cannot be read", "restore that file (package base-files)");
    };
    let fields: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key, value.trim_matches('"')))
        .collect();
    let field = |key| fields.get(key).copied().unwrap_or_default().to_owned();
    let architecture = reader.run(&["dpkg", "--print-architecture"]).unwrap_or_default().out.trim().to_owned();
    let version = if field("VERSION_ID").is_empty() { "testing".to_owned() } else { field("VERSION_ID") };
    Fact::Known(System { id: field("ID"), version, codename: field("VERSION_CODENAME"), architecture })
}

/// What only Debian's package manager tells.
fn on_debian<T>(system: &Fact<System>, read: impl FnOnce(&System) -> Fact<T>) -> Fact<T> {
    match system {
        Fact::Known(system) if system.id == "debian" => read(system),
        Fact::Known(system) => Fact::unknown(
            format!("the system is {:?}, and only Debian's package manager can be asked so far", system.id),
            "look after this host by hand",
        ),
        Fact::Unknown(missing) => Fact::Unknown(missing.clone()),
    }
}

/// A number in a small file.
fn number(reader: &dyn Reader, path: &str) -> Option<i64> {
    word(reader, path).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
