//! Copies of a run: the journal on this host, and those that others keep.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;

use super::orders::{Call, call_host, keep_at};
use super::{HostRun, Kept, Run};
use crate::api::ApiError;
use crate::error::Result;
use crate::supervisor::Daemon;

/// Whoever does not keep a copy within this is not counted.
const LIMIT: Duration = Duration::from_secs(5);

/// This host's part in the open run, by its own copy: there is one at a time.
///
/// # Errors
/// The store's.
pub fn own_part(daemon: &Daemon) -> Result<Option<HostRun>> {
    Ok(daemon.store.open_run()?.and_then(|run| run.host(&daemon.config.host).cloned()))
}

/// Has the other members keep a copy; returns once a majority does (this host counts), and lets the rest go on. So many do.
///
/// # Errors
/// This host was removed from the fleet; a member knows of a newer coordinator; or there is no majority, and a member keeps another run.
pub async fn spread(daemon: &Arc<Daemon>, run: &Run) -> Result<usize> {
    crate::server::refuse_if_removed(daemon)?;
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
                // Two steps are written at a time, and a later copy has come first: it tells of this step, too.
                Some(Ok(Ok(Kept::Newer { coordinator }))) if coordinator == *own => copies += 1,
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

/// The newest copy of a run (none named: of the open one) that any host knows; none: there is none. A host that has missed its end
/// is told.
///
/// # Errors
/// It has not ended, and too few members answer to be sure of that.
pub async fn newest(daemon: &Arc<Daemon>, id: Option<&str>) -> Result<Option<Run>> {
    newest_without(daemon, id, &[]).await
}

/// The same, if these hosts are gone for good: nobody waits for their answers.
///
/// # Errors
/// As [`newest`].
pub async fn newest_without(daemon: &Arc<Daemon>, id: Option<&str>, gone: &[String]) -> Result<Option<Run>> {
    let ids: BTreeSet<String> = match id {
        Some(id) => BTreeSet::from([id.to_owned()]),
        None => {
            let open = ask_all::<Option<Run>>(daemon, &Call::Open, daemon.store.open_run()?, gone).await?;
            open.into_iter().filter_map(|(_, run)| Some(run?.id)).collect()
        }
    };
    let mut found = None;
    for run in ids {
        let own = daemon.store.run(&run)?;
        let copies = ask_all::<Option<Run>>(daemon, &Call::Copy { run }, own, gone).await?;
        let known = || copies.iter().filter_map(|(host, run)| Some((host, run.as_ref()?)));
        let Some((_, newest)) = known().max_by_key(|(_, run)| (run.term, run.revision)) else { continue };
        let answered = copies.iter().filter(|(host, _)| newest.members.contains(host)).count();
        if newest.is_open() && answered < newest.enough(gone) {
            let (count, all) = (answered, newest.members.len());
            let what = format!("{count} of {all} hosts answer: too few to know how the run stands");
            let cure = "see with `podctl host ls` which do not; the run goes on when most of them answer. Of those that never come back, \
                        say so: `podctl host rm NAME --gone`";
            return Err(ApiError::unreachable(what).cure(cure));
        }
        for (host, _) in known().filter(|(_, run)| run.is_open() && !newest.is_open()) {
            let _ = keep_at(daemon, host, newest).await;
        }
        if newest.is_open() || id.is_some() {
            found = Some(newest.clone());
        }
    }
    Ok(found)
}

/// Asks all hosts of the fleet but those that are gone; `own` is this one's answer. Those that do not answer are left out.
async fn ask_all<T: DeserializeOwned + Clone>(
    daemon: &Arc<Daemon>,
    call: &Call,
    own: T,
    gone: &[String],
) -> Result<Vec<(String, T)>> {
    let hosts = crate::server::host_names(daemon).await?;
    let asked = hosts.into_iter().filter(|host| !gone.contains(host)).map(async |host| {
        let answer = match host == daemon.config.host {
            true => Some(own.clone()),
            false => tokio::time::timeout(LIMIT, call_host(daemon, &host, call)).await.ok().and_then(Result::ok),
        };
        Some((host, answer?))
    });
    Ok(join_all(asked).await.into_iter().flatten().collect())
}
