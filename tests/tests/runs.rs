//! Patch runs from end to end: hosts of the lab with kernels of their own invention (`tests::debian`), real pods and moves.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::debian::{Fleet, NEW, OLD};
use tests::invariants::Writer;
use tests::lab::{eventually, rootfs};
use tests::workload;

/// A run of three hosts takes some 20 s here.
const LIMIT: Duration = Duration::from_secs(180);
/// What the tests need not wait for.
const QUICK: &str = "[run]\nsoak = \"0s\"\nback-within = \"2m\"\n";

fn sleeper(fleet: &Fleet, host: &str, name: &str) {
    fleet.lab.ok(host, &["run", "--name", name, "--rootfs", &rootfs("busybox"), "--", "sleep", "100000"]);
}

/// Hosts on which a pod runs.
fn places(fleet: &Fleet, pod: &str) -> Vec<&'static str> {
    let runs = |host: &&&str| fleet.lab.state(host, pod).as_deref() == Some("running");
    fleet.hosts.iter().filter(runs).copied().collect()
}

fn steps(run: &Value, host: &str) -> Vec<String> {
    let host = run["hosts"].as_array().unwrap().iter().find(|h| h["host"] == host).unwrap();
    host["begun"].as_array().unwrap().iter().map(|begun| begun["step"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn all_hosts_are_patched_and_a_client_keeps_its_connection() {
    let fleet = Fleet::up(3, QUICK);
    workload::redis(&*fleet.lab, "a", "redis", "10.77.1.9");
    sleeper(&fleet, "b", "idle");
    let writer = Writer::start(&fleet.lab, "10.77.1.9");
    let plan = fleet.lab.podctl("b", &["patch", "plan", "--fleet"]);
    assert!(plan.code == 0 && plan.out.contains("redis  a"), "{plan:?}");
    let said = fleet.lab.podctl("b", &["patch", "run", "--fleet"]);
    let run: Value = fleet.lab.json("b", &["patch", "runs"])[0].clone();
    assert_eq!((said.code, run["state"]["state"].as_str()), (0, Some("done")), "{said:?}: {run:#}");
    for host in fleet.hosts {
        assert_eq!(fleet.runs(host), NEW.0, "{host}");
        let steps = steps(&run, host);
        let all = [
            "check", "cordon", "rehearse", "evacuate", "patch", "reboot", "prove", "return", "soak", "uncordon", "done",
        ];
        assert_eq!(steps, all, "{host}");
        assert!(fleet.lab.ok(host, &["host", "cordons"]).contains("takes pods"));
    }
    // The coordinator comes last, and a host without pods first.
    let order: Vec<&str> = run["hosts"].as_array().unwrap().iter().map(|h| h["host"].as_str().unwrap()).collect();
    assert_eq!(order, ["c", "a", "b"]);
    assert_eq!((places(&fleet, "redis"), places(&fleet, "idle")), (vec!["a"], vec!["b"]), "they came back");
    assert!(writer.acknowledged() > 100 && writer.complaints().is_empty(), "{}", writer.complaints());
    for host in fleet.hosts {
        let report = fleet.lab.ok(host, &["patch", "history", run["id"].as_str().unwrap()]);
        assert!(report.contains("| redis | a |") && report.contains("3 of 3 hosts done"), "{host}: {report}");
    }
    let history = fleet.lab.ok("b", &["history"]);
    assert!(history.contains("patch run") && history.contains("c: reboot"), "{history}");
    // Nothing is due any more: quiet, as cron wants it.
    let quiet = fleet.lab.podctl("b", &["patch", "run", "--fleet", "--auto"]);
    assert!(quiet.code == 0 && quiet.out.is_empty() && quiet.err.is_empty(), "{quiet:?}");
}

/// Says by how many ms real time, CLOCK_MONOTONIC and CLOCK_BOOTTIME went on in each gap of more than 0.3 s.
const GAPS: &str = "\
import time
read = lambda: [time.clock_gettime(c) for c in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
last = read()
while True:
    now = read()
    if now[0] - last[0] > 0.3:
        print(*[round((n - l) * 1000) for n, l in zip(now, last)], flush=True)
    last = now
    time.sleep(0.01)
";

#[test]
fn a_host_alone_boots_in_place_and_its_pods_do_not_notice_but_by_the_clock() {
    let fleet = Fleet::with(1, QUICK, "in_place = true", true);
    workload::redis(&*fleet.lab, "a", "redis", "10.77.1.9");
    fleet.lab.ok("a", &["run", "--name", "clock", "--rootfs", &rootfs("shell"), "--", "python3", "-c", GAPS]);
    let writer = Writer::start(&fleet.lab, "10.77.1.9");
    let plan = fleet.lab.podctl("a", &["patch", "plan", "--fleet"]);
    assert!(plan.code == 0 && plan.out.contains("in-place"), "{plan:?}");
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "done", LIMIT);
    assert_eq!(fleet.runs("a"), NEW.0, "{run:#}");
    let expected = ["check", "cordon", "patch", "suspend", "reboot", "prove", "soak", "uncordon", "done"];
    assert_eq!(steps(&run, "a"), expected);
    for pod in ["redis", "clock"] {
        assert_eq!(fleet.lab.state("a", pod).as_deref(), Some("running"), "{run:#}");
    }
    let slept = run["hosts"][0]["slept"].as_array().unwrap();
    assert!(
        slept.len() == 2 && slept.iter().all(|pod| pod["asleep_ms"].as_f64().is_some_and(|ms| ms > 100.0)),
        "{run:#}"
    );
    let report = fleet.lab.ok("a", &["patch", "history", &id]);
    assert!(report.contains("| redis | a | stayed, asleep | "), "{report}");
    let before = writer.acknowledged();
    eventually("the client goes on", Duration::from_secs(20), || writer.acknowledged() > before + 10);
    assert!(writer.complaints().is_empty(), "{}", writer.complaints());
    let gaps = fleet.lab.ok("a", &["logs", "clock"]);
    let all = gaps.lines().map(|gap| gap.split(' ').map(|ms| ms.parse().unwrap()).collect::<Vec<i64>>());
    // On a busy machine, there may be others.
    let gap = all.max().unwrap_or_default();
    let [real, monotonic, boottime] = gap[..] else { panic!("a gap: {gaps}") };
    assert!((monotonic - real).abs() <= 10 && (boottime - real).abs() <= 10, "{gaps}");
}

/// What pods are told, and how long before.
fn notice(fleet: &Fleet, time: &str) {
    for host in fleet.hosts {
        let file = fleet.lab.dir().join(host).join("policy.toml");
        let policy = fs::read_to_string(&file).unwrap().replace("notice = \"0s\"", &format!("notice = \"{time}\""));
        fs::write(file, policy).unwrap();
    }
}

#[test]
fn pods_that_stay_are_told_before_they_sleep() {
    let fleet = Fleet::with(1, QUICK, "in_place = true", true);
    notice(&fleet, "4s");
    sleeper(&fleet, "a", "web");
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "done", LIMIT);
    assert_eq!(fleet.lab.state("a", "web").as_deref(), Some("running"), "{run:#}");
    let history = fleet.lab.ok("a", &["history"]);
    assert!(history.contains("web sleeps while its host is patched"), "{history}");
    assert!(!history.contains("will not be touched"), "{history}");
}

/// Also those that are waited for.
#[test]
fn nothing_moves_in_a_run_that_is_paused() {
    let fleet = Fleet::up(3, QUICK);
    notice(&fleet, "6s");
    sleeper(&fleet, "b", "web");
    let id = fleet.lab.json("a", &["patch", "run", "b", "--detach"])["id"].as_str().unwrap().to_owned();
    eventually("it is told", LIMIT, || fleet.lab.ok("b", &["history"]).contains("web leaves for another host"));
    let begun = Instant::now();
    fleet.lab.ok("a", &["patch", "pause"]);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(places(&fleet, "web"), ["b"], "its notice is over, and nobody moves it");
    assert_eq!(fleet.run("a", &id).unwrap()["state"]["state"], "paused");
    fleet.lab.ok("a", &["patch", "resume"]);
    let run = fleet.until("a", &id, "done", LIMIT);
    assert_eq!((places(&fleet, "web"), fleet.runs("b").as_str()), (vec!["b"], NEW.0), "{run:#}");
}

#[test]
fn a_bad_kernel_stops_at_the_canary_and_is_proved_again_when_mended() {
    let fleet = Fleet::up(3, &format!("verify = [\"test -e /run/mended\"]\n{QUICK}"));
    sleeper(&fleet, "b", "web");
    for pod in ["db", "more"] {
        sleeper(&fleet, "c", pod);
    }
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "stopped", LIMIT);
    let why = run["state"]["why"].as_str().unwrap();
    assert!(why.contains("was the canary") && why.contains("verify `test -e /run/mended`"), "{why}");
    let canary = run["hosts"][0]["host"].as_str().unwrap().to_owned();
    assert_eq!(canary, "b", "the least depends on it; on the coordinator nothing does, but it comes last");
    assert_eq!([fleet.runs("a"), fleet.runs("b"), fleet.runs("c")], [OLD.0, NEW.0, OLD.0]);
    assert_eq!((places(&fleet, "web").len(), places(&fleet, "db")), (1, vec!["c"]));
    assert_ne!(places(&fleet, "web"), ["b"], "it does not go back to a host that failed");
    // It stays so, says so, and takes no pods.
    let auto = fleet.lab.podctl("c", &["patch", "run", "--fleet", "--auto"]);
    assert!(auto.code == 1 && auto.err.contains("is stopped") && auto.err.contains("cure: "), "{auto:?}");
    let refused = fleet.lab.podctl("b", &["run", "--name", "x", "--rootfs", &rootfs("busybox"), "--", "true"]);
    assert!(refused.code == 1 && refused.err.contains("takes no pods: cordoned by run"), "{refused:?}");
    let preflight = fleet.lab.podctl("c", &["preflight", "db", "--to", "b"]);
    assert!(preflight.out.contains("takes no pods"), "{preflight:?}");
    for host in fleet.hosts {
        fleet.lab.on(host, &["sh", "-c", "touch /run/mended"]).status().unwrap();
    }
    // From any host; /run is new after a boot, so each is mended again as it comes.
    fleet.lab.ok("c", &["patch", "resume"]);
    eventually("b is done", LIMIT, || fleet.run("a", &id).is_some_and(|run| run["hosts"][0]["step"] == "done"));
    fleet.lab.ok("c", &["patch", "cancel"]);
    assert_eq!(places(&fleet, "web"), ["b"], "it came back once all was well");
    let run = fleet.run("a", &id).unwrap();
    assert_eq!(run["state"]["state"], "cancelled", "{run:#}");
}

#[test]
fn a_host_that_a_later_run_has_patched_takes_pods_again() {
    let fleet = Fleet::up(3, &format!("verify = [\"test -e /nowhere\"]\n{QUICK}"));
    sleeper(&fleet, "c", "web");
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "stopped", LIMIT);
    assert_eq!(run["hosts"][0]["host"], "b", "{run:#}");
    fleet.lab.ok("a", &["patch", "cancel"]);
    assert!(fleet.lab.ok("b", &["host", "cordons"]).contains(&id), "it is not to be relied on");
    for host in fleet.hosts {
        let file = fleet.lab.dir().join(host).join("policy.toml");
        let policy = fs::read_to_string(&file).unwrap().replace("test -e /nowhere", "true");
        fs::write(file, policy).unwrap();
    }
    // Another update of it, as it runs the newest kernel.
    fs::write(fleet.file("b", "kernel"), "6.18.3-cloud-amd64 6.18.3-1\n").unwrap();
    let tracker = fs::read_to_string(fleet.file("b", "tracker.json")).unwrap().replace(NEW.1, "6.18.3-1");
    fs::write(fleet.file("b", "tracker.json"), tracker).unwrap();
    assert!(fleet.lab.podctl("a", &["status", "b", "--refresh"]).out.contains("evacuate"));
    let begun = fleet.lab.json("a", &["patch", "run", "b", "--detach"]);
    let run = fleet.until("a", begun["id"].as_str().unwrap(), "done", LIMIT);
    assert_eq!(run["hosts"][0]["step"], "done", "{run:#}");
    assert!(fleet.lab.ok("b", &["host", "cordons"]).contains("takes pods"));
}

