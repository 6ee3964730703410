//! Patch runs on emulated machines, each with its own kernel, its own apt and a signed archive: `scripts/demo-patch`.
//! Nothing here is made up: real packages of two kernels, real boots, real applications with clients that never stop.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::lab::eventually;
use tests::machine::Lab;
use tests::machine::archive::{Archive, CONFFILE, LACKING, Published, upgrade};
use tests::machine::cache::Cache;
use tests::machine::harness::Counter;
use tests::machine::livepatch;
use tests::workload::{self, postgres, web};

/// A run of three machines, emulated.
const LIMIT: Duration = Duration::from_secs(1800);
/// Each host is due at once, and no pod is asked before.
const POLICY: &str = "[phases]\nself-service = \"0s\"\nnotice = \"0s\"\n[run]\nsoak = \"3s\"\n";
/// The line of the crontab that is shipped, as cron runs it.
const CRON: &str = include_str!("../../podd/podd-patch.cron");

/// What operators have written into a file of configuration of the kernel's metapackage.
const OPERATORS: &str = "as we want it";
/// How an operator has a machine boot without its firmware; its memory stays as it is.
const KEXEC: &str = "kexec -l /boot/vmlinuz --initrd=/boot/initrd.img --append=\"$(sed 's/ memmap=[^ ]*//' /proc/cmdline) \
                     $(cat /etc/podd/memmap)\" && sync && kexec -e";

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
        // The first one makes the fleet's authority.
        site.lab.up_with(machines[0], &site.archive.older.kernel);
        site.lab.each(machines, |machine| drop(site.lab.up_with(machine, &site.archive.older.kernel)));
        // Which has podd start anew: not while another one asks it for an invitation.
        site.lab.each(machines, |machine| site.lab.configure(machine, podd));
        site.archive.stock(&site.lab, machines, &[&site.archive.older, &site.archive.newer]);
        site.publish("Debian", &site.archive.codename, &[&site.archive.older]);
        site.publish("Debian-Security", &site.archive.security(), &[&site.archive.older]);
        let install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y"];
        let install = [&install[..], &["linux-image-cloud-amd64"]].concat();
        site.lab.each(machines, |machine| {
            site.lab.exec(machine, &install).must();
            site.lab.exec(machine, &["sh", "-c", &format!("echo \"{OPERATORS}\" >{CONFFILE}; sync")]).must();
        });
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
        self.lab.each(&self.machines, |machine| {
            let status = self.lab.podctl(machine, &["status", machine, "--refresh"]);
            let why = status.out.lines().last().unwrap_or_default().to_owned();
            self.say(&format!("{machine}: {why}"));
        });
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

    /// An operator who looks at a run that has stopped, and who begins another one if this one has left a host out; the present run.
    fn pushed(&self, id: &str) -> String {
        let Some(run) = self.run(id) else { return id.to_owned() };
        match run["state"]["state"].as_str() {
            Some("stopped") => {
                self.say(&format!("{} podctl patch resume", run["state"]["why"].as_str().unwrap_or_default()));
                let said = self.lab.room().exec("a", &["podctl", "patch", "resume"]);
                self.say(&said.map(|said| said.err).unwrap_or_default());
            }
            Some("done") => {
                let again = ["podctl", "--json", "patch", "run", "--fleet", "--detach"];
                let said = self.lab.room().exec("a", &again).ok();
                let begun = said.and_then(|said| serde_json::from_str::<Value>(&said.out).ok());
                if let Some(next) = begun.as_ref().and_then(|run| run["id"].as_str()) {
                    self.say(&format!("run {id} is done, and has left something: run {next}"));
                    return next.to_owned();
                }
            }
            _ => {}
        }
        id.to_owned()
    }

    /// A security update for the one host there is, as cron does it.
    fn patch_in_place(&self) {
        let newer = self.archive.newer.clone();
        self.send(&newer, POLICY);
        let id = self.cron("a");
        let run = self.until(&id, "done");
        assert_eq!((self.kernel("a"), self.places("redis")), (newer.version, vec!["a"]), "{run:#}");
        assert_eq!(run["hosts"][0]["mechanism"], "in-place", "{run:#}");
        self.respects_operators();
    }

    /// How long it took the pods to wake up, beside a plain read of as many bytes from a disk. Worth a look, and no assertion.
    fn woke_up(&self) {
        let script = r#"
            sed -n 's/.*it woke up pod="\([^"]*\)" bytes=\([0-9]*\) ms=\([0-9]*\).*/\1 \2 \3/p' /var/log/podd.log | while read -r pod bytes ms; do
                head -c "$bytes" /dev/urandom >/var/tmp/plain && sync && echo 3 >/proc/sys/vm/drop_caches
                begun=$(date +%s%N) && cat /var/tmp/plain >/dev/null && ended=$(date +%s%N)
                echo "$pod woke up in $ms ms ($bytes bytes); to read as many takes $(((ended - begun) / 1000000)) ms"
            done"#;
        self.say(self.lab.exec("a", &["sh", "-c", script]).must().out.trim());
    }

    /// What has been counted in the redis of the one host.
    fn count(&self) -> String {
        self.lab.ok("a", &["exec", "redis", "--", "redis-cli", "get", "n"]).trim().to_owned()
    }

    /// Sets memory aside, and has the machine boot once for it.
    fn set_aside(&self, machine: &str, size: &str) {
        let memory = self.lab.json(machine, &["host", "reserve-memory", size]);
        assert!(memory["loader"].is_null(), "these machines have no GRUB: {memory}");
        let parameter = memory["parameter"].as_str().expect("a boot parameter");
        let boot = format!("echo '{parameter}' >/etc/podd/memmap; (sleep 1; {KEXEC}) >/dev/null 2>&1 &");
        self.lab.exec(machine, &["sh", "-c", &boot]).must();
        eventually("the memory is there", Duration::from_secs(120), || {
            std::thread::sleep(Duration::from_secs(2));
            let said = self.lab.room().exec(machine, &["podctl", "host", "reserve-memory"]);
            said.is_ok_and(|said| said.out.contains("survive a boot"))
        });
        self.say(&format!("{machine} has set {size} aside ({parameter})"));
    }

    /// What operators have changed is as they left it.
    fn respects_operators(&self) {
        for machine in &self.machines {
            assert_eq!(self.lab.exec(machine, &["cat", CONFFILE]).must().out.trim(), OPERATORS, "{machine}");
            let offered = self.lab.exec(machine, &["cat", &format!("{CONFFILE}.dpkg-dist")]).must().out;
            assert_eq!(
                offered.trim(),
                self.archive.newer.version,
                "{machine}: what the package brought lies beside it"
            );
        }
    }

    /// Waits until the run's coordinator, a, has written down this step, for which a fault waits.
    fn has_come_to(&self, step: &str) {
        eventually(&format!("the run is at {step}"), LIMIT, || {
            std::thread::sleep(Duration::from_millis(200));
            // A machine whose library was replaced restarts what answers us, too.
            let left = self.lab.room().exec("a", &["cat", "/run/podd/fault"]);
            left.is_ok_and(|left| left.code == 0 && left.out.trim().is_empty())
        });
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

/// What dies at a step of a run.
#[derive(Clone, Copy, Debug)]
enum Dies {
    /// kill -9 of this machine's podd; it is started again, as systemd would.
    Podd(&'static str),
    /// This machine's power; it is switched on again.
    Power(&'static str),
}

impl Dies {
    fn strike(self, lab: &Lab) {
        match self {
            Self::Podd(machine) => drop(lab.exec(machine, &["sh", "-c", PODD_DIES]).must()),
            Self::Power(machine) => {
                lab.powercut(machine);
                lab.start(machine);
            }
        }
    }
}

const PODD_DIES: &str = "kill -9 \"$(cat /run/podd.pid)\"; sleep 1; setsid /usr/local/lib/vm/podd >/dev/null 2>&1 &";

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
    let site = Site::with(&["a", "b", "c"], "reboot = [\"reboot\"]\n");
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

    // A kernel that boots, and lacks a module: the canary finds out.
    let flawed = &site.archive.flawed();
    let policy = format!("verify = [\"modprobe {LACKING}\"]\n{POLICY}");
    site.archive.stock(lab, &site.machines, &[flawed]);
    site.send(flawed, &policy);
    let id = site.cron("a");
    let run = site.until(&id, "stopped");
    site.say(run["state"]["why"].as_str().expect("it says why"));
    let canary = run["hosts"][0]["host"].as_str().expect("a host").to_owned();
    assert!(canary != "a", "the coordinator comes last");
    for machine in &site.machines {
        let expected = if *machine == canary { flawed } else { &site.archive.older };
        assert_eq!(site.kernel(machine), expected.version, "{machine}");
    }
    for (pod, home) in [("redis", "a"), ("db", "b"), ("web", "c")] {
        let places = site.places(pod);
        assert_eq!(places.len(), 1, "{pod}: {places:?}");
        assert_eq!(places == [home], home != canary, "{pod}: {places:?}");
    }
    assert!(bench.is_at_work() && asked.is_at_work());
    let report = lab.ok("a", &["patch", "history", &id]);
    assert!(report.contains("was the canary") && report.contains("**ill**"), "{report}");
    assert!(report.contains(&format!("modprobe {LACKING}")), "{report}");

    // The security team mends it, and the next run patches all hosts.
    lab.ok("a", &["patch", "cancel"]);
    site.send(&newer, &policy);
    let homes = ["redis", "db", "web"].map(|pod| (pod, site.places(pod)[0]));
    let id = site.cron("a");
    let run = site.until(&id, "done");
    for machine in &site.machines {
        assert_eq!(site.kernel(machine), newer.version, "{machine}");
    }
    for (pod, home) in homes {
        assert_eq!(site.places(pod), [home], "{pod}");
    }
    table(&run);
    site.respects_operators();
    site.say("all hosts run the new kernel, all pods are where they were");

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
    let mut site = Site::with(&["a"], "in_place = true\nreboot = [\"reboot\"]\n");
    // A library that is held, and of which the security team has a newer one, too.
    let library = site.archive.newer_package("libc6");
    let newer = Command::new("dpkg-deb").arg("-f").arg(&library).arg("Version").output().expect("dpkg-deb runs");
    let newer = String::from_utf8_lossy(&newer.stdout).trim().to_owned();
    site.lab.room().copy_in("a", std::slice::from_ref(&library), "/srv/repository/pool").expect("it is copied");
    site.archive.newer.packages.push(library);
    let lab = &site.lab;
    lab.exec("a", &["apt-mark", "hold", "libc6"]).must();
    let version = || lab.exec("a", &["dpkg-query", "-W", "-f", "${Version}", "libc6"]).must().out;
    let before = version();
    workload::redis(lab, "a", "redis", "10.78.1.5");
    let counter = Counter::start(lab, "10.78.1.5");
    site.say("redis runs, and its client is at work");
    site.patch_in_place();
    assert_eq!(version(), before, "what is held stays");
    let offered = lab.exec("a", &["apt-cache", "policy", "libc6"]).must().out;
    assert!(offered.contains(&format!("Candidate: {newer}\n")), "{offered}");
    site.woke_up();
    let before = site.count();
    eventually("the client goes on", Duration::from_secs(180), || site.count() != before);
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}");
    site.say(&format!("the client has kept its connection: {} increments without a gap", counted.increments));
}

/// The same by kexec, and from memory. (A kernel that was begun by kexec takes minutes to start here, longer than clients wait.)
#[test]
fn memory_that_is_set_aside_survives_a_kexec() {
    let config = format!("in_place = true\nreboot = [\"sh\", \"-c\", '''{KEXEC}''']\n");
    let site = Site::with(&["a"], &config);
    site.set_aside("a", "512M");
    workload::redis(&site.lab, "a", "redis", "10.78.1.5");
    site.lab.ok("a", &["exec", "redis", "--", "redis-cli", "set", "n", "4711"]);
    // Large enough for its waking to depend on its size.
    let fill = "for i = 1, 200 do redis.call('set', 'k' .. i, string.rep('0123456789' .. i, 80000)) end";
    site.lab.ok("a", &["exec", "redis", "--", "redis-cli", "eval", fill, "0"]);
    site.patch_in_place();
    assert_eq!(site.count(), "4711");
    let length = site.lab.ok("a", &["exec", "redis", "--", "redis-cli", "strlen", "k200"]);
    assert_eq!(length.trim(), "1040000");
    let log = site.lab.exec("a", &["grep", "-E", "woke up|that survived", "/var/log/podd.log"]).must().out;
    assert!(log.contains("that survived") && log.contains("woke up"), "{log}");
    site.woke_up();
    let doctor = site.lab.podctl("a", &["doctor"]).out;
    assert!(doctor.contains("512 MiB survive a boot"), "{doctor}");
}

/// What grub-install does on a real disk: a loader that the firmware starts, with its modules and its configuration beside it.
const GRUB: &str = r#"
    set -e
    mkdir -p /boot/grub /etc/default
    cp -r /usr/lib/grub/i386-pc /boot/grub/
    printf '%s\n' GRUB_DEFAULT=0 GRUB_TIMEOUT=0 GRUB_DISTRIBUTOR=Debian GRUB_TERMINAL=console "GRUB_CMDLINE_LINUX=\"$(cat /proc/cmdline)\"" >/etc/default/grub
    echo 'search --file --set=root /boot/grub/grub.cfg
        set prefix=($root)/boot/grub' >/tmp/early.cfg
    grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /tmp/core.img biosdisk ext2 search search_fs_file search_fs_uuid normal linux
    update-grub
    cat /usr/lib/grub/i386-pc/boot.img /tmp/core.img >/boot/grub/loader.img
    truncate -s 4M /boot/grub/loader.img
    sync"#;

/// The machine's own boot loader finds the kernel, and sets the memory aside; a patch run minds what it holds on to.
#[test]
fn grub_sets_memory_aside_and_boots_what_is_new() {
    let site = Site::with(&["a"], "in_place = true\nreboot = [\"reboot\"]\n");
    let (lab, newer) = (&site.lab, site.archive.newer.clone());
    let sh = |script: &str| lab.exec("a", &["sh", "-c", script]);
    sh(GRUB).must();
    lab.reboot("a", None);
    assert!(sh("cat /proc/cmdline").must().out.starts_with("BOOT_IMAGE="), "GRUB has started it");
    site.say("GRUB boots the machine");
    let memory = lab.json("a", &["host", "reserve-memory", "256M"]);
    assert_eq!(memory["loader"], "/etc/default/grub.d/podd-memory.cfg", "{memory}");
    let parameter = memory["parameter"].as_str().expect("a boot parameter").to_owned();
    assert!(sh("cat /boot/grub/grub.cfg").must().out.contains(&parameter), "update-grub has seen it");
    let doctor = lab.podctl("a", &["doctor"]).out;
    assert!(doctor.contains("boot this host once"), "{doctor}");
    lab.reboot("a", None);
    let doctor = lab.podctl("a", &["doctor"]).out;
    assert!(doctor.contains("256 MiB survive a boot"), "{doctor}");
    site.say(&format!("{parameter}: the kernel has left it alone"));
    workload::redis(lab, "a", "redis", "10.78.1.5");
    lab.ok("a", &["exec", "redis", "--", "redis-cli", "set", "n", "4711"]);
    // Somebody holds on to the old kernel: found before a pod sleeps.
    site.send(&newer, POLICY);
    let old = sh("uname -r").must().out.trim().to_owned();
    let pin = format!("GRUB_DEFAULT=\"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux {old}\"");
    sh(&format!("echo '{pin}' >/etc/default/grub.d/pin.cfg && update-grub")).must();
    let run = lab.podctl("a", &["patch", "run", "a"]);
    assert!(run.code == 1 && run.out.contains("GRUB always boots") && run.out.contains(&old), "{run:?}");
    assert_eq!(site.places("redis"), ["a"]);
    sh("rm /etc/default/grub.d/pin.cfg && update-grub").must();
    site.say("a pinned kernel was found; it is pinned no more");
    lab.ok("a", &["patch", "cancel"]);
    let id = site.cron("a");
    let run = site.until(&id, "done");
    assert_eq!(
        (site.kernel("a"), site.places("redis"), site.count()),
        (newer.version, vec!["a"], "4711".to_owned()),
        "{run:#}"
    );
    let line = sh("cat /proc/cmdline").must().out;
    assert!(line.starts_with("BOOT_IMAGE=") && line.contains(&parameter), "{line}");
    lab.ok("a", &["host", "reserve-memory", "off"]);
    assert!(!sh("cat /boot/grub/grub.cfg").must().out.contains("memmap="), "and taken back");
    site.say("GRUB boots the newer kernel, with the memory set aside");
}

/// A real one, for the kernel that runs: no pod is touched, and nothing boots.
#[test]
fn a_live_patch_is_enough() {
    let site = Site::with(&["a"], "");
    let lab = &site.lab;
    workload::redis(lab, "a", "redis", "10.78.1.5");
    let counter = Counter::start(lab, "10.78.1.5");
    let boot = || lab.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]).must().out;
    let before = boot();
    livepatch::deliver(lab, "a", &site.archive.older, "CVE-2026-1").unwrap_or_else(|failure| panic!("{failure}"));
    let newer = site.archive.newer.clone();
    site.send(&newer, POLICY);
    let status = || lab.podctl("a", &["status", "a", "--refresh"]);
    assert!(status().out.contains("evacuate"), "nobody is trusted yet: {:?}", status());
    lab.ok("a", &["livepatch", "trust", "/root/vendor.pem"]);
    lab.exec("a", &["sh", "-c", "echo 'run live-patch pause 20000' >/run/podd/fault"]).must();
    let id = site.cron("a");
    site.has_come_to("live-patch");
    Dies::Podd("a").strike(lab);
    let run = site.until(&id, "done");
    assert_eq!(run["hosts"][0]["mechanism"], "live-patch", "{run:#}");
    let status = status();
    assert!(status.code == 0 && status.out.contains("covered"), "{status:?}");
    assert_eq!(lab.exec("a", &["cat", "/proc/cmdline"]).must().out, "vm.patched\n");
    assert_eq!((site.kernel("a"), boot()), (site.archive.older.version.clone(), before));
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}");
    site.say(&format!("redis' client was silent for {:.0} ms at most", counted.longest_silence_ms));
}

