//! Looking at a pod: `inspect`, `stats`, `top`.

use std::fs;

use jiff::Timestamp;

use super::journal::Migration;
use super::state::PodState;
use crate::api::{MigrationView, PodDetail, PodStats, ProcessView};
use crate::error::{Attempt, Result};
use crate::supervisor::{Daemon, Pod};
use crate::sys::network;

/// Everything about a pod.
///
/// # Errors
/// The store's.
pub fn inspect(daemon: &Daemon, pod: &Pod) -> Result<PodDetail> {
    let record = pod.record();
    let moves = daemon.store.migrations()?;
    Ok(PodDetail {
        view: daemon.view(pod),
        pid: match record.state {
            PodState::Running { init, .. } => Some(init.pid),
            _ => None,
        },
        writable_layer: daemon.config.pod_state(&record.id).join("upper").display().to_string(),
        migrations: moves.iter().filter(|m| m.pod_id == record.id).map(|m| move_view(daemon, m)).collect(),
        relies_on: record.relies_on,
        spec: record.spec,
        layers: record.layers,
        id_base: record.id_base,
    })
}

/// What is shown of a move.
#[must_use]
pub fn move_view(daemon: &Daemon, migration: &Migration) -> MigrationView {
    let (from, to) = migration.between(&daemon.config.host);
    MigrationView {
        id: migration.id.clone(),
        pod: migration.pod.clone(),
        from,
        to,
        step: migration.step.word().to_owned(),
        rehearsal: migration.rehearsal,
        started: migration.started,
        blackout_ms: migration.report.as_ref().map(|r| r.blackout_ms),
        total_ms: migration.report.as_ref().map(|r| r.total_ms),
        predicted: migration.report.as_ref().and_then(|r| r.predicted).map(|p| p.expected),
        error: migration.error.clone(),
    }
}

/// A pod's counters.
#[must_use]
pub fn stats(daemon: &Daemon, pod: &Pod) -> PodStats {
    let record = pod.record();
    let usage = daemon.cgroup(&record.id).usage();
    // The outer end's sent bytes are the pod's received ones.
    let link = network::outer_name(&record.id);
    let counter = |name: &str| {
        fs::read_to_string(format!("/sys/class/net/{link}/statistics/{name}")).ok().and_then(|t| t.trim().parse().ok())
    };
    PodStats {
        name: record.spec.name,
        cpu_usec: usage.cpu_usec,
        memory: usage.memory,
        memory_limit: record.spec.limits.memory,
        pids: usage.pids,
        rx_bytes: counter("tx_bytes").unwrap_or(0),
        tx_bytes: counter("rx_bytes").unwrap_or(0),
        time: Timestamp::now(),
    }
}

/// A pod's processes, by PID inside.
///
/// # Errors
/// `/proc` cannot be read.
pub fn top(daemon: &Daemon, pod: &Pod) -> Result<Vec<ProcessView>> {
    let record = pod.record();
    let ticks = 1_000_000 / procfs::ticks_per_second();
    let mut processes = Vec::new();
    for host_pid in daemon.cgroup(&record.id).pids() {
        // One that ended meanwhile is left out.
        let Ok(process) = procfs::process::Process::new(host_pid) else { continue };
        let (Ok(stat), Ok(status)) = (process.stat(), process.status()) else { continue };
        let inside = |list: &Option<Vec<i32>>| list.as_ref().and_then(|l| l.last().copied());
        let parent = procfs::process::Process::new(stat.ppid).and_then(|p| p.status()).ok();
        let command = process.cmdline().unwrap_or_default().join(" ");
        let pid = inside(&status.nspid).unwrap_or(host_pid);
        processes.push(ProcessView {
            pid,
            host_pid,
            ppid: if pid == 1 { 0 } else { parent.and_then(|p| inside(&p.nspid)).unwrap_or(0) },
            uid: status.ruid.wrapping_sub(record.id_base),
            state: stat.state.to_string(),
            rss: stat.rss * procfs::page_size(),
            threads: u64::try_from(stat.num_threads).unwrap_or(1),
            cpu_usec: (stat.utime + stat.stime) * ticks,
            command: if command.is_empty() { format!("[{}]", stat.comm) } else { command },
        });
    }
    processes.sort_by_key(|p| p.pid);
    Ok(processes)
}

/// Every move that this host's journal knows.
///
/// # Errors
/// The store's.
pub fn moves(daemon: &Daemon) -> Result<Vec<MigrationView>> {
    let moves = daemon.store.migrations().attempt("read the journal")?;
    Ok(moves.iter().map(|m| move_view(daemon, m)).collect())
}
