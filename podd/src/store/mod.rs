//! Durable records. Whatever is written is on disk when the call returns.

mod sqlite;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use sqlite::Sqlite;

use crate::events::Entry;
use crate::patch::cordon::Cordon;
use crate::patch::decide::Record;
use crate::patch::notice::Notice;
use crate::patch::run::{Kept, Run};
use crate::pod::journal::Migration;
use crate::pod::state::PodRecord;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine's own failure.
    #[error("the store failed: {0}")]
    Engine(#[from] rusqlite::Error),
    /// A record is not understood: a newer podd wrote it, or it is damaged.
    #[error("a record in the store is not understood: {0}")]
    Record(#[from] serde_json::Error),
    /// A pod of this name exists.
    #[error("a pod named {0:?} exists already")]
    NameTaken(String),
}

/// A host of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its peer address.
    pub address: SocketAddr,
}

/// What podd needs of a store. Each call is one transaction.
pub trait Store: Send + Sync {
    /// Every pod.
    ///
    /// # Errors
    /// [`Error`].
    fn pods(&self) -> Result<Vec<PodRecord>, Error>;
    /// Adds or replaces a pod's record.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if another pod has its name.
    fn put_pod(&self, pod: &PodRecord) -> Result<(), Error>;
    /// Forgets a pod; no error if it is unknown.
    ///
    /// # Errors
    /// [`Error`].
    fn delete_pod(&self, id: &str) -> Result<(), Error>;
    /// Every migration, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    fn migrations(&self) -> Result<Vec<Migration>, Error>;
    /// One migration.
    ///
    /// # Errors
    /// [`Error`].
    fn migration(&self, id: &str) -> Result<Option<Migration>, Error>;
    /// Adds or replaces a migration's journal, its pod's record, and once the event of its end.
    ///
    /// # Errors
    /// [`Error`].
    fn put_migration(&self, migration: &Migration, pod: Option<&PodRecord>, end: Option<&Entry>) -> Result<(), Error>;
    /// Every known host.
    ///
    /// # Errors
    /// [`Error`].
    fn hosts(&self) -> Result<Vec<Host>, Error>;
    /// Adds or replaces a host, also one that had been removed.
    ///
    /// # Errors
    /// [`Error`].
    fn put_host(&self, host: &Host) -> Result<(), Error>;
    /// Forgets a host, remembers that it was removed, and writes this event down.
    ///
    /// # Errors
    /// [`Error`].
    fn remove_host(&self, name: &str, event: &Entry) -> Result<(), Error>;
    /// Names of hosts that were removed.
    ///
    /// # Errors
    /// [`Error`].
    fn removed_hosts(&self) -> Result<Vec<String>, Error>;
    /// What is remembered of this host for decisions about patching it.
    ///
    /// # Errors
    /// [`Error`].
    fn patch_record(&self) -> Result<Record, Error>;
    /// Replaces that, and writes these events down.
    ///
    /// # Errors
    /// [`Error`].
    fn put_patch_record(&self, record: &Record, events: &[Entry]) -> Result<(), Error>;
    /// What pods of this host have been told, by the pod's id.
    ///
    /// # Errors
    /// [`Error`].
    fn notices(&self) -> Result<BTreeMap<String, Notice>, Error>;
    /// Replaces what a pod was told (none: nothing any more), and writes these events down.
    ///
    /// # Errors
    /// [`Error`].
    fn put_notice(&self, pod_id: &str, notice: Option<&Notice>, events: &[Entry]) -> Result<(), Error>;
    /// Patch runs that this host knows, oldest first: those that have not ended or, to the second, did after that time.
    ///
    /// # Errors
    /// [`Error`].
    fn runs(&self, since: Timestamp) -> Result<Vec<Run>, Error>;
    /// One patch run.
    ///
    /// # Errors
    /// [`Error`].
    fn run(&self, id: &str) -> Result<Option<Run>, Error>;
    /// The patch run that has not ended.
    ///
    /// # Errors
    /// [`Error`].
    fn open_run(&self) -> Result<Option<Run>, Error>;
    /// Adds or replaces a patch run, if the [rules](Run::judge) allow it, and writes these events down: a comparison and a write
    /// that nobody comes between, with (term, revision) as the fencing token.
    ///
    /// # Errors
    /// [`Error`].
    fn put_run(&self, run: &Run, events: &[Entry]) -> Result<Kept, Error>;
    /// Changes whenever a run does, whoever wrote it.
    fn watch_runs(&self) -> watch::Receiver<()>;
    /// Why this host takes no pods.
    ///
    /// # Errors
    /// [`Error`].
    fn cordons(&self) -> Result<Vec<Cordon>, Error>;
    /// Adds or replaces an owner's.
    ///
    /// # Errors
    /// [`Error`].
    fn put_cordon(&self, cordon: &Cordon) -> Result<(), Error>;
    /// Removes an owner's; no error if there is none.
    ///
    /// # Errors
    /// [`Error`].
    fn delete_cordon(&self, owner: &str) -> Result<(), Error>;
    /// Writes events down that nothing else goes with.
    ///
    /// # Errors
    /// [`Error`].
    fn add_events(&self, events: &[Entry]) -> Result<(), Error>;
    /// Events after this number, at most so many, the oldest first.
    ///
    /// # Errors
    /// [`Error`].
    fn events(&self, after: u64, most: usize) -> Result<Vec<Entry>, Error>;
    /// Number of the newest event; 0: there is none.
    ///
    /// # Errors
    /// [`Error`].
    fn newest_event(&self) -> Result<u64, Error>;
    /// The last event of which the webhook need not be told any more.
    ///
    /// # Errors
    /// [`Error`].
    fn delivered(&self) -> Result<u64, Error>;
    /// Notes that.
    ///
    /// # Errors
    /// [`Error`].
    fn set_delivered(&self, id: u64) -> Result<(), Error>;
}
