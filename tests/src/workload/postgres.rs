//! PostgreSQL in a pod, and pgbench on the LAN's client.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Hosts, STARTS};
use crate::lab::{eventually, rootfs, run};

/// The pod's root prepares and waits; the server is another user's.
const SERVER: &str = r#"
mkdir -p /run/postgresql && chown postgres:postgres /run/postgresql
su -s /bin/sh postgres -c '
    set -e
    PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
    data=/var/lib/postgresql/data
    initdb --pgdata $data --username postgres --auth trust --data-checksums --no-locale --encoding UTF8
    echo "host all all all trust" >>$data/pg_hba.conf
    exec postgres -D $data -c listen_addresses="*" -c jit=off -c max_wal_size=256MB'
"#;

/// Starts PostgreSQL in a pod named `name` on `host`, and waits until it answers.
pub fn postgres(lab: &impl Hosts, host: &str, name: &str, address: &str) {
    let (root, cidr) = (lab.rootfs("postgres"), format!("{address}/16"));
    lab.ok(host, &["run", "--name", name, "--rootfs", &root, "--ip", &cidr, "--", "sh", "-c", SERVER]);
    eventually("PostgreSQL answers", STARTS, || {
        // Over TCP: initdb's own server, which ends again, has none.
        lab.podctl(
            host,
            &["exec", name, "--", "sh", "-c", "$(echo /usr/lib/postgresql/*/bin)/pg_isready -U postgres -h 127.0.0.1"],
        )
        .code
            == 0
    });
}

/// Runs SQL in the pod; the answer without decoration, columns separated by `|`.
#[track_caller]
pub fn sql(lab: &impl Hosts, host: &str, name: &str, text: &str) -> String {
    let script =
        r#"$(echo /usr/lib/postgresql/*/bin)/psql -h 127.0.0.1 -U postgres -X -qAt -v ON_ERROR_STOP=1 -c "$1""#;
    lab.ok(host, &["exec", name, "--", "sh", "-c", script, "sh", text]).trim().to_owned()
}

/// pgbench at work.
#[derive(Debug)]
pub struct Bench(Child);

/// What pgbench says at its end.
#[derive(Debug)]
pub struct Benched {
    /// Transactions whose commit was acknowledged.
    pub processed: u64,
    /// Transactions that failed.
    pub failed: u64,
    /// All of its words.
    pub words: String,
}

/// Gives the LAN's client a folder of its own in the place of the rootfs's `/tmp`, with this file in it.
pub fn prepare_client(lab: &impl Hosts, file: &str, content: &str) {
    let script = "mount -t tmpfs tmpfs $1/tmp && printf '%s' \"$3\" >$1/tmp/$2";
    run(lab.on_client(&["sh", "-c", script, "sh", &rootfs("postgres"), file, content])).must();
}

/// pgbench's log of acknowledged transactions (`-l --log-prefix=/tmp/PREFIX`): the highest number of each client, whose
/// numbers must have no gap.
#[must_use]
pub fn acknowledged(lab: &impl Hosts, prefix: &str) -> BTreeMap<u64, u64> {
    let script = "cat $1/tmp/$2.*";
    let log = run(lab.on_client(&["sh", "-c", script, "sh", &rootfs("postgres"), prefix])).must().out;
    let mut highest = BTreeMap::new();
    for line in log.lines() {
        let mut fields = line.split(' ').map(|f| f.parse::<u64>().expect("pgbench logs numbers"));
        let (client, number) = (fields.next().expect("a client"), fields.next().expect("a number"));
        let before = highest.insert(client, number);
        assert_eq!(number, before.map_or(1, |b| b + 1), "pgbench's own count of client {client}");
    }
    highest
}

impl Bench {
    /// Starts pgbench on the LAN's client against the server, until told to finish.
    #[must_use]
    pub fn start(lab: &impl Hosts, address: &str, options: &[&str]) -> Self {
        let root = rootfs("postgres");
        let script = r#"root=$1; shift; program=$(cd $root && echo usr/lib/postgresql/*/bin/pgbench); exec chroot $root /$program "$@""#;
        let mut all = vec!["sh", "-c", script, "sh", &root, "-h", address, "-U", "postgres", "-n", "-T", "600"];
        all.extend(options);
        all.push("postgres");
        let mut command = lab.on_client(&all);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("pgbench starts"))
    }

    /// Whether it has not ended yet.
    pub fn is_at_work(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Tells it that its time is over; what it says then.
    #[must_use]
    pub fn finish(self) -> Benched {
        // Its own alarm clock.
        let pid = Pid::from_raw(self.0.id().cast_signed());
        kill(pid, Signal::SIGALRM).expect("pgbench can be signalled");
        let output = self.0.wait_with_output().expect("pgbench ends");
        let words = [output.stdout, output.stderr].concat();
        let words = String::from_utf8_lossy(&words).into_owned();
        let number = |name: &str| {
            let line =
                words.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no {name:?} in {words}"));
            line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("pgbench counts")
        };
        assert!(output.status.success(), "{words}");
        Benched {
            processed: number("number of transactions actually processed:"),
            failed: number("number of failed transactions:"),
            words,
        }
    }
}
