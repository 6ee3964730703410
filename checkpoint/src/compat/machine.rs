//! Rules about kernels, processors, CRIU and clocks.

use super::{Context, Finding, go, go_with, no};
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
/// Accepts areas of any size: CRIU registers the area again as large as it was.
const RSEQ_ANY_SIZE: (u32, u32) = (6, 12);
/// Knows MAP_DROPPABLE.
const DROPPABLE: (u32, u32) = (6, 11);

/// Upwards works. Downwards two things of newer kernels cannot be restored: a restartable-sequence area larger than the 32 bytes
/// that kernels before 6.3 insist on (kernel/rseq.c; seen: born on 7.2, `sys_rseq = -22` on 6.1, fine on 6.12), and droppable
/// mappings (mm/mmap.c, 6.11; made by getrandom in the vDSO with glibc 2.41 and later).
pub(super) fn kernel_direction(c: &Context) -> Option<Finding> {
    const RULE: &str = "kernel-direction";
    let to = c.host.kernel.number;
    let large = c.holders(|p| p.rseq_bytes.is_some_and(|b| b > RSEQ_EVERYWHERE)).filter(|_| to < RSEQ_ANY_SIZE);
    let droppable = c.holders(|p| p.memory.droppable).filter(|_| to < DROPPABLE);
    let (mut facts, mut cures) = (Vec::new(), Vec::new());
    if let Some(who) = large {
        facts.push(format!(
            "{who}: born under a kernel with larger restartable sequences than {} can restore",
            c.host.kernel.release
        ));
        cures.push("start the pod with -e GLIBC_TUNABLES=glibc.pthread.rseq=0, or choose a target with 6.12 or later");
    }
    if let Some(who) = droppable {
        facts.push(format!("{who}: droppable mapping (vDSO getrandom), unknown to {}", c.host.kernel.release));
        cures.push("choose a target with 6.11 or later");
    }
    match facts.is_empty() {
        true => go(RULE, format!("{} to {}", c.source.kernel.release, c.host.kernel.release)),
        false => no(RULE, facts.join("; "), cures.join("; ")),
    }
}

/// Programs ask the processor once, at start, and then use what it had: elsewhere that is SIGILL. CRIU does not check by default.
///
/// Kernels name features differently, so where the words of CPUID are known on both sides they decide.
pub(super) fn cpu_features(c: &Context) -> Option<Finding> {
    const RULE: &str = "cpu-features";
    const CURE: &str = "choose a target whose processor is the same or newer, or start the pod anew there";
    let (from, to) = (&c.source.cpu, &c.host.cpu);
    let usable: Vec<&str> =
        from.flags.iter().map(String::as_str).filter(|f| gives_instructions(f, &c.source.kernel.arch)).collect();
    let missing: Vec<&str> = usable.iter().copied().filter(|f| !to.flags.iter().any(|t| t == f)).collect();
    let asked = !from.cpuid.is_empty() && from.cpuid.len() == to.cpuid.len();
    let covered = asked && from.cpuid.iter().zip(&to.cpuid).all(|(from, to)| from & !to == 0);
    let arch = &c.host.kernel.arch;
    if from.xsave_bytes > to.xsave_bytes {
        let (from, to) = (from.xsave_bytes, to.xsave_bytes);
        let named = if missing.is_empty() { String::new() } else { format!("; it lacks {}", missing.join(" ")) };
        return no(RULE, format!("registers take {from} bytes on the source, {to} on the target{named}"), CURE);
    }
    match (missing.is_empty(), covered, asked) {
        (true, true, _) | (true, _, false) => go(RULE, format!("{arch} features: target has all {}", usable.len())),
        (false, true, _) => {
            let fact = format!(
                "{arch} features: target has all {}; its kernel does not name {}",
                usable.len(),
                missing.join(" ")
            );
            go(RULE, fact)
        }
        (false, false, _) => {
            no(RULE, format!("the target's processor ({}) lacks {}", to.model, missing.join(" ")), CURE)
        }
        (true, false, true) => no(
            RULE,
            format!("the target's processor ({}) lacks features that the kernel does not name", to.model),
            CURE,
        ),
    }
}

/// Of the names in /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h), those of instructions that programs can execute. The rest
/// (virtualisation, power, mitigations) differs between kernels and hosts without harm.
fn gives_instructions(flag: &str, arch: &str) -> bool {
    const PREFIXES: [&str; 12] =
        ["3dnow", "aes", "amx", "apx", "avx", "bmi", "fma", "mmx", "sha", "sse", "ssse", "xsave"];
    const NAMES: [&str; 47] = [
        "abm",
        "adx",
        "clflush",
        "clflushopt",
        "cldemote",
        "clwb",
        "clzero",
        "cmov",
        "cmpccxadd",
        "cx16",
        "cx8",
        "enqcmd",
        "f16c",
        "fpu",
        "fsgsbase",
        "fxsr",
        "gfni",
        "hle",
        "lahf_lm",
        "lm",
        "lwp",
        "misalignsse",
        "movbe",
        "movdir64b",
        "movdiri",
        "movrs",
        "mwaitx",
        "ospke",
        "pclmulqdq",
        "pku",
        "pni",
        "popcnt",
        "rdpid",
        "rdrand",
        "rdseed",
        "rdtscp",
        "rtm",
        "serialize",
        "sm3",
        "sm4",
        "syscall",
        "tbm",
        "tsxldtrk",
        "vaes",
        "vpclmulqdq",
        "waitpkg",
        "xop",
    ];
    // Elsewhere all names are of instructions.
    !arch.starts_with("x86") || NAMES.contains(&flag) || PREFIXES.iter().any(|p| flag.starts_with(p))
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
