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
