//! The running kernel, and those that are installed.
//!
//! `uname -r` names the ABI only; which *package* runs is in `uname -v`, as Debian builds it ("... Debian 6.1.170-3
//! (2026-05-08)", debian/bin/gencontrol.py of its package linux).

use serde::{Deserialize, Serialize};

use super::{Fact, System, on_debian};
use crate::patch::reader::{Reader, word};

/// The kernel that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `6.1.0-48-cloud-amd64`.
    pub release: String,
    /// `cloud-amd64`: the same processors and drivers, whatever the version.
    pub flavour: String,
    /// Version of its package: `6.1.170-3`.
    pub version: String,
}

/// An installed kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledKernel {
    /// Its package.
    pub package: String,
    /// Its release.
    pub release: String,
    /// Version of its package.
    pub version: String,
    /// The operator keeps it as it is (`apt-mark hold`).
    pub held: bool,
}

/// The running one.
pub(super) fn running(reader: &dyn Reader, system: &Fact<System>) -> Fact<Kernel> {
    on_debian(system, |_| {
        let (release, build) = ("/proc/sys/kernel/osrelease", "/proc/sys/kernel/version");
        let (Ok(release), Ok(build)) = (word(reader, release), word(reader, build)) else {
            return Fact::unknown("the kernel does not tell its release", "mount /proc");
        };
        let version = package_version(&build);
        match (flavour(&release), version) {
            (Some(flavour), Some(version)) => Fact::Known(Kernel { flavour, version, release }),
            _ => Fact::unknown(
                format!("the running kernel {release} ({build}) is not one of Debian's packages"),
                "boot a kernel of Debian's, or patch this host by hand",
            ),
        }
    })
}

/// `#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)`.
fn package_version(build: &str) -> Option<String> {
    let mut words = build.split_whitespace().skip_while(|word| *word != "Debian");
    let version = words.nth(1)?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// What follows version and ABI in a release: `6.1.0-48-cloud-amd64`, `6.12.9+bpo-rt-amd64`, `6.1.0-0.deb11.5-686-pae`.
pub(super) fn flavour(release: &str) -> Option<String> {
    let (_, rest) = release.split_once('-')?;
    let is_abi = |part: &str| {
        let digits = part.strip_prefix("rc").unwrap_or(part);
        part != "686" && digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let parts: Vec<&str> = rest.split('-').skip_while(|part| is_abi(part)).collect();
    (!parts.is_empty()).then(|| parts.join("-"))
}

/// The release whose advisories speak about a version: backports of release N (`~bpoN+M`) are the packages of release N + 1,
/// built again, and so have that one's numbers, without this ending (<https://backports.debian.org/Contribute>). Second: the
/// version to compare.
#[must_use]
pub fn advisories_of<'a>(version: &'a str, codename: &'a str) -> Option<(&'a str, &'a str)> {
    let Some((plain, backport)) = version.split_once("~bpo") else { return Some((codename, version)) };
    let of: u32 = backport.split('+').next()?.parse().ok()?;
    let (_, codename) = CODENAMES.into_iter().find(|(number, _)| *number == of + 1)?;
    Some((codename, plain))
}

/// Debian's releases; the tracker tells of the next one, too.
const CODENAMES: [(u32, &str); 5] = [(11, "bullseye"), (12, "bookworm"), (13, "trixie"), (14, "forky"), (15, "duke")];

/// Those that are installed, of any flavour.
pub(super) fn installed(reader: &dyn Reader) -> Fact<Vec<InstalledKernel>> {
    let format = "-f=${Package} ${Version} ${db:Status-Abbrev}\\n";
    let said = reader.run(&["dpkg-query", "-W", format, "linux-image-[0-9]*"]).unwrap_or_default();
    // 1: some pattern matches nothing.
    if said.code > 1 {
        return Fact::unknown(format!("dpkg-query failed ({})", said.code), "run `dpkg --audit` and do as it says");
    }
    Fact::Known(said.out.lines().filter_map(installed_kernel).collect())
}

/// `linux-image-6.1.0-48-cloud-amd64 6.1.170-3 ii`.
fn installed_kernel(line: &str) -> Option<InstalledKernel> {
    let mut words = line.split_whitespace();
    let (package, version, state) = (words.next()?, words.next()?, words.next()?);
    let release = package.strip_prefix("linux-image-")?;
    let release = release.strip_suffix("-unsigned").unwrap_or(release);
    // Wanted, state: both letters say what dpkg(1) says; the rest of a removed package is no kernel.
    let [wanted, b'i', ..] = state.as_bytes() else { return None };
    let held = *wanted == b'h';
    (!release.ends_with("-dbg")).then(|| InstalledKernel {
        package: package.to_owned(),
        release: release.to_owned(),
        version: version.to_owned(),
        held,
    })
}
