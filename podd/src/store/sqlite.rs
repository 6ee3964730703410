//! The default store: SQLite in WAL mode with full sync.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Error, Host, Store};
use crate::events::Entry;
use crate::patch::cordon::Cordon;
use crate::patch::decide::Record;
use crate::patch::notice::Notice;
use crate::patch::run::{Kept, Run};
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
    CREATE TABLE IF NOT EXISTS removed_hosts (name TEXT PRIMARY KEY) STRICT;
    CREATE TABLE IF NOT EXISTS patching (id INTEGER PRIMARY KEY CHECK (id = 0), record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS notices (pod TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, open INTEGER NOT NULL, record TEXT NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS runs_ended ON runs (json_extract(record, '$.ended'));
    CREATE TABLE IF NOT EXISTS cordons (owner TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, migration TEXT UNIQUE, record TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS delivered (id INTEGER PRIMARY KEY CHECK (id = 0), event INTEGER NOT NULL) STRICT;
";

/// A store in one file.
pub struct Sqlite {
    connection: Mutex<Connection>,
    runs: watch::Sender<()>,
}

impl Sqlite {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection: Mutex::new(connection), runs: watch::Sender::default() })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in another thread cannot leave SQLite half-way: transactions roll back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Error> {
        self.some(sql, [])
    }

    fn some<T: DeserializeOwned>(&self, sql: &str, values: impl Params) -> Result<Vec<T>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map(values, |row| row.get::<_, String>(0))?;
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
        one(&self.connection(), "SELECT record FROM migrations WHERE id = ?1", id)
    }

    fn put_migration(&self, migration: &Migration, pod: Option<&PodRecord>, end: Option<&Entry>) -> Result<(), Error> {
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
        if let Some(end) = end {
            transaction
                .prepare_cached("INSERT OR IGNORE INTO events (migration, record) VALUES (?1, ?2)")?
                .execute(params![migration.id, json(end)?])?;
        }
        Ok(transaction.commit()?)
    }

    fn hosts(&self) -> Result<Vec<Host>, Error> {
        self.all("SELECT record FROM hosts ORDER BY name")
    }

    fn put_host(&self, host: &Host) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute("DELETE FROM removed_hosts WHERE name = ?1", [&host.name])?;
        transaction.execute(
            "INSERT INTO hosts (name, record) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            params![host.name, json(host)?],
        )?;
        Ok(transaction.commit()?)
    }

    fn remove_host(&self, name: &str, event: &Entry) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute("DELETE FROM hosts WHERE name = ?1", [name])?;
        transaction.execute("INSERT OR IGNORE INTO removed_hosts (name) VALUES (?1)", [name])?;
        write_events(&transaction, std::slice::from_ref(event))?;
        Ok(transaction.commit()?)
    }

    fn removed_hosts(&self) -> Result<Vec<String>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT name FROM removed_hosts ORDER BY name")?;
        let names = statement.query_map([], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    fn patch_record(&self) -> Result<Record, Error> {
        Ok(self.all("SELECT record FROM patching")?.pop().unwrap_or_default())
    }

    fn put_patch_record(&self, record: &Record, events: &[Entry]) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute("INSERT OR REPLACE INTO patching (id, record) VALUES (0, ?1)", params![json(record)?])?;
        write_events(&transaction, events)?;
        Ok(transaction.commit()?)
    }

    fn notices(&self) -> Result<BTreeMap<String, Notice>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT pod, record FROM notices")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| row.map_err(Error::from).and_then(|(pod, text)| Ok((pod, serde_json::from_str(&text)?))))
            .collect()
    }

    fn put_notice(&self, pod_id: &str, notice: Option<&Notice>, events: &[Entry]) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        match notice {
            None => transaction.execute("DELETE FROM notices WHERE pod = ?1", [pod_id])?,
            Some(notice) => transaction.execute(
                "INSERT OR REPLACE INTO notices (pod, record) VALUES (?1, ?2)",
                params![pod_id, json(notice)?],
            )?,
        };
        write_events(&transaction, events)?;
        Ok(transaction.commit()?)
    }

    fn runs(&self, since: Timestamp) -> Result<Vec<Run>, Error> {
        let lately = "SELECT record FROM runs
             WHERE json_extract(record, '$.ended') IS NULL OR json_extract(record, '$.ended') > ?1 ORDER BY rowid";
        self.some(lately, [format!("{since:.0}")])
    }

    fn run(&self, id: &str) -> Result<Option<Run>, Error> {
        one(&self.connection(), "SELECT record FROM runs WHERE id = ?1", id)
    }

    fn open_run(&self) -> Result<Option<Run>, Error> {
        Ok(self.all("SELECT record FROM runs WHERE open = 1")?.pop())
    }

    fn put_run(&self, run: &Run, events: &[Entry]) -> Result<Kept, Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let same = one(&transaction, "SELECT record FROM runs WHERE id = ?1", &run.id)?;
        let other = one(&transaction, "SELECT record FROM runs WHERE open = 1 AND id <> ?1", &run.id)?;
        let kept = Run::judge(run, same.as_ref(), other.as_ref());
        if kept == Kept::Yes {
            transaction.execute(
                "INSERT INTO runs (id, open, record) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET open = excluded.open, record = excluded.record",
                params![run.id, run.is_open(), json(run)?],
            )?;
            write_events(&transaction, events)?;
        }
        transaction.commit()?;
        if kept == Kept::Yes {
            self.runs.send_replace(());
        }
        Ok(kept)
    }

    fn watch_runs(&self) -> watch::Receiver<()> {
        self.runs.subscribe()
    }

    fn cordons(&self) -> Result<Vec<Cordon>, Error> {
        self.all("SELECT record FROM cordons ORDER BY rowid")
    }

    fn put_cordon(&self, cordon: &Cordon) -> Result<(), Error> {
        self.connection().execute(
            "INSERT OR REPLACE INTO cordons (owner, record) VALUES (?1, ?2)",
            params![cordon.owner, json(cordon)?],
        )?;
        Ok(())
    }

    fn delete_cordon(&self, owner: &str) -> Result<(), Error> {
        self.connection().execute("DELETE FROM cordons WHERE owner = ?1", [owner])?;
        Ok(())
    }

    fn add_events(&self, events: &[Entry]) -> Result<(), Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        write_events(&transaction, events)?;
        Ok(transaction.commit()?)
    }

    fn events(&self, after: u64, most: usize) -> Result<Vec<Entry>, Error> {
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached("SELECT id, record FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let rows = statement
            .query_map(params![signed(after), most], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (id, text) = row?;
            Ok(Entry { id: id.unsigned_abs(), ..serde_json::from_str(&text)? })
        })
        .collect()
    }

    fn newest_event(&self) -> Result<u64, Error> {
        let newest: Option<i64> = self.connection().query_row("SELECT max(id) FROM events", [], |row| row.get(0))?;
        Ok(newest.unwrap_or(0).unsigned_abs())
    }

    fn delivered(&self) -> Result<u64, Error> {
        let id: Option<i64> =
            self.connection().query_row("SELECT event FROM delivered", [], |row| row.get(0)).optional()?;
        Ok(id.unwrap_or(0).unsigned_abs())
    }

    fn set_delivered(&self, id: u64) -> Result<(), Error> {
        self.connection().execute("INSERT OR REPLACE INTO delivered (id, event) VALUES (0, ?1)", [signed(id)])?;
        Ok(())
    }
}