/// A library is replaced under systemd's services, podd among them, by dpkg.
#[test]
fn services_with_a_replaced_library_are_restarted() {
    const OTHER: &str = "[Service]\nExecStart=/usr/local/lib/vm/vm-agent 127.0.0.1:7778\n";
    let site = Site::with(&["a"], "");
    let lab = &site.lab;
    lab.under_systemd("a");
    site.say("systemd runs podd by its unit");
    let start = "printf \"$1\" >/etc/systemd/system/other.service && systemctl daemon-reload && systemctl start other";
    lab.exec("a", &["sh", "-c", start, "sh", OTHER]).must();
    workload::redis(lab, "a", "redis", "10.78.1.5");
    let counter = Counter::start(lab, "10.78.1.5");
    site.archive.advise(lab, &["a"], &site.archive.older.version, POLICY);
    let status = || lab.podctl("a", &["status", "a", "--refresh"]);
    assert_eq!(status().code, 0, "{:?}", status());
    let pids = || ["podd", "other"].map(|unit| lab.exec("a", &["systemctl", "show", "-P", "MainPID", unit]).must().out);
    let init = || lab.json("a", &["inspect", "redis"])[0]["pid"].clone();
    let (before, pod) = (pids(), init());
    upgrade(lab, "a", "libc6");
    assert!(status().out.contains("restart-only"), "{:?}", status());
    // By the shipped units: one tells what is due, the other one begins it, whoever else does at the same moment.
    let sh = |script: &str| lab.exec("a", &["sh", "-c", script]);
    sh("systemd-analyze verify /etc/systemd/system/podd*.service /etc/systemd/system/podd*.timer").must();
    sh("systemctl start podd-patch.timer podd-patch-run.timer").must();
    let told = "systemctl start podd-patch; systemctl show -P ExecMainStatus podd-patch";
    assert_eq!(sh(told).out.trim(), "10", "a patch is due");
    sh("echo 'run prove crash' >/run/podd/fault").must();
    sh("podctl patch run --fleet --auto --detach >/dev/null & systemctl start podd-patch-run && wait $!").must();
    site.has_come_to("prove");
    site.say("podd was started again, and has died at its step prove; systemd starts it once more");
    let mut runs = Value::Null;
    eventually("podd answers", Duration::from_secs(60), || {
        let said = lab.podctl("a", &["--json", "patch", "runs"]);
        runs = serde_json::from_str(&said.out).unwrap_or_default();
        said.code == 0
    });
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "{runs:#}");
    let id = runs[0]["id"].as_str().expect("an id");
    let run = site.until(id, "done");
    assert_eq!(run["hosts"][0]["mechanism"], "restart", "{run:#}");
    let log = sh(&format!("cat /var/lib/podd/patch/{id}.log")).must().out;
    assert!(log.contains("--no-block restart podd.service"), "{log}");
    assert!(before.iter().zip(&pids()).all(|(before, now)| before != now), "{before:?} {:?}", pids());
    assert_eq!((init(), status().code), (pod, 0), "{:?}", status());
    let quiet = sh("podctl patch check --here --auto & systemctl start podd-patch podd-patch-run && wait $!");
    assert!(quiet.code == 0 && quiet.out.is_empty() && quiet.err.is_empty(), "{quiet:?}");
    // Replaced once more: and it dies when it would begin.
    upgrade(lab, "a", "libc6");
    assert!(status().out.contains("restart-only"), "{:?}", status());
    sh("echo 'run restart crash' >/run/podd/fault").must();
    let run = lab.json("a", &["patch", "run", "a", "--detach"]);
    site.has_come_to("restart");
    site.say("podd has died at its step restart");
    site.until(run["id"].as_str().expect("an id"), "done");
    assert_eq!(status().code, 0, "{:?}", status());
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}");
    site.say(&format!("redis' client was silent for {:.0} ms at most", counted.longest_silence_ms));
}

