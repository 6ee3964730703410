//! `runc checkpoint` and `runc restore`, with the image copied between two root directories.

use serde_json::{Value, json};

use super::Contender;
use super::host::{Failure, MARK, PLACES, Server, bash, criu, fill, phases, shut_down};
use crate::Lab;
use crate::lab::{rootfs, run};

/// The same bundle in both places, and a cgroup that goes with the lab. CRIU gets from its configuration file what runc has no option for: Debian has no
/// iptables unless somebody installs it.
const START: &str = r#"
root=$1 spec=$2 group=/$(sed -n 's|^0::/\([^/]*\)/a$|\1|p' /proc/self/cgroup)-z/runc
command -v runc >/dev/null || { echo "runc is not installed"; exit 1; }
mkdir -p /run/bench/home/.criu
echo "network-lock nftables" >/run/bench/home/.criu/default.conf
for place in /run/bench/1/runc /run/bench/2/runc; do
    mkdir -p "$place/bundle/rootfs"
    mountpoint -q "$place/bundle/rootfs" || mount --bind "$root" "$place/bundle/rootfs"
    printf '%s' "${spec//GROUP/$group}" >"$place/bundle/config.json"
done
cd /run/bench/1/runc
runc --root state --log log run --detach --bundle bundle bench >/dev/null 2>&1 || { tail -n 1 log; exit 1; }
"#;

const GO: &str = r#"
criu=$1 from=$2 to=$3
export HOME=/run/bench/home
mkdir -p "$from/image" "$to/image"
mark begin
cd "$from"
runc --root state --log log --criu "$criu" checkpoint --tcp-established --image-path "$from/image" --work-path "$from" bench >/dev/null 2>&1 ||
    { tail -n 1 log; grep Error dump.log; exit 1; }
mark dump
cp -r "$from/image/." "$to/image"
mark copy
cd "$to"
runc --root state --log log --criu "$criu" restore --detach --tcp-established --image-path "$to/image" --work-path "$to" --bundle bundle bench >/dev/null 2>&1 ||
    { tail -n 1 log; grep Error restore.log; exit 1; }
mark restore
rm -rf "$from/image" "$to/image"
"#;

pub struct Runc<'a> {
    lab: &'a Lab,
    server: Server,
    at: usize,
}

impl<'a> Runc<'a> {
    pub fn new(lab: &'a Lab, server: Server) -> Self {
        Self { lab, server, at: 0 }
    }
}

impl Contender for Runc<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let spec = spec(&self.server.redis("/tmp"))?;
        bash(self.lab, "runc run", START, &[&rootfs("redis"), &spec])?;
        fill(self.lab, &self.server)
    }

    fn go(&mut self) -> Result<Vec<(String, f64)>, Failure> {
        let (from, to) = (format!("{}/runc", PLACES[self.at]), format!("{}/runc", PLACES[1 - self.at]));
        let script = format!("{MARK}{GO}");
        let printed = bash(self.lab, "runc", &script, &[&criu().to_string_lossy(), &from, &to])?;
        self.at = 1 - self.at;
        Ok(phases(&printed))
    }

    fn end(&mut self) {
        shut_down(self.lab, &self.server);
        for place in PLACES {
            let state = format!("{place}/runc/state");
            // The container is known in one of them at most.
            let _ = run(self.lab.on("a", &["timeout", "20", "runc", "--root", &state, "delete", "--force", "bench"]));
        }
    }
}

/// What `runc spec` makes, with our command, in the host's network and in a cgroup of the lab.
fn spec(command: &[String]) -> Result<String, Failure> {
    let folder = tempfile::tempdir().map_err(|e| Failure(format!("no folder for runc spec: {e}")))?;
    let mut runc = std::process::Command::new("runc");
    runc.args(["spec", "--bundle"]).arg(folder.path());
    crate::machine::tools::run(&mut runc).map_err(|e| Failure(e.to_string()))?;
    let wrong = |e: &dyn std::fmt::Display| Failure(format!("runc spec wrote no configuration: {e}"));
    let text = std::fs::read(folder.path().join("config.json")).map_err(|e| wrong(&e))?;
    let mut spec: Value = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
    spec["process"]["args"] = json!(command);
    spec["process"]["terminal"] = json!(false);
    // Its own limit of open files may be one that root may not set here.
    spec["process"]["rlimits"] = json!([]);
    spec["linux"]["cgroupsPath"] = json!("GROUP");
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    Ok(spec.to_string())
}
