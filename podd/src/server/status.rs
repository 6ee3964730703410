//! Whether hosts need patching: this one, another one, or all of the fleet.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Deserialize;

use super::caller::Caller;
use super::http::{Answer, App, Asked, Said, json};
use crate::api::{ChooseRequest, StatusView};
use crate::error::{Attempt, Result};
use crate::patch::facts::Missing;
use crate::patch::{metrics, watch};
use crate::peer;
use crate::pod::inspect;
use crate::supervisor::Daemon;

/// Routes of the status service.
pub fn routes() -> axum::Router<Arc<Daemon>> {
    axum::Router::new()
        .route("/v1/status", get(status))
        .route("/v1/patch/choose", post(choose))
        .route("/metrics", get(measures))
}

/// Serves the metrics alone, where Prometheus can reach them.
///
/// # Errors
/// The address cannot be used.
pub async fn serve_metrics(daemon: Arc<Daemon>, address: SocketAddr) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, axum::Router::new().route("/metrics", get(measures)).with_state(daemon)).await
}

#[derive(Deserialize)]
struct StatusQuery {
    /// Of this host; none: of the one that is asked.
    host: Option<String>,
    /// Of all hosts.
    #[serde(default)]
    fleet: bool,
    /// Read facts and advisories first.
    #[serde(default)]
    refresh: bool,
    /// Say how long each pod would be silent.
    #[serde(default)]
    why: bool,
}

async fn status(State(daemon): App, Asked(query): Asked<StatusQuery>) -> Answer {
    let StatusQuery { host, fleet, refresh, why } = query;
    if !fleet {
        let host = host.filter(|host| *host != daemon.config.host);
        return json([of(&daemon, host.as_deref(), refresh, why).await?]);
    }
    let hosts = super::fleet::names(&daemon).await?;
    let asked = hosts.into_iter().map(async |host| {
        let other = (host != daemon.config.host).then_some(host.as_str());
        of(&daemon, other, refresh, why).await.unwrap_or_else(|error| silent(&host, error.message))
    });
    json(join_all(asked).await)
}

async fn of(daemon: &Arc<Daemon>, host: Option<&str>, refresh: bool, why: bool) -> Result<StatusView> {
    match host {
        None => own(daemon, refresh, why).await,
        Some(host) => peer::status_of(daemon, host, refresh, why).await,
    }
}

/// Of this host. Whoever asks first has it read.
///
/// # Errors
/// The store's.
pub async fn own(daemon: &Arc<Daemon>, refresh: bool, why: bool) -> Result<StatusView> {
    if refresh || !watch::has_looked(daemon) {
        watch::look(daemon, refresh).await?;
    }
    let asking = daemon.clone();
    let answer = tokio::spawn(async move { if why { watch::explained(&asking) } else { watch::brief(&asking) } });
    answer.await.attempt("tell the status of this host")?
}

/// A host that does not answer.
fn silent(host: &str, why: String) -> StatusView {
    let cure = format!("see that podd runs on {host} and can be reached");
    StatusView::unknown(host, Timestamp::now(), Missing { what: why, cure })
}

#[derive(Deserialize)]
struct ChooseQuery {
    host: Option<String>,
}

async fn choose(
    State(daemon): App,
    Asked(query): Asked<ChooseQuery>,
    caller: Caller,
    Said(request): Said<ChooseRequest>,
) -> Answer {
    match query.host.filter(|host| *host != daemon.config.host) {
        None => json(watch::choose(&daemon, &caller.name(), &request)?),
        Some(host) => json(peer::choose_for(&daemon, &host, request).await?),
    }
}

async fn measures(State(daemon): App) -> Answer {
    let (status, moves) = (watch::status(&daemon)?, inspect::moves(&daemon)?);
    let states: Vec<String> = daemon.pods().iter().map(|pod| daemon.view(pod).state).collect();
    let own = moves.iter().filter(|m| m.from == daemon.config.host && !m.rehearsal);
    let blackouts: Vec<f64> = own.filter_map(|m| m.blackout_ms).collect();
    let run = daemon.store.open_run()?.map(|run| run.state.word());
    let text = metrics::text(&status, &states, &blackouts, run);
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
