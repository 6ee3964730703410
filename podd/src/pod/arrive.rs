//! The target's side of a move. `journal` says what each step means.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::clocks::{self, Clocks};
use checkpoint::files::{Op, Receiver};
use checkpoint::memory::{self, Nursery};
use checkpoint::process::note_timers;
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::freeze::{milliseconds, thaw};
use super::journal::{Migration, Role, Step};
use super::migrate::forsaken;
use super::postcopy;
use super::preflight::{TargetFacts, host_facts};
use super::rehearse;
use super::start::{KILL_LIMIT, begin_birth, clear_up, end_birth, ended, restart_later, watch};
use super::state::{PodRecord, PodState};
use super::stop::delete;
use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::layers::Hold;
use crate::patch::cordon;
use crate::patch::run::orders;
use crate::peer::{Message, Peer, known, unexpected, unpack};
use crate::server::{plan, status};
use crate::shim::{Mode, Status, client};
use crate::supervisor::{Claim, Daemon, Doing};
use crate::sys::cgroup::Brisk;
use crate::sys::hold::deliver;
use crate::sys::network::outer_name;
use crate::sys::process::ProcessId;

/// Time for a CRIU to start, and to load a round of memory.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);
const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// Rounds of memory that are taken from a source: more than any sends.
const MOST_ROUNDS: u32 = 64;

/// Serves one connection of another podd until it ends.
///
/// # Errors
/// The connection broke, or the other side broke the rules; whatever was begun has been settled or is being settled.
pub async fn serve(daemon: &Arc<Daemon>, mut peer: Peer, from: &str) -> Result<()> {
    loop {
        match peer.receive().await? {
            Message::AskFacts { volumes, layers } => {
                let answer = match tokio::task::block_in_place(|| facts(daemon, &volumes, &layers)) {
                    Ok(facts) => Message::Facts(Box::new(facts)),
                    Err(e) => refused(&e),
                };
                peer.send(&answer).await?;
            }
            Message::Query { migration } => peer.send(&given_or_not(daemon, from, &migration)?).await?,
            Message::Commit { migration, frames } => {
                let answer = commit_by_id(daemon, from, &migration, &frames).await;
                peer.send(&answer.unwrap_or_else(|e| refused(&e))).await?;
            }
            Message::Prepare { migration, record } => {
                // We must be able to call the source back, should the connection break.
                let reserved = known(daemon, from).await.and_then(|_| {
                    cordon::refuse(daemon)?;
                    reserve(daemon, from, &migration, &record)
                });
                match reserved {
                    Ok((claim, migration)) => return arrive(daemon, claim, migration, peer).await,
                    Err(e) => peer.send(&refused(&e)).await?,
                }
            }
            Message::AskHealth { pod } => {
                let pod = daemon.pod(&pod);
                peer.send(&pod.map_or(Message::Gone, |pod| Message::Health(daemon.view(&pod).health))).await?;
            }
            Message::AskBaseline => peer.send(&Message::Baseline(daemon.baseline.clone())).await?,
            Message::AskStatus { refresh, why } => {
                peer.send(&told(status::own(daemon, refresh, why).await)).await?;
            }
            Message::AskPlanFacts => peer.send(&told(plan::own(daemon).await)).await?,
            Message::AskPreflight { pod, to } => peer.send(&told(plan::findings(daemon, &pod, &to).await)).await?,
            Message::Choose(request) => {
                let answer = crate::patch::watch::choose(daemon, &format!("host {from}"), &request);
                peer.send(&told(answer)).await?;
            }
            Message::Patch { json } => peer.send(&told(orders::answer(daemon, &json, from).await)).await?,
            Message::AskLater => peer.send(&Message::Later { cannot: postcopy::cannot(daemon) }).await?,
            Message::AskPages { migration, process, ranges } => {
                match postcopy::pages(daemon, from, &migration, process, &ranges) {
                    Ok(Some(data)) => peer.queue_chunk("", 0, &data).await?,
                    Ok(None) => peer.queue(&Message::Gone).await?,
                    Err(e) => peer.queue(&refused(&e)).await?,
                }
                peer.flush().await?;
            }
            Message::AskHosts => peer.send(&Message::Hosts { hosts: daemon.store.hosts()? }).await?,
            other => return Err(unexpected(&other)),
        }
    }
}

