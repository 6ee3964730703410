//! Plans of a fleet, as its hosts see themselves.
#![allow(clippy::unwrap_used)]

use tests::Lab;
use tests::lab::rootfs;

/// On this very machine nothing is due: its kernel is not Debian's, or there are no advisories. (Plans with steps are tested
/// where they are made, and on real kernels.)
#[test]
fn what_is_not_due_is_said_with_the_reason() {
    let lab = Lab::up(2);
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--group", "web", "--", "sleep", "1000"]);
    let plan = lab.json("a", &["patch", "plan", "--fleet"]);
    assert_eq!(plan["steps"].as_array().map(Vec::len), Some(0), "{plan:#}");
    let left: Vec<&str> = plan["left"].as_array().unwrap().iter().map(|left| left["host"].as_str().unwrap()).collect();
    assert_eq!(left, ["a", "b"], "{plan:#}");
    let one = lab.podctl("a", &["patch", "plan", "b"]);
    assert!(one.code == 0 && one.out.contains("b is left as it is: ") && !one.out.contains("a is left"), "{one:?}");
    assert!(one.out.contains("cure: "), "{one:?}");
    lab.script(&["cut", "b"]).must();
    let plan = lab.podctl("a", &["patch", "plan", "--fleet"]);
    assert!(plan.code == 0 && plan.out.contains("see that podd runs on b and can be reached"), "{plan:?}");
    let nobody = lab.podctl("a", &["patch", "plan", "nobody"]);
    assert!(nobody.code == 2 && nobody.err.contains("nobody") && nobody.err.contains("cure: "), "{nobody:?}");
}