fn write_events(connection: &Connection, events: &[Entry]) -> Result<(), Error> {
    for event in events {
        connection.prepare_cached("INSERT INTO events (record) VALUES (?1)")?.execute(params![json(event)?])?;
    }
    Ok(())
}

fn one<T: DeserializeOwned>(connection: &Connection, sql: &str, key: &str) -> Result<Option<T>, Error> {
    let text: Option<String> = connection.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
    Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
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

/// SQLite's numbers are signed; none of ours comes near the end of those.
fn signed(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

fn json(record: &impl Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string(record)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;

    use super::*;
    use crate::events::What;
    use crate::patch::notice::{Kind, Notice, Subject};
    use crate::patch::plan::Plan;
    use crate::patch::policy::Policy;
    use crate::patch::run::State;
    use crate::pod::journal::{Role, Step};

    fn entry(at_once: bool) -> Entry {
        let (host, by, at) = ("a".to_owned(), "root".to_owned(), Timestamp::UNIX_EPOCH);
        Entry { id: 0, at, host, by, what: What::Chosen { time: None, at_once } }
    }

    #[test]
    fn events_stay_in_order_and_the_end_of_a_move_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = Sqlite::open(&path).unwrap();
        assert_eq!((store.newest_event().unwrap(), store.delivered().unwrap()), (0, 0));
        store.add_events(&[entry(true)]).unwrap();
        assert_eq!(store.newest_event().unwrap(), 1);
        let migration = Migration {
            id: "1".to_owned(),
            role: Role::Source,
            peer: "b".to_owned(),
            pod_id: "2".to_owned(),
            pod: "web".to_owned(),
            epoch: 2,
            started: Timestamp::UNIX_EPOCH,
            step: Step::Done,
            error: None,
            report: None,
            rehearsal: false,
            forsaken: None,
            by: "root".to_owned(),
        };
        let end = Entry { what: What::of(&migration, "a").unwrap(), ..entry(false) };
        for _ in 0..2 {
            // After a crash it is recorded again.
            store.put_migration(&migration, None, Some(&end)).unwrap();
        }
        assert_eq!(What::of(&Migration { step: Step::Given, ..migration.clone() }, "a"), None);
        assert_eq!(What::of(&Migration { rehearsal: true, ..migration }, "a"), None);
        store.add_events(&[entry(false)]).unwrap();
        store.set_delivered(2).unwrap();
        drop(store);
        let store = Sqlite::open(&path).unwrap();
        let all = store.events(0, 10).unwrap();
        let kinds: Vec<_> = all.iter().map(|entry| entry.what.kind()).collect();
        assert_eq!(kinds, ["chosen", "move", "chosen"]);
        assert!(all.is_sorted_by(|a, b| a.id < b.id));
        assert_eq!(all[1].what.in_words(), "web moved from a to b");
        let rest = store.events(store.delivered().unwrap(), 1).unwrap();
        assert_eq!((rest.len(), rest[0].id), (1, store.newest_event().unwrap()));
    }

    #[test]
    fn runs_of_lately_are_open_or_ended_after() {
        let store = Sqlite::open(Path::new(":memory:")).unwrap();
        let at = |second| Timestamp::new(second, 500_000_000).unwrap();
        let plan = Plan { steps: Vec::new(), left: Vec::new() };
        for second in 0..3 {
            let run = Run::new(&plan, Vec::new(), "a", "root", at(second));
            let run = Run { state: State::Done, ended: Some(at(second)), ..run };
            assert_eq!(store.put_run(&run, &[]).unwrap(), Kept::Yes);
        }
        assert_eq!(store.put_run(&Run::new(&plan, Vec::new(), "a", "root", at(3)), &[]).unwrap(), Kept::Yes);
        let ended = |since| store.runs(since).unwrap().iter().map(|run| run.ended).collect::<Vec<_>>();
        assert_eq!(ended(at(1)), [Some(at(2)), None]);
        assert_eq!(ended(Timestamp::MIN).len(), 4);
    }

    #[test]
    fn notices_are_kept_by_pod() {
        let store = Sqlite::open(Path::new(":memory:")).unwrap();
        let subject = Subject { id: "1".to_owned(), name: "web".to_owned() };
        let now = Timestamp::UNIX_EPOCH;
        let notice = Notice::new(&subject, Kind::Move, now, now, &Policy::default().phases);
        store.put_notice("1", Some(&notice), &[entry(false)]).unwrap();
        assert_eq!(store.notices().unwrap(), BTreeMap::from([("1".to_owned(), notice)]));
        store.put_notice("1", None, &[]).unwrap();
        assert!(store.notices().unwrap().is_empty());
        assert_eq!(store.newest_event().unwrap(), 1);
    }
}
