//! A database goes from host to host and back in the middle of thousands of transactions.

use std::time::Duration;

use tests::Lab;
use tests::lab::eventually;
use tests::workload::migrate;
use tests::workload::postgres::{Bench, acknowledged, postgres, prepare_client, sql};

const ADDRESS: &str = "10.77.3.5";
/// Each client of pgbench numbers its transactions.
const NUMBERED: &str = "\\set n :n + 1\nINSERT INTO numbered VALUES (:client_id, :n);\n";

#[test]
fn no_transaction_is_lost_in_two_moves() {
    let lab = Lab::up(2);
    postgres(&lab, "a", "db", ADDRESS);
    sql(&lab, "a", "db", "CREATE TABLE numbered (client int, n int, PRIMARY KEY (client, n))");
    sql(&lab, "a", "db", "CREATE EXTENSION amcheck");
    let pgbench = "$(echo /usr/lib/postgresql/*/bin)/pgbench -h 127.0.0.1 -U postgres -i -s 4 -q postgres";
    lab.ok("a", &["exec", "db", "--", "sh", "-c", pgbench]);
    prepare_client(&lab, "numbered.sql", NUMBERED);

    let quiet = log(&lab, "a").len();
    let mut accounts = Bench::start(&lab, ADDRESS, &["-c", "4", "-j", "2"]);
    let numbering = ["-c", "3", "-D", "n=0", "-f", "/tmp/numbered.sql", "-l", "--log-prefix=/tmp/acknowledged"];
    let mut numbered = Bench::start(&lab, ADDRESS, &numbering);
    more_transactions(&lab, "a");
    for (from, to) in [("a", "b"), ("b", "a")] {
        migrate(&lab, "db", from, to);
        more_transactions(&lab, to);
        assert!(accounts.is_at_work() && numbered.is_at_work(), "pgbench ended too early");
    }

    let accounts = accounts.finish();
    let numbered = numbered.finish();
    assert_eq!((accounts.failed, numbered.failed), (0, 0), "{}{}", accounts.words, numbered.words);
    // Every transaction adds a row of history and changes three balances by the same amount.
    assert_eq!(sql(&lab, "a", "db", "SELECT count(*) FROM pgbench_history"), accounts.processed.to_string());
    let sums = "SELECT count(DISTINCT sum) FROM (SELECT sum(delta) FROM pgbench_history
        UNION ALL SELECT sum(abalance) FROM pgbench_accounts
        UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
        UNION ALL SELECT sum(bbalance) FROM pgbench_branches) AS sums";
    assert_eq!(sql(&lab, "a", "db", sums), "1", "all balances agree");
    let acknowledged = acknowledged(&lab, "acknowledged");
    assert_eq!((acknowledged.len(), acknowledged.values().sum()), (3, numbered.processed));
    for (client, highest) in acknowledged {
        let found = format!("SELECT count(*), max(n) FROM numbered WHERE client = {client}");
        assert_eq!(sql(&lab, "a", "db", &found), format!("{highest}|{highest}"), "client {client}");
    }
    sound(&lab, "a");
    let log = log(&lab, "a").split_off(quiet);
    for word in ["PANIC", "FATAL", "ERROR", "WARNING", "corrupt", "invalid page", "terminated by signal"] {
        assert!(!log.contains(word), "{word} in {log}");
    }
}

/// Waits for so many more commits.
fn more_transactions(lab: &Lab, host: &str) {
    let count = || -> u64 {
        let count = "SELECT (SELECT count(*) FROM pgbench_history) + (SELECT count(*) FROM numbered)";
        sql(lab, host, "db", count).parse().expect("a number")
    };
    let before = count();
    eventually("transactions are committed", Duration::from_secs(20), || count() > before + 300);
}

/// Tables and indexes are as they should be.
fn sound(lab: &Lab, host: &str) {
    let indexes = "SELECT count(bt_index_parent_check(c.oid, true)) > 100 FROM pg_class c JOIN pg_am a ON a.oid = relam
        WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'";
    assert_eq!(sql(lab, host, "db", indexes), "t");
    let tables = "SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE relkind = 'r' AND relpersistence = 'p'";
    assert_eq!(sql(lab, host, "db", tables), "0");
}

/// The server's log.
fn log(lab: &Lab, host: &str) -> String {
    let log = lab.podctl(host, &["logs", "db"]).checked();
    log.out + &log.err
}
