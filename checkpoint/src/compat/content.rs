//! Rules about what the pod's processes hold.

use super::{Context, Finding, go, go_with, no, size, some_of};
use crate::process::{FdKind, Resource, Rlimit, UnixFault};

/// `podctl exec` starts a process that is no descendant of the pod's init: CRIU dumps one tree (pstree.c), whose sessions and
/// process groups lead nowhere outside (`session leader is outside of its pid namespace`).
pub(super) fn exec_sessions(c: &Context) -> Option<Finding> {
    const RULE: &str = "exec-sessions";
    if let Some(who) = c.holders(|p| p.joined) {
        return no(RULE, format!("started from outside the pod: {who}"), "end the exec session, or wait until it ends");
    }
    match c.holders(|p| p.leader_outside) {
        Some(who) => no(
            RULE,
            format!("the session leader is outside the pod: {who}"),
            "end these processes, or start them with setsid",
        ),
        None => go(RULE, format!("all {} processes descend from the pod's init", c.pod.processes.len())),
    }
}

/// CRIU: `Can't dump nested %s namespace` for all but mnt and net (namespaces.c, CLONE_SUBNS). Of a nested net namespace nothing
/// but sockets would come back, since the pod's are left empty for podd to fill.
pub(super) fn nested_namespaces(c: &Context) -> Option<Finding> {
    const RULE: &str = "nested-namespaces";
    let refused = |n: &String| n != "mnt";
    // Whoever has joined from outside is the business of another rule.
    let nested = c.pod.processes.iter().filter(|p| !p.joined && p.nested.iter().any(refused));
    if let Some(who) = some_of(nested.map(|p| format!("{p}: {}", p.nested.join(" ")))) {
        return no(RULE, who, "run the program without its own sandbox or containers");
    }
    match c.holders(|p| !p.nested.is_empty()) {
        Some(who) => go(RULE, format!("mount namespaces of their own, which is fine: {who}")),
        None => go(RULE, "none"),
    }
}

/// A process has one tracer at most, and CRIU needs to be it (ptrace(2)).
pub(super) fn traced(c: &Context) -> Option<Finding> {
    match c.holders(|p| p.tracer != 0) {
        Some(who) => no("traced", format!("a debugger is attached to {who}"), "detach the debugger (gdb, strace)"),
        None => go("traced", "no debugger attached"),
    }
}

/// What CRIU needs above the highest descriptor of a process (servicefd.c: 15 of its own and 16 spare).
const CRIU_DESCRIPTORS: u64 = 32;
/// It starts at a multiple of this.
const CRIU_ALIGN: u64 = 128;

/// A restored process opens its files before its limits are set. Without CAP_SYS_RESOURCE CRIU cannot raise its own limit, and a
/// pod with more descriptors dumps well but fails to restore (`Can't chose service_fd_base`).
pub(super) fn fd_count(c: &Context) -> Option<Finding> {
    const RULE: &str = "fd-count";
    let busiest = c.pod.processes.iter().max_by_key(|p| p.descriptors.highest)?;
    let highest = u64::from(busiest.descriptors.highest.unwrap_or(0));
    let own = c.host.rlimit(Resource::OpenFiles).and_then(|l| l.soft).unwrap_or(u64::MAX);
    let limit = if c.host.cap_sys_resource { c.host.sysctls.nr_open } else { own.min(c.host.sysctls.nr_open) };
    let usable = limit / CRIU_ALIGN * CRIU_ALIGN;
    match highest + CRIU_DESCRIPTORS <= usable {
        true => go(RULE, format!("highest descriptor {highest}, {usable} can be restored")),
        false => no(
            RULE,
            format!("{busiest} has descriptor {highest}; with a limit of {limit} open files CRIU cannot restore it"),
            format!(
                "raise podd's limit there (LimitNOFILE={} in its unit) and restart it",
                (highest + 2 * CRIU_ALIGN).next_power_of_two()
            ),
        ),
    }
}

