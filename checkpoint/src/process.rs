//! What the processes of a pod hold that a checkpoint may not be able to carry.
//!
//! Everything is read from outside, through /proc, pidfds and socket diagnosis, while the pod runs on. This module does not judge:
//! [`crate::compat`] does. Processes that end while they are looked at are left out.

mod descriptor;
mod foreground;
mod memory;
mod namespace;
mod rlimit;
mod socket;
mod timers;
mod vdso;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::{Process, Status};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use descriptor::{Descriptors, FdKind, Ghost};
pub use foreground::Terminals;
pub use memory::{MemoryFacts, shared_writable_files};
pub use rlimit::{Resource, Rlimit};
pub use socket::{OutsidePeer, SocketFacts, UnixFault, unaccepted};
pub use timers::{PodTimer, correct_timers, note as note_timers, timers};
pub use vdso::leave_vdso;
pub(crate) use vdso::vdso;
pub use watch::watched_paths;

use descriptor::{Scan, Terminal};

/// What a process, or a thread, is called inside its pod.
#[must_use]
pub fn pod_pid(pid: i32) -> Option<i32> {
    Process::new(pid).ok()?.status().ok()?.nspid?.last().copied()
}

/// Facts of a pod's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    /// Its processes, init first.
    pub processes: Vec<ProcessFacts>,
    /// Its sockets by kind.
    pub sockets: Vec<SocketFacts>,
    /// Sockets whose kind could not be asked.
    pub unknown_sockets: u64,
    /// Unix sockets that lead out of the pod.
    pub outside_peers: Vec<OutsidePeer>,
    /// Why unix peers could not be asked, if they could not.
    pub peers_unknown: Option<String>,
    /// Deleted files that are still open or mapped.
    pub ghosts: Vec<Ghost>,
    /// Former names of files that are open or mapped and still exist under another name.
    pub unlinked: Vec<PathBuf>,
    /// Terminals whose other end is outside the pod, such as `/dev/pts/3 of bash (pid 17)`.
    pub outside_terminals: Vec<String>,
    /// POSIX message queues of the pod's IPC namespace, as far as the pod has them mounted.
    pub message_queues: Vec<String>,
    /// Bytes in the tmpfs mounts of the pod.
    pub tmpfs_bytes: u64,
}

/// Facts of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// PID as this host sees it.
    pub pid: i32,
    /// PID inside the pod.
    pub pod_pid: i32,
    /// Short name.
    pub comm: String,
    /// Threads, at least 1.
    pub threads: u64,
    /// It ended and waits to be reaped; all else is empty.
    pub zombie: bool,
    /// Open files.
    pub descriptors: Descriptors,
    /// Memory.
    pub memory: MemoryFacts,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Namespaces that are not those of the pod's init, such as `net` or `pid_for_children`.
    pub nested: Vec<String>,
    /// It is no descendant of the pod's init.
    pub joined: bool,
    /// Its session or process group leader is outside the pod's PID namespace.
    pub leader_outside: bool,
    /// PID of the debugger that traces it (0: none).
    pub tracer: i32,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Bytes of the restartable-sequence area that its kernel of birth offered (auxiliary vector); none: none offered (before
    /// 6.3), the C library was told not to use it, or a system call filter hides it.
    pub rseq_bytes: Option<u64>,
}

impl PodFacts {
    /// Bytes of memory that have to be carried: resident, swapped, huge pages, tmpfs.
    pub fn memory_bytes(&self) -> u64 {
        let of_processes = self.processes.iter().map(|p| p.memory.resident + p.memory.huge.values().sum::<u64>());
        of_processes.sum::<u64>() + self.tmpfs_bytes
    }
}

impl std::fmt::Display for ProcessFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.comm, self.pod_pid)
    }
}

