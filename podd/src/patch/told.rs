//! Tells pods of what is coming ([`notice`](super::notice)), and hears what they answer.
//!
//! A notice is on disk before its pod can read it. Pods read a file that podd replaces, through their own view of their root;
//! they answer their own init, whose notes podd reads (`podd/init/events.rs`). No socket leads out of a pod: it could not move.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify};

use super::mechanism;
use super::notice::{self, Kind, Notice, Subject};
use super::policy::Phases;
use super::run::Step;
use super::run::keep::own_part;
use super::watch;
use crate::api::{ApiError, Progress};
use crate::error::{Attempt, Result};
use crate::events::{self, Entry, PODD, What};
use crate::pod::preflight::refuse_unless_go;
use crate::pod::start::will_restart;
use crate::pod::state::{PodRecord, PodState};
use crate::pod::stop::not_running;
use crate::pod::{logs, migrate, predict};
use crate::supervisor::{Claim, Daemon, Doing};
use crate::sys::process::ProcessId;

/// While pods have been told something, they are heard so often.
const HEAR: Duration = Duration::from_secs(1);
/// Else they are looked at after this, and whenever one comes to life.
const LOOK: Duration = Duration::from_secs(60);
/// Where pods look, and what for (`podd/init/events.rs`).
const FOLDER: &str = ".podd/events";
const FILE: &str = "events.json";
const FRESH: &str = ".events.new";
/// Longest file that is read of a pod, in bytes.
const LONGEST: u64 = 64 << 10;

/// Notices of this host.
#[derive(Debug, Default)]
pub struct Told {
    /// Held by whoever changes them.
    turn: AsyncMutex<()>,
    stir: Notify,
}

impl Told {
    /// Something has changed: look now.
    pub fn stir(&self) {
        self.stir.notify_one();
    }

