//! Stock Debian cloud kernels, by series. Mirrors drop old packages, so nothing is pinned to a version: the newest that
//! can be had is taken, and one that has vanished is replaced by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::{Failure, tools, version};

/// Suites that may have kernels. One that a mirror lacks is left out.
const SUITES: [&str; 9] = [
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "forky",
    "sid",
    "experimental",
];
/// How long what the mirrors were seen to offer is believed.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// Space that apt's lists take, MiB.
const LISTS_MIB: u64 = 512;
/// Versions of one series that are tried before giving up.
const ATTEMPTS: usize = 4;

/// What the mirrors offer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Catalog {
    /// Kernels, newest first.
    pub kernels: Vec<Package>,
    /// `linux-base`, newest first: kernels need one at least as new as themselves.
    pub base: Vec<Package>,
    /// Suites that could not be read, and why.
    pub absent: BTreeMap<String, String>,
}

/// A package in a suite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Debian suite.
    pub suite: String,
    /// Name, such as `linux-image-6.1.0-50-cloud-amd64`.
    pub name: String,
    /// Version.
    pub version: String,
    /// Packages of the same kernel that it needs: from 7.x on image and modules are apart.
    pub parts: Vec<String>,
    /// Those of them that the suite has no longer. Backports drop them before the signed image.
    pub missing: Vec<String>,
}

/// A kernel whose packages are on this host.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Series, such as `6.1`.
    pub series: String,
    /// What it came from.
    pub package: Package,
    /// Its packages' files.
    pub files: Vec<PathBuf>,
}

impl Catalog {
    /// The newest kernel of each series that can be had, oldest series first.
    #[must_use]
    pub fn newest(&self) -> Vec<(String, &Package)> {
        newest(self.kernels.iter().filter(|package| package.missing.is_empty()))
    }

    /// The newest kernel of each series of which nothing is whole any more.
    #[must_use]
    pub fn incomplete(&self) -> Vec<(String, &Package)> {
        let whole = self.newest();
        let mut all = newest(self.kernels.iter());
        all.retain(|(series, _)| whole.iter().all(|(other, _)| other != series));
        all
    }

    /// Kernels of a series, newest first. `7.x` is the newest series of 7 that is no release candidate.
    fn of(&self, asked: &str) -> Vec<&Package> {
        let series = match asked.strip_suffix(".x") {
            None => asked.to_owned(),
            Some(major) => {
                let released = self.newest().into_iter().filter(|(_, package)| !package.version.contains("~rc"));
                let of_major = released.filter(|(series, _)| series.split('.').next() == Some(major));
                of_major.max_by(|a, b| version::compare(&a.0, &b.0)).map(|(series, _)| series).unwrap_or_default()
            }
        };
        let whole = self.kernels.iter().filter(|package| package.missing.is_empty());
        whole.filter(|package| version::series(&package.version).as_ref() == Some(&series)).collect()
    }
}

/// Of kernels that come newest first.
fn newest<'a>(kernels: impl Iterator<Item = &'a Package>) -> Vec<(String, &'a Package)> {
    let mut found: Vec<(String, &Package)> = Vec::new();
    for package in kernels {
        let Some(series) = version::series(&package.version) else { continue };
        if found.iter().all(|(known, _)| *known != series) {
            found.push((series, package));
        }
    }
    found.sort_by(|a, b| version::compare(&a.0, &b.0));
    found
}

/// What the mirrors offer; looked up once a day.
///
/// # Errors
/// The cache cannot be written. Mirrors that do not answer are named in the catalog; if none does, the last catalog holds.
pub fn catalog(cache: &Cache) -> Result<Catalog, Failure> {
    catalog_of(cache, FRESH)
}

