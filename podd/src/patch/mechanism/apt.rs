//! Debian's packages: whether the newer ones can be installed, and installing them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::tool::{self, Said};
use super::{in_place, reboot};
use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::patch::decide::{Mechanism, Verdict, is_before};
use crate::patch::facts::{Fact, Facts, InstalledKernel};
use crate::patch::run::Change;
use crate::patch::run::orders::Checked;
use crate::patch::watch;
use crate::supervisor::Daemon;

/// Lists and packages come over the network.
const FETCH_LIMIT: Duration = Duration::from_secs(1200);
/// Initial RAM disks are made on slow processors, too.
const INSTALL_LIMIT: Duration = Duration::from_secs(3600);
/// A kernel and its initial RAM disk, if nobody knows better, in bytes.
const KERNEL: u64 = 150 << 20;
/// Left free on disks, in bytes.
const SPARE: u64 = 64 << 20;
/// Nobody is asked anything: files that the operator has changed stay as they are, nothing is removed.
const INSTALL: [&str; 9] = [
    "apt-get",
    "-q",
    "-y",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "--no-remove",
    "install",
];

/// Sees whether the host can be patched, and fetches all that it takes. Nothing is changed but apt's lists.
pub(super) async fn check(daemon: &Arc<Daemon>, run: &str, mechanism: Mechanism) -> Result<Checked> {
    unlocked(DPKG_LOCK, LOCK_LIMIT).await?;
    is_whole(daemon, run).await?;
    let fetched = tool::run(
        daemon,
        run,
        &["apt-get", "-q", "-o", LOCK, "-o", "APT::Update::Error-Mode=any", "update"],
        FETCH_LIMIT,
    );
    well(daemon, fetched.await?, "fetch apt's lists")?;
    watch::look(daemon, false).await?;
    let (decision, facts) = looked(daemon)?;
    let due = match decision.verdict {
        Verdict::Due { mechanism } => mechanism,
        Verdict::Blocked { reason, cure } => return Err(ApiError::conflict(reason).cure(cure)),
        Verdict::Unknown { missing } => {
            let first = missing.into_iter().next();
            let (what, cure) = first.map_or_else(Default::default, |missing| (missing.what, missing.cure));
            return Err(ApiError::conflict(format!("it is unknown whether it needs patching: {what}")).cure(cure));
        }
        other => {
            let remarks = vec![format!("it is {} by now", other.name())];
            return Ok(Checked { change: None, remarks });
        }
    };
    if due != mechanism {
        let what = format!("it was to be patched by {}, and now it takes {}", mechanism.name(), due.name());
        return Err(ApiError::conflict(what).cure("make a new plan: `podctl patch plan`"));
    }
    let mut change = change(&facts, mechanism);
    change.ends = decision.ends.into_iter().collect();
    if !change.packages.is_empty() {
        let words: Vec<&str> = INSTALL.into_iter().chain(["--download-only", "-o", LOCK]).collect();
        let words: Vec<&str> = words.into_iter().chain(change.packages.iter().map(String::as_str)).collect();
        let fetched = tool::run(daemon, run, &words, FETCH_LIMIT).await?;
        let grows = grows_by(&fetched.text);
        well(daemon, fetched, "fetch the packages")?;
        has_room_for(grows)?;
    }
    if mechanism >= Mechanism::InPlace {
        reboot::check(&daemon.config.reboot)?;
    }
    if mechanism == Mechanism::InPlace {
        tokio::task::block_in_place(|| in_place::check(daemon))?;
    }
    if change.kernel.is_some() {
        has_room_for_a_kernel(&facts)?;
        boots_the_newest(&facts)?;
    }
    Ok(Checked { change: Some(change), remarks: Vec::new() })
}

/// Whoever holds apt's lock is waited for: so long by us, and by apt.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
const LOCK: &str = "DPkg::Lock::Timeout=60";
/// Held by whoever installs packages (apt-secure's and dpkg's own, before any other).
const DPKG_LOCK: &str = "/var/lib/dpkg/lock-frontend";

