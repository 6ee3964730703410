//! Many pods leave a host together.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tests::Lab;
use tests::lab::{eventually, rootfs};

#[test]
fn all_go_but_the_one_that_cannot() {
    let lab = Lab::up(2);
    let root = rootfs("busybox");
    let sleeper = |host: &str, name: &str| {
        lab.ok(host, &["run", "--name", name, "--rootfs", &root, "--", "sleep", "1000"]);
    };
    let names: Vec<String> = (1..=6).map(|n| format!("pod{n}")).collect();
    for name in &names {
        sleeper("a", name);
    }
    // This name is taken there.
    sleeper("b", "pod3");
    lab.ok("a", &["create", "--name", "idle", "--rootfs", &root, "--", "true"]);
    let moved = lab.podctl("a", &["--json", "migrate", "--all", "--to", "b"]);
    assert_eq!(moved.code, 3, "{moved:?}");
    assert!(moved.err.contains("pod3") && moved.err.lines().count() == 1, "{moved:?}");
    let reports: Vec<serde_json::Value> = serde_json::from_str(&moved.out).unwrap();
    let mut gone: Vec<&str> = reports.iter().map(|report| report["pod"].as_str().unwrap()).collect();
    gone.sort_unstable();
    assert_eq!(gone, ["pod1", "pod2", "pod4", "pod5", "pod6"]);
    assert_eq!(lab.state("a", "pod3").as_deref(), Some("running"));
    assert_eq!(lab.state("a", "idle").as_deref(), Some("created"));
    for name in gone {
        eventually("it runs there", Duration::from_secs(10), || lab.state("b", name).as_deref() == Some("running"));
        assert_eq!(lab.state("a", name), None);
    }
    // Some of them, by name.
    let back = lab.podctl("b", &["migrate", "pod1", "pod2", "--to", "a"]);
    assert!(back.code == 0 && back.out.lines().count() == 2, "{back:?}");
    let nobody = lab.podctl("b", &["migrate", "--to", "a"]);
    assert!(nobody.code == 2 && nobody.err.contains("cure: "), "{nobody:?}");
}
