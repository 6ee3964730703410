//! Files that are not what they should be: a sentence, and the last good data.

use super::*;

/// Good data first; then the file is overwritten with each of these, and refused with these words.
fn then(feed: Feed, good: impl AsRef<[u8]>, bad: &[(&[u8], &str)]) {
    let lab = Lab::new();
    let path = lab.file("feed", good);
    let config = only(feed, &path);
    let before = lab.refresh_at(&config, "2026-11-29T07:00:00Z");
    assert_eq!(before.problem, None);
    let list = lab.read(&config, &["openssl", "glibc"]).list;
    for (content, words) in bad {
        lab.file("feed", content);
        let state = lab.refresh(&config);
        let problem = state.problem.clone().unwrap_or_default();
        assert!(problem.contains(words) && problem.contains("\n  cure: "), "{problem:?} does not say {words:?}");
        assert!(problem.contains(path.to_str().unwrap()), "{problem:?} does not say where");
        assert_eq!(FeedState { problem: None, ..state }, before);
        assert_eq!(lab.read(&config, &["openssl", "glibc"]).list, list);
        assert_eq!(lab.leftovers(), 0);
    }
    fs::remove_file(&path).unwrap();
    assert!(lab.refresh(&config).problem.unwrap().starts_with("cannot read "));
    assert_eq!(lab.read(&config, &["openssl", "glibc"]).list, list);
}

