//! The source's side of a move: a list of phases, with the handover marked. `journal` says what each step means.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::clocks::Clocks;
use checkpoint::compat::{Finding, Verdict};
use checkpoint::files::{self, Mode, Op, PassReport, Sender, Unverified};
use checkpoint::host::Kernel;
use checkpoint::memory;
use checkpoint::process::{shared_writable_files, timers};
use jiff::Timestamp;
use rand::Rng;
use tokio::sync::{OwnedMutexGuard, SemaphorePermit, mpsc};

use super::checkpoint::save;
use super::elsewhere::refuse_unless_nowhere;
use super::freeze::{Dumper, Flight, Frozen, NextKernel, freeze, hold, milliseconds, thaw};
use super::journal::{Migration, Role, Step};
use super::postcopy;
use super::precopy::{Ahead, NOT_TOLD};
use super::predict;
use super::preflight::{TargetFacts, refuse_unless_go, towards};
use super::start::ensure_shim;
use super::state::{PodRecord, PodState};
use super::stop::{delete, not_running};
use crate::api::{
    ApiError, Bytes, HealthState, MemoryMode, MigrateReport, POST_COPY, Phases, Prediction, Progress, Times,
};
use crate::error::{Attempt, Result};
use crate::patch::cordon::Cordon;
use crate::patch::run::orders;
use crate::peer::{Message, Peer, unexpected};
use crate::supervisor::{Claim, Daemon};
use crate::sys::hold::Hold;
use crate::sys::network::neighbours;
use crate::trust::Protocol;

/// A pod goes on within this once somebody has said so: its podd asks the other host now and then.
const FORSAKEN_LIMIT: Duration = Duration::from_secs(60);
/// Data goes in pieces of this size: as large as a frame may be.
const PIECE: usize = 1 << 20;
/// Other pods that stand still are waited for so long.
const TURN: Duration = Duration::from_secs(5);
/// Live passes over the writable layer before the freeze, at most.
const LIVE_PASSES: u32 = 4;
/// A live pass that sends less than this is followed by the freeze, in bytes.
const SETTLED: u64 = 1 << 20;

/// Tells whoever asked for the move how far it is; nobody may be listening any more.
pub type Tell = mpsc::UnboundedSender<Progress>;

/// What is asked of a move.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Target host.
    pub to: &'a str,
    /// Who wants it.
    pub by: &'a str,
    /// How its memory goes.
    pub mode: MemoryMode,
}

/// The right to move a pod away: of many that shall leave, a few go at a time.
pub type Turn<'a> = SemaphorePermit<'a>;

/// Asks a host about a pod, and judges.
///
/// # Errors
/// The host does not answer, or the pod does not run.
pub async fn preflight(daemon: &Daemon, record: &PodRecord, to: &str) -> Result<Vec<Finding>> {
    let target = target_facts(&mut Peer::call(daemon, to).await?, record).await?;
    let (mut findings, files) = tokio::task::block_in_place(|| towards(daemon, record, &target))?;
    let Times { blackout_ms, total_ms } = predict::expected(daemon, record, to, files)?.expected;
    // A podd that does not know the question hangs up, and knows no cordons.
    if let Ok(Some(cordon)) = orders::call_host::<Option<Cordon>>(daemon, to, &orders::Call::Cordoned).await {
        findings.push(Finding {
            rule: "cordon".into(),
            verdict: Verdict::No,
            fact: format!("{to} {}", cordon.in_words()),
            cure: Some("choose another host, or wait until it takes pods again".into()),
        });
    }
    findings.extend(record.quarantine());
    findings.push(Finding {
        rule: "prediction".into(),
        verdict: Verdict::Go,
        fact: format!("about {blackout_ms:.0} ms of blackout, {:.1} s in all", total_ms / 1000.0),
        cure: None,
    });
    Ok(findings)
}

async fn target_facts(peer: &mut Peer, record: &PodRecord) -> Result<TargetFacts> {
    let question = Message::AskFacts {
        volumes: record.spec.volumes.iter().map(|v| v.host.display().to_string()).collect(),
        layers: record.layers.clone(),
    };
    match peer.ask(&question).await? {
        Message::Facts(facts) => Ok(*facts),
        other => Err(unexpected(&other)),
    }
}

/// Waits for the right to move a pod away. Before the right to change the pod is taken: until its turn has come, it is anybody's.
///
/// # Errors
/// podd ends.
pub async fn turn<'a>(daemon: &'a Daemon, tell: &Tell) -> Result<Turn<'a>> {
    if daemon.moves.available_permits() == 0 {
        let phase = "waiting for other moves".to_owned();
        let _ = tell.send(Progress { phase, done: 0, total: 0, expected: None });
    }
    daemon.moves.acquire().await.attempt("wait for other moves")
}

