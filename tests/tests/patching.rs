//! Patch runs on emulated machines, each with its own kernel, its own apt and a signed archive: `scripts/demo-patch`.
//! Nothing here is made up: real packages of two kernels, real boots, real applications with clients that never stop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::lab::eventually;
use tests::machine::Lab;
use tests::machine::archive::{Archive, Published};
use tests::machine::cache::Cache;
use tests::machine::harness::Counter;
use tests::workload::{self, postgres, web};

/// A run of three machines, emulated.
const LIMIT: Duration = Duration::from_secs(1800);
/// Each host is due at once, and no pod is asked before.
const POLICY: &str = "[phases]\nself-service = \"0s\"\nnotice = \"0s\"\n[run]\nsoak = \"3s\"\n";
/// The line of the crontab that is shipped, as cron runs it.
const CRON: &str = include_str!("../../podd/podd-patch.cron");

/// Machines with the older kernel of an archive, which know of nothing newer yet.
struct Site {
    lab: Lab,
    archive: Archive,
    machines: Vec<&'static str>,
    begun: Instant,
}

impl Site {
    fn with(machines: &[&'static str], podd: &str) -> Self {
        let archive = Archive::new(&Cache::open().expect("a cache"));
        let site = Self { lab: Lab::new(), archive, machines: machines.to_vec(), begun: Instant::now() };
        for machine in machines {
            site.lab.up_with(machine, &site.archive.older.kernel);
            site.lab.configure(machine, &format!("reboot = [\"reboot\"]\n{podd}"));
        }
        site.archive.stock(&site.lab, machines, &[&site.archive.older, &site.archive.newer]);
        site.publish("Debian", &site.archive.codename, &[&site.archive.older]);
        site.publish("Debian-Security", &site.archive.security(), &[&site.archive.older]);
        for machine in machines {
            let install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y"];
            site.lab.exec(machine, &[&install[..], &["linux-image-cloud-amd64"]].concat()).must();
        }
        site.say(&format!("{} run Linux {}", machines.join(", "), site.archive.older.version));
        site
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn publish(&self, label: &str, codename: &str, kernels: &[&Published]) {
        self.archive.publish(&self.lab, &self.machines, label, codename, kernels);
    }

    /// The security team sends a kernel that ends a fault of high urgency.
    fn send(&self, kernel: &Published, policy: &str) {
        self.publish("Debian-Security", &self.archive.security(), &[kernel]);
        self.archive.advise(&self.lab, &self.machines, &kernel.version, policy);
        self.say(&format!("a security update appears: Linux {}", kernel.version));
    }

    /// What cron does on a host; the run that has begun.
    fn cron(&self, host: &str) -> String {
        for machine in &self.machines {
            let status = self.lab.podctl(machine, &["status", machine, "--refresh"]);
            let why = status.out.lines().last().unwrap_or_default().to_owned();
            self.say(&format!("{machine}: {why}"));
        }
        let line = CRON.lines().find(|line| line.contains("patch run")).expect("a line that runs");
        let command = line.split_once(" root ").expect("a user").1;
        let fired = self.lab.exec(host, &["sh", "-c", command]).must();
        self.say(&format!("cron fires on {host}: {command}"));
        eprintln!("{}", fired.out);
        // Again at once: it stands back, and says nothing.
        let again = self.lab.exec(host, &["sh", "-c", command]).must();
        assert_eq!((again.out.as_str(), again.err.as_str()), ("", ""), "another run is under way");
        let runs = self.lab.json(host, &["patch", "runs"]);
        runs.as_array().and_then(|runs| runs.last()?["id"].as_str()).expect("a run").to_owned()
    }

    /// The newest that any machine knows of a run.
    fn run(&self, id: &str) -> Option<Value> {
        let known = self.machines.iter().filter_map(|machine| {
            let said = self.lab.room().exec(machine, &["podctl", "--json", "patch", "history", id]).ok()?;
            serde_json::from_str::<Value>(&said.out).ok()
        });
        known.max_by_key(|run| (run["term"].as_u64(), run["revision"].as_u64()))
    }

    /// Tells each step as it begins, until the run stands as it should.
    fn until(&self, id: &str, state: &str) -> Value {
        let mut told = BTreeMap::new();
        let mut last = Value::Null;
        eventually(&format!("the run is {state}"), LIMIT, || {
            std::thread::sleep(Duration::from_secs(2));
            let Some(run) = self.run(id) else { return false };
            for host in run["hosts"].as_array().into_iter().flatten() {
                let name = host["host"].as_str().unwrap_or_default().to_owned();
                let begun = host["begun"].as_array().map_or(&[][..], Vec::as_slice);
                let before = told.insert(name.clone(), begun.len()).unwrap_or(0);
                for begun in &begun[before..] {
                    self.say(&format!("{name}: {}", begun["step"].as_str().unwrap_or_default()));
                }
            }
            last = run;
            let now = last["state"]["state"].as_str().unwrap_or_default();
            assert!(now == state || now == "running", "{last:#}");
            now == state
        });
        last
    }

    fn kernel(&self, machine: &str) -> String {
        let said = self.lab.exec(machine, &["cat", "/proc/version"]).must().out;
        let version = said.split(" Debian ").nth(1).and_then(|rest| rest.split(' ').next());
        version.unwrap_or_default().to_owned()
    }

    fn places(&self, pod: &str) -> Vec<&'static str> {
        let runs = |machine: &&'static str| self.lab.state(machine, pod).as_deref() == Some("running");
        self.machines.iter().copied().filter(runs).collect()
    }
}

/// Steps of a host, and how long its pods were silent, as people read it.
fn table(run: &Value) {
    eprintln!("\n  pod       from -> to   silent");
    for host in run["hosts"].as_array().into_iter().flatten() {
        for m in host["moves"].as_array().into_iter().flatten() {
            let text = |key: &str| m[key].as_str().unwrap_or_default().to_owned();
            let silent = m["blackout_ms"].as_f64().map_or_else(|| "?".to_owned(), |ms| format!("{ms:.0} ms"));
            eprintln!("  {:9} {} -> {}       {silent}", text("pod"), text("from"), text("to"));
        }
    }
    eprintln!();
}

#[test]
fn demonstration_of_three_hosts() {
    let site = Site::with(&["a", "b", "c"], "");
    let (lab, newer) = (&site.lab, site.archive.newer.clone());
    workload::redis(lab, "a", "redis", "10.78.1.5");
    postgres::postgres(lab, "b", "db", "10.78.1.6");
    let prepare = "$(echo /usr/lib/postgresql/*/bin)/pgbench -h 127.0.0.1 -U postgres -i -s 1 -q postgres";
    lab.ok("b", &["exec", "db", "--", "sh", "-c", prepare]);
    web::nginx(lab, "c", "web", "10.78.1.7");
    let counter = Counter::start(lab, "10.78.1.5");
    let mut bench = postgres::Bench::start(lab, "10.78.1.6", &["-c", "2", "-R", "5", "-b", "tpcb-like", "-T", "3600"]);
    let mut asked = web::ask(lab, "10.78.1.7", 1);
    site.say("redis, PostgreSQL and nginx run, and their clients are at work");

    // A kernel that does not do: the canary finds out.
    let regression = format!("verify = [\"! grep -qF ' {} ' /proc/version\"]\n", newer.version);
    site.send(&newer, &format!("{regression}{POLICY}"));
    let id = site.cron("a");
    let run = site.until(&id, "stopped");
    site.say(run["state"]["why"].as_str().expect("it says why"));
    let canary = run["hosts"][0]["host"].as_str().expect("a host").to_owned();
    assert!(canary != "a", "the coordinator comes last");
    for machine in &site.machines {
        let expected = if *machine == canary { &newer } else { &site.archive.older };
        assert_eq!(site.kernel(machine), expected.version, "{machine}");
    }
    let homes = [("redis", "a"), ("db", "b"), ("web", "c")];
    for (pod, home) in homes {
        let places = site.places(pod);
        assert_eq!(places.len(), 1, "{pod}: {places:?}");
        assert_eq!(places == [home], home != canary, "{pod}: {places:?}");
    }
    assert!(bench.is_at_work() && asked.is_at_work());
    let report = lab.ok("a", &["patch", "history", &id]);
    assert!(report.contains("was the canary") && report.contains("**ill**"), "{report}");

    // The regression test is mended: on with it, to the end.
    site.archive.advise(lab, &site.machines, &newer.version, POLICY);
    site.say("the regression test is mended, and the run goes on: podctl patch resume");
    lab.ok("a", &["patch", "resume"]);
    let run = site.until(&id, "done");
    for (pod, home) in homes {
        assert_eq!((site.kernel(home), site.places(pod)), (newer.version.clone(), vec![home]), "{pod}");
    }
    table(&run);
    site.say("all hosts run the new kernel, all pods are home");

    // One that never comes back.
    let broken = site.archive.broken();
    site.archive.stock(lab, &site.machines, &[&broken]);
    site.send(&broken, &POLICY.replace("[run]", "[run]\nback-within = \"90s\"\nrehearse = false"));
    let id = site.cron("a");
    let run = site.until(&id, "stopped");
    let why = run["state"]["why"].as_str().expect("it says why");
    site.say(why);
    assert!(why.contains("has not come back"), "{why}");
    let gone = run["hosts"][0]["host"].as_str().expect("a host");
    let there: Vec<&str> = site.machines.iter().copied().filter(|machine| *machine != gone).collect();
    for (pod, home) in homes {
        let runs = |machine: &&&str| lab.state(machine, pod).as_deref() == Some("running");
        let places: Vec<&&str> = there.iter().filter(runs).collect();
        assert_eq!(places.len(), 1, "{pod}: {places:?}");
        assert_eq!(*places[0] == home, home != gone, "{pod}: {places:?}");
    }
    assert!(there.iter().all(|machine| site.kernel(machine) == newer.version), "the others were not touched");

    // Their connections are the first ones.
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}");
    let benched = bench.finish();
    assert_eq!(benched.failed, 0, "{}", benched.words);
    let asked: web::Asked = asked.finish();
    assert!(asked.errors.is_empty() && asked.right > 100, "{asked:?}");
    let silence = format!("nginx' client {:.0} ms", asked.longest_silence_ms);
    site.say(&format!(
        "no client lost its connection: {} increments, {} transactions, {} pages; longest silence of {silence}",
        counted.increments, benched.processed, asked.right
    ));
}

#[test]
fn demonstration_of_one_host_in_place() {
    let site = Site::with(&["a"], "in_place = true");
    let (lab, newer) = (&site.lab, site.archive.newer.clone());
    workload::redis(lab, "a", "redis", "10.78.1.5");
    let counter = Counter::start(lab, "10.78.1.5");
    site.say("redis runs, and its client is at work");
    site.send(&newer, POLICY);
    let id = site.cron("a");
    let run = site.until(&id, "done");
    assert_eq!((site.kernel("a"), site.places("redis")), (newer.version.clone(), vec!["a"]), "{run:#}");
    assert_eq!(run["hosts"][0]["mechanism"], "in-place", "{run:#}");
    let before = lab.ok("a", &["exec", "redis", "--", "redis-cli", "get", "n"]);
    eventually("the client goes on", Duration::from_secs(180), || {
        lab.ok("a", &["exec", "redis", "--", "redis-cli", "get", "n"]) != before
    });
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}");
    site.say(&format!("the client has kept its connection: {} increments without a gap", counted.increments));
}