#[test]
fn a_host_that_stays_away_keeps_its_slot() {
    let fleet = Fleet::up(3, "[run]\nsoak = \"0s\"\nback-within = \"8s\"\nrehearse = false\n");
    sleeper(&fleet, "b", "web");
    for pod in ["db", "more"] {
        sleeper(&fleet, "c", pod);
    }
    fs::write(fleet.file("b", "off"), "").unwrap();
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "stopped", LIMIT);
    assert!(run["state"]["why"].as_str().unwrap().contains("b has not come back"), "{run:#}");
    assert_eq!((places(&fleet, "web").len(), places(&fleet, "db"), fleet.runs("c")), (1, vec!["c"], OLD.0.to_owned()));
    let another = fleet.lab.podctl("c", &["patch", "run", "--fleet"]);
    assert!(another.code == 1 && another.err.contains("is stopped") && another.err.contains("cure: "), "{another:?}");
    // Somebody presses the button.
    fs::remove_file(fleet.file("b", "off")).unwrap();
    fleet.lab.script(&["up", "--hosts", "3"]).must();
    fleet.lab.ok("a", &["patch", "resume"]);
    fleet.until("a", &id, "done", LIMIT);
    assert_eq!(
        (fleet.runs("b"), places(&fleet, "web"), places(&fleet, "db")),
        (NEW.0.to_owned(), vec!["b"], vec!["c"])
    );
}