fn in_tracker(entry: &str) -> Vec<u8> {
    TRACKER.replace(r#""CVE-2024-0002":"#, &format!(r#"{entry},"CVE-2024-0002":"#)).into_bytes()
}

#[test]
fn trackers() {
    let half = &TRACKER.as_bytes()[..TRACKER.len() / 2];
    let fixed = |version: &str| {
        in_tracker(&format!(
            r#""CVE-2025-1":{{"releases":{{"bookworm":{{"status":"resolved","repositories":{{}},"fixed_version":"{version}"}}}}}}"#
        ))
    };
    let wrong = |what: &str| format!("a wrong entry, CVE-2025-1 of package openssl: {what}");
    let long = in_tracker(&format!(r#""CVE-2025-1":{{"description":"{}","releases":{{}}}}"#, "x".repeat(2 << 20)));
    let many = in_tracker(&format!(r#""CVE-2025-1":{{"releases":{{}},"x":[{}0]}}"#, "0,".repeat(1 << 20)));
    let deep = in_tracker(&format!(r#""CVE-2025-1":{{"x":{}"#, "[".repeat(100)));
    let status = in_tracker(r#""CVE-2025-1":{"releases":{"bookworm":{"status":"fine","repositories":{}}}}"#);
    let nothing = in_tracker(r#""CVE-2025-1":{"releases":{"bookworm":{"status":"resolved"}}}"#);
    let long_id = in_tracker(&format!(r#""CVE-{}":{{"releases":{{}}}}"#, "1".repeat(61)));
    then(
        Feed::Tracker,
        TRACKER,
        &[
            (half, "ends in the middle"),
            (b"", "ends in the middle"),
            (b"[]", "is not in the format of the feed: invalid type: sequence, expected packages"),
            (&[TRACKER.as_bytes(), b"{}"].concat(), "trailing characters"),
            (b"{}", "has no entry for bookworm"),
            (TRACKER.replace("bookworm", "trixie").as_bytes(), "has no entry for bookworm"),
            (&fixed("-1:1"), &wrong("\"-1:1\" is not a Debian version: its epoch is not a number")),
            (&fixed(""), &wrong("\"\" is not a Debian version: it is empty")),
            (&fixed(&"1".repeat(200)), &wrong("\"111")),
            (&status, &wrong("its status is \"fine\"")),
            (&nothing, &wrong("it is resolved, but no version is named")),
            (&long_id, "of package openssl: this is not the name of an advisory"),
            (TRACKER.replace(r#""bash""#, r#""Ba sh""#).as_bytes(), "this is not the name of a source package"),
            (TRACKER.replace(r#""releases""#, r#""release""#).as_bytes(), "missing field `releases`"),
            (&long, "one entry of "),
            (&many, "is larger than 1048576 bytes"),
            (&deep, "nest deeper than 32 levels"),
        ],
    );
}

#[test]
fn debsecans() {
    let data = |from: &str, to: &str| zlib(DEBSECAN.replace(from, to));
    let whole = zlib(DEBSECAN);
    let line = format!("zlib,1,S ?F,1,{}", "1 ".repeat(200 << 10));
    then(
        Feed::Debsecan,
        &whole,
        &[
            (&whole[..whole.len() / 2], "ends in the middle"),
            (&whole[..whole.len() - 2], "ends in the middle"),
            (DEBSECAN.as_bytes(), "is not in the format of the feed"),
            (&data("VERSION 1", "VERSION 2"), "its first line is not \"VERSION 1\" (line 1)"),
            (&data("CVE-2024-0006,,", "CVE-2024-0006"), "this names no issue (line 3)"),
            (&data("bash,1,SL F", "bash,9,SL F"), "a record's issue is not in the list (line 9)"),
            (&data("bash,1,SL F,5.2.15-3,", "bash,1,SL F,5.2.15-3"), "a record has five fields (line 9)"),
            (&data("SHRF", "SXRF"), "CVE-2024-0001 of package openssl: its flags are \"SXRF\""),
            (&data("SHRF", "SH"), "its flags are \"SH\""),
            (&data("5.2.15-3", "-1:5"), "CVE-2024-0006 of package bash: \"-1:5\" is not a Debian version"),
            (&data("3.1.0-1", "3.1.0-"), "\"3.1.0-\" is not a Debian version: its revision is empty"),
            (&data("zlib,1,S ?F,0,1:1.2.13-1", &line), "is larger than 262144 bytes"),
            (&zlib("VERSION 1\n\n\n\n"), "has no entry for bookworm"),
        ],
    );
    // A text that unpacks to far more than the file is: 66 MiB of lines in the part that nobody needs.
    let lab = Lab::new();
    let (mut bomb, mut chunk) = (flate2::Compress::new(Compression::fast(), true), Vec::with_capacity(1 << 20));
    let flush = flate2::FlushCompress::Full;
    bomb.compress_vec(b"VERSION 1\nCVE-1,,\n\nzlib,0,S ?F,1,\n\n", &mut chunk, flush).unwrap();
    let head = chunk.len();
    bomb.compress_vec(("x".repeat(1023) + "\n").repeat(1 << 10).as_bytes(), &mut chunk, flush).unwrap();
    let bomb = [&chunk[..head], &chunk[head..].repeat(66)].concat();
    assert!(bomb.len() < 1 << 20);
    let state = lab.refresh(&only(Feed::Debsecan, lab.file("bomb", bomb)));
    assert!(state.problem.unwrap().contains("bomb is larger than 67108864 bytes"));
}

#[test]
fn osvs() {
    let osv = |from: &str, to: &str| OSV_DSA.replace(from, to).into_bytes();
    let large = osv("glibc - security update", &"x".repeat(3 << 20));
    then(
        Feed::Osv,
        OSV_DSA,
        &[
            (&OSV_DSA.as_bytes()[..300], "ends in the middle"),
            (b"PK\x03\x04 but no zip", "ends in the middle"),
            (&osv("2026-05-01", "9999-05-01"), "the date `modified` of "),
            (&osv("2026-05-01T", "2026-02-31T"), "\"2026-02-31T00:00:00Z\", not a date from 1990 to 2200"),
            (&osv("\"modified\"", "\"withdrawn\""), "has no entry for bookworm"),
            (&osv("Debian:12", "Debian:11"), "has no entry for bookworm"),
            (&osv("2.36-9+deb12u7", "-1:2.36"), "DSA-5678-1 of package glibc: \"-1:2.36\" is not a Debian version"),
            (&osv("DSA-5678-1", "DSA 5678"), "this is not the name of an advisory"),
            (&large, "is larger than 2097152 bytes"),
        ],
    );
    // A zip of which the end, with the directory, is missing; and one with a damaged advisory.
    let lab = Lab::new();
    let mut zip = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = ::zip::write::SimpleFileOptions::default().compression_method(::zip::CompressionMethod::Stored);
    zip.start_file("a.json", stored).unwrap();
    zip.write_all(OSV_DSA.as_bytes()).unwrap();
    let zip = zip.finish().unwrap().into_inner();
    // Just inside a word, so that it is still JSON.
    let inside = zip.windows(8).position(|bytes| bytes == b"security").unwrap();
    let place = lab.file("all.zip", &zip);
    assert_eq!(lab.refresh(&only(Feed::Osv, &place)).problem, None);
    lab.file("all.zip", &zip[..zip.len() - 30]);
    assert!(lab.refresh(&only(Feed::Osv, &place)).problem.unwrap().contains("all.zip ends in the middle"));
    let mut flipped = zip.clone();
    flipped[inside] ^= 1;
    lab.file("all.zip", flipped);
    let state = lab.refresh(&only(Feed::Osv, &place));
    let problem = state.problem.unwrap();
    assert!(problem.contains("a.json is not in the format of the feed: one of its entries is damaged"), "{problem}");
    assert_eq!((state.entries, lab.read(&only(Feed::Osv, &place), &["glibc"]).list.len()), (2, 2));
    let states = refresh(&only(Feed::Osv, &place), &lab.cache(), "sid", at(NOW));
    assert!(states[0].problem.as_ref().unwrap().contains("OSV has no name for the release \"sid\""));
}

#[test]
fn exploited_lists() {
    let kev = |from: &str, to: &str| KEV.replace(from, to).into_bytes();
    then(
        Feed::Kev,
        KEV,
        &[
            (&KEV.as_bytes()[..500], "ends in the middle"),
            (&kev("2026-11-28T", "9999-11-28T"), "dateReleased of "),
            (&kev("2026-11-28T17:00:06.9016Z", "yesterday"), "is \"yesterday\", not a date from 1990 to 2200"),
            (
                &kev("2024-02-29", "9999-02-28"),
                "CVE-2024-0001 of package ?: \"9999-02-28\" is not a date from 1990 to 2200",
            ),
            (&kev("2024-02-29", "2023-02-29"), "\"2023-02-29\" is not a date"),
            (&kev("2024-03-21", "1969-12-31"), "\"1969-12-31\" is not a date"),
            (&kev("\"count\":2", "\"count\":3"), "it has 2 entries, but says that it has 3"),
            (&kev("CVE-2023-9999", "CVE-2023 9999"), "this is not the name of a CVE"),
            (&kev("dateReleased", "date"), "missing field `dateReleased`"),
            (
                br#"{"count":0,"dateReleased":"2026-11-28T17:00:06Z","vulnerabilities":[]}"#,
                "has no entry for any vulnerability",
            ),
        ],
    );
}

#[test]
fn no_files() {
    let lab = Lab::new();
    // 10 GB on paper: refused before it is read.
    let path = lab.file("huge.json", TRACKER);
    fs::File::options().write(true).open(&path).unwrap().set_len(10 << 30).unwrap();
    touch(&path, NOW);
    let problem = lab.refresh(&only(Feed::Tracker, &path)).problem.unwrap();
    assert!(problem.contains("huge.json is larger than 536870912 bytes"), "{problem}");
    let problem = lab.refresh(&only(Feed::Tracker, "/dev/zero")).problem.unwrap();
    assert!(problem.starts_with("/dev/zero is not a regular file"), "{problem}");
    let path = lab.file("future.json", TRACKER);
    touch(&path, "9999-01-01T00:00:00Z");
    let problem = lab.refresh(&only(Feed::Tracker, &path)).problem.unwrap();
    assert!(problem.contains("the time of ") && problem.contains("not a date from 1990 to 2200"), "{problem}");
    for release in ["", "../etc", "Bookworm", "book worm"] {
        let config = only(Feed::Tracker, lab.file("tracker.json", TRACKER));
        let state = &refresh(&config, &lab.cache(), release, at(NOW))[0];
        assert!(state.problem.as_ref().unwrap().contains("is not the codename of a Debian release"));
        assert_eq!(read(&config, &lab.cache(), release, &BTreeSet::new(), at(NOW)).feeds, std::slice::from_ref(state));
    }
    // No cache, no data: still an answer.
    let config = only(Feed::Tracker, lab.file("tracker.json", TRACKER));
    let state = &refresh(&config, Path::new("/proc/none"), "bookworm", at(NOW))[0];
    assert!(state.problem.as_ref().unwrap().contains("cannot make /proc/none") && state.fetched.is_none());
    let state = &read(&config, Path::new("/proc/none"), "bookworm", &BTreeSet::new(), at(NOW)).feeds[0];
    assert!(state.is_stale(at(NOW), config.max_age) && state.age(at(NOW)).is_none());
}

#[test]
fn checksums_beside_files() {
    let lab = Lab::new();
    let mut config = only(Feed::Tracker, lab.file("tracker.json", TRACKER));
    config.checksum = true;
    assert!(lab.refresh(&config).problem.unwrap().contains("tracker.json.sha256: No such file"));
    lab.file("tracker.json.sha256", format!("{:x}  x\n", <sha2::Sha256 as sha2::Digest>::digest("x")));
    assert!(lab.refresh(&config).problem.unwrap().contains("its checksum says"));
    lab.file("tracker.json.sha256", format!("{:X}  x\n", <sha2::Sha256 as sha2::Digest>::digest(TRACKER)));
    assert_eq!(lab.refresh(&config).problem, None);
}

/// A crash between the extract and the state, or while either is written, leaves one that works.
#[test]
fn leftovers_and_damage() {
    let lab = Lab::new();
    let config = only(Feed::Tracker, lab.file("tracker.json", TRACKER));
    assert_eq!(lab.refresh(&config).problem, None);
    fs::write(lab.cache().join(".new-abc"), "half").unwrap();
    fs::write(lab.cache().join("tracker-bookworm.json"), "{").unwrap();
    assert!(lab.read(&config, &["bash"]).feeds[0].fetched.is_none());
    assert_eq!((lab.refresh(&config).problem, lab.leftovers()), (None, 0));
    let list = lab.cache().join("tracker-bookworm.list");
    let whole = fs::read_to_string(&list).unwrap();
    let shorter = whole.lines().take(3).collect::<Vec<_>>().join("\n");
    let other = whole.replace("5.2.15-2", "5.2.15-3");
    for damaged in ["", "podd advisories 2\n", &whole[..whole.len() - 1], &shorter, &other, &"x".repeat(3 << 20)] {
        fs::write(&list, damaged).unwrap();
        let advisories = lab.read(&config, &["bash"]);
        assert!(advisories.list.is_empty() && advisories.feeds[0].is_stale(at(NOW), config.max_age));
        assert!(advisories.feeds[0].problem.as_ref().unwrap().contains("is damaged"));
    }
    assert_eq!(lab.refresh(&config).problem, None);
    assert_eq!(lab.read(&config, &["bash"]).list.len(), 2);
}