fn told(answer: Result<impl Serialize>) -> Message {
    let json = answer.and_then(|answer| serde_json::to_string(&answer).attempt("say it"));
    json.map_or_else(|e| refused(&e), |json| Message::Status { json })
}

fn refused(e: &ApiError) -> Message {
    Message::Refused { reason: e.message.clone() }
}

fn facts(daemon: &Daemon, volumes: &[String], layers: &[String]) -> Result<TargetFacts> {
    Ok(TargetFacts {
        facts: host_facts(daemon, None)?,
        volumes: volumes.iter().map(|path| Path::new(path).exists()).collect(),
        missing_layers: missing(daemon, layers)?,
    })
}

fn missing(daemon: &Daemon, layers: &[String]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for layer in layers {
        if !daemon.layers.has(&layer.parse().attempt("read a layer's name")?) {
            missing.push(layer.clone());
        }
    }
    Ok(missing)
}

/// What this host, as a source, has decided about a move.
fn given_or_not(daemon: &Daemon, from: &str, id: &str) -> Result<Message> {
    let migration = daemon.store.migration(id)?.filter(|m| m.role == Role::Source && m.peer == from);
    Ok(match migration.map(|m| m.step) {
        Some(Step::Given | Step::Done) => Message::Given,
        Some(Step::Preparing | Step::Freezing) => Message::Undecided,
        // Unknown moves cannot have been given: the journal comes first.
        _ => Message::NotGiven,
    })
}

/// Takes the pod's name, addresses and ids, on disk.
fn reserve(daemon: &Daemon, from: &str, id: &str, record: &str) -> Result<(Claim, Migration)> {
    let mut record: PodRecord = serde_json::from_str(record).attempt("read the pod's record")?;
    super::file::validated(&record.spec).map_err(ApiError::from)?;
    let hexadecimal = |text: &str, n| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hexadecimal(&record.id, 16) || !hexadecimal(id, 32) {
        return Err(ApiError::failed("the other host named an impossible id"));
    }
    if let Ok(pod) = daemon.pod(&record.id) {
        let epoch = pod.record().epoch;
        return Err(ApiError::conflict(format!("this pod is known here under epoch {epoch}")));
    }
    let _turn = super::create::turn();
    super::create::check_free(daemon, &record.spec)?;
    let migration = Migration {
        id: id.to_owned(),
        role: Role::Target,
        peer: from.to_owned(),
        pod_id: record.id.clone(),
        pod: record.spec.name.clone(),
        epoch: record.epoch,
        started: Timestamp::now(),
        step: Step::Receiving,
        error: None,
        report: None,
        rehearsal: false,
        forsaken: None,
        by: format!("host {from}"),
    };
    record.state = PodState::Arriving { migration: id.to_owned() };
    // If it comes, one host could restore it.
    record.failed_on.clear();
    if let Some(relies_on) = &mut record.relies_on {
        relies_on.comes_to(&daemon.cpu);
    }
    daemon.journal(&migration, Some(&record))?;
    daemon.insert(record.clone());
    Ok((daemon.claim(&record.id, Doing::Migrate)?, migration))
}

/// Receives, restores, holds, and then does what the source has decided.
async fn arrive(daemon: &Arc<Daemon>, claim: Claim, mut migration: Migration, mut peer: Peer) -> Result<()> {
    if let Err(e) = receive(daemon, &claim, &mut migration, &mut peer).await {
        let _ = peer.send(&refused(&e)).await;
        discard(daemon, &claim, &mut migration, Some(&e.message)).await?;
        return Err(e);
    }
    // From here on, silence means that the source may have given us the pod: only its word counts.
    match peer.receive().await {
        Ok(Message::Commit { migration: id, frames }) if id == migration.id => {
            let answer = take_in(daemon, &claim, &mut migration, &frames).await?;
            let link = outer_name(&claim.record().id);
            // The pod runs: the source need not wait for the rest.
            let sent = peer.send(&answer).await;
            let settled = async {
                settle_in(daemon, &claim, &mut migration).await?;
                drop(claim);
                Ok(())
            };
            let late = async {
                sent?;
                // Until the neighbours have learnt the new place, some packets still go to the old one.
                if let Ok(Message::Late { frames }) = peer.receive_within(Duration::from_secs(5)).await {
                    deliver(&link, &frames).attempt("deliver late packets")?;
                }
                Ok(())
            };
            let (settled, delivered) = tokio::join!(settled, late);
            settled.and(delivered)
        }
        // The source has recorded that the pod is not given.
        Ok(Message::Rehearse) => {
            let init = held(daemon, &claim, &migration).await;
            let answer = match init {
                Ok(init) => rehearse::perform(daemon, &claim.record(), init).await,
                Err(e) => refused(&e),
            };
            migration.rehearsal = true;
            discard(daemon, &claim, &mut migration, None).await?;
            peer.send(&answer).await
        }
        _ => settle(daemon, claim, migration).await,
    }
}

