//! The flags that describe a pod, for `run` and `create`. They become a [`PodFile`], which judges the values.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use podd::api::ApiError;
use podd::pod::file::{HealthFile, MAX_FILE, PodFile, in_shell};
use podd::pod::spec::PodSpec;

use crate::error;

#[derive(Debug, Args)]
pub struct PodFlags {
    /// Read the pod from this TOML file (`-`: standard input); flags win over it, and -e, -v and --cap-add add to it.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name the pod: 1 to 63 of a-z, 0-9 and hyphen.
    #[arg(long)]
    pub name: Option<String>,
    /// Take this directory on the host as the pod's root.
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<String>,
    /// Take this image as the pod's root: oci:DIR[:TAG] or docker-archive:FILE.
    #[arg(long)]
    pub image: Option<String>,
    /// Give the pod this address, such as 10.0.0.5/24; may be repeated, once for each address.
    #[arg(long, value_name = "CIDR")]
    pub ip: Vec<String>,
    /// Route everything else through this router; one for IPv4, one for IPv6.
    #[arg(long, value_name = "IP")]
    pub gateway: Vec<String>,
    /// Give the pod this MAC address instead of a random one.
    #[arg(long)]
    pub mac: Option<String>,
    /// Set an environment variable; may be repeated.
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Run as this user, by name or number.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Start in this directory of the pod.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set the host name inside the pod [default: its name].
    #[arg(long)]
    pub hostname: Option<String>,
    /// Never put this pod on a host with another one of this group, when a plan chooses the host.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Limit memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Limit the processor cores, such as 1.5.
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Limit processes and threads.
    #[arg(long, value_name = "N")]
    pub pids: Option<u64>,
    /// Show a host path in the pod; may be repeated. Every host the pod moves to must offer the same path.
    #[arg(short, long, value_name = "HOST:POD[:ro]")]
    pub volume: Vec<String>,
    /// Keep a capability that pods usually lose, such as NET_RAW; may be repeated.
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Let set-uid programs in the pod gain privileges.
    #[arg(long)]
    pub allow_new_privileges: bool,
    /// Start the command again when it ends: no, on-failure or always [default: no].
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Run this in the pod's shell now and then: the pod is healthy if it ends with 0.
    #[arg(long, value_name = "CMD", group = "probe")]
    pub health_cmd: Option<String>,
    /// Ask for this path at this port now and then: the pod is healthy if the answer is a status from 200 to 399.
    #[arg(long, value_name = ":PORT/PATH", group = "probe")]
    pub health_http: Option<String>,
    /// Connect to this port now and then: the pod is healthy if it accepts.
    #[arg(long, value_name = "PORT", group = "probe")]
    pub health_tcp: Option<String>,
    /// Time from one question about its health to the next [default: 10s].
    #[arg(long, value_name = "TIME")]
    pub health_interval: Option<String>,
    /// Time until such a question counts as failed [default: 5s].
    #[arg(long, value_name = "TIME")]
    pub health_timeout: Option<String>,
    /// Failures in a row that make the pod unhealthy [default: 3].
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Stop the pod with this signal [default: the image's, else SIGTERM].
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Kill the pod this long after the stop signal [default: 10s].
    #[arg(long, value_name = "TIME")]
    pub stop_timeout: Option<String>,
    /// Keep this much of the log [default: 16M].
    #[arg(long, value_name = "SIZE")]
    pub log_size: Option<String>,
    /// Program and arguments [default: the image's].
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

impl PodFlags {
    /// The pod that flags and file ask for. Reads the file; draws a MAC address.
    pub fn spec(self) -> Result<PodSpec, ApiError> {
        let here = std::env::current_dir()
            .map_err(|e| error::failed(format!("the current directory cannot be used: {e}"), None))?;
        let file = match &self.file {
            Some(path) => {
                let folder = path.parent().map_or_else(|| here.clone(), |folder| here.join(folder));
                PodFile::parse(&read(path)?)?.resolved(&folder)
            }
            None => PodFile::default(),
        };
        Ok(file.overlaid(self.into_file().resolved(&here)).into_spec(rand::random())?)
    }

    fn into_file(self) -> PodFile {
        PodFile {
            name: self.name,
            rootfs: self.rootfs,
            image: self.image,
            command: self.command,
            user: self.user,
            workdir: self.workdir,
            hostname: self.hostname,
            group: self.group,
            ip: self.ip,
            gateway: self.gateway,
            mac: self.mac,
            memory: self.memory,
            cpus: self.cpus,
            pids: self.pids,
            volumes: self.volume,
            cap_add: self.cap_add,
            allow_new_privileges: self.allow_new_privileges,
            restart: self.restart,
            health: HealthFile {
                command: self.health_cmd.as_deref().map(in_shell).unwrap_or_default(),
                http: self.health_http,
                tcp: self.health_tcp,
                interval: self.health_interval,
                timeout: self.health_timeout,
                retries: self.health_retries,
            },
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            log_size: self.log_size,
            env: self.env.into_iter().collect(),
        }
    }
}

/// `K=V`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    match key.is_empty() {
        true => Err("the key is empty".to_owned()),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}

/// A pod's name.
pub fn pod_name(text: &str) -> Result<String, String> {
    match podd::pod::file::check_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(format!("the {error}")),
    }
}

fn read(path: &Path) -> Result<String, ApiError> {
    let mut text = String::new();
    // One byte more than allowed: the parser then says what is wrong.
    let limit = MAX_FILE as u64 + 1;
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    match result {
        Ok(_) => Ok(text),
        Err(e) => Err(error::usage(
            format!("the pod file {} cannot be read: {e}", path.display()),
            "name a TOML file with -f, or `-f -` for standard input",
        )),
    }
}
