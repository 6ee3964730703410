//! The API over HTTP: routes, and how answers and errors are said. What is done stands in `pod`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::caller::Caller;
use super::fleet;
use super::peers::known_hosts;
use crate::api::{
    API_VERSION, ApiError, Check, CheckpointRequest, CreateRequest, ErrorKind, Event, ExitStatus, HostInitRequest,
    HostInviteRequest, HostJoinRequest, HostRemoveRequest, HostView, KillRequest, LogLine, MigrateRequest,
    PreflightRequest, Progress, RestoreRequest, StopRequest, Version,
};
use crate::error::{Attempt, Result};
use crate::patch::{cordon, told};
use crate::pod::journal::Migration;
use crate::pod::migrate::{self, Wish};
use crate::pod::state::{PodRecord, PodState};
use crate::pod::{checkpoint, create, elsewhere, inspect, logs, preflight, rehearse, restore, start, stop};
use crate::store::Host;
use crate::supervisor::{Claim, Daemon, Doing};
use crate::trust;

pub(super) type App = State<Arc<Daemon>>;
pub(super) type Answer = std::result::Result<Response, ApiError>;

/// All routes.
pub fn router(daemon: Arc<Daemon>) -> axum::Router {
    axum::Router::new()
        .route("/v1/version", get(version))
        .route("/v1/pods", get(list).post(create_pod))
        .route("/v1/pods/{name}", get(inspect_pod).delete(remove))
        .route("/v1/pods/{name}/start", post(start_pod))
        .route("/v1/pods/{name}/stop", post(stop_pod))
        .route("/v1/pods/{name}/kill", post(kill))
        .route("/v1/pods/{name}/wait", post(wait))
        .route("/v1/pods/{name}/suspend", post(suspend))
        .route("/v1/pods/{name}/resume", post(resume))
        .route("/v1/pods/{name}/checkpoint", post(checkpoint_pod))
        .route("/v1/restore", post(restore_pod))
        .route("/v1/pods/{name}/preflight", post(preflight_pod))
        .route("/v1/pods/{name}/migrate", post(migrate_pod))
        .route("/v1/pods/{name}/rehearse", post(rehearse_pod))
        .route("/v1/pods/{name}/logs", get(logs_of))
        .route("/v1/pods/{name}/exec", post(super::exec::exec))
        .route("/v1/pods/{name}/stats", get(stats))
        .route("/v1/pods/{name}/top", get(top))
        .route("/v1/doctor", get(doctor))
        .route("/v1/hosts", get(hosts))
        .route("/v1/host/cpu", get(host_cpu))
        .route("/v1/host/init", post(host_init))
        .route("/v1/host/invite", post(host_invite))
        .route("/v1/host/join", post(host_join))
        .route("/v1/host/remove", post(host_remove))
        .route("/v1/migrations", get(migrations))
        .route("/v1/events", get(super::events::events))
        .route("/v1/patch/plan", get(super::plan::plan))
        .merge(super::status::routes())
        .merge(super::runs::routes())
        .method_not_allowed_fallback(async || {
            let error = ApiError::usage("this path of the API has no such method");
            (StatusCode::METHOD_NOT_ALLOWED, Json(error))
        })
        .fallback(async || ApiError::not_found("there is no such path in the API").into_response())
        .with_state(daemon)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::Usage => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Refused => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}

/// A JSON body; what is not understood becomes an [`ApiError`].
pub struct Said<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Said<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(e)) => Err(ApiError::usage(e.body_text())),
            Err(e) => Err(ApiError::usage(e.to_string())),
        }
    }
}

/// Parameters after the `?`; what is not understood becomes an [`ApiError`].
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => Err(ApiError::usage(e.body_text())),
        }
    }
}

pub(super) fn json(value: impl Serialize) -> Answer {
    Ok(Json(value).into_response())
}