/// Memory on its way into the CRIU that is to restore the pod.
#[derive(Default)]
struct Loading {
    /// None while it loads a round, and if there is none.
    nursery: Option<Nursery>,
    round: Option<JoinHandle<Result<Option<Nursery>>>>,
}

impl Loading {
    /// Waits until the round that is under way is loaded.
    async fn end(&mut self) -> Result<()> {
        if let Some(round) = self.round.take() {
            self.nursery = round.await.attempt("load the pod's memory")??;
        }
        Ok(())
    }
}

/// Everything up to *ready*.
async fn receive(daemon: &Arc<Daemon>, claim: &Claim, migration: &mut Migration, peer: &mut Peer) -> Result<()> {
    let mut loading = Loading::default();
    let received = receive_all(daemon, claim, migration, peer, &mut loading).await;
    // Whoever clears up is not to be disturbed.
    let _ = loading.end().await;
    received
}

async fn receive_all(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    migration: &mut Migration,
    peer: &mut Peer,
    loading: &mut Loading,
) -> Result<()> {
    let record = claim.record();
    let folder = daemon.config.pod_state(&record.id);
    super::create::make_folder(&folder).attempt("make the pod's folder")?;
    let missing_layers = missing(daemon, &record.layers)?;
    let mut holds = Vec::new();
    for layer in &record.layers {
        holds.extend(daemon.layers.hold(&layer.parse().attempt("read a layer's name")?));
    }
    peer.send(&Message::Prepared { missing_layers }).await?;
    let mut upper = Some(Receiver::new(&folder.join("upper")).attempt("open the writable layer")?);
    let images = flight(daemon, &migration.id);
    let _ = std::fs::remove_dir_all(&images);
    std::fs::create_dir_all(&images).attempt("make room in memory for the image")?;
    let mut open = BTreeMap::new();
    let mut rounds = 0;
    let (mut brisk, mut more_files) = (None, false);
    let (files, clocks, timers) = loop {
        match peer.receive().await? {
            Message::Layer { digest } if record.layers.contains(&digest) => {
                holds.push(receive_layer(daemon, peer, &digest).await?);
                peer.send(&Message::Stored).await?;
            }
            Message::Files => {
                // Files follow the rounds; and the last of them stand still with the pod, when all rounds are loaded.
                loading.end().await?;
                let receiver = upper.take().ok_or_else(|| ApiError::failed("the writable layer is lost"))?;
                upper = Some(receive_files(peer, receiver).await?);
                peer.send(&Message::Stored).await?;
            }
            Message::Chunk { name, offset } => {
                let data = peer.receive_data().await?;
                store_chunk(&images, &mut open, &name, offset, &data)?;
            }
            Message::Packed { name, offset, size } => {
                let data = unpack(&peer.receive_data().await?, size)?;
                store_chunk(&images, &mut open, &name, offset, &data)?;
            }
            Message::Round { number } if number == rounds + 1 && number <= MOST_ROUNDS => {
                open.clear();
                rounds = number;
                // The last one comes right before the freeze, and CRIU leaves the pod's cgroup early in the restore.
                drop(brisk.replace(Brisk::keep(&daemon.hierarchies)));
                // Until then, CRIU reads in these folders.
                loading.end().await?;
                memory::unfold(&images, rounds).attempt("put the pod's memory in place")?;
                let (daemon, record, images) = (daemon.clone(), record.clone(), images.clone());
                let nursery = loading.nursery.take();
                loading.round =
                    Some(tokio::spawn(async move { load(&daemon, &record, &images, nursery, number).await }));
                peer.send(&Message::Stored).await?;
            }
            Message::Lent => {
                let bundle = daemon.config.bundle(&record.id);
                memory::lazy::expect(&images, &bundle).attempt("store the image")?;
            }
            Message::MoreFiles => more_files = true,
            Message::Restore { files, clocks, timers } => break (files, clocks, timers),
            other => return Err(unexpected(&other)),
        }
    };
    let ahead = Clocks::here().map(|here| clocks.ahead_of(here)).attempt("read the clock")?;
    clocks::note(&images, ahead).attempt("store the image")?;
    note_timers(&images, &timers, Duration::ZERO).attempt("store the image")?;
    drop(open);
    loading.end().await?;
    for (name, size) in &files {
        let have = memory::find(&images, safe_name(name)?).metadata().map_or(0, |m| m.len());
        if have != *size {
            return Err(ApiError::failed(format!("the image file {name} came with {have} of {size} bytes")));
        }
    }
    let begun = Instant::now();
    // The freeze may be long ago.
    drop(brisk.replace(Brisk::keep(&daemon.hierarchies)));
    let restoring = tokio::spawn({
        let (daemon, record, migration, images) = (daemon.clone(), record.clone(), migration.clone(), images.clone());
        let nursery = loading.nursery.take();
        async move { restore_somehow(&daemon, &record, &migration, nursery, images).await }
    });
    let more = more_files.then(|| (&mut *peer, folder.join("upper")));
    let stored = store(daemon, migration, upper, more).await;
    restoring.await.attempt("restore the pod")??;
    stored?;
    drop(brisk);
    peer.hasten();
    peer.send(&Message::Ready { restore_ms: milliseconds(begun) }).await
}

