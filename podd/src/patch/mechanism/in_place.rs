//! Pods that stay on their host while it boots: they sleep on its disk, and wake up with podd.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;

use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::patch::decide::Mechanism;
use crate::patch::notice::Kind;
use crate::patch::run::drive::is_silent;
use crate::patch::run::keep::newest;
use crate::patch::run::{HostRun, State, Step};
use crate::patch::told;
use crate::pod::checkpoint::{self, Options};
use crate::pod::preflight::{self, refuse_unless_go};
use crate::pod::restore;
use crate::pod::state::{PodRecord, PodState, Slept};
use crate::reserved;
use crate::supervisor::{Daemon, Doing};
use crate::sys::network;

/// A pod that does not wake up keeps this host from the network for so long.
const STRANGERS_WAIT: Duration = Duration::from_secs(60);
/// Left free on the disk on which they sleep, in bytes.
const SPARE: u64 = 64 << 20;
/// Between two looks at a run that was about to boot this host; and between two questions whether others know more of it.
const A_WHILE: Duration = Duration::from_secs(1);
const HEARD: Duration = Duration::from_secs(15);
/// They are not left asleep for a coordinator that is silent for longer: it has them sleep again before this host boots.
const LEFT: Duration = Duration::from_secs(120);

fn records(daemon: &Daemon) -> impl Iterator<Item = PodRecord> {
    daemon.pods().into_iter().map(|pod| pod.record())
}

/// How long pods are likely to be silent while this host boots, in ms: as long as it was away the last time; none: there was none.
///
/// # Errors
/// The store's.
pub fn expected_ms(daemon: &Daemon) -> Result<Option<f64>> {
    let runs = daemon.store.runs(Timestamp::MIN)?;
    let own = runs.iter().rev().filter_map(|run| run.host(&daemon.config.host));
    let last = own.filter(|host| host.mechanism == Mechanism::InPlace).find_map(HostRun::away_for);
    Ok(last.map(|last| last.as_secs_f64() * 1e3))
}

/// Sees whether all running pods could sleep here, and whether there is room for them.
pub(super) fn check(daemon: &Daemon) -> Result<()> {
    let mut needed = 0;
    for record in records(daemon).filter(|record| matches!(record.state, PodState::Running { .. })) {
        refuse_unless_go(&preflight::here(daemon, &record)?).map_err(|error| {
            let message = format!("{} cannot sleep: {}", record.spec.name, error.message);
            ApiError { message, ..error }
        })?;
        needed += daemon.cgroup(&record.id).usage().memory;
    }
    let folder = daemon.config.images();
    let space = nix::sys::statvfs::statvfs(&folder).attempt(format!("look at the room in {}", folder.display()))?;
    let free = space.blocks_available() * space.fragment_size();
    if free < needed + SPARE {
        let (free, needed) = (free >> 20, needed >> 20);
        let what =
            format!("pods with {needed} MiB of memory are to sleep in {}, which has {free} MiB free", folder.display());
        return Err(ApiError::conflict(what).cure("make room, or have them leave: `in_place = false` in podd.toml"));
    }
    Ok(())
}

/// Puts all running pods to sleep, some at a time; ids of all that sleep now. If they are to be `told`, all have been told before, and
/// their notice is over.
pub(super) async fn suspend(daemon: &Arc<Daemon>, run: (&str, u64), told: bool) -> Result<Vec<String>> {
    let running = || records(daemon).filter(|record| matches!(record.state, PodState::Running { .. }));
    if told {
        let (by, goes_on) = (super::owner(run.0), || super::goes_on(daemon, run));
        let ready = running()
            .map(async |record| told::until_ready(daemon, &record.id, Some((Kind::InPlace, &by)), goes_on).await);
        try_join_all(ready.collect::<Vec<_>>()).await?;
    }
    // A dump that has begun comes to its end, whatever becomes of the others.
    let sleepers = stream::iter(running()).map(|record| put_to_sleep(daemon, run, record.id));
    let ended: Vec<Result<()>> = sleepers.buffer_unordered(daemon.config.moves.get().into()).collect().await;
    drop(look_after(daemon));
    ended.into_iter().collect::<Result<()>>()?;
    Ok(records(daemon).filter(sleeps).map(|record| record.id).collect())
}

async fn put_to_sleep(daemon: &Arc<Daemon>, run: (&str, u64), id: String) -> Result<()> {
    // Whoever has ended meanwhile has.
    let Ok(pod) = daemon.pod(&id) else { return Ok(()) };
    let claim = daemon.claim_in_turn(pod, Doing::Suspend).await;
    super::goes_on(daemon, run)?;
    if !matches!(claim.record().state, PodState::Running { .. }) {
        return Ok(());
    }
    let notice = told::settled(daemon, &id).await?;
    // Before it sleeps: whatever ends us then, it wakes up again.
    claim.update(daemon, |record| (record.wakes, record.slept) = (true, None))?;
    let options = Options { output: None, leave_running: false, compress: false, whole: false };
    match checkpoint::checkpoint(daemon, &claim, options).await {
        Ok(report) => {
            let frozen = SignedDuration::from_secs_f64(report.frozen_ms / 1e3);
            let slept = Timestamp::now().checked_sub(frozen).ok().map(|since| Slept { since, until: None });
            claim.update(daemon, |record| record.slept = slept)?;
        }
        Err(error) => {
            // It may sleep all the same, and something of it could not be cleared up.
            claim.update(daemon, |record| record.wakes = !matches!(record.state, PodState::Running { .. }))?;
            told::unsettled(daemon, &id, notice).await?;
            return Err(error);
        }
    }
    let (daemon, image) = (daemon.clone(), daemon.config.own_image(&id));
    let kept = tokio::task::spawn_blocking(move || reserved::keep(&daemon.config, &image)).await;
    if let Some(error) = kept.ok().and_then(std::result::Result::err) {
        tracing::warn!(pod = id, %error, "no copy is kept in memory; it comes back from the disk");
    }
    Ok(())
}

