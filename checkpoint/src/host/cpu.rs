//! The processor: what the kernel names, and what programs see when they ask the processor itself.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{HostError, sys};
use crate::baseline::gives_instructions;

/// A processor. All of a host are taken to be alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Such as `AuthenticAMD`.
    pub vendor: String,
    /// Such as `AMD EPYC`.
    pub model: String,
    /// What the kernel names in /proc/cpuinfo (`flags`, `Features`), sorted. Newer kernels name more.
    pub flags: Vec<String>,
    /// CPUID feature words in a fixed order; empty on other architectures. Programs (the C library too) look here.
    pub cpuid: Vec<u32>,
    /// Bytes of extended state that the kernel has switched on; 0 on other architectures.
    pub xsave_bytes: u32,
}

impl Cpu {
    /// Reads the processor of this host.
    ///
    /// # Errors
    /// /proc/cpuinfo cannot be read.
    pub fn read() -> Result<Cpu, HostError> {
        let path = Path::new("/proc/cpuinfo");
        let failed = |source| HostError::Read { path: path.into(), source };
        // The first processor only: the file has thousands of lines on big hosts.
        let lines = BufReader::new(File::open(path).map_err(failed)?).lines();
        let block: Vec<String> = lines
            .take_while(|l| l.as_ref().map_or(true, |l| !l.trim().is_empty()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let (cpuid, xsave_bytes) = sys::cpuid();
        Ok(Cpu { cpuid, xsave_bytes, ..parse(&block) })
    }

    /// Those of its flags that give instructions to programs, in order.
    pub fn features(&self) -> impl Iterator<Item = &str> {
        // CPUID is x86's.
        let arch = if self.cpuid.is_empty() { "" } else { "x86_64" };
        self.flags.iter().map(String::as_str).filter(move |flag| gives_instructions(flag, arch))
    }

    /// Whether it has a feature, by its name in /proc/cpuinfo.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }
}

fn parse(block: &[String]) -> Cpu {
    let value = |names: &[&str]| {
        block
            .iter()
            .filter_map(|l| l.split_once(':'))
            .find(|(key, _)| names.contains(&key.trim()))
            .map_or("", |(_, value)| value.trim())
    };
    let mut flags: Vec<String> = value(&["flags", "Features"]).split_ascii_whitespace().map(str::to_owned).collect();
    flags.sort();
    flags.dedup();
    let vendor = value(&["vendor_id", "CPU implementer"]).to_owned();
    let model = value(&["model name", "CPU part"]).to_owned();
    Cpu { vendor, model, flags, ..Cpu::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_are_understood() {
        let x86 = ["vendor_id\t: GenuineIntel", "model name\t: Intel(R) Xeon(R): 4", "flags\t\t: sse2 avx fpu avx"];
        let cpu = parse(&x86.map(str::to_owned));
        assert_eq!((cpu.vendor.as_str(), cpu.model.as_str()), ("GenuineIntel", "Intel(R) Xeon(R): 4"));
        assert_eq!(cpu.flags, ["avx", "fpu", "sse2"]);

        let arm = ["Features\t: fp asimd", "CPU implementer\t: 0x41", "CPU part\t: 0xd0c"];
        let cpu = parse(&arm.map(str::to_owned));
        assert_eq!((cpu.vendor.as_str(), cpu.flags.len()), ("0x41", 2));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn this_processor_has_the_baseline() {
        let cpu = Cpu::read().expect("cpuinfo is readable");
        assert!(cpu.flags.binary_search(&"sse2".to_owned()).is_ok());
        assert!(cpu.xsave_bytes >= 512, "{}", cpu.xsave_bytes);
        assert_ne!(cpu.cpuid.first(), Some(&0));
    }
}
