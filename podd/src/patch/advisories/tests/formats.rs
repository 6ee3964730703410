//! Each format, as its publisher writes it, from a file through the cache.

use super::*;

fn find<'a>(advisories: &'a Advisories, id: &str, package: &str) -> &'a Advisory {
    advisories.list.iter().find(|a| a.id == id && a.package == package).unwrap()
}

fn taken(lab: &Lab, config: &Config, packages: &[&str], entries: u64) -> Advisories {
    let state = lab.refresh(config);
    assert_eq!((state.problem.as_deref(), state.entries), (None, entries));
    assert_eq!(state.fetched, Some(at(NOW)));
    assert!(!state.is_stale(at(NOW), config.max_age));
    let advisories = lab.read(config, packages);
    assert_eq!(advisories.feeds, [state]);
    assert_eq!(lab.leftovers(), 0);
    advisories
}

#[test]
fn the_tracker() {
    let lab = Lab::new();
    let config = only(Feed::Tracker, lab.file("tracker.json", TRACKER));
    let advisories = taken(&lab, &config, &["openssl", "bash", "zlib"], 5);
    let ids: Vec<_> = advisories.list.iter().map(|a| a.id.as_str()).collect();
    assert_eq!(ids, ["CVE-2024-0005", "TEMP-0841856-B18BAF", "CVE-2024-0001", "CVE-2024-0002"]);
    let first = find(&advisories, "CVE-2024-0001", "openssl");
    assert_eq!(first.fixed, Fix::Version("3.0.11-1~deb12u2".into()));
    assert_eq!((first.urgency, first.remote, first.exploited), (Urgency::High, Some(true), false));
    assert_eq!((first.summary.as_str(), &first.feeds[..]), ("A flaw in openssl", &[Feed::Tracker][..]));
    let open = find(&advisories, "CVE-2024-0002", "openssl");
    assert_eq!((&open.fixed, open.urgency, open.remote), (&Fix::NotYet, Urgency::Unassigned, Some(false)));
    let temporary = find(&advisories, "TEMP-0841856-B18BAF", "bash");
    assert_eq!((&temporary.fixed, temporary.urgency, temporary.remote), (&Fix::NotYet, Urgency::Medium, None));
    // Resolved, but the tracker does not say since when: then in what the release has.
    assert_eq!(find(&advisories, "CVE-2024-0005", "bash").fixed, Fix::Version("5.2.15-2+deb12u1".into()));
    // Only what was asked for.
    assert_eq!(lab.read(&config, &["bash"]).list.len(), 2);
    assert!(lab.read(&config, &["zlib"]).list.is_empty());
}

#[test]
fn a_folder_gives_its_newest_file_and_gzip_is_read() {
    let lab = Lab::new();
    let old = lab.file("t/b.json", "not even JSON");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(TRACKER.as_bytes()).unwrap();
    lab.file("t/a.json", gzip.finish().unwrap());
    touch(&old, "2026-11-28T00:00:00Z");
    lab.file("t/readme.txt", "");
    let config = only(Feed::Tracker, old.parent().unwrap());
    taken(&lab, &config, &[], 5);
    let empty = lab.file("e/readme.txt", "");
    let config = only(Feed::Tracker, empty.parent().unwrap());
    assert!(lab.refresh(&config).problem.unwrap().starts_with("there is no *.json in "));
}

#[test]
fn debsecan() {
    let lab = Lab::new();
    let dir = lab.file("debsecan/bookworm", zlib(DEBSECAN)).parent().unwrap().to_owned();
    for place in [dir.clone(), dir.join("{release}")] {
        let config = only(Feed::Debsecan, place);
        let advisories = taken(&lab, &config, &["openssl", "bash", "zlib"], 6);
        assert_eq!(advisories.list.len(), 5, "zlib is not affected");
        let first = find(&advisories, "CVE-2024-0001", "openssl");
        let sound = ["1.1.1n-0+deb11u6", "3.0.11-1~deb12u2"].map(str::to_owned).to_vec();
        assert_eq!(first.fixed, Fix::Listed { below: Some("3.0.12-1".into()), sound, released: true });
        assert_eq!((first.urgency, first.remote), (Urgency::High, Some(true)));
        assert_eq!(first.summary, "A flaw, in openssl ...");
        let second = find(&advisories, "CVE-2024-0006", "openssl");
        assert_eq!((&second.fixed, second.urgency, second.remote), (&Fix::NotYet, Urgency::Unassigned, None));
        assert_eq!(find(&advisories, "CVE-2024-0006", "bash").fixed, Fix::Version("5.2.15-3".into()));
        let third = find(&advisories, "TEMP-0841856-B18BAF", "bash");
        let unstable = Fix::Listed { below: Some("5.2.15-3".into()), sound: Vec::new(), released: false };
        assert_eq!((&third.fixed, third.urgency, third.remote), (&unstable, Urgency::Medium, Some(false)));
    }
}

