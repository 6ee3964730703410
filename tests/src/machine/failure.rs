//! What can go wrong with a machine lab, each with its cure.

use std::path::{Path, PathBuf};

/// Why a machine lab could not do what it was asked for. One sentence and a cure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No mirror offers such a kernel, and none is cached.
    #[error("no kernel of series `{asked}` is to be had; choose one of {}", offered.join(", "))]
    UnknownKernel {
        /// What was asked for.
        asked: String,
        /// Series that can be had.
        offered: Vec<String>,
    },
    /// Something that this host must have.
    #[error("{what}; {cure}")]
    Missing {
        /// What is missing, as a sentence.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A disk is (nearly) full.
    #[error("{} has {free_mib} MiB free and needs {need_mib} MiB; make room there, or set {variable} to another disk", dir.display())]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// Free, MiB.
        free_mib: u64,
        /// Needed, MiB.
        need_mib: u64,
        /// The environment variable that names the place.
        variable: &'static str,
    },
    /// A request that makes no sense in the present state.
    #[error("{0}")]
    Refused(String),
    /// A tool of the host, or a command in a machine, failed.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// Its command line.
        command: String,
        /// The end of what it said.
        said: String,
    },
    /// A machine did not get as far as expected.
    #[error("{name} {what}; the end of its console ({}):\n{tail}", console.display())]
    Stuck {
        /// The machine.
        name: String,
        /// What it did not do.
        what: String,
        /// Its console's log.
        console: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted, on what.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Failure {
    /// For `map_err`: what was attempted, on which file.
    pub fn io(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }
}
