//! What the doctor reads beyond [`HostFacts`].

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use checkpoint::host::HostFacts;

/// All that the doctor judges.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Facts that other hosts see too.
    pub host: HostFacts,
    /// [`FEATURES`] of the kernel.
    pub support: Vec<(&'static str, Support)>,
    /// CONFIG_CHECKPOINT_RESTORE.
    pub checkpoint_restore: bool,
    /// CONFIG_SECCOMP_FILTER.
    pub seccomp: bool,
    /// Groups of version 2 have cgroup.freeze.
    pub cgroup_freeze: bool,
    /// Groups of version 2 have cgroup.kill.
    pub cgroup_kill: bool,
    /// IPv6 is there.
    pub ipv6: bool,
    /// kernel.modules_disabled.
    pub modules_disabled: bool,
    /// The kernel tells until when interrupted calls wait.
    pub waits_are_told: bool,
}

/// Whether the kernel has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Built in or loaded.
    Ready,
    /// A module that is not loaded yet.
    Loadable,
    /// Neither.
    Missing,
    /// It says nothing about itself.
    Unknown,
}

/// A part of the kernel that may be a module.
pub(super) struct Feature {
    /// The module.
    pub name: &'static str,
    /// Its option.
    option: &'static str,
    /// What for.
    pub why: &'static str,
    /// Pods can do without.
    pub optional: bool,
}

pub(super) const FEATURES: [Feature; 6] = [
    Feature { name: "veth", option: "CONFIG_VETH", why: "the pods' network", optional: false },
    Feature { name: "bridge", option: "CONFIG_BRIDGE", why: "the pods' network", optional: false },
    Feature {
        name: "tcp_diag",
        option: "CONFIG_INET_TCP_DIAG",
        why: "CRIU finds TCP sockets with it",
        optional: false,
    },
    Feature {
        name: "udp_diag",
        option: "CONFIG_INET_UDP_DIAG",
        why: "CRIU finds UDP sockets with it",
        optional: false,
    },
    Feature { name: "unix_diag", option: "CONFIG_UNIX_DIAG", why: "CRIU finds unix sockets with it", optional: false },
    Feature {
        name: "tun",
        option: "CONFIG_TUN",
        why: "what comes for a pod while it is frozen is kept with it, not sent again later",
        optional: true,
    },
];

impl Facts {
    pub(super) fn read(host: HostFacts) -> Facts {
        let release = host.kernel.release.clone();
        let config = config(&release);
        let lists = Lists::read(&release);
        let support = FEATURES.iter().map(|f| (f.name, support(f, config.as_ref(), &lists))).collect();
        let (cgroup_freeze, cgroup_kill) = host.cgroups.v2.as_deref().map(freezer).unwrap_or_default();
        Facts {
            support,
            checkpoint_restore: Path::new("/proc/sys/kernel/ns_last_pid").exists(),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            cgroup_freeze,
            cgroup_kill,
            ipv6: Path::new("/proc/net/if_inet6").exists(),
            modules_disabled: std::fs::read_to_string("/proc/sys/kernel/modules_disabled")
                .is_ok_and(|t| t.trim() == "1"),
            waits_are_told: checkpoint::waits::are_told(),
            host,
        }
    }
}

/// The root has neither file: a group is made for a moment.
fn freezer(root: &Path) -> (bool, bool) {
    let probe = root.join(format!("podd-doctor-{}", std::process::id()));
    if std::fs::create_dir(&probe).is_err() {
        return (false, false);
    }
    let has = |file: &str| probe.join(file).exists();
    let found = (has("cgroup.freeze"), has("cgroup.kill"));
    // An empty group can always be removed.
    let _ = std::fs::remove_dir(&probe);
    found
}

/// What the kernel was built with, if it tells: in /proc or, on Debian, in /boot.
fn config(release: &str) -> Option<BTreeMap<String, char>> {
    /// Of a few hundred kilobytes; a larger one is not a kernel configuration.
    const MAX_BYTES: u64 = 4 << 20;
    let mut text = String::new();
    let packed = std::fs::File::open("/proc/config.gz").ok();
    let unpacked = packed.map(|f| flate2::read::GzDecoder::new(f).take(MAX_BYTES).read_to_string(&mut text));
    if !matches!(unpacked, Some(Ok(_))) {
        text = std::fs::read_to_string(format!("/boot/config-{release}")).ok()?;
    }
    Some(parse_config(&text))
}

/// Options that are `y` or `m`.
fn parse_config(text: &str) -> BTreeMap<String, char> {
    let options = text.lines().filter_map(|l| l.split_once('='));
    options
        .filter_map(|(name, value)| match value {
            "y" => Some((name.to_owned(), 'y')),
            "m" => Some((name.to_owned(), 'm')),
            _ => None,
        })
        .collect()
}

/// Modules by how they can be had.
struct Lists {
    loaded: Vec<String>,
    built_in: String,
    loadable: String,
}

impl Lists {
    fn read(release: &str) -> Lists {
        let list = |file: &str| std::fs::read_to_string(format!("/lib/modules/{release}/{file}")).unwrap_or_default();
        let loaded = std::fs::read_dir("/sys/module").into_iter().flatten().flatten();
        Lists {
            loaded: loaded.map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
            built_in: list("modules.builtin"),
            loadable: list("modules.dep"),
        }
    }
}

fn support(feature: &Feature, config: Option<&BTreeMap<String, char>>, lists: &Lists) -> Support {
    let file = format!("/{}.ko", feature.name);
    if lists.loaded.iter().any(|m| m == feature.name) || lists.built_in.contains(&file) {
        return Support::Ready;
    }
    let loadable = lists.loadable.contains(&file);
    match config.map(|c| c.get(feature.option)) {
        Some(Some('y')) => Support::Ready,
        _ if loadable => Support::Loadable,
        // Configured as a module, or not at all; no file of it here.
        Some(_) => Support::Missing,
        None => Support::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_is_read_from_lists_and_configuration() {
        let veth = &FEATURES[0];
        let none = Lists { loaded: vec![], built_in: String::new(), loadable: String::new() };
        let loaded = Lists { loaded: vec!["veth".into()], ..none_again() };
        let loadable = Lists { loadable: "kernel/drivers/net/veth.ko.xz:\n".into(), ..none_again() };
        let built_in = Lists { built_in: "kernel/drivers/net/veth.ko\n".into(), ..none_again() };
        let yes = parse_config("CONFIG_VETH=y\nCONFIG_X=\"m\"\n");
        let module = parse_config("# CONFIG_Y is not set\nCONFIG_VETH=m\n");
        assert_eq!(yes.len(), 1);
        for (config, lists, expected) in [
            (None, &none, Support::Unknown),
            (None, &loaded, Support::Ready),
            (None, &loadable, Support::Loadable),
            (None, &built_in, Support::Ready),
            (Some(&yes), &none, Support::Ready),
            (Some(&module), &loadable, Support::Loadable),
            (Some(&module), &none, Support::Missing),
            (Some(&BTreeMap::new()), &none, Support::Missing),
        ] {
            assert_eq!(support(veth, config, lists), expected, "{config:?} {:?}", lists.loadable);
        }
    }

    fn none_again() -> Lists {
        Lists { loaded: vec![], built_in: String::new(), loadable: String::new() }
    }
}
