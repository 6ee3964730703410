//! `podctl doctor`: is this host fit for pods, and if not, what to do?
//!
//! Reading ([`facts`]) and judging ([`judge`]) are apart, so that hosts which nobody has at hand can be judged from recorded facts.

mod facts;
pub mod round_trip;

use std::path::Path;

use checkpoint::baseline::Baseline;
use checkpoint::host::{CgroupLayout, HostFacts};
use checkpoint::process::Resource;

use crate::api::{Check, HostView, Verdict};
pub use facts::{Facts, Support};

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The daemon's durable directory; exists.
    pub state_dir: &'a Path,
    /// Where images in flight are put; exists.
    pub flight_dir: &'a Path,
    /// CRIU's program file.
    pub criu: &'a Path,
    /// Idmapped mounts work in `state_dir`; none: not tried.
    pub idmapped: Option<bool>,
}

/// Checks this host. `round_trip` dumps and restores a real process with a TCP connection and gives CRIU's version, or why it
/// failed; it takes a second and is called only if CRIU is there.
pub fn checks(inputs: &Inputs, round_trip: impl FnOnce() -> Result<String, String>) -> Vec<Check> {
    let host = match HostFacts::read(inputs.state_dir, inputs.flight_dir) {
        Ok(host) => host,
        Err(e) => {
            return vec![fail("host", e.to_string(), "run podd as root, with /proc mounted and its directories made")];
        }
    };
    let criu = if !inputs.criu.is_file() {
        fail("criu", format!("not found at {}", inputs.criu.display()), "run scripts/setup")
    } else {
        match round_trip() {
            Ok(version) => ok("criu", format!("{version} dumps and restores a process with a TCP connection")),
            Err(why) => fail(
                "criu",
                format!("the round trip failed: {why}"),
                "run scripts/setup, which builds one for this kernel",
            ),
        }
    };
    let mut facts = Facts::read(host);
    facts.host.state_dir.idmapped = inputs.idmapped;
    let mut checks = vec![criu];
    checks.extend(judge(&facts));
    checks
}

/// Judges recorded facts. Pure.
pub fn judge(facts: &Facts) -> Vec<Check> {
    JUDGES
        .iter()
        .map(|judge| judge(facts))
        .chain(facts.support.iter().map(|(name, support)| feature(name, *support)))
        .collect()
}

/// Judges what this host lets its pods count on, beside the other hosts of the fleet: a pod can come back from where it went,
/// but whether all pods can go to a host depends on the hosts on which they start. Pure.
pub fn baseline(own: &Baseline, hosts: &[HostView]) -> Check {
    const RULE: &str = "baseline";
    let fact = format!("pods may count on kernel {} and processor {}", own.kernel, processor(own));
    let features = |b: &Baseline| b.cpu.as_ref().map(|cpu| cpu.features.clone());
    let same = |b: &Baseline| b.kernel == own.kernel && features(b) == features(own);
    let others = hosts.iter().filter(|host| !host.this).filter_map(|host| Some((host, host.baseline.as_ref()?)));
    let different: Vec<String> = others
        .filter(|(_, baseline)| !same(baseline))
        .map(|(host, baseline)| format!("{}: {} and {}", host.name, baseline.kernel, processor(baseline)))
        .collect();
    match different.is_empty() {
        true => ok(RULE, fact),
        false => warn(
            RULE,
            format!("{fact}, but on {}", different.join("; on ")),
            "write the same [baseline] into podd.toml of all hosts, so that pods can go to all of them wherever they start",
        ),
    }
}

fn processor(baseline: &Baseline) -> &str {
    baseline.cpu.as_ref().map_or("host", |cpu| &cpu.name)
}

/// In the order in which they are shown.
const JUDGES: [fn(&Facts) -> Check; 26] = [
    kernel,
    checkpoint_restore,
    namespaces,
    user_namespaces,
    seccomp,
    cgroups,
    freezer,
    overlay,
    user_xattr,
    idmapped_mounts,
    dirty_tracking,
    waits,
    userfaultfd,
    cap_sys_resource,
    open_files,
    pipe_max_size,
    max_map_count,
    inotify,
    run_tmpfs,
    image_space,
    disk,
    memory,
    clock,
    clock_sync,
    ipv6,
    modules,
];

fn ok(name: &str, fact: impl Into<String>) -> Check {
    Check { name: name.into(), verdict: Verdict::Ok, fact: fact.into(), cure: None }
}

fn warn(name: &str, fact: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { name: name.into(), verdict: Verdict::Warn, fact: fact.into(), cure: Some(cure.into()) }
}