/// Installs. Again after a crash in mid-work, too.
pub(super) async fn install(daemon: &Arc<Daemon>, run: &str, change: &Change) -> Result<()> {
    // It may be our own apt: it outlives podd.
    unlocked(DPKG_LOCK, INSTALL_LIMIT).await?;
    if is_whole(daemon, run).await.is_err() {
        // We were at it ourselves: `check` has found it whole.
        let words = ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"];
        well(daemon, tool::run(daemon, run, &words, INSTALL_LIMIT).await?, "finish what was interrupted")?;
    }
    if !change.packages.is_empty() {
        let words: Vec<&str> = INSTALL.into_iter().chain(["-o", "DPkg::Lock::Timeout=1800"]).collect();
        let words: Vec<&str> = words.into_iter().chain(change.packages.iter().map(String::as_str)).collect();
        well(daemon, tool::run(daemon, run, &words, INSTALL_LIMIT).await?, "install the packages")?;
    }
    let (Some(release), Some(version)) = (&change.release, &change.kernel) else { return Ok(()) };
    watch::look(daemon, false).await?;
    let (_, facts) = looked(daemon)?;
    let is_there = |kernel: &InstalledKernel| kernel.release == *release && kernel.version == *version;
    if !facts.installed.known().is_some_and(|kernels| kernels.iter().any(is_there)) {
        return Err(ApiError::failed(format!("apt succeeded, and the kernel {release} {version} is not installed"))
            .cure("look at apt's output in podd's folder `patch`"));
    }
    match &facts.boot_default {
        Fact::Known(next) if next != release => {
            Err(ApiError::failed(format!("{release} is installed, and the next boot takes {next}"))
                .cure("run `update-grub`, and look at GRUB_DEFAULT in /etc/default/grub"))
        }
        Fact::Known(_) => Ok(()),
        Fact::Unknown(missing) => {
            Err(ApiError::failed(format!("{release} is installed; of the next boot, {}", missing.what))
                .cure(missing.cure.clone()))
        }
    }
}

/// What is to be installed.
fn change(facts: &Facts, mechanism: Mechanism) -> Change {
    let newer = facts.packages.known().into_iter().flatten();
    let newer = newer.filter(|package| !package.held && package.candidate != package.installed);
    let mut change = Change { packages: newer.map(|package| package.name.clone()).collect(), ..Change::default() };
    if mechanism >= Mechanism::InPlace
        && let (Some(running), Some(candidate)) = (facts.kernel.known(), facts.candidate.known())
        && is_before(&running.version, &candidate.version).unwrap_or(false)
    {
        change.packages.push(candidate.metapackage.clone());
        (change.kernel, change.release) = (Some(candidate.version.clone()), Some(candidate.release.clone()));
    }
    change
}