/// Stores files and journal while CRIU restores: the files must be safe before the pod can be ours; that the disk works on them meanwhile
/// hides the wait. So it does with *held*: a pod that is not restored when this podd ends is one that the source still has. But the last
/// content of files comes first, which may come with `more`.
async fn store(
    daemon: &Arc<Daemon>,
    migration: &mut Migration,
    upper: Option<Receiver>,
    more: Option<(&mut Peer, PathBuf)>,
) -> Result<()> {
    let syncing = tokio::task::spawn_blocking(move || upper.map(|mut upper| upper.finish(true)).transpose());
    if let Some((peer, upper)) = more {
        receive_more_files(daemon, peer, &upper).await?;
    }
    migration.step = Step::Held;
    let (journaled, by) = (migration.clone(), daemon.clone());
    tokio::task::spawn_blocking(move || by.journal(&journaled, None)).await.attempt("write the journal")??;
    syncing.await.attempt("store the writable layer")?.map(drop).attempt("store the writable layer")
}

/// Has the pod restored by the CRIU that has loaded memory ahead, or else by another one.
async fn restore_somehow(
    daemon: &Arc<Daemon>,
    record: &PodRecord,
    migration: &Migration,
    nursery: Option<Nursery>,
    images: PathBuf,
) -> Result<ProcessId> {
    if let Some(nursery) = nursery {
        match go_on(daemon, record, migration, nursery, &images).await {
            Ok(init) => return Ok(init),
            Err(e) => {
                tracing::warn!(pod = record.spec.name, error = %e.message, "restoring it once more, by a CRIU that reads all memory");
            }
        }
    }
    restore(daemon, record, migration, images).await
}

/// Has the CRIU that has loaded memory ahead restore the pod.
async fn go_on(
    daemon: &Arc<Daemon>,
    record: &PodRecord,
    migration: &Migration,
    nursery: Nursery,
    images: &Path,
) -> Result<ProcessId> {
    if memory::lazy::is_expected(images) {
        postcopy::begin(daemon, migration).await;
    }
    nursery.go().attempt("have CRIU restore the pod")?;
    end_birth(daemon, record, &Mode::Restore { images: images.to_owned() }).await
}

/// Has a new CRIU restore it.
async fn restore(
    daemon: &Arc<Daemon>,
    record: &PodRecord,
    migration: &Migration,
    images: PathBuf,
) -> Result<ProcessId> {
    postcopy::stop(daemon, migration).await;
    let is_lazy = memory::lazy::is_expected(&images);
    let mode = Mode::Restore { images };
    begin_birth(daemon, record, mode.clone()).await?;
    if is_lazy {
        postcopy::begin(daemon, migration).await;
    }
    end_birth(daemon, record, &mode).await
}

