//! Cgroups: limits, freezer, counters. Works on v2, and on hybrid hosts where v2 exists without controllers.
//!
//! Tracking, freezing and killing always use the v2 hierarchy (`cgroup.freeze` and `cgroup.kill` need no
//! controller: Documentation/admin-guide/cgroup-v2.rst); limits go to whichever hierarchy has the controller.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use checkpoint::network_lock::NetworkLock;

use crate::pod::spec::Limits;

/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where this host's hierarchies are mounted.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    /// Mount point of cgroup v2.
    pub v2: PathBuf,
    /// Controllers that v2 offers.
    pub v2_controllers: Vec<String>,
    /// Controller to mount point, for those that live in v1.
    pub v1: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Reads the mount table.
    ///
    /// # Errors
    /// There is no v2 hierarchy, or `/proc` cannot be read.
    pub fn detect() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut v2 = None;
        let mut v1 = BTreeMap::new();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, path, kind, options, ..] = fields[..] else { continue };
            match kind {
                "cgroup2" if v2.is_none() => v2 = Some(PathBuf::from(path)),
                "cgroup" => {
                    for controller in CONTROLLERS {
                        if options.split(',').any(|o| o == controller) {
                            v1.insert(controller.to_owned(), PathBuf::from(path));
                        }
                    }
                }
                _ => {}
            }
        }
        let v2 = v2.ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "no cgroup v2 hierarchy is mounted (mount -t cgroup2 ...)")
        })?;
        let v2_controllers =
            fs::read_to_string(v2.join("cgroup.controllers"))?.split_whitespace().map(str::to_owned).collect();
        Ok(Self { v2, v2_controllers, v1 })
    }

    /// Names a cgroup, whether it exists or not.
    #[must_use]
    pub fn cgroup(&self, name: &str) -> Cgroup {
        let v1 = self.v1.iter().map(|(c, mount)| (c.clone(), mount.join(name))).collect();
        Cgroup { v2: self.v2.join(name), v1 }
    }

    /// Makes a cgroup with limits, or sets the limits of an existing one.
    ///
    /// # Errors
    /// A limit whose controller the host lacks, or any I/O error.
    pub fn create(&self, name: &str, limits: &Limits) -> io::Result<Cgroup> {
        let cgroup = self.cgroup(name);
        self.enable_controllers(name)?;
        fs::create_dir_all(&cgroup.v2)?;
        for path in cgroup.v1.values() {
            fs::create_dir_all(path)?;
        }
        if let Some(bytes) = limits.memory {
            match cgroup.v1.get("memory") {
                Some(v1) => write(&v1.join("memory.limit_in_bytes"), bytes)?,
                None => {
                    write(&cgroup.v2.join("memory.max"), bytes)?;
                    // Swapping instead of keeping to the limit would surprise; absent without swap.
                    let _ = write(&cgroup.v2.join("memory.swap.max"), 0);
                }
            }
        }
        if let Some(cpus) = limits.cpus {
            let period = 100_000_u64;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let quota = ((cpus * period as f64) as u64).max(1000);
            match cgroup.v1.get("cpu") {
                Some(v1) => {
                    write(&v1.join("cpu.cfs_period_us"), period)?;
                    write(&v1.join("cpu.cfs_quota_us"), quota)?;
                }
                None => write(&cgroup.v2.join("cpu.max"), format!("{quota} {period}"))?,
            }
        }
        if let Some(pids) = limits.pids {
            let folder = cgroup.v1.get("pids").unwrap_or(&cgroup.v2);
            write(&folder.join("pids.max"), pids)?;
        }
        Ok(cgroup)
    }

    /// Where this process is: the folder in v2, then those in v1.
    fn own(&self) -> io::Result<Vec<PathBuf>> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        // `NUMBER:CONTROLLERS:PATH`; v2 has number 0 and no controllers (cgroups(7)).
        let path = |wanted: &str| {
            own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                controllers
                    .split(',')
                    .any(|c| c == wanted)
                    .then(|| fields.next().unwrap_or("/").trim_start_matches('/'))
            })
        };
        let v1 = self.v1.iter().map(|(controller, mount)| (mount, path(controller)));
        let all = std::iter::once((&self.v2, path(""))).chain(v1);
        Ok(all.map(|(mount, path)| mount.join(path.unwrap_or_default())).collect())
    }

    /// Hands the controllers down to the parents of `name` (v2 only).
    fn enable_controllers(&self, name: &str) -> io::Result<()> {
        let wanted: Vec<String> = CONTROLLERS
            .iter()
            .filter(|c| self.v2_controllers.iter().any(|have| have == *c))
            .map(|c| format!("+{c}"))
            .collect();
        let mut folder = self.v2.clone();
        let parts: Vec<&str> = name.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            write(&folder.join("cgroup.subtree_control"), wanted.join(" "))?;
            folder.push(part);
            fs::create_dir_all(&folder)?;
        }
        write(&folder.join("cgroup.subtree_control"), wanted.join(" "))
    }
}