/// Moves a pod to another host.
///
/// # Errors
/// A refusal before anything was done, or what failed; the pod then runs on here. Once the pod has been given away,
/// this waits for the target's answer however long it takes.
pub async fn migrate(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    turn: Turn<'_>,
    wish: Wish<'_>,
    tell: &Tell,
) -> Result<MigrateReport> {
    let (record, to) = (claim.record(), wish.to);
    let (mut run, mut migration) = Run::begin(daemon, claim, wish, false, tell).await?;
    let mut ready = run.until_sent(&record, &mut migration).await;
    if ready.is_ok() {
        ready = run.restore(&record).await;
    }
    if let Err(error) = ready {
        let error = abort(daemon, &record, &mut migration, error, run.hold());
        if let Err(e) = run.note_failure(claim) {
            tracing::warn!(
                pod = record.spec.name,
                to,
                error = e.message,
                "that it could not be restored there is not noted"
            );
        }
        return Err(error);
    }

    // ======== THE HANDOVER ========
    // Above this line every failure ends in `abort`: the pod runs on here. Once the record below is on disk, the pod
    // belongs to the target, and this host never thaws it by itself again.
    let given = PodRecord { state: PodState::Given { migration: migration.id.clone() }, ..record.clone() };
    migration.step = Step::Given;
    if let Err(e) = daemon.journal(&migration, Some(&given)) {
        // The write may or may not have reached the disk. The store says which; if it cannot, we stay frozen.
        let on_disk = daemon.store.migration(&migration.id)?;
        if on_disk.is_some_and(|m| m.step != Step::Given) {
            migration.step = Step::Freezing;
            return Err(abort(daemon, &record, &mut migration, e.into(), run.hold.as_ref()));
        }
    }
    claim.publish(given);
    // From here on it is the target's: however long that takes to answer, others need not wait.
    drop(turn);
    run.say("handover", 0, 0);
    let Run { begun, predicted, phases, bytes, rounds, watch, peer, hold, flight: _flight, ahead, turn, .. } = run;
    let mode = match ahead.rounds {
        _ if bytes.later > 0 => POST_COPY,
        0 => "stop-copy",
        _ => "pre-copy",
    };
    let why = ahead.why(wish.mode);
    let tracker = ahead.backend().map(|backend| backend.name().to_owned());
    let (sent, packed) = (peer.sent, peer.packed);
    let concluded = conclude(daemon, claim, &mut migration, Some(peer), hold, |m| {
        drop(turn);
        let report = MigrateReport {
            pod: record.spec.name.clone(),
            from: daemon.config.host.clone(),
            to: to.to_owned(),
            mode: mode.into(),
            why,
            tracker,
            blackout_ms: watch.total(),
            total_ms: milliseconds(begun),
            resident_ms: None,
            predicted: Some(predicted),
            phases: Phases { announce_ms: watch.clone().lap(), ..phases.clone() },
            bytes: Bytes { wire: sent, packed, ..bytes.clone() },
            rounds,
        };
        if report.bytes.later > 0 {
            let _ = tell.send(Progress { phase: "fetch".into(), done: 0, total: 0, expected: None });
        }
        m.report = Some(report);
    })
    .await;
    concluded?;
    migration.report.ok_or_else(|| ApiError::failed("the move was concluded without a report"))
}

/// Undoes a move that has not been handed over; the error says why, and what has become of the pod.
fn abort(
    daemon: &Daemon,
    record: &PodRecord,
    migration: &mut Migration,
    error: ApiError,
    hold: Option<&Hold>,
) -> ApiError {
    match call_off(daemon, record, migration, Some(error.message.clone()), hold) {
        Ok(()) => ApiError { message: format!("{}; {} runs on here", error.message, record.spec.name), ..error },
        Err(e) => ApiError::failed(format!("{}; and {}", error.message, e.message)),
    }
}

/// Calls a move off that has not been handed over: recorded first, then the pod goes on.
///
/// # Errors
/// The store's, or the pod cannot be thawed: it stays frozen then.
pub fn call_off(
    daemon: &Daemon,
    record: &PodRecord,
    migration: &mut Migration,
    reason: Option<String>,
    hold: Option<&Hold>,
) -> Result<()> {
    let was_frozen = migration.step == Step::Freezing;
    migration.step = Step::Aborted;
    migration.error = reason;
    // Without the record the target could later be told something else: then the pod stays frozen.
    let recorded = daemon.journal(migration, None);
    recorded.attempt("record that the move is off, so that the pod stays frozen")?;
    let frames = hold.map(Hold::take).unwrap_or_default();
    if was_frozen {
        thaw(daemon, record, &frames)?;
    }
    Ok(())
}

