//! A web server goes from host to host and back in the middle of a long download and thousands of short requests.

use std::time::Duration;

use tests::Lab;
use tests::lab::eventually;
use tests::workload::{migrate, web};

const ADDRESS: &str = "10.77.2.5";
const SIZE: u64 = 200 << 20;
/// Bytes a second: the download would take 200 s, longer than both moves.
const RATE: u64 = 1 << 20;

#[test]
fn download_and_connections_outlast_two_moves() {
    let lab = Lab::up(2);
    web::nginx(&lab, "a", "web", ADDRESS);
    // Into the writable layer, as the master's user; workers of another user read it.
    let make = format!("head -c {SIZE} /dev/urandom >/srv/www/large && sha256sum </srv/www/large");
    let sum = lab.ok("a", &["exec", "web", "--", "sh", "-c", &make]);
    let sum = sum.split_whitespace().next().expect("sha256sum prints a sum");

    let mut download = web::download(&lab, ADDRESS, "/large", RATE);
    let mut asked = web::ask(&lab, ADDRESS, 4);
    let mut knocked = web::knock(&lab, ADDRESS);
    for (from, to) in [("a", "b"), ("b", "a")] {
        logged(&lab, from, 500);
        let report = migrate(&lab, "web", from, to);
        assert!(report["bytes"]["files"].as_u64() >= Some(SIZE), "the file travels with the pod: {report}");
        // The log is a file of the writable layer, and goes on where it was.
        logged(&lab, to, 500);
        assert!(download.is_at_work(), "the download ended before the move did");
        assert!(asked.is_at_work() && knocked.is_at_work());
    }

    let asked: web::Asked = asked.finish();
    assert!(asked.errors.is_empty(), "{asked:?}");
    assert!(asked.right > 1000, "{asked:?}");
    let knocked: web::Asked = knocked.finish();
    assert!(knocked.errors.is_empty() && knocked.right > 50, "{knocked:?}");
    let download: web::Download = download.finish();
    assert_eq!(download.error, None);
    assert_eq!((download.bytes, download.sha256.as_str()), (SIZE, sum), "what came is what was made");
    assert!(download.leisurely < SIZE, "it lasted longer than the moves: {download:?}");
    let again = lab.ok("a", &["exec", "web", "--", "sha256sum", "/srv/www/large"]);
    assert!(again.starts_with(sum), "the file after two moves: {again}");
    // nginx logs each answer once; the client got each of them (one more request asked whether nginx had started).
    let answers = asked.right + knocked.right;
    eventually("every answer is in the log", Duration::from_secs(5), || answered(&lab, "a") >= answers);
    assert!(answered(&lab, "a") <= answers + 100, "{} answers in the log, {asked:?}, {knocked:?}", answered(&lab, "a"));
}

/// Lines of the access log.
fn answered(lab: &Lab, host: &str) -> u64 {
    let count = lab.ok(host, &["exec", "web", "--", "grep", "-c", "small.*\" 200 ", "/var/log/nginx/access.log"]);
    count.trim().parse().expect("grep counts")
}

/// Waits for so many more answers.
fn logged(lab: &Lab, host: &str, more: u64) {
    let now = answered(lab, host);
    eventually("nginx answers", Duration::from_secs(20), || answered(lab, host) >= now + more);
}
