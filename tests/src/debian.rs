//! A lab whose hosts have Debian kernels of their own invention, and boot: patch runs from end to end, in seconds.
//!
//! podd, its pods, their moves, the journal and the network are real. What apt and dpkg say comes from `debian/tool.sh`, and a boot
//! is the lab's `crash` and `up`: everything that ran on the host is gone, and it has another boot id and, if that was installed,
//! another kernel. (Real apt and real kernels: `tests/kernels.rs`.)

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::Lab;
use crate::lab::eventually;

/// The kernel that runs at first: its release, and the version of its package.
pub const OLD: (&str, &str) = ("6.18.1-cloud-amd64", "6.18.1-1");
/// The one that apt has.
pub const NEW: (&str, &str) = ("6.18.2-cloud-amd64", "6.18.2-1");

/// Names of hosts.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Such a lab, and whoever starts again what has died in it, and boots what wants to.
#[derive(Debug)]
pub struct Fleet {
    /// The lab.
    pub lab: Arc<Lab>,
    /// Its hosts.
    pub hosts: &'static [&'static str],
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Of so many hosts, with this policy beside what makes each due at once. podds that die are started again.
    #[must_use]
    pub fn up(hosts: usize, policy: &str) -> Self {
        Self::with(hosts, policy, "", true)
    }

    /// The same, with these lines in podd.toml (`@RACK@`: `r1` for the first two hosts, `r2` for the others); if `kept`, podds that die are started again, as systemd would.
    #[must_use]
    pub fn with(hosts: usize, policy: &str, config: &str, kept: bool) -> Self {
        let lab = Arc::new(Lab::prepared(|lab| {
            for host in &NAMES[..hosts] {
                install(lab, host, policy, config);
            }
        }));
        lab.script(&["up", "--hosts", &hosts.to_string()]).must();
        let stop = Arc::new(AtomicBool::new(false));
        let mut fleet = Self { lab, hosts: &NAMES[..hosts], stop, keeper: None };
        let (lab, names, stop) = (fleet.lab.clone(), fleet.hosts, fleet.stop.clone());
        fleet.keeper = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for host in names {
                    let wants = fs::remove_file(lab.dir().join(host).join("reboot")).is_ok();
                    if wants {
                        lab.script(&["crash", host]).must();
                    }
                    let stays_off = folder(&lab, host).join("off").exists();
                    if wants && !stays_off {
                        let _ = lab.script(&["up", "--hosts", &names.len().to_string()]);
                    }
                    if kept && !wants && !stays_off && crate::invariants::podd(&lab, host).is_none() {
                        let _ = lab.script(&["up", "--hosts", &names.len().to_string()]);
                    }
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }));
        fleet
    }

    /// A file of a host's that says what its Debian is like.
    #[must_use]
    pub fn file(&self, host: &str, name: &str) -> PathBuf {
        folder(&self.lab, host).join(name)
    }

    /// The release of the kernel that runs on a host.
    #[must_use]
    pub fn runs(&self, host: &str) -> String {
        fs::read_to_string(self.file(host, "root/osrelease")).unwrap_or_default().trim().to_owned()
    }

    /// Begins a run of the whole fleet; its id.
    #[track_caller]
    pub fn begin(&self, host: &str) -> String {
        let run = self.lab.json(host, &["patch", "run", "--fleet", "--detach"]);
        run["id"].as_str().expect("a run has an id").to_owned()
    }

    /// A run, as a host knows it; none: it does not answer.
    #[must_use]
    pub fn run(&self, host: &str, id: &str) -> Option<Value> {
        let said = self.lab.podctl(host, &["--json", "patch", "history", id]);
        serde_json::from_str(&said.out).ok()
    }

    /// Waits until a run stands as it should.
    #[track_caller]
    pub fn until(&self, host: &str, id: &str, state: &str, limit: Duration) -> Value {
        let mut last = None;
        eventually(&format!("the run is {state}"), limit, || {
            last = self.run(host, id).or_else(|| last.take());
            let now = last.as_ref().and_then(|run| run["state"]["state"].as_str());
            assert!(now.is_none_or(|now| now == state || now == "running"), "{last:#?}");
            now == Some(state)
        });
        last.expect("it was seen")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn folder(lab: &Lab, host: &str) -> PathBuf {
    lab.dir().join(host).join("debian")
}

/// What makes a host of the lab one with Debian's packages.
fn install(lab: &Lab, host: &str, policy: &str, config: &str) {
    let (home, debian) = (lab.dir().join(host), folder(lab, host));
    let write = |path: PathBuf, text: &str| fs::write(path, text).expect("the lab's folder can be written to");
    for part in ["root/boot", "root/thermal", "lists"] {
        fs::create_dir_all(debian.join(part)).expect("the lab's folder can be written to");
    }
    let place = |text: &str| text.replace("@FOLDER@", &debian.display().to_string());
    for (path, script) in
        [(debian.join("tool"), include_str!("debian/tool.sh")), (home.join("boot"), include_str!("debian/boot.sh"))]
    {
        write(path.clone(), &place(script));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a script can be run");
    }
    write(debian.join("installed"), &format!("{} {}\n", OLD.0, OLD.1));
    write(debian.join("kernel"), &format!("{} {}\n", NEW.0, NEW.1));
    symlink(format!("vmlinuz-{}", OLD.0), debian.join("root/boot/vmlinuz")).expect("a link can be made");
    write(debian.join("root/os-release"), "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n");
    let date = run_date();
    write(debian.join("lists/mirror_dists_bookworm-security_InRelease"), &format!("Date: {date}\n"));
    let advisory = serde_json::json!({"linux": {"CVE-2026-1": {"description": "a fault", "scope": "remote", "releases": {
        "bookworm": {"status": "resolved", "repositories": {}, "fixed_version": NEW.1, "urgency": "high"}}}}});
    write(debian.join("tracker.json"), &advisory.to_string());
    let own = format!(
        "{policy}\n[phases]\nself-service = \"0s\"\nnotice = \"0s\"\n[advisories]\ntracker = \"{}/tracker.json\"\n",
        debian.display()
    );
    write(home.join("policy.toml"), &own);
    let rack = if NAMES[..2].contains(&host) { "r1" } else { "r2" };
    let config = config.replace("@RACK@", rack);
    write(home.join("extra.toml"), &format!("reboot = [\"touch\", \"{}/reboot\"]\n{config}\n", home.display()));
}

/// Now, as Release files have it.
fn run_date() -> String {
    let mut date = std::process::Command::new("date");
    date.args(["-u", "+%a, %d %b %Y %H:%M:%S UTC"]).env("LC_ALL", "C");
    crate::lab::run(date).must().out.trim().to_owned()
}
