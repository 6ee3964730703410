//! The journal of this host, as it is written.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::http::{Answer, App, Asked, line, ndjson};
use crate::error::Result;
use crate::supervisor::Daemon;

/// Events that are read from the store at once.
const BATCH: usize = 200;

#[derive(Deserialize)]
pub struct EventsQuery {
    /// After the event of this number.
    #[serde(default)]
    after: u64,
    /// The last so many of those.
    tail: Option<u64>,
    /// Go on with those to come.
    #[serde(default)]
    follow: bool,
}

/// A line for each event.
pub async fn events(State(daemon): App, Asked(query): Asked<EventsQuery>) -> Answer {
    let newest = daemon.store.newest_event()?;
    let first = query.tail.map_or(0, |tail| newest.saturating_sub(tail));
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(async move {
        if let Err(error) = send(&daemon, query.after.max(first), query.follow, &lines).await {
            let _ = lines.send(line(&crate::api::Event::Error(error))).await;
        }
    });
    Ok(ndjson(body))
}

/// Sends until there are no more, or until nobody listens.
async fn send(daemon: &Arc<Daemon>, mut after: u64, follow: bool, lines: &mpsc::Sender<String>) -> Result<()> {
    let mut bell = daemon.bell.listen();
    loop {
        let entries = daemon.store.events(after, BATCH)?;
        for entry in &entries {
            after = entry.id;
            if lines.send(line(entry)).await.is_err() {
                return Ok(());
            }
        }
        if entries.len() == BATCH {
            continue;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            changed = bell.changed() => if changed.is_err() { return Ok(()) },
            () = lines.closed() => return Ok(()),
        }
    }
}
