//! What people write about a pod, as TOML or as flags, and what it means. Pure: nothing here looks at a host.
//!
//! `podctl` builds the same [`PodFile`] from its flags as from a file, and the daemon sends what arrives over the
//! API through [`validated`]: there is one set of rules, and every refusal names key, value and cure.

mod address;
mod convert;
mod error;
mod health;
mod paths;
pub mod quantity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

pub use self::convert::{check_name, validated};
pub use self::error::PodFileError;
pub(crate) use self::error::place;
pub use self::health::{HealthFile, in_shell};
use crate::pod::spec::PodSpec;

/// Largest pod file in bytes.
pub const MAX_FILE: usize = 1 << 20;

/// A pod in words: every value as it was written, checked only by [`PodFile::into_spec`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodFile {
    /// 1 to 63 of `a-z0-9-`.
    pub name: Option<String>,
    /// A directory on the host.
    pub rootfs: Option<String>,
    /// `oci:DIR[:TAG]` or `docker-archive:FILE`.
    pub image: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `USER[:GROUP]`.
    #[serde(deserialize_with = "text")]
    pub user: Option<String>,
    /// Absolute path in the pod.
    pub workdir: Option<String>,
    /// Host name inside the pod.
    pub hostname: Option<String>,
    /// Named as pods are.
    pub group: Option<String>,
    /// Addresses with prefix length, such as `10.0.0.5/24`.
    #[serde(deserialize_with = "list")]
    pub ip: Vec<String>,
    /// Default routes, at most one a family.
    #[serde(deserialize_with = "list")]
    pub gateway: Vec<String>,
    /// MAC address; none: a random one.
    pub mac: Option<String>,
    /// Size, such as `512M`.
    #[serde(deserialize_with = "text")]
    pub memory: Option<String>,
    /// Cores, such as 1.5.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// `HOST:POD[:ro]`.
    pub volumes: Vec<String>,
    /// Capabilities kept beyond the default list.
    pub cap_add: Vec<String>,
    /// Let set-uid programs gain privileges.
    pub allow_new_privileges: bool,
    /// `no`, `on-failure` or `always`.
    pub restart: Option<String>,
    /// How to tell that it does its work.
    pub health: HealthFile,
    /// Signal name or number.
    #[serde(deserialize_with = "text")]
    pub stop_signal: Option<String>,
    /// Duration, such as `10s`.
    #[serde(deserialize_with = "text")]
    pub stop_timeout: Option<String>,
    /// Size, such as `16M`.
    #[serde(deserialize_with = "text")]
    pub log_size: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
}

impl PodFile {
    /// Reads TOML. Unknown keys and wrong types are errors that name the line; values are not judged yet.
    pub fn parse(toml: &str) -> Result<Self, PodFileError> {
        if toml.len() > MAX_FILE {
            return Err(PodFileError::Syntax { line: 1, message: "it is larger than 1 MiB".into() });
        }
        toml::from_str(toml).map_err(|e| PodFileError::syntax(toml, &e))
    }

    /// Lays `flags` over a file: a value given as flag wins, a list of addresses replaces the file's, and environment,
    /// volumes and capabilities are added to it.
    pub fn overlaid(self, flags: Self) -> Self {
        let source_given = flags.rootfs.is_some() || flags.image.is_some();
        let or = |flag: Vec<String>, file: Vec<String>| if flag.is_empty() { file } else { flag };
        Self {
            name: flags.name.or(self.name),
            rootfs: flags.rootfs.or(self.rootfs.filter(|_| !source_given)),
            image: flags.image.or(self.image.filter(|_| !source_given)),
            command: or(flags.command, self.command),
            user: flags.user.or(self.user),
            workdir: flags.workdir.or(self.workdir),
            hostname: flags.hostname.or(self.hostname),
            group: flags.group.or(self.group),
            ip: or(flags.ip, self.ip),
            gateway: or(flags.gateway, self.gateway),
            mac: flags.mac.or(self.mac),
            memory: flags.memory.or(self.memory),
            cpus: flags.cpus.or(self.cpus),
            pids: flags.pids.or(self.pids),
            volumes: [self.volumes, flags.volumes].concat(),
            cap_add: [self.cap_add, flags.cap_add].concat(),
            allow_new_privileges: self.allow_new_privileges || flags.allow_new_privileges,
            restart: flags.restart.or(self.restart),
            health: self.health.overlaid(flags.health),
            stop_signal: flags.stop_signal.or(self.stop_signal),
            stop_timeout: flags.stop_timeout.or(self.stop_timeout),
            log_size: flags.log_size.or(self.log_size),
            env: self.env.into_iter().chain(flags.env).collect(),
        }
    }

    /// Makes relative host paths absolute: they are meant relative to `base`, the folder of the pod file or the
    /// caller's own.
    pub fn resolved(mut self, base: &Path) -> Self {
        self.rootfs = self.rootfs.map(|path| paths::absolute(base, &path));
        self.image = self.image.map(|image| paths::image_absolute(base, &image));
        self.volumes = self.volumes.iter().map(|volume| paths::volume_absolute(base, volume)).collect();
        self
    }

    /// Judges every value. `random` becomes the MAC address if the file has none.
    pub fn into_spec(self, random: [u8; 6]) -> Result<PodSpec, PodFileError> {
        convert::into_spec(self, random)
    }
}

/// A string, or a number kept as its digits: `memory = 1048576` and `user = 33` are fine.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    deserializer.deserialize_any(Text("a string or a whole number")).map(|mut words| words.pop())
}

/// A list of strings, or one string.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(Text("a string or a list of strings"))
}

struct Text(&'static str);

impl<'de> Visitor<'de> for Text {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(vec![value.to_owned()])
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(vec![value.to_string()])
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        if !self.0.contains("list") {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(all)
    }
}
