//! Every rule both ways, from facts made up for it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::baseline::{Baseline, CpuBaseline, KernelVersion};
use crate::host::{
    CgroupLayout, Cgroups, Clock, Cpu, CriuFacts, ImageSpace, Kernel, Memory, StateDir, Sysctls, UidRange,
};
use crate::process::{Descriptors, FdKind, Ghost, MemoryFacts, OutsidePeer, Resource, Rlimit, SocketFacts, UnixFault};
use Verdict::{Go, GoWith, No};

/// Two hosts and a pod between which nothing stands.
struct World {
    pod: PodFacts,
    source: HostFacts,
    target: HostFacts,
    request: Request,
}

impl World {
    fn init(&mut self) -> &mut ProcessFacts {
        &mut self.pod.processes[0]
    }

    fn findings(&self) -> Vec<Finding> {
        check(&self.pod, &self.source, Some(&self.target), &self.request)
    }
}

fn host() -> HostFacts {
    let flags = ["fpu", "sse2", "avx2", "avx512f", "vmx", "constant_tsc"];
    HostFacts {
        boot_id: "b".into(),
        kernel: Kernel {
            release: "6.12.9-amd64".into(),
            version: "#1".into(),
            number: (6, 12),
            arch: "x86_64".into(),
            soft_dirty: true,
            pagemap_scan: true,
        },
        cpu: Cpu {
            vendor: "v".into(),
            model: "m".into(),
            flags: flags.map(str::to_owned).to_vec(),
            cpuid: vec![0b1111, 0b11],
            xsave_bytes: 2696,
        },
        sysctls: Sysctls {
            nr_open: 1 << 20,
            pipe_max_size: 1 << 20,
            unprivileged_userfaultfd: Some(false),
            max_map_count: 65_530,
            pid_max: 32_768,
            max_user_namespaces: 1000,
            inotify_instances: 128,
            inotify_watches: 8192,
        },
        namespaces: ["pid", "time", "user"].map(str::to_owned).to_vec(),
        cap_sys_resource: false,
        rlimits: vec![
            Rlimit { resource: Resource::OpenFiles, soft: Some(4096), hard: Some(4096) },
            Rlimit { resource: Resource::Locked, soft: Some(1 << 16), hard: Some(1 << 16) },
        ],
        cgroups: Cgroups { layout: CgroupLayout::V2, v2: None, v2_controllers: vec![], v1: BTreeMap::new() },
        memory: Memory { total: 8 << 30, available: 4 << 30, huge_free: BTreeMap::from([(2 << 20, 64 << 20)]) },
        state_dir: StateDir {
            path: "/var/lib/podd".into(),
            fs_type: "ext4".into(),
            free_bytes: 10 << 30,
            free_inodes: 1 << 20,
            overlay: Ok(()),
            user_xattr: Ok(()),
            idmapped: Some(true),
        },
        image_space: ImageSpace { path: "/run/podd".into(), tmpfs: true, free_bytes: 4 << 30 },
        run_is_tmpfs: true,
        clock: Clock { unix_us: 1_700_000_000_000_000, synchronised: true },
        criu: Some(CriuFacts { path: "/criu".into(), version: Some("4.2.1".into()), round_trip: Some(Ok(())) }),
        pods: vec!["other".into()],
        addresses: vec!["10.0.0.9/24".into()],
        uid_ranges: vec![UidRange { first: 200_000, count: ID_RANGE }],
    }
}

fn world() -> World {
    let init = ProcessFacts {
        pid: 4000,
        pod_pid: 1,
        comm: "redis-server".into(),
        threads: 4,
        descriptors: Descriptors { count: 9, highest: Some(20), ..Descriptors::default() },
        memory: MemoryFacts { resident: 512 << 20, mappings: 90, ..MemoryFacts::default() },
        rlimits: vec![Rlimit { resource: Resource::OpenFiles, soft: Some(1024), hard: Some(4096) }],
        rseq_bytes: Some(28),
        ..ProcessFacts::default()
    };
    World {
        pod: PodFacts { processes: vec![init], ..PodFacts::default() },
        source: host(),
        target: host(),
        request: Request {
            pod: "web".into(),
            addresses: vec!["10.0.0.5/24".into(), "fd00::5/64".into()],
            id_base: 300_000,
            ghost_limit: 1 << 20,
            ..Request::default()
        },
    }
}