/// Everything after the handover: commits until the target answers. Repeatable; used after a crash too.
///
/// # Errors
/// The target declined, and the pod runs here again; or the store failed.
pub async fn conclude(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    migration: &mut Migration,
    mut peer: Option<Peer>,
    mut hold: Option<Hold>,
    report: impl FnOnce(&mut Migration),
) -> Result<()> {
    let mut frames = Vec::new();
    let mut report = Some(report);
    let mut lent = None;
    let mut pause = Duration::from_millis(50);
    let answer = loop {
        let connected = match peer.take() {
            Some(peer) => Ok(peer),
            None => Peer::call(daemon, &migration.peer).await,
        };
        let answer = match connected {
            Ok(mut connection) => {
                frames.extend(hold.as_ref().map(Hold::take).unwrap_or_default());
                let commit = Message::Commit { migration: migration.id.clone(), frames: frames.clone() };
                let answer = connection.ask(&commit).await;
                peer = Some(connection);
                answer
            }
            Err(e) => Err(e),
        };
        match answer {
            Ok(answer @ (Message::Thawed | Message::Ended { .. } | Message::Lost { .. })) => break answer,
            Ok(Message::Borrows) => {
                // It runs. The same question on another connection is answered when it needs this host no more.
                lent = Some(Instant::now());
                runs_there(migration, &mut report, peer.take(), hold.take()).await;
                frames.clear();
                continue;
            }
            Ok(other) => tracing::warn!(pod = migration.pod, error = %unexpected(&other), "commit not answered"),
            Err(e) => {
                tracing::warn!(pod = migration.pod, host = migration.peer, error = %e, "commit not answered; asking again")
            }
        }
        peer = None;
        // What waits for longer than this has been sent again by its sender.
        frames.clear();
        // Not before the first try: the pod stands still meanwhile.
        if let Some(reason) = forsaken(daemon, migration) {
            break Message::Lost { reason };
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    };
    // A podd that has died since the handover left its dump: only this one knows the name.
    let dump = daemon.config.flight().join(format!("{}-out", migration.id));
    let record = claim.record();
    let well = match answer {
        Message::Thawed => {
            match (lent, &mut migration.report) {
                (Some(since), Some(report)) => {
                    let resident_ms = milliseconds(since);
                    report.resident_ms = Some(resident_ms);
                    report.total_ms += resident_ms;
                }
                _ => runs_there(migration, &mut report, peer.take(), hold.take()).await,
            }
            confirm(daemon, &record, &migration.peer).await.map_err(|reason| format!("is not healthy there: {reason}"))
        }
        Message::Ended { reason } => Err(format!("has ended there: {reason}")),
        Message::Lost { reason } => {
            let record = take_back(daemon, claim, migration, &reason)?;
            let _ = std::fs::remove_dir_all(dump);
            return Err(ApiError::failed(format!(
                "{} could not go to {} and runs here again: {reason}",
                record.spec.name, migration.peer
            )));
        }
        other => return Err(unexpected(&other)),
    };
    // It is the target's: our copy may go, once the pod is well there or the state before is kept. Recorded after the
    // deletion, so that a crash repeats all of this.
    let unwell = match well {
        Ok(()) => None,
        Err(what) => Some(keep(daemon, &record, migration, &dump, &what).await),
    };
    let _ = std::fs::remove_dir_all(dump);
    delete(daemon, &record).await?;
    migration.error = unwell.as_ref().map(|e| e.message.clone());
    migration.step = Step::Done;
    daemon.journal(migration, None)?;
    unwell.map_or(Ok(()), Err)
}

/// The target has thawed the pod: how that went is noted, and what came for it since goes after it.
async fn runs_there(
    migration: &mut Migration,
    report: &mut Option<impl FnOnce(&mut Migration)>,
    peer: Option<Peer>,
    hold: Option<Hold>,
) {
    if let Some(report) = report.take() {
        report(migration);
    }
    if let Some(mut peer) = peer {
        let late = hold.as_ref().map(Hold::take).unwrap_or_default();
        let _ = peer.send(&Message::Late { frames: late }).await;
    }
}

/// Why a pod whose move is in doubt goes on here; none: nobody has said so.
pub fn forsaken(daemon: &Daemon, migration: &Migration) -> Option<String> {
    let by = daemon.store.migration(&migration.id).ok()??.forsaken?;
    Some(format!("{} is gone for good, and {by} has the pod go on here", migration.peer))
}

/// Has a pod go on here whose move is in doubt, as the other host is gone for good: it was removed from the fleet, and no other host
/// has the pod. As it was when it was frozen: what it may have done on the other host since is lost with that.
///
/// # Errors
/// The other host was not removed, another one has the pod or does not answer, or the pod does not go on.
pub async fn go_on_without(daemon: &Arc<Daemon>, record: &PodRecord, by: &str) -> Result<PodRecord> {
    let (PodState::Given { migration } | PodState::Arriving { migration }) = &record.state else {
        return Err(not_running(daemon, record));
    };
    let unknown = || ApiError::failed("its move is not in the journal");
    let mut migration = daemon.store.migration(migration)?.ok_or_else(unknown)?;
    let (name, other) = (&record.spec.name, &migration.peer);
    if !matches!(migration.step, Step::Given | Step::Held) || !daemon.store.removed_hosts()?.contains(other) {
        return Err(ApiError::conflict(format!("{name} is {}", daemon.stands(record))).cure(format!(
            "it is settled when {other} answers; if that is gone for good: `podctl host rm {other} --gone`, and this again"
        )));
    }
    refuse_unless_nowhere(daemon, record).await?;
    // It may have been settled meanwhile.
    let step = migration.step;
    migration = daemon.store.migration(&migration.id)?.ok_or_else(unknown)?;
    if migration.step == step {
        migration.forsaken = Some(by.to_owned());
        daemon.journal(&migration, None)?;
    }
    let begun = Instant::now();
    loop {
        let now = daemon.pod(&record.id)?.record();
        match now.state {
            PodState::Given { .. } | PodState::Arriving { .. } if begun.elapsed() < FORSAKEN_LIMIT => {}
            PodState::Running { .. } => return Ok(now),
            _ => return Err(not_running(daemon, &now)),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the pod's health probe, if it has one, has succeeded on the target.
async fn confirm(daemon: &Daemon, record: &PodRecord, host: &str) -> std::result::Result<(), String> {
    let Some(health) = &record.spec.health else { return Ok(()) };
    let question = Message::AskHealth { pod: record.id.clone() };
    // The target asks a pod that has just come once a second.
    let limit = Duration::from_secs(u64::from(health.retries.saturating_mul(health.timeout_s.saturating_add(1))) + 5);
    let begun = Instant::now();
    let mut peer = None;
    loop {
        let answer = match peer.take() {
            Some(peer) => Ok(peer),
            None => Peer::call(daemon, host).await,
        };
        let answer = match answer {
            Ok(mut connection) => {
                let answer = connection.ask(&question).await;
                peer = answer.is_ok().then_some(connection);
                answer
            }
            Err(e) => Err(e),
        };
        let not_yet = match answer {
            Ok(Message::Health(Some(health))) => match health.state {
                HealthState::Healthy => return Ok(()),
                HealthState::Unhealthy => return Err(health.reason.unwrap_or_default()),
                HealthState::Starting => format!("not healthy within {} s", limit.as_secs()),
            },
            Ok(Message::Health(None)) => return Err("it has ended".to_owned()),
            // It came, ran, and has left or been removed since.
            Ok(Message::Gone) => return Ok(()),
            Ok(other) => unexpected(&other).message,
            Err(e) => e.message,
        };
        if begun.elapsed() > limit {
            return Err(not_yet);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Keeps the pod as it was at the freeze in an image: the target has it, but it is not well there. The error says what it does there.
async fn keep(daemon: &Daemon, record: &PodRecord, migration: &Migration, dump: &Path, what: &str) -> ApiError {
    let (name, to) = (&record.spec.name, &migration.peer);
    let error = format!("{name} went to {to}, but it {what}");
    let image = daemon.config.images().join(format!("{name}-before-{}.img", &migration.id[..8]));
    // The record as it was: the pod's epoch there is higher.
    let before = PodRecord { state: PodState::Created, ..record.clone() };
    // An image is there whole or not at all: then a podd that has died since has written it.
    let saved = match image.exists() {
        true => Ok(()),
        false => save_whole(daemon, &before, dump, &image).await,
    };
    let image = image.display();
    match saved {
        Ok(()) => ApiError::failed(format!("{error}; as it was before the move, it is kept in {image}")).cure(format!(
            "see `podctl logs {name}` there; to have it back as it was, remove it there and `podctl restore {image}` here"
        )),
        Err(e) => ApiError::failed(format!("{error}; and it could not be kept here as it was: {}", e.message)),
    }
}

/// Makes an image of a dump. One that has only what was written last is made anew: the pod still stands here as it was.
async fn save_whole(daemon: &Daemon, record: &PodRecord, dump: &Path, image: &Path) -> Result<()> {
    let whole = match memory::is_partial(dump) {
        true => {
            let whole = Flight::new(daemon, &format!("{}-whole", record.id))?;
            let dumper = Dumper::start(daemon, record, whole.path()).await?;
            dumper.dump(daemon, record, &Frozen::already(daemon, record)).await?;
            Some(whole)
        }
        false => None,
    };
    let folder = whole.as_ref().map_or(dump, Flight::path);
    tokio::task::block_in_place(|| save(daemon, record, folder, image))
}

/// The target has durably declined: the pod is ours again, under an epoch that outdates the target's.
fn take_back(daemon: &Arc<Daemon>, claim: &Claim, migration: &mut Migration, reason: &str) -> Result<PodRecord> {
    let mut record = claim.record();
    let bundle = daemon.config.bundle(&record.id);
    let status = crate::shim::client::last_status(&bundle);
    record.epoch = migration.epoch + 1;
    let alive = match status {
        Some(crate::shim::Status::Alive { init }) if init.is_alive() => Some(init),
        _ => None,
    };
    record.state = match alive {
        Some(init) => PodState::Running { init, boot: daemon.boot.clone() },
        None => {
            PodState::Lost { reason: "this host lost its frozen processes while the other one declined them".into() }
        }
    };
    migration.step = Step::Returned;
    migration.error = Some(reason.to_owned());
    daemon.journal(migration, Some(&record))?;
    claim.publish(record.clone());
    if let Some(init) = alive {
        super::start::watch(daemon, &record.id, init);
        thaw(daemon, &record, &[])?;
    }
    Ok(record)
}

/// Tells the phases of a blackout apart: they add up to all of it.
#[derive(Clone, Debug)]
struct StopWatch {
    begun: Instant,
    lap: Instant,
}

impl StopWatch {
    fn start(at: Instant) -> Self {
        Self { begun: at, lap: at }
    }

    /// Milliseconds since the last one.
    fn lap(&mut self) -> f64 {
        self.lap_at(Instant::now())
    }

    fn lap_at(&mut self, now: Instant) -> f64 {
        let lap = now.duration_since(std::mem::replace(&mut self.lap, now));
        lap.as_secs_f64() * 1000.0
    }

    /// Milliseconds since it was started.
    fn total(&self) -> f64 {
        milliseconds(self.begun)
    }
}

/// What was free on the target before the move, in bytes.
pub(super) struct Room {
    pub memory: u64,
    /// Of that, for images.
    pub images: u64,
}

/// What one move, or a rehearsal, has gathered so far.
pub struct Run<'a> {
    pub(super) daemon: &'a Arc<Daemon>,
    tell: &'a Tell,
    to: String,
    pub(super) mode: MemoryMode,
    /// The pod runs on while a clone is restored.
    rehearsal: bool,
    /// What runs there.
    kernel: NextKernel,
    /// The target could not restore the pod.
    broke: bool,
    begun: Instant,
    predicted: Prediction,
    pub(super) room: Room,
    phases: Phases,
    bytes: Bytes,
    rounds: u32,
    /// Running since the freeze.
    watch: StopWatch,
    hold: Option<Hold>,
    /// Kept until the move is over: deleting it takes time that the frozen pod would have to wait.
    flight: Option<Flight>,
    /// Kept until the move is over, like the flight.
    ahead: Ahead,
    /// Content of files that is compared while the target restores the pod.
    unverified: Option<(Sender, Unverified)>,
    /// What the target was told to store without waiting until it has.
    unanswered: u32,
    /// Held while the pod stands still.
    turn: Option<SemaphorePermit<'a>>,
    /// Nobody else may have the kernel tell what the pod writes.
    _followed: OwnedMutexGuard<()>,
    pub(super) peer: Peer,
}

impl<'a> Run<'a> {
    /// Preflight, and the first entry in the journal.
    ///
    /// # Errors
    /// The pod does not run, the host does not answer, or preflight refuses; nothing has been done then.
    pub async fn begin(
        daemon: &'a Arc<Daemon>,
        claim: &Claim,
        Wish { to, by, mode }: Wish<'_>,
        rehearsal: bool,
        tell: &'a Tell,
    ) -> Result<(Self, Migration)> {
        let record = claim.record();
        if mode == MemoryMode::PreCopy && daemon.follows_writes().is_none() {
            return Err(ApiError::conflict(format!("{} can only go by stop-copy: {NOT_TOLD}", record.spec.name))
                .cure("say `--mode auto`, or move it from a host with a kernel that tells (`podctl doctor`)"));
        }
        if !matches!(record.state, PodState::Running { .. }) {
            return Err(not_running(daemon, &record));
        }
        if to == daemon.config.host {
            return Err(ApiError::usage(format!("{} is on {to} already", record.spec.name)));
        }
        if mode == MemoryMode::PostCopy {
            postcopy::refuse_unless_possible(daemon, to).await?;
        }
        let begun = Instant::now();
        claim.quiet().await;
        let mut peer = Peer::call(daemon, to).await?;
        let facts = target_facts(&mut peer, &record).await?;
        let (mut findings, files) = tokio::task::block_in_place(|| towards(daemon, &record, &facts))?;
        findings.extend(record.quarantine().filter(|_| !rehearsal));
        refuse_unless_go(&findings)?;
        let predicted = predict::expected_by(daemon, &record, to, files, mode)?;
        let expected = Some(predicted.expected);
        let _ = tell.send(Progress { phase: "preflight".into(), done: 0, total: 0, expected });
        let run = Self {
            daemon,
            tell,
            to: to.to_owned(),
            mode,
            rehearsal,
            kernel: if facts.facts.kernel.release == Kernel::read().release {
                NextKernel::Same
            } else {
                NextKernel::Other
            },
            broke: false,
            begun,
            predicted,
            room: Room { memory: facts.facts.memory.available, images: facts.facts.image_space.free_bytes },
            phases: Phases { preflight_ms: milliseconds(begun), ..Phases::default() },
            bytes: Bytes::default(),
            rounds: 1,
            watch: StopWatch::start(begun),
            hold: None,
            flight: None,
            ahead: Ahead::default(),
            unverified: None,
            unanswered: 0,
            turn: None,
            _followed: claim.follow().await,
            peer,
        };
        let migration = Migration {
            forsaken: None,
            id: format!("{:032x}", rand::rng().random::<u128>()),
            role: Role::Source,
            peer: to.to_owned(),
            pod_id: record.id.clone(),
            pod: record.spec.name.clone(),
            epoch: record.epoch + 1,
            started: Timestamp::now(),
            step: Step::Preparing,
            error: None,
            report: None,
            rehearsal,
            by: by.to_owned(),
        };
        daemon.journal(&migration, None)?;
        Ok((run, migration))
    }

    /// What catches the packets that come for the frozen pod.
    #[must_use]
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// All phases until everything is on the target. The pod is frozen then, and after an error too, if it came so far.
    ///
    /// # Errors
    /// What failed; see [`abort`].
    pub async fn until_sent(&mut self, record: &PodRecord, migration: &mut Migration) -> Result<()> {
        let begun = Instant::now();
        self.prepare(record, migration).await?;
        let upper = self.daemon.config.pod_state(&record.id).join("upper");
        let mut sender = Some(Sender::new(&upper).attempt("read the writable layer")?);
        for pass in 1..=LIVE_PASSES {
            let report = self.send_files(&mut sender).await?;
            self.rounds = pass;
            if report.bytes < SETTLED {
                break;
            }
        }
        let flight = Flight::new(self.daemon, &format!("{}-out", migration.id))?;
        let images = flight.path().to_owned();
        self.flight = Some(flight);
        let ahead = self.send_memory_ahead(record, &images).await?;
        self.take_along(ahead);
        if self.ahead.rounds > 0 {
            // The files have changed meanwhile.
            self.send_files(&mut sender).await?;
        }
        self.take_turn(record, &images, &mut sender).await?;
        self.hold = hold(self.daemon, record);
        if let PodState::Running { init, .. } = record.state
            && let Err(e) = tokio::task::block_in_place(|| neighbours::note(init.pid, &images))
        {
            tracing::warn!(pod = record.spec.name, error = %e, "the pod will have to ask for its neighbours");
        }
        ensure_shim(self.daemon, record).await?;
        let dumper = Dumper::start(self.daemon, record, &images).await?;
        self.phases.prepare_ms = milliseconds(begun);

        // Before the freeze, so that after a crash recovery knows to thaw.
        migration.step = Step::Freezing;
        self.daemon.journal(migration, None)?;
        self.send_last_round(record, &images).await?;
        // Little goes faster with the dump than page by page, while somebody waits for each.
        if self.mode == MemoryMode::PostCopy && !self.ahead.is_worth_another() {
            memory::lazy::expect(&images, &self.daemon.config.bundle(&record.id)).attempt("begin a dump")?;
        }
        self.say("freeze", 0, 0);
        self.peer.hasten();
        let frozen = freeze(self.daemon, record, self.hold.as_ref(), self.kernel)?;
        self.watch = StopWatch::start(frozen.since);
        self.phases.freeze_ms = self.watch.lap();
        self.ahead.before_dump(&images).attempt("forget what was copied of processes that have ended")?;
        self.dump_and_send(record, dumper, frozen, sender, &images).await
    }

    /// Sends what was written while all was made ready for the freeze, if that can be expected to be little. The target stores it
    /// while the pod is dumped: only the answer to what comes next is waited for.
    ///
    /// # Errors
    /// The connection broke.
    async fn send_last_round(&mut self, record: &PodRecord, images: &Path) -> Result<()> {
        if !self.ahead.is_worth_another() {
            return Ok(());
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        let round = self.send_unanswered(&mut ahead, record, images).await?;
        let is_little = round.left == 0 && ahead.is_worth_another();
        if !is_little {
            self.stored().await?;
        }
        if round.left > 0 {
            self.send_pass(&mut ahead, record, images).await?;
        }
        self.take_along(ahead);
        if !is_little {
            return Ok(());
        }
        self.unanswered += 1;
        self.peer.flush().await
    }

    /// Keeps what has gone ahead.
    fn take_along(&mut self, ahead: Ahead) {
        if ahead.rounds > 0 {
            (self.rounds, self.bytes.memory) = (ahead.passes, ahead.bytes);
        }
        self.ahead = ahead;
    }

    /// Waits until no other pod stands still for a move. Not for ever: that one's target may be away.
    async fn take_turn(&mut self, record: &PodRecord, images: &Path, sender: &mut Option<Sender>) -> Result<()> {
        if let Ok(turn) = self.daemon.freezes.try_acquire() {
            self.turn = Some(turn);
            return Ok(());
        }
        let taken = tokio::time::timeout(TURN, self.daemon.freezes.acquire()).await;
        self.turn = taken.ok().and_then(std::result::Result::ok);
        // Memory and files may have changed meanwhile.
        let mut ahead = std::mem::take(&mut self.ahead);
        if ahead.rounds > 0 {
            self.send_pass(&mut ahead, record, images).await?;
        }
        self.take_along(ahead);
        self.send_files(sender).await.map(drop)
    }

    /// The pod does not stand still any more: it is another one's turn.
    pub fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Has the target restore what it was sent, and hold it.
    ///
    /// # Errors
    /// It cannot.
    pub async fn restore(&mut self, record: &PodRecord) -> Result<()> {
        self.say("restore", 0, 0);
        let PodState::Running { init, .. } = record.state else { return Err(not_running(self.daemon, record)) };
        let images = self.flight.as_ref().map_or(Path::new(""), Flight::path);
        let mut files = sizes(images).attempt("read the dump")?;
        files.extend(self.ahead.files.clone());
        let timers = timers(&self.daemon.cgroup(&record.id).pids());
        // As late as this: what the target still had to do before it hears of them, they would be late by.
        let clocks = Clocks::of(init.pid).attempt("read the pod's clocks")?;
        self.bytes.later = memory::lazy::left(images).attempt("read the dump")?;
        if self.bytes.later > 0 {
            self.peer.queue(&Message::Lent).await?;
        }
        if self.unverified.is_some() {
            self.peer.queue(&Message::MoreFiles).await?;
        }
        let restore = Message::Restore { files, clocks, timers };
        self.peer.send(&restore).await?;
        if let Some((sender, unverified)) = self.unverified.take() {
            tokio::task::block_in_place(|| crate::fault::point(&self.daemon.config.run, "source", "compares"));
            let verify = |sender: &mut Sender, sink: Sink<'_>| sender.verify(unverified, sink).map(whole);
            self.stream(Message::Files, &mut Some(sender), verify).await?;
            self.peer.flush().await?;
        }
        match self.peer.receive().await? {
            Message::Ready { .. } => self.phases.restore_ms = self.watch.lap(),
            Message::Refused { reason } => {
                self.broke = true;
                return Err(ApiError::failed(reason));
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// Keeps in mind that the target could not restore the pod. That it could not be asked says nothing of the pod.
    ///
    /// # Errors
    /// The store's.
    pub fn note_failure(&self, claim: &Claim) -> Result<()> {
        if self.broke && !claim.record().failed_on.contains(&self.to) {
            claim.update(self.daemon, |record| record.failed_on.extend([self.to.clone()]))?;
        }
        Ok(())
    }

    /// Has the target let the restored clone run for a moment. See [`super::rehearse`].
    ///
    /// # Errors
    /// The connection broke.
    pub async fn perform(&mut self) -> Result<Message> {
        self.say("run", 0, 0);
        self.peer.ask(&Message::Rehearse).await
    }

    /// How long the pod has been frozen, in ms.
    #[must_use]
    pub fn frozen_ms(&self) -> f64 {
        self.watch.total()
    }

    /// How long the restore took, in ms.
    #[must_use]
    pub fn restore_ms(&self) -> f64 {
        self.phases.restore_ms
    }

    /// The target reserves name, address and ids, and gets the layers that it lacks.
    async fn prepare(&mut self, record: &PodRecord, migration: &Migration) -> Result<()> {
        self.say("prepare", 0, 0);
        let coming = PodRecord { epoch: migration.epoch, ..record.clone() };
        let prepare = Message::Prepare {
            migration: migration.id.clone(),
            record: serde_json::to_string(&coming).attempt("encode the pod's record")?,
        };
        let missing = match self.peer.ask(&prepare).await? {
            Message::Prepared { missing_layers } => missing_layers,
            other => return Err(unexpected(&other)),
        };
        for digest in missing {
            if !record.layers.contains(&digest) {
                return Err(ApiError::failed(format!("the other host asked for a foreign layer, {digest}")));
            }
            let parsed = digest.parse().attempt("read the layer's name")?;
            let path = self.daemon.layers.layer_path(&parsed);
            let mut sender = Some(Sender::new(&path).attempt("read the layer")?);
            let pass =
                |sender: &mut Sender, sink: Sink<'_>| sender.pass(Mode::Frozen, &BTreeSet::new(), sink).map(whole);
            self.stream(Message::Layer { digest }, &mut sender, pass).await?;
            self.stored().await?;
        }
        Ok(())
    }

    /// One pass over the writable layer while the pod runs; waits until it is stored.
    async fn send_files(&mut self, sender: &mut Option<Sender>) -> Result<PassReport> {
        self.say("files", self.bytes.files, 0);
        let pass = |sender: &mut Sender, sink: Sink<'_>| sender.pass(Mode::Live, &BTreeSet::new(), sink).map(whole);
        let (report, _) = self.stream(Message::Files, sender, pass).await?;
        self.stored().await?;
        Ok(report)
    }

    /// The last pass; waits until it is stored. What takes long in it is left for the time in which the target restores, as long as
    /// nobody writes to these files then.
    async fn send_last_files(&mut self, mut sender: Option<Sender>, changed: BTreeSet<PathBuf>) -> Result<()> {
        self.say("files", self.bytes.files, 0);
        let apart = !self.rehearsal && self.peer.speaks(Protocol::V2);
        let pass = move |sender: &mut Sender, sink: Sink<'_>| match apart {
            true => sender.last_pass(&changed, sink),
            false => sender.pass(Mode::Frozen, &changed, sink).map(whole),
        };
        let (_, unverified) = self.stream(Message::Files, &mut sender, pass).await?;
        self.unverified = sender.filter(|_| !unverified.is_empty()).map(|sender| (sender, unverified));
        self.stored().await
    }

    /// Has the sender work in a thread of its own, and sends what it emits behind `opening`.
    async fn stream(
        &mut self,
        opening: Message,
        sender: &mut Option<Sender>,
        work: impl FnOnce(&mut Sender, Sink<'_>) -> files::Result<(PassReport, Unverified)> + Send + 'static,
    ) -> Result<(PassReport, Unverified)> {
        self.peer.queue(&opening).await?;
        let (queue, mut ops) = mpsc::channel::<Op>(8);
        let mut worker = sender.take().ok_or_else(|| ApiError::failed("an earlier pass over the files failed"))?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work(&mut worker, &mut |op| {
                queue.blocking_send(op).map_err(|_| files::Error::Sink(io::ErrorKind::BrokenPipe.into()))
            });
            (worker, done)
        });
        while let Some(op) = ops.recv().await {
            self.peer.queue(&Message::File(op)).await?;
        }
        let (worker, done) = working.await.attempt("read the files")?;
        let done = done.attempt("read the files")?;
        *sender = Some(worker);
        self.bytes.files += done.0.bytes;
        self.peer.queue(&Message::FilesEnd).await?;
        Ok(done)
    }

    /// Sends what waits, and waits until the target has stored that, and all before.
    pub(super) async fn stored(&mut self) -> Result<()> {
        self.peer.flush().await?;
        for _ in 0..=std::mem::take(&mut self.unanswered) {
            match self.peer.answer().await? {
                Message::Stored => {}
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// While CRIU dumps into memory, the pages go over as they are written; then the last file changes. (Not before:
    /// for files that are open under a name they have lost, CRIU makes new names in the writable layer.)
    async fn dump_and_send(
        &mut self,
        record: &PodRecord,
        dumper: Dumper,
        frozen: Frozen,
        sender: Option<Sender>,
        images: &Path,
    ) -> Result<()> {
        self.say("memory", 0, 0);
        let mapped = shared_writable_files(&self.daemon.cgroup(&record.id).pids());
        // Paths as the pod sees them, relative to its root.
        let mapped = mapped.iter().filter_map(|p| Some(p.strip_prefix("/").ok()?.to_owned())).collect();
        let daemon = self.daemon.clone();
        let dumped = record.clone();
        let mut dumping = tokio::spawn(async move {
            let result = dumper.dump(&daemon, &dumped, &frozen).await;
            (result, Instant::now())
        });
        let mut sent = SentFiles::default();
        let mut streamed = Ok(());
        // Whatever becomes of the connection, CRIU must have let go of the pod before anybody thaws it.
        let (dumped, dump_end) = loop {
            tokio::select! {
                ended = &mut dumping => break ended.attempt("dump the pod")?,
                () = tokio::time::sleep(Duration::from_millis(2)) => {
                    if streamed.is_ok() {
                        streamed = self.send_new(images, &mut sent, |name| name.starts_with("pages-")).await;
                    }
                }
            }
        };
        dumped.and(streamed)?;
        self.phases.dump_ms = self.watch.lap_at(dump_end);
        self.send_new(images, &mut sent, |name| !name.ends_with(".log")).await?;
        self.send_last_files(sender, mapped).await?;
        self.phases.transfer_ms = self.watch.lap();
        Ok(())
    }

    /// Sends what the image files have beyond what was sent. CRIU only ever appends to its page files.
    async fn send_new(&mut self, folder: &Path, sent: &mut SentFiles, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut piece = Vec::new();
        for (name, size) in sizes(folder).attempt("read the dump")?.into_iter().filter(|(n, _)| wanted(n)) {
            let offset = sent.0.entry(name.clone()).or_insert(0);
            if *offset >= size {
                continue;
            }
            let file = std::fs::File::open(folder.join(&name)).attempt("read the dump")?;
            while *offset < size {
                // Most of them are small, and to clear a large piece takes longer than to read one.
                piece.resize(PIECE.min(usize::try_from(size - *offset).unwrap_or(PIECE)), 0);
                let got = file.read_at(&mut piece, *offset).attempt("read the dump")?;
                if got == 0 {
                    break;
                }
                self.peer.queue_chunk(&name, *offset, &piece[..got]).await?;
                *offset += got as u64;
                if name.starts_with("pages-") {
                    self.bytes.memory += got as u64;
                    self.bytes.frozen += got as u64;
                }
            }
            self.say("memory", self.bytes.memory, 0);
        }
        Ok(())
    }

    pub(super) fn say(&self, phase: &str, done: u64, total: u64) {
        let _ = self.tell.send(Progress { phase: phase.into(), done, total, expected: None });
    }
}

/// Takes what a sender emits.
type Sink<'a> = &'a mut dyn FnMut(Op) -> files::Result<()>;

/// What a pass did that has left nothing to be verified.
fn whole(report: PassReport) -> (PassReport, Unverified) {
    (report, Unverified::default())
}

/// How much of each image file has gone over, in bytes.
#[derive(Default)]
struct SentFiles(std::collections::BTreeMap<String, u64>);

/// Names and sizes of a folder's image files, logs left out.
fn sizes(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The rest are rounds, which have gone over already.
        if entry.file_type()?.is_file() && !name.ends_with(".log") {
            files.push((name, entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}
