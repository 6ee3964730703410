//! Bringing a pod to life through its shim, watching it, and clearing up after it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::baseline::ReliesOn;
use jiff::Timestamp;

use super::freeze::keep_log;
use super::health;
use super::spec::RestartPolicy;
use super::state::{PodRecord, PodState};
use crate::api::{ApiError, ExitStatus};
use crate::error::{Attempt, Result};
use crate::shim::{Mode, OUTCOME_LIMIT, Request, ShimConfig, Status, client};
use crate::supervisor::{Claim, Daemon, Doing, Pod};
use crate::sys::network;
use crate::sys::process::ProcessId;

/// Time for killed processes to be gone.
pub const KILL_LIMIT: Duration = Duration::from_secs(20);

/// A run of this length ends a row of failures: the next pause before a restart is the shortest again.
const STEADY: Duration = Duration::from_secs(60);

/// Starts a pod that does not run.
///
/// # Errors
/// It runs already, is suspended, or could not be started; it is then as before.
pub async fn start(daemon: &Arc<Daemon>, claim: &Claim) -> Result<PodRecord> {
    let record = claim.record();
    if !record.state.can_start() {
        let error =
            ApiError::conflict(format!("{} cannot be started: it is {}", record.spec.name, daemon.stands(&record)));
        return Err(match record.state {
            PodState::Suspended { .. } => error.cure(format!("`podctl resume {}` continues it", record.spec.name)),
            _ => error,
        });
    }
    // Whatever it counted on before: its program asks this host.
    let relies_on = ReliesOn::at_birth(&daemon.baseline, &daemon.cpu, &record.process.env);
    let record = claim.update(daemon, |r| r.relies_on = Some(relies_on))?;
    let init = give_birth(daemon, &record, Mode::Start).await?;
    match daemon.plug(&record).attempt("connect the pod's link") {
        Ok(()) => announce(&record, init),
        Err(e) if init.is_alive() => return Err(e),
        // Its command has ended already, and took the link with it.
        Err(_) => {}
    }
    live(daemon, claim, init)
}

/// Records that a pod runs, and watches it from now on.
///
/// # Errors
/// The store's.
pub fn live(daemon: &Arc<Daemon>, claim: &Claim, init: ProcessId) -> Result<PodRecord> {
    let record = claim.update(daemon, |r| {
        r.state = PodState::Running { init, boot: daemon.boot.clone() };
        r.started = Some(Timestamp::now());
        if std::mem::take(&mut r.wakes)
            && let Some(slept) = &mut r.slept
        {
            slept.until = r.started;
        }
    })?;
    watch(daemon, &record.id, init);
    Ok(record)
}

/// Has a new shim start or restore the pod; returns its init. On failure nothing of it is left.
///
/// # Errors
/// The shim's reason.
pub async fn give_birth(daemon: &Daemon, record: &PodRecord, mode: Mode) -> Result<ProcessId> {
    begin_birth(daemon, record, mode.clone()).await?;
    end_birth(daemon, record, &mode).await
}

/// Starts a shim that brings the pod to life.
///
/// # Errors
/// What is left of an earlier run cannot be removed, or no shim can be started; nothing of the pod is left then.
pub async fn begin_birth(daemon: &Daemon, record: &PodRecord, mode: Mode) -> Result<()> {
    clear_up(daemon, record).await.attempt("clear up after the pod's last run")?;
    let launched = client::launch(&shim_config(daemon, record, mode)?).await;
    if launched.is_err() {
        let _ = clear_up(daemon, record).await;
    }
    launched.attempt(format!("start {}", record.spec.name))
}

