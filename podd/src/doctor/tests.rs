//! A sound host, and one fault at a time.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;

/// This machine's facts with all that depends on it replaced by what a sound host says.
fn sound() -> Facts {
    let dir = tempfile::tempdir().unwrap();
    let mut facts = Facts::read(HostFacts::read(dir.path(), dir.path()).unwrap());
    facts.support = facts::FEATURES.iter().map(|f| (f.name, Support::Ready)).collect();
    (facts.checkpoint_restore, facts.seccomp, facts.ipv6, facts.modules_disabled) = (true, true, true, false);
    (facts.cgroup_freeze, facts.cgroup_kill, facts.waits_are_told) = (true, true, true);
    let host = &mut facts.host;
    host.kernel.number = (6, 12);
    (host.kernel.pagemap_scan, host.kernel.soft_dirty) = (true, true);
    host.namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"].map(str::to_owned).to_vec();
    host.cgroups.layout = CgroupLayout::V2;
    host.cgroups.v1.clear();
    host.cgroups.v2_controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
    host.cap_sys_resource = true;
    host.sysctls.max_user_namespaces = 10_000;
    host.sysctls.unprivileged_userfaultfd = Some(false);
    host.sysctls.max_map_count = 65_530;
    (host.sysctls.inotify_instances, host.sysctls.inotify_watches) = (128, 65_536);
    host.run_is_tmpfs = true;
    host.image_space.tmpfs = true;
    (host.state_dir.overlay, host.state_dir.user_xattr, host.state_dir.idmapped) = (Ok(()), Ok(()), Some(true));
    (host.state_dir.free_bytes, host.state_dir.free_inodes) = (100 << 30, 1 << 20);
    (host.memory.total, host.memory.available) = (8 << 30, 4 << 30);
    host.clock.unix_us = 1_800_000_000_000_000;
    host.clock.synchronised = true;
    facts
}

