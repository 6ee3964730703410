//! Resource limits of a process.

use procfs::process::{Limit, LimitValue, Limits};
use serde::{Deserialize, Serialize};

/// A resource limit of a process; none: unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// In force.
    pub soft: Option<u64>,
    /// Ceiling.
    pub hard: Option<u64>,
}

/// What can be limited (getrlimit(2)), in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// RLIMIT_CPU, seconds.
    Cpu,
    /// RLIMIT_FSIZE, bytes.
    FileSize,
    /// RLIMIT_DATA, bytes.
    Data,
    /// RLIMIT_STACK, bytes.
    Stack,
    /// RLIMIT_CORE, bytes.
    Core,
    /// RLIMIT_RSS, bytes.
    Resident,
    /// RLIMIT_NPROC.
    Processes,
    /// RLIMIT_NOFILE.
    OpenFiles,
    /// RLIMIT_MEMLOCK, bytes.
    Locked,
    /// RLIMIT_AS, bytes.
    AddressSpace,
    /// RLIMIT_LOCKS.
    Locks,
    /// RLIMIT_SIGPENDING.
    Signals,
    /// RLIMIT_MSGQUEUE, bytes.
    MessageQueues,
    /// RLIMIT_NICE.
    Nice,
    /// RLIMIT_RTPRIO.
    RealtimePriority,
    /// RLIMIT_RTTIME, microseconds.
    RealtimeTime,
}

impl Resource {
    /// As setrlimit(2) names it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Cpu => "RLIMIT_CPU",
            Resource::FileSize => "RLIMIT_FSIZE",
            Resource::Data => "RLIMIT_DATA",
            Resource::Stack => "RLIMIT_STACK",
            Resource::Core => "RLIMIT_CORE",
            Resource::Resident => "RLIMIT_RSS",
            Resource::Processes => "RLIMIT_NPROC",
            Resource::OpenFiles => "RLIMIT_NOFILE",
            Resource::Locked => "RLIMIT_MEMLOCK",
            Resource::AddressSpace => "RLIMIT_AS",
            Resource::Locks => "RLIMIT_LOCKS",
            Resource::Signals => "RLIMIT_SIGPENDING",
            Resource::MessageQueues => "RLIMIT_MSGQUEUE",
            Resource::Nice => "RLIMIT_NICE",
            Resource::RealtimePriority => "RLIMIT_RTPRIO",
            Resource::RealtimeTime => "RLIMIT_RTTIME",
        }
    }
}

impl Rlimit {
    pub(crate) fn all(limits: &Limits) -> Vec<Rlimit> {
        [
            (Resource::Cpu, limits.max_cpu_time),
            (Resource::FileSize, limits.max_file_size),
            (Resource::Data, limits.max_data_size),
            (Resource::Stack, limits.max_stack_size),
            (Resource::Core, limits.max_core_file_size),
            (Resource::Resident, limits.max_resident_set),
            (Resource::Processes, limits.max_processes),
            (Resource::OpenFiles, limits.max_open_files),
            (Resource::Locked, limits.max_locked_memory),
            (Resource::AddressSpace, limits.max_address_space),
            (Resource::Locks, limits.max_file_locks),
            (Resource::Signals, limits.max_pending_signals),
            (Resource::MessageQueues, limits.max_msgqueue_size),
            (Resource::Nice, limits.max_nice_priority),
            (Resource::RealtimePriority, limits.max_realtime_priority),
            (Resource::RealtimeTime, limits.max_realtime_timeout),
        ]
        .into_iter()
        .map(|(resource, Limit { soft_limit, hard_limit })| Rlimit {
            resource,
            soft: value(soft_limit),
            hard: value(hard_limit),
        })
        .collect()
    }
}

fn value(limit: LimitValue) -> Option<u64> {
    match limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(n) => Some(n),
    }
}
