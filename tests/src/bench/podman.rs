//! `podman container checkpoint --export` and `podman container restore --import`, with the archive copied in between.

use super::Contender;
use super::host::{Failure, MARK, PLACES, Server, bash, criu, fill, phases, shut_down};
use crate::Lab;
use crate::lab::rootfs;

/// Two storages, each with the image, and a cgroup that goes with the lab. conmon and runc find our CRIU by its name, as
/// podman has no option for it. Limits are the host's own: others may be more than root may set here.
const START: &str = r#"
root=$1 criu=$2 group=/$(sed -n 's|^0::/\([^/]*\)/a$|\1|p' /proc/self/cgroup)-y; shift 2
command -v podman >/dev/null || { echo "podman is not installed"; exit 1; }
mkdir -p /run/bench/home/.criu
echo "network-lock nftables" >/run/bench/home/.criu/default.conf
export HOME=/run/bench/home PATH=${criu%/*}:$PATH
for place in /run/bench/1/podman /run/bench/2/podman; do
    mkdir -p "$place"
    printf '#!/bin/sh\nexec podman --root %s/root --runroot %s/run --tmpdir %s/tmp %s "$@"\n' "$place" "$place" "$place" \
        "--storage-driver vfs --runtime runc --cgroup-manager cgroupfs --events-backend none" >"$place/podman"
    chmod +x "$place/podman"
done
# The very same image in both.
exec 2>/run/bench/1/podman/log
failed() { tail -n 1 /run/bench/1/podman/log; exit 1; }
tar -C "$root" -c . | /run/bench/1/podman/podman import - localhost/bench:latest >/dev/null || failed
/run/bench/1/podman/podman save localhost/bench:latest | /run/bench/2/podman/podman load >/dev/null || failed
/run/bench/1/podman/podman run --detach --name bench --network host --cgroup-parent "$group" \
    --ulimit "nofile=$(ulimit -Sn):$(ulimit -Sn)" --ulimit nproc=1024:1024 --security-opt seccomp=unconfined \
    localhost/bench:latest "$@" >/dev/null || failed
"#;

const GO: &str = r#"
criu=$1 from=$2 to=$3
export HOME=/run/bench/home PATH=${criu%/*}:$PATH
mark begin
"$from/podman" container checkpoint --tcp-established --compress none --export "$from/bench.tar" bench >/dev/null 2>"$from/log" ||
    { tail -n 1 "$from/log"; exit 1; }
mark dump
cp "$from/bench.tar" "$to/bench.tar"
mark copy
"$to/podman" container restore --tcp-established --import "$to/bench.tar" >/dev/null 2>"$to/log" || { tail -n 1 "$to/log"; exit 1; }
mark restore
"$from/podman" rm --force bench >/dev/null 2>&1 || true
rm -f "$from/bench.tar" "$to/bench.tar"
"#;

pub struct Podman<'a> {
    lab: &'a Lab,
    server: Server,
    at: usize,
}

impl<'a> Podman<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server, at: 0 }
    }
}

impl Contender for Podman<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let (root, criu, server) = (rootfs("redis"), criu().display().to_string(), self.server.redis("/tmp"));
        let mut all = vec![root.as_str(), &criu];
        all.extend(server.iter().map(String::as_str));
        bash(self.lab, "podman run", START, &all)?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (format!("{}/podman", PLACES[self.at]), format!("{}/podman", PLACES[1 - self.at]));
        let printed = bash(self.lab, "podman", &format!("{MARK}{GO}"), &[&criu().to_string_lossy(), &from, &to])?;
        self.at = 1 - self.at;
        Ok(phases(&printed))
    }

    fn end(&mut self) {
        shut_down(self.lab, &self.server);
        for place in PLACES {
            let script = "[ ! -x \"$1\" ] || HOME=/run/bench/home timeout 30 \"$1\" rm --force --all >/dev/null 2>&1";
            let _ = bash(self.lab, "podman rm", script, &[&format!("{place}/podman/podman")]);
        }
    }
}
