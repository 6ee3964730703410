//! What a host shows from outside: to be compared before and after, so that nothing leaks.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::Lab;
use crate::lab::eventually;

/// Everything of a lab host that a pod or a move could leave behind, one thing a line, sorted.
#[must_use]
pub fn of(lab: &Lab, host: &str) -> Vec<String> {
    let holder = holder(lab, host);
    let mut lines = mounts(holder);
    lines.extend(links(holder));
    lines.extend(in_network_of(holder, rules).unwrap_or_else(|e| vec![format!("rules cannot be read: {e}")]));
    lines.extend(iptables(holder));
    lines.extend(folders(lab, host));
    lines.extend(cgroups(lab, host).iter().map(|c| format!("cgroup {}", c.display())));
    lines.extend(processes(lab, host));
    lines.sort();
    lines
}

/// The same, once podd has ended the trial of CRIU that it makes after its start.
#[must_use]
pub fn settled(lab: &Lab, host: &str) -> Vec<String> {
    let trying = |lines: &[String]| lines.iter().any(|l| l.contains("criu-roundtrip"));
    eventually("podd has tried CRIU", Duration::from_secs(30), || !trying(&of(lab, host)));
    of(lab, host)
}

/// What came (`+`) and what went (`-`); empty if nothing did.
#[must_use]
pub fn difference(before: &[String], after: &[String]) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut left = before.to_vec();
    for line in after {
        match left.iter().position(|l| l == line) {
            Some(at) => drop(left.remove(at)),
            None => lines.push(format!("+ {line}")),
        }
    }
    lines.extend(left.iter().map(|l| format!("- {l}")));
    lines.join("\n")
}

/// The process that keeps a host's namespaces: `/proc/PID/root` is the host's view of files.
#[must_use]
pub fn holder(lab: &Lab, host: &str) -> i32 {
    let path = lab.dir().join(host).join("holder.pid");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().parse().expect("holder.pid holds a number")
}

/// A path on a host, as this process reaches it.
#[must_use]
pub fn inside(lab: &Lab, host: &str, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", holder(lab, host)))
}