#[test]
fn what_keeps_a_host_from_being_patched_is_found_before_a_pod_moves() {
    let fleet = Fleet::up(2, QUICK);
    sleeper(&fleet, "b", "web");
    let full = |fleet: &Fleet| {
        let mount = "mount -t tmpfs -o size=1m tmpfs /mnt && cp -a /boot/. /mnt && mount --move /mnt /boot";
        fleet.lab.on("b", &["sh", "-c", mount]).status().unwrap();
    };
    let roomy = |fleet: &Fleet| {
        fleet.lab.on("b", &["umount", "/boot"]).status().unwrap();
    };
    let make =
        |name: &'static str, text: &'static str| move |fleet: &Fleet| fs::write(fleet.file("b", name), text).unwrap();
    let remove = |name: &'static str| move |fleet: &Fleet| fs::remove_file(fleet.file("b", name)).unwrap();
    type Act = Box<dyn Fn(&Fleet)>;
    let cases: [(&str, &str, Act, Act); 4] = [
        ("mirror", "Failed to fetch", Box::new(make("mirror-down", "")), Box::new(remove("mirror-down"))),
        ("lock", "Could not get lock", Box::new(make("locked", "")), Box::new(remove("locked"))),
        ("dpkg", "dpkg is not done", Box::new(make("audit", "half installed\n")), Box::new(remove("audit"))),
        ("boot", "/boot has", Box::new(full), Box::new(roomy)),
    ];
    for (what, sentence, break_it, mend_it) in cases {
        break_it(&fleet);
        let run = fleet.lab.json("a", &["patch", "run", "b", "--detach"]);
        let id = run["id"].as_str().unwrap().to_owned();
        let run = fleet.until("a", &id, "stopped", LIMIT);
        let trouble = &run["hosts"][0]["trouble"];
        assert!(trouble["what"].as_str().unwrap().contains(sentence), "{what}: {run:#}");
        assert!(trouble["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{what}: {run:#}");
        assert_eq!(steps(&run, "b"), ["check", "put-back", "failed"], "{what}");
        assert_eq!((places(&fleet, "web"), fleet.runs("b")), (vec!["b"], OLD.0.to_owned()), "{what}");
        fleet.lab.ok("a", &["patch", "cancel"]);
        mend_it(&fleet);
    }
    // A pod that cannot move is found when the plan is made.
    sleeper(&fleet, "a", "twin");
    fleet.lab.ok("b", &["run", "--name", "twin", "--rootfs", &rootfs("busybox"), "--", "sleep", "1000"]);
    let plan = fleet.lab.podctl("a", &["patch", "plan", "b"]);
    assert!(plan.out.contains("b is left as it is: ") && plan.out.contains("twin"), "{plan:?}");
    let nothing = fleet.lab.podctl("a", &["patch", "run", "b"]);
    assert!(nothing.code == 0 && nothing.out.contains("b is left as it is"), "{nothing:?}");
}

#[test]
fn what_stands_in_the_way_of_later_hosts_is_told_before_a_pod_moves() {
    let fleet = Fleet::up(3, QUICK);
    // In this order: b, c, a.
    for (host, pod) in [("b", "web"), ("c", "db"), ("c", "more")] {
        sleeper(&fleet, host, pod);
    }
    fs::write(fleet.file("c", "audit"), "half installed\n").unwrap();
    // b waits a little, so that c is mended before its turn.
    fleet.lab.fault("a", "run check pause 5000");
    let id = fleet.begin("a");
    let told = |run: &Value| {
        let host = run["hosts"].as_array().unwrap().iter().find(|host| host["host"] == "c").cloned();
        host.map_or(Value::Null, |host| host["foretold"].clone())
    };
    eventually("c is told of", LIMIT, || fleet.run("a", &id).is_some_and(|run| !told(&run).is_null()));
    fs::remove_file(fleet.file("c", "audit")).unwrap();
    let run = fleet.until("a", &id, "done", LIMIT);
    let foretold = told(&run);
    assert!(foretold["what"].as_str().unwrap().contains("dpkg is not done"), "{run:#}");
    assert!(foretold["cure"].as_str().unwrap().contains("dpkg --configure -a"), "{run:#}");
    // Without the letter at the end, times have the order of their text.
    let time = |value: &Value| value.as_str().unwrap().trim_end_matches('Z').to_owned();
    let begun = run["hosts"].as_array().unwrap().iter().flat_map(|host| host["begun"].as_array().unwrap());
    assert!(begun.map(|begun| time(&begun["at"])).all(|at| at > time(&run["looked_ahead"])), "{run:#}");
    assert_eq!(fleet.runs("c"), NEW.0);
    let report = fleet.lab.ok("a", &["patch", "history", &id]);
    assert!(report.contains("this stood in its way: dpkg is not done"), "{report}");
    let events = fleet.lab.ok("a", &["events", "--tail", "1000"]);
    assert!(events.contains("c: as it is now, it cannot be patched: dpkg is not done"), "{events}");
}

#[test]
fn a_run_stands_still_and_another_host_takes_over_from_a_dead_coordinator() {
    let fleet = Fleet::with(3, QUICK, "", false);
    sleeper(&fleet, "b", "web");
    // The coordinator dies as it writes that b is to boot; nobody starts it again.
    fleet.lab.fault("a", "run reboot crash");
    let id = fleet.begin("a");
    eventually("the coordinator is dead", LIMIT, || tests::invariants::podd(&fleet.lab, "a").is_none());
    let paused = fleet.lab.podctl("b", &["patch", "pause"]);
    assert!(paused.code == 4 && paused.err.contains("a carries it out, and does not answer"), "{paused:?}");
    let auto = fleet.lab.podctl("b", &["patch", "run", "--fleet", "--auto"]);
    assert!(auto.code == 1 && auto.err.contains("stands still: a, which carries it out"), "{auto:?}");
    fleet.lab.ok("b", &["patch", "resume"]);
    eventually("two hosts are done", LIMIT, || {
        fleet.run("b", &id).is_some_and(|run| {
            run["hosts"].as_array().unwrap().iter().filter(|host| host["step"] == "done").count() == 2
        })
    });
    fleet.lab.ok("c", &["patch", "pause"]);
    let run = fleet.run("b", &id).unwrap();
    assert_eq!((run["coordinator"].as_str(), run["term"].as_u64()), (Some("b"), Some(2)), "{run:#}");
    // The old one comes back, learns that, and does nothing by itself.
    fleet.lab.script(&["start", "a"]).must();
    std::thread::sleep(Duration::from_secs(2));
    let run = fleet.until("b", &id, "paused", LIMIT);
    assert_eq!(run["coordinator"], "b", "{run:#}");
    fleet.lab.ok("a", &["patch", "resume"]);
    fleet.until("b", &id, "done", LIMIT);
    for host in fleet.hosts {
        assert_eq!(fleet.runs(host), NEW.0, "{host}");
    }
    assert_eq!(places(&fleet, "web"), ["b"]);
}

#[test]
fn the_other_one_of_two_hosts_goes_on_once_somebody_says_that_the_first_is_gone() {
    let fleet = Fleet::with(2, QUICK, "", false);
    sleeper(&fleet, "a", "web");
    fleet.lab.fault("a", "run reboot crash");
    let id = fleet.begin("a");
    eventually("the coordinator is dead", LIMIT, || tests::invariants::podd(&fleet.lab, "a").is_none());
    let first = fleet.run("b", &id).unwrap()["hosts"][0]["host"].as_str().unwrap().to_owned();
    assert_eq!(first, "b", "the coordinator comes last");
    let alone = fleet.lab.podctl("b", &["patch", "resume"]);
    assert!(alone.code == 4 && alone.err.contains("host rm NAME --gone"), "{alone:?}");
    let unsure = fleet.lab.podctl("b", &["host", "rm", "a"]);
    assert!(unsure.code == 4 && unsure.err.contains("say so with --gone"), "{unsure:?}");
    let itself = fleet.lab.podctl("b", &["host", "rm", "b", "--gone"]);
    assert!(itself.code == 2 && itself.err.contains("cannot remove itself"), "{itself:?}");
    let removed = fleet.lab.json("b", &["host", "rm", "a", "--gone"]);
    assert_eq!(removed["run"], id.as_str(), "{removed:#}");
    assert_eq!(fleet.lab.json("b", &["host", "ls"]).as_array().unwrap().len(), 1);
    fleet.lab.ok("b", &["patch", "resume"]);
    let run = fleet.until("b", &id, "done", LIMIT);
    let now = (fleet.runs("b"), run["coordinator"].clone(), run["members"].clone());
    assert_eq!(now, (NEW.0.to_owned(), json!("b"), json!(["b"])));
    assert_eq!(
        (steps(&run, "a").last().map(String::as_str), fleet.runs("a").as_str()),
        (Some("failed"), OLD.0),
        "{run:#}"
    );
    // The one that was removed comes back: its pod runs there, and its run goes nowhere.
    fleet.lab.script(&["start", "a"]).must();
    eventually("its pods are there", LIMIT, || fleet.lab.state("a", "web").as_deref() == Some("running"));
    let refused = fleet.lab.podctl("a", &["migrate", "web", "--to", "b"]);
    assert!(refused.code != 0 && refused.err.contains("a was removed from this fleet"), "{refused:?}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(fleet.runs("a"), OLD.0, "alone it has no majority");
}

#[test]
fn of_several_that_begin_at_once_one_does() {
    let fleet = Fleet::up(3, QUICK);
    let begin = |host: &'static str| {
        let lab = fleet.lab.clone();
        std::thread::spawn(move || lab.podctl(host, &["patch", "run", "--fleet", "--auto", "--detach"]))
    };
    let said: Vec<tests::Run> = ["a", "b", "c"].map(begin).map(|begun| begun.join().unwrap()).to_vec();
    assert!(said.iter().all(|run| run.code == 0 && run.err.is_empty()), "{said:?}");
    let begun: Vec<&tests::Run> = said.iter().filter(|run| run.out.contains("has begun")).collect();
    assert!(begun.len() == 1 && said.iter().filter(|run| run.out.is_empty()).count() == 2, "{said:?}");
    let id = begun[0].out.split_whitespace().find(|word| word.len() == 12).unwrap();
    fleet.until("a", id, "done", LIMIT);
    for host in fleet.hosts {
        assert_eq!(fleet.runs(host), NEW.0, "{host}");
    }
}

#[test]
fn a_host_that_has_missed_the_end_of_a_run_is_told() {
    let fleet = Fleet::up(3, "[run]\nsoak = \"8s\"\n");
    let begun = fleet.lab.json("a", &["patch", "run", "b", "--detach"]);
    let id = begun["id"].as_str().unwrap().to_owned();
    eventually("b is nearly done", LIMIT, || fleet.run("a", &id).is_some_and(|run| run["hosts"][0]["step"] == "soak"));
    fleet.lab.script(&["cut", "c"]).must();
    fleet.until("a", &id, "done", LIMIT);
    let stale = fleet.lab.podctl("c", &["patch", "run", "--fleet", "--auto"]);
    assert_ne!(stale.code, 0, "it is alone: {stale:?}");
    fleet.lab.script(&["join", "c"]).must();
    let cured = Duration::from_secs(30);
    eventually("c begins the next run", cured, || {
        fleet.lab.podctl("c", &["patch", "run", "--fleet", "--auto", "--detach"]).out.contains("has begun")
    });
    let runs = fleet.lab.json("c", &["patch", "runs"]);
    assert!(
        runs.as_array().unwrap().iter().any(|run| run["id"] == id.as_str() && run["state"]["state"] == "done"),
        "{runs:#}"
    );
}

/// Racks are a and b, and c and d.
#[test]
fn several_hosts_are_away_together_but_no_two_of_a_rack() {
    let fleet = Fleet::with(4, &format!("[limits]\nmax-unavailable = 2\n{QUICK}"), "domain = \"@RACK@\"", true);
    for (host, pod) in [("a", "one"), ("b", "two"), ("d", "three")] {
        sleeper(&fleet, host, pod);
    }
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "done", LIMIT);
    let hosts = run["hosts"].as_array().unwrap();
    let waves: Vec<(&str, u64)> =
        hosts.iter().map(|h| (h["host"].as_str().unwrap(), h["wave"].as_u64().unwrap())).collect();
    // The canary alone, two of different racks together, the coordinator last.
    assert_eq!(waves[0], ("c", 1), "{waves:?}");
    assert_eq!(waves.last().unwrap().0, "a", "{waves:?}");
    let together: Vec<&str> = waves.iter().filter(|(_, wave)| *wave == 2).map(|(host, _)| *host).collect();
    assert!(together.len() == 2 && together.contains(&"b") && together.contains(&"d"), "{waves:?}");
    for host in fleet.hosts {
        assert_eq!(fleet.runs(host), NEW.0, "{host}");
    }
    assert_eq!(
        (places(&fleet, "one"), places(&fleet, "two"), places(&fleet, "three")),
        (vec!["a"], vec!["b"], vec!["d"])
    );
    // The next plan knows how long that takes.
    let host = hosts[0]["begun"].as_array().unwrap();
    assert!(host.len() > 5 && hosts.iter().all(|host| host["expected_s"].is_null()), "nobody knew: {run:#}");
}