/// setrlimit(2): only CAP_SYS_RESOURCE raises a hard limit, and RLIMIT_NOFILE never beyond fs.nr_open. CRIU goes on with the
/// restorer's limit without a word.
pub(super) fn rlimits(c: &Context) -> Option<Finding> {
    const RULE: &str = "rlimits";
    let above = |wanted: Option<u64>, limit: Option<u64>| limit.is_some_and(|limit| wanted.is_none_or(|w| w > limit));
    let ceiling = |l: &Rlimit| match (c.host.cap_sys_resource, l.resource) {
        (true, Resource::OpenFiles) => Some(c.host.sysctls.nr_open),
        (true, _) => None,
        (false, resource) => c.host.rlimit(resource).and_then(|own| own.hard),
    };
    let mut lowered: Vec<&str> = Vec::new();
    for limit in c.pod.processes.iter().flat_map(|p| &p.rlimits) {
        if above(limit.hard, ceiling(limit)) && !lowered.contains(&limit.resource.name()) {
            lowered.push(limit.resource.name());
        }
    }
    match lowered.is_empty() {
        true => go(RULE, "all can be kept"),
        false => go_with(
            RULE,
            format!("will be lowered to those of podd: {}", lowered.join(" ")),
            "give podd CAP_SYS_RESOURCE there, or higher limits (LimitNOFILE= and its like)",
        ),
    }
}

/// vm.max_map_count (Documentation/admin-guide/sysctl/vm.rst); the restorer needs a few mappings of its own at the same time.
pub(super) fn mappings(c: &Context) -> Option<Finding> {
    const RESTORER: u64 = 128;
    let busiest = c.pod.processes.iter().max_by_key(|p| p.memory.mappings)?;
    let (have, most) = (busiest.memory.mappings, c.host.sysctls.max_map_count);
    match have + RESTORER <= most {
        true => go("mappings", format!("at most {have} in a process, {most} allowed")),
        false => no(
            "mappings",
            format!("{busiest} has {have} mappings, {most} are allowed there"),
            format!("sysctl -w vm.max_map_count={}", 2 * have),
        ),
    }
}

/// PIDs are the pod's own, so that none is taken; but kernel.pid_max may be lower there.
pub(super) fn pids(c: &Context) -> Option<Finding> {
    let highest = c.pod.processes.iter().map(|p| p.pod_pid).max()?;
    let most = c.host.sysctls.pid_max;
    match u64::try_from(highest).is_ok_and(|h| h < most) {
        true => go("pids", format!("the pod's own namespace; highest {highest}, below {most}")),
        false => no("pids", format!("PID {highest} is not below {most}"), "sysctl -w kernel.pid_max=4194304"),
    }
}

/// Refused by CRIU as an unsupported anonymous inode (files.c); its rings are shared with the kernel.
pub(super) fn io_uring(c: &Context) -> Option<Finding> {
    const CURE: &str =
        "switch io_uring off in the program (for node UV_USE_IO_URING=0), or sysctl -w kernel.io_uring_disabled=2";
    let ring = |d: &String| d.contains("[io_uring]");
    absent(
        "io-uring",
        "io_uring",
        c.holders(|p| p.descriptors.of(FdKind::IoUring) > 0 || p.memory.devices.iter().any(ring)),
        CURE,
    )
}

/// IPPROTO_MPTCP.
const MPTCP: u32 = 262;

/// CRIU: `Unsupported proto 262` (sk-inet.c). Listeners of Go 1.24 and later are MPTCP by default.
pub(super) fn mptcp(c: &Context) -> Option<Finding> {
    let who = some_of(c.pod.sockets.iter().filter(|s| s.protocol == MPTCP).map(|s| s.holder.clone()));
    absent("mptcp", "MPTCP sockets", who, "start Go programs with -e GODEBUG=multipathtcp=0")
}

/// What CRIU dumps (sockets.c, sk-inet.c): unix, netlink, packet; TCP, UDP, UDP-Lite, ICMP and raw over IP.
pub(super) fn rare_sockets(c: &Context) -> Option<Finding> {
    const RULE: &str = "sockets";
    const CURE: &str = "end the program that uses it, or run it outside the pod";
    let known = |family: u32, kind: u32, protocol: u32| match family {
        // AF_UNIX, AF_NETLINK, AF_PACKET.
        1 | 16 | 17 => true,
        // AF_INET, AF_INET6: raw; or TCP, UDP, ICMP, ICMPv6, UDP-Lite. MPTCP has its own rule.
        2 | 10 => kind == 3 || [0, 6, 17, 1, 58, 136, MPTCP].contains(&protocol),
        _ => false,
    };
    let rare = c.pod.sockets.iter().filter(|s| !known(s.family, s.kind, s.protocol));
    let named = rare.map(|s| format!("{} (family {}, type {}, protocol {})", s.holder, s.family, s.kind, s.protocol));
    if let Some(who) = some_of(named) {
        return no(RULE, format!("sockets that cannot be carried: {who}"), CURE);
    }
    let count: u64 = c.pod.sockets.iter().map(|s| s.count).sum();
    match c.pod.unknown_sockets {
        0 => go(RULE, format!("{count} of kinds that can be carried")),
        n => go_with(RULE, format!("{n} sockets could not be examined"), "run podd with CAP_SYS_PTRACE"),
    }
}

