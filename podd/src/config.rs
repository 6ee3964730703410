//! The daemon's configuration, `/etc/podd/podd.toml`.

use std::io::Read;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use checkpoint::baseline::{self, Baseline, KernelVersion, OLDEST_KERNEL};
use checkpoint::host::Cpu;
use serde::{Deserialize, Serialize};

use crate::pod::file::place;
use crate::trust::Protocol;

/// Everything that an operator can set. Each field has a default: an empty file is a good configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This host's name; empty: `uname -n`.
    pub host: String,
    /// Folder for what must survive a reboot.
    pub state: PathBuf,
    /// Folder for what may vanish at a reboot.
    pub run: PathBuf,
    /// Unix socket of the API.
    pub socket: PathBuf,
    /// Address for other hosts; none: this host has no peers.
    pub listen: Option<SocketAddr>,
    /// Our subtree below the cgroup root.
    pub cgroup: String,
    /// The CRIU program.
    pub criu: PathBuf,
    /// How pods reach the network.
    pub network: NetworkConfig,
    /// What pods may count on.
    pub baseline: BaselineConfig,
    /// The operators' policy for patching.
    pub policy: PathBuf,
    /// Folder with signed manifests of live patches, and with the keys that are trusted.
    pub livepatch: PathBuf,
    /// Whether the status of this host is looked at again and again, and not only when somebody asks.
    pub watch: bool,
    /// Pods that leave this host at a time, of many that shall; they stand still one after the other.
    pub moves: NonZeroU8,
    /// What this host shares with others that can fail as a whole, such as a rack: never two of one domain are away for patching.
    pub domain: Option<String>,
    /// The newest version of the protocol between hosts that this one speaks.
    pub protocol: Protocol,
    /// The command by which this host boots.
    pub reboot: Vec<String>,
    /// Whether pods may sleep on this host's disk while it boots, where that is milder than to evacuate them.
    pub in_place: bool,
    /// Address where Prometheus can read metrics; none: only on the API's socket.
    pub metrics: Option<SocketAddr>,
}

/// What the pods that are started on this host may count on; [`BaselineConfig::resolve`] says what it means.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineConfig {
    /// The oldest kernel to which they can go, such as `6.1`.
    pub kernel: String,
    /// `host`, a level such as `x86-64-v2`, or the absolute path of a file that lists features.
    pub cpu: String,
}

/// How pods reach the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Bridge into which pods are plugged; made if missing.
    pub bridge: String,
    /// Interface that joins the bridge, with its addresses; none: the operator connects the bridge.
    pub uplink: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: String::new(),
            state: "/var/lib/podd".into(),
            run: "/run/podd".into(),
            socket: "/run/podd/podd.sock".into(),
            listen: None,
            cgroup: "podd".into(),
            criu: "/usr/local/libexec/podd/criu".into(),
            network: NetworkConfig::default(),
            baseline: BaselineConfig::default(),
            policy: crate::patch::policy::PATH.into(),
            livepatch: crate::patch::cover::FOLDER.into(),
            watch: true,
            moves: const { NonZeroU8::new(4).expect("not zero") },
            domain: None,
            protocol: Protocol::NEWEST,
            reboot: ["systemctl", "reboot"].map(str::to_owned).to_vec(),
            in_place: false,
            metrics: None,
        }
    }
}

impl Default for BaselineConfig {
    /// Any kernel that podd knows: to do without what later ones brought costs programs next to nothing. But only processors
    /// that have what this one has: to be held to less can cost much, and is for the operator to decide.
    fn default() -> Self {
        Self { kernel: OLDEST_KERNEL.to_string(), cpu: "host".into() }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { bridge: "podd0".into(), uplink: None }
    }
}