/// Waits until nobody installs packages any more.
async fn unlocked(lock: &str, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    while let Some(holder) = holder(lock) {
        if begun.elapsed() > limit {
            let name = std::fs::read_to_string(format!("/proc/{holder}/comm")).unwrap_or_default();
            let what = format!("apt's lock is held by {} (process {holder})", name.trim());
            return Err(ApiError::conflict(what).cure("wait until that program has ended, or end it"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// The process that holds a lock of fcntl(2); none: it is free.
fn holder(lock: &str) -> Option<i32> {
    let file = std::fs::File::open(lock).ok()?;
    let mut wanted = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut wanted)).ok()?;
    (i32::from(wanted.l_type) != libc::F_UNLCK).then_some(wanted.l_pid)
}

/// By how many bytes installed packages will grow, as apt says before it fetches them.
fn grows_by(text: &str) -> u64 {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("After this operation, ")?.split_once(" of additional disk"));
    let Some((number, unit)) = line.and_then(|(size, _)| size.rsplit_once(' ')) else { return 0 };
    let factor = match unit {
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => 1.0,
    };
    number.replace(',', "").parse::<f64>().map_or(0, |number| (number * factor) as u64)
}

fn has_room_for(bytes: u64) -> Result<()> {
    for folder in ["/usr", "/var/lib/dpkg"] {
        let disk = nix::sys::statvfs::statvfs(folder).attempt(format!("look at the room in {folder}"))?;
        let (free, needed) = (disk.blocks_available() * disk.fragment_size(), bytes + SPARE);
        if free < needed {
            let (free, needed) = (free >> 20, needed >> 20);
            return Err(ApiError::conflict(format!(
                "{folder} has {free} MiB free, and the packages need about {needed}"
            ))
            .cure("make room: `apt-get clean`, `apt-get autoremove --purge`, and look at `df`"));
        }
    }
    Ok(())
}

/// Refuses while dpkg was interrupted earlier.
async fn is_whole(daemon: &Daemon, run: &str) -> Result<()> {
    let audit = tool::run(daemon, run, &["dpkg", "--audit"], FETCH_LIMIT).await?;
    let journal = std::fs::read_dir("/var/lib/dpkg/updates").is_ok_and(|mut entries| entries.next().is_some());
    if audit.is_well() && audit.text.trim().is_empty() && !journal {
        return Ok(());
    }
    let first = audit.text.lines().next().unwrap_or("it was interrupted").to_owned();
    Err(ApiError::conflict(format!("dpkg is not done with an earlier installation: {first}"))
        .cure("run `dpkg --configure -a`, and `apt-get -f install`"))
}

fn well(daemon: &Daemon, said: Said, what: &str) -> Result<()> {
    if said.is_well() {
        return Ok(());
    }
    let why = said.complaints();
    let cure = match () {
        () if why.contains("Could not get lock") || why.contains("Unable to acquire") => {
            "wait until the program that holds apt's lock has ended, or end it"
        }
        () if why.contains("dpkg was interrupted") => "run `dpkg --configure -a`",
        () if why.contains("free space") || why.contains("No space") => "make room: `apt-get clean`, and look at `df`",
        () if why.contains("Failed to fetch") || why.contains("index files") || why.contains("Unable to fetch") => {
            "see that the mirrors in apt's sources answer: `apt-get update`"
        }
        () if why.contains("remove") || why.contains("unmet") || why.contains("held") => {
            "see what stands in the way: `apt-get -s dist-upgrade`"
        }
        () => "try it by hand, and do as apt says",
    };
    let (host, log) = (&daemon.config.host, said.log.display());
    Err(ApiError::failed(format!("{host} cannot {what}: {why}")).cure(format!("{cure}; all of its output is in {log}")))
}

/// What was read last, and what follows from it.
fn looked(daemon: &Daemon) -> Result<(crate::patch::decide::Decision, Facts)> {
    let decision = watch::status(daemon)?.decision;
    let facts = watch::facts(daemon).ok_or_else(|| ApiError::failed("the facts of this host were not read"))?;
    Ok((decision, facts))
}

fn has_room_for_a_kernel(facts: &Facts) -> Result<()> {
    let running = facts.kernel.known().map(|kernel| kernel.release.clone()).unwrap_or_default();
    let candidate = facts.candidate.known().map(|candidate| candidate.release.clone()).unwrap_or_default();
    let size = |name: String| std::fs::metadata(name).map(|file| file.len()).unwrap_or(0);
    if size(format!("/boot/vmlinuz-{candidate}")) > 0 && size(format!("/boot/initrd.img-{candidate}")) > 0 {
        return Ok(());
    }
    let now = size(format!("/boot/vmlinuz-{running}")) + size(format!("/boot/initrd.img-{running}"));
    // update-initramfs writes the new one beside the old one; a newer kernel is a little larger, and has its map beside it.
    let needed = if now == 0 { KERNEL } else { now + now / 4 + (16 << 20) };
    let boot = nix::sys::statvfs::statvfs("/boot").attempt("look at the room in /boot")?;
    let free = boot.blocks_available() * boot.fragment_size();
    if free >= needed {
        return Ok(());
    }
    let (free, needed) = (free >> 20, needed >> 20);
    Err(ApiError::conflict(format!("/boot has {free} MiB free, and a newer kernel needs about {needed}"))
        .cure("remove kernels that do not run: `apt-get autoremove --purge`"))
}

/// Refuses if the boot loader holds on to one kernel: it would not take the one to come.
fn boots_the_newest(facts: &Facts) -> Result<()> {
    let cure = "run `update-grub`, and look at GRUB_DEFAULT in /etc/default/grub";
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let has_grub = Path::new("/boot/grub/grub.cfg").exists();
    // As grub-mkconfig reads it.
    let parts = std::fs::read_dir("/etc/default/grub.d").into_iter().flatten().flatten().map(|part| part.path());
    let mut parts: Vec<_> = parts.filter(|part| part.extension().is_some_and(|end| end == "cfg")).collect();
    parts.sort();
    let mut defaults = read("/etc/default/grub");
    for part in parts {
        defaults += "\n";
        defaults += &std::fs::read_to_string(part).unwrap_or_default();
    }
    if let Some(entry) = pinned(&defaults, &read("/boot/grub/grubenv")).filter(|_| has_grub) {
        return Err(ApiError::conflict(format!("GRUB always boots {entry:?}, not the newest kernel")).cure(cure));
    }
    let (Some(next), Some(running), Some(installed)) =
        (facts.boot_default.known(), facts.kernel.known(), facts.installed.known())
    else {
        return Ok(());
    };
    let same = installed.iter().filter(|kernel| kernel.release.ends_with(&running.flavour));
    let newest = same.reduce(|a, b| if is_before(&a.version, &b.version).unwrap_or(false) { b } else { a });
    match newest.filter(|newest| newest.release != *next) {
        Some(newest) => {
            Err(ApiError::conflict(format!("{} is installed, and the next boot takes {next}", newest.release))
                .cure(cure))
        }
        None => Ok(()),
    }
}

/// The menu entry that GRUB was told to boot whatever is installed, by its configuration and its environment; none: the first one.
fn pinned(defaults: &str, environment: &str) -> Option<String> {
    let value = |text: &str, key: &str| {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let chosen = value(defaults, "GRUB_DEFAULT").unwrap_or_default();
    let chosen = if chosen == "saved" { value(environment, "saved_entry").unwrap_or_default() } else { chosen };
    // By number, the first one is the newest.
    (!chosen.is_empty() && chosen != "0").then_some(chosen)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn apt_says_how_much_room_it_takes() {
        let text = "Need to get 0 B/103 MB of archives.\nAfter this operation, 1,024 kB of additional disk space will be used.\n";
        assert_eq!(grows_by(text), 1_024_000);
        assert_eq!(grows_by("After this operation, 412 MB of additional disk space will be used.\n"), 412_000_000);
        assert_eq!(grows_by("After this operation, 9,216 B disk space will be freed.\n"), 0);
        assert!(has_room_for(0).is_ok());
        let refused = has_room_for(1 << 60).unwrap_err();
        assert!(refused.message.starts_with("/usr has") && refused.cure.is_some(), "{refused:?}");
    }

    #[tokio::test]
    async fn whoever_installs_is_waited_for() {
        let lock = tempfile::NamedTempFile::new().unwrap();
        let path = lock.path().to_str().unwrap();
        assert!(unlocked(path, Duration::ZERO).await.is_ok() && unlocked("/nowhere", Duration::ZERO).await.is_ok());
        // As apt does; a process does not meet its own locks.
        let script = "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(2)";
        let mut apt = std::process::Command::new("python3");
        let mut apt = apt.args(["-c", script, path]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(apt.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let refused = unlocked(path, Duration::ZERO).await.unwrap_err();
        assert!(refused.message.contains(&format!("held by python3 (process {})", apt.id())), "{refused:?}");
        assert!(unlocked(path, Duration::from_secs(30)).await.is_ok());
        apt.wait().unwrap();
    }

    #[test]
    fn grub_may_hold_on_to_a_kernel() {
        for (defaults, environment, entry) in [
            ("", "", None),
            ("GRUB_DEFAULT=0\n#GRUB_DEFAULT=7\n", "", None),
            ("GRUB_DEFAULT=saved\n", "# GRUB Environment Block\n", None),
            ("GRUB_DEFAULT=\"1>2\"\n", "", Some("1>2")),
            ("GRUB_DEFAULT=0\nGRUB_DEFAULT='gnulinux-6.1.0-48-amd64'\n", "", Some("gnulinux-6.1.0-48-amd64")),
            ("GRUB_DEFAULT=saved\n", "saved_entry=old\n", Some("old")),
        ] {
            assert_eq!(pinned(defaults, environment).as_deref(), entry, "{defaults:?}");
        }
    }
}
