//! One run of QEMU: its command line, and how the run ended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use super::Failure;
use super::lan::{Lan, tap};
use super::room::Machine;

/// A copy of the machine's own boot loader.
pub const LOADER: &str = "loader.img";

/// Why a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine wants to start again.
    Reboot,
    /// The machine switched itself off, or QEMU failed.
    Off,
}

/// Starts QEMU in a machine's folder, which is the working directory. Not every host has KVM for its machines, so it
/// emulates (TCG).
///
/// Both CPUs take turns in one thread (`thread=single`): with a thread each, a kernel panicked in one of about 40 starts
/// (QEMU 7.2, Linux 6.12), on a breakpoint that one CPU had patched away under the other one's translation. On two busy
/// cores one thread was no slower: 8.4 s from start to podd, instead of 9.6 s.
///
/// No instructions for AES: QEMU emulates each by a call, and TLS took most of a move. What podds do without is ChaCha20.
///
/// `cache=writeback` keeps what the machine has flushed, as a disk does; `unsafe` would make power cuts dishonest.
///
/// `has_loader`: the machine's boot loader finds the kernel and gives it its command line, not QEMU.
#[must_use]
pub fn command(lan: &Lan, machine: &Machine, has_loader: bool) -> Command {
    let number = machine.number;
    let cpu = format!("{},-aes,-pclmulqdq", machine.cpu);
    let mut command = lan.command("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"]);
    command.args(["-accel", "tcg,thread=single", "-cpu", &cpu, "-smp", "2", "-m", &machine.memory.to_string()]);
    command.args(["-rtc", "base=utc,clock=host", "-device", "virtio-rng-pci"]);
    if !has_loader {
        command.args(["-kernel", "vmlinuz", "-initrd", "initrd.img", "-append"]);
        // Mitigations cost much under emulation, and are not what is tested. No `panic=`: a panic shall be seen.
        let name = &machine.name;
        command.arg(format!("console=ttyS0,115200 rw quiet mitigations=off vm.name={name} vm.number={number}"));
    }
    for (id, file, format) in [("root", "root.qcow2", "qcow2"), ("kernels", "kernels.img", "raw")] {
        let drive = format!("if=none,id={id},file={file},format={format},cache=writeback,aio=threads,werror=report");
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    if has_loader {
        let drive = format!("if=none,id=loader,file={LOADER},format=raw,readonly=on");
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=loader,bootindex=0"]);
    }
    for (id, prefix) in [("lan", "52:78:00:00:00"), ("control", "52:79:00:00:00")] {
        let netdev = format!("tap,id={id},ifname={},script=no,downscript=no", tap(id, number));
        let device = format!("virtio-net-pci,netdev={id},mac={prefix}:{number:02x},romfile=");
        command.args(["-netdev", &netdev, "-device", &device]);
    }
    for (id, file) in [("console", "console.log"), ("podd", "podd.log")] {
        let file = format!("file,id={id},path={file},append=on");
        command.args(["-chardev", &file, "-serial", &format!("chardev:{id}")]);
    }
    // Relative, as the path of a socket may have 107 bytes only.
    command.args(["-qmp", "unix:qmp.sock,server=on,wait=off", "-no-reboot"]);
    command
}

/// Waits for the end of a run.
///
/// # Errors
/// QEMU does not open its control socket within 30 s.
pub fn wait(mut child: Child) -> Result<End, Failure> {
    let path = Path::new("qmp.sock");
    let mut socket = None;
    for _ in 0..300 {
        socket = UnixStream::connect(path).ok();
        let ended = child.try_wait().map_err(Failure::io("wait for", Path::new("QEMU")))?;
        if socket.is_some() || ended.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let mut end = End::Off;
    if let Some(mut socket) = socket {
        let asked = socket.write_all(b"{\"execute\":\"qmp_capabilities\"}\n");
        asked.map_err(Failure::io("write to", path))?;
        for line in BufReader::new(socket).lines().map_while(Result::ok) {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if event["event"] == "SHUTDOWN" {
                end = if event["data"]["reason"] == "guest-reset" { End::Reboot } else { End::Off };
            }
        }
    }
    child.wait().map_err(Failure::io("wait for", Path::new("QEMU")))?;
    Ok(end)
}
