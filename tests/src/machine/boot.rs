//! A machine's own kernels: a disk that holds `/boot`, the modules and dpkg's records, mounted in the machine. What QEMU
//! boots is read from it at each start, so that installing a kernel package and rebooting changes the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::base::Tree;
use super::cache::Cache;
use super::kernels::Kernel;
use super::{Failure, tools};

const MAKE: &str = include_str!("../../machine/make-kernels");

/// A disk with one kernel installed, to be copied for each machine.
///
/// # Errors
/// Its packages cannot be installed.
pub fn template(cache: &Cache, tree: &Tree, kernel: &Kernel) -> Result<PathBuf, Failure> {
    let _lock = cache.lock("kernels")?;
    let mut name = tools::Name::default().text(MAKE).text(&tree.name);
    for file in &kernel.files {
        name = name.text(&file.to_string_lossy());
    }
    let done = cache.path(&format!("kernels-{}-{}.img", kernel.series, name.finish()));
    if !done.is_file() {
        cache.tidy("kernels-");
        let scratch = cache.scratch()?;
        let stage = scratch.path().join("stage");
        fs::create_dir(&stage).map_err(Failure::io("make", &stage))?;
        tools::run(
            Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c", MAKE, "make-kernels"])
                .arg(&tree.dir)
                .arg(&stage)
                .args(&kernel.files),
        )?;
        let made = scratch.path().join("stage.img");
        fs::rename(&made, &done).map_err(Failure::io("make", &done))?;
    }
    cache.touch(&done);
    Ok(done)
}

/// Copies the kernel and the initrd that a machine would boot now out of its disk; the kernel's file name.
///
/// # Errors
/// The disk is damaged, or there is no kernel on it.
pub fn extract(disk: &Path, kernel: &Path, initrd: &Path) -> Result<String, Failure> {
    // After a power cut the newest files may be in the journal alone, which debugfs does not read. Codes up to 2 say
    // that something was put right.
    let check = Command::new("e2fsck").args(["-p", "-f"]).arg(disk).output();
    let check = check.map_err(Failure::io("check", disk))?;
    if check.status.code().is_none_or(|code| code > 2) {
        let said = tools::tail(&String::from_utf8_lossy(&check.stdout), 3);
        return Err(Failure::Tool { command: format!("e2fsck -p {}", disk.display()), said });
    }
    let version = link(disk, "/boot/vmlinuz")?;
    for (name, to) in [(version.clone(), kernel), (link(disk, "/boot/initrd.img")?, initrd)] {
        let _ = fs::remove_file(to);
        debugfs(disk, &format!("dump /boot/{name} {}", to.display()))?;
        // debugfs exits with 0 whatever happens.
        if fs::metadata(to).map_or(0, |m| m.len()) == 0 {
            return Err(Failure::Refused(format!(
                "{} holds no /boot/{name}; the machine cannot start",
                disk.display()
            )));
        }
    }
    Ok(version)
}

/// Copies a boot loader out of a machine's disk, if it has one of its own: a disk image that its firmware starts.
///
/// # Errors
/// The disk cannot be read.
pub fn loader(disk: &Path, to: &Path) -> Result<bool, Failure> {
    let _ = fs::remove_file(to);
    debugfs(disk, &format!("dump /boot/grub/loader.img {}", to.display()))?;
    Ok(fs::metadata(to).is_ok_and(|loader| loader.len() > 0))
}

fn link(disk: &Path, path: &str) -> Result<String, Failure> {
    let stat = debugfs(disk, &format!("stat {path}"))?;
    let target = stat.lines().find_map(|line| line.strip_prefix("Fast link dest: "));
    let target = target.map(|t| t.trim_matches('"').to_owned());
    target.ok_or_else(|| Failure::Refused(format!("{} has no {path}; the machine cannot start", disk.display())))
}

fn debugfs(disk: &Path, request: &str) -> Result<String, Failure> {
    tools::run(Command::new("debugfs").args(["-R", request]).arg(disk))
}
