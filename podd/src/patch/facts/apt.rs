//! What apt would install, and where it has that from. apt itself is asked: it knows priorities and pins (apt_preferences(5)).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Fact, Kernel, SHORT};
use crate::patch::reader::Reader;

/// Binary packages outside the kernel on which pods and moves depend.
const PACKAGES: [&str; 8] =
    ["amd64-microcode", "criu", "intel-microcode", "libc6", "libssl3", "libssl3t64", "openssl", "podd"];

/// Where a package comes from: the fields of a Release file (<https://wiki.debian.org/DebianRepository/Format>).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// `Debian`.
    pub origin: String,
    /// `Debian-Security`.
    pub label: String,
    /// `stable-security`.
    pub suite: String,
    /// `bookworm-security`.
    pub codename: String,
}

impl Origin {
    /// Whether this is where the security team's packages for a release come from.
    #[must_use]
    pub fn is_security_of(&self, codename: &str) -> bool {
        self.label == "Debian-Security" && self.codename.strip_suffix("-security") == Some(codename)
    }
}

/// A source of packages, as it was fetched last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Whose it is.
    pub origin: Origin,
    /// When it was made.
    pub date: Timestamp,
    /// After that it may have been kept from us (by whoever is in between), and says nothing any more.
    pub valid_until: Option<Timestamp>,
}

/// A package, what is installed of it, and what could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Name of its source, by which advisories know it.
    pub source: String,
    /// What is installed.
    pub installed: String,
    /// What apt would install.
    pub candidate: String,
    /// The operator keeps it as it is (`apt-mark hold`).
    pub held: bool,
    /// Where the candidate comes from.
    pub origins: Vec<Origin>,
}

/// The newest kernel of a flavour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Package that follows the newest one.
    pub metapackage: String,
    /// What is installed of that.
    pub installed: Option<String>,
    /// Release of the newest kernel.
    pub release: String,
    /// Version of its package.
    pub version: String,
    /// The operator keeps the metapackage as it is (`apt-mark hold`).
    pub held: bool,
    /// Where it comes from.
    pub origins: Vec<Origin>,
}

/// What apt says about one package.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    source: String,
    installed: Option<String>,
    candidate: Option<String>,
    held: bool,
    origins: Vec<Origin>,
}

/// A cure for whatever apt cannot say.
const UPDATE: &str = "run `apt-get update` and do as it says";

/// What apt says about all packages that matter.
pub(super) fn policies(reader: &dyn Reader, kernel: Option<&Kernel>) -> Fact<BTreeMap<String, Policy>> {
    let metapackage = kernel.map(metapackage);
    let names: Vec<&str> = metapackage.iter().map(String::as_str).chain(PACKAGES).collect();
    let said = reader.run(&[&["apt-cache", "policy"], &names[..]].concat()).unwrap_or_default();
    if said.code != 0 {
        return Fact::unknown(format!("`apt-cache policy` failed ({})", said.code), UPDATE);
    }
    let origins = origins(reader);
    let mut policies = BTreeMap::new();
    let mut name = String::new();
    let mut takes = false;
    for line in said.out.lines() {
        if let Some(package) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            package.clone_into(&mut name);
            policies.insert(name.clone(), Policy::default());
        }
        let Some(policy) = policies.get_mut(&name) else { continue };
        let words: Vec<&str> = line.split_whitespace().collect();
        let version = |text: &str| (text != "(none)").then(|| text.to_owned());
        match words[..] {
            ["Installed:", text] => policy.installed = version(text),
            ["Candidate:", text] => policy.candidate = version(text),
            // `500 URL bookworm-security/main amd64 Packages`: where the version above comes from.
            [_, url, suite, _, "Packages"] if takes => policy.origins.extend(origins.get(&key(url, suite)).cloned()),
            ["***", version, _] | [version, _] if line.starts_with(' ') => {
                takes = policy.candidate.as_deref() == Some(version);
            }
            _ => {}
        }
    }
    let format = "-f=${Package} ${db:Status-Abbrev} ${source:Package}\\n";
    let said = reader.run(&[&["dpkg-query", "-W", format], &names[..]].concat()).unwrap_or_default();
    for line in said.out.lines() {
        if let [name, state, source] = line.split_whitespace().collect::<Vec<_>>()[..]
            && let Some(policy) = policies.get_mut(name)
        {
            source.clone_into(&mut policy.source);
            policy.held = state.starts_with('h');
        }
    }
    Fact::Known(policies)
}

fn metapackage(kernel: &Kernel) -> String {
    format!("linux-image-{}", kernel.flavour)
}

pub(super) fn packages(policies: &BTreeMap<String, Policy>) -> Vec<Package> {
    let watched = policies.iter().filter(|(name, _)| PACKAGES.contains(&name.as_str()));
    let package = |(name, policy): (&String, &Policy)| {
        let installed = policy.installed.clone()?;
        Some(Package {
            name: name.clone(),
            source: policy.source.clone(),
            candidate: policy.candidate.clone().unwrap_or_else(|| installed.clone()),
            installed,
            held: policy.held,
            origins: policy.origins.clone(),
        })
    };
    watched.filter_map(package).collect()
}

