//! The `health` table of a pod file.

use serde::{Deserialize, Deserializer, Serialize};

use super::{PodFileError, quantity, text};
use crate::pod::spec::{Health, Probe};

const INTERVAL_S: u32 = 10;
const TIMEOUT_S: u32 = 5;
const RETRIES: u32 = 3;
/// Whoever moves a pod waits for a question to end, and afterwards for the verdict.
const TIMEOUT_MOST_S: u32 = 60;
const VERDICT_LIMIT_S: u32 = 120;

/// How to tell that the pod's program does its work, in words. One of `command`, `http` and `tcp` says what is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthFile {
    /// Program and arguments; in a file, a string is for the pod's shell.
    #[serde(deserialize_with = "command")]
    pub command: Vec<String>,
    /// `:PORT/PATH`.
    pub http: Option<String>,
    /// Port.
    #[serde(deserialize_with = "text")]
    pub tcp: Option<String>,
    /// Duration from one question to the next, such as `10s`.
    #[serde(deserialize_with = "text")]
    pub interval: Option<String>,
    /// Duration until a question counts as failed, such as `5s`.
    #[serde(deserialize_with = "text")]
    pub timeout: Option<String>,
    /// Failures in a row that make the pod unhealthy.
    pub retries: Option<u32>,
}

impl HealthFile {
    /// What flags say wins; with another question, the file's is forgotten.
    pub(super) fn overlaid(self, flags: Self) -> Self {
        let asked = !flags.command.is_empty() || flags.http.is_some() || flags.tcp.is_some();
        let (command, http, tcp) =
            if asked { (flags.command, flags.http, flags.tcp) } else { (self.command, self.http, self.tcp) };
        Self {
            command,
            http,
            tcp,
            interval: flags.interval.or(self.interval),
            timeout: flags.timeout.or(self.timeout),
            retries: flags.retries.or(self.retries),
        }
    }

    pub(super) fn into_health(self) -> Result<Option<Health>, PodFileError> {
        let probe = match (&self.command[..], &self.http, &self.tcp) {
            ([], None, None) if self == Self::default() => return Ok(None),
            ([], None, None) => {
                let cure = "say what is asked: a command, an HTTP path or a TCP port";
                return Err(PodFileError::Missing { key: "health probe", cure });
            }
            (command, None, None) => Probe::Command(command.to_vec()),
            ([], Some(http), None) => self::http(http)?,
            ([], None, Some(tcp)) => Probe::Tcp(port("health tcp", tcp)?),
            _ => {
                let (value, problem) = ("more than one".to_owned(), "probes are given");
                let cure = "choose one of command, http and tcp";
                return Err(PodFileError::Invalid { key: "health", value, problem, cure });
            }
        };
        let retries = self.retries.unwrap_or(RETRIES);
        let timeout_s = seconds("health timeout", self.timeout, TIMEOUT_S)?;
        if retries == 0 || retries.saturating_mul(timeout_s + 1) > VERDICT_LIMIT_S {
            let (problem, cure) =
                ("is not possible", "write 1 or more, with which an ill pod is known within 2 minutes");
            return Err(PodFileError::invalid("health retries", retries.to_string(), problem, cure));
        }
        let interval_s = seconds("health interval", self.interval, INTERVAL_S)?;
        Ok(Some(Health { probe, interval_s, timeout_s, retries }))
    }

    pub(super) fn of(health: Option<&Health>) -> Self {
        let Some(health) = health else { return Self::default() };
        let (command, http, tcp) = match &health.probe {
            Probe::Command(command) => (command.clone(), None, None),
            Probe::Http { port, path } => (Vec::new(), Some(format!(":{port}{path}")), None),
            Probe::Tcp(port) => (Vec::new(), None, Some(port.to_string())),
        };
        Self {
            command,
            http,
            tcp,
            interval: Some(health.interval_s.to_string()),
            timeout: Some(health.timeout_s.to_string()),
            retries: Some(health.retries),
        }
    }
}

/// What has the pod's shell run a line.
#[must_use]
pub fn in_shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).into()
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings")]
    enum Words {
        Line(String),
        Command(Vec<String>),
    }
    Ok(match Words::deserialize(deserializer)? {
        Words::Line(line) => in_shell(&line),
        Words::Command(command) => command,
    })
}

fn http(text: &str) -> Result<Probe, PodFileError> {
    let cure = "write :PORT/PATH, such as :8080/health";
    let wrong = |problem| PodFileError::invalid("health http", text, problem, cure);
    let rest = text.strip_prefix(':').ok_or_else(|| wrong("does not begin with a colon"))?;
    let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("has characters that a path cannot have"));
    }
    Ok(Probe::Http { port: port("health http", number)?, path: path.to_owned() })
}

fn port(key: &'static str, text: &str) -> Result<u16, PodFileError> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| PodFileError::invalid(key, text, "is not a port", "write a number from 1 to 65535"))
}

fn seconds(key: &'static str, text: Option<String>, default: u32) -> Result<u32, PodFileError> {
    let Some(text) = text else { return Ok(default) };
    let most = if key == "health timeout" { TIMEOUT_MOST_S } else { u32::MAX };
    let seconds = quantity::seconds(&text).and_then(|s| u32::try_from(s).ok()).filter(|s| (1..=most).contains(s));
    seconds.ok_or_else(|| {
        PodFileError::invalid(key, &text, "is not a possible duration", "write 1s or more; a timeout is at most 60s")
    })
}
