//! Programs of the host that change it. They outlive podd, and what they say is kept.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crate::error::{Attempt, Result};
use crate::supervisor::Daemon;

/// Of what a program says, so much is told, in bytes.
const TOLD: u64 = 16 << 10;

/// What a program said, and how it ended.
pub(super) struct Said {
    pub(super) status: Option<ExitStatus>,
    /// The end of its output.
    pub(super) text: String,
    /// All of it.
    pub(super) log: PathBuf,
}

impl Said {
    pub(super) fn is_well(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its last line, or that it gave none.
    pub(super) fn last(&self) -> String {
        let last = self.text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        match self.status {
            Some(status) if !status.success() => format!("{} ({status})", last.trim()),
            Some(_) => last.trim().to_owned(),
            None => format!("it did not end in time; {}", last.trim()),
        }
    }

    /// apt's complaints.
    pub(super) fn complaints(&self) -> String {
        let lines: Vec<&str> = self.text.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
        if lines.is_empty() { self.last() } else { lines.join("; ") }
    }
}

/// Runs a program to its end; what it says goes to the log of the run, a file: a pipe would end it, should podd die first.
///
/// # Errors
/// It cannot be run.
pub(super) async fn run(daemon: &Daemon, run: &str, command: &[&str], limit: Duration) -> Result<Said> {
    let folder = daemon.config.state.join("patch");
    std::fs::create_dir_all(&folder).attempt("make the folder for logs of patch runs")?;
    let path = folder.join(format!("{run}.log"));
    let mut log = OpenOptions::new().create(true).append(true).open(&path).attempt("write the log of a patch run")?;
    let (program, arguments) = command.split_first().unwrap_or((&"true", &[]));
    std::io::Write::write_all(&mut log, format!("$ {}\n", command.join(" ")).as_bytes())
        .attempt("write the log of a patch run")?;
    let from = log.metadata().attempt("read the log of a patch run")?.len();
    let other = log.try_clone().attempt("write the log of a patch run")?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Would ask, or mail, or start programs again behind our back.
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("NEEDRESTART_SUSPEND", "1")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(other)
        .process_group(0)
        .spawn()
        .attempt(format!("run {program}"))?;
    let status = match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => Some(status.attempt(format!("wait for {program}"))?),
        // It goes on: to kill what installs packages would be worse.
        Err(_) => None,
    };
    let mut text = Vec::new();
    let mut file = File::open(&path).attempt("read the log of a patch run")?;
    let end = file.metadata().attempt("read the log of a patch run")?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(TOLD)))).attempt("read the log of a patch run")?;
    file.take(TOLD).read_to_end(&mut text).attempt("read the log of a patch run")?;
    Ok(Said { status, text: String::from_utf8_lossy(&text).into_owned(), log: path })
}
