//! The pods of the matrix: how each is started, and the load that must not notice a move.

use std::fmt::Debug;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::lab::eventually;
use crate::machine::Lab;
use crate::machine::harness::Counter;
use crate::workload::{self, Hosts, everyday, postgres, web};

/// Emulated.
const PATIENCE: Duration = Duration::from_secs(120);
/// Web servers that tell how their clocks go.
const PYTHON: &str = include_str!("../../../machine/server.py");
const NODE: &str = include_str!("../../../machine/server.js");
/// Size of the file that is downloaded, and bytes a second: it lasts for longer than a move.
const DOWNLOAD: (u64, u64) = (24 << 20, 300 << 10);
/// podd tells the C library not to register restartable sequences; this pod overrules it.
const WITH_RSEQ: [&str; 2] = ["-e", "GLIBC_TUNABLES=glibc.pthread.rseq=1"];

/// A pod's place: host, name, address.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Machine.
    pub host: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// Its address.
    pub address: &'a str,
}

/// Load that is under way. Called with the machine that the pod is on after the move, it looks whether anything was
/// noticed, and panics with a sentence if so.
pub type Load = Box<dyn FnOnce(Place<'_>)>;

/// A kind of pod.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name in tables and on the command line.
    pub name: &'static str,
    /// What it does in the move, for people.
    pub about: &'static str,
    /// Starts it and waits until it answers.
    pub start: fn(Place<'_>),
    /// Puts it under load.
    pub load: fn(Place<'_>) -> Load,
    /// It is run only if it is asked for by name: it takes an emulated machine many minutes to move.
    pub extra: bool,
    /// Bytes of restartable sequences that its C library has really registered, of a pod that can tell.
    pub rseq: Option<fn(Place<'_>) -> u64>,
}

impl Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All kinds, the quick ones first.
pub const KINDS: [Kind; 8] = [
    Kind {
        name: "redis",
        about: "a client counts over one connection; no acknowledged increment may be lost",
        start: redis,
        load: count,
        extra: false,
        rseq: None,
    },
    Kind {
        name: "nginx",
        about: "a slow download with a SHA-256, and two kept connections that ask again and again",
        start: nginx,
        load: browse,
        extra: false,
        rseq: None,
    },
    Kind {
        name: "python",
        about: "a threaded web server with sleeping threads, interval timers and queues; two kept connections",
        start: |place| python(place, &[]),
        load: ask_server,
        extra: false,
        rseq: Some(rseq),
    },
    Kind {
        name: "node",
        about: "a JavaScript web server with timers, worker threads and compiled code; two kept connections",
        start: |place| server(place, "node", &[], &["node", "-e", NODE]),
        load: ask_server,
        extra: false,
        rseq: None,
    },
    Kind {
        name: "postgres",
        about: "pgbench with two clients; each acknowledged transaction must be in the history, once",
        start: database,
        load: transact,
        extra: false,
        rseq: None,
    },
    Kind {
        name: "pipeline",
        about: "shell pipelines and terminals of three users, with jobs, traps and locks, checking themselves",
        start: |place| everyday_programs(place, &["-e", "EVERYDAY=pipes,terminals,locks,signals"]),
        load: rounds,
        extra: false,
        rseq: None,
    },
    Kind {
        name: "python-rseq",
        about: "as python, with GLIBC_TUNABLES=glibc.pthread.rseq=1, against podd's default",
        start: |place| python(place, &WITH_RSEQ),
        load: ask_server,
        extra: false,
        rseq: Some(rseq),
    },
    Kind {
        name: "everyday",
        about: "what pipeline does, and timers, sockets, files, memory: some 45 processes; only if asked for by name",
        start: |place| everyday_programs(place, &[]),
        load: rounds,
        extra: true,
        rseq: None,
    },
];

fn redis(place: Place<'_>) {
    workload::redis(place.lab, place.host, place.name, place.address);
    inside(place, &["redis-cli", "debug", "populate", "5000", "key", "1000"]);
}

fn count(place: Place<'_>) -> Load {
    let (before, counter) = (counted(place), Counter::start(place.lab, place.address));
    eventually("the client counts", PATIENCE, || counted(place) > before + 50);
    Box::new(move |place| {
        let arrived = counted(place);
        // If the connection is broken it will not, and then the counter knows why.
        let goes_on = attempt(Duration::from_secs(30), || counted(place) > arrived + 20);
        let seen = counter.finish();
        assert_eq!((seen.error.as_deref(), seen.gaps), (None, 0), "{seen:?}");
        assert!(goes_on, "the client does not get on: {seen:?}");
        assert_eq!(counted(place), seen.last, "every acknowledged increment is there");
        assert_eq!(inside(place, &["redis-cli", "dbsize"]).trim(), "5001", "keys");
    })
}

fn counted(place: Place<'_>) -> u64 {
    inside(place, &["redis-cli", "get", "n"]).trim().parse().unwrap_or(0)
}

fn nginx(place: Place<'_>) {
    web::nginx(place.lab, place.host, place.name, place.address);
    inside(place, &["sh", "-c", &format!("head -c {} /dev/urandom >/srv/www/large", DOWNLOAD.0)]);
}

fn browse(place: Place<'_>) -> Load {
    let (lab, address) = (place.lab, place.address);
    let sum = inside(place, &["sha256sum", "/srv/www/large"]);
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    let mut download = web::download(lab, address, "/large", DOWNLOAD.1);
    let asked = web::ask(lab, address, 2);
    eventually("nginx answers", PATIENCE, || answered(place) > 50);
    Box::new(move |place| {
        let arrived = answered(place);
        let goes_on = attempt(Duration::from_secs(30), || answered(place) > arrived + 50);
        assert!(download.is_at_work(), "the download ended before the move did");
        let asked: web::Asked = asked.finish();
        assert!(asked.errors.is_empty() && goes_on, "{asked:?}");
        let download: web::Download = download.finish();
        assert!(download.error.is_none() && download.bytes == DOWNLOAD.0 && download.sha256 == sum, "{download:?}");
    })
}

/// Lines of the access log.
fn answered(place: Place<'_>) -> u64 {
    let words = inside(place, &["wc", "-l", "/var/log/nginx/access.log"]);
    words.split_whitespace().next().and_then(|n| n.parse().ok()).expect("wc counts")
}

fn python(place: Place<'_>, options: &[&str]) {
    server(place, "shell", options, &["python3", "-c", PYTHON]);
}

fn server(place: Place<'_>, rootfs: &str, options: &[&str], command: &[&str]) {
    let (root, cidr) = (place.lab.rootfs(rootfs), format!("{}/16", place.address));
    let mut run = vec!["run", "--name", place.name, "--rootfs", &root, "--ip", &cidr];
    run.extend(options);
    run.push("--");
    run.extend(command);
    place.lab.ok(place.host, &run);
    eventually("the server answers", PATIENCE, || {
        let wget = ["exec", place.name, "--", "wget", "-qO-", "http://127.0.0.1/small"];
        place.lab.podctl(place.host, &wget).out.contains("still here")
    });
}

fn ask_server(place: Place<'_>) -> Load {
    let asked = web::ask(place.lab, place.address, 2);
    thread::sleep(Duration::from_secs(2));
    Box::new(move |place| {
        let before = counts(place);
        let mut now = before.clone();
        let all = attempt(Duration::from_secs(30), || {
            now = counts(place);
            let clocks = before["clocks"].as_object().expect("the server has clocks");
            clocks.iter().all(|(name, n)| now["clocks"][name].as_u64() > n.as_u64().map(|n| n + 3))
        });
        assert!(all, "a clock of its own stands still: {before}, 30 s later {now}");
        assert_eq!(now["faults"], serde_json::json!([]));
        let asked: web::Asked = asked.finish();
        assert!(asked.errors.is_empty() && asked.right > 20, "{asked:?}");
    })
}

fn rseq(place: Place<'_>) -> u64 {
    counts(place)["rseq"].as_u64().expect("the server tells")
}

fn counts(place: Place<'_>) -> Value {
    let text = inside(place, &["wget", "-qO-", "http://127.0.0.1/counts"]);
    serde_json::from_str(&text).expect("the server says JSON")
}

fn database(place: Place<'_>) {
    postgres::postgres(place.lab, place.host, place.name, place.address);
    let script = "$(echo /usr/lib/postgresql/*/bin)/pgbench -h 127.0.0.1 -U postgres -i -s 1 -q postgres";
    inside(place, &["sh", "-c", script]);
}

fn transact(place: Place<'_>) -> Load {
    let before = history(place);
    let mut bench = postgres::Bench::start(place.lab, place.address, &["-c", "2", "-b", "tpcb-like"]);
    eventually("pgbench is at work", PATIENCE, || history(place) > before + 10);
    Box::new(move |place| {
        let arrived = history(place);
        let goes_on = attempt(PATIENCE, || history(place) > arrived + 10);
        assert!(bench.is_at_work() && goes_on, "pgbench does not get on");
        let benched = bench.finish();
        assert_eq!(benched.failed, 0, "{}", benched.words);
        let done = history(place) - before;
        // One transaction of each client may have been committed without its client knowing yet.
        assert!((benched.processed..=benched.processed + 2).contains(&done), "{done} are there: {}", benched.words);
    })
}

fn history(place: Place<'_>) -> u64 {
    let count = postgres::sql(place.lab, place.host, place.name, "SELECT count(*) FROM pgbench_history");
    count.parse().expect("a number")
}

fn everyday_programs(place: Place<'_>, options: &[&str]) {
    everyday::everyday(place.lab, place.host, place.name, place.address, options);
}

fn rounds(place: Place<'_>) -> Load {
    everyday::more_rounds(place.lab, place.host, place.name, 2);
    Box::new(|place| everyday::more_rounds(place.lab, place.host, place.name, 3))
}

/// Runs a command in the pod; its output.
#[track_caller]
fn inside(place: Place<'_>, command: &[&str]) -> String {
    let mut all = vec!["exec", place.name, "--"];
    all.extend(command);
    place.lab.ok(place.host, &all)
}

/// Whether it comes true within a time.
fn attempt(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = std::time::Instant::now();
    while !condition() {
        if begun.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}
