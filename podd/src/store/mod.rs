//! Durable records. Whatever is written is on disk when the call returns.

mod sqlite;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use sqlite::Sqlite;

use crate::events::Entry;
use crate::patch::decide::Record;
use crate::patch::notice::Notice;
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
    /// Adds or replaces a migration's journal, its pod's record, and once the event of its end, in one step.
    ///
    /// # Errors
    /// [`Error`].
    fn put_migration(&self, migration: &Migration, pod: Option<&PodRecord>, end: Option<&Entry>) -> Result<(), Error>;
    /// Every known host.
    ///
    /// # Errors
    /// [`Error`].
    fn hosts(&self) -> Result<Vec<Host>, Error>;
    /// Adds or replaces a host.
    ///
    /// # Errors
    /// [`Error`].
    fn put_host(&self, host: &Host) -> Result<(), Error>;
    /// What is remembered of this host for decisions about patching it.
    ///
    /// # Errors
    /// [`Error`].
    fn patch_record(&self) -> Result<Record, Error>;
    /// Replaces that.
    ///
    /// # Errors
    /// [`Error`].
    fn put_patch_record(&self, record: &Record) -> Result<(), Error>;
    /// What pods of this host have been told, by the pod's id.
    ///
    /// # Errors
    /// [`Error`].
    fn notices(&self) -> Result<BTreeMap<String, Notice>, Error>;
    /// Replaces what a pod was told; none: nothing any more.
    ///
    /// # Errors
    /// [`Error`].
    fn put_notice(&self, pod_id: &str, notice: Option<&Notice>) -> Result<(), Error>;
    /// Writes an event down; its number.
    ///
    /// # Errors
    /// [`Error`].
    fn add_event(&self, entry: &Entry) -> Result<u64, Error>;
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