/// Why the configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not understood.
    #[error("{path} is wrong in line {line}: {message}\n  cure: the README's section \"Configuration\" has all keys")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What.
        message: String,
    },
    /// The list of features cannot be read.
    #[error(
        "cannot read {path} with the features of the baseline: {source}\n  cure: on a host whose podd \
         runs, `podctl host cpu --fleet` lists them; or write cpu = \"host\""
    )]
    Features {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The baseline is none of this host.
    #[error("the baseline cannot be kept: {0}\n  cure: {cure}", cure = .0.cure())]
    Baseline(#[from] baseline::Error),
}

impl BaselineConfig {
    /// What it means on a host with this processor, kernel and architecture. A host with an older kernel than it allows itself
    /// promises no more than it has.
    ///
    /// # Errors
    /// [`Error`]: it means nothing, or the processor lacks something of it.
    pub fn resolve(&self, cpu: &Cpu, running: KernelVersion, arch: &str) -> Result<Baseline, Error> {
        let kernel: KernelVersion = self.kernel.parse()?;
        if kernel < OLDEST_KERNEL {
            return Err(baseline::Error::OldKernel(kernel).into());
        }
        let list = match Path::new(&self.cpu).is_absolute() {
            true => Some(read_list(&self.cpu).map_err(|source| Error::Features { path: self.cpu.clone(), source })?),
            false => None,
        };
        let cpu = baseline::least_cpu(&self.cpu, list.as_deref(), cpu, arch)?;
        Ok(Baseline { kernel: kernel.min(running).max(OLDEST_KERNEL), cpu })
    }
}

/// Features of a processor: a few hundred words.
fn read_list(path: &str) -> std::io::Result<String> {
    const MAX_BYTES: u64 = 64 << 10;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match read as u64 > MAX_BYTES {
        true => Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is too long for a list of features")),
        false => Ok(text),
    }
}

impl Config {
    /// Reads a file; a missing file at the default place means defaults.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let default = Path::new("/etc/podd/podd.toml");
        let wanted = path.unwrap_or(default);
        let text = match std::fs::read_to_string(wanted) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
            Err(source) => return Err(Error::Read { path: wanted.to_owned(), source }),
        };
        let mut config: Self = toml::from_str(&text).map_err(|e| {
            let (line, message) = place(&text, &e);
            Error::Parse { path: wanted.to_owned(), line, message }
        })?;
        if config.host.is_empty() {
            config.host =
                nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |h| h.to_string_lossy().into());
        }
        Ok(config)
    }

    /// Runtime folder of a pod.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.run.join("pods").join(id)
    }

    /// The network namespace from which those of pods are made.
    #[must_use]
    pub fn cradle(&self) -> PathBuf {
        self.run.join("cradle")
    }

    /// Durable folder of a pod: its writable layer.
    #[must_use]
    pub fn pod_state(&self, id: &str) -> PathBuf {
        self.state.join("pods").join(id)
    }

    /// Durable folder for images that podd writes for itself.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The image of a suspended pod. It is the pod: resuming, suspending and removing the pod deletes or replaces it. All
    /// others in the folder are the user's.
    #[must_use]
    pub fn own_image(&self, pod_id: &str) -> PathBuf {
        self.images().join(format!("{pod_id}.img"))
    }

    /// Folder for CRIU's logs of what failed.
    #[must_use]
    pub fn criu_logs(&self) -> PathBuf {
        self.state.join("criu")
    }

    /// Folder in memory for images in flight.
    #[must_use]
    pub fn flight(&self) -> PathBuf {
        self.run.join("flight")
    }

    /// Folder in memory that survives a boot, if it is mounted.
    #[must_use]
    pub fn reserved(&self) -> PathBuf {
        self.run.join("reserved")
    }

    /// Name of a pod's cgroup.
    #[must_use]
    pub fn cgroup_of(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resolve(baseline: &str) -> Result<Baseline, String> {
        let cpu = Cpu { model: "m".into(), flags: vec!["sse2".into()], cpuid: vec![1], ..Cpu::default() };
        let config: Config = toml::from_str(&format!("[baseline]\n{baseline}")).map_err(|e| e.to_string())?;
        config.baseline.resolve(&cpu, KernelVersion(6, 12), "x86_64").map_err(|e| e.to_string())
    }

    #[test]
    fn a_host_promises_no_newer_kernel_than_its_own() {
        assert_eq!(resolve("").unwrap(), Baseline { kernel: KernelVersion(6, 1), cpu: None });
        assert_eq!(resolve("kernel = \"6.6\"").unwrap().kernel, KernelVersion(6, 6));
        assert_eq!(resolve("kernel = \"7.2\"").unwrap().kernel, KernelVersion(6, 12));
    }

    #[test]
    fn what_is_no_baseline_gets_a_sentence_and_a_cure() {
        for (baseline, sentence) in [
            (
                "kernel = \"5.10\"",
                "the baseline cannot be kept: podd runs pods on Linux 6.1 and later, not on 5.10\n  cure: ",
            ),
            ("kernel = \"new\"", "the baseline cannot be kept: \"new\" is not the version of a kernel\n  cure: "),
            ("cpu = \"fast\"", "the baseline cannot be kept: \"fast\" is neither a level"),
            ("cpu = \"x86-64-v2\"", "the baseline cannot be kept: this host's processor (m) lacks "),
            ("cpu = \"/none\"", "cannot read /none with the features of the baseline: No such file"),
            ("cpu = \"/dev/zero\"", "cannot read /dev/zero with the features of the baseline: it is too long"),
        ] {
            let said = resolve(baseline).unwrap_err();
            assert!(said.starts_with(sentence) && said.contains("\n  cure: "), "{said}");
        }
        assert!(resolve("cpus = 3").unwrap_err().contains("unknown field `cpus`"));
    }
}