    async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

/// Tells and hears for as long as podd runs.
pub async fn tell(daemon: Arc<Daemon>) {
    if let Err(error) = forget_moves(&daemon).await {
        tracing::error!(error = error.message, "notices of an earlier podd cannot be withdrawn");
    }
    let mut plan_at = Instant::now();
    let mut runs = daemon.store.watch_runs();
    loop {
        let is_time = plan_at <= Instant::now();
        let looked = look(&daemon, is_time).await;
        let (outstanding, next) = looked.unwrap_or_else(|error| {
            tracing::error!(error = error.message, "pods cannot be told what is coming");
            (false, LOOK)
        });
        if is_time {
            plan_at = Instant::now() + next;
        }
        tokio::select! {
            () = tokio::time::sleep(HEAR), if outstanding => {}
            () = tokio::time::sleep_until(plan_at.into()) => {}
            () = daemon.told.stir.notified() => plan_at = Instant::now(),
            Ok(()) = runs.changed() => plan_at = Instant::now(),
        }
    }
}

/// Whoever wanted to move these pods was waiting in the podd before this one.
async fn forget_moves(daemon: &Daemon) -> Result<()> {
    let _turn = daemon.told.turn().await;
    for (id, notice) in daemon.store.notices()? {
        if notice.kind == Kind::Move {
            withdraw(daemon, &id, notice)?;
        }
    }
    Ok(())
}

/// Hears pods, and if it `is_time`, sees what they are to be told; whether something is outstanding, and when it is time again.
async fn look(daemon: &Arc<Daemon>, is_time: bool) -> Result<(bool, Duration)> {
    let _turn = daemon.told.turn().await;
    let mut told = daemon.store.notices()?;
    let pods = running(daemon);
    let now = Timestamp::now();
    // One that is about to be started again has not gone.
    let stays = |id: &str| {
        let record = daemon.pod(id).map(|pod| pod.record());
        record.is_ok_and(|record| matches!(record.state, PodState::Running { .. }) || will_restart(&record))
    };
    let gone = told.keys().filter(|id| !stays(id)).cloned().collect::<Vec<_>>();
    for id in gone {
        if let Some(notice) = told.remove(&id) {
            withdraw(daemon, &id, notice)?;
        }
    }
    let mut next = LOOK;
    if is_time
        && daemon.config.watch
        && !is_under_way(daemon)?
        && let Some((decision, policy)) = watch::settle(daemon)?
    {
        let subjects: Vec<Subject> = pods.iter().map(subject).collect();
        let changes = notice::plan(&decision, &told, &subjects, &policy.phases, now);
        for id in &changes.withdraw {
            if let Some(notice) = told.remove(id) {
                withdraw(daemon, id, notice)?;
            }
        }
        for (id, kind, not_before) in changes.tell {
            let Some(pod) = pods.iter().find(|pod| pod.id == id) else { continue };
            let notice = Notice::new(&subject(pod), kind, now, not_before, &policy.phases);
            told.insert(id, post(daemon, PODD, pod, "", notice)?);
        }
        let until = changes.look.map(|at| at.duration_since(now).unsigned_abs());
        next = until.unwrap_or(LOOK).clamp(HEAR, LOOK);
    }
    let mut outstanding = !told.is_empty();
    for pod in &pods {
        if let Some(notice) = told.get_mut(&pod.id) {
            hear(daemon, pod, notice, now)?;
        }
        outstanding |= !show(daemon, pod, told.get(&pod.id));
    }
    Ok((outstanding, next))
}

/// Whether a run is at this host: what its pods are told is for the run to say then.
fn is_under_way(daemon: &Daemon) -> Result<bool> {
    Ok(own_part(daemon)?.is_some_and(|host| host.step != Step::Waiting && !host.step.is_final()))
}

fn running(daemon: &Daemon) -> Vec<PodRecord> {
    let records = daemon.pods().into_iter().map(|pod| pod.record());
    records.filter(|record| matches!(record.state, PodState::Running { .. })).collect()
}

fn subject(pod: &PodRecord) -> Subject {
    Subject { id: pod.id.clone(), name: pod.spec.name.clone() }
}

/// Writes a notice down, with how long the pod will be silent.
fn post(daemon: &Daemon, by: &str, pod: &PodRecord, to: &str, notice: Notice) -> Result<Notice> {
    let expected_blackout_ms = match notice.kind {
        Kind::InPlace => mechanism::expected_in_place_ms(daemon)?,
        Kind::Evacuate | Kind::Move => Some(predict::expected(daemon, pod, to, 0)?.expected.blackout_ms),
    };
    let notice = Notice { expected_blackout_ms, ..notice };
    let event = [events::entry(daemon, by, What::Notice { notice: notice.clone() })];
    daemon.store.put_notice(&pod.id, Some(&notice), &event)?;
    events::tell(daemon, &event);
    Ok(notice)
}

fn withdraw(daemon: &Daemon, id: &str, notice: Notice) -> Result<()> {
    let event = [events::entry(daemon, PODD, What::Withdrawn { pod: notice.pod, notice: notice.id })];
    daemon.store.put_notice(id, None, &event)?;
    events::tell(daemon, &event);
    Ok(())
}

fn hear(daemon: &Daemon, pod: &PodRecord, notice: &mut Notice, now: Timestamp) -> Result<()> {
    let notes = logs::read_plain(&daemon.config.pod_state(&pod.id).join("upper"), ".podd/answers", LONGEST);
    let answers = notice::answers(&notes.unwrap_or_default(), &notice.id);
    let by = format!("pod {}", pod.spec.name);
    let events: Vec<Entry> =
        notice.hear(&answers, now).into_iter().map(|what| events::entry(daemon, &by, what)).collect();
    if !events.is_empty() {
        daemon.store.put_notice(&pod.id, Some(notice), &events)?;
        events::tell(daemon, &events);
    }
    Ok(())
}

/// Sees to it that the pod can read what it is told; false: not yet, as somebody is changing it, and its files may be on their way.
fn show(daemon: &Daemon, pod: &PodRecord, notice: Option<&Notice>) -> bool {
    let PodState::Running { init, .. } = pod.state else { return true };
    let document = notice::document(notice);
    let shown = tokio::task::block_in_place(|| {
        let Some(folder) = folder(init)? else { return Ok(true) };
        if said(&folder)? == document {
            return Ok(true);
        }
        match daemon.claim(&pod.id, Doing::Tell) {
            Ok(_claim) => replace(&folder, pod.id_base, &document).map(|()| true),
            Err(_) => Ok(false),
        }
    });
    shown.unwrap_or_else(|error: io::Error| {
        tracing::warn!(pod = pod.spec.name, %error, "the pod cannot be told what is coming");
        true
    })
}

/// The folder in the pod of this init. None: the init of an earlier podd made none, or the pod does not want to know. Nothing in
/// there is trusted, and no link leads out.
fn folder(init: ProcessId) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{}/root", init.pid), flags, Mode::empty())?;
    if !init.is_alive() {
        return Ok(None);
    }
    // Nor into a volume: what lies there is not the pod's alone.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&root, FOLDER, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        folder => Ok(Some(folder?)),
    }
}

