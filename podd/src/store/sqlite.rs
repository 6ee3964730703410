//! The default store: SQLite in WAL mode with full sync.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Host, Store};
use crate::patch::decide::Record;
use crate::pod::journal::Migration;
use crate::pod::state::PodRecord;

/// Finished migrations kept as history.
const HISTORY: u32 = 10_000;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA busy_timeout = 5000;
    CREATE TABLE IF NOT EXISTS pods (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS migrations (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS hosts (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS patching (id INTEGER PRIMARY KEY CHECK (id = 0), record TEXT NOT NULL) STRICT;
";

/// A store in one file.
pub struct Sqlite(Mutex<Connection>);

impl Sqlite {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Mutex::new(connection)))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in another thread cannot leave SQLite half-way: transactions roll back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
    }
}

impl Store for Sqlite {
    fn pods(&self) -> Result<Vec<PodRecord>, Error> {
        self.all("SELECT record FROM pods ORDER BY name")
    }

    fn put_pod(&self, pod: &PodRecord) -> Result<(), Error> {
        write_pod(&self.connection(), pod)
    }

    fn delete_pod(&self, id: &str) -> Result<(), Error> {
        self.connection().execute("DELETE FROM pods WHERE id = ?1", [id])?;
        Ok(())
    }

    fn migrations(&self) -> Result<Vec<Migration>, Error> {
        self.all("SELECT record FROM migrations ORDER BY rowid")
    }

    fn migration(&self, id: &str) -> Result<Option<Migration>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT record FROM migrations WHERE id = ?1")?;
        let text: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
        Ok(text.map(|t| serde_json::from_str(&t)).transpose()?)
    }

    fn put_migration(&self, migration: &Migration, pod: Option<&PodRecord>) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction
            .prepare_cached(
                "INSERT INTO migrations (id, record) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            )?
            .execute(params![migration.id, json(migration)?])?;
        if migration.step.is_final() {
            transaction
                .execute("DELETE FROM migrations WHERE rowid <= (SELECT max(rowid) FROM migrations) - ?1", [HISTORY])?;
        }
        if let Some(pod) = pod {
            write_pod(&transaction, pod)?;
        }
        Ok(transaction.commit()?)
    }

    fn hosts(&self) -> Result<Vec<Host>, Error> {
        self.all("SELECT record FROM hosts ORDER BY name")
    }

    fn put_host(&self, host: &Host) -> Result<(), Error> {
        self.connection().execute(
            "INSERT INTO hosts (name, record) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            params![host.name, json(host)?],
        )?;
        Ok(())
    }

    fn patch_record(&self) -> Result<Record, Error> {
        Ok(self.all("SELECT record FROM patching")?.pop().unwrap_or_default())
    }

    fn put_patch_record(&self, record: &Record) -> Result<(), Error> {
        self.connection()
            .execute("INSERT OR REPLACE INTO patching (id, record) VALUES (0, ?1)", params![json(record)?])?;
        Ok(())
    }
}

fn write_pod(connection: &Connection, pod: &PodRecord) -> Result<(), Error> {
    let written = connection
        .prepare_cached(
            "INSERT INTO pods (id, name, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
        )?
        .execute(params![pod.id, pod.spec.name, json(pod)?]);
    match written {
        Err(rusqlite::Error::SqliteFailure(e, _)) if e.code == rusqlite::ErrorCode::ConstraintViolation => {
            Err(Error::NameTaken(pod.spec.name.clone()))
        }
        other => other.map(drop).map_err(Error::from),
    }
}

fn json(record: &impl Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string(record)?)
}