#[test]
fn what_a_coordinator_leaves_undone_stops_the_run_all_the_same() {
    let fleet = Fleet::up(3, &format!("verify = [\"false\"]\n{QUICK}"));
    // It dies when it has written that the canary has failed, and before it draws the conclusion.
    fleet.lab.fault("a", "run failed crash");
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "stopped", LIMIT);
    assert!(run["state"]["why"].as_str().unwrap().contains("was the canary"), "{run:#}");
    let untouched = run["hosts"].as_array().unwrap().iter().skip(1).all(|host| host["step"] == "waiting");
    assert!(untouched, "{run:#}");
}

#[test]
fn pods_are_put_back_though_the_coordinator_dies_and_the_run_can_be_resumed() {
    let fleet = Fleet::up(3, QUICK);
    sleeper(&fleet, "b", "web");
    for pod in ["db", "more"] {
        sleeper(&fleet, "c", pod);
    }
    // apt succeeds, and the next boot would take the old kernel: seen when the pods have left.
    fs::write(fleet.file("b", "pinned"), "").unwrap();
    fleet.lab.fault("a", "run put-back crash");
    let id = fleet.begin("a");
    let run = fleet.until("a", &id, "stopped", LIMIT);
    assert!(run["state"]["why"].as_str().unwrap().contains("b was the canary"), "{run:#}");
    assert_eq!(steps(&run, "b").last().map(String::as_str), Some("failed"), "{run:#}");
    assert_eq!(places(&fleet, "web"), ["b"], "it came back");
    fs::remove_file(fleet.file("b", "pinned")).unwrap();
    fs::remove_file(fleet.file("b", "root/boot/vmlinuz")).unwrap();
    std::os::unix::fs::symlink(format!("vmlinuz-{}", NEW.0), fleet.file("b", "root/boot/vmlinuz")).unwrap();
    fleet.lab.ok("a", &["patch", "resume"]);
    fleet.until("a", &id, "done", LIMIT);
    assert_eq!((fleet.runs("b"), places(&fleet, "web")), (NEW.0.to_owned(), vec!["b"]));
}

