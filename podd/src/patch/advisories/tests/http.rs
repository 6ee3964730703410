//! Mirrors, good and bad. After each bad one the last good data is there, and ages.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use jiff::SignedDuration;

use super::server::{Server, ok, status};
use super::*;

/// A mirror that gave good data once.
fn good() -> (Lab, Server, Config) {
    let (lab, server) = (Lab::new(), Server::with(KEV));
    let mut config = only(Feed::Kev, format!("{}/kev.json", server.url));
    config.timeout = SignedDuration::from_secs(20);
    let state = lab.refresh_at(&config, "2026-11-28T18:00:00Z");
    assert_eq!((state.problem, state.entries), (None, 2));
    (lab, server, config)
}

/// What the mirror does next is refused with these words, and all else stays.
fn then(words: &str, answer: impl Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send + 'static) {
    let (lab, server, config) = good();
    server.change(answer);
    refused(&lab, &config, words);
}

fn refused(lab: &Lab, config: &Config, words: &str) {
    let before = lab.read(config, &[]).feeds[0].clone();
    let state = lab.refresh(config);
    let problem = state.problem.clone().unwrap();
    assert!(problem.contains(words) && problem.contains("\n  cure: "), "{problem:?} does not say {words:?}");
    assert_eq!(FeedState { problem: None, ..state.clone() }, FeedState { problem: None, ..before });
    assert_eq!(lab.read(config, &[]).feeds, std::slice::from_ref(&state));
    assert_eq!(state.fetched, Some(at("2026-11-28T18:00:00Z")));
    assert!(!state.is_stale(at(NOW), config.max_age) && state.is_stale(at("2026-11-30T18:00:01Z"), config.max_age));
    assert_eq!(lab.leftovers(), 0);
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let (lab, server, config) = good();
    server.change(|_, headers, stream| {
        assert!(!headers.contains("if-none-match") && !headers.contains("if-modified-since"));
        ok(stream, "ETag: \"one\"\r\nLast-Modified: Fri, 27 Nov 2026 08:00:00 GMT\r\n", KEV.as_bytes())
    });
    assert_eq!(lab.refresh_at(&config, "2026-11-28T19:00:00Z").problem, None);
    server.change(|_, _, stream| status(stream, "304 Not Modified"));
    let state = lab.refresh(&config);
    assert_eq!((state.problem.as_deref(), state.fetched, state.entries), (None, Some(at(NOW)), 2));
    let asked = server.last_request();
    assert!(asked.contains("if-none-match: \"one\"\n"), "{asked}");
    assert!(asked.contains("if-modified-since: fri, 27 nov 2026 08:00:00 gmt\n"), "{asked}");
    assert!(
        asked.starts_with("/kev.json\n") && asked.contains("user-agent: podd\n") && asked.contains("gzip"),
        "{asked}"
    );

    // Another address, or a damaged cache: all of it again.
    let list = lab.cache().join("kev-bookworm.list");
    let mut bytes = fs::read(&list).unwrap();
    bytes[30] ^= 1;
    fs::write(&list, bytes).unwrap();
    let damaged = lab.read(&config, &[]);
    assert!(damaged.feeds[0].problem.as_ref().unwrap().contains("is damaged"));
    assert_eq!((damaged.feeds[0].fetched, damaged.feeds[0].is_stale(at(NOW), config.max_age)), (None, true));
    server.change(|_, headers, stream| {
        assert!(!headers.contains("if-none-match"));
        ok(stream, "", KEV.as_bytes())
    });
    assert_eq!(lab.refresh(&config).problem, None);
    assert_eq!(lab.read(&config, &[]).feeds[0].entries, 2);
}

#[test]
fn a_tracker_by_http_is_dated_by_the_mirror() {
    let (lab, server) = (
        Lab::new(),
        Server::new(|path, _, stream| {
            assert_eq!(path, "/bookworm/json");
            ok(stream, "Last-Modified: Sun, 29 Nov 2026 08:00:00 GMT\r\n", TRACKER.as_bytes())
        }),
    );
    let config = only(Feed::Tracker, format!("{}/{{release}}/json", server.url));
    let state = lab.refresh(&config);
    assert_eq!((state.problem, state.dated), (None, Some(at("2026-11-29T08:00:00Z"))));
    assert_eq!(lab.read(&config, &["bash"]).list.len(), 2);
    // A mirror that confirms old data for ever.
    server.change(|_, _, stream| status(stream, "304 Not Modified"));
    let late = at("2026-12-01T09:00:00Z");
    let state = lab.refresh_at(&config, "2026-12-01T09:00:00Z");
    assert_eq!((state.problem.as_deref(), state.fetched), (None, Some(late)));
    assert!(state.is_stale(late, config.max_age));
    assert_eq!(state.age(late), Some(SignedDuration::from_hours(49)));
}

