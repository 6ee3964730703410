//! An archive of kernel packages as Debian's: signed, with a security suite, read by the machines' own apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::Lab;
use super::cache::Cache;
use super::kernels::{self, Kernel, Package};

const MAKE: &str = include_str!("../../machine/make-repository");
const BREAK: &str = include_str!("../../machine/break-kernel");
const NEWER: &str = include_str!("../../machine/newer-package");
const METAPACKAGE: &str = include_str!("../../machine/metapackage");
/// Each kernel's metapackage has it, each in its own form.
pub const CONFFILE: &str = "/etc/default/podd-test";
/// What the flawed kernel is without: it boots, and the operators' network between sites is down.
pub const LACKING: &str = "wireguard";

/// What it is made of, and where.
#[derive(Debug)]
pub struct Archive {
    /// The host's release: `bookworm`.
    pub codename: String,
    /// Three kernels of one series: the one that machines have at first.
    pub older: Published,
    /// What the security team sent before the newest one.
    pub next: Published,
    /// The newest one.
    pub newer: Published,
    keys: TempDir,
}

/// A kernel with the package that follows it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its release, as `uname -r` tells it.
    pub release: String,
    /// Version of its package.
    pub version: String,
    /// The kernel's package, the one that follows it, and what else is published with them.
    pub packages: Vec<PathBuf>,
    /// All of it, to make machines of.
    pub kernel: Kernel,
}

