//! Processes of three users with everything that processes use go from host to host and back (`everyday/`).

use tests::Lab;
use tests::workload::{everyday, migrate};

const NAME: &str = "day";

#[test]
fn everyday_programs_do_not_notice_six_moves() {
    let lab = Lab::up(2);
    everyday::everyday(&lab, "a", NAME, "10.77.5.5", &[]);
    everyday::more_rounds(&lab, "a", NAME, 10);
    for (from, to) in [("a", "b"), ("b", "a")].repeat(3) {
        migrate(&lab, NAME, from, to);
        everyday::more_rounds(&lab, to, NAME, 10);
    }
}
