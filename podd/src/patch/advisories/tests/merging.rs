//! Several feeds, one answer; configuration; staleness.

use jiff::SignedDuration;

use super::*;

fn all(lab: &Lab) -> Config {
    let place = |name: &str, content: &[u8]| Some(lab.file(name, content).to_str().unwrap().to_owned());
    Config {
        tracker: place("tracker.json", TRACKER.as_bytes()),
        debsecan: place("bookworm", &zlib(DEBSECAN)),
        osv: place("osv.json", OSV_CVE.replace("3.0.11-1~deb12u2", "3.0.99-1").as_bytes()),
        kev: place("kev.json", KEV.as_bytes()),
        ..Config::default()
    }
}

#[test]
fn the_most_trusted_says_what_fixes_it() {
    let lab = Lab::new();
    let mut config = all(&lab);
    let states = refresh(&config, &lab.cache(), "bookworm", at(NOW));
    assert!(states.iter().all(|s| s.problem.is_none() && !s.is_stale(at(NOW), config.max_age)), "{states:?}");
    let get =
        |config: &Config| lab.read(config, &["openssl"]).list.into_iter().find(|a| a.id == "CVE-2024-0001").unwrap();
    let merged = get(&config);
    assert_eq!(merged.feeds, Feed::ALL);
    assert_eq!(merged.fixed, Fix::Version("3.0.11-1~deb12u2".into()));
    assert_eq!((merged.urgency, merged.remote, merged.exploited), (Urgency::High, Some(true), true));
    config.tracker = None;
    assert!(matches!(get(&config).fixed, Fix::Listed { .. }));
    config.debsecan = None;
    let osv = get(&config);
    assert_eq!((osv.fixed, osv.feeds), (Fix::Version("3.0.99-1".into()), vec![Feed::Osv, Feed::Kev]));
}

#[test]
fn who_is_not_affected_is_not_listed() {
    let lab = Lab::new();
    let mut config = all(&lab);
    // debsecan lists for openssl what the tracker knows as not affecting bookworm.
    config.debsecan = lab.file("bookworm", zlib(DEBSECAN.replace("0006", "0003"))).to_str().map(str::to_owned);
    let _ = refresh(&config, &lab.cache(), "bookworm", at(NOW));
    assert!(lab.read(&config, &["openssl"]).list.iter().all(|a| a.id != "CVE-2024-0003"));
    config.tracker = None;
    let listed = lab.read(&config, &["openssl"]).list.into_iter().find(|a| a.id == "CVE-2024-0003").unwrap();
    assert_eq!(listed.urgency, Urgency::Unassigned);
}

#[test]
fn one_bad_feed_harms_no_other() {
    let lab = Lab::new();
    let config = all(&lab);
    lab.file("tracker.json", &TRACKER.as_bytes()[..100]);
    let states = refresh(&config, &lab.cache(), "bookworm", at(NOW));
    let problems: Vec<_> = states.iter().map(|s| (s.feed, s.problem.is_some())).collect();
    assert_eq!(problems, Feed::ALL.map(|feed| (feed, feed == Feed::Tracker)));
    let advisories = lab.read(&config, &["openssl", "bash"]);
    assert_eq!(advisories.feeds, states);
    assert!(advisories.feeds[0].is_stale(at(NOW), config.max_age));
    assert_eq!(advisories.list.len(), 5);
}

/// The shared rule: by its own time or by its confirmation, whichever is older.
#[test]
fn stale() {
    let state = |feed, fetched: Option<&str>, dated: Option<&str>| {
        let (fetched, dated) = (fetched.map(at), dated.map(at));
        FeedState { feed, from: "/x".into(), fetched, dated, entries: 1, problem: None }
    };
    let day = SignedDuration::from_hours(24);
    for (state, stale) in [
        (state(Feed::Osv, None, None), true),
        (state(Feed::Osv, None, Some(NOW)), true),
        (state(Feed::Osv, Some(NOW), None), false),
        (state(Feed::Osv, Some("2026-11-28T12:00:00Z"), Some("2026-11-28T12:00:00Z")), false),
        (state(Feed::Osv, Some("2026-11-28T11:59:59Z"), Some(NOW)), true),
        (state(Feed::Osv, Some(NOW), Some("2026-11-28T11:59:59Z")), true),
        (state(Feed::Kev, Some(NOW), Some("2026-11-15T12:00:00Z")), false),
        (state(Feed::Kev, Some(NOW), Some("2026-11-14T11:59:59Z")), true),
        (state(Feed::Osv, Some(NOW), Some("2026-11-30T11:00:00Z")), false),
        (state(Feed::Osv, Some(NOW), Some("2026-11-30T13:00:00Z")), true),
        (state(Feed::Osv, Some("2030-01-01T00:00:00Z"), None), true),
    ] {
        assert_eq!(state.is_stale(at(NOW), day), stale, "{state:?}");
    }
}

#[test]
fn configurations() {
    let parse = |text: &str| {
        let config: Config = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        config.check().map(|()| config).map_err(|e| e.to_string())
    };
    assert_eq!(parse(""), Ok(Config::default()));
    let full = parse(
        "tracker = \"https://mirror.example.org/json\"\nosv = \"/srv/{release}\"\nmax-age = \"3d 1h\"\nchecksum = true",
    );
    assert!(full.is_err(), "a day is no fixed time to jiff's SignedDuration: {full:?}");
    let full =
        parse("tracker = \"http://[::1]:80/json\"\nosv = \"/srv/{release}\"\nmax-age = \"72h\"\ntimeout = \"PT2M\"")
            .unwrap();
    assert_eq!((full.max_age, full.timeout), (SignedDuration::from_hours(72), SignedDuration::from_secs(120)));
    assert_eq!(toml::from_str::<Config>(&toml::to_string(&full).unwrap()).unwrap(), full);
    for (text, words) in [
        ("kve = \"/x\"", "unknown field `kve`"),
        (
            "kev = \"x.json\"",
            "kev = \"x.json\" is neither an https:// or http:// address nor an absolute path\n  cure: ",
        ),
        ("kev = \"ftp://x\"", "is neither"),
        ("osv = \"https://\"", "is neither"),
        ("osv = \"https:///x\"", "is neither"),
        ("osv = \"https://a b\"", "is neither"),
        ("osv = \"\"", "is neither"),
        ("osv = \"/a\\nb\"", "is neither"),
        ("osv = \"https://me:secret@mirror/\"", "the address of osv has a user name in it\n  cure: "),
        ("max-age = \"1s\"", "max-age = PT1S is not from PT1M to PT8760H\n  cure: "),
        ("max-age = \"-1h\"", "max-age = -PT1H is not from"),
        ("timeout = \"25h\"", "timeout = PT25H is not from"),
        ("connect-timeout = \"0s\"", "connect-timeout = PT0S is not from"),
    ] {
        let said = parse(text).unwrap_err();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn summaries() {
    use super::super::guard::summary;
    assert_eq!(summary("  a\n\tb\u{7}c  "), "a b c");
    assert_eq!(summary(""), "");
    assert_eq!(summary(&"\u{e4}".repeat(300)).chars().count(), 200);
    let words = summary(&"word ".repeat(100));
    assert!(words.chars().count() <= 200 && words.ends_with("word"), "{words}");
}