impl Archive {
    /// Three kernels of the series of this host's Debian.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        let system = fs::read_to_string("/etc/os-release").expect("os-release");
        let codename = system.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("a codename");
        let series = if codename == "bookworm" { "6.1" } else { "6.12" };
        let keys = tempfile::tempdir().expect("a folder");
        let kernels = kernels::fetch_three(cache, codename, series).expect("three kernels");
        let follows = kernels::fetch_metapackage(cache, &kernels[0]).expect("the metapackage");
        let [newer, next, older] = kernels.map(|kernel| {
            let Package { name, version, .. } = kernel.package.clone();
            let release = name.trim_start_matches("linux-image-").to_owned();
            let packages = vec![kernel.files[0].clone(), metapackage(keys.path(), &follows, &release, &version)];
            Published { release, version, packages, kernel }
        });
        Self { codename: codename.to_owned(), older, next, newer, keys }
    }

    /// A newer version of a package of this host's Debian.
    #[must_use]
    pub fn newer_package(&self, package: &str) -> PathBuf {
        newer_package(self.keys.path(), package)
    }

    /// The suite of the security team.
    #[must_use]
    pub fn security(&self) -> String {
        format!("{}-security", self.codename)
    }

    /// The one before the newest, without the module [`LACKING`].
    #[must_use]
    pub fn flawed(&self) -> Published {
        let mut flawed = self.next.clone();
        flawed.packages[0] = with_fault(self.keys.path(), &flawed.packages[0], &flawed.version, LACKING);
        flawed
    }

    /// A newer kernel still, which does not start.
    #[must_use]
    pub fn broken(&self) -> Published {
        let (folder, newer) = (self.keys.path(), &self.newer);
        let version = format!("{}+broken", newer.version);
        let image = with_fault(folder, &newer.packages[0], &version, "start");
        let follows = metapackage(folder, &newer.packages[1], &newer.release, &version);
        Published { version, packages: vec![image, follows], ..newer.clone() }
    }

    /// Brings the packages to these machines: what is published later appears in a moment.
    pub fn stock(&self, lab: &Lab, machines: &[&'static str], kernels: &[&Published]) {
        let packages: Vec<PathBuf> = kernels.iter().flat_map(|kernel| kernel.packages.clone()).collect();
        lab.each(machines, |machine| {
            lab.room().copy_in(machine, &packages, "/srv/repository/pool").expect("it is copied");
        });
    }

    /// Publishes these in a suite, on each of these machines, which have been [stocked](Self::stock) with them.
    pub fn publish(&self, lab: &Lab, machines: &[&'static str], label: &str, codename: &str, kernels: &[&Published]) {
        let made = tempfile::tempdir().expect("a folder");
        let dir = made.path().join(codename);
        let mut make = Command::new("sh");
        make.args(["-c", MAKE, "make-repository"]).arg(&dir).args([label, codename]).arg(self.keys.path());
        make.args(kernels.iter().flat_map(|kernel| &kernel.packages));
        assert!(make.status().expect("sh runs").success());
        lab.each(machines, |machine| {
            let suite = format!("/srv/repository/{codename}");
            lab.room().copy_in(machine, &[dir.join("dists")], &suite).expect("it is copied");
            lab.room().copy_in(machine, &[self.keys.path().join("key.gpg")], "/srv/repository").expect("it is copied");
            let line =
                format!("deb [signed-by=/srv/repository/key.gpg] file:/srv/repository/{codename} {codename} main");
            let script = "ln -sfn ../pool \"/srv/repository/$2/pool\"; chmod -R a+rX /srv; echo \"$1\" >\"/etc/apt/sources.list.d/$2.list\" && apt-get update 2>&1";
            lab.exec(machine, &["sh", "-c", script, "sh", &line, codename]).must();
        });
    }

    /// Tells these machines that this version ends an exploited fault, and what their policy is.
    pub fn advise(&self, lab: &Lab, machines: &[&'static str], version: &str, policy: &str) {
        let advisory = json!({"linux": {"CVE-2026-1": {"description": "a fault", "scope": "remote", "releases": {
            &self.codename: {"status": "resolved", "repositories": {}, "fixed_version": version, "urgency": "high"}}}}});
        let [tracker, file] = ["tracker.json", "policy.toml"].map(|name| self.keys.path().join(name));
        write(&tracker, &advisory.to_string());
        write(&file, &format!("{policy}\n[advisories]\ntracker = \"/srv/advisories/tracker.json\"\n"));
        for machine in machines {
            lab.room().copy_in(machine, std::slice::from_ref(&tracker), "/srv/advisories").expect("it is copied");
            lab.room().copy_in(machine, std::slice::from_ref(&file), "/etc/podd").expect("it is copied");
            // Some tests cut the power.
            lab.exec(machine, &["sync"]).must();
        }
    }
}

/// Has a machine install a newer version of a package of its Debian.
pub fn upgrade(lab: &Lab, machine: &str, package: &str) {
    let made = tempfile::tempdir().expect("a folder");
    lab.room().copy_in(machine, &[newer_package(made.path(), package)], "/var/tmp").expect("it is copied");
    let install = ["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i"];
    lab.exec(machine, &[&install[..], &[&format!("/var/tmp/{package}.deb")]].concat()).must();
}

fn newer_package(folder: &Path, package: &str) -> PathBuf {
    let mut make = Command::new("sh");
    make.args(["-c", NEWER, "newer-package"]).arg(folder).arg(package);
    assert!(make.status().expect("sh runs").success());
    folder.join(format!("{package}.deb"))
}

/// A kernel's metapackage, as it follows this one.
fn metapackage(folder: &Path, deb: &Path, release: &str, version: &str) -> PathBuf {
    let mut make = Command::new("sh");
    make.args(["-ec", METAPACKAGE, "metapackage"]).arg(folder).arg(deb).args([release, version]);
    assert!(make.status().expect("sh runs").success());
    folder.join(format!("metapackage-{version}.deb"))
}

/// A kernel's package in this version, which does not `start`, or lacks a module.
fn with_fault(folder: &Path, deb: &Path, version: &str, fault: &str) -> PathBuf {
    let mut make = Command::new("sh");
    make.args(["-ec", BREAK, "break-kernel"]).arg(folder).arg(deb).args([version, fault]);
    assert!(make.status().expect("sh runs").success());
    folder.join(format!("image-{version}.deb"))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file can be written");
}