/// Runs something in the network namespace of a process, in a thread of its own.
///
/// # Errors
/// The process is gone, or what `work` says.
pub fn in_network_of<T: Send>(pid: i32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn mounts(holder: i32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{holder}/mounts")).unwrap_or_default();
    let fields = |line: &str| line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ");
    table.lines().map(|line| format!("mount {}", fields(line))).collect()
}

fn links(holder: i32) -> Vec<String> {
    let all = PathBuf::from(format!("/proc/{holder}/root/sys/class/net"));
    let bridge = |link: &Path| fs::read_link(link.join("master")).map(|m| name(&m)).unwrap_or_default();
    entries(&all).iter().map(|link| format!("link {} {}", name(link), bridge(link))).collect()
}

/// Firewall rules (nftables) and queueing disciplines of this thread's network namespace. Asked of the kernel itself: a
/// host need not have the tools.
///
/// # Errors
/// The kernel does not answer.
pub fn rules() -> io::Result<Vec<String>> {
    const NFTABLES: u16 = 10 << 8;
    let mut lines = Vec::new();
    for (what, kind) in [("table", 1), ("chain", 4), ("rule", 7)] {
        for mut answer in dump(SockProtocol::NetlinkNetFilter, NFTABLES | kind, &[0; 4])? {
            // The generation, which grows with each change.
            answer[2..4].fill(0);
            let text: String = answer.iter().map(|b| format!("{b:02x}")).collect();
            lines.push(format!("nft {what} {text}"));
        }
    }
    const GET_QDISC: u16 = 38;
    for answer in dump(SockProtocol::NetlinkRoute, GET_QDISC, &[0; 20])? {
        // struct tcmsg, then attributes; TCA_KIND (1) comes first.
        let length = usize::from(u16::from_ne_bytes([answer[20], answer[21]]));
        lines.push(format!("qdisc {}", String::from_utf8_lossy(&answer[24..20 + length]).trim_end_matches('\0')));
    }
    Ok(lines)
}

/// All answers to a netlink dump request, without their headers.
fn dump(protocol: SockProtocol, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const REQUEST_DUMP: u16 = 0x301;
    const HEADER: usize = 16;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let mut request = Vec::new();
    request.extend(u32::try_from(HEADER + body.len()).map_err(io::Error::other)?.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                2 => return Err(io::Error::other(format!("netlink error {:?}", &rest[HEADER..HEADER + 4]))),
                3 => return Ok(answers),
                _ => answers.push(rest[HEADER..size].to_vec()),
            }
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// Tables of the older firewall: they are absent until somebody uses them.
fn iptables(holder: i32) -> Vec<String> {
    let mut lines = Vec::new();
    for file in ["ip_tables_names", "ip6_tables_names", "arp_tables_names"] {
        let names = fs::read_to_string(format!("/proc/{holder}/net/{file}")).unwrap_or_default();
        lines.extend(names.lines().map(|n| format!("iptables {file} {n}")));
    }
    lines
}

/// Runtime folders, images in flight, writable layers and stored images. Layers are a store of their own: podd keeps
/// them for the next pod, and removes unused ones when it starts.
fn folders(lab: &Lab, host: &str) -> Vec<String> {
    let run = inside(lab, host, "/run/podd");
    let state = lab.dir().join(host).join("state");
    let folders = [run.join("pods"), run.join("flight"), state.join("pods"), state.join("images")];
    let mut lines = Vec::new();
    for folder in &folders {
        lines.extend(entries(folder).iter().map(|e| format!("folder {} {}", name(folder), name(e))));
    }
    lines.extend(entries(&run).iter().filter(|e| !e.ends_with("fault")).map(|e| format!("run {}", name(e))));
    lines
}

/// Every cgroup of a host's pods, in every hierarchy.
#[must_use]
pub fn cgroups(lab: &Lab, host: &str) -> Vec<PathBuf> {
    let own = format!("{}-{host}", lab_id(lab, host));
    let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
    tops.extend(entries(Path::new("/sys/fs/cgroup")));
    let mut found = Vec::new();
    for top in tops {
        descend(&top.join(&own), &mut found);
    }
    found
}

fn descend(folder: &Path, found: &mut Vec<PathBuf>) {
    if !folder.is_dir() {
        return;
    }
    found.push(folder.to_owned());
    for entry in entries(folder) {
        descend(&entry, found);
    }
}

/// `podd-lab-` and 8 digits: how `scripts/lab` names this lab's cgroups.
fn lab_id(lab: &Lab, host: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", holder(lab, host))).expect("the host runs");
    let at = groups.find("podd-lab-").expect("the host has a cgroup of the lab");
    groups[at..].chars().take("podd-lab-".len() + 8).collect()
}

/// Processes that belong to a host or to its pods, by command line: those in its cgroups and those in its network
/// namespace; and zombies that one of them does not reap. The holder itself is left out.
fn processes(lab: &Lab, host: &str) -> Vec<String> {
    let holder = holder(lab, host);
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let ours = network(holder);
    let id = lab_id(lab, host);
    let groups = [format!("/{id}-{host}/"), format!("/{id}/{host}\n")];
    let mut found = Vec::new();
    let mut pids = BTreeSet::new();
    let mut zombies = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let Ok(pid) = name(&entry).parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.join("stat")) else { continue };
        let rest: Vec<&str> = stat.rsplit_once(") ").map(|(_, r)| r.split(' ').collect()).unwrap_or_default();
        if rest.first().is_some_and(|s| matches!(*s, "Z" | "X")) {
            zombies.push((rest.get(1).and_then(|p| p.parse::<i32>().ok()), stat.clone()));
            continue;
        }
        let cgroup = fs::read_to_string(entry.join("cgroup")).unwrap_or_default();
        let is_ours = groups.iter().any(|g| cgroup.contains(g)) || network(pid) == ours;
        if pid == holder || !is_ours {
            continue;
        }
        pids.insert(pid);
        let command = fs::read(entry.join("cmdline")).unwrap_or_default();
        found.push(format!("process {}", String::from_utf8_lossy(&command).replace('\0', " ").trim()));
    }
    for (parent, stat) in zombies {
        if parent.is_some_and(|p| pids.contains(&p)) {
            found.push(format!("zombie {}", stat.split(['(', ')']).nth(1).unwrap_or_default()));
        }
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|all| all.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
