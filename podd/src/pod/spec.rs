//! What a pod is asked to be. Pure data: it goes into the store, over the wire and into images.
//!
//! These types are encoded with bincode, which is not self-describing: no `flatten`, `untagged` or
//! `skip_serializing_if` here. What people write (TOML, flags) is [`crate::pod::file`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that the user decided about a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// Unique on a host: 1 to 63 of `a-z0-9-`, starting with a letter or digit.
    pub name: String,
    /// Where the pod's read-only files come from.
    pub source: RootSource,
    /// Program and arguments; empty: the image's own.
    pub command: Vec<String>,
    /// Environment, on top of the image's.
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, names or numbers, looked up inside the pod; none: the image's, else root.
    pub user: Option<String>,
    /// Working directory; none: the image's, else `/`.
    pub workdir: Option<String>,
    /// Host name inside the pod; none: the pod's name.
    pub hostname: Option<String>,
    /// No two pods of one group are put on one host by a plan.
    #[serde(default)]
    pub group: Option<String>,
    /// Network interface `eth0`; none: loopback only.
    pub network: Option<Network>,
    /// Resource limits.
    pub limits: Limits,
    /// Host directories or files shown inside the pod.
    pub volumes: Vec<Volume>,
    /// Capabilities kept beyond the default list, such as `CAP_NET_RAW`.
    pub cap_add: Vec<String>,
    /// Let set-uid programs gain privileges inside the pod.
    pub allow_new_privileges: bool,
    /// What to do when the pod's command ends.
    pub restart: RestartPolicy,
    /// How to tell that it does its work; none: nobody asks.
    pub health: Option<Health>,
    /// Signal number sent by `stop`; none: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// Seconds between the stop signal and the kill.
    pub stop_timeout_s: u32,
    /// Log bytes kept (in two files of half this size).
    pub log_bytes: u64,
}

impl PodSpec {
    /// The number of the signal that `stop` sends.
    #[must_use]
    pub fn stop_signal(&self) -> i32 {
        self.stop_signal.unwrap_or(nix::libc::SIGTERM)
    }
}

/// Where the pod's read-only files come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootSource {
    /// A directory on the host, imported into the layer store.
    Rootfs(PathBuf),
    /// `oci:DIR[:TAG]` or `docker-archive:FILE`.
    Image(String),
}

/// The pod's own addresses; they move with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// IPv4 and IPv6 addresses with prefix length, such as `10.0.0.5/24`.
    pub addresses: Vec<String>,
    /// Default routes.
    pub gateways: Vec<std::net::IpAddr>,
    /// Locally administered MAC address, chosen once, kept for life.
    pub mac: [u8; 6],
}

/// Resource limits; none: unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Cores, such as 1.5.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A host path shown inside the pod. It does not travel: the target must offer the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Absolute path on the host.
    pub host: PathBuf,
    /// Absolute path in the pod.
    pub pod: PathBuf,
    /// Read-only inside the pod.
    pub read_only: bool,
}

/// How to tell that a pod's program does its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Seconds from one question to the next, at least 1.
    pub interval_s: u32,
    /// Seconds until a question counts as failed, at least 1.
    pub timeout_s: u32,
    /// Failures in a row that make the pod unhealthy, at least 1.
    pub retries: u32,
}

/// A question to the pod's program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// This command, run inside as the pod's user, ends with 0.
    Command(Vec<String>),
    /// GET of this path at this port is answered with a status from 200 to 399.
    Http {
        /// TCP port.
        port: u16,
        /// With a leading slash.
        path: String,
    },
    /// This TCP port accepts a connection.
    Tcp(u16),
}

/// What to do when the pod's command ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Leave it stopped.
    #[default]
    No,
    /// Start it again unless it ended with 0.
    OnFailure,
    /// Start it again unless `podctl stop` ended it.
    Always,
}