/// What they were seen to offer so long ago at most.
fn catalog_of(cache: &Cache, fresh: Duration) -> Result<Catalog, Failure> {
    let _lock = cache.lock("catalog")?;
    let path = cache.path("kernels.json");
    let known: Option<Catalog> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let age = fs::metadata(&path).ok().and_then(|m| m.modified().ok()).and_then(|at| at.elapsed().ok());
    if let (Some(catalog), Some(age)) = (&known, age)
        && age < fresh
    {
        return Ok(catalog.clone());
    }
    // apt says of a full disk that the mirror does not answer.
    tools::need_space(&cache.path(""), LISTS_MIB, "XDG_CACHE_HOME")?;
    let seen = look();
    if seen.kernels.is_empty() {
        return Ok(known.unwrap_or(seen));
    }
    cache.write(&path, &serde_json::to_vec_pretty(&seen).expect("a catalog is JSON"))?;
    Ok(seen)
}

fn look() -> Catalog {
    let mut catalog = Catalog::default();
    for suite in SUITES {
        // The first two are this host's own, or older: without them it is off the network, and each try takes long.
        if catalog.absent.len() == 2 && catalog.kernels.is_empty() {
            break;
        }
        // One apt for each suite: their lists lie apart, so that nothing of them is ever installed on this host.
        let script = "apt-cache pkgnames linux- | sed 's/^/Known: /'; echo
            apt-cache search --names-only '^linux-image-[0-9].*-cloud-amd64$' | cut -d' ' -f1 |
            xargs -r apt-cache show linux-base";
        match tools::run(apt(suite).args(["sh", "-c", script])) {
            Err(failure) => {
                let why = failure.to_string();
                catalog.absent.insert(suite.to_owned(), tools::tail(&why, 1));
            }
            Ok(text) => {
                for package in stanzas(suite, &text) {
                    let list = if package.name == "linux-base" { &mut catalog.base } else { &mut catalog.kernels };
                    if !list.iter().any(|known| known.name == package.name && known.version == package.version) {
                        list.push(package);
                    }
                }
            }
        }
    }
    catalog.kernels.sort_by(|a, b| version::compare(&b.version, &a.version));
    catalog.base.sort_by(|a, b| version::compare(&b.version, &a.version));
    catalog
}

fn apt(suite: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("300").arg(crate::lab::root().join("scripts/apt-suite")).arg(suite);
    command
}

fn field(stanza: &str, name: &str) -> Option<String> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
}

/// The names of the packages in a list of dependencies.
fn names(depends: &str) -> impl Iterator<Item = &str> {
    depends.split(',').filter_map(|d| d.split_whitespace().next())
}

/// Reads `apt-cache show`. Meta-packages, which only need another image, are left out.
fn stanzas(suite: &str, text: &str) -> Vec<Package> {
    let known: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("Known: ")).collect();
    let mut packages = Vec::new();
    for stanza in text.split("\n\n") {
        let (Some(name), Some(version)) = (field(stanza, "Package"), field(stanza, "Version")) else { continue };
        let depends = field(stanza, "Depends").unwrap_or_default();
        let parts: Vec<String> = names(&depends)
            .filter(|d| d.starts_with("linux-") && d.contains("-cloud-amd64") && *d != name)
            .map(str::to_owned)
            .collect();
        if !parts.iter().any(|part| part.starts_with("linux-image-")) {
            let missing = parts.iter().filter(|part| !known.contains(part.as_str())).cloned().collect();
            packages.push(Package { suite: suite.to_owned(), name, version, parts, missing });
        }
    }
    packages
}

/// Has the newest kernel of a series on this host, `6.1` or `7.x`.
///
/// # Errors
/// No mirror offers the series and none of it is cached; or nothing of it can be fetched.
pub fn fetch(cache: &Cache, asked: &str) -> Result<Kernel, Failure> {
    match fetch_from(cache, asked, &catalog(cache)?) {
        // Mirrors drop packages: nothing of what they had may be left.
        Err(Failure::Missing { .. }) => fetch_from(cache, asked, &catalog_of(cache, Duration::from_secs(60))?),
        fetched => fetched,
    }
}