fn fail(name: &str, fact: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { name: name.into(), verdict: Verdict::Fail, fact: fact.into(), cure: Some(cure.into()) }
}

/// Overlay on idmapped layers came with 5.19; 6.1 is the oldest that pods have been moved from and to.
fn kernel(f: &Facts) -> Check {
    let kernel = &f.host.kernel;
    let fact = format!("{} {} ({})", kernel.release, kernel.version, kernel.arch);
    match kernel.number {
        n if n >= (6, 1) => ok("kernel", fact),
        n if n >= (5, 19) => warn("kernel", format!("{fact}: older than any that was tried"), "install 6.1 or later"),
        _ => fail("kernel", fact, "install 6.1 or later"),
    }
}

fn checkpoint_restore(f: &Facts) -> Check {
    match f.checkpoint_restore {
        true => ok("checkpoint-restore", "the kernel has CONFIG_CHECKPOINT_RESTORE"),
        false => {
            fail("checkpoint-restore", "the kernel lacks CONFIG_CHECKPOINT_RESTORE", "use the distribution's kernel")
        }
    }
}

/// All that a pod is made of (namespaces(7)).
fn namespaces(f: &Facts) -> Check {
    const NEEDED: [&str; 8] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];
    let missing: Vec<&str> = NEEDED.into_iter().filter(|n| !f.host.namespaces.iter().any(|have| have == n)).collect();
    match missing.is_empty() {
        true => ok("namespaces", NEEDED.join(" ")),
        false => fail("namespaces", format!("the kernel lacks {}", missing.join(" ")), "use the distribution's kernel"),
    }
}

fn user_namespaces(f: &Facts) -> Check {
    match f.host.sysctls.max_user_namespaces {
        0 => fail("user-namespaces", "switched off", "sysctl -w user.max_user_namespaces=10000"),
        n if n < 256 => warn(
            "user-namespaces",
            format!("at most {n}: one for each pod"),
            "sysctl -w user.max_user_namespaces=10000",
        ),
        n => ok("user-namespaces", format!("up to {n}")),
    }
}

fn seccomp(f: &Facts) -> Check {
    match f.seccomp {
        true => ok("seccomp", "filters work"),
        false => fail("seccomp", "the kernel lacks CONFIG_SECCOMP_FILTER", "use the distribution's kernel"),
    }
}

