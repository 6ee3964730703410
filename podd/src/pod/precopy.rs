//! Memory goes ahead while the pod runs: pass after pass over what was written since the last, as long as that gets less. A pass over
//! much takes several rounds, of which the target loads one while it gets the next.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::memory::{Backend, Piece, Round, Tracker};
use tokio::sync::mpsc;

use super::migrate::Run;
use super::state::PodRecord;
use crate::api::{ApiError, MemoryMode};
use crate::error::{Attempt, Result};
use crate::peer::Message;

/// A pass of less than this is followed by the freeze, in bytes: the dump takes that along in some milliseconds.
const SETTLED: u64 = 1 << 20;
/// A pass of so much is loaded by the target while CRIU dumps the pod, in bytes.
const LITTLE: u64 = 16 << 20;
/// Time for all processes to stand still while their soft-dirty bits are read.
const STILL_LIMIT: Duration = Duration::from_secs(5);
/// Passes, at most.
const PASSES: u32 = 24;
/// None of these passes begins after so many rounds: a target takes 64, a pass has nine at most, and two may follow.
const ROUNDS: u32 = 36;
/// So many passes in a row that are no smaller than those before are enough, and so many if they are larger than [`LITTLE`]: the host
/// may have been busy.
const IN_VAIN: u32 = 2;
const ALL_IN_VAIN: u32 = 4;
/// The target keeps all passes in memory: together they should be no more than so many times the first one, and no longer.
pub(super) const ROOM: u32 = 3;
/// They may always take this long together.
const TIME: Duration = Duration::from_secs(1);
/// Memory of the target that is left alone, in bytes.
const HEADROOM: u64 = 64 << 20;

/// Why memory does not go ahead.
pub(super) const NOT_TOLD: &str = "this host's kernel does not tell what a pod writes";

/// What has gone ahead. The kernel follows the pod's writes as long as this lives.
#[derive(Debug, Default)]
pub struct Ahead {
    tracker: Option<Tracker>,
    /// Names and sizes of the files that the target has.
    pub files: BTreeMap<String, u64>,
    /// Passes over what was written.
    pub passes: u32,
    /// Rounds in which they went.
    pub rounds: u32,
    /// Bytes of memory.
    pub bytes: u64,
    /// Bytes of the last pass.
    last: u64,
    /// What the target has room for, in bytes.
    room: u64,
    /// What the pod wrote in a second, if that is why no more was sent ahead, in bytes.
    too_fast: Option<u64>,
}

impl Ahead {
    /// How the kernel told what the pod wrote, if anything has gone ahead.
    #[must_use]
    pub fn backend(&self) -> Option<Backend> {
        self.tracker.as_ref().filter(|_| self.rounds > 0).map(Tracker::backend)
    }

    /// Why it went this way, and no more of it ahead.
    #[must_use]
    pub fn why(&self, wanted: MemoryMode) -> String {
        let backend = self.backend().map(Backend::name);
        match (backend, self.too_fast) {
            (Some(backend), Some(written)) => {
                let written = written.div_ceil(1_000_000);
                format!("{backend}; it wrote {written} MB a second, as fast as its memory went over")
            }
            (Some(backend), None) if wanted == MemoryMode::PostCopy && self.is_worth_another() => {
                format!("{backend}; little was left")
            }
            (Some(backend), None) => backend.to_owned(),
            (None, _) if wanted == MemoryMode::StopCopy => "as asked for".to_owned(),
            (None, _) => NOT_TOLD.to_owned(),
        }
    }

    /// Whether one more round right before the freeze makes it shorter: the target loads it while the pod is dumped.
    #[must_use]
    pub fn is_worth_another(&self) -> bool {
        self.rounds > 0 && self.last <= LITTLE.min(self.room)
    }

    /// What the frozen pod's dump must know.
    ///
    /// # Errors
    /// I/O errors.
    pub fn before_dump(&self, images: &Path) -> std::io::Result<()> {
        self.tracker.as_ref().map_or(Ok(()), |tracker| tracker.forget_the_dead(images))
    }
}

