//! What a host is and has, read in a few milliseconds and without child processes.
//!
//! Facts travel to other hosts (bincode), so no `flatten`, `untagged` or `skip_serializing_if` here.
//! This module does not judge: [`crate::compat`] does.

mod cgroup;
mod cpu;
mod kernel;
mod storage;
pub mod sys;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;
use procfs::{Current, Meminfo};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use cgroup::{CgroupLayout, Cgroups};
pub use cpu::Cpu;
pub use kernel::{Kernel, Sysctls};
pub use storage::{ImageSpace, StateDir};
pub(crate) use sys::has_soft_dirty_bits;

use crate::process::Rlimit;

/// Facts of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Changes at every boot.
    pub boot_id: String,
    /// The running kernel.
    pub kernel: Kernel,
    /// The processor.
    pub cpu: Cpu,
    /// Kernel limits.
    pub sysctls: Sysctls,
    /// Names in /proc/self/ns, such as `time`.
    pub namespaces: Vec<String>,
    /// The daemon holds CAP_SYS_RESOURCE in its effective set.
    pub cap_sys_resource: bool,
    /// Resource limits of the daemon; what it starts inherits them.
    pub rlimits: Vec<Rlimit>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Memory.
    pub memory: Memory,
    /// The daemon's durable directory.
    pub state_dir: StateDir,
    /// Where images in flight are put.
    pub image_space: ImageSpace,
    /// /run is tmpfs, so that what CRIU caches there about the kernel is gone with the kernel.
    pub run_is_tmpfs: bool,
    /// The wall clock.
    pub clock: Clock,
    /// CRIU; none: not found. Filled in by the caller.
    pub criu: Option<CriuFacts>,
    /// Names of the pods on this host. Filled in by the caller.
    pub pods: Vec<String>,
    /// Pod addresses in use here, with or without prefix length. Filled in by the caller.
    pub addresses: Vec<String>,
    /// Uid ranges in use here. Filled in by the caller.
    pub uid_ranges: Vec<UidRange>,
}

/// Memory of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All of it, in bytes.
    pub total: u64,
    /// What new programs can have without swapping, in bytes.
    pub available: u64,
    /// Free huge pages: bytes by page size in bytes.
    pub huge_free: BTreeMap<u64, u64>,
}

/// The wall clock of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Microseconds since 1970 when the facts were read.
    pub unix_us: i64,
    /// The kernel holds it to be synchronised (adjtimex without STA_UNSYNC).
    pub synchronised: bool,
}

/// CRIU on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriuFacts {
    /// Its program file.
    pub path: PathBuf,
    /// What it says of itself; none: it does not run.
    pub version: Option<String>,
    /// Whether a real process with a TCP connection came back; none: not tried since boot.
    pub round_trip: Option<Result<(), String>>,
}

/// Host uids (and gids) that belong to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Why a host's facts could not be read.
#[derive(Debug, Error)]
pub enum HostError {
    /// A file or directory.
    #[error("cannot read {path}: {source}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file in /proc that procfs parses.
    #[error("cannot read /proc: {0}")]
    Proc(#[from] procfs::ProcError),
    /// A value that makes no sense.
    #[error("{path} holds {text:?}, which is not {expected}")]
    Parse {
        /// Where it was read.
        path: PathBuf,
        /// What it was.
        text: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A system call.
    #[error("{call} failed: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Bit of CAP_SYS_RESOURCE in capability sets.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

impl HostFacts {
    /// Reads the facts of this host in a few milliseconds. `state_dir` and `flight_dir` must exist; the first time, a probe
    /// directory is made in `state_dir` and removed. CRIU, pods, addresses, uid ranges and `state_dir.idmapped` are left for the caller.
    ///
    /// # Errors
    /// [`HostError`] names the file or call that failed.
    pub fn read(state_dir: &Path, flight_dir: &Path) -> Result<HostFacts, HostError> {
        let me = Process::myself()?;
        Ok(HostFacts {
            boot_id: text("/proc/sys/kernel/random/boot_id")?,
            kernel: Kernel::read(),
            cpu: Cpu::read()?,
            sysctls: Sysctls::read()?,
            namespaces: namespaces()?,
            cap_sys_resource: me.status()?.capeff & CAP_SYS_RESOURCE != 0,
            rlimits: Rlimit::all(&me.limits()?),
            cgroups: Cgroups::read(&me.mountinfo()?.0)?,
            memory: memory()?,
            state_dir: StateDir::read(state_dir)?,
            image_space: ImageSpace::read(flight_dir)?,
            run_is_tmpfs: storage::is_tmpfs(Path::new("/run"))?,
            clock: sys::clock()?,
            criu: None,
            pods: Vec::new(),
            addresses: Vec::new(),
            uid_ranges: Vec::new(),
        })
    }

    /// The daemon's limit of the resource, if it is known.
    pub fn rlimit(&self, resource: crate::process::Resource) -> Option<&Rlimit> {
        self.rlimits.iter().find(|l| l.resource == resource)
    }
}

fn namespaces() -> Result<Vec<String>, HostError> {
    let path = Path::new("/proc/self/ns");
    let failed = |source| HostError::Read { path: path.into(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn memory() -> Result<Memory, HostError> {
    let info = Meminfo::current()?;
    Ok(Memory { total: info.mem_total, available: info.mem_available.unwrap_or(info.mem_free), huge_free: huge_free() })
}

/// Empty where the kernel has no huge pages.
fn huge_free() -> BTreeMap<u64, u64> {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return BTreeMap::new();
    };
    let mut free = BTreeMap::new();
    for entry in sizes.flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let pages = text(entry.path().join("free_hugepages")).ok().and_then(|t| t.parse::<u64>().ok());
        if let (Some(size), Some(pages)) = (size, pages) {
            free.insert(size * 1024, size * 1024 * pages);
        }
    }
    free
}

/// A small file without its last newline.
fn text(path: impl AsRef<Path>) -> Result<String, HostError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| HostError::Read { path: path.into(), source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn facts_of_this_host_are_read_quickly_and_survive_the_wire() {
        let dir = tempfile::tempdir().unwrap();
        let quickest = (0..5)
            .map(|_| {
                let start = Instant::now();
                HostFacts::read(dir.path(), dir.path()).unwrap();
                start.elapsed()
            })
            .min()
            .unwrap();
        assert!(quickest < Duration::from_millis(10), "took {quickest:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe left something behind");

        let facts = HostFacts::read(dir.path(), dir.path()).unwrap();
        assert!(facts.memory.available <= facts.memory.total && facts.memory.total > 1 << 24);
        assert!(facts.namespaces.iter().any(|n| n == "pid"));
        assert!(facts.rlimit(crate::process::Resource::OpenFiles).is_some());
        assert_eq!(facts.boot_id.len(), 36);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
        assert!((now - facts.clock.unix_us).abs() < 5_000_000);

        let bytes = bincode::serde::encode_to_vec(&facts, bincode::config::standard()).unwrap();
        let (back, _): (HostFacts, usize) =
            bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
        assert_eq!(back, facts);
    }

    #[test]
    fn a_missing_state_dir_is_named() {
        let err = HostFacts::read(Path::new("/nonexistent/state"), Path::new("/")).unwrap_err();
        assert!(err.to_string().contains("/nonexistent/state"), "{err}");
    }
}