/// Why a pod's processes could not be read.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The pod's init does not run.
    #[error("the pod's init (pid {0}) does not run")]
    NoInit(i32),
    /// The list of processes.
    #[error("cannot read {path}: {source}")]
    Procs {
        /// The cgroup.procs file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A process.
    #[error("cannot read {what} of process {pid}: {source}")]
    Read {
        /// The process as this host sees it.
        pid: i32,
        /// What was read.
        what: &'static str,
        /// Why it failed.
        source: procfs::ProcError,
    },
}

impl PodFacts {
    /// Reads the facts of the processes `pids` (as this host sees them) of the pod whose init is `init`.
    ///
    /// Takes a few milliseconds a process, more for many gigabytes (the kernel walks their page tables). The pod need not be frozen.
    ///
    /// # Errors
    /// [`ProcessError::NoInit`] if there is no such init, [`ProcessError::Read`] if the daemon may not look.
    pub fn read(init: i32, pids: &[i32]) -> Result<PodFacts, ProcessError> {
        let gone = |_| ProcessError::NoInit(init);
        let root = Process::new(init).map_err(gone)?;
        let home = namespace::Links::read(&root).map_err(gone)?;
        let order = std::iter::once(init).chain(pids.iter().copied().filter(|p| *p != init));
        let members: BTreeSet<i32> = order.clone().collect();

        let mut pod = PodFacts::default();
        let mut parents = HashMap::new();
        let mut scan = Scan::default();
        for pid in order {
            let Some((facts, parent)) = alive(pid, read_one(pid, &home, &mut scan))? else {
                continue;
            };
            parents.insert(pid, parent);
            pod.processes.push(facts);
        }
        if pod.processes.first().is_none_or(|p| p.pid != init) {
            return Err(ProcessError::NoInit(init));
        }
        for process in &mut pod.processes {
            process.joined = process.pid != init && !descends(process.pid, init, &parents);
        }
        pod.outside_terminals = outside_terminals(&scan.slaves, &scan.masters);
        pod.ghosts = std::mem::take(&mut scan.ghosts).into_values().collect();
        pod.unlinked = std::mem::take(&mut scan.unlinked).into_iter().collect();
        pod.unknown_sockets = scan.sockets.unknown;
        pod.sockets = scan.sockets.kinds();
        match scan.sockets.outside(&root, &members) {
            Ok(peers) => pod.outside_peers = peers,
            Err(e) => pod.peers_unknown = Some(e.to_string()),
        }
        (pod.tmpfs_bytes, pod.message_queues) = memory::mounted(&root);
        Ok(pod)
    }

    /// The same, for the processes listed in a cgroup's `cgroup.procs` file.
    ///
    /// # Errors
    /// As [`PodFacts::read`], and [`ProcessError::Procs`] if the list cannot be read.
    pub fn read_cgroup(init: i32, procs: &Path) -> Result<PodFacts, ProcessError> {
        let list =
            std::fs::read_to_string(procs).map_err(|source| ProcessError::Procs { path: procs.into(), source })?;
        let pids: Vec<i32> = list.lines().filter_map(|l| l.trim().parse().ok()).filter(|p| *p > 0).collect();
        PodFacts::read(init, &pids)
    }
}

/// A process that has ended is none; any other failure is the caller's. Links of one that ends between lookup and reading are
/// "permission denied" (fs/proc/base.c, fs/proc/namespaces.c), as if it lived on.
fn alive<T>(pid: i32, result: Result<T, Failure>) -> Result<Option<T>, ProcessError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure { source, .. }) if ended(&source) || !Path::new(&format!("/proc/{pid}")).exists() => Ok(None),
        Err(Failure { what, source }) => Err(ProcessError::Read { pid, what, source }),
    }
}