#[test]
fn a_move_whose_end_the_coordinator_did_not_see_is_told_with_its_blackout() {
    let fleet = Fleet::up(3, &format!("{QUICK}rehearse = false\n"));
    sleeper(&fleet, "b", "web");
    fleet.lab.fault("b", "source given pause 4000");
    let id = fleet.lab.json("a", &["patch", "run", "b", "--detach"])["id"].as_str().unwrap().to_owned();
    eventually("the pod is given", LIMIT, || {
        let fault = fs::read_to_string(tests::traces::inside(&fleet.lab, "b", "/run/podd/fault"));
        fault.is_ok_and(|left| left.is_empty())
    });
    tests::invariants::kill_podd(&fleet.lab, "a");
    let run = fleet.until("a", &id, "done", LIMIT);
    let moves = run["hosts"][0]["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 2, "there and back: {run:#}");
    assert!(moves.iter().all(|m| m["done"] == true && m["blackout_ms"].as_f64().is_some()), "{run:#}");
    assert_eq!(places(&fleet, "web"), ["b"]);
}

#[test]
fn a_pod_that_its_owner_removes_meanwhile_is_not_lost() {
    let fleet = Fleet::up(3, QUICK);
    for pod in ["web", "db", "cache"] {
        sleeper(&fleet, "b", pod);
    }
    fleet.lab.fault("a", "run patch pause 6000");
    let id = fleet.lab.json("a", &["patch", "run", "b", "--detach"])["id"].as_str().unwrap().to_owned();
    eventually("all have left", LIMIT, || ["web", "db", "cache"].iter().all(|pod| places(&fleet, pod) == ["c"]));
    fleet.lab.ok("c", &["rm", "-f", "web"]);
    fleet.lab.ok("c", &["suspend", "db"]);
    let run = fleet.until("a", &id, "done", LIMIT);
    let proofs = run["hosts"][0]["proofs"].as_array().unwrap();
    let pods = proofs.iter().find(|proof| proof["what"] == "pods").unwrap();
    assert!(pods["well"] == true && pods["seen"].as_str().unwrap().contains("removed: web"), "{pods:#}");
    assert_eq!((places(&fleet, "cache"), fleet.lab.state("c", "db").as_deref()), (vec!["b"], Some("suspended")));
}

/// Its podd is away when the run ends; it has its pods wake up once it hears of that.
#[test]
fn pods_do_not_sleep_on_when_the_run_has_ended() {
    let fleet = Fleet::with(3, QUICK, "in_place = true", false);
    sleeper(&fleet, "b", "web");
    fleet.lab.fault("a", "run reboot pause 8000");
    let id = fleet.lab.json("a", &["patch", "run", "b", "--detach"])["id"].as_str().unwrap().to_owned();
    eventually("it sleeps", LIMIT, || fleet.lab.state("b", "web").as_deref() == Some("suspended"));
    eventually("it is about to boot", LIMIT, || {
        fleet.run("b", &id).is_some_and(|run| run["hosts"][0]["step"] == "reboot")
    });
    tests::invariants::kill_podd(&fleet.lab, "b");
    let cancelled = fleet.lab.json("a", &["patch", "cancel"]);
    let remarks = cancelled["hosts"][0]["remarks"].to_string();
    assert!(remarks.contains("could not be told to wake its pods up"), "{cancelled:#}");
    fleet.lab.script(&["start", "b"]).must();
    eventually("it wakes up", LIMIT, || fleet.lab.state("b", "web").as_deref() == Some("running"));
    eventually("it takes pods again", LIMIT, || fleet.lab.ok("b", &["host", "cordons"]).contains("takes pods"));
    assert_eq!(fleet.runs("b"), OLD.0, "it has not booted");
}

#[test]
fn hardware_that_fails_is_left_for_good() {
    let fleet = Fleet::up(3, &format!("{QUICK}rehearse = false\n"));
    sleeper(&fleet, "b", "web");
    // Two signs that do not depend on each other.
    fs::write(fleet.file("b", "dmesg"), "Buffer I/O error, dev sda, sector 7\n").unwrap();
    let zone = fleet.file("b", "root/thermal/thermal_zone0");
    fs::create_dir_all(&zone).unwrap();
    for (file, text) in [
        ("temp", "104000"),
        ("type", "x86_pkg_temp"),
        ("trip_point_0_type", "critical"),
        ("trip_point_0_temp", "105000"),
    ] {
        fs::write(zone.join(file), text).unwrap();
    }
    let status = fleet.lab.podctl("a", &["status", "b", "--refresh"]);
    assert!(status.out.contains("leave"), "{status:?}");
    let plan = fleet.lab.podctl("a", &["patch", "plan", "b"]);
    assert!(plan.out.contains("leave: the hardware is failing"), "{plan:?}");
    let begun = fleet.lab.json("a", &["patch", "run", "b", "--detach"]);
    let run = fleet.until("a", begun["id"].as_str().unwrap(), "done", LIMIT);
    assert_eq!(steps(&run, "b"), ["cordon", "evacuate", "done"]);
    assert_eq!((places(&fleet, "web").len(), fleet.runs("b")), (1, OLD.0.to_owned()));
    assert_ne!(places(&fleet, "web"), ["b"]);
    let refused = fleet.lab.podctl("b", &["run", "--name", "x", "--rootfs", &rootfs("busybox"), "--", "true"]);
    assert!(refused.code == 1 && refused.err.contains("takes no pods"), "{refused:?}");
}

#[test]
fn pods_stay_where_they_went_if_the_policy_says_so() {
    let fleet = Fleet::up(3, &format!("{QUICK}return-pods = false\n"));
    for (host, pod) in [("b", "web"), ("c", "db"), ("c", "cache")] {
        sleeper(&fleet, host, pod);
    }
    let plan = fleet.lab.json("a", &["patch", "plan", "--fleet"]);
    let run = fleet.lab.json("a", &["patch", "run", "--fleet", "--detach"]);
    let run = fleet.until("a", run["id"].as_str().unwrap(), "done", LIMIT);
    // As it was planned: also those that had come.
    let planned: Vec<(String, String)> = plan["steps"].as_array().unwrap().iter().flat_map(moves_of).collect();
    let done: Vec<(String, String)> = run["hosts"].as_array().unwrap().iter().flat_map(moves_of).collect();
    assert_eq!(done, planned, "{run:#}");
    assert!(planned.len() >= 3, "{plan:#}");
    for pod in ["web", "db", "cache"] {
        assert_eq!(places(&fleet, pod).len(), 1, "{pod}: {run:#}");
    }
}

/// Pods and where they go, sorted, of a step of a plan or of a host of a run.
fn moves_of(step: &Value) -> Vec<(String, String)> {
    let moves = step["moves"].as_array().unwrap().iter();
    let mut moves: Vec<_> =
        moves.map(|m| (m["pod"].as_str().unwrap().to_owned(), m["to"].as_str().unwrap().to_owned())).collect();
    moves.sort();
    moves
}
