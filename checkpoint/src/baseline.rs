//! The baseline of a host: the oldest kernel and the least processor that the pods started there may count on, and what a
//! running pod does count on.
//!
//! Programs ask kernel and processor once, at their start, and then use what they found. So a pod can go wherever that is
//! there, and nowhere else. A baseline makes it less: [`environment`] tells the common runtimes to overlook what goes beyond
//! it. Pure: no file is read here, and nothing about pods is known.

mod environment;
mod features;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host::Cpu;
pub use environment::{Environment, environment};
pub use features::{LEVELS, gives_instructions};

/// First and second number of a kernel's release, such as 6.12; written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KernelVersion(pub u32, pub u32);

/// The oldest kernel on which pods have been tried, and so the least baseline.
pub const OLDEST_KERNEL: KernelVersion = KernelVersion(6, 1);
/// CRIU registers areas of restartable sequences again as large as they were; kernels before this one insist on 32 bytes
/// (kernel/rseq.c).
pub const ANY_RSEQ: KernelVersion = KernelVersion(6, 12);
/// Knows MAP_DROPPABLE (mm/mmap.c).
pub const DROPPABLE: KernelVersion = KernelVersion(6, 11);

impl Default for KernelVersion {
    fn default() -> Self {
        OLDEST_KERNEL
    }
}

impl From<(u32, u32)> for KernelVersion {
    fn from((first, second): (u32, u32)) -> Self {
        Self(first, second)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl From<KernelVersion> for String {
    fn from(version: KernelVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for KernelVersion {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for KernelVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text.split_once('.').and_then(|(one, two)| Some((digits(one)?, digits(two)?)));
        numbers.map(Self::from).ok_or_else(|| Error::Kernel(text.to_owned()))
    }
}

/// `u32::from_str` alone would take a sign.
fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What the pods that are started on a host may count on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The oldest kernel.
    pub kernel: KernelVersion,
    /// The least processor; none: the one that the host has.
    pub cpu: Option<CpuBaseline>,
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kernel, self.cpu.as_ref().map_or("host", |cpu| &cpu.name))
    }
}

/// A least processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBaseline {
    /// A level, such as `x86-64-v2`, or the path of the file that lists the features.
    pub name: String,
    /// All its features, by their names in /proc/cpuinfo.
    pub features: BTreeSet<String>,
}

/// What a running pod counts on: noted when its program starts, kept on every host until it starts anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReliesOn {
    /// The oldest kernel that it can go to.
    pub kernel: KernelVersion,
    /// What its programs are held to; none: nothing less than the processor on which it was born.
    pub cpu: Option<CpuBaseline>,
    /// Variables of its own environment that stand against that.
    pub own: Vec<String>,
    /// The processor on which it was born, with those of its flags that give instructions.
    pub born: Cpu,
    /// What the processors on which it has been since have beyond that one, by name.
    pub since: BTreeSet<String>,
}

impl ReliesOn {
    /// What a pod counts on that is started now: under this baseline, on this processor, with this environment of its own.
    #[must_use]
    pub fn at_birth(baseline: &Baseline, cpu: &Cpu, own: &[(String, String)]) -> Self {
        let flags = cpu.features().map(str::to_owned).collect();
        Self {
            kernel: baseline.kernel,
            cpu: baseline.cpu.clone(),
            own: environment(baseline.kernel, baseline.cpu.as_ref(), own).against,
            born: Cpu { flags, ..cpu.clone() },
            since: BTreeSet::new(),
        }
    }

    /// It comes to a host with this processor. What is started in it from now on may find more than was there before.
    pub fn comes_to(&mut self, cpu: &Cpu) {
        let more = cpu.features().filter(|f| !self.born.flags.iter().any(|b| b == f));
        self.since.extend(more.map(str::to_owned));
    }

    /// What holds all its programs that can be held; none: nothing does.
    #[must_use]
    pub fn held(&self) -> Option<&CpuBaseline> {
        self.cpu.as_ref().filter(|_| self.own.is_empty())
    }

    /// The environment of its programs: its own, and what holds them.
    #[must_use]
    pub fn environment(&self, own: &[(String, String)]) -> Vec<(String, String)> {
        environment(self.kernel, self.cpu.as_ref(), own).all
    }
}

