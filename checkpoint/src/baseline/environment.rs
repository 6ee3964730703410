//! The environment that keeps the common runtimes within a baseline.
//!
//! It is the same on every host: it lists all that goes beyond the baseline, and not only what the processor here has beyond
//! it. What a pod starts on a later, better host is held by it too.
//!
//! | runtime | variable |
//! |---|---|
//! | the C library | `GLIBC_TUNABLES` (glibc manual, "Tunables"): restartable sequences; which variants of its functions it picks, and which folders of libraries it searches |
//! | its dynamic linker | `LD_BIND_NOW` (ld.so(8)), see [`environment`] |
//! | OpenSSL 1.1 and 3 | `OPENSSL_ia32cap` (OPENSSL_ia32cap(3)) |
//! | Go | `GODEBUG=cpu.*` (internal/cpu) |
//!
//! Nothing holds what asks the processor itself: JIT compilers and programs with variants of their own.

use super::features::FEATURES;
use super::{ANY_RSEQ, CpuBaseline, KernelVersion};

const TUNABLES: &str = "GLIBC_TUNABLES";
const BIND_NOW: &str = "LD_BIND_NOW";
const OPENSSL: &str = "OPENSSL_ia32cap";
const GO: &str = "GODEBUG";

/// An environment, and how far it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Names and values, in order of names.
    pub all: Vec<(String, String)>,
    /// Where the program's own environment says otherwise, and was let: variables, with the item if they are lists.
    pub against: Vec<String>,
}

/// Adds to a program's own environment what holds it to a kernel and, if any, to a processor. What its own environment says
/// is left as it is; in lists that is each item.
///
/// The dynamic linker saves registers while it binds a function at its first call, by XSAVEC if the processor has it, or by
/// XSAVE into room that was measured at the start. So a program would die of the next such call on a processor without
/// XSAVEC; or, with XSAVE, have its stack overwritten on one with more registers. Unless the baseline has XSAVEC, which writes
/// only what is in use, all functions are bound at the start.
#[must_use]
pub fn environment(kernel: KernelVersion, cpu: Option<&CpuBaseline>, own: &[(String, String)]) -> Environment {
    let mut made = Environment { all: own.to_vec(), against: Vec::new() };
    if kernel < ANY_RSEQ {
        // No loss if its own word stands: the call is refused anyway.
        made.item(TUNABLES, ':', "glibc.pthread.rseq", "0");
    }
    if let Some(cpu) = cpu {
        let beyond = |name: &str| !cpu.features.contains(name);
        if made.item(TUNABLES, ':', "glibc.cpu.hwcaps", &glibc(beyond)) {
            made.against.push(format!("{TUNABLES} (glibc.cpu.hwcaps)"));
        }
        if beyond("xsavec") && made.whole(BIND_NOW, "1") {
            made.against.push(BIND_NOW.to_owned());
        }
        if made.whole(OPENSSL, &openssl(beyond)) {
            made.against.push(OPENSSL.to_owned());
        }
        let own = made.value(GO).unwrap_or_default();
        if own.split(',').any(|item| item.starts_with("cpu.")) {
            made.against.push(format!("{GO} (cpu.*)"));
        } else {
            let held = [go(beyond).as_str(), own].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(",");
            made.set(GO, held);
        }
    }
    made.all.sort();
    made
}

impl Environment {
    fn value(&self, name: &str) -> Option<&str> {
        self.all.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.all.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.all.push((name.to_owned(), value)),
        }
    }

    /// Sets a variable that has no value yet; whether it has another one.
    fn whole(&mut self, name: &str, value: &str) -> bool {
        match self.value(name) {
            Some(own) => own != value,
            None => {
                self.set(name, value.to_owned());
                false
            }
        }
    }

    /// Adds `key=value` to a list that has no such key yet; whether it has the key with another value.
    fn item(&mut self, name: &str, separator: char, key: &str, value: &str) -> bool {
        let own = self.value(name).unwrap_or_default();
        // The last one counts.
        let said = own.rsplit(separator).filter_map(|item| item.split_once('=')).find(|(k, _)| *k == key);
        if let Some((_, said)) = said {
            return said != value;
        }
        let added = if own.is_empty() { format!("{key}={value}") } else { format!("{key}={value}{separator}{own}") };
        self.set(name, added);
        false
    }
}

/// `-AVX2,-FMA`: the C library ignores names that it does not know.
fn glibc(beyond: impl Fn(&str) -> bool) -> String {
    let names = FEATURES.iter().filter(|f| beyond(f.name)).flat_map(|f| f.glibc);
    names.map(|name| format!("-{name}")).collect::<Vec<_>>().join(",")
}

/// `~0x..:~0x..`: bits that are taken away from each vector. OpenSSL before 3.4 reads the first two only; later ones would take
/// a vector that is not mentioned for zero.
fn openssl(beyond: impl Fn(&str) -> bool) -> String {
    let mut vectors = [0_u64; 4];
    for (vector, bit) in FEATURES.iter().filter(|f| beyond(f.name)).filter_map(|f| f.openssl) {
        vectors[vector] |= 1 << bit;
    }
    vectors.map(|mask| format!("~{mask:#x}")).join(":")
}

/// Everything off but what the baseline has: Go complains of names that it does not know, and knows more with each version.
fn go(beyond: impl Fn(&str) -> bool) -> String {
    let on = FEATURES.iter().filter(|f| !beyond(f.name)).filter_map(|f| f.go).map(|name| format!("cpu.{name}=on"));
    std::iter::once("cpu.all=off".to_owned()).chain(on).collect::<Vec<_>>().join(",")
}
