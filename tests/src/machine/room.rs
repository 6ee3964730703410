//! A machine room: machines of one lab in one folder, each with its disks, its logs and a supervisor.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::cache::{self, Cache};
use super::group::Group;
use super::kernels::Kernel;
use super::lan::Lan;
use super::{Failure, base, boot, exec, kernels, supervisor, tools};
use crate::Run;

/// What a machine writes to its disks in a test, with room to spare, MiB.
const NEED_MIB: u64 = 1024;
/// How long a start may take before something is wrong: seconds on an idle host, minutes on a busy one.
const START: Duration = Duration::from_secs(240);
/// Waiting for a machine's answer to a connection.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A lab's folder, processes and cache.
#[derive(Clone, Debug)]
pub struct Room {
    dir: PathBuf,
    group: Group,
    cache: Cache,
}

/// What a machine is made of; `machine.json` in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its name, and podd's.
    pub name: String,
    /// From 1; the last byte of its addresses.
    pub number: u8,
    /// QEMU's name of its CPU model.
    pub cpu: String,
    /// Memory, MiB.
    pub memory: u32,
    /// Series of the kernel it was made with.
    pub kernel: String,
}

/// A machine whose podd answers.
#[derive(Clone, Debug)]
pub struct Ready {
    /// `uname -r`.
    pub kernel: String,
    /// From QEMU's start to podd's answer.
    pub took: Duration,
}