/// Why something is no baseline of this host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Not a kernel's number.
    #[error("{0:?} is not the version of a kernel")]
    Kernel(String),
    /// Older than any that was tried.
    #[error("podd runs pods on Linux {OLDEST_KERNEL} and later, not on {0}")]
    OldKernel(KernelVersion),
    /// Neither a level nor a path.
    #[error("{0:?} is neither a level of x86-64 nor the path of a file that lists features")]
    Cpu(String),
    /// Only x86-64 has levels and features that runtimes can be kept from.
    #[error("{name:?} is for x86-64, and this host is {arch}")]
    Arch {
        /// What was asked for.
        name: String,
        /// `uname -m`.
        arch: String,
    },
    /// A file names something else than features.
    #[error("{path} names {word:?}, which is neither a feature of x86-64 nor a level")]
    Word {
        /// The file.
        path: String,
        /// What it names.
        word: String,
    },
    /// A file names nothing.
    #[error("{0} lists no features")]
    Empty(String),
    /// The host lacks some of it.
    #[error("this host's processor ({model}) lacks {missing} of {name}")]
    Lacks {
        /// What was asked for.
        name: String,
        /// The processor.
        model: String,
        /// Features, separated by spaces.
        missing: String,
        /// The highest level that the host has.
        level: &'static str,
    },
}

impl Error {
    /// What the operator can do.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Self::Kernel(_) => "write two numbers, as in kernel = \"6.1\"".into(),
            Self::OldKernel(_) => format!("write kernel = \"{OLDEST_KERNEL}\""),
            Self::Cpu(_) | Self::Word { .. } => {
                "write \"host\", \"x86-64-v1\" to \"x86-64-v4\", or the absolute path of a file that `podctl host cpu` has \
                 written"
                    .into()
            }
            Self::Arch { .. } => "write cpu = \"host\"".into(),
            Self::Empty(_) => "on a host whose podd runs, `podctl host cpu --fleet` lists them; or write cpu = \"host\"".into(),
            Self::Lacks { level, .. } => {
                format!("write cpu = \"{level}\", or have `podctl host cpu --fleet` list what all hosts have")
            }
        }
    }
}

/// The least processor that is meant by a word of the configuration. `list` is the content of the file if it is a path.
///
/// # Errors
/// [`enum@Error`]: it means nothing, or this host has less.
pub fn least_cpu(name: &str, list: Option<&str>, host: &Cpu, arch: &str) -> Result<Option<CpuBaseline>, Error> {
    if name == "host" {
        return Ok(None);
    }
    let level = features::level(name);
    if level.is_none() && list.is_none() {
        return Err(Error::Cpu(name.to_owned()));
    }
    if arch != "x86_64" {
        return Err(Error::Arch { name: name.to_owned(), arch: arch.to_owned() });
    }
    let features = match level {
        Some(level) => level,
        None => listed(name, list.unwrap_or_default())?,
    };
    let missing: Vec<&str> = features.iter().map(String::as_str).filter(|f| !host.has(f)).collect();
    if !missing.is_empty() {
        return Err(Error::Lacks {
            name: name.to_owned(),
            model: host.model.clone(),
            missing: missing.join(" "),
            level: highest_level(host).unwrap_or("host"),
        });
    }
    Ok(Some(CpuBaseline { name: name.to_owned(), features }))
}

/// Features and levels of a file: words, with comments from `#` to the end of the line.
fn listed(path: &str, list: &str) -> Result<BTreeSet<String>, Error> {
    let mut features = BTreeSet::new();
    for word in list.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace()) {
        match features::level(word) {
            Some(level) => features.extend(level),
            None if gives_instructions(word, "x86_64") => drop(features.insert(word.to_owned())),
            None => return Err(Error::Word { path: path.to_owned(), word: word.to_owned() }),
        }
    }
    match features.is_empty() {
        true => Err(Error::Empty(path.to_owned())),
        // No x86-64 processor has less.
        false => Ok(features.into_iter().chain(features::level(LEVELS[0].0).into_iter().flatten()).collect()),
    }
}

/// The highest level that a processor has; none on other architectures.
#[must_use]
pub fn highest_level(cpu: &Cpu) -> Option<&'static str> {
    let has = |name: &str| features::level(name).is_some_and(|level| level.iter().all(|f| cpu.has(f)));
    LEVELS.iter().map(|(name, _)| *name).take_while(|name| has(name)).last()
}

#[cfg(test)]
mod tests;