/// Rule, expected verdict, what is changed.
type Case = (&'static str, Verdict, fn(&mut World));

const CASES: &[Case] = &[
    ("criu-round-trip", No, |w| w.target.criu = None),
    ("criu-round-trip", No, |w| w.source.criu.as_mut().unwrap().version = None),
    ("criu-round-trip", No, |w| w.target.criu.as_mut().unwrap().round_trip = Some(Err("Can't get 1:16 opt".into()))),
    ("criu-round-trip", GoWith, |w| w.target.criu.as_mut().unwrap().round_trip = None),
    ("arch", No, |w| w.target.kernel.arch = "aarch64".into()),
    ("kernel-direction", No, |w| {
        w.init().rseq_bytes = Some(33);
        w.target.kernel.number = (6, 1);
    }),
    ("kernel-direction", Go, |w| w.init().rseq_bytes = Some(33)),
    ("kernel-direction", Go, |w| w.target.kernel.number = (6, 1)),
    ("kernel-direction", Go, |w| {
        w.init().rseq_bytes = None;
        w.source.kernel.number = (7, 2);
        w.target.kernel.number = (6, 1);
    }),
    ("kernel-direction", No, |w| {
        w.init().memory.droppable = true;
        w.target.kernel.number = (6, 10);
    }),
    ("kernel-direction", Go, |w| {
        w.init().memory.droppable = true;
        w.target.kernel.number = (6, 11);
    }),
    ("kernel-direction", No, |w| {
        born(w, &[], None).kernel = KernelVersion(6, 12);
        w.target.kernel.number = (6, 6);
    }),
    ("kernel-direction", Go, |w| born(w, &[], None).kernel = KernelVersion(6, 12)),
    ("cpu-features", No, |w| {
        w.target.cpu.flags.retain(|f| f != "avx512f");
        w.target.cpu.cpuid[0] = 0b0111;
    }),
    ("cpu-features", No, |w| {
        w.target.cpu.flags.retain(|f| f != "avx512f");
        w.target.cpu.cpuid.clear();
    }),
    // The target's kernel has no name for it, the processor has it.
    ("cpu-features", Go, |w| w.target.cpu.flags.retain(|f| f != "avx512f")),
    // Neither kernel has a name for what is missing.
    ("cpu-features", No, |w| w.target.cpu.cpuid[1] = 0b01),
    ("cpu-features", Go, |w| w.target.cpu.flags.retain(|f| f != "vmx" && f != "constant_tsc")),
    ("cpu-features", Go, |w| w.target.cpu.cpuid = vec![u32::MAX, u32::MAX]),
    // Registers that no feature of the pod's processor needs.
    ("cpu-features", Go, |w| w.target.cpu.xsave_bytes = 832),
    // Born elsewhere: this processor does not matter, that one does.
    ("cpu-features", Go, |w| {
        born(w, &["avx2"], None);
        w.target.cpu = cpu(&["avx2"]);
    }),
    ("cpu-features", No, |w| {
        born(w, &["avx2", "bmi2"], None);
        w.source.cpu = cpu(&["avx2"]);
        w.target.cpu = cpu(&["avx2"]);
    }),
    // It has been on a better one since, and is held to nothing.
    ("cpu-features", GoWith, |w| {
        born(w, &["avx2"], None).since.insert("avx512f".into());
        w.target.cpu = cpu(&["avx2"]);
    }),
    ("cpu-features", Go, |w| born(w, &["avx2"], None).since = ["avx512f".to_owned()].into()),
    ("cpu-features", Go, |w| {
        born(w, &["avx2"], Some(&["sse2"])).since.insert("avx512f".into());
        w.target.cpu = cpu(&["avx2"]);
    }),
    // Held to less than it was born on.
    ("cpu-features", GoWith, |w| {
        born(w, &["avx2"], Some(&["sse2"]));
        w.target.cpu = cpu(&[]);
    }),
    ("cpu-features", No, |w| {
        born(w, &["avx2", "bmi2"], Some(&["sse2", "bmi2"]));
        w.target.cpu = cpu(&["avx2"]);
    }),
    ("cpu-features", No, |w| {
        born(w, &["avx2"], Some(&["sse2"])).own.push("LD_BIND_NOW".into());
        w.target.cpu = cpu(&[]);
    }),
    ("cpu-features", Go, |w| {
        born(w, &["avx2"], Some(&["sse2"]));
    }),
    // More registers than there was room for, without XSAVEC.
    ("cpu-features", GoWith, |w| {
        born(w, &["avx2", "xsave"], None).born.xsave_bytes = 832;
        w.target.cpu = cpu(&["avx2", "xsave", "xsavec"]);
    }),
    ("cpu-features", Go, |w| {
        born(w, &["avx2", "xsave", "xsavec"], None).born.xsave_bytes = 832;
        w.target.cpu = cpu(&["avx2", "xsave", "xsavec"]);
    }),
    ("cpu-features", Go, |w| {
        born(w, &["avx2", "xsave"], Some(&["sse2"])).born.xsave_bytes = 832;
        w.target.cpu = cpu(&["avx2", "xsave"]);
    }),
    ("time-namespace", No, |w| w.target.namespaces.retain(|n| n != "time")),
    ("time-namespace", GoWith, |w| w.source.namespaces.retain(|n| n != "time")),
    ("user-namespaces", No, |w| w.target.sysctls.max_user_namespaces = 0),
    ("clock", GoWith, |w| w.target.clock.unix_us += 1_500_000),
    ("clock", GoWith, |w| w.target.clock.unix_us -= 1_500_000),
    ("clock", Go, |w| w.target.clock.unix_us += 900_000),
    ("clock", GoWith, |w| w.target.clock.synchronised = false),
    ("exec-sessions", No, |w| w.init().joined = true),
    ("exec-sessions", No, |w| w.init().leader_outside = true),
    ("nested-namespaces", No, |w| w.init().nested = vec!["mnt".into(), "net".into()]),
    ("nested-namespaces", No, |w| w.init().nested = vec!["pid_for_children".into()]),
    ("nested-namespaces", Go, |w| w.init().nested = vec!["mnt".into()]),
    ("traced", No, |w| w.init().tracer = 77),
    ("fd-count", No, |w| w.init().descriptors.highest = Some(4090)),
    ("fd-count", Go, |w| w.init().descriptors.highest = Some(4064)),
    ("fd-count", Go, |w| {
        w.init().descriptors.highest = Some(4090);
        w.target.cap_sys_resource = true;
    }),
    ("fd-count", No, |w| {
        w.init().descriptors.highest = Some(1 << 20);
        w.target.cap_sys_resource = true;
    }),
    ("rlimits", GoWith, |w| w.init().rlimits[0].hard = Some(5000)),
    ("rlimits", GoWith, |w| w.init().rlimits.push(Rlimit { resource: Resource::Locked, soft: None, hard: None })),
    ("rlimits", Go, |w| {
        w.init().rlimits.push(Rlimit { resource: Resource::Locked, soft: None, hard: None });
        w.target.cap_sys_resource = true;
    }),
    ("rlimits", GoWith, |w| {
        w.init().rlimits[0].hard = Some(2 << 20);
        w.target.cap_sys_resource = true;
    }),
    ("mappings", No, |w| w.init().memory.mappings = 65_500),
    ("pids", No, |w| w.init().pod_pid = 40_000),
    ("io-uring", No, |w| fd(w, FdKind::IoUring)),
    ("io-uring", No, |w| mapped(w, "anon_inode:[io_uring]")),
    ("mptcp", No, |w| socket(w, 10, 1, 262)),
    ("sockets", No, |w| socket(w, 40, 1, 0)),
    ("sockets", No, |w| socket(w, 2, 1, 132)),
    ("sockets", Go, |w| socket(w, 2, 1, 6)),
    ("sockets", Go, |w| socket(w, 1, 5, 0)),
    ("sockets", Go, |w| socket(w, 2, 3, 255)),
    ("sockets", Go, |w| socket(w, 2, 1, 262)),
    ("sockets", GoWith, |w| w.pod.unknown_sockets = 2),
    ("unix-peers", No, |w| peer(w, UnixFault::PeerOutside)),
    ("unix-peers", No, |w| peer(w, UnixFault::MadeOutside)),
    ("unix-peers", No, |w| peer(w, UnixFault::FolderGone("/run/a/b.sock".into()))),
    ("unix-peers", GoWith, |w| w.pod.peers_unknown = Some("no such file".into())),
    ("memfd-secret", No, |w| w.init().memory.secret = true),
    ("memfd-secret", No, |w| fd(w, FdKind::SecretMemory)),
    ("userfaultfd", No, |w| fd(w, FdKind::Userfaultfd)),
    ("perf", No, |w| fd(w, FdKind::Perf)),
    ("perf", No, |w| mapped(w, "anon_inode:[perf_event]")),
    ("bpf", No, |w| fd(w, FdKind::Bpf)),
    ("message-queues", No, |w| fd(w, FdKind::MessageQueue)),
    ("message-queues", No, |w| w.pod.message_queues = vec!["jobs".into()]),
    ("devices", No, |w| {
        w.init().descriptors.devices.insert("/dev/kvm".into());
    }),
    ("devices", No, |w| mapped(w, "/dev/nvidia0")),
    ("devices", Go, |w| mapped(w, "anon_inode:[io_uring]")),
    ("devices", Go, |w| fd(w, FdKind::MemoryDevice)),
    ("other-descriptors", No, |w| {
        w.init().descriptors.others.insert("anon_inode:[landlock-ruleset]".into());
    }),
    ("other-descriptors", Go, |w| fd(w, FdKind::Timerfd)),
    ("terminals", No, |w| w.pod.outside_terminals = vec!["/dev/pts/0 of sh (pid 9)".into()]),
    ("ghost-files", No, |w| ghost(w, (1 << 20) + 1)),
    ("ghost-files", Go, |w| ghost(w, 1 << 20)),
    ("unlinked-files", No, |w| w.pod.unlinked.push("/var/mail/tmp".into())),
    ("packet-pipes", No, |w| fd(w, FdKind::PacketPipe)),
    ("packet-pipes", Go, |w| fd(w, FdKind::Pipe)),
    ("file-locks", GoWith, |w| {
        w.init().descriptors.locks = 1;
        volume(w, Some(true));
    }),
    ("file-locks", Go, |w| w.init().descriptors.locks = 1),
    ("hugetlb", No, |w| w.init().memory.huge = BTreeMap::from([(2 << 20, 66 << 20)])),
    ("hugetlb", No, |w| w.init().memory.huge = BTreeMap::from([(1 << 30, 1 << 30)])),
    ("hugetlb", Go, |w| w.init().memory.huge = BTreeMap::from([(2 << 20, 64 << 20)])),
    ("name-conflict", No, |w| w.request.pod = "other".into()),
    ("address-conflict", No, |w| w.request.addresses.push("10.0.0.9/16".into())),
    ("address-conflict", No, |w| w.target.addresses = vec!["fd00:0::5".into()]),
    ("uid-range-conflict", No, |w| w.request.id_base = 200_000 + ID_RANGE - 1),
    ("uid-range-conflict", Go, |w| w.request.id_base = 200_000 + ID_RANGE),
    ("uid-range-conflict", No, |w| w.request.id_base = 200_000 - ID_RANGE + 1),
    ("uid-range-conflict", Go, |w| w.request.id_base = 200_000 - ID_RANGE),
    ("memory-on-target", No, |w| w.target.memory.available = 1 << 30),
    ("memory-on-target", Go, |w| {
        w.target.memory.available = 1 << 30;
        w.target.image_space.tmpfs = false;
    }),
    ("memory-limit", GoWith, |w| w.request.memory_limit = Some(16 << 30)),
    ("image-space", No, |w| w.target.image_space.free_bytes = 512 << 20),
    ("image-space", No, |w| w.pod.tmpfs_bytes = 4 << 30),
    ("disk-on-target", No, |w| w.request.layer_bytes = 10 << 30),
    ("disk-on-target", No, |w| w.target.state_dir.free_inodes = 3),
    ("filesystem-features", No, |w| w.target.state_dir.overlay = Err("No such device".into())),
    ("filesystem-features", No, |w| w.target.state_dir.user_xattr = Err("Not supported".into())),
    ("idmapped-mounts", No, |w| w.target.state_dir.idmapped = Some(false)),
    ("idmapped-mounts", GoWith, |w| w.target.state_dir.idmapped = None),
    ("volumes", No, |w| volume(w, Some(false))),
    ("volumes", GoWith, |w| volume(w, Some(true))),
    ("volumes", GoWith, |w| volume(w, None)),
];

/// A processor with these features; CPUID has a bit for each.
fn cpu(features: &[&str]) -> Cpu {
    const BITS: [&str; 5] = ["avx2", "bmi2", "xsave", "xsavec", "avx512f"];
    let word = features.iter().filter_map(|f| BITS.iter().position(|b| b == f)).fold(0, |word, bit| word | 1 << bit);
    let flags = ["sse2"].iter().chain(features).map(|f| (*f).to_owned()).collect();
    Cpu { vendor: "v".into(), model: "m".into(), flags, cpuid: vec![word, 0], xsave_bytes: 2696 }
}

/// The pod was born on a processor with these features, and is held to those.
fn born<'a>(w: &'a mut World, features: &[&str], held: Option<&[&str]>) -> &'a mut ReliesOn {
    let held = held.map(|f| CpuBaseline { name: "x".into(), features: f.iter().map(|f| (*f).to_owned()).collect() });
    let baseline = Baseline { kernel: KernelVersion(6, 1), cpu: held };
    w.source.cpu = cpu(&["avx2", "bmi2", "xsave", "xsavec", "avx512f"]);
    w.target.cpu = w.source.cpu.clone();
    w.request.relies_on.insert(ReliesOn::at_birth(&baseline, &cpu(features), &[]))
}

