//! A host whose uplink podd takes into its bridge stays reachable: addresses and routes go along.

use std::process::Command;

use tests::lab::{binary, run};

/// Its own network and mount namespace is host enough: nothing is left of it afterwards.
const SCRIPT: &str = r#"
    set -eu
    mount -t tmpfs tmpfs /run
    ip link set lo up
    ip link add eth0 type veth peer name far
    ip link set eth0 up; ip link set far up
    ip addr add 192.0.2.10/24 dev eth0
    ip addr add 2001:db8::10/64 dev eth0 nodad
    ip route add default via 192.0.2.1 metric 100
    ip route add 198.51.100.0/24 via 192.0.2.254
    ip -6 route add default via 2001:db8::1
    mkdir /run/podd
    cat >/run/podd.toml <<END
state = "/run/state"
cgroup = "podd-test-uplink-$$"
[network]
bridge = "podd0"
uplink = "eth0"
END
    for start in 1 2; do
        "$1" serve --config /run/podd.toml 2>/run/log & podd=$!
        for i in $(seq 200); do grep -q ready /run/log && break || sleep 0.05; done
        kill $podd; wait $podd
        grep -q ready /run/log || { cat /run/log >&2; exit 1; }
    done
    ip -o addr show scope global | awk '{ print "addr", $2, $4 }'
    ip route show proto boot | sed 's/^/route /'
    ip -6 route show default | sed 's/^/route /'
"#;

#[test]
fn addresses_and_routes_follow_the_uplink() {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]).arg(binary("podd"));
    let out = run(command).checked().out;
    let mut lines: Vec<&str> = out.lines().map(str::trim).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "addr podd0 192.0.2.10/24",
            "addr podd0 2001:db8::10/64",
            "route 198.51.100.0/24 via 192.0.2.254 dev podd0",
            "route default via 192.0.2.1 dev podd0 metric 100",
            "route default via 2001:db8::1 dev podd0 metric 1024 pref medium",
        ]
    );
}