/// The order of the run is c, b, a: the canary has no pods, the coordinator comes last. No machine is cut off its power while a pod
/// runs there, as that would end the pod; all clients keep their connections.
#[test]
fn machines_die_at_steps_of_a_run() {
    let site = Site::with(&["a", "b", "c"], "reboot = [\"reboot\"]\n");
    let (lab, newer) = (&site.lab, site.archive.newer.clone());
    workload::redis(lab, "b", "redis", "10.78.1.5");
    let counter = Counter::start(lab, "10.78.1.5");
    site.send(&newer, POLICY);
    let cases = [
        ("c", "check", Dies::Podd("c")),
        ("c", "patch", Dies::Power("c")),
        ("c", "prove", Dies::Podd("a")),
        ("b", "rehearse", Dies::Podd("b")),
        ("b", "evacuate", Dies::Podd("a")),
        ("b", "patch", Dies::Power("b")),
        ("b", "return", Dies::Podd("b")),
        ("a", "patch", Dies::Power("a")),
    ];
    let mut id = lab.json("a", &["patch", "run", "--fleet", "--detach"])["id"].as_str().expect("an id").to_owned();
    for (host, step, dies) in cases {
        let fault = format!("echo 'run {step} pause 3000' >/run/podd/fault");
        lab.exec("a", &["sh", "-c", &fault]).must();
        eventually(&format!("{host} is at {step}"), LIMIT, || {
            std::thread::sleep(Duration::from_secs(1));
            id = site.pushed(&id);
            lab.exec("a", &["cat", "/run/podd/fault"]).out.trim().is_empty()
        });
        site.say(&format!("{host} is at {step}: {dies:?}"));
        dies.strike(lab);
    }
    eventually("all hosts are patched", LIMIT, || {
        std::thread::sleep(Duration::from_secs(2));
        id = site.pushed(&id);
        let over = site.run(&id).is_some_and(|run| run["state"]["state"] == "done");
        over && site.machines.iter().all(|machine| site.kernel(machine) == newer.version)
    });
    let report = lab.ok("a", &["patch", "history", &id]);
    let runs: Vec<&str> = site.places("redis");
    assert_eq!(runs.len(), 1, "{report}");
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0), "{counted:?}: {report}");
    site.say(&format!("redis runs on {}: {} increments over one connection\n{report}", runs[0], counted.increments));
}