/// CRIU: a unix connection is dumped with both ends or not at all (sk-unix.c, `external stream`).
pub(super) fn unix_peers(c: &Context) -> Option<Finding> {
    const RULE: &str = "unix-peers";
    let named = c.pod.outside_peers.iter().map(|p| match &p.fault {
        UnixFault::PeerOutside => format!("{}: its peer is outside the pod", p.holder),
        UnixFault::MadeOutside => format!("{}: made outside the pod and handed in", p.holder),
        UnixFault::FolderGone(name) => {
            format!("{}: bound to {}, and that folder is gone", p.holder, name.display())
        }
    });
    if let Some(who) = some_of(named) {
        return no(
            RULE,
            who,
            "close the connection to the host's service (a volume with its socket?), or move the service into the pod; make the \
             folder of a socket again, or restart its program",
        );
    }
    match &c.pod.peers_unknown {
        Some(why) => go_with(RULE, format!("unix sockets could not be examined: {why}"), "modprobe unix_diag"),
        None => go(RULE, "all unix connections stay inside the pod"),
    }
}

/// memfd_secret(2): not even the kernel may read it.
pub(super) fn memfd_secret(c: &Context) -> Option<Finding> {
    let who = c.holders(|p| p.memory.secret || p.descriptors.of(FdKind::SecretMemory) > 0);
    absent("memfd-secret", "secret memory", who, "switch secret memory off in the program")
}

/// Refused by CRIU (`Unsupported anon: [userfaultfd]`); page faults in flight belong to the source's kernel.
pub(super) fn userfaultfd(c: &Context) -> Option<Finding> {
    let who = c.holders(|p| p.descriptors.of(FdKind::Userfaultfd) > 0);
    absent("userfaultfd", "userfaultfd", who, "switch it off in the program (for the JVM use a collector without it)")
}

/// perf_event_open(2): counters of this processor, refused by CRIU.
pub(super) fn perf(c: &Context) -> Option<Finding> {
    let who = c
        .holders(|p| p.descriptors.of(FdKind::Perf) > 0 || p.memory.devices.iter().any(|d| d.contains("[perf_event]")));
    absent("perf", "performance counters", who, "end the profiler")
}

/// bpf(2): programs and maps live in this kernel; CRIU carries maps only where it was built for it.
pub(super) fn bpf(c: &Context) -> Option<Finding> {
    let who = c.holders(|p| p.descriptors.of(FdKind::Bpf) > 0);
    absent("bpf", "BPF programs or maps", who, "end the program that loaded them")
}

/// mq_overview(7): CRIU carries the limits of the queues, not the queues (ipc_ns.c): they would vanish with their messages.
pub(super) fn message_queues(c: &Context) -> Option<Finding> {
    const CURE: &str = "end the program that uses them and remove them from /dev/mqueue";
    if let Some(who) = c.holders(|p| p.descriptors.of(FdKind::MessageQueue) > 0) {
        return no("message-queues", format!("POSIX message queues open in {who}"), CURE);
    }
    absent("message-queues", "POSIX message queues", some_of(c.pod.message_queues.iter().cloned()), CURE)
}

/// CRIU carries terminals, /dev/null and its like (files.c, dump_chrdev); a driver's state is beyond it.
pub(super) fn devices(c: &Context) -> Option<Finding> {
    // Rings of io_uring and perf have their own rules.
    let mapped = |d: &&String| !d.contains("[io_uring]") && !d.contains("[perf_event]");
    let named = c.pod.processes.iter().flat_map(|p| {
        p.descriptors.devices.iter().chain(p.memory.devices.iter().filter(mapped)).map(move |d| format!("{d} of {p}"))
    });
    absent("devices", "devices", some_of(named), "close the device in the program")
}

/// Anonymous inodes that CRIU does not know (files.c, dump_unsupp_fd).
pub(super) fn other_descriptors(c: &Context) -> Option<Finding> {
    let named = c.pod.processes.iter().flat_map(|p| p.descriptors.others.iter().map(move |d| format!("{d} of {p}")));
    absent("other-descriptors", "descriptors of other kinds", some_of(named), "end the program that holds it")
}

