//! The daemon's configuration, `/etc/podd/podd.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
        }
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
    #[error("{path} is not a valid configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
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
        let mut config: Self =
            toml::from_str(&text).map_err(|e| Error::Parse { path: wanted.to_owned(), source: Box::new(e) })?;
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

    /// Name of a pod's cgroup.
    #[must_use]
    pub fn cgroup_of(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup)
    }
}
