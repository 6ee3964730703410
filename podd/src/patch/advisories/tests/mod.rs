//! The advisories' tests: real files, a real HTTP server, the real dpkg.
#![allow(clippy::unwrap_used, reason = "tests")]

mod feeds;
mod formats;
mod http;
mod merging;
mod server;
mod size;
mod versions;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use jiff::Timestamp;

use super::*;

const NOW: &str = "2026-11-29T12:00:00Z";

/// A folder for feeds, and one for the cache.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Writes a file of a feed, with a time shortly before now.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join("feeds").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        touch(&path, "2026-11-29T06:00:00Z");
        path
    }

    fn refresh(&self, config: &Config) -> FeedState {
        self.refresh_at(config, NOW)
    }

    fn refresh_at(&self, config: &Config, now: &str) -> FeedState {
        config.check().unwrap();
        let mut states = refresh(config, &self.cache(), "bookworm", at(now));
        assert_eq!(states.len(), 1);
        states.remove(0)
    }

    fn read(&self, config: &Config, packages: &[&str]) -> Advisories {
        let packages: BTreeSet<String> = packages.iter().map(|p| (*p).to_owned()).collect();
        read(config, &self.cache(), "bookworm", &packages, at(NOW))
    }

    /// What is left of unfinished work.
    fn leftovers(&self) -> usize {
        let names = fs::read_dir(self.cache()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".list") && !name.ends_with(".json")).count()
    }
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn touch(path: &Path, time: &str) {
    fs::File::options().write(true).open(path).unwrap().set_modified(at(time).into()).unwrap();
}

/// A configuration with one feed.
fn only(feed: Feed, place: impl AsRef<Path>) -> Config {
    let place = Some(place.as_ref().to_str().unwrap().to_owned());
    match feed {
        Feed::Tracker => Config { tracker: place, ..Config::default() },
        Feed::Debsecan => Config { debsecan: place, ..Config::default() },
        Feed::Osv => Config { osv: place, ..Config::default() },
        Feed::Kev => Config { kev: place, ..Config::default() },
    }
}

fn zlib(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = ZlibEncoder::new(Vec::new(), Compression::best());
    out.write_all(text.as_ref()).unwrap();
    out.finish().unwrap()
}

/// As the tracker writes it: one line, keys without value dropped.
const TRACKER: &str = r#"{"openssl":{"CVE-2024-0001":{"description":"A flaw in\nopenssl","scope":"remote","releases":{
"bookworm":{"status":"resolved","repositories":{"bookworm":"3.0.15-1~deb12u1","bookworm-security":"3.0.11-1~deb12u2"},
"fixed_version":"3.0.11-1~deb12u2","urgency":"high"},"sid":{"status":"resolved","repositories":{"sid":"3.3.2-2"},
"fixed_version":"3.0.12-1","urgency":"high"}}},"CVE-2024-0002":{"scope":"local","releases":{"bookworm":{"status":"open",
"repositories":{"bookworm":"3.0.15-1~deb12u1"},"urgency":"not yet assigned","nodsa":"Minor issue"}}},"CVE-2024-0003":
{"debianbug":1012345,"releases":{"bookworm":{"status":"resolved","repositories":{"bookworm":"3.0.15-1~deb12u1"},
"fixed_version":"0","urgency":"unimportant"}}},"CVE-2024-0004":{"releases":{"sid":{"status":"open","repositories":
{"sid":"3.3.2-2"},"urgency":"medium**"}}}},"bash":{"TEMP-0841856-B18BAF":{"description":"x","releases":{"bookworm":
{"status":"undetermined","repositories":{"bookworm":"5.2.15-2"},"urgency":"medium**"}}},"CVE-2024-0005":{"releases":
{"bookworm":{"status":"resolved","repositories":{"bookworm":"5.2.15-2","bookworm-security":"5.2.15-2+deb12u1"},
"urgency":"end-of-life"}}}}}"#;

const DEBSECAN: &str = "VERSION 1
CVE-2024-0001,,A flaw, in openssl ...
CVE-2024-0006,,
TEMP-0841856-B18BAF,,x

openssl,0,SHRF,3.0.12-1,1.1.1n-0+deb11u6 3.0.11-1~deb12u2 3.0.15-1~deb12u1 3.1.0-1
openssl,1,S ? ,,
openssl,2,SM  ,,3.0.11-1~deb12u2
bash,1,SL F,5.2.15-3,
bash,2, M  ,5.2.15-3,
zlib,1,S ?F,0,1:1.2.13-1

openssl,libssl-dev libssl3 openssl
bash,
";

const KEV: &str = r#"{"title":"CISA Catalog of Known Exploited Vulnerabilities","catalogVersion":"2026.11.28",
"dateReleased":"2026-11-28T17:00:06.9016Z","count":2,"vulnerabilities":[
{"cveID":"CVE-2024-0001","vendorProject":"OpenSSL","product":"OpenSSL","vulnerabilityName":"x","dateAdded":"2024-02-29",
"shortDescription":"x","requiredAction":"Apply updates.","dueDate":"2024-03-21","knownRansomwareCampaignUse":"Unknown",
"notes":"","cwes":["CWE-787"]},
{"cveID":"CVE-2023-9999","vendorProject":"Microsoft","product":"Windows","vulnerabilityName":"x","dateAdded":"2023-05-15",
"shortDescription":"x","requiredAction":"x","knownRansomwareCampaignUse":"Known","notes":""}]}"#;

/// As in OSV's export for Debian, shortened.
const OSV_CVE: &str = r#"{"id":"DEBIAN-CVE-2024-0001","details":"A flaw in openssl","modified":"2026-11-20T10:00:00Z",
"published":"0001-01-01T00:00:00Z","upstream":["CVE-2024-0001"],"affected":[
{"package":{"name":"openssl","ecosystem":"Debian:11","purl":"pkg:deb/debian/openssl?arch=source"},"ranges":[{"type":"ECOSYSTEM",
"events":[{"introduced":"0"},{"fixed":"1.1.1n-0+deb11u6"}]}],"ecosystem_specific":{"urgency":"not yet assigned"}},
{"package":{"name":"openssl","ecosystem":"Debian:12","purl":"pkg:deb/debian/openssl?arch=source"},"ranges":[{"type":"ECOSYSTEM",
"events":[{"introduced":"0"},{"fixed":"3.0.11-1~deb12u2"}]}],"versions":["3.0.9-1","3.0.11-1~deb12u1"],
"ecosystem_specific":{"urgency":"high"}}],"schema_version":"1.7.0"}"#;

const OSV_DSA: &str = r#"{"id":"DSA-5678-1","summary":"glibc - security update","modified":"2026-05-01T00:00:00Z",
"upstream":["DEBIAN-CVE-2024-33599","CVE-2024-33599","DEBIAN-CVE-2024-33600","CVE-2024-33600"],"affected":[{"package":
{"ecosystem":"Debian:12","name":"glibc"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},
{"fixed":"2.36-9+deb12u7"}]}]}],"references":[{"type":"ADVISORY","url":"https://www.debian.org/security/2024/dsa-5678"}]}"#;