/// Has a CRIU load a round of memory that is in its place; it is started by the first one. None from then on if that fails: the
/// restore reads it all.
///
/// # Errors
/// What CRIU may have left cannot be removed.
async fn load(
    daemon: &Daemon,
    record: &PodRecord,
    images: &Path,
    nursery: Option<Nursery>,
    number: u32,
) -> Result<Option<Nursery>> {
    let mut nursery = match nursery {
        Some(nursery) => nursery,
        None if number == 1 && daemon.loads_ahead() => {
            memory::prepare(images).attempt("make room in memory for the image")?;
            begin_birth(daemon, record, Mode::Restore { images: images.to_owned() }).await?;
            match listening(&daemon.config.bundle(&record.id), images).await {
                Ok(nursery) => nursery,
                Err(e) => return do_without(daemon, record, images, &e).await,
            }
        }
        None => return Ok(None),
    };
    match tokio::task::block_in_place(|| nursery.load(number, LOAD_LIMIT)) {
        Ok(()) => Ok(Some(nursery)),
        Err(e) => {
            drop(nursery);
            do_without(daemon, record, images, &e).await
        }
    }
}

/// Waits until CRIU listens.
async fn listening(bundle: &Path, images: &Path) -> std::io::Result<Nursery> {
    // The shim answers when CRIU has come to its end.
    let ended = client::status(bundle, LISTEN_LIMIT);
    tokio::pin!(ended);
    loop {
        if let Some(nursery) = Nursery::open(images)? {
            return Ok(nursery);
        }
        tokio::select! {
            status = &mut ended => {
                return Err(std::io::Error::other(match status? {
                    Status::Failed { reason } => reason,
                    other => format!("the shim says {other:?}"),
                }));
            }
            () = tokio::time::sleep(memory::A_MOMENT) => {}
        }
    }
}

async fn do_without(
    daemon: &Daemon,
    record: &PodRecord,
    images: &Path,
    error: &std::io::Error,
) -> Result<Option<Nursery>> {
    tracing::warn!(pod = record.spec.name, %error, "CRIU does not load memory ahead; it will take longer");
    memory::do_without(images).attempt("put the pod's memory in place")?;
    clear_up(daemon, record).await.attempt("clear up after CRIU")?;
    Ok(None)
}

/// Content of files that the source had not compared before. What is restored meanwhile sees it, as there is one page cache of a file;
/// names must not change under its overlay (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").
async fn receive_more_files(daemon: &Daemon, peer: &mut Peer, upper: &Path) -> Result<()> {
    match peer.receive().await? {
        Message::Files => {}
        other => return Err(unexpected(&other)),
    }
    tokio::task::block_in_place(|| crate::fault::point(&daemon.config.run, "target", "compares"));
    let receiver = Receiver::new(upper).attempt("open the writable layer")?.of_content_only();
    let mut receiver = receive_files(peer, receiver).await?;
    let stored = tokio::task::spawn_blocking(move || receiver.finish(true)).await;
    stored.attempt("store the writable layer")?.attempt("store the writable layer")
}

async fn receive_layer(daemon: &Daemon, peer: &mut Peer, digest: &str) -> Result<Hold> {
    let parsed = digest.parse().attempt("read a layer's name")?;
    let incoming = daemon.layers.receive(&parsed).attempt("make room for a layer")?;
    let receiver = Receiver::new(incoming.path()).attempt("make room for a layer")?;
    let mut receiver = receive_files(peer, receiver).await?;
    tokio::task::spawn_blocking(move || {
        receiver.finish(true).attempt("store a layer")?;
        incoming.commit().attempt("store a layer")
    })
    .await
    .attempt("store a layer")?
}

/// Applies file operations as they come, in a thread of its own.
async fn receive_files(peer: &mut Peer, mut receiver: Receiver) -> Result<Receiver> {
    let (queue, mut ops) = tokio::sync::mpsc::channel::<Op>(8);
    let apply = tokio::task::spawn_blocking(move || {
        while let Some(op) = ops.blocking_recv() {
            receiver.apply(op)?;
        }
        Ok::<_, checkpoint::files::Error>(receiver)
    });
    loop {
        match peer.receive().await? {
            Message::File(op) => {
                // A receiver that has stopped says below why.
                if queue.send(op).await.is_err() {
                    break;
                }
            }
            Message::FilesEnd => break,
            other => return Err(unexpected(&other)),
        }
    }
    drop(queue);
    apply.await.attempt("store files")?.attempt("store files")
}