fn fetch_from(cache: &Cache, asked: &str, catalog: &Catalog) -> Result<Kernel, Failure> {
    let candidates = catalog.of(asked);
    let mut last = None;
    for package in candidates.iter().take(ATTEMPTS) {
        match download(cache, package) {
            Ok(files) => {
                let series = version::series(&package.version).unwrap_or_default();
                return Ok(Kernel { series, package: (*package).clone(), files });
            }
            Err(failure) => last = Some(failure),
        }
    }
    if let Some(failure) = last {
        return Err(Failure::Missing {
            what: format!("no kernel of series {asked} can be fetched ({failure})"),
            cure: "let this host reach its Debian mirror, or choose a series that is cached".to_owned(),
        });
    }
    if catalog.kernels.is_empty() {
        let why = catalog.absent.iter().next().map(|(suite, why)| format!("{suite}: {why}")).unwrap_or_default();
        return Err(Failure::Missing {
            what: format!("no mirror tells which kernels there are ({why})"),
            cure: "let this host reach its Debian mirror (apt-get update must work)".to_owned(),
        });
    }
    let offered = catalog.newest().into_iter().map(|(series, _)| series).collect();
    Err(Failure::UnknownKernel { asked: asked.to_owned(), offered })
}

/// Has three kernels of a Debian release's series on this host, newest first: the newest two, and one that was in the other one of
/// the release's suites before.
///
/// # Errors
/// There are not as many, or they cannot be fetched.
pub fn fetch_three(cache: &Cache, codename: &str, series: &str) -> Result<[Kernel; 3], Failure> {
    // Mirrors drop packages.
    fetch_three_of(cache, codename, series, &catalog(cache)?)
        .or_else(|_| fetch_three_of(cache, codename, series, &catalog_of(cache, Duration::from_secs(60))?))
}

fn fetch_three_of(cache: &Cache, codename: &str, series: &str, catalog: &Catalog) -> Result<[Kernel; 3], Failure> {
    let kernel = |package: &Package| {
        let files = download(cache, package)?;
        Ok(Kernel { series: series.to_owned(), package: package.clone(), files })
    };
    let suites = [codename.to_owned(), format!("{codename}-security")];
    let all: Vec<&Package> = catalog.of(series).into_iter().filter(|package| suites.contains(&package.suite)).collect();
    let [newest, next, earlier @ ..] = all.as_slice() else { return Err(too_few(series)) };
    let of_other = earlier.iter().find(|package| package.suite != newest.suite);
    let oldest = of_other.or(earlier.last()).ok_or_else(|| too_few(series))?;
    Ok([kernel(newest)?, kernel(next)?, kernel(oldest)?])
}

fn too_few(series: &str) -> Failure {
    Failure::Missing {
        what: format!("the mirrors do not have three kernels of series {series}"),
        cure: "let this host reach a Debian mirror that has both the release and its security updates".to_owned(),
    }
}

/// Has the package that follows the newest cloud kernel on this host, as it was when it brought this one.
///
/// # Errors
/// It cannot be fetched.
pub fn fetch_metapackage(cache: &Cache, kernel: &Kernel) -> Result<PathBuf, Failure> {
    let Package { suite, version, .. } = kernel.package.clone();
    let name = "linux-image-cloud-amd64".to_owned();
    let package = Package { suite, name, version, parts: Vec::new(), missing: Vec::new() };
    Ok(download(cache, &package)?.remove(0))
}

/// Has the packages with which modules for a kernel are built on this host.
///
/// # Errors
/// They cannot be fetched.
pub fn fetch_headers(cache: &Cache, kernel: &Kernel) -> Result<Vec<PathBuf>, Failure> {
    let Package { suite, name, version, .. } = kernel.package.clone();
    let name = name.replace("linux-image-", "linux-headers-");
    let shown = tools::run(apt(&suite).args(["apt-cache", "show", &format!("{name}={version}")]))?;
    let depends = field(&shown, "Depends").unwrap_or_default();
    let is_part = |name: &&str| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-");
    let parts = names(&depends).filter(is_part).map(str::to_owned).collect();
    download(cache, &Package { suite, name, version, parts, missing: Vec::new() })
}