fn fd(w: &mut World, kind: FdKind) {
    w.init().descriptors.kinds.insert(kind, 1);
}

fn mapped(w: &mut World, name: &str) {
    w.init().memory.devices.insert(name.into());
}

fn socket(w: &mut World, family: u32, kind: u32, protocol: u32) {
    w.pod.sockets.push(SocketFacts { family, kind, protocol, count: 1, holder: "a (pid 1)".into() });
}

fn peer(w: &mut World, fault: UnixFault) {
    w.pod.outside_peers.push(OutsidePeer { holder: "a (pid 1)".into(), inode: 5, fault });
}

fn ghost(w: &mut World, bytes: u64) {
    w.pod.ghosts.push(Ghost { path: "/var/log/old".into(), bytes });
}

fn volume(w: &mut World, on_target: Option<bool>) {
    w.request.volumes.push(VolumeRequest { host: "/srv/data".into(), on_target });
}

#[test]
fn a_plain_pod_goes_and_every_rule_accounts_for_itself() {
    let findings = world().findings();
    for finding in &findings {
        assert_eq!(finding.verdict, Go, "{finding:?}");
        assert!(!finding.fact.is_empty() && finding.cure.is_none(), "{finding:?}");
    }
    assert_eq!(findings.len(), RULES.len());
    let names: BTreeSet<&str> = findings.iter().map(|f| f.rule.as_str()).collect();
    assert_eq!(names.len(), RULES.len(), "two rules share a name");
    assert_eq!(verdict(&findings), Go);
    let cpu = findings.iter().find(|f| f.rule == "cpu-features").unwrap();
    assert_eq!(cpu.fact, "x86_64 features: target has all 4");
}

