//! Hosts that take no pods for a while. Several owners can want that; each takes back what it wanted itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::ApiError;
use crate::error::Result;
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
    let mut cordons = daemon.store.cordons()?;
    cordons.retain(|cordon| cordon.until.is_none_or(|until| until > now));
    Ok(cordons)
}

/// One of this host, if there is any.
///
/// # Errors
/// The store's.
pub fn of(daemon: &Daemon) -> Result<Option<Cordon>> {
    Ok(all(daemon)?.into_iter().next())
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
