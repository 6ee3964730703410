//! Hosts that take no pods for a while. Several owners can want that; each takes back what it wanted itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::ApiError;
use crate::error::Result;
use crate::patch::run::keep::own_part;
use crate::patch::run::{Run, Step};
use crate::supervisor::Daemon;

/// Somebody wants that no pod comes, or is started here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// Who: `run ID`, or a user of the host.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// It ends by itself then.
    pub until: Option<Timestamp>,
}

impl Cordon {
    /// The patch run that wants it; none: somebody else does.
    #[must_use]
    pub fn run(&self) -> Option<&str> {
        self.owner.strip_prefix("run ")
    }

    /// In a sentence that goes on from "it".
    #[must_use]
    pub fn in_words(&self) -> String {
        let until = self.until.map(|until| format!(", until {until:.0}")).unwrap_or_default();
        format!("takes no pods: cordoned by {} ({}){until}", self.owner, self.reason)
    }
}

/// All of this host that have not ended.
///
/// # Errors
/// The store's.
pub fn all(daemon: &Daemon) -> Result<Vec<Cordon>> {
    let now = Timestamp::now();
    let mut left = Vec::new();
    for cordon in daemon.store.cordons()? {
        let is_over = cordon.until.is_some_and(|until| until <= now) || is_done(daemon, &cordon)?;
        left.extend((!is_over).then_some(cordon));
    }
    Ok(left)
}

/// Whether it is of a run that has ended, and not because of this host: this one may not have heard that it ends.
fn is_done(daemon: &Daemon, cordon: &Cordon) -> Result<bool> {
    let Some(id) = cordon.run() else { return Ok(false) };
    let ended = daemon.store.run(id)?.filter(|run| !run.is_open());
    let stays = |run: &Run| run.host(&daemon.config.host).is_some_and(|host| host.step == Step::Failed || !host.patch);
    Ok(ended.is_some_and(|run| !stays(&run)))
}

/// Ends a run's; and if this host is well, those of all runs: earlier ones could not patch it.
///
/// # Errors
/// The store's.
pub fn end(daemon: &Daemon, owner: &str) -> Result<()> {
    let is_well = own_part(daemon)?.is_some_and(|host| host.step == Step::Uncordon);
    for cordon in daemon.store.cordons()? {
        if cordon.owner == owner || (is_well && cordon.run().is_some()) {
            daemon.store.delete_cordon(&cordon.owner)?;
        }
    }
    Ok(())
}

/// Refuses if this host is cordoned.
///
/// # Errors
/// It is; or the store's.
pub fn refuse(daemon: &Daemon) -> Result<()> {
    match super::run::orders::cordoned(daemon)? {
        None => Ok(()),
        Some(cordon) => Err(ApiError::conflict(format!("{} {}", daemon.config.host, cordon.in_words()))
            .cure("use another host, wait for the end, or `podctl host uncordon`")),
    }
}
