//! When a step is done.
//!
//! First the host's owner may choose the time (self-service); when that phase ends, or the last window before the deadline
//! comes, the step is done in the next window. A missed deadline is waited for no longer than the policy says.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::exposure::Exposure;
use super::steps::Step;
use super::{Decision, Question, Severity, Verdict};
use crate::patch::policy::{HORIZON, Overdue, Slot, words};

pub(super) fn decide(question: Question<'_>, step: Step, exposures: Vec<Exposure>, mut chain: Vec<String>) -> Decision {
    let Question { policy, record, now, .. } = question;
    let mut known = BTreeMap::new();
    for exposure in &exposures {
        known.entry(exposure.key()).or_insert(exposure.severity);
    }
    let seen = |key: &String| record.seen.get(key).copied().unwrap_or(now).min(now);
    let severities = step.ends.iter().map(|key| (key, known.get(key).copied().unwrap_or(Severity::Low)));
    let (mut severity, mut deadline, mut first) = (Severity::Low, Timestamp::MAX, now);
    for (key, worst) in severities {
        severity = severity.max(worst);
        deadline = deadline.min(later(seen(key), policy.allows(worst)));
        first = first.min(seen(key));
    }
    let overdue = now > deadline;
    chain.push(format!(
        "{} ends {} exposure(s), the worst of severity {}: due by {deadline}{}",
        step.mechanism.verdict(),
        step.ends.len(),
        severity.name(),
        if overdue { format!(", {} ago", words(now.duration_since(deadline))) } else { String::new() }
    ));
    let verdict = match wait(question, first, deadline, overdue, &mut chain) {
        None => Verdict::Due { mechanism: step.mechanism },
        Some(Wait::Until(until, why)) => Verdict::Wait { until, mechanism: step.mechanism, why },
        Some(Wait::ForEver) => Verdict::Blocked {
            reason: "no window comes within 400 days".to_owned(),
            cure: "look at [[windows]] and [[exclusions]] with `podctl policy explain`".to_owned(),
        },
    };
    let update_missing = false;
    let (severity, deadline, ends) = (Some(severity), Some(deadline), step.ends);
    Decision { verdict, severity, deadline, overdue, update_missing, ends, exposures, chain }
}

enum Wait {
    Until(Timestamp, String),
    ForEver,
}

fn wait(
    question: Question<'_>,
    first: Timestamp,
    deadline: Timestamp,
    overdue: bool,
    chain: &mut Vec<String>,
) -> Option<Wait> {
    let Question { policy, windows, record, now, .. } = question;
    if record.at_once {
        chain.push("the owner wants it now".to_owned());
        return None;
    }
    if overdue && policy.phases.overdue == Overdue::AnyTime {
        chain.push("it is overdue, and the policy allows any time then".to_owned());
        return None;
    }
    let far = later(now, HORIZON);
    let scheduled = later(first, policy.phases.self_service.0);
    // The last window that keeps the deadline, if there is one left; if there is none, the next one.
    let last = windows.last(now, deadline).map_or(now, |slot| slot.start);
    let from = match record.chosen {
        Some(chosen) => {
            chain.push(format!("the owner chose {chosen}"));
            // As long as it is the owner's to choose.
            chosen.min(scheduled).min(last)
        }
        None => scheduled.min(last),
    };
    let Some(Slot { start, window, .. }) = windows.next(from.max(now), far) else { return Some(Wait::ForEver) };
    if start <= now {
        chain.push(format!("the window {window} is open"));
        return None;
    }
    let why = format!("window {window}");
    chain.push(format!("it waits for the {why} at {start}; its owner may start it before"));
    Some(Wait::Until(start, why))
}

/// Never past the end of time.
fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}
