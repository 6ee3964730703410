//! How long a move will take, said before it: a model of what happens in a move, corrected by how far earlier moves between the
//! same hosts were off it. Pure, but for [`look_at`].

use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use checkpoint::memory::{Activity, Tracker};

use super::journal::{Migration, Role};
use super::precopy::ROOM;
use super::state::PodRecord;
use crate::api::{MemoryMode, POST_COPY, Prediction, Times};
use crate::error::Result;
use crate::supervisor::Daemon;

/// How long a pod is looked at. Each page that it writes to meanwhile costs it one short fault.
const LOOK: Duration = Duration::from_millis(100);
/// As many of the last moves correct the model; so many of the same pod are enough.
const PAST: usize = 9;
const ENOUGH: usize = 3;
/// More is no matter of speed.
const CORRECTION: RangeInclusive<f64> = 0.1..=50.0;
const GB: f64 = 1e9;

/// What the time of a move depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// How slow this host is, the model's being 1.
    pub pace: f64,
    /// Processes.
    pub processes: usize,
    /// Memory that goes ahead.
    pub ahead: Activity,
    /// Of all memory, what lies in huge pages, in bytes: their page tables are short.
    pub huge: u64,
    /// Memory that goes with the dump, in bytes.
    pub left: u64,
    /// Files to be sent, in bytes.
    pub files: u64,
    /// What it writes last goes when it runs there (post-copy).
    pub later: bool,
}

/// What a move of this pod to `host` will take, if so many bytes of files go along.
///
/// # Errors
/// The store's.
pub fn expected(daemon: &Daemon, record: &PodRecord, host: &str, files: u64) -> Result<Prediction> {
    expected_by(daemon, record, host, files, MemoryMode::Auto)
}

/// The same if its memory goes this way.
///
/// # Errors
/// The store's.
pub fn expected_by(
    daemon: &Daemon,
    record: &PodRecord,
    host: &str,
    files: u64,
    mode: MemoryMode,
) -> Result<Prediction> {
    let mut facts = tokio::task::block_in_place(|| look_at(daemon, record, files));
    facts.later = mode == MemoryMode::PostCopy;
    if mode == MemoryMode::StopCopy {
        facts.left += std::mem::take(&mut facts.ahead).bytes;
    }
    let all = daemon.store.migrations()?;
    let way = |m: &Migration| m.report.as_ref().is_some_and(|report| (report.mode == POST_COPY) == facts.later);
    let all: Vec<&Migration> =
        all.iter().rev().filter(|m| m.role == Role::Source && m.peer == host && way(m)).collect();
    // Of the same pod, if there are some.
    let (own, others): (Vec<&Migration>, Vec<&Migration>) = all.into_iter().partition(|m| m.pod_id == record.id);
    let past = if own.len() < ENOUGH { own.into_iter().chain(others).collect() } else { own };
    Ok(predict(&facts, past.into_iter().filter_map(off)))
}

/// What the model said of a move, and what it took.
fn off(migration: &Migration) -> Option<(Times, Times)> {
    let report = migration.report.as_ref()?;
    Some((report.predicted.as_ref()?.model, report.took()))
}

fn look_at(daemon: &Daemon, record: &PodRecord, files: u64) -> Facts {
    let pids = daemon.cgroup(&record.id).pids();
    // Not while a move follows it: what it has written would be news to us only.
    let free = daemon.pod(&record.id).ok().and_then(|pod| pod.try_follow());
    let backend = daemon.follows_writes().filter(|_| free.is_some());
    let ahead = backend.map(|backend| Tracker::look_on(backend, &pids, LOOK)).unwrap_or_default();
    let resident = memory(&pids);
    let huge = pids.iter().filter_map(|pid| huge(*pid)).sum();
    let left = resident.saturating_sub(ahead.bytes);
    Facts { pace: pace(), processes: pids.len(), ahead, huge, left, files, later: false }
}

/// How slow this host is at what moves consist of, many small system calls. Looked at once, in some 10 ms: what it is from moment to
/// moment says little of the next one.
fn pace() -> f64 {
    static PACE: OnceLock<f64> = OnceLock::new();
    /// The least time that a turn takes on the model's host.
    const TURN: Duration = Duration::from_micros(630);
    const CALLS: u32 = 100;
    const TURNS: u32 = 12;
    *PACE.get_or_init(|| {
        let turn = |_| {
            let begun = Instant::now();
            (0..CALLS).for_each(|_| drop(std::fs::read("/proc/self/limits")));
            begun.elapsed()
        };
        let least = (0..TURNS).map(turn).min().unwrap_or(TURN);
        (least.as_secs_f64() / TURN.as_secs_f64()).clamp(0.2, 100.0)
    })
}

/// Memory of these processes that no file has, in bytes; what they share counts for each.
pub fn memory(pids: &[i32]) -> u64 {
    pids.iter().filter_map(|pid| resident(*pid)).sum()
}

