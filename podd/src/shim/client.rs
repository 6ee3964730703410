//! How podd speaks to a shim.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::{Reply, Request, ShimConfig, Status};
use crate::sys::process::ProcessId;

/// Writes the configuration and starts a shim for it; waits until it listens.
///
/// # Errors
/// The bundle cannot be written, or the program cannot be started.
pub async fn launch(config: &ShimConfig) -> io::Result<()> {
    tokio::fs::create_dir_all(&config.bundle).await?;
    // The pod's first process, nobody on the host, mounts below its working directory. Other users do not get here:
    // the folder above is closed.
    tokio::fs::set_permissions(&config.bundle, std::os::unix::fs::PermissionsExt::from_mode(0o711)).await?;
    tokio::fs::write(config.bundle.join("shim.json"), serde_json::to_vec(config)?).await?;
    let log = std::fs::File::options().create(true).append(true).open(config.bundle.join("shim.log"))?;
    let status = Command::new("/proc/self/exe")
        .arg("shim")
        .arg(&config.bundle)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(log)
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(io::Error::other("the shim did not start (see shim.log in its bundle)")) }
}

/// The shim of this bundle; it may have died. What it had started for the pod may still be at work: see [`orphans`].
///
/// # Errors
/// The bundle does not say who its shim is.
pub fn shim(bundle: &Path) -> io::Result<ProcessId> {
    Ok(serde_json::from_slice(&std::fs::read(bundle.join("shim.pid"))?)?)
}

/// Every CRIU that a shim has started, also one that has outlived it. A shim leads a session of its own, and the session's
/// number is not given to anybody else while one of its processes lives.
///
/// # Errors
/// The bundle does not say who its shim is or was, or `/proc` cannot be read.
pub fn workers(bundle: &Path) -> io::Result<Vec<ProcessId>> {
    let shim = shim(bundle)?;
    let all = procfs::process::all_processes().map_err(io::Error::other)?;
    let stats = all.flatten().filter_map(|process| process.stat().ok());
    let workers = stats.filter(|s| s.session == shim.pid && s.pid != shim.pid && s.comm == "criu");
    let alive = workers.filter(|s| !matches!(s.state, 'Z' | 'X'));
    Ok(alive.map(|s| ProcessId { pid: s.pid, start: s.starttime }).collect())
}

/// Asks for the status. While the pod is being brought up, this waits for the outcome.
///
/// # Errors
/// The shim is gone or does not answer within `limit`.
pub async fn status(bundle: &Path, limit: Duration) -> io::Result<Status> {
    match ask(bundle, &Request::Status, limit).await? {
        Reply::Status(status) => Ok(status),
        Reply::Done | Reply::Failed(_) => Err(io::Error::other("the shim gave the wrong kind of answer")),
    }
}

/// What a shim last wrote of its pod: for one that can no longer be asked.
#[must_use]
pub fn last_status(bundle: &Path) -> Option<Status> {
    serde_json::from_slice(&std::fs::read(bundle.join("status.json")).ok()?).ok()
}

/// Sends a request that is either done or fails with a reason.
///
/// # Errors
/// The reason, or the shim is gone or does not answer within `limit`.
pub async fn order(bundle: &Path, request: &Request, limit: Duration) -> io::Result<()> {
    done(ask(bundle, request, limit).await?)
}

/// A shim with a CRIU that is ready to dump its pod. Dropped, that CRIU ends.
#[derive(Debug)]
pub struct Dumper(BufReader<UnixStream>);

impl Dumper {
    /// Has a shim start one.
    ///
    /// # Errors
    /// CRIU's reason, or the shim is gone or does not answer within `limit`.
    pub async fn start(bundle: &Path, request: &Request, limit: Duration) -> io::Result<Self> {
        let started = async {
            let mut stream = BufReader::new(UnixStream::connect(bundle.join("shim.sock")).await?);
            done(converse(&mut stream, request).await?)?;
            Ok(Self(stream))
        };
        in_time(limit, started).await
    }

    /// Dumps the pod, which is frozen by now.
    ///
    /// # Errors
    /// CRIU's reason, or the shim is gone or does not answer within `limit`.
    pub async fn dump(mut self, limit: Duration) -> io::Result<()> {
        done(in_time(limit, converse(&mut self.0, &Request::Dump)).await?)
    }
}

fn done(reply: Reply) -> io::Result<()> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Failed(reason) => Err(io::Error::other(reason)),
        Reply::Status(_) => Err(io::Error::other("the shim gave the wrong kind of answer")),
    }
}

async fn ask(bundle: &Path, request: &Request, limit: Duration) -> io::Result<Reply> {
    let conversation = async {
        let mut stream = BufReader::new(UnixStream::connect(bundle.join("shim.sock")).await?);
        converse(&mut stream, request).await
    };
    in_time(limit, conversation).await
}

async fn converse(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Reply> {
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::Error::other("the shim ended without an answer"));
    }
    Ok(serde_json::from_str(&line)?)
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the shim did not answer in time")))
}
