//! Whether pods should leave because the hardware is about to fail.
//!
//! One noisy counter must not empty a rack: one certain sign is needed, or two that do not depend on each other; no more hosts
//! in a day than the policy allows; and none while the breaker is open.

use jiff::SignedDuration;

use super::{Mechanism, Question, Verdict};
use crate::patch::facts::Hardware;

/// Hosts that were left within this count.
pub const LATELY: SignedDuration = SignedDuration::from_hours(24);
const DAY_S: u64 = 86400;

pub(super) fn decide(question: Question<'_>, chain: &mut Vec<String>) -> Option<Verdict> {
    let Question { facts, policy, record, now, .. } = question;
    let certain = certain(&facts.hardware);
    let signs = signs(&facts.hardware, facts.uptime_s.known().copied().unwrap_or(0), policy.hardware.corrected_per_day);
    chain.extend(certain.iter().map(|sign| format!("certain sign of failing hardware: {sign}")));
    chain.extend(signs.iter().map(|sign| format!("sign of failing hardware: {sign}")));
    if certain.is_empty() && signs.len() < 2 {
        return None;
    }
    if !policy.hardware.evacuate || policy.mechanisms.forbid.contains(&Mechanism::Evacuate) {
        chain.push("the policy has nobody leave for that".to_owned());
        return None;
    }
    let signs: Vec<String> = certain.into_iter().chain(signs).collect();
    let lately = record.left.iter().filter(|at| now.duration_since(**at) < LATELY).count();
    let hindrance = if record.breaker_open {
        Some("the breaker is open".to_owned())
    } else if lately >= policy.hardware.per_day as usize {
        Some(format!(
            "{lately} host(s) were left for that within a day, and the policy allows {}",
            policy.hardware.per_day
        ))
    } else {
        None
    };
    Some(match hindrance {
        Some(why) => Verdict::Blocked {
            reason: format!("the hardware is about to fail ({}), and {why}", signs.join("; ")),
            cure: "look at the host; move its pods by hand with `podctl migrate`".to_owned(),
        },
        None => Verdict::Leave { signs },
    })
}

/// Any of these is enough.
fn certain(hardware: &Hardware) -> Vec<String> {
    let uncorrected = hardware.uncorrected.filter(|count| *count > 0);
    let uncorrected = uncorrected.map(|count| format!("{count} memory error(s) could not be corrected"));
    let disks = hardware.disks.iter().flatten().filter(|disk| !disk.passed);
    uncorrected.into_iter().chain(disks.map(|disk| format!("{} expects to fail", disk.name))).collect()
}

/// Two of these are.
fn signs(hardware: &Hardware, uptime_s: u64, limit: u64) -> Vec<String> {
    let per_day = |count: u64| (u128::from(count) * u128::from(DAY_S) / u128::from(uptime_s.max(DAY_S))) as u64;
    let corrected = hardware.corrected.map(per_day).filter(|count| *count > limit);
    let corrected = corrected.map(|count| format!("{count} corrected memory errors a day"));
    let hot = (!hardware.hot.is_empty()).then(|| format!("too hot: {}", hardware.hot.join(", ")));
    let log = hardware.log.first().map(|line| format!("the kernel's log: {line}"));
    [corrected, hot, log].into_iter().flatten().collect()
}
