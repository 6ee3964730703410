//! Debian's packages: whether the newer ones can be installed, and installing them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
        well(daemon, tool::run(daemon, run, &words, FETCH_LIMIT).await?, "fetch the packages")?;
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

/// Whoever holds apt's lock is waited for.
const LOCK: &str = "DPkg::Lock::Timeout=60";

/// Installs. Again after a crash in mid-work, too.
pub(super) async fn install(daemon: &Arc<Daemon>, run: &str, change: &Change) -> Result<()> {
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
    if let Some(entry) = pinned(&read("/etc/default/grub"), &read("/boot/grub/grubenv")).filter(|_| has_grub) {
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
    use super::*;

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