impl Run<'_> {
    /// Sends rounds of the pod's memory until little is left, or it gets no less; nothing if this host cannot tell what is
    /// written.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn send_memory_ahead(&mut self, record: &PodRecord, images: &Path) -> Result<Ahead> {
        let Some(backend) = self.daemon.follows_writes().filter(|_| self.mode != MemoryMode::StopCopy) else {
            return Ok(Ahead::default());
        };
        let mut ahead = Ahead { tracker: Some(Tracker::new(backend)), ..Ahead::default() };
        let begun = Instant::now();
        let mut before = (begun, Duration::MAX);
        let mut most = (u64::MAX, Duration::MAX);
        let (mut least, mut in_vain) = (u64::MAX, 0);
        while ahead.passes < PASSES && ahead.rounds < ROUNDS {
            self.send_pass(&mut ahead, record, images).await?;
            let (bytes, took) = (ahead.last, begun.elapsed());
            tracing::debug!(pod = record.spec.name, ahead.passes, ahead.rounds, bytes, ?took, "memory ahead");
            if ahead.passes == 1 {
                // Beside the rounds, the target has the pod's memory itself.
                let free = self.room.images.min(self.room.memory.saturating_sub(bytes)).saturating_sub(HEADROOM);
                most = (bytes.saturating_mul(ROOM.into()).min(free), (took * ROOM).max(TIME));
            }
            // What is written during a pass is the next one: where they get no smaller, the pod writes as fast as we copy. (One
            // alone may have been held up.)
            let shrinks = bytes < least / 5 * 4;
            in_vain = if shrinks { 0 } else { in_vain + 1 };
            least = least.min(bytes);
            ahead.room = most.0.saturating_sub(ahead.bytes);
            // It was written while the pass before went over.
            let written = (bytes as f64 / before.1.as_secs_f64()) as u64;
            let enough = if bytes > LITTLE { ALL_IN_VAIN } else { IN_VAIN };
            ahead.too_fast = Some(written).filter(|_| in_vain >= IN_VAIN && bytes > LITTLE);
            before = (Instant::now(), before.0.elapsed());
            if bytes < SETTLED || in_vain >= enough || bytes > ahead.room || took > most.1 {
                break;
            }
        }
        Ok(ahead)
    }

    /// Sends all that was written since the last pass, or what is left of it. A dump must not begin in the middle: what was found
    /// counts as unwritten from then on.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn send_pass(&mut self, ahead: &mut Ahead, record: &PodRecord, images: &Path) -> Result<()> {
        let mut bytes = 0;
        loop {
            let round = self.send_unanswered(ahead, record, images).await?;
            self.stored().await?;
            bytes += round.bytes;
            if round.left == 0 {
                ahead.last = bytes;
                return Ok(());
            }
        }
    }

    pub(super) async fn send_unanswered(
        &mut self,
        ahead: &mut Ahead,
        record: &PodRecord,
        images: &Path,
    ) -> Result<Round> {
        let (queue, mut pieces) = mpsc::channel::<Piece>(8);
        let (cgroup, images) = (self.daemon.cgroup(&record.id), images.to_owned());
        let mut tracker = ahead.tracker.take().ok_or_else(|| ApiError::failed("an earlier round failed"))?;
        let copying = tokio::task::spawn_blocking(move || {
            tracker.arm(&cgroup.pids());
            let still = |still| if still { cgroup.freeze(STILL_LIMIT) } else { cgroup.thaw() };
            let round = tracker.round(&images, &still, &mut |piece| {
                queue.blocking_send(piece).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
            });
            (tracker, round)
        });
        while let Some(Piece { name, offset, data }) = pieces.recv().await {
            self.peer.queue_chunk(&name, offset, &data).await?;
            ahead.files.insert(name, offset + data.len() as u64);
            self.say("memory", ahead.bytes + offset, 0);
        }
        let (tracker, round) = copying.await.attempt("copy the pod's memory")?;
        ahead.tracker = Some(tracker);
        let round = round.attempt("copy the pod's memory")?;
        self.peer.queue(&Message::Round { number: round.number }).await?;
        ahead.rounds = round.number;
        ahead.passes += u32::from(round.left == 0);
        ahead.bytes += round.bytes;
        ahead.last = round.bytes;
        ahead.room = ahead.room.saturating_sub(round.bytes);
        Ok(round)
    }
}