/// Runs `work` in a task of its own, which goes on if the client leaves, and streams its events.
fn stream<T, F>(work: impl FnOnce(mpsc::UnboundedSender<Progress>) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (tell, mut told) = mpsc::unbounded_channel();
    let work = tokio::spawn(work(tell));
    let (lines, body) = mpsc::channel::<String>(16);
    tokio::spawn(async move {
        let mut last: Option<(String, std::time::Instant)> = None;
        while let Some(progress) = told.recv().await {
            // A new phase at once, the same one ten times a second at most.
            let pause = Duration::from_millis(100);
            if last.as_ref().is_some_and(|(phase, at)| *phase == progress.phase && at.elapsed() < pause) {
                continue;
            }
            last = Some((progress.phase.clone(), std::time::Instant::now()));
            if lines.send(line(&Event::Progress(progress))).await.is_err() {
                // The client has gone. What only waits for something may want to know; all else goes on.
                told.close();
            }
        }
        let event = match work.await {
            Ok(Ok(value)) => serde_json::to_value(value)
                .map_or_else(|e| Event::Error(ApiError::failed(e.to_string())), |value| Event::Result { value }),
            Ok(Err(e)) => Event::Error(e),
            Err(e) => Event::Error(ApiError::failed(format!("the daemon stumbled: {e}"))),
        };
        let _ = lines.send(line(&event)).await;
    });
    ndjson(body)
}

pub(super) fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