#[test]
fn bad_statuses() {
    then("answers with HTTP status 404", |_, _, stream| status(stream, "404 Not Found"));
    then("answers with HTTP status 503", |_, _, stream| status(stream, "503 Service Unavailable"));
    then("answers with HTTP status 304", |_, _, stream| status(stream, "304 Not Modified")); // We had no validator.
    then("cannot fetch", |_, _, stream| stream.write_all(b"220 smtp.example.org ESMTP\r\n"));
    then("cannot fetch", |path, _, stream| {
        write!(stream, "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {path}x\r\nContent-Length: 0\r\n\r\n")
    });
}

#[test]
fn no_mirror_at_all() {
    let (lab, server, config) = good();
    drop(server);
    refused(&lab, &config, "cannot fetch http://127.0.0.1:");
    // A server without TLS is none for https; this also shows that certificates of the host can be loaded.
    let (lab, server) = (Lab::new(), Server::with(KEV));
    let config = only(Feed::Kev, server.url.replace("http:", "https:"));
    let state = lab.refresh(&config);
    assert!(state.problem.unwrap().contains("cannot fetch https://127.0.0.1:"));
    assert_eq!((state.fetched, state.entries), (None, 0));
}

#[test]
fn a_trickle_ends_at_the_timeout() {
    let (lab, server, mut config) = good();
    config.timeout = SignedDuration::from_millis(1500);
    server.change(|_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n{{")?;
        loop {
            stream.write_all(b" ")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let start = Instant::now();
    refused(&lab, &config, "was not there after 1 s");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn more_than_a_feed_has() {
    then("is larger than 33554432 bytes", |_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10737418240\r\n\r\n")
    });
    // Neither a length nor an end.
    then("is larger than 33554432 bytes", |_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        loop {
            stream.write_all(&[b' '; 64 << 10])?;
        }
    });
    // Small on the way only.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    (0..34).for_each(|_| gzip.write_all(&[b' '; 1 << 20]).unwrap());
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    then("is larger than 33554432 bytes", move |_, _, stream| ok(stream, "Content-Encoding: gzip\r\n", &bomb));
}

#[test]
fn half_a_body() {
    then("ends in the middle", |_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", KEV.len())?;
        stream.write_all(&KEV.as_bytes()[..KEV.len() / 2])
    });
    // The mirror has but half a file: nothing but the JSON tells.
    then("ends in the middle", |_, _, stream| ok(stream, "", &KEV.as_bytes()[..KEV.len() / 2]));
    then("is not in the format of the feed", |_, _, stream| ok(stream, "", b"<html>Welcome to our hotel</html>"));
    then("ends in the middle", |_, _, stream| ok(stream, "", b""));
    then("Last-Modified of http", |_, _, stream| {
        ok(stream, "Last-Modified: Fri, 31 Dec 9998 08:00:00 GMT\r\n", KEV.as_bytes())
    });
}

#[test]
fn checksums() {
    let (lab, server, mut config) = good();
    config.checksum = true;
    let sum = |text: &str| format!("{:x}  kev.json\n", <sha2::Sha256 as sha2::Digest>::digest(text));
    let (right, wrong) = (sum(KEV), sum("something else"));
    let with = |beside: String| {
        move |path: &str, _: &str, stream: &mut TcpStream| match path {
            "/kev.json" => ok(stream, "", KEV.as_bytes()),
            "/kev.json.sha256" if !beside.is_empty() => ok(stream, "", beside.as_bytes()),
            _ => status(stream, "404 Not Found"),
        }
    };
    server.change(with(wrong));
    refused(&lab, &config, "its checksum says");
    server.change(with("<html>".into()));
    refused(&lab, &config, "/kev.json.sha256 does not begin with a SHA-256");
    server.change(with(String::new()));
    refused(&lab, &config, "/kev.json.sha256 answers with HTTP status 404");
    server.change(with(right));
    let state = lab.refresh(&config);
    assert_eq!((state.problem, state.fetched), (None, Some(at(NOW))));
}
