//! What a pod is at this moment. Pure data and the rules by which it changes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use checkpoint::baseline::{KernelVersion, ReliesOn};
use checkpoint::compat::{Finding, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::spec::PodSpec;
use crate::api::{ExitStatus, LastCheckpoint};
use crate::sys::process::ProcessId;

/// A pod's durable record: everything that a host must know to run it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// Identifier for life, 16 hex digits, the same on every host.
    pub id: String,
    /// What the user asked for.
    pub spec: PodSpec,
    /// Layers by digest, lowest first.
    pub layers: Vec<String>,
    /// What its init runs, after the image's defaults have been filled in.
    pub process: Process,
    /// First uid and gid of its range of 65,536, the same on every host.
    pub id_base: u32,
    /// Counts handovers: a copy with a smaller epoch is dead.
    pub epoch: u64,
    /// When it was created.
    pub created: Timestamp,
    /// When its present run began.
    pub started: Option<Timestamp>,
    /// Times that the restart policy started it again.
    pub restarts: u32,
    /// Those of them since it last ran for a while.
    #[serde(default)]
    pub restarts_in_a_row: u32,
    /// What its present run counts on; none: it never ran, or was started by a podd that did not note it.
    #[serde(default)]
    pub relies_on: Option<ReliesOn>,
    /// It was put to sleep while its host boots: podd wakes it up.
    #[serde(default)]
    pub wakes: bool,
    /// Its last sleep while its host booted.
    #[serde(default)]
    pub slept: Option<Slept>,
    /// Hosts that could not restore it, in a move or a rehearsal, since one could.
    #[serde(default)]
    pub failed_on: BTreeSet<String>,
    /// The newest image file that the user has of it.
    #[serde(default)]
    pub last_checkpoint: Option<LastCheckpoint>,
    /// Where it stands.
    pub state: PodState,
}

/// A pod that so many hosts could not restore is in quarantine.
const QUARANTINE: usize = 2;

impl PodRecord {
    /// Why it goes nowhere until a rehearsal has succeeded; none: it may go. A pod that breaks one host after the other must not be
    /// tried on the next one.
    #[must_use]
    pub fn quarantine(&self) -> Option<Finding> {
        let hosts = self.failed_on.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
        let name = &self.spec.name;
        (self.failed_on.len() >= QUARANTINE).then(|| Finding {
            rule: "quarantine".into(),
            verdict: Verdict::No,
            fact: format!("{hosts} could not restore it"),
            cure: Some(format!("`podctl rehearse {name} --to HOST` tells why; one that succeeds ends the quarantine")),
        })
    }

    /// The environment of its programs: its own, and what holds them to the baseline under which it was started.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        match &self.relies_on {
            Some(relies_on) => relies_on.environment(&self.process.env),
            None => self.process.env.clone(),
        }
    }

    /// The oldest kernel to which it can go.
    #[must_use]
    pub fn oldest_kernel(&self) -> KernelVersion {
        self.relies_on.as_ref().map_or_else(KernelVersion::default, |r| r.kernel)
    }
}

/// A sleep while a host boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slept {
    /// When it began to stand still.
    pub since: Timestamp,
    /// When it ran again; none: it does not yet.
    pub until: Option<Timestamp>,
}

impl Slept {
    /// How long, in ms; none: it sleeps still.
    #[must_use]
    pub fn ms(&self) -> Option<f64> {
        Some(self.until?.duration_since(self.since).as_secs_f64() * 1e3)
    }
}

/// What the pod's init runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its own environment: the image's and the user's.
    pub env: Vec<(String, String)>,
    /// `USER[:GROUP]`.
    pub user: String,
    /// Working directory.
    pub workdir: String,
}

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum PodState {
    /// It has never run.
    Created,
    /// It runs (or stands frozen for a moment).
    Running {
        /// Its init.
        init: ProcessId,
        /// The host's boot id: with another one, the init is gone whatever its number says.
        boot: String,
    },
    /// Its memory is in an image on this host.
    Suspended {
        /// The image file.
        image: PathBuf,
        /// The image carries the writable layer too, so it may be restored elsewhere.
        whole: bool,
    },
    /// Its command ended.
    Exited {
        /// How.
        exit: ExitStatus,
        /// `stop` or `rm` asked for it: the restart policy keeps still.
        asked: bool,
    },
    /// It is coming from another host: the journal of this migration decides.
    Arriving {
        /// The migration.
        migration: String,
    },
    /// It has been given to another host: the journal of this migration decides.
    Given {
        /// The migration.
        migration: String,
    },
    /// Its processes vanished without podd (power loss, a kill from outside).
    Lost {
        /// What was seen.
        reason: String,
    },
}