/// While this lives, and for [`BRISK`] at most, processes change their cgroups without delay. The first one after a while waits until
/// every processor has been seen at rest (an RCU grace period, 5 to 8 ms here), and behind it whoever needs the cgroups' lock; not so
/// those that follow within some 10 ms (kernel/rcu/sync.c, of which `cgroup_threadgroup_rwsem` is one).
#[derive(Debug)]
pub struct Brisk(#[expect(dead_code, reason = "dropped, it ends the thread")] mpsc::Sender<()>);

const BRISK: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(4);

impl Brisk {
    /// Begins to keep them so; where that does not work, they are slow as ever.
    #[must_use]
    pub fn keep(hierarchies: &Hierarchies) -> Self {
        let (alive, end) = mpsc::channel();
        let hierarchies = hierarchies.clone();
        let stay = move || {
            let begun = Instant::now();
            let own = hierarchies.own().unwrap_or_default();
            // This process goes to where it is.
            while let [v2, ..] = &own[..]
                && fs::write(v2.join("cgroup.procs"), "0").is_ok()
                && begun.elapsed() < BRISK
                && end.recv_timeout(AGAIN) == Err(RecvTimeoutError::Timeout)
            {}
        };
        let _ = std::thread::Builder::new().spawn(stay);
        Self(alive)
    }
}

/// A pod's cgroup in every hierarchy that matters.
#[derive(Clone, Debug)]
pub struct Cgroup {
    v2: PathBuf,
    v1: BTreeMap<String, PathBuf>,
}

/// A pod's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_usec: u64,
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Times that the memory limit killed a process.
    pub oom_kills: u64,
}

impl Cgroup {
    /// The v2 folder, which CRIU is told of.
    #[must_use]
    pub fn freezer(&self) -> &Path {
        &self.v2
    }

    /// The files into which a PID is written to move a process here.
    pub fn procs_files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        std::iter::once(&self.v2).chain(self.v1.values()).map(|folder| folder.join("cgroup.procs"))
    }

    /// Has sockets that are made here neither send nor receive (see there), if the kernel can do that.
    ///
    /// # Errors
    /// It cannot.
    pub fn lock_network(&self) -> io::Result<NetworkLock> {
        NetworkLock::new(&self.v2)
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// The process is gone, or the cgroup.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        self.procs_files().try_for_each(|file| write(&file, pid))
    }

    /// Moves a process out again, to where the caller is.
    ///
    /// # Errors
    /// The process is gone.
    pub fn expel(hierarchies: &Hierarchies, pid: i32) -> io::Result<()> {
        hierarchies.own()?.iter().try_for_each(|folder| write(&folder.join("cgroup.procs"), pid))
    }

    /// PIDs of all processes here; empty if there is no such cgroup.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        fs::read_to_string(self.v2.join("cgroup.procs"))
            .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
            .unwrap_or_default()
    }

    /// Stops every process, and waits until they stand still.
    ///
    /// # Errors
    /// They did not within `limit` (a process in uninterruptible sleep), or I/O errors.
    pub fn freeze(&self, limit: Duration) -> io::Result<()> {
        write(&self.v2.join("cgroup.freeze"), 1)?;
        let deadline = Instant::now() + limit;
        while !self.is_frozen() {
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("its processes did not stop within {} s (one may be waiting for a disk)", limit.as_secs()),
                ));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Asks for a stop without waiting: processes that a tracer holds stop when it lets go.
    ///
    /// # Errors
    /// I/O errors.
    pub fn request_freeze(&self) -> io::Result<()> {
        write(&self.v2.join("cgroup.freeze"), 1)
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// I/O errors.
    pub fn thaw(&self) -> io::Result<()> {
        write(&self.v2.join("cgroup.freeze"), 0)
    }

    /// Whether every process stands still.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.v2.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
    }

    /// Kills every process, frozen or not, and waits until they are gone.
    ///
    /// # Errors
    /// They are not within `limit`, or I/O errors.
    pub fn kill(&self, limit: Duration) -> io::Result<()> {
        if !self.v2.exists() {
            return Ok(());
        }
        write(&self.v2.join("cgroup.kill"), 1)?;
        let deadline = Instant::now() + limit;
        while !self.is_empty() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes did not die"));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// Whether no live process is here (zombies do not count).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        fs::read_to_string(self.v2.join("cgroup.events")).map_or(true, |text| text.contains("populated 0"))
    }

    /// Removes it everywhere. It must be empty.
    ///
    /// # Errors
    /// It is not empty.
    pub fn remove(&self) -> io::Result<()> {
        for folder in self.v1.values().chain(std::iter::once(&self.v2)) {
            // A dying task leaves the v1 hierarchies a moment after v2 calls itself empty.
            let mut tries = 0;
            loop {
                match fs::remove_dir(folder) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) && tries < 500 => {
                        tries += 1;
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    /// Reads the counters; what a hierarchy does not offer is 0.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let v2_cpu = field(&self.v2.join("cpu.stat"), "usage_usec");
        let cpu_usec = v2_cpu.or_else(|| {
            let folder = self.v1.get("cpu")?;
            number(&folder.join("cpuacct.usage")).map(|ns| ns / 1000)
        });
        let memory = number(&self.v2.join("memory.current"))
            .or_else(|| number(&self.v1.get("memory")?.join("memory.usage_in_bytes")));
        let pids = number(&self.v2.join("pids.current")).or_else(|| number(&self.v1.get("pids")?.join("pids.current")));
        let oom_kills = field(&self.v2.join("memory.events"), "oom_kill")
            .or_else(|| field(&self.v1.get("memory")?.join("memory.oom_control"), "oom_kill"));
        Usage {
            cpu_usec: cpu_usec.unwrap_or(0),
            memory: memory.unwrap_or(0),
            pids: pids.unwrap_or(0),
            oom_kills: oom_kills.unwrap_or(0),
        }
    }
}

fn write(path: &Path, value: impl ToString) -> io::Result<()> {
    fs::write(path, value.to_string()).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