/// Memory of a process that no file has, in bytes.
fn resident(pid: i32) -> Option<u64> {
    let status = procfs::process::Process::new(pid).ok()?.status().ok()?;
    Some((status.rssanon? + status.rssshmem?) * 1024)
}

/// Memory of a process in huge pages, in bytes.
fn huge(pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kilobytes = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")?.trim().strip_suffix(" kB"))?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

/// The model, and the median correction by moves of the past: what it said of each, and what that took; the latest first.
fn predict(facts: &Facts, past: impl Iterator<Item = (Times, Times)>) -> Prediction {
    let model = model(facts);
    let past: Vec<(Times, Times)> = past.take(PAST).collect();
    let correct = |of: fn(&Times) -> f64| {
        let mut ratios: Vec<f64> = past.iter().map(|(model, took)| of(took) / of(model)).collect();
        ratios.retain(|ratio| CORRECTION.contains(ratio));
        ratios.sort_by(f64::total_cmp);
        of(&model) * ratios.get(ratios.len() / 2).unwrap_or(&1.0)
    };
    let expected = Times { blackout_ms: correct(|t| t.blackout_ms), total_ms: correct(|t| t.total_ms) };
    Prediction { expected, model }
}

/// Measured on two cores, between two hosts on one machine: where the target or a link is slower or faster, corrections say so.
fn model(facts: &Facts) -> Times {
    /// Bytes a second over TLS into the target's memory.
    const SENT: f64 = 0.3 * GB;
    let sent = SENT / facts.pace;
    let (memory, left, files) = (facts.ahead.bytes as f64, facts.left as f64, facts.files as f64);
    // Namespaces, mounts, descriptors; each process; page tables; what is dumped, sent and read while the pod stands still.
    // The last round takes some 50 ms, however small it is.
    let last = facts.ahead.written_per_s as f64 * 0.05;
    let late = if facts.later { left } else { left + last };
    let small = (memory - facts.huge as f64).max(0.0);
    let tables = 3.0 * memory / GB + 8.0 * small / GB;
    let blackout_ms = (14.0 + 5.0 * facts.processes as f64 + tables) * facts.pace + 1000.0 * late / (2.0 * sent);
    // Each round sends what was written during the one before; all of them together no more than this.
    let again = (facts.ahead.written_per_s as f64 / sent).min(0.9);
    let rounds = (1.0 / (1.0 - again)).min(f64::from(ROOM));
    let total_ms = 200.0 + 100.0 * facts.pace + 1000.0 * (memory * rounds + files) / sent + blackout_ms;
    Times { blackout_ms, total_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(memory: u64, written_per_s: u64, left: u64) -> Facts {
        let ahead = Activity { bytes: memory, written_per_s };
        Facts { pace: 1.0, processes: 2, ahead, huge: 0, left, files: 0, later: false }
    }

    #[test]
    fn more_to_do_takes_longer() {
        let small = model(&facts(10 << 20, 0, 0));
        for more in [facts(1 << 30, 0, 0), facts(10 << 20, 100 << 20, 0), facts(10 << 20, 0, 50 << 20)] {
            let more = model(&more);
            assert!(more.blackout_ms > small.blackout_ms && more.total_ms > small.total_ms, "{more:?} {small:?}");
        }
        let slow = model(&Facts { pace: 3.0, ..facts(10 << 20, 0, 0) });
        assert!(slow.blackout_ms > 2.0 * small.blackout_ms && slow.total_ms > small.total_ms, "{slow:?} {small:?}");
        assert!(pace() > 0.0);
        // What it writes last is not waited for.
        let writes = facts(10 << 20, 100 << 20, 0);
        let later = Facts { later: true, ..facts(10 << 20, 100 << 20, 0) };
        assert!(model(&later).blackout_ms < model(&writes).blackout_ms);
        // However fast it writes, this comes to an end.
        assert!(model(&facts(1 << 30, u64::MAX, 0)).total_ms.is_finite());
    }

    #[test]
    fn the_past_corrects_it() {
        let facts = facts(100 << 20, 0, 0);
        let model = model(&facts);
        assert_eq!(predict(&facts, std::iter::empty()).expected, model);
        let took = |blackout: f64, total: f64| {
            let took = Times { blackout_ms: model.blackout_ms * blackout, total_ms: model.total_ms * total };
            (model, took)
        };
        // The median: one move that hung for a minute does not count, nor does one that was not measured.
        let past = [took(2.0, 3.0), took(2.0, 3.0), took(40.0, 3.0), took(2.0, 30.0), took(0.0, 0.0)];
        let Prediction { expected, .. } = predict(&facts, past.into_iter());
        assert!((expected.blackout_ms / model.blackout_ms - 2.0).abs() < 1e-9, "{expected:?}");
        assert!((expected.total_ms / model.total_ms - 3.0).abs() < 1e-9, "{expected:?}");
    }
}