fn sleeps(record: &PodRecord) -> bool {
    record.wakes && matches!(record.state, PodState::Suspended { .. })
}

/// Wakes up all that sleep for a boot, some at a time. One that does not wake up keeps no other from it.
pub(super) async fn wake(daemon: &Arc<Daemon>) -> Result<()> {
    daemon.hand.waking.store(true, Ordering::Relaxed);
    let woken = wake_all(daemon).await;
    daemon.hand.waking.store(false, Ordering::Relaxed);
    woken
}

async fn wake_all(daemon: &Arc<Daemon>) -> Result<()> {
    let sleepers = stream::iter(records(daemon).filter(sleeps)).map(|record| wake_up(daemon, record.id));
    let ended: Vec<Result<()>> = sleepers.buffer_unordered(daemon.config.moves.get().into()).collect().await;
    ended.into_iter().collect()
}

async fn wake_up(daemon: &Arc<Daemon>, id: String) -> Result<()> {
    let claim = daemon.claim_in_turn(daemon.pod(&id)?, Doing::Resume).await;
    let record = claim.record();
    if !sleeps(&record) {
        return Ok(());
    }
    let bytes = daemon.config.own_image(&id).metadata().map_or(0, |image| image.len());
    let begun = Instant::now();
    let resumed = restore::resume(daemon, &claim).await;
    match &resumed {
        Ok(_) => tracing::info!(pod = record.spec.name, bytes, ms = begun.elapsed().as_millis(), "it woke up"),
        Err(error) => tracing::error!(pod = record.spec.name, error = error.message, "it does not wake up"),
    }
    resumed.map(drop)
}

/// Whether a run has put the pods to sleep, and this host has still to boot: it says what becomes of them.
fn is_about_to_boot(daemon: &Daemon) -> bool {
    let run = daemon.store.open_run().ok().flatten().filter(|run| run.state == State::Running);
    run.as_ref().and_then(|run| run.host(&daemon.config.host)).is_some_and(|host| match host.step {
        Step::Suspend => true,
        Step::Reboot => host.boot_id.as_ref().is_none_or(|before| *before == daemon.boot),
        _ => false,
    })
}

/// Wakes up those that sleep for a boot once no run is about to boot this host any more: somebody may have it stand still, or it has
/// ended or been stopped while nobody could tell us. None: somebody looks after them already.
fn look_after(daemon: &Arc<Daemon>) -> Option<JoinHandle<Result<()>>> {
    if daemon.hand.watching.swap(true, Ordering::Relaxed) {
        return None;
    }
    let daemon = daemon.clone();
    Some(tokio::spawn(async move {
        let (mut since, mut silent) = (Instant::now(), None);
        let woken = loop {
            {
                let _turn = daemon.hand.turn().await;
                let is_left = silent.is_some_and(|silent: Instant| silent.elapsed() > LEFT);
                if is_left || !is_about_to_boot(&daemon) {
                    let woken = wake(&daemon).await;
                    // Before somebody else can put any to sleep.
                    daemon.hand.watching.store(false, Ordering::Relaxed);
                    break woken;
                }
            }
            tokio::time::sleep(A_WHILE).await;
            if since.elapsed() > HEARD {
                since = Instant::now();
                let Some(open) = daemon.store.open_run().ok().flatten() else { continue };
                let is_silent = open.coordinator != daemon.config.host && is_silent(&daemon, &open.coordinator).await;
                silent = is_silent.then(|| silent.unwrap_or_else(Instant::now));
                if let Ok(Some(newest)) = newest(&daemon, Some(&open.id)).await {
                    let _ = daemon.store.put_run(&newest, &[]);
                }
            }
        };
        if let Err(error) = &woken {
            tracing::error!(error = error.message, "a pod does not wake up");
        }
        woken
    }))
}

/// After podd's start: the same, and then lets the network in, so that nobody from outside meets a pod that is not there yet.
/// This host's own addresses stay with its uplink meanwhile. What it returns ends then.
///
/// # Errors
/// The uplink cannot join the bridge.
pub fn wake_first(daemon: &Arc<Daemon>) -> io::Result<Option<JoinHandle<()>>> {
    let join = |daemon: &Daemon| {
        let network = &daemon.config.network;
        network::ensure_bridge(&network.bridge, network.uplink.as_deref())
    };
    if !records(daemon).any(|record| sleeps(&record)) {
        return join(daemon).map(|()| None);
    }
    daemon.hand.waking.store(!is_about_to_boot(daemon), Ordering::Relaxed);
    let Some(mut waking) = look_after(daemon) else { return join(daemon).map(|()| None) };
    let daemon = daemon.clone();
    Ok(Some(tokio::spawn(async move {
        if tokio::time::timeout(STRANGERS_WAIT, &mut waking).await.is_err() {
            tracing::warn!("pods are still waking up; the network comes up all the same");
        }
        let joined = tokio::task::spawn_blocking(move || join(&daemon)).await;
        if let Some(error) = joined.ok().and_then(std::result::Result::err) {
            tracing::error!(%error, "the uplink does not join the bridge; start podd again");
        }
    })))
}
