//! The shim: one small process that parents a pod, so that `podd` may die or be upgraded.
//!
//! It builds the pod's root, makes its namespaces, starts its init or has CRIU restore it, runs CRIU for dumps, and
//! keeps the exit code. It decides nothing. Freezing, thawing and plugging are podd's, directly on cgroup and link.
//!
//! One request a connection, one JSON line each way ([`Request`], [`Reply`]); requests wait while it works. Only a dump takes
//! two: [`Request::PrepareDump`] while the pod runs, [`Request::Dump`] when it stands still.

pub mod client;
mod external;
mod first;
mod root;
mod serve;
mod start;

use std::path::PathBuf;
use std::time::Duration;

use checkpoint::baseline::KernelVersion;
use serde::{Deserialize, Serialize};

pub use serve::main;

use crate::pod::spec::{Limits, Network, Volume};
use crate::sys::process::ProcessId;

/// The time namespace's flag, which nix does not name.
pub const CLONE_NEWTIME: i32 = 0x80;

/// Time for a dump or a restore: what is slow (a cold disk) should come to its end, what hangs must not keep a pod frozen for ever.
pub const CRIU_LIMIT: Duration = Duration::from_secs(600);

/// Time for a shim to tell how that went.
pub const OUTCOME_LIMIT: Duration = CRIU_LIMIT.saturating_add(Duration::from_secs(10));

/// Everything that a shim needs to know; `podd` writes it to `shim.json` in the bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The pod's id.
    pub id: String,
    /// How the pod comes to life.
    pub mode: Mode,
    /// Runtime folder of the pod: socket, mount points, status.
    pub bundle: PathBuf,
    /// Folder that holds `upper` and `work`.
    pub writable: PathBuf,
    /// Layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// First uid and gid of the pod's range.
    pub id_base: u32,
    /// Host name inside.
    pub hostname: String,
    /// Arguments of the pod's init, without its own name.
    pub init_args: Vec<String>,
    /// Environment of the pod's init.
    pub env: Vec<(String, String)>,
    /// The oldest kernel to which the pod can go: newer calls are refused.
    #[serde(default)]
    pub kernel: KernelVersion,
    /// Link of the pod.
    pub network: Option<Network>,
    /// Name of the link's outer end.
    pub link: String,
    /// The network namespace from which the pod's is made.
    #[serde(default)]
    pub cradle: PathBuf,
    /// Host paths shown inside.
    pub volumes: Vec<Volume>,
    /// Capabilities beyond the default ones.
    pub cap_add: Vec<String>,
    /// Set-uid programs may gain privileges.
    pub allow_new_privileges: bool,
    /// Name of the pod's cgroup.
    pub cgroup: String,
    /// Limits.
    pub limits: Limits,
    /// The CRIU program.
    pub criu: PathBuf,
}

/// How the pod comes to life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Its init starts.
    Start,
    /// CRIU restores it from this folder; it stays frozen until podd thaws it.
    Restore {
        /// CRIU's image files.
        images: PathBuf,
    },
    /// It lives already: its shim was killed, and this one takes its place. The pod's init is not its child, so the
    /// exit code is the one that the init writes down.
    Adopt {
        /// The pod's init.
        init: ProcessId,
    },
}

/// What podd asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How it is. While the pod is being started or restored, the answer waits for the outcome.
    Status,
    /// Get ready to dump the pod. Forgotten when the connection ends.
    PrepareDump {
        /// Folder for CRIU's files.
        images: PathBuf,
        /// Seconds.
        limit_s: u64,
        /// Bytes of a deleted-but-open file that are carried along.
        ghost_limit: u32,
        /// Paths inside the pod that its processes watch.
        #[serde(default)]
        watched: Vec<String>,
    },
    /// Dump it: it is frozen.
    Dump,
    /// Forget the pod (which has ended) and exit.
    Shutdown,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The answer to [`Request::Status`].
    Status(Status),
    /// Done.
    Done,
    /// Not done, with the reason.
    Failed(String),
}

/// How a pod is, as its shim knows it; also kept in `status.json` in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Its init exists (it may be frozen).
    Alive {
        /// The pod's init.
        init: ProcessId,
    },
    /// Its init ended.
    Ended {
        /// The pod's init, as it was.
        init: ProcessId,
        /// 0 to 255.
        code: i32,
        /// The signal, if one ended it.
        signal: Option<i32>,
    },
    /// It never came to life.
    Failed {
        /// Why.
        reason: String,
    },
}