/// The verdicts of debsecan's own code (`is_vulnerable`), worked out by hand for its four kinds of entries.
#[test]
fn debsecans_rule() {
    let sound = vec!["1.1.1n-0+deb11u6".to_owned(), "3.0.11-1~deb12u2".to_owned()];
    let fix = Fix::Listed { below: Some("3.0.12-1".into()), sound: sound.clone(), released: true };
    for (installed, affected, target) in [
        ("1.1.1k-1", true, Some("1.1.1n-0+deb11u6")),
        ("1.1.1n-0+deb11u6", false, Some("3.0.11-1~deb12u2")),
        ("3.0.9-1", true, Some("3.0.11-1~deb12u2")),
        ("3.0.11-1~deb12u1", true, Some("3.0.11-1~deb12u2")),
        ("0:3.0.11-1~deb12u2", false, Some("3.0.12-1")),
        ("3.0.12-1", false, None),
    ] {
        assert_eq!((fix.affects(installed), fix.target(installed)), (Ok(affected), Ok(target)), "{installed}");
    }
    let unreleased = Fix::Listed { below: None, sound, released: false };
    assert_eq!((unreleased.affects("3.0.11-1~deb12u2"), unreleased.affects("9")), (Ok(false), Ok(true)));
    assert_eq!(unreleased.target("3.0.9-1"), Ok(None));
    assert_eq!((Fix::NotYet.affects("1"), Fix::NotYet.target("1")), (Ok(true), Ok(None)));
    let version = Fix::Version("1:2-1".into());
    assert_eq!((version.affects("2-1"), version.affects("1:2-1")), (Ok(true), Ok(false)));
    assert_eq!(version.target("2-1"), Ok(Some("1:2-1")));
    for fix in [fix, unreleased, Fix::NotYet, version] {
        assert!(fix.affects("").is_err() && fix.affects("-1:1").is_err());
    }
}

#[test]
fn osv_files_and_zips() {
    let lab = Lab::new();
    let withdrawn = r#"{"id":"DSA-1-1","modified":"2026-05-01T00:00:00Z","withdrawn":"2026-05-02T00:00:00Z","affected":[
        {"package":{"ecosystem":"Debian:12","name":"glibc"},"ranges":[]}]}"#;
    let nameless = r#"{"id":"DLA-9-1","modified":"2026-05-01T00:00:00Z","aliases":["GHSA-aaaa"],"affected":[{"package":
        {"ecosystem":"Debian:12","name":"bash"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"1"},
        {"introduced":"2"}]}]},{"package":{"ecosystem":"npm","name":"@Not/A debian name"}}]}"#;
    let mut zip = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in [("DEBIAN-CVE-2024-0001.json", OSV_CVE), ("DSA-1-1.json", withdrawn), ("README", "no JSON")] {
        zip.start_file(name, ::zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    let path = lab.file("osv/all.zip", zip.finish().unwrap().into_inner());
    let config = only(Feed::Osv, &path);
    taken(&lab, &config, &["openssl"], 1);
    lab.file("osv/DSA-5678-1.json", OSV_DSA);
    lab.file("osv/DLA-9-1.json", nameless);
    let config = only(Feed::Osv, path.parent().unwrap());
    let advisories = taken(&lab, &config, &["openssl", "glibc", "bash"], 4);
    assert_eq!(advisories.list.len(), 4);
    let cve = find(&advisories, "CVE-2024-0001", "openssl");
    assert_eq!(cve.fixed, Fix::Version("3.0.11-1~deb12u2".into()));
    assert_eq!((cve.urgency, cve.remote, cve.summary.as_str()), (Urgency::High, None, "A flaw in openssl"));
    for id in ["CVE-2024-33599", "CVE-2024-33600"] {
        let dsa = find(&advisories, id, "glibc");
        assert_eq!(dsa.fixed, Fix::Version("2.36-9+deb12u7".into()));
        assert_eq!((dsa.urgency, dsa.summary.as_str()), (Urgency::Unassigned, "glibc - security update"));
    }
    // Introduced again after its fix.
    assert_eq!(find(&advisories, "DLA-9-1", "bash").fixed, Fix::NotYet);
}

#[test]
fn the_exploited_list() {
    let lab = Lab::new();
    let mut config = only(Feed::Kev, lab.file("kev.json", KEV));
    let state = lab.refresh(&config);
    assert_eq!((state.problem, state.entries), (None, 2));
    assert_eq!(state.dated, Some(at("2026-11-28T17:00:06.9016Z")), "its own date, not the file's");
    config.tracker = Some(lab.file("tracker.json", TRACKER).to_str().unwrap().into());
    assert_eq!(refresh(&config, &lab.cache(), "bookworm", at(NOW)).len(), 2);
    let advisories = lab.read(&config, &["openssl"]);
    let exploited: Vec<_> = advisories.list.iter().filter(|a| a.exploited).collect();
    assert_eq!(exploited.len(), 1);
    assert_eq!((exploited[0].id.as_str(), &exploited[0].feeds[..]), ("CVE-2024-0001", &[Feed::Tracker, Feed::Kev][..]));
}

/// Written to a pipe, a zip has the sizes behind the content; and with very many entries it has another end.
#[test]
fn other_zips() {
    let lab = Lab::new();
    let options = ::zip::write::SimpleFileOptions::default();
    let mut zip = ::zip::ZipWriter::new_stream(Vec::new());
    zip.add_directory("osv/", options).unwrap();
    zip.start_file("osv/DSA-5678-1.json", options).unwrap();
    zip.write_all(OSV_DSA.as_bytes()).unwrap();
    zip.set_comment("PK\u{5}\u{6} is how the end begins").unwrap();
    let path = lab.file("stream.zip", zip.finish().unwrap().into_inner());
    taken(&lab, &only(Feed::Osv, path), &["glibc"], 2);
    let mut zip = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = options.compression_method(::zip::CompressionMethod::Stored);
    (0..66_000).for_each(|n| zip.start_file(format!("{n}.txt"), stored).unwrap());
    zip.start_file("DSA-5678-1.json", stored).unwrap();
    zip.write_all(OSV_DSA.as_bytes()).unwrap();
    let path = lab.file("many.zip", zip.finish().unwrap().into_inner());
    taken(&lab, &only(Feed::Osv, path), &["glibc"], 2);
}
