//! Rules about what must be free on the target: names, addresses, ids, memory, disk.

use super::{Context, Finding, ID_RANGE, address, go, go_with, no, size, some_of};

/// Kept free for the target itself, in bytes.
const HEADROOM: u64 = 64 << 20;

/// A name is unique on a host.
pub(super) fn name_conflict(c: &Context) -> Option<Finding> {
    let name = &c.request.pod;
    match c.target?.pods.contains(name) {
        true => no(
            "name-conflict",
            format!("the target has a pod named {name}"),
            format!("there: podctl rm {name}, if it is not needed"),
        ),
        false => go("name-conflict", format!("{name} is free")),
    }
}

/// The address moves with the pod: two holders of one address would both answer.
pub(super) fn address_conflict(c: &Context) -> Option<Finding> {
    const RULE: &str = "address-conflict";
    let used: Vec<_> = c.target?.addresses.iter().filter_map(|a| address(a)).collect();
    let taken = c.request.addresses.iter().filter(|a| address(a).is_some_and(|a| used.contains(&a)));
    match some_of(taken.cloned()) {
        Some(which) => {
            no(RULE, format!("in use on the target: {which}"), "remove the pod or interface that has it there")
        }
        None => {
            go(RULE, some_of(c.request.addresses.iter().cloned()).map_or("no address".into(), |a| format!("free: {a}")))
        }
    }
}

/// Uids are the same on every host, since files are copied with them; two pods with one range could touch each other's files.
pub(super) fn uid_range_conflict(c: &Context) -> Option<Finding> {
    const RULE: &str = "uid-range-conflict";
    let first = u64::from(c.request.id_base);
    let end = first + u64::from(ID_RANGE);
    let overlaps =
        |r: &&crate::host::UidRange| first < u64::from(r.first) + u64::from(r.count) && u64::from(r.first) < end;
    match c.target?.uid_ranges.iter().find(overlaps) {
        Some(r) => no(
            RULE,
            format!("uids {first} to {} overlap those in use there from {}", end - 1, r.first),
            "move or remove the pod there that has the range",
        ),
        None => go(RULE, format!("uids {first} to {} are free", end - 1)),
    }
}

/// The pod's memory, the image of it while that is in memory too, and some to spare.
pub(super) fn memory_on_target(c: &Context) -> Option<Finding> {
    const RULE: &str = "memory-on-target";
    let target = c.target?;
    let pod = c.pod.memory_bytes();
    let image = if target.image_space.tmpfs { pod } else { 0 };
    let (need, have) = (pod + image + HEADROOM, target.memory.available);
    let fact = format!("needs {} (with the image in flight), {} available", size(need), size(have));
    match need <= have {
        true => go(RULE, fact),
        false => no(RULE, fact, "choose a larger target, or move pods away from it first"),
    }
}

/// A limit above all the memory there is protects nobody.
pub(super) fn memory_limit(c: &Context) -> Option<Finding> {
    let total = c.target?.memory.total;
    match c.request.memory_limit {
        Some(limit) if limit > total => go_with(
            "memory-limit",
            format!("the limit of {} is more than the target's {}", size(limit), size(total)),
            "the pod may be killed there before it reaches its limit: choose a larger target",
        ),
        Some(limit) => go("memory-limit", size(limit)),
        None => go("memory-limit", "none"),
    }
}

/// All pages pass through the image directory, on the source too for a local checkpoint.
pub(super) fn image_space(c: &Context) -> Option<Finding> {
    const RULE: &str = "image-space";
    let (need, space) = (c.pod.memory_bytes() + HEADROOM / 4, &c.host.image_space);
    let fact = format!("the image needs {}, {} has {}", size(need), space.path.display(), size(space.free_bytes));
    match need <= space.free_bytes {
        true => go(RULE, fact),
        false if space.tmpfs => {
            let cure = format!("mount -o remount,size={}M on it", (2 * need) >> 20);
            no(RULE, fact, cure)
        }
        false => no(RULE, fact, "free space there"),
    }
}

/// Layers and the writable layer are copied before the freeze.
pub(super) fn disk_on_target(c: &Context) -> Option<Finding> {
    const RULE: &str = "disk-on-target";
    const INODES: u64 = 1024;
    let dir = &c.target?.state_dir;
    let need = c.request.layer_bytes + c.request.writable_bytes + HEADROOM;
    let fact = format!("needs {}, {} has {}", size(need), dir.path.display(), size(dir.free_bytes));
    match (need <= dir.free_bytes, dir.free_inodes >= INODES) {
        (true, true) => go(RULE, fact),
        (true, false) => {
            no(RULE, format!("{} has {} inodes left", dir.path.display(), dir.free_inodes), "delete files there")
        }
        (false, _) => no(RULE, fact, "free space there (old images and layers: podctl rm)"),
    }
}

/// The pod's root is an overlay, and its files' attributes are copied.
pub(super) fn filesystem_features(c: &Context) -> Option<Finding> {
    const RULE: &str = "filesystem-features";
    const CURE: &str = "put the state directory on ext4, xfs or btrfs, and load the overlay module";
    let dir = &c.target?.state_dir;
    match (&dir.overlay, &dir.user_xattr) {
        (Ok(()), Ok(())) => go(RULE, format!("{}: overlay and user attributes work", dir.fs_type)),
        (Err(why), _) => no(RULE, format!("{}: overlay does not work: {why}", dir.fs_type), CURE),
        (_, Err(why)) => no(RULE, format!("{}: user attributes do not work: {why}", dir.fs_type), CURE),
    }
}

/// mount_setattr(2) (5.12; overlay on idmapped layers 5.19): layers are shared between pods with different uids.
pub(super) fn idmapped_mounts(c: &Context) -> Option<Finding> {
    const RULE: &str = "idmapped-mounts";
    let dir = &c.target?.state_dir;
    match dir.idmapped {
        Some(true) => go(RULE, format!("{}: work", dir.fs_type)),
        Some(false) => no(
            RULE,
            format!("{}: idmapped mounts do not work there", dir.fs_type),
            "put the state directory on ext4, xfs or btrfs, with a kernel of 5.19 or later",
        ),
        None => go_with(RULE, "not tried on the target", "run `podctl doctor` there first"),
    }
}

/// A volume does not travel: the same path must be there, with what the pod expects in it.
pub(super) fn volumes(c: &Context) -> Option<Finding> {
    const RULE: &str = "volumes";
    c.target?;
    let named = |on_target| {
        some_of(c.request.volumes.iter().filter(|v| v.on_target == on_target).map(|v| v.host.display().to_string()))
    };
    if let Some(which) = named(Some(false)) {
        return no(
            RULE,
            format!("missing on the target: {which}"),
            "mount the same storage there, under the same path",
        );
    }
    let cure = "make sure that the same storage is mounted there";
    match (named(None), named(Some(true))) {
        (Some(which), _) => go_with(RULE, format!("not known whether the target has {which}"), cure),
        (None, Some(which)) => go_with(RULE, format!("not copied, the target's own will be used: {which}"), cure),
        (None, None) => go(RULE, "none"),
    }
}
