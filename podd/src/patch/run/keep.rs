//! Copies of a run: the journal on this host, and those that others keep.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::orders::{Call, call_host, keep_at};
use super::{Kept, Run};
use crate::api::ApiError;
use crate::error::Result;
use crate::supervisor::Daemon;

/// Whoever does not keep a copy within this is not counted.
const LIMIT: Duration = Duration::from_secs(5);

/// Keeps a copy on this host, if the [rules](Run::judge) allow it.
///
/// # Errors
/// The store's.
pub fn keep(daemon: &Daemon, run: &Run) -> Result<Kept> {
    let kept = daemon.store.put_run(run, &[])?;
    if kept == Kept::Yes {
        daemon.told.stir();
    }
    Ok(kept)
}

/// The open run that this host knows, and the last one that ended.
///
/// # Errors
/// The store's.
pub fn known(daemon: &Daemon) -> Result<Vec<Run>> {
    let mut runs = daemon.store.runs()?;
    let ended = runs.iter().rposition(|run| !run.is_open()).map(|at| runs.remove(at));
    Ok(runs.into_iter().filter(Run::is_open).chain(ended).collect())
}

/// Has the other members keep a copy; returns once a majority does (this host counts), and lets the rest go on. So many do.
///
/// # Errors
/// A member knows of a newer coordinator; or there is no majority, and a member keeps another run.
pub async fn spread(daemon: &Arc<Daemon>, run: &Run) -> Result<usize> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let (spreading, run) = (daemon.clone(), run.clone());
    tokio::spawn(async move {
        let mut send = Some(send);
        let own = &spreading.config.host;
        let mut asked: FuturesUnordered<_> = run
            .members
            .iter()
            .filter(|member| *member != own)
            .map(|member| tokio::time::timeout(LIMIT, keep_at(&spreading, member, &run)))
            .collect();
        let mut copies = usize::from(run.members.contains(own));
        let mut busy = None;
        loop {
            if copies >= run.majority()
                && let Some(send) = send.take()
            {
                let _ = send.send(Ok(copies));
            }
            match asked.next().await {
                None => break,
                Some(Ok(Ok(Kept::Yes))) => copies += 1,
                Some(Ok(Ok(Kept::Newer { coordinator }))) => {
                    if let Some(send) = send.take() {
                        let _ = send.send(Err(ApiError::conflict(format!("{coordinator} has taken the run over"))));
                    }
                }
                // It may be one that has no majority, and never will.
                Some(Ok(Ok(Kept::Busy { run, coordinator }))) => {
                    let what = format!("another run is under way: {run}, carried out by {coordinator}");
                    busy = Some(ApiError::conflict(what).cure("wait for its end: `podctl patch runs`"));
                }
                Some(Ok(Err(error))) => tracing::debug!(error = error.message, "a copy of the run was not kept"),
                Some(Err(_)) => {}
            }
        }
        if let Some(send) = send {
            let _ = send.send(busy.map_or(Ok(copies), Err));
        }
    });
    receive.await.unwrap_or(Ok(0))
}

/// The newest copy of an open run that a majority of its members knows, or of that one run; none: there is no open run.
///
/// # Errors
/// Too few members answer to be sure.
pub async fn newest(daemon: &Arc<Daemon>, id: Option<&str>) -> Result<Option<Run>> {
    let hosts = crate::server::host_names(daemon).await?;
    let asked = hosts.iter().map(async |host| match *host == daemon.config.host {
        true => known(daemon).ok(),
        false => {
            let asked = call_host::<Vec<Run>>(daemon, host, &Call::Runs);
            tokio::time::timeout(LIMIT, asked).await.ok().and_then(Result::ok)
        }
    });
    let answers: Vec<Vec<Run>> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    let count = answers.len();
    let wanted = |run: &Run| id.map_or_else(|| run.is_open(), |id| run.id == id);
    let runs = answers.into_iter().flatten().filter(|run| wanted(run));
    let Some(newest) = runs.max_by_key(|run| (run.term, run.revision)) else { return Ok(None) };
    if newest.is_open() && count < newest.majority() {
        return Err(ApiError::unreachable(format!(
            "{count} of {} hosts answer: too few to know how the run stands",
            newest.members.len()
        ))
        .cure("see with `podctl host ls` which do not; the run goes on when most of them answer"));
    }
    Ok(Some(newest))
}