/// What limits need, in whichever version of control groups has it.
fn cgroups(f: &Facts) -> Check {
    const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
    let groups = &f.host.cgroups;
    let missing: Vec<&str> = NEEDED.into_iter().filter(|c| !groups.has(c)).collect();
    match (groups.layout, missing.is_empty()) {
        (CgroupLayout::Missing, _) => fail("cgroups", "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        (CgroupLayout::V2, true) => ok("cgroups", "version 2 with memory, cpu and pids"),
        (layout, true) => ok("cgroups", format!("{}, with memory, cpu and pids", name(layout))),
        (layout, false) => warn(
            "cgroups",
            format!("{} without {}: these limits cannot be set", name(layout), missing.join(", ")),
            "boot without cgroup_disable=, on Debian with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

fn name(layout: CgroupLayout) -> &'static str {
    match layout {
        CgroupLayout::V2 => "version 2",
        CgroupLayout::Hybrid => "hybrid",
        CgroupLayout::V1 => "version 1",
        CgroupLayout::Missing => "none",
    }
}

/// The freezer holds a pod while CRIU works (cgroup.freeze 5.2, cgroup.kill 5.14).
fn freezer(f: &Facts) -> Check {
    match (f.cgroup_freeze, f.cgroup_kill, f.host.cgroups.v1.contains_key("freezer")) {
        (true, true, _) => ok("freezer", "cgroup.freeze and cgroup.kill"),
        (true, false, _) => {
            warn("freezer", "cgroup.freeze without cgroup.kill: processes are killed one by one", "use 5.14 or later")
        }
        (false, _, true) => warn("freezer", "version 1 only: processes are killed one by one", "mount cgroup2 too"),
        (false, _, false) => {
            fail("freezer", "none: a pod cannot be held still", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
        }
    }
}

fn overlay(f: &Facts) -> Check {
    let dir = &f.host.state_dir;
    match &dir.overlay {
        Ok(()) => ok("overlay", format!("works on {} ({})", dir.path.display(), dir.fs_type)),
        Err(why) => fail(
            "overlay",
            format!("{} ({}): {why}", dir.path.display(), dir.fs_type),
            "modprobe overlay; put the state directory on ext4, xfs or btrfs",
        ),
    }
}

fn user_xattr(f: &Facts) -> Check {
    match &f.host.state_dir.user_xattr {
        Ok(()) => ok("user-xattr", "files keep user attributes"),
        Err(why) => fail("user-xattr", why.as_str(), "put the state directory on ext4, xfs or btrfs"),
    }
}

fn idmapped_mounts(f: &Facts) -> Check {
    let dir = &f.host.state_dir;
    match dir.idmapped {
        Some(true) => ok("idmapped-mounts", format!("work on {}", dir.fs_type)),
        Some(false) => fail(
            "idmapped-mounts",
            format!("do not work on {}", dir.fs_type),
            "put the state directory on ext4, xfs or btrfs",
        ),
        None => warn("idmapped-mounts", "not tried", "run the doctor as root, with podd running"),
    }
}

/// Pre-copy rounds need to know what was written since the last.
fn dirty_tracking(f: &Facts) -> Check {
    let kernel = &f.host.kernel;
    match (kernel.pagemap_scan, kernel.soft_dirty) {
        (true, _) => ok("dirty-tracking", "asynchronous write protection"),
        (false, true) => {
            ok("dirty-tracking", "soft-dirty bits: pods stand still for a moment in each round of pre-copy")
        }
        (false, false) => warn(
            "dirty-tracking",
            "none: all memory is copied while the pod is frozen",
            "use a kernel of version 6.7 or later, or one with CONFIG_MEM_SOFT_DIRTY",
        ),
    }
}

/// Calls that a move interrupts are begun again for the time that they have left; see [`checkpoint::waits`].
fn waits(f: &Facts) -> Check {
    match f.waits_are_told {
        true => ok("waits", "the kernel tells until when interrupted calls wait"),
        false => warn(
            "waits",
            "the kernel does not tell until when interrupted calls wait: a move ends sleeps and polls early, or begins them anew",
            "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

/// Documentation/admin-guide/sysctl/vm.rst. Only a lazy restore into a user namespace needs it, for its own duration.
fn userfaultfd(f: &Facts) -> Check {
    match f.host.sysctls.unprivileged_userfaultfd {
        Some(false) => ok("userfaultfd", "for privileged programs only"),
        Some(true) => warn(
            "userfaultfd",
            "any user may stop kernel threads at a page fault (vm.unprivileged_userfaultfd=1)",
            "sysctl -w vm.unprivileged_userfaultfd=0; podd sets it around a lazy restore itself",
        ),
        None => warn(
            "userfaultfd",
            "the kernel has none: no post-copy, no tracking by write protection",
            "use the distribution's kernel",
        ),
    }
}

fn cap_sys_resource(f: &Facts) -> Check {
    match f.host.cap_sys_resource {
        true => ok("cap-sys-resource", "held"),
        false => warn(
            "cap-sys-resource",
            "missing: pods with more open files or higher limits than podd's own cannot be restored as they were",
            "start podd with CAP_SYS_RESOURCE (CapabilityBoundingSet= of its unit, or the container's capabilities)",
        ),
    }
}

fn open_files(f: &Facts) -> Check {
    const WANTED: u64 = 65_536;
    let cure = "LimitNOFILE=1048576 in podd's unit";
    match f.host.rlimit(Resource::OpenFiles).and_then(|l| l.soft) {
        Some(n) if n < WANTED && !f.host.cap_sys_resource => {
            warn("open-files", format!("podd may open {n}: a process with more cannot be restored"), cure)
        }
        Some(n) => ok("open-files", format!("podd may open {n}")),
        None => ok("open-files", "no limit"),
    }
}

/// CRIU sets pipes of 819 pages (page-pipe.h, PIPE_MAX_SIZE), which the kernel rounds up; only CAP_SYS_RESOURCE passes the limit.
fn pipe_max_size(f: &Facts) -> Check {
    const WANTED: u64 = 4 << 20;
    match f.host.sysctls.pipe_max_size {
        n if n >= WANTED || f.host.cap_sys_resource => ok("pipe-max-size", format!("{n} bytes")),
        n => {
            warn("pipe-max-size", format!("{n} bytes: post-copy fails"), format!("sysctl -w fs.pipe-max-size={WANTED}"))
        }
    }
}

fn max_map_count(f: &Facts) -> Check {
    const USUAL: u64 = 65_530;
    match f.host.sysctls.max_map_count {
        n if n >= USUAL => ok("max-map-count", n.to_string()),
        n => warn(
            "max-map-count",
            format!("{n}: large programs fail here that run elsewhere"),
            format!("sysctl -w vm.max_map_count={USUAL}"),
        ),
    }
}

fn inotify(f: &Facts) -> Check {
    let (instances, watches) = (f.host.sysctls.inotify_instances, f.host.sysctls.inotify_watches);
    match instances >= 128 && watches >= 8192 {
        true => ok("inotify", format!("{instances} instances, {watches} watches a user")),
        false => warn(
            "inotify",
            format!("{instances} instances, {watches} watches a user: less than usual"),
            "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288",
        ),
    }
}

/// CRIU keeps what it found out about the kernel in /run/criu.kdat.
fn run_tmpfs(f: &Facts) -> Check {
    match f.host.run_is_tmpfs {
        true => ok("run-tmpfs", "/run is tmpfs"),
        false => warn(
            "run-tmpfs",
            "/run is on disk: what CRIU notes there about this kernel outlives it",
            "mount -t tmpfs tmpfs /run, early at boot",
        ),
    }
}

fn image_space(f: &Facts) -> Check {
    let space = &f.host.image_space;
    let fact = format!("{} has {} MiB", space.path.display(), space.free_bytes >> 20);
    match space.tmpfs {
        true => ok("image-space", format!("{fact}, in memory")),
        false => warn(
            "image-space",
            format!("{fact}, on disk: moves take longer"),
            format!("mount -t tmpfs tmpfs {}", space.path.display()),
        ),
    }
}

fn disk(f: &Facts) -> Check {
    const CURE: &str = "delete old images and layers, or enlarge the file system";
    let dir = &f.host.state_dir;
    let fact =
        format!("{} MiB and {} inodes free in {}", dir.free_bytes >> 20, inodes(dir.free_inodes), dir.path.display());
    match (dir.free_bytes, dir.free_inodes) {
        (bytes, inodes) if bytes < 128 << 20 || inodes < 1000 => fail("disk", fact, CURE),
        (bytes, inodes) if bytes < 2 << 30 || inodes < 20_000 => warn("disk", fact, CURE),
        _ => ok("disk", fact),
    }
}

fn inodes(free: u64) -> String {
    if free == u64::MAX { "any number of".into() } else { free.to_string() }
}

fn memory(f: &Facts) -> Check {
    let memory = &f.host.memory;
    let fact = format!("{} of {} MiB available", memory.available >> 20, memory.total >> 20);
    match memory.available < 128 << 20 || memory.available < memory.total / 20 {
        true => warn("memory", fact, "stop or move pods"),
        false => ok("memory", fact),
    }
}

/// Certificates and records carry dates.
fn clock(f: &Facts) -> Check {
    /// 2025-01-01 and 2100-01-01 in seconds since 1970.
    const PLAUSIBLE: std::ops::Range<i64> = 1_735_689_600..4_102_444_800;
    let seconds = f.host.clock.unix_us.div_euclid(1_000_000);
    let shown =
        jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s since 1970"), |t| t.to_string());
    match PLAUSIBLE.contains(&seconds) {
        true => ok("clock", shown),
        false => fail(
            "clock",
            format!("{shown}: certificates will be refused"),
            "set the clock (timedatectl set-time), then synchronise it",
        ),
    }
}

fn clock_sync(f: &Facts) -> Check {
    match f.host.clock.synchronised {
        true => ok("clock-sync", "synchronised"),
        false => warn(
            "clock-sync",
            "not synchronised: pods see time jump when they move",
            "apt-get install systemd-timesyncd, or chrony",
        ),
    }
}

fn ipv6(f: &Facts) -> Check {
    match f.ipv6 {
        true => ok("ipv6", "there"),
        false => warn("ipv6", "missing: pods cannot have IPv6 addresses", "boot without ipv6.disable=1"),
    }
}

fn modules(f: &Facts) -> Check {
    let unloaded: Vec<&str> =
        f.support.iter().filter(|(_, s)| *s == Support::Loadable).map(|(name, _)| *name).collect();
    match f.modules_disabled && !unloaded.is_empty() {
        true => fail(
            "modules",
            format!("no more can be loaded, and these are not: {}", unloaded.join(" ")),
            "load them at boot (/etc/modules-load.d), before kernel.modules_disabled=1",
        ),
        false => ok("modules", "all can be loaded"),
    }
}

/// One of [`facts::FEATURES`].
fn feature(name: &str, support: Support) -> Check {
    let (why, optional) = facts::FEATURES.iter().find(|f| f.name == name).map_or(("", true), |f| (f.why, f.optional));
    match support {
        Support::Ready => ok(name, "there"),
        Support::Loadable => ok(name, "will be loaded when needed"),
        Support::Unknown => {
            warn(name, format!("not known whether the kernel has it ({why})"), format!("modprobe {name}"))
        }
        Support::Missing => {
            let judge = if optional { warn } else { fail };
            judge(name, format!("the kernel lacks it ({why})"), "use the distribution's kernel")
        }
    }
}

#[cfg(test)]
mod tests;
