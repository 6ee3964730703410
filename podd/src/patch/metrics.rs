//! What monitoring reads: the text format of Prometheus (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! | metric | meaning |
//! |---|---|
//! | `podd_facts_age_seconds` | age of what is known about the host; absent: nothing is |
//! | `podd_patch_verdict{verdict}` | 1 for the verdict of now, 0 for all others |
//! | `podd_patch_deadline_seconds` | time left until the step must be done, negative if overdue; absent: none is due |
//! | `podd_patch_exposures{severity,standing}` | advisories that the host has not ended: `fixed`, `covered` or `open` |
//! | `podd_pods{state}` | pods of the host |
//! | `podd_patch_run{state}` | 1 for where the fleet's patch run stands: `none`, `running`, `paused`, or `stopped` by the breaker |
//! | `podd_migration_blackout_seconds` | histogram of the blackouts of moves from this host |

use std::collections::BTreeMap;
use std::fmt::Write;

use super::decide::{Severity, Standing};
use crate::api::StatusView;

/// Bounds of the histogram, in seconds.
const BUCKETS: [f64; 9] = [0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// All that there are.
const VERDICTS: [&str; 10] = [
    "current",
    "covered",
    "live-patch",
    "restart-only",
    "in-place",
    "evacuate-and-reboot",
    "wait",
    "leave",
    "blocked",
    "unknown",
];

/// Of a status, the states of all pods, blackouts in ms, and where the patch run stands that is under way.
#[must_use]
pub fn text(status: &StatusView, states: &[String], blackouts_ms: &[f64], run: Option<&str>) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64)>| {
        if !samples.is_empty() {
            let _ = writeln!(text, "# HELP podd_{name} {help}\n# TYPE podd_{name} {kind}");
        }
        for (labels, value) in samples {
            let _ = writeln!(text, "podd_{name}{labels} {value}");
        }
    };
    let plain = |value: Option<f64>| value.map(|value| (String::new(), value)).into_iter().collect::<Vec<_>>();
    let age = status.facts_at.map(|at| status.now.duration_since(at).as_secs_f64());
    metric("facts_age_seconds", "gauge", "Age of what is known about the host.", plain(age));
    let now = status.decision.verdict.name();
    let verdicts = VERDICTS.map(|name| (format!("{{verdict=\"{name}\"}}"), f64::from(u8::from(name == now))));
    metric("patch_verdict", "gauge", "1 for the verdict of now.", verdicts.to_vec());
    let left = status.decision.deadline.map(|deadline| deadline.duration_since(status.now).as_secs_f64());
    metric("patch_deadline_seconds", "gauge", "Time left until the step must be done.", plain(left));
    let mut exposures: BTreeMap<(Severity, &str), f64> = BTreeMap::new();
    for exposure in &status.decision.exposures {
        let standing = match exposure.standing {
            Standing::Fixed(_) => "fixed",
            Standing::Covered(_) => "covered",
            Standing::Open => "open",
        };
        *exposures.entry((exposure.severity, standing)).or_default() += 1.0;
    }
    let labels = |(severity, standing): (Severity, &str)| {
        format!("{{severity=\"{}\",standing=\"{standing}\"}}", severity.name())
    };
    let exposures = exposures.into_iter().map(|(key, count)| (labels(key), count)).collect();
    metric("patch_exposures", "gauge", "Advisories that the host has not ended.", exposures);
    let mut pods: BTreeMap<&str, f64> = BTreeMap::new();
    states.iter().for_each(|state| *pods.entry(state).or_default() += 1.0);
    let pods = pods.into_iter().map(|(state, count)| (format!("{{state=\"{state}\"}}"), count)).collect();
    metric("pods", "gauge", "Pods of the host.", pods);
    let stands = ["none", "running", "paused", "stopped"]
        .map(|state| (format!("{{state=\"{state}\"}}"), f64::from(u8::from(state == run.unwrap_or("none")))));
    metric("patch_run", "gauge", "1 for where the patch run stands.", stands.to_vec());
    let seconds: Vec<f64> = blackouts_ms.iter().map(|ms| ms / 1000.0).collect();
    let below = |bound: f64| seconds.iter().filter(|s| **s <= bound).count() as f64;
    let mut samples: Vec<(String, f64)> =
        BUCKETS.iter().map(|bound| (format!("_bucket{{le=\"{bound}\"}}"), below(*bound))).collect();
    samples.push(("_bucket{le=\"+Inf\"}".to_owned(), seconds.len() as f64));
    samples.push(("_sum".to_owned(), seconds.iter().sum()));
    samples.push(("_count".to_owned(), seconds.len() as f64));
    metric("migration_blackout_seconds", "histogram", "Blackouts of moves from this host.", samples);
    text
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::patch::decide::Exposure;
    use crate::patch::facts::Missing;

    #[test]
    fn as_prometheus_reads_it() {
        let exposure = |id: &str, standing| Exposure {
            id: id.to_owned(),
            package: "linux".to_owned(),
            running: "1".to_owned(),
            fixed_in: None,
            severity: Severity::High,
            summary: String::new(),
            standing,
        };
        let at = |second| Timestamp::new(second, 0).expect("a time");
        let missing = Missing { what: "x".to_owned(), cure: "y".to_owned() };
        let mut status = StatusView { facts_at: Some(at(40)), ..StatusView::unknown("a", at(100), missing) };
        status.decision.exposures = vec![exposure("CVE-1", Standing::Open), exposure("CVE-2", Standing::Open)];
        status.decision.deadline = Some(Timestamp::UNIX_EPOCH);
        let states = ["running", "running", "exited"].map(str::to_owned);
        let said = text(&status, &states, &[31.25, 250.0], Some("stopped"));
        for line in [
            "podd_facts_age_seconds 60",
            "podd_patch_verdict{verdict=\"unknown\"} 1",
            "podd_patch_verdict{verdict=\"current\"} 0",
            "podd_patch_deadline_seconds -100",
            "podd_patch_exposures{severity=\"high\",standing=\"open\"} 2",
            "podd_pods{state=\"running\"} 2",
            "podd_patch_run{state=\"stopped\"} 1",
            "podd_patch_run{state=\"none\"} 0",
            "podd_migration_blackout_seconds_bucket{le=\"0.05\"} 1",
            "podd_migration_blackout_seconds_bucket{le=\"+Inf\"} 2",
            "podd_migration_blackout_seconds_sum 0.28125",
            "# TYPE podd_migration_blackout_seconds histogram",
        ] {
            assert!(said.lines().any(|l| l == line), "{line}: {said}");
        }
        assert!(VERDICTS.contains(&status.decision.verdict.name()));
    }
}