fn store_chunk(images: &Path, open: &mut BTreeMap<String, File>, name: &str, offset: u64, data: &[u8]) -> Result<()> {
    if !open.contains_key(name) {
        let path = images.join(safe_name(name)?);
        let file = File::options().create(true).truncate(false).write(true).open(path).attempt("store the image")?;
        open.insert(name.to_owned(), file);
    }
    let file = open.get(name).ok_or_else(|| ApiError::failed("an image file vanished"))?;
    file.write_all_at(data, offset).attempt("store the image")
}

/// A name that stays in its folder.
fn safe_name(name: &str) -> Result<&str> {
    let good = !name.is_empty()
        && name.len() < 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if good { Ok(name) } else { Err(ApiError::failed(format!("{name:?} is not the name of an image file"))) }
}

fn flight(daemon: &Daemon, migration: &str) -> PathBuf {
    daemon.config.flight().join(format!("{migration}-in"))
}

/// The source's connection broke while we hold its pod: asks until it says what it has decided.
///
/// # Errors
/// The store's.
pub async fn settle(daemon: &Arc<Daemon>, claim: Claim, mut migration: Migration) -> Result<()> {
    let query = Message::Query { migration: migration.id.clone() };
    let mut pause = Duration::from_millis(50);
    loop {
        if let Some(reason) = forsaken(daemon, &migration) {
            tracing::warn!(pod = migration.pod, reason, "the pod goes on without its source");
            return commit(daemon, &claim, &mut migration, &[]).await.map(drop);
        }
        let answer = match Peer::call(daemon, &migration.peer).await {
            Ok(mut peer) => peer.ask(&query).await,
            Err(e) => Err(e),
        };
        match answer {
            Ok(Message::Given) => return commit(daemon, &claim, &mut migration, &[]).await.map(drop),
            Ok(Message::NotGiven) => {
                return discard(daemon, &claim, &mut migration, Some("the source kept the pod")).await;
            }
            Ok(_) => {}
            Err(e) => {
                tracing::warn!(pod = migration.pod, host = migration.peer, error = %e, "holding the pod until its source answers")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

async fn commit_by_id(daemon: &Arc<Daemon>, from: &str, id: &str, frames: &[Vec<u8>]) -> Result<Message> {
    let known = |m: Option<Migration>| m.filter(|m| m.role == Role::Target && m.peer == from);
    let lost = |reason: &str| Message::Lost { reason: reason.to_owned() };
    let Some(migration) = known(daemon.store.migration(id)?) else { return Ok(lost("it knows nothing of this move")) };
    let Ok(pod) = daemon.pod(&migration.pod_id) else {
        return Ok(match migration.step {
            // It came, and has left or been removed since.
            Step::Running => came(&migration),
            _ => lost(migration.error.as_deref().unwrap_or("it gave the move up")),
        });
    };
    let claim = daemon.claim_in_turn(pod, Doing::Migrate).await;
    // Whoever held the claim before us may have settled it.
    match known(daemon.store.migration(id)?) {
        Some(mut migration) => commit(daemon, &claim, &mut migration, frames).await,
        None => Ok(lost("it knows nothing of this move")),
    }
}

/// What became of a pod that is ours.
fn came(migration: &Migration) -> Message {
    match &migration.error {
        None => Message::Thawed,
        Some(reason) => Message::Ended { reason: reason.clone() },
    }
}

/// The source has given us the pod: records that it is ours, then thaws. Repeatable. The answer is *thawed*, *ended* or *lost*.
///
/// # Errors
/// The store's: nothing may be said to the source then.
pub async fn commit(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    migration: &mut Migration,
    frames: &[Vec<u8>],
) -> Result<Message> {
    let answer = take_in(daemon, claim, migration, frames).await?;
    settle_in(daemon, claim, migration).await?;
    // By now, all of it is here.
    Ok(if matches!(answer, Message::Borrows) { came(migration) } else { answer })
}

async fn take_in(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    migration: &mut Migration,
    frames: &[Vec<u8>],
) -> Result<Message> {
    match migration.step {
        Step::Held | Step::Committed => {}
        Step::Running => return Ok(came(migration)),
        _ => {
            discard(daemon, claim, migration, Some("it had not been restored")).await?;
            return Ok(Message::Lost { reason: migration.error.clone().unwrap_or_default() });
        }
    }
    let init = match held(daemon, claim, migration).await {
        Ok(init) => init,
        Err(e) if migration.step == Step::Committed => {
            // It is ours, and it may have run and answered clients: its end is that of a pod of this host. The source
            // must not go on from an older state.
            died(daemon, claim, migration, e).await?;
            return Ok(came(migration));
        }
        Err(e) => {
            discard(daemon, claim, migration, Some(&e.message)).await?;
            return Ok(Message::Lost { reason: e.message });
        }
    };
    // On disk before the first instruction runs here.
    let mut record = claim.record();
    record.state = PodState::Running { init, boot: daemon.boot.clone() };
    record.started.get_or_insert_with(Timestamp::now);
    migration.step = Step::Committed;
    // Before the link is plugged, too: what the kernel acknowledges in the pod's name, nobody sends again.
    daemon.journal(migration, Some(&record))?;
    claim.publish(record.clone());
    let borrows = memory::lazy::is_expected(&flight(daemon, &migration.id));
    if borrows {
        postcopy::go_on(daemon, migration).await;
    }
    thaw(daemon, &record, frames)?;
    Ok(if borrows { Message::Borrows } else { Message::Thawed })
}

/// It is ours, and has died just after it had come.
async fn died(daemon: &Arc<Daemon>, claim: &Claim, migration: &mut Migration, error: ApiError) -> Result<()> {
    tracing::error!(pod = migration.pod, %error, "the pod ended just after it had come");
    migration.step = Step::Running;
    migration.error = Some(error.message);
    daemon.journal(migration, None)?;
    ended(daemon, claim, false).await?;
    restart_later(daemon, &migration.pod_id);
    let _ = std::fs::remove_dir_all(flight(daemon, &migration.id));
    Ok(())
}

/// What is left to do for a pod that runs: the rest of its memory, if some was left behind. A podd that dies before it has done so
/// thaws the pod once more.
async fn settle_in(daemon: &Arc<Daemon>, claim: &Claim, migration: &mut Migration) -> Result<()> {
    if migration.step != Step::Committed {
        return Ok(());
    }
    if memory::lazy::is_expected(&flight(daemon, &migration.id)) {
        tokio::task::block_in_place(|| crate::fault::point(&daemon.config.run, "target", "borrows"));
        if let Err(e) = postcopy::end(daemon, migration).await {
            return died(daemon, claim, migration, e).await;
        }
    }
    let record = claim.record();
    if let PodState::Running { init, .. } = record.state {
        watch(daemon, &record.id, init);
    }
    migration.step = Step::Running;
    daemon.journal(migration, None)?;
    let images = flight(daemon, &migration.id);
    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(images));
    Ok(())
}

/// The held pod's init; if something has killed the held processes, the pod is restored once more.
async fn held(daemon: &Arc<Daemon>, claim: &Claim, migration: &Migration) -> Result<ProcessId> {
    let record = claim.record();
    let bundle = daemon.config.bundle(&record.id);
    if let Ok(Status::Alive { init }) = client::status(&bundle, Duration::from_secs(5)).await
        && init.is_alive()
    {
        return Ok(init);
    }
    let images = flight(daemon, &migration.id);
    if memory::lazy::is_expected(&images) && !client::shim(&bundle).is_ok_and(ProcessId::is_alive) {
        // Nobody puts the rest of its memory in place any more, and it would be zero.
        tokio::task::block_in_place(|| daemon.cgroup(&record.id).kill(KILL_LIMIT)).attempt("kill the pod")?;
    } else if let Some(Status::Alive { init }) = client::last_status(&bundle)
        && init.is_alive()
    {
        return Ok(init);
    }
    if migration.step == Step::Committed {
        // It may have run here already: an older state must not come back over it.
        return Err(ApiError::failed("its processes died on the target just after the handover"));
    }
    if !images.exists() {
        return Err(ApiError::failed("the target lost the pod's memory (it was rebooted)"));
    }
    restore(daemon, &record, migration, images).await
}

/// Records that the pod will never run here under this epoch, then removes every trace of it.
///
/// # Errors
/// The store's.
pub async fn discard(
    daemon: &Arc<Daemon>,
    claim: &Claim,
    migration: &mut Migration,
    reason: Option<&str>,
) -> Result<()> {
    migration.step = Step::Discarded;
    migration.error = reason.map(str::to_owned);
    daemon.journal(migration, None)?;
    let record = claim.record();
    let _ = std::fs::remove_dir_all(flight(daemon, &migration.id));
    clear_up(daemon, &record).await.attempt("clear up after a move that was given up")?;
    postcopy::stop(daemon, migration).await;
    delete(daemon, &record).await
}
