//! Plain CRIU: dump to a tmpfs, copy to the other place, restore.

use super::Contender;
use super::host::{Failure, MARK, PLACES, Server, bash, criu, fill, phases, restored_pid, shut_down};
use crate::Lab;
use crate::lab::rootfs;

/// A PID namespace of its own, so that its PIDs are free when it comes back. Prints its PID outside.
pub const START: &str = r#"
root=$1; shift
mkdir -p /run/bench/1 /run/bench/2
unshare --pid --fork setsid chroot "$root" "$@" >/dev/null 2>&1 &
while [ -z "$(cat /proc/$!/task/$!/children)" ]; do sleep 0.01; done
sleep 0.2   # until it is redis itself
tr -d ' ' </proc/$!/task/$!/children
"#;

/// The connections are kept by CRIU's own firewall rules; by nftables, which takes no children.
const GO: &str = r#"
criu=$1 pid=$2 from=$3 to=$4
flags="--tcp-established --network-lock nftables"
rm -rf "$from" "$to"
mkdir -p "$from" "$to"
mark begin
"$criu" dump --tree "$pid" --images-dir "$from" --log-file dump.log $flags >/dev/null 2>&1 || { grep Error "$from/dump.log"; exit 1; }
mark dump
cp -r "$from/." "$to"
mark copy
"$criu" restore --images-dir "$to" --log-file restore.log $flags --restore-detached --pidfile "$to/pid" >/dev/null 2>&1 ||
    { grep Error "$to/restore.log"; exit 1; }
mark restore
echo "pid $(cat "$to/pid")"
rm -rf "$from"
"#;

pub struct Criu<'a> {
    lab: &'a Lab,
    server: Server,
    pid: String,
    at: usize,
}

impl<'a> Criu<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server, pid: String::new(), at: 0 }
    }
}

impl Contender for Criu<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let (root, server) = (rootfs("redis"), self.server.redis("/tmp"));
        let mut all = vec![root.as_str()];
        all.extend(server.iter().map(String::as_str));
        self.pid = bash(self.lab, "the start of redis", START, &all)?.trim().to_owned();
        // What it learns of the kernel is kept in /run, also by a sysadmin's.
        bash(self.lab, "criu check", "\"$1\" check >/dev/null 2>&1", &[&criu().to_string_lossy()])?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (format!("{}/criu", PLACES[self.at]), format!("{}/criu", PLACES[1 - self.at]));
        let script = format!("{MARK}{GO}");
        let printed = bash(self.lab, "criu", &script, &[&criu().to_string_lossy(), &self.pid, &from, &to])?;
        self.at = 1 - self.at;
        self.pid = restored_pid(&printed)?;
        Ok(phases(&printed))
    }

    fn end(&mut self) {
        shut_down(self.lab, &self.server);
    }
}