/// What the file says; nothing, if it is no file.
fn said(folder: &OwnedFd) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(folder, FILE, flags, Mode::empty()).map(File::from) else {
        return Ok(String::new());
    };
    let mut text = Vec::new();
    if file.metadata()?.is_file() {
        file.take(LONGEST).read_to_end(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn replace(folder: &OwnedFd, owner: u32, document: &str) -> io::Result<()> {
    let _ = rustix::fs::unlinkat(folder, FRESH, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut fresh = File::from(rustix::fs::openat(folder, FRESH, flags, Mode::from_raw_mode(0o644))?);
    fresh.write_all(document.as_bytes())?;
    rustix::fs::fchown(&fresh, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    Ok(rustix::fs::renameat(folder, FRESH, folder, FILE)?)
}

/// Tells a pod that it will be moved, waits until it may be and its turn has come, and takes the right to move it.
///
/// # Errors
/// It does not run, or has been told something before; whoever wanted it has gone; the store's.
pub async fn before_a_move<'a>(
    daemon: &'a Arc<Daemon>,
    name: &str,
    (to, by): (&str, &str),
    notice_s: u64,
    tell: &UnboundedSender<Progress>,
) -> Result<(migrate::Turn<'a>, Claim)> {
    let record = daemon.pod(name)?.record();
    if !matches!(record.state, PodState::Running { .. }) {
        return Err(not_running(daemon, &record));
    }
    // What cannot go is not told that it will.
    refuse_unless_go(&migrate::preflight(daemon, &record, to).await?)?;
    let id = announce(daemon, &record, (to, by), notice_s).await?;
    let waited = tokio::select! {
        waited = until_over(daemon, &record.id, &id, tell) => waited,
        () = tell.closed() => Err(ApiError::failed("whoever wanted the move has gone before it began")),
    };
    let claimed = match waited {
        Ok(()) => match migrate::turn(daemon, tell).await {
            Ok(turn) => daemon.claim_once_tidy(&record.id, Doing::Migrate).await.map(|claim| (turn, claim)),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    let _turn = daemon.told.turn().await;
    if let Some(notice) = daemon.store.notices()?.remove(&record.id).filter(|notice| notice.id == id) {
        match &claimed {
            // It is being done: there is nothing to say any more.
            Ok(_) => daemon.store.put_notice(&record.id, None, &[])?,
            Err(_) => withdraw(daemon, &record.id, notice)?,
        }
    }
    daemon.told.stir();
    claimed
}

/// Waits until a pod may be touched: it is ready, or has had its time. One that was told nothing is told now, if it is to be: of what
/// `kind` it is, and who wants it.
///
/// # Errors
/// Those of `goes_on`, which is asked all the time; the store's.
pub async fn until_ready(
    daemon: &Daemon,
    id: &str,
    tell: Option<(Kind, &str)>,
    goes_on: impl Fn() -> Result<()>,
) -> Result<()> {
    let own = match tell {
        Some((kind, by)) => post_unless_told(daemon, id, kind, by).await?,
        None => None,
    };
    daemon.told.stir();
    loop {
        goes_on()?;
        let told = daemon.store.notices()?;
        match told.get(id).or(own.as_ref()) {
            Some(notice) if !notice.is_over(Timestamp::now()) => tokio::time::sleep(HEAR).await,
            _ => return Ok(()),
        }
    }
}

async fn post_unless_told(daemon: &Daemon, id: &str, kind: Kind, by: &str) -> Result<Option<Notice>> {
    let phases = phases(daemon);
    let _turn = daemon.told.turn().await;
    let record = daemon.pod(id)?.record();
    let is_told = daemon.store.notices()?.contains_key(id);
    if phases.notice.0.is_zero() || is_told || !matches!(record.state, PodState::Running { .. }) {
        return Ok(None);
    }
    begin(daemon, &record, kind, ("", by), phases.notice.0).map(Some)
}

/// Tells a pod that it will be touched after this time.
fn begin(
    daemon: &Daemon,
    record: &PodRecord,
    kind: Kind,
    (to, by): (&str, &str),
    time: SignedDuration,
) -> Result<Notice> {
    let now = Timestamp::now();
    let not_before = now.checked_add(time).attempt("reckon with such a notice")?;
    post(daemon, by, record, to, Notice::new(&subject(record), kind, now, not_before, &phases(daemon)))
}

fn phases(daemon: &Daemon) -> Phases {
    watch::policy(daemon).0.map(|policy| policy.phases.clone()).unwrap_or_default()
}

/// What a pod was told is being done: there is nothing to say any more. What it was told.
///
/// # Errors
/// The store's.
pub async fn settled(daemon: &Daemon, id: &str) -> Result<Option<Notice>> {
    let _turn = daemon.told.turn().await;
    let notice = daemon.store.notices()?.remove(id);
    daemon.store.put_notice(id, None, &[])?;
    Ok(notice)
}

/// It was not done after all, and will be tried again: its time is not to begin anew.
///
/// # Errors
/// The store's.
pub async fn unsettled(daemon: &Daemon, id: &str, notice: Option<Notice>) -> Result<()> {
    let _turn = daemon.told.turn().await;
    match notice {
        Some(notice) if daemon.pod(id).is_ok() => Ok(daemon.store.put_notice(id, Some(&notice), &[])?),
        _ => Ok(()),
    }
}

async fn announce(daemon: &Arc<Daemon>, record: &PodRecord, (to, by): (&str, &str), notice_s: u64) -> Result<String> {
    let _turn = daemon.told.turn().await;
    if let Some(before) = daemon.store.notices()?.get(&record.id) {
        return Err(ApiError::conflict(format!("{} has been told already: {}", before.pod, before.in_words()))
            .cure("wait for that, or move it without --notice"));
    }
    let seconds = i64::try_from(notice_s).attempt("reckon with such a notice")?;
    let notice = begin(daemon, record, Kind::Move, (to, by), SignedDuration::from_secs(seconds))?;
    daemon.told.stir();
    Ok(notice.id)
}

async fn until_over(daemon: &Daemon, pod: &str, id: &str, tell: &UnboundedSender<Progress>) -> Result<()> {
    loop {
        let told = daemon.store.notices()?;
        let Some(notice) = told.get(pod).filter(|notice| notice.id == id) else {
            return Err(ApiError::conflict("the notice was withdrawn: the pod has ended, or podd was started again"));
        };
        let now = Timestamp::now();
        let _ = tell.send(Progress { phase: notice::left(notice, now), done: 0, total: 0, expected: None });
        if notice.is_over(now) {
            return Ok(());
        }
        tokio::time::sleep(HEAR).await;
    }
}
