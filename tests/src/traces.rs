//! What a host shows from outside: to be compared before and after, so that nothing leaks.

use crate::Lab;
use crate::lab::run;

/// Everything of a lab host that a pod or a move could leave behind, one thing a line.
#[must_use]
pub fn of(lab: &Lab, host: &str) -> Vec<String> {
    let script = r#"
        awk '{print "mount " $2, $3}' /proc/mounts
        for link in /sys/class/net/*; do echo link ${link##*/}; done
        ls /run/podd/pods /run/podd/flight 2>/dev/null | sed 's/^/run /'
        ls DIR/state/pods 2>/dev/null | sed 's/^/state /'
        find /sys/fs/cgroup -type d -path '*/podd-lab*' 2>/dev/null | grep -E 'ID-HOST(/|$)' | sed 's/^/cgroup /'
        nft list ruleset 2>/dev/null | sed 's/^/nft /'
    "#;
    let script = script.replace("DIR", &lab.dir().join(host).display().to_string());
    let script = script.replace("ID-HOST", &format!("podd-lab-[0-9a-f]*-{host}"));
    let mut lines: Vec<String> =
        run(lab.on(host, &["sh", "-c", &script])).out.lines().map(str::to_owned).collect();
    // Shims and CRIU of this host: their command lines name its folders or they live in its mount namespace.
    lines.extend(processes(lab, host));
    lines.sort();
    lines
}

/// Programs that run in the host's mount namespace or below it, podd itself and the holder left out.
fn processes(lab: &Lab, host: &str) -> Vec<String> {
    let listing = r"for p in /proc/[0-9]*; do
        [ $(readlink $p/ns/net) = $(readlink /proc/self/ns/net) ] || continue
        tr '\0' ' ' < $p/cmdline 2>/dev/null; echo; done";
    run(lab.on(host, &["bash", "-c", listing]))
        .out
        .lines()
        .filter(|l| l.contains("podd shim") || l.contains("criu") || l.contains(" shim ") || l.contains("swrk"))
        .map(|l| format!("process {}", l.trim()))
        .collect()
}