/// Waits for what has [begun](begin_birth).
///
/// # Errors
/// The step that failed; nothing of the pod is left then.
pub async fn end_birth(daemon: &Daemon, record: &PodRecord, mode: &Mode) -> Result<ProcessId> {
    let starting = *mode == Mode::Start;
    let log = match mode {
        Mode::Restore { images } => Some(images.join("restore.log")),
        Mode::Start | Mode::Adopt { .. } => None,
    };
    let born = async {
        match client::status(&daemon.config.bundle(&record.id), OUTCOME_LIMIT).await? {
            Status::Alive { init } => Ok(init),
            // A command may be over before we look. A restored pod stands still, so its end is a failure.
            Status::Ended { init, .. } if starting => Ok(init),
            Status::Ended { code, .. } => Err(io::Error::other(format!("its init ended at once with code {code}"))),
            Status::Failed { reason } => Err(io::Error::other(reason)),
        }
    };
    match born.await {
        Ok(init) => Ok(init),
        Err(e) => {
            if let Some(log) = log {
                keep_log(daemon, record, &log);
            }
            let _ = clear_up(daemon, record).await;
            Err(ApiError::failed(format!("cannot start {}: {e}", record.spec.name)))
        }
    }
}

/// Waits until no CRIU of a pod's shim is at work. One that has outlived its shim in mid-dump must come to its end: killed,
/// it could leave its own code in the pod's processes; and it would freeze a pod again that is thawed under its hands.
///
/// # Errors
/// It does not end.
pub async fn await_workers(daemon: &Daemon, record: &PodRecord) -> io::Result<()> {
    let bundle = daemon.config.bundle(&record.id);
    let deadline = tokio::time::Instant::now() + OUTCOME_LIMIT;
    while tokio::task::block_in_place(|| client::workers(&bundle)).is_ok_and(|w| !w.is_empty()) {
        if tokio::time::Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a CRIU without a shim does not come to its end"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Makes sure that a pod with this init has a shim: if its own was killed, another one takes its place.
///
/// # Errors
/// The pod has ended, or no shim can be started.
pub async fn ensure_shim(daemon: &Daemon, record: &PodRecord) -> Result<()> {
    let PodState::Running { init, .. } = record.state else { return Err(super::stop::not_running(daemon, record)) };
    replace_dead_shim(daemon, record, init).await.attempt(format!("give {} a shim", record.spec.name))
}

async fn replace_dead_shim(daemon: &Daemon, record: &PodRecord, init: ProcessId) -> io::Result<()> {
    let bundle = daemon.config.bundle(&record.id);
    if client::shim(&bundle).is_ok_and(ProcessId::is_alive) {
        return Ok(());
    }
    await_workers(daemon, record).await?;
    tracing::warn!(pod = record.spec.name, "the pod's shim has ended; another one takes its place");
    let config = shim_config(daemon, record, Mode::Adopt { init }).map_err(io::Error::other)?;
    client::launch(&config).await?;
    match client::status(&bundle, OUTCOME_LIMIT).await? {
        Status::Alive { .. } | Status::Ended { .. } => Ok(()),
        Status::Failed { reason } => Err(io::Error::other(reason)),
    }
}

fn shim_config(daemon: &Daemon, record: &PodRecord, mode: Mode) -> Result<ShimConfig> {
    let mut layers = Vec::new();
    for digest in &record.layers {
        let digest = digest.parse().attempt("read the pod's record")?;
        layers.push(daemon.layers.layer_path(&digest));
    }
    let spec = &record.spec;
    let mut init_args: Vec<String> = vec!["--user".into(), record.process.user.clone()];
    init_args.extend(["--cwd".into(), record.process.workdir.clone()]);
    init_args.extend(["--log-bytes".into(), spec.log_bytes.to_string(), "--".into()]);
    init_args.extend(record.process.command.clone());
    Ok(ShimConfig {
        id: record.id.clone(),
        mode,
        bundle: daemon.config.bundle(&record.id),
        writable: daemon.config.pod_state(&record.id),
        layers,
        id_base: record.id_base,
        hostname: spec.hostname.clone().unwrap_or_else(|| spec.name.clone()),
        init_args,
        env: record.environment(),
        kernel: record.oldest_kernel(),
        network: spec.network.clone(),
        link: network::outer_name(&record.id),
        cradle: daemon.config.cradle(),
        volumes: spec.volumes.clone(),
        cap_add: spec.cap_add.clone(),
        allow_new_privileges: spec.allow_new_privileges,
        cgroup: daemon.config.cgroup_of(&record.id),
        limits: spec.limits.clone(),
        criu: daemon.config.criu.clone(),
    })
}

/// Tells the neighbours where the pod is. A failure costs time (they ask), not correctness.
pub fn announce(record: &PodRecord, init: ProcessId) {
    if let Some(network) = &record.spec.network
        && let Err(e) = crate::sys::announce::announce(init.pid, network)
    {
        tracing::warn!(pod = record.spec.name, error = %e, "could not announce the pod's addresses");
    }
}

/// Removes whatever a run of the pod has left on this host: processes, link, cgroup, shim, bundle. Its records and
/// its writable layer stay. Safe to repeat.
///
/// # Errors
/// Processes that do not die.
pub async fn clear_up(daemon: &Daemon, record: &PodRecord) -> io::Result<()> {
    let bundle = daemon.config.bundle(&record.id);
    let cgroup = daemon.cgroup(&record.id);
    let link = network::outer_name(&record.id);
    tokio::task::block_in_place(|| cgroup.kill(KILL_LIMIT))?;
    if bundle.exists() {
        // It reaps the init first, so its answer may take a moment.
        for _ in 0..50 {
            match client::order(&bundle, &Request::Shutdown, Duration::from_secs(5)).await {
                Err(e) if e.to_string().contains("not ended") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => break,
            }
        }
        if let Ok(text) = tokio::fs::read(bundle.join("shim.pid")).await
            && let Ok(shim) = serde_json::from_slice::<ProcessId>(&text)
        {
            for _ in 0..100 {
                if !shim.is_alive() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // One that hangs (CRIU cannot be killed in the kernel, a stub of an earlier version) must not stay.
            let _ = shim.signal(nix::libc::SIGKILL);
        }
        // A CRIU may outlive its shim, and it may have left the pod's cgroup by then.
        tokio::task::block_in_place(|| {
            for criu in client::workers(&bundle).unwrap_or_default() {
                let _ = criu.signal(nix::libc::SIGKILL);
            }
            cgroup.kill(KILL_LIMIT)
        })?;
    }
    tokio::task::block_in_place(|| {
        network::remove_link(&link)?;
        cgroup.remove()?;
        match std::fs::remove_dir_all(&bundle) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    })
}

/// Waits for the pod's init to end, in a task of its own; until then, sees to it that the pod has a shim.
pub fn watch(daemon: &Arc<Daemon>, id: &str, init: ProcessId) {
    let daemon = daemon.clone();
    let id = id.to_owned();
    tokio::spawn(keep_shim(daemon.clone(), id.clone(), init));
    tokio::spawn(health::watch(daemon.clone(), id.clone(), init));
    daemon.told.stir();
    tokio::spawn(async move {
        // An error means that it is gone already.
        let _ = init.ended().await;
        // In a box, as what comes then takes ten times the memory of those who wait.
        Box::pin(see_off(&daemon, &id, init)).await;
    });
}

/// Records the end of a pod whose init this was, and follows its restart policy.
async fn see_off(daemon: &Arc<Daemon>, id: &str, init: ProcessId) {
    let Ok(pod) = daemon.pod(id) else { return };
    let claim = daemon.claim_in_turn(pod.clone(), Doing::ClearUp).await;
    // Its owner may have ended it on purpose (stop, suspend, a move) and said so in the record.
    if !matches!(pod.record().state, PodState::Running { init: now, .. } if now == init) {
        return;
    }
    if let Err(e) = ended(daemon, &claim, false).await {
        tracing::error!(pod = pod.record().spec.name, error = %e, "could not record the end of the pod");
    }
    drop(claim);
    restart_if_wanted(daemon, &pod).await;
}

/// Replaces the pod's shim whenever it dies before the pod. Gives up if that cannot be done: the next dump tries again.
async fn keep_shim(daemon: Arc<Daemon>, id: String, init: ProcessId) {
    let bundle = daemon.config.bundle(&id);
    loop {
        if let Ok(shim) = client::shim(&bundle) {
            let _ = shim.ended().await;
        }
        // Not in a hot loop, should each one die at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(pod) = daemon.pod(&id) else { return };
        let over = |record: &PodRecord| {
            !matches!(record.state, PodState::Running { init: now, .. } if now == init) || !init.is_alive()
        };
        // Most often its end belongs to the pod's own end, and nobody must wait for us then.
        if over(&pod.record()) {
            return;
        }
        let _claim = daemon.claim_in_turn(pod.clone(), Doing::ReplaceShim).await;
        let record = pod.record();
        if over(&record) {
            return;
        }
        if let Err(e) = ensure_shim(&daemon, &record).await {
            tracing::error!(pod = record.spec.name, error = %e, "the pod has lost its shim, and gets no other one");
            return;
        }
    }
}

/// Follows the restart policy of a pod that was found dead, in a task of its own.
pub fn restart_later(daemon: &Arc<Daemon>, id: &str) {
    let daemon = daemon.clone();
    if let Ok(pod) = daemon.pod(id) {
        tokio::spawn(async move { restart_if_wanted(&daemon, &pod).await });
    }
}

/// Records how the pod ended, and clears up.
///
/// # Errors
/// The store's, or processes that do not die.
pub async fn ended(daemon: &Daemon, claim: &Claim, asked: bool) -> Result<PodRecord> {
    let record = claim.record();
    let exit = exit_status(daemon, &record).await;
    let updated = claim.update(daemon, |r| {
        r.state = match exit {
            Some(exit) => PodState::Exited { exit, asked },
            None => PodState::Lost { reason: "its processes vanished, and nobody saw its exit code".into() },
        };
        if asked || r.started.is_some_and(|t| Timestamp::now().duration_since(t).unsigned_abs() > STEADY) {
            r.restarts_in_a_row = 0;
        }
    })?;
    clear_up(daemon, &record).await.attempt("clear up after the pod")?;
    Ok(updated)
}

/// The exit code: from the shim, else from what it or the pod's init wrote.
async fn exit_status(daemon: &Daemon, record: &PodRecord) -> Option<ExitStatus> {
    let bundle = daemon.config.bundle(&record.id);
    let oom = daemon.cgroup(&record.id).usage().oom_kills > 0;
    let mut status = None;
    // The shim hears of the end at the same moment as we do: give it time to reap.
    for _ in 0..100 {
        status = match client::status(&bundle, Duration::from_secs(5)).await {
            Ok(Status::Alive { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            Ok(status) => Some(status),
            Err(_) => client::last_status(&bundle),
        };
        break;
    }
    let written = super::logs::exit_file(&daemon.config.pod_state(&record.id).join("upper"), oom);
    match status {
        // The init passes on the code; that a signal ended the command, only its record says.
        Some(Status::Ended { code, signal: None, .. }) if written.is_some_and(|w| w.code == code) => written,
        Some(Status::Ended { code, signal, .. }) => Some(ExitStatus { code, signal, oom }),
        _ => written,
    }
}

/// Whether the restart policy wants the pod to be started again.
#[must_use]
pub fn will_restart(record: &PodRecord) -> bool {
    match (&record.state, record.spec.restart) {
        (PodState::Exited { asked: true, .. }, _) | (_, RestartPolicy::No) => false,
        (PodState::Exited { exit, .. }, RestartPolicy::OnFailure) => exit.code != 0,
        (PodState::Exited { .. } | PodState::Lost { .. }, RestartPolicy::Always)
        | (PodState::Lost { .. }, RestartPolicy::OnFailure) => true,
        _ => false,
    }
}

/// Follows the restart policy, with growing pauses, until the pod runs or nobody wants it to.
async fn restart_if_wanted(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    while will_restart(&pod.record()) {
        tokio::time::sleep(pause(&pod.record())).await;
        let claim = daemon.claim_in_turn(pod.clone(), Doing::Restart).await;
        let record = pod.record();
        // In the meantime it may have been started, stopped or removed.
        if !will_restart(&record) || daemon.pod(&record.id).is_err() {
            return;
        }
        let restarted = match claim.update(daemon, |r| {
            r.restarts += 1;
            r.restarts_in_a_row += 1;
        }) {
            Ok(_) => start(daemon, &claim).await,
            Err(e) => Err(e),
        };
        if let Err(e) = restarted {
            tracing::error!(pod = record.spec.name, error = %e, "the restart policy could not start the pod");
        }
    }
}

fn pause(record: &PodRecord) -> Duration {
    Duration::from_millis(100 << record.restarts_in_a_row.min(10)).min(Duration::from_secs(60))
}
