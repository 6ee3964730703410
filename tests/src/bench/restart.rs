//! No move at all: redis saves, ends, starts again and loads what it saved. AutoPod's own comparison.

use super::Contender;
use super::host::{Failure, MARK, Server, bash, fill, phases, shut_down};
use crate::Lab;
use crate::lab::rootfs;

/// In redis's root; a tmpfs, as for the others.
const FOLDER: &str = "/var/lib/redis";

const START: &str = r#"
root=$1; shift
if [ ! -e /run/bench/saved ]; then
    mkdir -p /run/bench/saved
    mount --bind /run/bench/saved "$root/var/lib/redis"   # in this host's mounts only
fi
setsid chroot "$root" "$@" >/dev/null 2>&1 &
echo $! >/run/bench/saved/pid
"#;

const GO: &str = r#"
root=$1 ip=$2 port=$3
ask() { chroot "$root" redis-cli -h "$ip" -p "$port" "$@"; }
pid=$(cat /run/bench/saved/pid)
mark begin
ask shutdown save >/dev/null
# Whoever inherited it may be slow to take note of its end.
while grep -qs '^State:.[^ZX]' "/proc/$pid/status"; do sleep 0.001; done
mark save
"#;

const WAIT: &str = r#"
until [ "$(ask ping 2>/dev/null)" = PONG ]; do sleep 0.02; done
mark load
"#;

pub struct Restart<'a> {
    lab: &'a Lab,
    server: Server,
}

impl<'a> Restart<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server }
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![rootfs("redis")];
        words.extend(self.server.redis(FOLDER));
        words
    }
}

impl Contender for Restart<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let words = self.words();
        // What an earlier one has saved is not its affair.
        let start = format!("rm -rf /run/bench/saved/*\n{START}");
        bash(self.lab, "the start of redis", &start, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (ip, port) = (self.server.address.ip().to_string(), self.server.address.port().to_string());
        let words = self.words();
        // The three arguments of the first part go before those of the start.
        let script = format!("{MARK}{GO}shift 3\n{START}{WAIT}");
        let mut all = vec![words[0].as_str(), &ip, &port];
        all.extend(words.iter().map(String::as_str));
        Ok(phases(&bash(self.lab, "the restart of redis", &script, &all)?))
    }

    fn end(&mut self) {
        shut_down(self.lab, &self.server);
    }
}