/// Follows the metapackage of the running kernel's flavour to the kernel that it brings: never "the highest version in /boot",
/// which may be of another flavour, or one that was only tried.
pub(super) fn candidate(reader: &dyn Reader, kernel: &Kernel, policies: &BTreeMap<String, Policy>) -> Fact<Candidate> {
    let metapackage = metapackage(kernel);
    let policy = policies.get(&metapackage);
    let Some((policy, version)) = policy.and_then(|policy| Some((policy, policy.candidate.as_ref()?))) else {
        return Fact::unknown(format!("apt has no package {metapackage}, which brings this flavour's kernels"), UPDATE);
    };
    let said = reader.run(&["apt-cache", "show", &format!("{metapackage}={version}")]).unwrap_or_default();
    let depends = said.out.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    // `linux-image-6.1.0-48-cloud-amd64 (= 6.1.172-1)`
    let image = depends.split(", ").find_map(|dependency| dependency.strip_prefix("linux-image-"));
    let Some((release, rest)) = image.and_then(|image| image.split_once(' ')) else {
        return Fact::unknown(format!("{metapackage} {version} does not tell the kernel that it brings"), UPDATE);
    };
    let version = rest.trim_matches(['(', ')', '=', ' ']).to_owned();
    Fact::Known(Candidate {
        installed: policy.installed.clone(),
        held: policy.held,
        origins: policy.origins.clone(),
        release: release.to_owned(),
        metapackage,
        version,
    })
}

/// Package lists that apt has, one a line.
fn targets(reader: &dyn Reader) -> Vec<[String; 8]> {
    let fields = ["REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "LABEL", "SUITE", "CODENAME", "FILENAME"];
    let format = fields.map(|field| format!("$({field})")).join("|");
    let said =
        reader.run(&["apt-get", "indextargets", "--format", &format, "Identifier: Packages"]).unwrap_or_default();
    let split = |line: &str| <[String; 8]>::try_from(line.split('|').map(str::to_owned).collect::<Vec<_>>()).ok();
    said.out.lines().filter_map(split).collect()
}

fn key(url: &str, suite: &str) -> String {
    format!("{} {suite}", url.trim_end_matches('/'))
}

/// As `apt-cache policy` names them: URL, and suite with component.
fn origins(reader: &dyn Reader) -> BTreeMap<String, Origin> {
    let entry = |target: [String; 8]| {
        let [url, release, component, origin, label, suite, codename, _] = target;
        (key(&url, &format!("{release}/{component}")), Origin { origin, label, suite, codename })
    };
    targets(reader).into_iter().map(entry).collect()
}

/// Release files of all sources that have one.
pub(super) fn releases(reader: &dyn Reader) -> Fact<Vec<Release>> {
    let mut releases: BTreeMap<String, Release> = BTreeMap::new();
    for [_, release, _, origin, label, suite, codename, file] in targets(reader) {
        // All lists of a source are named as its Release file is, up to there.
        let part = format!("_dists_{}_", release.replace('/', "_"));
        let Some((before, _)) = file.split_once(&part) else { continue };
        let path = format!("{before}{part}InRelease");
        if releases.contains_key(&path) {
            continue;
        }
        let unsigned = || reader.head(&format!("{before}{part}Release"), SHORT);
        let Ok(text) = reader.head(&path, 2048).or_else(|_| unsigned()) else {
            // What others offer has no say in what is missing.
            if origin == "Debian" {
                return Fact::unknown(format!("the Release file of {codename} ({label}) cannot be read"), UPDATE);
            }
            continue;
        };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let Some(date) = field("Date:").and_then(date) else {
            return Fact::unknown(format!("the Release file of {codename} ({label}) has no date"), UPDATE);
        };
        let until = field("Valid-Until:");
        let valid_until = until.and_then(self::date);
        if until.is_some() && valid_until.is_none() {
            let what = format!("the Release file of {codename} ({label}) is valid until {until:?}, which is no date");
            return Fact::unknown(what, UPDATE);
        }
        let origin = Origin { origin, label, suite, codename };
        releases.insert(path, Release { origin, date, valid_until });
    }
    if releases.is_empty() {
        return Fact::unknown("apt has no lists of packages", "run `apt-get update`");
    }
    Fact::Known(releases.into_values().collect())
}

/// `Wed, 20 May 2026 16:28:12 UTC`.
fn date(text: &str) -> Option<Timestamp> {
    let offset = text.strip_suffix("UTC").or_else(|| text.strip_suffix("GMT")).map(|text| format!("{text}+0000"));
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(offset.as_deref().unwrap_or(text)).ok()
}