fn ended(error: &procfs::ProcError) -> bool {
    let esrch = Some(nix::libc::ESRCH);
    match error {
        procfs::ProcError::NotFound(_) => true,
        procfs::ProcError::Io(e, _) => e.raw_os_error() == esrch || e.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// What failed for one process.
struct Failure {
    what: &'static str,
    source: procfs::ProcError,
}

fn failed(what: &'static str) -> impl Fn(procfs::ProcError) -> Failure {
    move |source| Failure { what, source }
}

/// SECCOMP_MODE_FILTER, in /proc/PID/status (proc_pid_status(5)).
const SECCOMP_FILTER: u32 = 2;

/// The process and its parent.
fn read_one(pid: i32, home: &namespace::Links, scan: &mut Scan) -> Result<(ProcessFacts, i32), Failure> {
    let process = Process::new(pid).map_err(failed("directory"))?;
    let status = process.status().map_err(failed("status"))?;
    let zombie = status.state.starts_with(['Z', 'X']);
    let mut facts = ProcessFacts {
        pid,
        pod_pid: innermost(&status.nspid).unwrap_or(pid),
        comm: status.name.clone(),
        threads: status.threads.max(1),
        zombie,
        leader_outside: leader_outside(&status),
        tracer: status.tracerpid,
        seccomp: status.seccomp.unwrap_or(0),
        ..ProcessFacts::default()
    };
    if !zombie {
        facts.rlimits = Rlimit::all(&process.limits().map_err(failed("limits"))?);
        facts.nested = namespace::Links::read(&process).map_err(failed("namespaces"))?.differing(home);
        facts.memory = memory::read(&process, scan).map_err(failed("memory map"))?;
        facts.descriptors = scan.descriptors(&process, &facts.to_string()).map_err(failed("open files"))?;
        // To a process with podd's filter, the kernel has none (podd's `sys/seccomp`): whatever was offered, it has no area.
        facts.rseq_bytes = rseq_bytes(&process).filter(|_| facts.seccomp != SECCOMP_FILTER);
    }
    Ok((facts, status.ppid))
}

/// In a PID namespace of its own, a leader outside has number 0.
fn leader_outside(status: &Status) -> bool {
    innermost(&status.nssid) == Some(0) || innermost(&status.nspgid) == Some(0)
}

fn innermost(numbers: &Option<Vec<i32>>) -> Option<i32> {
    numbers.as_ref()?.last().copied()
}

/// The auxiliary vector is that of the kernel under which the program was started; CRIU restores it as it was.
fn rseq_bytes(process: &Process) -> Option<u64> {
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    let offered = process.auxv().ok()?.get(&AT_RSEQ_FEATURE_SIZE).copied()?;
    let tunables = process.environ().ok().and_then(|e| e.get(std::ffi::OsStr::new("GLIBC_TUNABLES")).cloned());
    let off = tunables.is_some_and(|t| t.to_string_lossy().split(':').any(|t| t == "glibc.pthread.rseq=0"));
    (!off).then_some(offered)
}

/// Follows parents up to `init`. What leaves the pod's processes on the way was started from outside.
fn descends(pid: i32, init: i32, parents: &HashMap<i32, i32>) -> bool {
    let mut seen = HashSet::new();
    let mut at = pid;
    while seen.insert(at) {
        match parents.get(&at) {
            Some(&parent) if parent == init => return true,
            Some(&parent) => at = parent,
            None => return false,
        }
    }
    false
}

/// A slave is inside if the pod holds its master. `file_system` tells devpts instances apart where the master's node is in one.
fn outside_terminals(slaves: &BTreeMap<Terminal, String>, masters: &BTreeSet<Terminal>) -> Vec<String> {
    let inside = |slave: &Terminal| {
        let same =
            |m: &&Terminal| m.index == slave.index && (m.file_system.is_none() || m.file_system == slave.file_system);
        masters.iter().any(|m| same(&m))
    };
    slaves
        .iter()
        .filter(|(slave, _)| !inside(slave))
        .map(|(slave, holder)| format!("/dev/pts/{} of {holder}", slave.index))
        .collect()
}

#[cfg(test)]
mod holder;
#[cfg(test)]
mod tests;
