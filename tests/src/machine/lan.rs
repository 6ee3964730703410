//! The lab's network: a network namespace of its own with two bridges and no way out. `lan` is where machines and pods
//! live; `control` carries the harness's commands, so that cutting a machine off the LAN does not cut off the test.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::group::Group;
use super::{Failure, tools};

/// The namespace of a lab that is up.
#[derive(Clone, Debug)]
pub struct Lan {
    holder: i32,
}

impl Lan {
    /// The namespace of this lab, if it is up.
    #[must_use]
    pub fn find(group: &Group) -> Option<Self> {
        group.processes("lan").first().map(|&holder| Self { holder })
    }

    /// Makes the namespace and its bridges, if they are not there.
    ///
    /// # Errors
    /// Namespaces or bridges cannot be made.
    pub fn up(group: &Group) -> Result<Self, Failure> {
        if let Some(lan) = Self::find(group) {
            return Ok(lan);
        }
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-ec"]).arg(
            "ip link set lo up
            for bridge in lan control; do ip link add name $bridge type bridge forward_delay 0 mcast_snooping 0; done
            ip addr add 10.78.0.254/16 dev lan
            ip addr add fd78::fe/64 dev lan nodad
            ip addr add 10.79.0.254/16 dev control
            ip link set lan up
            ip link set control up
            exec sleep infinity",
        );
        group.spawn("lan", holder, Path::new("/"))?;
        for _ in 0..100 {
            // Before its last step the holder is a shell, and before its first one in our own namespace.
            if let Some(lan) = Self::find(group).filter(|lan| lan.is_whole()) {
                return Ok(lan);
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        group.kill("lan")?;
        Err(Failure::Missing {
            what: "the lab's network namespace and its bridges cannot be made".to_owned(),
            cure: "be root, and let this host's kernel have network namespaces and the module bridge".to_owned(),
        })
    }

    fn is_whole(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/comm", self.holder)).is_ok_and(|name| name.trim() == "sleep")
    }

    /// A command in the namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder)).arg(program);
        command
    }

    /// Calls a function with this thread's like in the namespace.
    ///
    /// # Errors
    /// The lab has gone.
    pub fn inside<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder))?;
        // In a thread of its own, which ends there: ours stays where it is.
        let inside = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(call())
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
    }

    /// Makes a machine's two cables.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn plug(&self, number: u8) -> Result<(), Failure> {
        for bridge in ["lan", "control"] {
            let tap = tap(bridge, number);
            let script = "ip link show dev $1 >/dev/null 2>&1 || ip tuntap add dev $1 mode tap
                ip link set dev $1 master $2 up";
            tools::run(self.command("sh").args(["-ec", script, "sh", &tap, bridge]))?;
        }
        Ok(())
    }

    /// Removes a machine's cables.
    pub fn unplug(&self, number: u8) {
        for bridge in ["lan", "control"] {
            // A cable that is not there is as good.
            let _ = tools::run(self.command("ip").args(["link", "del", "dev", &tap(bridge, number)]));
        }
    }

    /// Cuts a machine off the LAN, or lets it in again.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn link(&self, number: u8, up: bool) -> Result<(), Failure> {
        let state = if up { "up" } else { "down" };
        tools::run(self.command("ip").args(["link", "set", "dev", &tap("lan", number), state])).map(drop)
    }

    /// A machine's address on the LAN.
    #[must_use]
    pub fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, number)
    }

    /// A machine's address for commands.
    #[must_use]
    pub fn control(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 79, 0, number)
    }
}

/// The name of a machine's tap on a bridge; at most 15 bytes.
#[must_use]
pub fn tap(bridge: &str, number: u8) -> String {
    format!("{bridge}-{number}")
}