/// Has the newest `linux-base` on this host.
///
/// # Errors
/// It cannot be fetched.
pub fn fetch_base(cache: &Cache) -> Result<PathBuf, Failure> {
    let catalog = catalog(cache)?;
    let mut last = None;
    for package in catalog.base.iter().take(ATTEMPTS) {
        match download(cache, package) {
            Ok(mut files) => return Ok(files.remove(0)),
            Err(failure) => last = Some(failure),
        }
    }
    Err(last.unwrap_or_else(|| Failure::Missing {
        what: "no mirror offers the package linux-base".to_owned(),
        cure: "let this host reach its Debian mirror (apt-get update must work)".to_owned(),
    }))
}

/// A folder for each package and version, which is there only when it is whole.
fn download(cache: &Cache, package: &Package) -> Result<Vec<PathBuf>, Failure> {
    let _lock = cache.lock("download")?;
    let done = cache.path("packages").join(format!("{}_{}", package.name, package.version));
    if !done.is_dir() {
        let scratch = cache.scratch()?;
        let names: Vec<String> = std::iter::once(&package.name)
            .chain(&package.parts)
            .map(|name| if *name == package.name { format!("{name}={}", package.version) } else { name.clone() })
            .collect();
        tools::run(apt(&package.suite).args(["apt-get", "download", "-qq"]).args(names).current_dir(scratch.path()))?;
        cache.keep(scratch, &done)?;
    }
    let entries = fs::read_dir(&done).map_err(Failure::io("read", &done))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Known: linux-base-7.2.12-cloud-amd64\nKnown: linux-modules-7.2.12-cloud-amd64\n\n\
Package: linux-image-7.1.13-cloud-amd64\nVersion: 7.1.13-1\nDepends: linux-modules-7.1.13-cloud-amd64\n\n\
Package: linux-image-7.2.12-cloud-amd64\nVersion: 7.2.12-1\nDepends: dracut | linux-initramfs-tool, \
linux-base-7.2.12-cloud-amd64 (= 7.2.12-1), linux-modules-7.2.12-cloud-amd64 (= 7.2.12-1)\n\n\
Package: linux-image-7.2-cloud-amd64\nVersion: 7.2.12-1\nDepends: linux-image-7.2.12-cloud-amd64 (= 7.2.12-1)\n\n\
Package: linux-image-6.1.0-50-cloud-amd64\nVersion: 6.1.176-1\nDepends: kmod, linux-base (>= 4.3~)\n\n\
Package: linux-image-7.3-cloud-amd64\nVersion: 7.3~rc7-1\n";

    #[test]
    fn parts_are_followed_and_meta_packages_left_out() {
        let packages = stanzas("sid", SHOWN).split_off(1);
        let names: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            ["linux-image-7.2.12-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64", "linux-image-7.3-cloud-amd64"]
        );
        assert_eq!(packages[0].parts, ["linux-base-7.2.12-cloud-amd64", "linux-modules-7.2.12-cloud-amd64"]);
        assert!(packages[1].parts.is_empty());
    }

    #[test]
    fn the_newest_of_a_major_is_no_release_candidate() {
        let catalog = Catalog { kernels: stanzas("sid", SHOWN), ..Catalog::default() };
        assert_eq!(catalog.of("7.x")[0].version, "7.2.12-1");
        assert_eq!(catalog.of("7.3")[0].version, "7.3~rc7-1");
        assert_eq!(catalog.incomplete()[0].1.missing, ["linux-modules-7.1.13-cloud-amd64"]);
        assert!(catalog.of("7.1").is_empty(), "its modules have gone");
        assert!(catalog.of("5.10").is_empty() && catalog.of("5.x").is_empty() && catalog.of("").is_empty());
    }
}