/// CRIU dumps a terminal with its master (tty.c); the master of an exec session is podd's.
pub(super) fn terminals(c: &Context) -> Option<Finding> {
    match some_of(c.pod.outside_terminals.iter().cloned()) {
        Some(which) => no(
            "terminals",
            format!("the other end is outside the pod: {which}"),
            "end the exec session that has the terminal",
        ),
        None => go("terminals", "none leads out of the pod"),
    }
}

/// CRIU puts deleted but open files into the image, up to a limit a file (files-reg.c, dump_ghost_remap).
pub(super) fn ghost_files(c: &Context) -> Option<Finding> {
    const RULE: &str = "ghost-files";
    let limit = c.request.ghost_limit;
    let large =
        c.pod.ghosts.iter().filter(|g| g.bytes > limit).map(|g| format!("{} ({})", g.path.display(), size(g.bytes)));
    if let Some(which) = some_of(large) {
        let cure = "make the program close the deleted file (reopen its log, restart a worker)";
        return no(RULE, format!("deleted but open, above the limit of {}: {which}", size(limit)), cure);
    }
    let bytes = c.pod.ghosts.iter().map(|g| g.bytes).sum();
    go(RULE, format!("{} deleted but open, {} together", c.pod.ghosts.len(), size(bytes)))
}

/// CRIU gives such a file a name of its own while it dumps, and takes the name away at the end of a dump that leaves the processes
/// alive (files-reg.c, link_remap): the restore would not find it.
pub(super) fn unlinked_files(c: &Context) -> Option<Finding> {
    let which = some_of(c.pod.unlinked.iter().map(|p| p.display().to_string()));
    let cure = "make the program close the file, or open it by the name that is left";
    absent("unlinked-files", "open files whose name is gone while another link remains", which, cure)
}

/// CRIU: packets in a pipe have bounds, which it does not carry (pipes.c).
pub(super) fn packet_pipes(c: &Context) -> Option<Finding> {
    let who = c.holders(|p| p.descriptors.of(FdKind::PacketPipe) > 0);
    absent("packet-pipes", "pipes in packet mode (O_DIRECT)", who, "end the program that uses them")
}

/// CRIU takes locks again on restore (option file_locks); whoever else locks the same file of a volume is not asked.
pub(super) fn file_locks(c: &Context) -> Option<Finding> {
    let count =
        |of: fn(&crate::process::Descriptors) -> u64| c.pod.processes.iter().map(|p| of(&p.descriptors)).sum::<u64>();
    let (locks, leases) = (count(|d| d.locks), count(|d| d.leases));
    match (locks + leases > 0, c.request.volumes.is_empty()) {
        (true, false) => go_with(
            "file-locks",
            format!("{locks} locks and {leases} leases are taken anew there"),
            "make sure that nobody else locks the same files of the pod's volumes",
        ),
        _ => go("file-locks", format!("{locks} locks, {leases} leases")),
    }
}

/// Huge pages of hugetlbfs are set aside by the administrator (Documentation/admin-guide/mm/hugetlbpage.rst).
pub(super) fn hugetlb(c: &Context) -> Option<Finding> {
    const RULE: &str = "hugetlb";
    let mut wanted = std::collections::BTreeMap::<u64, u64>::new();
    for (&page, &bytes) in c.pod.processes.iter().flat_map(|p| &p.memory.huge) {
        *wanted.entry(page).or_default() += bytes;
    }
    let short = wanted
        .iter()
        .find(|&(page, &bytes)| c.target.is_some_and(|t| t.memory.huge_free.get(page).copied().unwrap_or(0) < bytes));
    match short {
        Some((&page, &bytes)) => no(
            RULE,
            format!("{} in pages of {} are used, the target has fewer free", size(bytes), size(page)),
            format!(
                "there: echo {} > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                bytes.div_ceil(page.max(1)),
                page / 1024
            ),
        ),
        None => go(RULE, format!("{} in huge pages", size(wanted.values().sum()))),
    }
}

/// The usual rule: nobody may have it.
fn absent(rule: &str, what: &str, holders: Option<String>, cure: &str) -> Option<Finding> {
    match holders {
        Some(who) => no(rule, format!("{what}: {who}"), cure),
        None => go(rule, format!("no {what}")),
    }
}
