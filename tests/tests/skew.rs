//! An earlier podd, built from the commit that had the version of the protocol before, in a fleet with this one: `scripts/skew`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::Value;
use tests::invariants::Writer;
use tests::lab::eventually;
use tests::{Lab, workload};

const ADDRESS: &str = "10.77.1.9";

#[test]
#[ignore = "needs a podd of an earlier version: scripts/skew builds it"]
fn an_earlier_build_and_this_one_work_together() {
    let old = std::env::var_os("PODD_OLD").expect("scripts/skew names its folder");
    let lab = Lab::prepared(|lab| {
        fs::create_dir_all(lab.dir().join("c")).expect("the lab's folder can be made");
        symlink(old, lab.dir().join("c/bin")).expect("the lab's folder can be written to");
    });
    lab.script(&["up", "--hosts", "3"]).must();
    let sum = |host: &str| {
        let pid = tests::invariants::podd(&lab, host).expect("podd runs");
        fs::read(format!("/proc/{pid}/exe")).map(|podd| (podd.len(), xxhash_rust::xxh3::xxh3_64(&podd))).unwrap()
    };
    assert!(sum("a") == sum("b") && sum("a") != sum("c"), "c runs the earlier one");
    workload::redis(&lab, "a", "redis", ADDRESS);
    let writer = Writer::start(&lab, ADDRESS);
    for (from, to) in [("a", "c"), ("c", "b"), ("b", "c"), ("c", "a")] {
        lab.ok(from, &["rehearse", "redis", "--to", to]);
        let report = lab.json(from, &["migrate", "redis", "--to", to]);
        let before = writer.acknowledged();
        eventually("the client goes on", Duration::from_secs(20), || writer.acknowledged() > before);
        assert_eq!(writer.complaints(), "", "from {from} to {to}: {report}");
        assert_eq!((lab.state(to, "redis").as_deref(), lab.state(from, "redis")), (Some("running"), None));
    }
    // Each knows how the other one is, and neither stands in the way of a plan.
    for host in ["a", "c"] {
        // The exit code tells that nothing is known of these hosts' Debian.
        let status: Value = serde_json::from_str(&lab.podctl(host, &["--json", "status"]).out).unwrap();
        assert_eq!(status.as_array().map(Vec::len), Some(3), "{status:#}");
        assert!(!status.to_string().contains("not understand"), "{status:#}");
        let plan = lab.podctl(host, &["patch", "plan", "--fleet"]);
        assert!(plan.code == 0 && !plan.out.contains("not understand"), "{plan:?}");
    }
    // An image of the earlier one.
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("redis.img");
    let image = image.to_str().expect("a path is text");
    lab.ok("a", &["migrate", "redis", "--to", "c"]);
    assert_eq!(writer.complaints(), "");
    drop(writer);
    lab.ok("c", &["checkpoint", "redis", "-o", image]);
    lab.ok("c", &["rm", "redis"]);
    lab.ok("a", &["restore", image]);
    assert_eq!(lab.state("a", "redis").as_deref(), Some("running"));
}