#[test]
fn each_rule_both_ways() {
    for (at, (rule, expected, change)) in CASES.iter().enumerate() {
        let mut world = world();
        change(&mut world);
        let findings = world.findings();
        let named: Vec<&Finding> = findings.iter().filter(|f| f.rule == *rule).collect();
        assert_eq!(named.len(), 1, "case {at}: {rule}");
        assert_eq!(named[0].verdict, *expected, "case {at}: {:?}", named[0]);
        assert_eq!(named[0].cure.is_some(), *expected != Go, "case {at}: {:?}", named[0]);
        if *expected == No {
            assert_eq!(verdict(&findings), No);
        }
    }
    let tested: BTreeSet<&str> = CASES.iter().map(|(rule, ..)| *rule).collect();
    for finding in world().findings() {
        assert!(tested.contains(finding.rule.as_str()), "no case for {}", finding.rule);
    }
}

#[test]
fn without_a_target_only_the_pod_and_this_host_are_judged() {
    let mut world = world();
    world.request.pod = "other".into();
    world.source.pods.push("other".into());
    let findings = check(&world.pod, &world.source, None, &world.request);
    assert_eq!(verdict(&findings), Go, "a pod does not conflict with itself: {findings:?}");
    assert!(!findings.iter().any(|f| f.rule == "name-conflict" || f.rule == "clock"));
    assert!(findings.iter().any(|f| f.rule == "image-space"));

    world.init().memory.secret = true;
    assert_eq!(verdict(&check(&world.pod, &world.source, None, &world.request)), No);
}