type Fault = (&'static str, Verdict, fn(&mut Facts));

const FAULTS: &[Fault] = &[
    ("kernel", Verdict::Fail, |f| f.host.kernel.number = (5, 10)),
    ("kernel", Verdict::Warn, |f| f.host.kernel.number = (5, 19)),
    ("checkpoint-restore", Verdict::Fail, |f| f.checkpoint_restore = false),
    ("namespaces", Verdict::Fail, |f| f.host.namespaces.retain(|n| n != "time")),
    ("user-namespaces", Verdict::Fail, |f| f.host.sysctls.max_user_namespaces = 0),
    ("user-namespaces", Verdict::Warn, |f| f.host.sysctls.max_user_namespaces = 10),
    ("seccomp", Verdict::Fail, |f| f.seccomp = false),
    ("cgroups", Verdict::Fail, |f| f.host.cgroups.layout = CgroupLayout::Missing),
    ("cgroups", Verdict::Warn, |f| f.host.cgroups.v2_controllers.clear()),
    ("freezer", Verdict::Fail, |f| f.cgroup_freeze = false),
    ("freezer", Verdict::Warn, |f| f.cgroup_kill = false),
    ("freezer", Verdict::Warn, |f| {
        f.cgroup_freeze = false;
        f.host.cgroups.v1.insert("freezer".into(), "/sys/fs/cgroup/freezer".into());
    }),
    ("overlay", Verdict::Fail, |f| f.host.state_dir.overlay = Err("No such device".into())),
    ("user-xattr", Verdict::Fail, |f| f.host.state_dir.user_xattr = Err("Not supported".into())),
    ("idmapped-mounts", Verdict::Fail, |f| f.host.state_dir.idmapped = Some(false)),
    ("idmapped-mounts", Verdict::Warn, |f| f.host.state_dir.idmapped = None),
    ("dirty-tracking", Verdict::Warn, |f| (f.host.kernel.pagemap_scan, f.host.kernel.soft_dirty) = (false, false)),
    ("waits", Verdict::Warn, |f| f.waits_are_told = false),
    ("userfaultfd", Verdict::Warn, |f| f.host.sysctls.unprivileged_userfaultfd = Some(true)),
    ("userfaultfd", Verdict::Warn, |f| f.host.sysctls.unprivileged_userfaultfd = None),
    ("cap-sys-resource", Verdict::Warn, |f| f.host.cap_sys_resource = false),
    ("open-files", Verdict::Warn, |f| {
        f.host.cap_sys_resource = false;
        f.host.rlimits.iter_mut().find(|l| l.resource == Resource::OpenFiles).unwrap().soft = Some(1024);
    }),
    ("pipe-max-size", Verdict::Warn, |f| {
        f.host.cap_sys_resource = false;
        f.host.sysctls.pipe_max_size = 1 << 20;
    }),
    ("max-map-count", Verdict::Warn, |f| f.host.sysctls.max_map_count = 100),
    ("inotify", Verdict::Warn, |f| f.host.sysctls.inotify_instances = 1),
    ("run-tmpfs", Verdict::Warn, |f| f.host.run_is_tmpfs = false),
    ("image-space", Verdict::Warn, |f| f.host.image_space.tmpfs = false),
    ("disk", Verdict::Fail, |f| f.host.state_dir.free_bytes = 1 << 20),
    ("disk", Verdict::Warn, |f| f.host.state_dir.free_inodes = 5000),
    ("memory", Verdict::Warn, |f| f.host.memory.available = 64 << 20),
    ("clock", Verdict::Fail, |f| f.host.clock.unix_us = 0),
    ("clock", Verdict::Fail, |f| f.host.clock.unix_us = i64::MAX),
    ("clock", Verdict::Fail, |f| f.host.clock.unix_us = i64::MIN),
    ("clock-sync", Verdict::Warn, |f| f.host.clock.synchronised = false),
    ("ipv6", Verdict::Warn, |f| f.ipv6 = false),
    ("modules", Verdict::Fail, |f| {
        f.modules_disabled = true;
        f.support[0].1 = Support::Loadable;
    }),
    ("tun", Verdict::Warn, |f| f.support[5].1 = Support::Missing),
    ("veth", Verdict::Fail, |f| f.support[0].1 = Support::Missing),
    ("bridge", Verdict::Fail, |f| f.support[1].1 = Support::Missing),
    ("tcp_diag", Verdict::Warn, |f| f.support[2].1 = Support::Unknown),
    ("udp_diag", Verdict::Fail, |f| f.support[3].1 = Support::Missing),
    ("unix_diag", Verdict::Fail, |f| f.support[4].1 = Support::Missing),
];

#[test]
fn a_sound_host_passes_and_each_fault_is_found_with_a_cure() {
    let checks = judge(&sound());
    for check in &checks {
        assert_eq!((check.verdict, check.cure.as_deref()), (Verdict::Ok, None), "{check:?}");
    }
    let mut found = BTreeSet::new();
    for (at, (name, verdict, fault)) in FAULTS.iter().enumerate() {
        let mut facts = sound();
        fault(&mut facts);
        let check = judge(&facts).into_iter().find(|c| c.name == *name).unwrap();
        assert_eq!(check.verdict, *verdict, "fault {at}: {check:?}");
        assert!(check.cure.is_some(), "fault {at}: {check:?}");
        found.insert(*name);
    }
    for check in checks {
        assert!(found.contains(check.name.as_str()), "no fault for {}", check.name);
    }
}

#[test]
fn soft_dirty_bits_serve_too() {
    let mut facts = sound();
    facts.host.kernel.pagemap_scan = false;
    assert_eq!(dirty_tracking(&facts).verdict, Verdict::Ok);
}

#[test]
fn version_1_groups_serve_too() {
    let mut facts = sound();
    facts.host.cgroups.layout = CgroupLayout::Hybrid;
    facts.host.cgroups.v2_controllers.clear();
    for controller in ["cpu", "memory", "pids"] {
        facts.host.cgroups.v1.insert(controller.into(), "/sys/fs/cgroup/x".into());
    }
    assert_eq!(cgroups(&facts).verdict, Verdict::Ok);
}

#[test]
fn this_host_is_examined_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let inputs =
        Inputs { state_dir: dir.path(), flight_dir: dir.path(), criu: Path::new("/bin/true"), idmapped: Some(true) };
    let named = |checks: &[Check], name: &str| checks.iter().find(|c| c.name == name).unwrap().clone();

    let checks_now = checks(&inputs, || Ok("CRIU 4.2.1".into()));
    assert_eq!(named(&checks_now, "criu").verdict, Verdict::Ok);
    assert_eq!(named(&checks_now, "namespaces").verdict, Verdict::Ok, "pods cannot run here");
    let freezer = named(&checks_now, "freezer");
    assert_ne!(freezer.verdict, Verdict::Fail, "{freezer:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let failing = checks(&inputs, || Err("Can't get 1:16 opt".into()));
    assert_eq!(named(&failing, "criu").verdict, Verdict::Fail);
    assert!(named(&failing, "criu").fact.contains("1:16"));

    let inputs = Inputs { criu: Path::new("/nonexistent/criu"), ..inputs };
    let missing = checks(&inputs, || panic!("there is no CRIU to try"));
    assert_eq!(named(&missing, "criu").verdict, Verdict::Fail);

    let inputs = Inputs { state_dir: Path::new("/nonexistent/state"), ..inputs };
    let unreadable = checks(&inputs, || panic!("nothing to try"));
    assert_eq!(unreadable.len(), 1);
    assert!(unreadable[0].verdict == Verdict::Fail && unreadable[0].fact.contains("/nonexistent/state"));
}

#[test]
fn baselines_of_a_fleet_are_compared() {
    use checkpoint::baseline::{Baseline, CpuBaseline};
    let of = |name: &str, baseline: Option<Baseline>| HostView {
        name: name.into(),
        address: String::new(),
        this: name == "a",
        reachable: Some(true),
        baseline,
    };
    let held = |name: &str, features: &[&str]| Baseline {
        cpu: Some(CpuBaseline { name: name.into(), features: features.iter().map(|f| (*f).to_owned()).collect() }),
        ..Baseline::default()
    };
    let own = held("x86-64-v2", &["sse2"]);
    let verdict = |hosts: &[HostView]| baseline(&own, hosts).verdict;
    assert_eq!(verdict(&[]), Verdict::Ok);
    assert_eq!(verdict(&[of("a", Some(own.clone())), of("b", None)]), Verdict::Ok, "an older podd does not say");
    assert_eq!(verdict(&[of("b", Some(held("/etc/podd/cpu", &["sse2"])))]), Verdict::Ok, "another name for the same");
    let newer = Baseline { kernel: (6, 12).into(), ..own.clone() };
    for other in [Baseline::default(), held("x86-64-v2", &["sse2", "avx"]), newer] {
        assert_eq!(verdict(&[of("b", Some(other))]), Verdict::Warn);
    }
    let check = baseline(&own, &[of("a", Some(own.clone())), of("b", Some(Baseline::default()))]);
    assert_eq!(check.fact, "pods may count on kernel 6.1 and processor x86-64-v2, but on b: 6.1 and host");
}