impl PodState {
    /// One word for `podctl ls`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Suspended { .. } => "suspended",
            Self::Exited { .. } => "exited",
            Self::Arriving { .. } => "arriving",
            Self::Given { .. } => "given",
            Self::Lost { .. } => "lost",
        }
    }

    /// The same in a sentence that begins with "it is"; `peer` is the other host of its move.
    #[must_use]
    pub fn in_words(&self, peer: Option<&str>) -> String {
        let peer = peer.unwrap_or("another host");
        match self {
            Self::Given { .. } => format!("going to {peer}"),
            Self::Arriving { .. } => format!("coming from {peer}"),
            Self::Created | Self::Running { .. } | Self::Suspended { .. } | Self::Exited { .. } | Self::Lost { .. } => {
                self.word().to_owned()
            }
        }
    }

    /// Whether `start` makes sense.
    #[must_use]
    pub fn can_start(&self) -> bool {
        matches!(self, Self::Created | Self::Exited { .. } | Self::Lost { .. })
    }

    /// Whether no process and no other host depends on the record.
    #[must_use]
    pub fn can_remove(&self) -> bool {
        self.can_start() || matches!(self, Self::Suspended { .. })
    }
}

#[cfg(test)]
pub use tests::OLD;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use checkpoint::baseline::Baseline;
    use checkpoint::host::Cpu;

    use super::*;

    /// As the first podd wrote it: whoever upgrades must find the pods again.
    pub const OLD: &str = r#"{"id":"0123456789abcdef","spec":{"name":"web","source":{"rootfs":"/srv"},"command":["a"],"env":{},
        "user":null,"workdir":null,"hostname":null,"network":null,"limits":{"memory":null,"cpus":null,"pids":null},
        "volumes":[],"cap_add":[],"allow_new_privileges":false,"restart":"no","stop_signal":15,"stop_timeout_s":10,
        "log_bytes":65536},"layers":[],"process":{"command":["a"],"env":[],"user":"0:0","workdir":"/"},"id_base":524288,
        "epoch":1,"created":"2026-01-01T00:00:00Z","started":null,"restarts":0,"state":{"is":"created"}}"#;

    #[test]
    fn a_record_without_what_came_later_is_read() {
        let record: PodRecord = serde_json::from_str(OLD).unwrap();
        assert_eq!((record.spec.stop_signal, &record.spec.health, record.restarts_in_a_row), (Some(15), &None, 0));
        assert_eq!(record.last_checkpoint, None);
        assert_eq!((&record.relies_on, record.oldest_kernel()), (&None, KernelVersion(6, 1)));
        assert_eq!(record.environment(), record.process.env);
    }

    #[test]
    fn a_pod_on_its_way_has_a_direction() {
        let migration = String::new();
        let [given, arriving] = [PodState::Given { migration: migration.clone() }, PodState::Arriving { migration }];
        assert_eq!([&given, &arriving].map(|s| s.in_words(Some("b"))), ["going to b", "coming from b"]);
        assert_eq!(given.in_words(None), "going to another host");
        assert_eq!(PodState::Created.in_words(None), "created");
    }

    #[test]
    fn what_a_pod_counts_on_is_kept_in_its_record() {
        let mut record: PodRecord = serde_json::from_str(OLD).unwrap();
        let baseline = Baseline { kernel: KernelVersion(6, 12), cpu: None };
        record.relies_on = Some(ReliesOn::at_birth(&baseline, &Cpu::default(), &record.process.env));
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""relies_on":{"kernel":"6.12","#), "{text}");
        let back: PodRecord = serde_json::from_str(&text).unwrap();
        assert_eq!((back.oldest_kernel(), back.relies_on), (KernelVersion(6, 12), record.relies_on));
    }
}