pub(super) fn ndjson(lines: mpsc::Receiver<String>) -> Response {
    let lines = futures_util::stream::unfold(lines, |mut lines| async {
        lines.recv().await.map(|line| (Ok::<_, Infallible>(line), lines))
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn version(State(daemon): App) -> Answer {
    let kernel = nix::sys::utsname::uname().attempt("ask for the kernel's version")?;
    json(Version {
        podd: env!("CARGO_PKG_VERSION").into(),
        api: API_VERSION,
        protocol: daemon.config.protocol.into(),
        host: daemon.config.host.clone(),
        kernel: kernel.release().to_string_lossy().into_owned(),
        criu: checkpoint_version(&daemon).await,
    })
}

async fn checkpoint_version(daemon: &Arc<Daemon>) -> Option<String> {
    let path = daemon.config.criu.clone();
    tokio::task::spawn_blocking(move || ::checkpoint::criu::version(&path).ok()).await.ok().flatten()
}

async fn list(State(daemon): App) -> Answer {
    json(daemon.pods().iter().map(|pod| daemon.view(pod)).collect::<Vec<_>>())
}

async fn create_pod(State(daemon): App, Said(request): Said<CreateRequest>) -> Answer {
    let spec = crate::pod::file::validated(&request.spec)?;
    cordon::refuse(&daemon)?;
    Ok(stream(async move |tell| {
        let making = daemon.clone();
        let claim = tokio::task::spawn_blocking(move || {
            create::create(&making, spec, &mut |progress| drop(tell.send(progress)))
        })
        .await
        .attempt("create the pod")??;
        let id = claim.record().id;
        if request.start
            && let Err(e) = start::start(&daemon, &claim).await
        {
            // `run` is one wish: a pod that never started would only be in the way of the next try.
            let _ = stop::delete(&daemon, &claim.record()).await;
            return Err(e);
        }
        Ok(daemon.view(&*daemon.pod(&id)?))
    }))
}

async fn inspect_pod(State(daemon): App, Path(name): Path<String>) -> Answer {
    json(inspect::inspect(&daemon, &*daemon.pod(&name)?)?)
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

async fn remove(State(daemon): App, Path(name): Path<String>, Asked(query): Asked<RemoveQuery>) -> Answer {
    let claim = daemon.claim_once_tidy(&name, Doing::Remove).await?;
    apart(async move { stop::remove(&daemon, &claim, query.force).await }).await?;
    json(())
}

/// Runs `work` in a task of its own: a client that leaves does not stop it half-way.
async fn apart<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.attempt("finish the request")?
}

/// Streams an action on one pod whose result is the pod's view.
async fn on_pod<F>(daemon: Arc<Daemon>, name: &str, what: Doing, act: impl FnOnce(Arc<Daemon>, Claim) -> F) -> Answer
where
    F: Future<Output = Result<PodRecord>> + Send + 'static,
{
    let claim = daemon.claim_once_tidy(name, what).await?;
    let work = act(daemon.clone(), claim);
    Ok(stream(async move |_| {
        let record = work.await?;
        Ok(daemon.view(&*daemon.pod(&record.id)?))
    }))
}

async fn start_pod(State(daemon): App, Path(name): Path<String>) -> Answer {
    cordon::refuse(&daemon)?;
    on_pod(daemon, &name, Doing::Start, async |daemon, claim| start::start(&daemon, &claim).await).await
}

async fn resume(State(daemon): App, Path(name): Path<String>, caller: Caller) -> Answer {
    cordon::refuse(&daemon)?;
    let record = daemon.pod(&name)?.record();
    if matches!(record.state, PodState::Given { .. } | PodState::Arriving { .. }) {
        let by = caller.name();
        return Ok(stream(async move |_| {
            let record = migrate::go_on_without(&daemon, &record, &by).await?;
            Ok(daemon.view(&*daemon.pod(&record.id)?))
        }));
    }
    on_pod(daemon, &name, Doing::Resume, async |daemon, claim| restore::resume(&daemon, &claim).await).await
}

async fn suspend(State(daemon): App, Path(name): Path<String>) -> Answer {
    on_pod(daemon, &name, Doing::Suspend, async |daemon, claim| {
        let options = checkpoint::Options { output: None, leave_running: false, compress: false, whole: false };
        checkpoint::checkpoint(&daemon, &claim, options).await?;
        Ok(claim.record())
    })
    .await
}

async fn stop_pod(State(daemon): App, Path(name): Path<String>, Said(request): Said<StopRequest>) -> Answer {
    let claim = daemon.claim_once_tidy(&name, Doing::Stop).await?;
    let stopping = daemon.clone();
    let record = apart(async move { stop::stop(&stopping, &claim, request.timeout_s).await }).await?;
    json(daemon.view(&*daemon.pod(&record.id)?))
}

async fn kill(State(daemon): App, Path(name): Path<String>, Said(request): Said<KillRequest>) -> Answer {
    json(stop::kill(&daemon, &daemon.pod(&name)?.record(), request.signal)?)
}

async fn wait(State(daemon): App, Path(name): Path<String>) -> Answer {
    let id = daemon.pod(&name)?.record().id;
    loop {
        let record = daemon.pod(&id)?.record();
        match record.state {
            PodState::Exited { exit, .. } => return json(exit),
            PodState::Lost { .. } => return json(ExitStatus { code: 255, signal: None, oom: false }),
            PodState::Running { .. } | PodState::Arriving { .. } | PodState::Given { .. } => {}
            PodState::Created | PodState::Suspended { .. } => return Err(stop::not_running(&daemon, &record)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn checkpoint_pod(
    State(daemon): App,
    Path(name): Path<String>,
    Said(request): Said<CheckpointRequest>,
) -> Answer {
    let claim = daemon.claim_once_tidy(&name, Doing::Checkpoint).await?;
    let options = checkpoint::Options {
        output: request.output.map(Into::into),
        leave_running: request.leave_running,
        compress: request.compress,
        whole: true,
    };
    Ok(stream(async move |_| checkpoint::checkpoint(&daemon, &claim, options).await))
}

async fn restore_pod(State(daemon): App, Said(request): Said<RestoreRequest>) -> Answer {
    cordon::refuse(&daemon)?;
    Ok(stream(async move |_| {
        let record = restore::restore(&daemon, &request.from).await?;
        Ok(daemon.view(&*daemon.pod(&record.id)?))
    }))
}

async fn preflight_pod(State(daemon): App, Path(name): Path<String>, Said(request): Said<PreflightRequest>) -> Answer {
    let record = daemon.pod(&name)?.record();
    match request.to {
        Some(to) => json(migrate::preflight(&daemon, &record, &to).await?),
        None => json(tokio::task::block_in_place(|| preflight::here(&daemon, &record))?),
    }
}

async fn migrate_pod(
    State(daemon): App,
    Path(name): Path<String>,
    caller: Caller,
    Said(request): Said<MigrateRequest>,
) -> Answer {
    let (to, by) = (request.to, caller.name());
    if request.notice_s.is_none() {
        // What cannot be moved need not wait to be told so.
        drop(daemon.claim_once_tidy(&name, Doing::Migrate).await?);
    }
    Ok(stream(async move |tell| {
        let (turn, claim) = match request.notice_s {
            Some(notice_s) => told::before_a_move(&daemon, &name, (&to, &by), notice_s, &tell).await?,
            None => {
                let turn = migrate::turn(&daemon, &tell).await?;
                (turn, daemon.claim_once_tidy(&name, Doing::Migrate).await?)
            }
        };
        let wish = Wish { to: &to, by: &by, mode: request.mode };
        migrate::migrate(&daemon, &claim, turn, wish, &tell).await
    }))
}

async fn rehearse_pod(State(daemon): App, Path(name): Path<String>, Said(request): Said<MigrateRequest>) -> Answer {
    drop(daemon.claim_once_tidy(&name, Doing::Rehearse).await?);
    Ok(stream(async move |tell| {
        // It takes as much room on the target as a move.
        let _turn = migrate::turn(&daemon, &tell).await?;
        let claim = daemon.claim_once_tidy(&name, Doing::Rehearse).await?;
        rehearse::rehearse(&daemon, &claim, &request.to, &tell).await
    }))
}

#[derive(Deserialize)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
    /// Follow one run only, whatever the restart policy says.
    #[serde(default)]
    once: bool,
    tail: Option<usize>,
}

async fn logs_of(State(daemon): App, Path(name): Path<String>, Asked(query): Asked<LogsQuery>) -> Answer {
    let PodRecord { id, state, .. } = daemon.pod(&name)?.record();
    // One that is just going is still to go.
    let stays = query.follow && !matches!(state, PodState::Given { .. });
    let gone_before = if stays { gone(&daemon, &id) } else { None };
    let mut log = logs::Log::new(&daemon.config.pod_state(&id).join("upper"));
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut first = tokio::task::block_in_place(|| log.read());
        if let Some(tail) = query.tail {
            first.drain(..first.len().saturating_sub(tail));
        }
        if send_lines(&lines, first).await.is_err() {
            return;
        }
        if !query.follow {
            return;
        }
        loop {
            // Looked at before the log: what came until the end is still shown.
            let record = daemon.pod(&id).map(|pod| pod.record());
            let goes_on = |r: &PodRecord| !r.state.can_remove() || (!query.once && start::will_restart(r));
            let alive = record.as_ref().is_ok_and(goes_on);
            if send_lines(&lines, tokio::task::block_in_place(|| log.read())).await.is_err() {
                return;
            }
            if !alive {
                let gone_now = if record.is_err() { gone(&daemon, &id) } else { None };
                if let Some(last) = gone_now.filter(|now| gone_before.as_ref().is_none_or(|before| before.id != now.id))
                {
                    let _ = send_lines(&lines, vec![logs::word_of_podd(format!("{} went to {}", last.pod, last.peer))])
                        .await;
                }
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = lines.closed() => return,
            }
        }
    });
    Ok(ndjson(body))
}

/// The move by which a pod has left this host.
fn gone(daemon: &Daemon, id: &str) -> Option<Migration> {
    elsewhere::last_gone(&daemon.store.migrations().ok()?, id).cloned()
}

async fn send_lines(to: &mpsc::Sender<String>, lines: Vec<LogLine>) -> std::result::Result<(), ()> {
    for entry in lines {
        to.send(line(&entry)).await.map_err(drop)?;
    }
    Ok(())
}

async fn stats(State(daemon): App, Path(name): Path<String>) -> Answer {
    json(inspect::stats(&daemon, &*daemon.pod(&name)?))
}

async fn top(State(daemon): App, Path(name): Path<String>) -> Answer {
    json(inspect::top(&daemon, &*daemon.pod(&name)?)?)
}

async fn migrations(State(daemon): App) -> Answer {
    json(inspect::moves(&daemon)?)
}

async fn doctor(State(daemon): App) -> Answer {
    json(checks(&daemon).await?)
}

/// Whether pods can run on this host, and move.
///
/// # Errors
/// The store's.
pub async fn checks(daemon: &Arc<Daemon>) -> Result<Vec<Check>> {
    let hosts = fleet::hosts(daemon).await?;
    let daemon = daemon.clone();
    let checks = tokio::task::spawn_blocking(move || {
        let flight = daemon.config.flight();
        let inputs = crate::doctor::Inputs {
            state_dir: &daemon.config.state,
            flight_dir: &flight,
            criu: &daemon.config.criu,
            idmapped: Some(daemon.id_mapped_mounts),
        };
        let mut checks = crate::doctor::checks(&inputs, || {
            crate::doctor::round_trip::round_trip(&daemon.config.criu, &flight)?;
            Ok(format!("CRIU {}", daemon.criu_version().unwrap_or_default()))
        });
        checks.push(crate::doctor::baseline(&daemon.baseline, &hosts));
        checks.extend(crate::reserved::check(&daemon.config));
        checks
    });
    checks.await.attempt("check the host")
}

async fn hosts(State(daemon): App) -> Answer {
    json(fleet::hosts(&daemon).await?)
}

#[derive(Deserialize)]
struct CpuQuery {
    #[serde(default)]
    fleet: bool,
}

async fn host_cpu(State(daemon): App, Asked(query): Asked<CpuQuery>) -> Answer {
    json(fleet::cpu(&daemon, query.fleet).await?)
}

fn address(text: &str) -> Result<std::net::SocketAddr> {
    text.parse().map_err(|_| ApiError::usage(format!("{text:?} is not an address with port, such as 10.0.0.1:7443")))
}

/// Names must agree: records and certificates speak of the same host.
fn check_own_name(daemon: &Daemon, name: &str) -> Result<()> {
    if name == daemon.config.host {
        return Ok(());
    }
    Err(ApiError::usage(format!("podd's configuration calls this host {:?}, not {name:?}", daemon.config.host))
        .cure("give the name of the configuration, or change `host` there and restart podd"))
}

fn own_view(daemon: &Daemon, identity: &trust::Identity) -> Result<HostView> {
    daemon.store.put_host(&Host { name: identity.name.clone(), address: identity.address })?;
    Ok(HostView {
        name: identity.name.clone(),
        address: identity.address.to_string(),
        this: true,
        reachable: None,
        baseline: Some(daemon.baseline.clone()),
    })
}

async fn host_init(State(daemon): App, Said(request): Said<HostInitRequest>) -> Answer {
    check_own_name(&daemon, &request.name)?;
    let pki = daemon.config.state.join("pki");
    let identity = trust::init(&pki, &request.name, address(&request.listen)?, Timestamp::now())?;
    super::peers::wait_until_listening(&daemon, &identity).await?;
    json(own_view(&daemon, &identity)?)
}

async fn host_invite(State(daemon): App, Said(request): Said<HostInviteRequest>) -> Answer {
    if known_hosts(&daemon)?.iter().any(|h| h.name == request.name) {
        return Err(ApiError::conflict(format!("a host named {:?} has joined already", request.name))
            .cure("choose another name"));
    }
    json(trust::invite(&daemon.config.state.join("pki"), &request.name, request.valid_s, Timestamp::now())?)
}

async fn host_remove(State(daemon): App, caller: Caller, Said(request): Said<HostRemoveRequest>) -> Answer {
    json(fleet::remove(&daemon, &request.hosts, request.gone, &caller.name()).await?)
}

async fn host_join(State(daemon): App, Said(request): Said<HostJoinRequest>) -> Answer {
    check_own_name(&daemon, &request.name)?;
    let pki = daemon.config.state.join("pki");
    let joined =
        trust::join(address(&request.authority)?, &request.token, &request.name, address(&request.listen)?, &pki)
            .await?;
    for host in &joined.hosts {
        daemon.store.put_host(&Host { name: host.name.clone(), address: host.address })?;
    }
    super::peers::wait_until_listening(&daemon, &joined.identity).await?;
    json(own_view(&daemon, &joined.identity)?)
}
