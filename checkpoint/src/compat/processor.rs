//! The rule about processors.

use super::{Context, Finding, go, go_with, no};
use crate::baseline::ReliesOn;
use crate::host::Cpu;

const RULE: &str = "cpu-features";
const CURE: &str = "choose a target whose processor is the same or newer, or start the pod anew there; `baseline.cpu` in \
                    podd.toml keeps pods to what all hosts have";

/// Programs ask the processor once, at their start, and then use what it had: elsewhere that is SIGILL. CRIU does not check by
/// default. What counts is the processor that the pod was born on, wherever it is now; or the baseline that it is held to.
///
/// Kernels name features differently, so where the words of CPUID are known on both sides they decide.
///
/// Registers that the target lacks are left out by CRIU without a word (`restore_fpu` in criu/arch/x86/crtools.c). That does no
/// harm where no program can use them, and those that give registers are features with names (avx, avx512f, amx_tile, pku).
/// So the size of the register area decides nothing by itself; but see [`lazy_binding`].
pub(super) fn cpu_features(c: &Context) -> Option<Finding> {
    let arch = &c.host.kernel.arch;
    let relies_on = c.request.relies_on.as_ref();
    let (born, to) = (relies_on.map_or(&c.source.cpu, |r| &r.born), &c.host.cpu);
    let missing = Missing::between(born, to);
    if let Some(fact) = missing.fact() {
        return beyond_birth(relies_on, to, &fact);
    }
    if let Some(fact) = lazy_binding(relies_on, born, to) {
        const BOUND: &str = "nothing, if its programs bind all functions at their start (LD_BIND_NOW=1, or linked with -z now); \
                             else start the pod anew with a baseline";
        return go_with(RULE, fact, BOUND);
    }
    // What is held is held wherever it starts.
    let since: Vec<&str> = match relies_on {
        Some(r) if r.held().is_none() => r.since.iter().map(String::as_str).filter(|f| !to.has(f)).collect(),
        _ => Vec::new(),
    };
    let all = format!("{arch} features: target has all {}", born.features().count());
    match (since.is_empty(), missing.unnamed_there.is_empty()) {
        (false, _) => go_with(
            RULE,
            format!(
                "{all} of the processor that the pod was started on; what was started in it later may use {}",
                since.join(" ")
            ),
            CURE,
        ),
        (true, false) => go(RULE, format!("{all}; its kernel does not name {}", missing.unnamed_there)),
        (true, true) => go(RULE, all),
    }
}

/// What a processor lacks of another one.
struct Missing {
    /// Names, separated by spaces.
    named: String,
    /// Something that has no name on the source either.
    unnamed: bool,
    /// Names that only the target's kernel lacks, separated by spaces.
    unnamed_there: String,
}

impl Missing {
    fn between(from: &Cpu, to: &Cpu) -> Missing {
        let names: Vec<&str> = from.features().filter(|f| !to.has(f)).collect();
        let asked = !from.cpuid.is_empty() && from.cpuid.len() == to.cpuid.len();
        let covered = asked && from.cpuid.iter().zip(&to.cpuid).all(|(from, to)| from & !to == 0);
        let names = names.join(" ");
        match covered {
            true => Missing { named: String::new(), unnamed: false, unnamed_there: names },
            false => Missing { unnamed: asked && names.is_empty(), named: names, unnamed_there: String::new() },
        }
    }

    fn fact(&self) -> Option<String> {
        match (self.named.is_empty(), self.unnamed) {
            (false, _) => Some(self.named.clone()),
            (true, true) => Some("features that the kernel does not name".into()),
            (true, false) => None,
        }
    }
}

/// The target lacks something that the processor of the pod's birth has.
fn beyond_birth(relies_on: Option<&ReliesOn>, to: &Cpu, lacks: &str) -> Option<Finding> {
    let fact = format!("the target's processor ({}) lacks {lacks}", to.model);
    let Some(relies_on) = relies_on else { return no(RULE, fact, CURE) };
    let Some(held) = relies_on.held() else {
        let own = match (&relies_on.cpu, relies_on.own.join(", ")) {
            (Some(cpu), own) => format!("; the pod is not held to {}, as its own environment sets {own}", cpu.name),
            (None, _) => String::new(),
        };
        return no(RULE, format!("{fact}{own}"), CURE);
    };
    let missing: Vec<&str> = held.features.iter().map(String::as_str).filter(|f| !to.has(f)).collect();
    if !missing.is_empty() {
        let missing = missing.join(" ");
        return no(RULE, format!("the target's processor ({}) lacks {missing} of {}", to.model, held.name), CURE);
    }
    go_with(
        RULE,
        format!(
            "the pod is held to {}, which the target has; a program that asks the processor itself may use {lacks}",
            held.name
        ),
        "nothing, if the pod has no JIT compilers and no programs with variants of their own; else choose another target",
    )
}

/// Without XSAVEC the C library binds functions at their first call by XSAVE, into room that it measured at its start: on a
/// processor with more registers it would write beyond (Intel SDM volume 1, 13.7; sysdeps/x86_64/dl-trampoline.h).
fn lazy_binding(relies_on: Option<&ReliesOn>, born: &Cpu, to: &Cpu) -> Option<String> {
    let held = relies_on.is_some_and(|r| r.held().is_some());
    let larger = born.has("xsave") && !born.has("xsavec") && to.xsave_bytes > born.xsave_bytes;
    (larger && !held).then(|| {
        format!(
            "registers take {} bytes where the pod was started, and {} on the target: programs that bind functions at their \
             first call would write beyond their room",
            born.xsave_bytes, to.xsave_bytes
        )
    })
}
