//! CRIU's lazy pages by hand, between two hosts: the server lives in a network namespace of its own, whose twin is ready
//! on the other host. It stands still while its state is dumped and copied; its memory follows while it runs again.

use super::host::{Failure, MARK, Server, bash, criu, fill, phases, restored_pid, shut_down};
use super::{Contender, criu as plain};
use crate::Lab;
use crate::lab::rootfs;

const HOSTS: [&str; 2] = ["a", "b"];

/// The twins: the same addresses, one of them plugged in.
const NETWORKS: &str = r#"
cidr=$1 mac=02:77:00:00:01:07; shift
for host in "$@"; do
    nsenter --target "$host" --net --mount --uts bash -eu -c '
        [ ! -e /run/netns/bench ] || exit 0
        mkdir -p /run/bench/lazy
        ip netns add bench
        ip link add bench0 type veth peer name eth0 address "$2" netns bench
        ip -n bench addr add "$1" dev eth0
        ip -n bench link set lo up
        ip -n bench link set eth0 up
        ip link set bench0 up
    ' networks "$cidr" "$mac"
done
ip link set bench0 master podbr0
# Pipes as large as CRIU wants them.
[ "$(cat /proc/sys/fs/pipe-max-size)" -ge 1048576 ]
"#;

/// The cable is pulled before the dump, so that no packet is taken and then forgotten; the firewall is not needed then.
const GO: &str = r#"
criu=$1 pid=$2 from=$3 to=$4 ip=$5 image=/run/bench/lazy
on() { local host=$1; shift; nsenter --target "$host" --net --mount --uts "$@"; }
flags="--images-dir $image --tcp-established --network-lock skip"
rm -rf "/proc/$from/root$image" "/proc/$to/root$image"
mkdir -p "/proc/$from/root$image" "/proc/$to/root$image"
net=$(stat -L -c %i "/proc/$from/root/run/netns/bench")
exec 8<"/proc/$to/root/run/netns/bench"
fail() { grep -h Error "/proc/$from/root$image/dump.log" "/proc/$to/root$image"/*.log | grep -v RLIMIT | head -n 3; exit 1; }
mark begin
on "$from" ip link set bench0 nomaster
exec 9< <(on "$from" timeout -k 1 120 "$criu" dump --tree "$pid" $flags --log-file dump.log --external "net[$net]:pod" \
    --lazy-pages --address "$ip" --port 7500 --status-fd 7 7>&1 >/dev/null 2>&1)
read -r -d '' -u 9 || fail
mark dump
cp -r "/proc/$from/root$image/." "/proc/$to/root$image"
mark copy
on "$to" timeout -k 1 120 "$criu" lazy-pages --images-dir "$image" --log-file lazy.log --page-server --address "$ip" \
    --port 7500 8<&- 9<&- >/dev/null 2>&1 &
pager=$!
on "$to" ip link set bench0 master podbr0
while [ ! -S "/proc/$to/root$image/lazy-pages.socket" ]; do kill -0 "$pager" || fail; sleep 0.001; done
on "$to" timeout -k 1 30 "$criu" restore $flags --log-file restore.log --lazy-pages --inherit-fd "fd[8]:pod" \
    --restore-detached --pidfile pid >/dev/null 2>&1 || fail
mark restore
wait "$pager"   # all pages are over
mark pages
echo "pid $(cat "/proc/$to/root$image/pid")"
"#;

pub struct Lazy<'a> {
    lab: &'a Lab,
    server: Server,
    pid: String,
    at: usize,
}

impl<'a> Lazy<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server, pid: String::new(), at: 0 }
    }

    /// The process that keeps a host's namespaces.
    fn holder(&self, host: usize) -> Result<String, Failure> {
        let path = self.lab.dir().join(HOSTS[host]).join("holder.pid");
        let pid =
            std::fs::read_to_string(&path).map_err(|e| Failure(format!("cannot read {}: {e}", path.display())))?;
        Ok(pid.trim().to_owned())
    }
}

impl Contender for Lazy<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let cidr = format!("{}/16", self.server.address.ip());
        let hosts = [self.holder(0)?, self.holder(1)?];
        bash(self.lab, "the networks of lazy pages", NETWORKS, &[&cidr, &hosts[0], &hosts[1]])?;
        let (root, server) = (rootfs("redis"), self.server.redis("/tmp"));
        let mut all = vec![root.as_str()];
        all.extend(server.iter().map(String::as_str));
        let start = plain::START.replace("unshare --pid", "nsenter --net=/run/netns/bench unshare --pid");
        self.pid = bash(self.lab, "the start of redis", &start, &all)?.trim().to_owned();
        for host in &hosts {
            let check = "nsenter --target \"$1\" --net --mount \"$2\" check >/dev/null 2>&1";
            bash(self.lab, "criu check", check, &[host, &criu().to_string_lossy()])?;
        }
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (self.holder(self.at)?, self.holder(1 - self.at)?);
        let script = format!("{MARK}{GO}");
        // The lab gives host a the address 10.77.0.1, and so on.
        let ip = format!("10.77.0.{}", self.at + 1);
        let printed = bash(self.lab, "lazy pages", &script, &[&criu().to_string_lossy(), &self.pid, &from, &to, &ip])?;
        self.at = 1 - self.at;
        self.pid = restored_pid(&printed)?;
        Ok(phases(&printed))
    }

    fn end(&mut self) {
        shut_down(self.lab, &self.server);
    }
}
