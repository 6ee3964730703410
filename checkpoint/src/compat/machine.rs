//! Rules about kernels, CRIU and clocks.

use super::{Context, Finding, go, go_with, no};
use crate::baseline::{ANY_RSEQ, DROPPABLE, KernelVersion};
use crate::host::{CriuFacts, HostFacts};

/// A CRIU whose version and `criu check` look right may still fail on a kernel: 3.17.1 on 6.13 and later (vDSO layout), 4.1.1 on
/// 6.16 and later (any TCP socket). Only a dump and restore of a real process with a connection tells.
pub(super) fn criu_round_trip(c: &Context) -> Option<Finding> {
    const RULE: &str = "criu-round-trip";
    let mut versions = Vec::new();
    let mut untried = Vec::new();
    let hosts = [("source", Some(c.source)), ("target", c.target)];
    for (side, host) in hosts.into_iter().filter_map(|(side, host)| Some((side, host?))) {
        let kernel = &host.kernel.release;
        let cure = format!("on the {side}: run scripts/setup, then `podctl doctor`");
        let Some(CriuFacts { path, version, round_trip }) = &host.criu else {
            return no(RULE, format!("the {side} has no CRIU"), cure);
        };
        let Some(version) = version else {
            return no(RULE, format!("CRIU at {} does not run on the {side}", path.display()), cure);
        };
        match round_trip {
            Some(Ok(())) => versions.push(format!("{side}: CRIU {version} on {kernel}")),
            Some(Err(why)) => {
                return no(RULE, format!("{side}: CRIU {version} fails on {kernel}: {why}"), cure);
            }
            None => untried.push(format!("{side}: CRIU {version} has not been tried on {kernel}")),
        }
    }
    match untried.is_empty() {
        true => go(RULE, versions.join("; ")),
        false => go_with(RULE, untried.join("; "), "run `podctl doctor` there first"),
    }
}

/// An image of one architecture means nothing to another.
pub(super) fn arch(c: &Context) -> Option<Finding> {
    let (from, to) = (&c.source.kernel.arch, &c.host.kernel.arch);
    match from == to {
        true => go("arch", from.as_str()),
        false => {
            no("arch", format!("the source is {from}, the target {to}"), "choose a target of the same architecture")
        }
    }
}

/// Newest feature size of the restartable-sequence area that is known to register on every kernel (that of 6.3 to 6.18).
const RSEQ_EVERYWHERE: u64 = 28;

/// Upwards works. Downwards there is an end at the kernel that the pod may count on; and two things of newer kernels cannot be
/// restored: a restartable-sequence area larger than the 32 bytes that kernels before 6.3 insist on (kernel/rseq.c; seen: born on
/// 7.2, `sys_rseq = -22` on 6.1, fine on 6.12), and droppable mappings (mm/mmap.c, 6.11; made by getrandom in the vDSO with
/// glibc 2.41 and later).
pub(super) fn kernel_direction(c: &Context) -> Option<Finding> {
    const RULE: &str = "kernel-direction";
    let (release, to) = (&c.host.kernel.release, KernelVersion::from(c.host.kernel.number));
    let large = c.holders(|p| p.rseq_bytes.is_some_and(|b| b > RSEQ_EVERYWHERE)).filter(|_| to < ANY_RSEQ);
    let droppable = c.holders(|p| p.memory.droppable).filter(|_| to < DROPPABLE);
    let (mut facts, mut cures) = (Vec::new(), Vec::new());
    if let Some(relies) = c.request.relies_on.as_ref().filter(|r| to < r.kernel) {
        facts.push(format!("started for kernels from {} on, the target runs {release}", relies.kernel));
        cures.push(format!(
            "choose a target with {} or later, or set baseline.kernel to \"{to}\" here and start the pod anew",
            relies.kernel
        ));
    }
    if let Some(who) = large {
        facts.push(format!("{who}: born under a kernel with larger restartable sequences than {release} can restore"));
        cures.push(format!(
            "start the pod with -e GLIBC_TUNABLES=glibc.pthread.rseq=0, or choose a target with {ANY_RSEQ} or later"
        ));
    }
    if let Some(who) = droppable {
        facts.push(format!("{who}: droppable mapping (vDSO getrandom), unknown to {release}"));
        cures.push(format!("choose a target with {DROPPABLE} or later"));
    }
    match facts.is_empty() {
        true => go(RULE, format!("{} to {release}", c.source.kernel.release)),
        false => no(RULE, facts.join("; "), cures.join("; ")),
    }
}

/// CRIU keeps CLOCK_MONOTONIC and CLOCK_BOOTTIME going through a time namespace (time_namespaces(7), 5.6).
pub(super) fn time_namespace(c: &Context) -> Option<Finding> {
    const CURE: &str = "use a kernel with CONFIG_TIME_NS";
    let lacks = |host: &HostFacts| !host.namespaces.iter().any(|n| n == "time");
    match (lacks(c.source), lacks(c.host)) {
        (false, false) => go("time-namespace", "clocks since boot continue"),
        (true, false) => go_with("time-namespace", "no time namespaces here: clocks since boot may jump", CURE),
        (_, true) => no("time-namespace", "the target's kernel has no time namespaces", CURE),
    }
}

/// user_namespaces(7): a pod has its own, and without CAP_SYS_RESOURCE CRIU can only handle other users' processes in one.
pub(super) fn user_namespaces(c: &Context) -> Option<Finding> {
    let most = c.host.sysctls.max_user_namespaces;
    match c.host.namespaces.iter().any(|n| n == "user") && most > 0 {
        true => go("user-namespaces", format!("up to {most}")),
        false => {
            no("user-namespaces", "user namespaces are switched off there", "sysctl -w user.max_user_namespaces=10000")
        }
    }
}

/// CLOCK_REALTIME is the host's: programs see it jump by the difference.
pub(super) fn clock(c: &Context) -> Option<Finding> {
    const RULE: &str = "clock";
    const CURE: &str = "keep both clocks synchronised (systemd-timesyncd or chrony)";
    let target = c.target?;
    let apart_ms = (target.clock.unix_us - c.source.clock.unix_us) / 1000;
    if apart_ms.abs() > 1000 {
        return go_with(RULE, format!("the wall clock will jump by {apart_ms} ms"), CURE);
    }
    match target.clock.synchronised {
        true => go(RULE, "clocks agree within 1 s; the target's is synchronised"),
        false => go_with(RULE, "the target's clock is not synchronised", CURE),
    }
}
