//! The process that stays with a running machine: it starts QEMU with the kernel that is on the machine's disk, and does
//! so again whenever the machine reboots. A power cut kills it together with QEMU.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use super::lan::Lan;
use super::qemu::{self, End};
use super::room::Machine;
use super::{Failure, boot};

/// What says why a machine does not start.
pub const LOG: &str = "supervisor.log";

/// Runs a machine until it switches itself off. The working directory is the machine's folder.
///
/// # Errors
/// There is no kernel on its disk, or QEMU cannot be started.
pub fn run(lan: &Lan, machine: &Machine) -> Result<(), Failure> {
    loop {
        let kernel = boot::extract(Path::new("kernels.img"), Path::new("vmlinuz"), Path::new("initrd.img"))?;
        let log = || File::options().create(true).append(true).open(LOG).map_err(Failure::io("open", Path::new(LOG)));
        {
            use std::io::Write;
            writeln!(log()?, "starting {kernel}").map_err(Failure::io("write to", Path::new(LOG)))?;
        }
        let has_loader = boot::loader(Path::new("kernels.img"), Path::new(qemu::LOADER))?;
        let mut command = qemu::command(lan, machine, has_loader);
        let child = command.stdin(Stdio::null()).stdout(log()?).stderr(log()?).spawn();
        let child = child.map_err(Failure::io("start", Path::new("qemu-system-x86_64")))?;
        match qemu::wait(child)? {
            End::Reboot => {}
            End::Off => return Ok(()),
        }
    }
}