impl Room {
    /// The lab in a folder, which need not exist yet.
    ///
    /// # Errors
    /// This host has no cgroup v2, or the cache cannot be made.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let dir = std::path::absolute(dir).map_err(Failure::io("find", dir))?;
        Ok(Self { group: Group::of(&dir)?, cache: Cache::open()?, dir })
    }

    /// The cache of kernels and disks.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A machine's folder: `console.log`, `podd.log`, `supervisor.log` and disks.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a machine with the newest kernel of a series, starts it, and lets its podd join the fleet of the lab's first.
    ///
    /// # Errors
    /// Of any step. What was made so far stays, for a look at it, until [`Self::down`].
    pub fn up(&self, name: &str, series: &str, cpu: &str, memory: u32) -> Result<Ready, Failure> {
        self.up_as(name, series, cpu, memory, || kernels::fetch(&self.cache, series))
    }

    /// The same, with this very kernel.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_with(&self, name: &str, kernel: &Kernel, cpu: &str, memory: u32) -> Result<Ready, Failure> {
        self.up_as(name, &kernel.series, cpu, memory, || Ok(kernel.clone()))
    }

    fn up_as(
        &self,
        name: &str,
        series: &str,
        cpu: &str,
        memory: u32,
        kernel: impl FnOnce() -> Result<Kernel, Failure>,
    ) -> Result<Ready, Failure> {
        check_name(name)?;
        tools::need_programs()?;
        let ready = if let Ok(known) = self.machine(name) {
            if (known.kernel.as_str(), known.cpu.as_str(), known.memory) != (series, cpu, memory) {
                let what =
                    format!("{name} is there, made with {}, CPU {}, {} MiB", known.kernel, known.cpu, known.memory);
                let cure = format!("vm reboot {name} --kernel K gives it another kernel, vm down {name} removes it");
                return Err(Failure::Missing { what, cure });
            }
            if self.runs(name) { self.wait(name, Instant::now(), None)? } else { self.start(name)? }
        } else {
            let kernel = kernel()?;
            let tree = base::tree(&self.cache)?;
            let (image, template) = (base::image(&self.cache, &tree)?, boot::template(&self.cache, &tree, &kernel)?);
            self.make(name, series, cpu, memory, &image, &template)?;
            self.start(name)?
        };
        self.join(name)?;
        Ok(ready)
    }

    /// The folder, the disks, a number.
    fn make(
        &self,
        name: &str,
        series: &str,
        cpu: &str,
        memory: u32,
        image: &Path,
        kernels: &Path,
    ) -> Result<(), Failure> {
        let strange = self.dir.exists() && !self.dir.join("lock").exists();
        if strange && fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::Refused(format!("{} is in use for something else; set PODD_VM", self.dir.display())));
        }
        fs::create_dir_all(&self.dir).map_err(Failure::io("make", &self.dir))?;
        tools::need_space(&self.dir, NEED_MIB, "PODD_VM")?;
        let _lock = cache::lock(&self.dir.join("lock"))?;
        let taken: Vec<u8> = self.machines().iter().map(|machine| machine.number).collect();
        let number = (1..=99).find(|number| !taken.contains(number));
        let number = number.ok_or_else(|| Failure::Refused("a lab has 99 machines at most".to_owned()))?;
        let dir = self.folder(name);
        fs::create_dir_all(&dir).map_err(Failure::io("make", &dir))?;
        // A lab keeps its images, whatever becomes of the cache.
        let own = self.dir.join(image.file_name().unwrap_or_default());
        if !own.exists() && fs::hard_link(image, &own).is_err() {
            tools::run(Command::new("cp").arg("--sparse=always").arg(image).arg(&own))?;
        }
        let root = dir.join("root.qcow2");
        let mut overlay = Command::new("qemu-img");
        overlay.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&own).arg(&root);
        tools::run(&mut overlay)?;
        tools::run(Command::new("cp").arg("--sparse=always").arg(kernels).arg(dir.join("kernels.img")))?;
        let machine = Machine { name: name.into(), number, cpu: cpu.into(), memory, kernel: series.into() };
        // Last: a machine is there when it is whole.
        let record = serde_json::to_vec_pretty(&machine).expect("a machine is JSON");
        self.cache.write(&dir.join("machine.json"), &record)
    }

    /// Starts a machine that does not run: with the disks as they are.
    ///
    /// # Errors
    /// There is none, it runs, or its podd does not answer in time.
    pub fn start(&self, name: &str) -> Result<Ready, Failure> {
        let machine = self.machine(name)?;
        if self.runs(name) {
            return Err(Failure::Refused(format!("{name} runs already")));
        }
        let lan = {
            let _lock = cache::lock(&self.dir.join("lock"))?;
            Lan::up(&self.group)?
        };
        lan.plug(machine.number)?;
        let begun = Instant::now();
        let mut command = Command::new(super::program("vm"));
        command.arg("supervise").arg(&self.dir).arg(name);
        self.group.spawn(name, command, &self.folder(name))?;
        self.wait(name, begun, None)
    }

    /// The supervisor's whole life; in the process that [`Self::start`] has started.
    pub fn supervise(&self, name: &str) {
        let lan = Lan::find(&self.group).ok_or_else(|| Failure::Refused("the lab's network has gone".to_owned()));
        let end = self.machine(name).and_then(|machine| supervisor::run(&lan?, &machine));
        if let Err(failure) = end {
            let path = self.folder(name).join(supervisor::LOG);
            let log = fs::read_to_string(&path).unwrap_or_default();
            // Nobody else hears of it.
            let _ = fs::write(&path, format!("{log}{failure}\n"));
        }
    }

    /// Waits until podd answers, on a boot other than `before`.
    fn wait(&self, name: &str, begun: Instant, before: Option<&str>) -> Result<Ready, Failure> {
        // One command does it all, since starting programs is slow under emulation. A clock chip tells whole seconds;
        // real hosts have their time from the network by now.
        let script = "cat /proc/sys/kernel/random/boot_id; uname -r; date -s @$1 >/dev/null
            for i in $(seq 100); do podctl ls >/dev/null 2>&1 && exit; sleep 0.1; done
            echo podd does not answer >&2; exit 1";
        let console = || fs::read_to_string(self.folder(name).join("console.log")).unwrap_or_default();
        let panics = console().matches("Kernel panic").count();
        let mut what = "did not start".to_owned();
        while begun.elapsed() < START {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            if let Ok(run) = self.exec(name, &["sh", "-c", script, "sh", &format!("{now:.3}")]) {
                let mut lines = run.out.lines();
                let other = lines.next().is_some_and(|boot| before != Some(boot));
                if let (true, Some(kernel), 0) = (other, lines.next(), run.code) {
                    return Ok(Ready { kernel: kernel.to_owned(), took: begun.elapsed() });
                }
                what = format!("started, but {}", run.err.trim());
            }
            if console().matches("Kernel panic").count() > panics {
                what = "ended in a kernel panic".to_owned();
                break;
            }
            // It may not have begun: its process joins the group as its first step.
            if !self.runs(name) && begun.elapsed() > Duration::from_secs(5) {
                let log = fs::read_to_string(self.folder(name).join(supervisor::LOG)).unwrap_or_default();
                what = format!("ended: {}", tools::tail(&log, 3));
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let console = self.folder(name).join("console.log");
        let tail = tools::tail(&fs::read_to_string(&console).unwrap_or_default(), 15);
        Err(Failure::Stuck { name: name.to_owned(), what, console, tail })
    }

    /// Certificates: the lab's first machine makes the authority, the others come with an invitation.
    fn join(&self, name: &str) -> Result<(), Failure> {
        let _lock = cache::lock(&self.dir.join("fleet"))?;
        let machine = self.machine(name)?;
        let (authority, joined) = (self.dir.join("authority"), self.folder(name).join("joined"));
        if joined.exists() {
            return Ok(());
        }
        let listen = format!("{}:7443", Lan::address(machine.number));
        match fs::read_to_string(&authority).ok().and_then(|first| self.machine(&first).ok()) {
            None if authority.exists() => {
                let what =
                    format!("the lab's first machine has gone, and with it the authority that {name} would join");
                return Err(Failure::Missing { what, cure: "begin a new lab: vm down".to_owned() });
            }
            None => {
                self.must(name, &["podctl", "host", "init", "--name", name, "--listen", &listen])?;
                fs::write(&authority, name).map_err(Failure::io("write", &authority))?;
            }
            Some(first) => {
                let token = self.must(&first.name, &["podctl", "host", "invite", name])?;
                let (token, at) = (token.trim(), format!("{}:7443", Lan::address(first.number)));
                self.must(name, &["podctl", "host", "join", &at, token, "--name", name, "--listen", &listen])?;
            }
        }
        fs::write(&joined, "").map_err(Failure::io("write", &joined))
    }

    /// Reboots a machine in an orderly way; with `series`, after installing that kernel's packages in it.
    ///
    /// # Errors
    /// The kernel is not to be had, its packages cannot be installed, or the machine does not come back with it.
    pub fn reboot(&self, name: &str, series: Option<&str>) -> Result<Ready, Failure> {
        let expected = match series {
            None => None,
            Some(series) => Some(self.install(name, &kernels::fetch(&self.cache, series)?)?),
        };
        let boot = self.must(name, &["cat", "/proc/sys/kernel/random/boot_id"])?;
        let begun = Instant::now();
        self.must(name, &["reboot"])?;
        let ready = self.wait(name, begun, Some(boot.trim()))?;
        match expected {
            Some(expected) if expected != ready.kernel => {
                Err(Failure::Refused(format!("{name} has rebooted into {} instead of {expected}", ready.kernel)))
            }
            _ => Ok(ready),
        }
    }

    /// Installs a kernel's packages in a machine, as its default from the next boot on; the kernel's release.
    ///
    /// # Errors
    /// dpkg fails.
    pub fn install(&self, name: &str, kernel: &Kernel) -> Result<String, Failure> {
        let release = kernel.package.name.trim_start_matches("linux-image-").to_owned();
        let dir = "/var/tmp/kernel";
        self.copy_in(name, &kernel.files, dir)?;
        // A kernel that is installed already becomes the default again as a newly installed one does.
        let script = "if dpkg-query -W -f '${Version}' \"$1\" 2>/dev/null | grep -qxF \"$2\"; then
                linux-update-symlinks install \"$3\" \"/boot/vmlinuz-$3\"
            else
                DEBIAN_FRONTEND=noninteractive dpkg -i /var/tmp/kernel/*.deb 2>&1
            fi && rm -rf /var/tmp/kernel && sync";
        self.must(name, &["sh", "-c", script, "sh", &kernel.package.name, &kernel.package.version, &release])?;
        Ok(release)
    }

    /// Kills a machine as a power cut does: without a sync. It stays off until [`Self::start`].
    ///
    /// # Errors
    /// There is none, it does not run, or does not end.
    pub fn powercut(&self, name: &str) -> Result<(), Failure> {
        self.running(name)?;
        self.group.kill(name)
    }

    /// Cuts a machine off the LAN (`false`) or lets it in again. Commands reach it all the time.
    ///
    /// # Errors
    /// There is none.
    pub fn link(&self, name: &str, up: bool) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        self.lan()?.link(machine.number, up)
    }

    /// Runs a command in a machine to its end, without input.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<Run, Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = self.exec_with(name, command, io::empty(), &mut out, &mut err)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Run { code, out: text(&out), err: text(&err) })
    }

    /// Runs a command in a machine to its end; its exit code.
    ///
    /// # Errors
    /// The machine does not run, or does not answer.
    pub fn exec_with(
        &self,
        name: &str,
        command: &[&str],
        input: impl Read + Send + 'static,
        out: impl io::Write,
        err: impl io::Write,
    ) -> Result<i32, Failure> {
        let machine = self.running(name)?;
        let run = exec::run(&self.lan()?, machine.number, PATIENCE, command, input, out, err);
        run.map_err(|source| Failure::Io {
            doing: format!("run `{}` in {name}", tools::short(&command.join(" "))),
            source,
        })
    }

    /// Runs a command in a machine that must succeed; its output.
    ///
    /// # Errors
    /// It fails.
    pub fn must(&self, name: &str, command: &[&str]) -> Result<String, Failure> {
        let run = self.exec(name, command)?;
        if run.code == 0 {
            return Ok(run.out);
        }
        let said = tools::tail(&format!("{}{}", run.out, run.err), 6);
        Err(Failure::Tool { command: format!("{} (in {name})", tools::short(&command.join(" "))), said })
    }

    /// Removes a machine and all it left; without a name, or with the last one, the whole lab.
    ///
    /// # Errors
    /// There is no such machine, or something does not end.
    pub fn down(&self, name: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = name {
            let dir = self.folder(name);
            check_name(name)?;
            if !dir.is_dir() {
                return Err(self.no_machine(name));
            }
            self.group.kill(name)?;
            if let (Ok(machine), Ok(lan)) = (self.machine(name), self.lan()) {
                lan.unplug(machine.number);
            }
            fs::remove_dir_all(&dir).map_err(Failure::io("remove", &dir))?;
            if !self.machines().is_empty() {
                return Ok(());
            }
        }
        if self.dir.exists() && !self.dir.join("lock").exists() {
            return Err(Failure::Refused(format!("{} is no machine lab", self.dir.display())));
        }
        // Interfaces and the namespace go with their last process.
        self.group.remove()?;
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Failure::io("remove", &self.dir)(e)),
            _ => Ok(()),
        }
    }

    /// All machines, by number.
    #[must_use]
    pub fn machines(&self) -> Vec<Machine> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut all: Vec<Machine> =
            entries.filter_map(|entry| self.machine(&entry.file_name().to_string_lossy()).ok()).collect();
        all.sort_by_key(|machine| machine.number);
        all
    }

    /// A machine's record.
    ///
    /// # Errors
    /// There is none.
    pub fn machine(&self, name: &str) -> Result<Machine, Failure> {
        let record = fs::read(self.folder(name).join("machine.json")).ok();
        record.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| self.no_machine(name))
    }

    /// Whether a machine's supervisor is there.
    #[must_use]
    pub fn runs(&self, name: &str) -> bool {
        !self.group.processes(name).is_empty()
    }

    /// Resident memory of a machine's processes, MiB.
    #[must_use]
    pub fn resident(&self, name: &str) -> u64 {
        let of = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        self.group.processes(name).iter().filter_map(of).sum::<u64>() >> 10
    }

    /// The lab's network.
    ///
    /// # Errors
    /// It is not up.
    pub fn lan(&self) -> Result<Lan, Failure> {
        Lan::find(&self.group).ok_or_else(|| Failure::Missing {
            what: "the lab has no network".to_owned(),
            cure: "start a machine (vm up NAME KERNEL)".to_owned(),
        })
    }

    fn running(&self, name: &str) -> Result<Machine, Failure> {
        let machine = self.machine(name)?;
        if self.runs(name) {
            return Ok(machine);
        }
        Err(Failure::Missing { what: format!("{name} does not run"), cure: format!("vm start {name} starts it") })
    }

    fn no_machine(&self, name: &str) -> Failure {
        let cure = format!("vm up {name} KERNEL makes it, vm status lists those of {}", self.dir.display());
        Failure::Missing { what: format!("there is no machine `{name}`"), cure }
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let reserved = ["lan", "lock", "fleet", "authority"].contains(&name);
    if name.is_empty() || name.len() > 32 || !name.bytes().all(good) || name.starts_with('-') || reserved {
        let rule = "a machine's name has 1 to 32 of a-z, 0-9 and -, and is none of lan, lock, fleet, authority";
        return Err(Failure::Refused(format!("`{name}` is no name for a machine: {rule}")));
    }
    Ok(())
}
