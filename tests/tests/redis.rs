//! A redis under load goes from host to host and back; its client counts over one connection.

use std::time::Duration;

use tests::{Lab, workload};

#[test]
fn counter_continues_over_one_connection() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.5");
    let counter = workload::Counter::start(&lab, "10.77.1.5", 8);
    std::thread::sleep(Duration::from_secs(1));
    let mut blackouts = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a")] {
        let report = lab.json(from, &["migrate", "redis", "--to", to]);
        blackouts.push(report["blackout_ms"].as_f64().expect("a number"));
        assert_eq!(lab.state(to, "redis").as_deref(), Some("running"));
        assert_eq!(lab.state(from, "redis"), None, "the source has forgotten it");
        std::thread::sleep(Duration::from_secs(1));
    }
    let counted = counter.finish();
    assert_eq!(counted.error, None);
    assert_eq!(counted.gaps, 0);
    assert!(counted.increments > 1000, "{counted:?}");
    // What podd says must cover what a client saw, but for the repetition of a lost packet.
    let most = blackouts.iter().copied().fold(0.0, f64::max);
    assert!(counted.longest_silence_ms < most + 500.0, "{counted:?}, podd says {blackouts:?}");
    assert!(counted.longest_silence_ms > most * 0.5, "{counted:?}, podd says {blackouts:?}");
}

#[test]
fn the_phases_are_what_a_client_sees() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.6");
    let mut off = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a"), ("a", "b")] {
        let counter = workload::Counter::start(&lab, "10.77.1.6", 6);
        std::thread::sleep(Duration::from_millis(500));
        let report = workload::migrate(&lab, "redis", from, to);
        let counted = counter.finish();
        assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0));
        let blackout = report["blackout_ms"].as_f64().expect("a number");
        let phases = ["freeze", "dump", "transfer", "restore", "announce"];
        let phase = |name: &str| report["phases"][format!("{name}_ms")].as_f64().expect("a number");
        let sum: f64 = phases.into_iter().map(phase).sum();
        assert!((sum - blackout).abs() < 1.0, "{report}");
        assert!(report["predicted"]["expected"]["blackout_ms"].as_f64().is_some_and(|ms| ms > 1.0), "{report}");
        off.push((counted.longest_silence_ms - blackout).abs());
    }
    // The median: on a machine that is busy with other tests, a client may not be awake when its answer comes.
    off.sort_by(f64::total_cmp);
    assert!(off[off.len() / 2] < 20.0, "client and podd differ by {off:?} ms");
    let shown = lab.podctl("a", &["history", "--predictions"]).must().out;
    assert_eq!(shown.lines().filter(|line| line.starts_with("redis")).count(), 3, "{shown}");
}