#[test]
fn facts_name_what_was_found() {
    let mut world = world();
    world.target.cpu.flags.retain(|f| f != "avx512f" && f != "vmx");
    world.target.cpu.cpuid[0] = 0b0111;
    for pid in 2..10 {
        let mut process = world.pod.processes[0].clone();
        (process.pod_pid, process.joined) = (pid, true);
        world.pod.processes.push(process);
    }
    let fact = |rule: &str| world.findings().into_iter().find(|f| f.rule == rule).unwrap().fact;
    assert_eq!(fact("cpu-features"), "the target's processor (m) lacks avx512f");
    assert_eq!(
        fact("exec-sessions"),
        "started from outside the pod: redis-server (pid 2), redis-server (pid 3), redis-server (pid 4), redis-server (pid 5), \
         redis-server (pid 6), 3 more"
    );
}

#[test]
fn sizes_are_for_people() {
    for (bytes, text) in
        [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (u64::MAX, "16777216.0 TiB")]
    {
        assert_eq!(size(bytes), text);
    }
}

proptest! {
    #[test]
    fn the_verdict_is_no_exactly_if_some_finding_is(verdicts in prop::collection::vec(0..3u8, 0..20)) {
        let findings: Vec<Finding> = verdicts
            .iter()
            .map(|v| Finding { rule: "r".into(), verdict: [Go, GoWith, No][usize::from(*v)], fact: "f".into(), cure: None })
            .collect();
        prop_assert_eq!(verdict(&findings) == No, findings.iter().any(|f| f.verdict == No));
        prop_assert_eq!(verdict(&findings) == Go, findings.iter().all(|f| f.verdict == Go));
    }

    /// Changes together are no better than the worst of them alone, whatever they are (but for those that allow more).
    #[test]
    fn a_second_fault_never_hides_the_first(one in 0..CASES.len(), two in 0..CASES.len()) {
        let refused = |case: usize| CASES[case].1 == No;
        prop_assume!(refused(one) && refused(two) && CASES[one].0 != CASES[two].0);
        let mut world = world();
        (CASES[one].2)(&mut world);
        (CASES[two].2)(&mut world);
        prop_assert_eq!(verdict(&world.findings()), No);
    }
}
