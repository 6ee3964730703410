//! Holding a pod still, and dumping it while it is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::start::announce;
use super::state::{PodRecord, PodState};
use crate::error::{Attempt, Result};
use crate::shim::{Request, client};
use crate::supervisor::Daemon;
use crate::sys::hold::deliver;
use crate::sys::network::outer_name;

/// Time for all processes to stand still.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Time for a dump.
const DUMP_LIMIT: Duration = Duration::from_secs(300);
/// Deleted-but-open files up to this size travel inside the image, in bytes.
pub const GHOST_LIMIT: u32 = 256 << 20;

/// Freezes the pod's processes, then cuts its link; returns the milliseconds it took. On failure the pod runs on.
///
/// In this order: an answer that a still running process sends into a cut link would be repeated only a second after
/// the restore, since a restored connection knows no round-trip time (RFC 6298, 2.1).
///
/// # Errors
/// Processes that do not stand still.
pub fn freeze(daemon: &Daemon, record: &PodRecord) -> Result<f64> {
    let begun = Instant::now();
    let frozen = tokio::task::block_in_place(|| {
        daemon.cgroup(&record.id).freeze(FREEZE_LIMIT)?;
        daemon.unplug(record)
    });
    if frozen.is_err() {
        let _ = thaw(daemon, record, &[]);
    }
    frozen.attempt(format!("freeze {}", record.spec.name))?;
    Ok(milliseconds(begun))
}

/// Plugs the link, tells the neighbours, delivers what came meanwhile, and lets the processes go on. Safe to repeat.
///
/// # Errors
/// The link or the cgroup is gone.
pub fn thaw(daemon: &Daemon, record: &PodRecord, frames: &[Vec<u8>]) -> Result<()> {
    tokio::task::block_in_place(|| {
        // First the link: what the pod sends in its first moment must not be lost.
        let plugged = daemon.plug(record);
        if let PodState::Running { init, .. } = record.state {
            announce(record, init);
        }
        if let Err(e) = deliver(&outer_name(&record.id), frames) {
            tracing::warn!(pod = record.spec.name, error = %e, "could not deliver what came during the move");
        }
        daemon.cgroup(&record.id).thaw()?;
        plugged
    })
    .attempt(format!("thaw {}", record.spec.name))
}

/// Has the shim dump the frozen pod into `images`, which is emptied first.
///
/// # Errors
/// CRIU's reason; the pod is still frozen and unharmed.
pub async fn dump(daemon: &Daemon, record: &PodRecord, images: &Path) -> Result<()> {
    let request = Request::Dump { images: images.to_owned(), limit_s: DUMP_LIMIT.as_secs(), ghost_limit: GHOST_LIMIT };
    client::order(&daemon.config.bundle(&record.id), &request, DUMP_LIMIT + Duration::from_secs(10))
        .await
        .attempt(format!("dump {}", record.spec.name))
}

/// A folder in memory that is removed when dropped.
#[derive(Debug)]
pub struct Flight(PathBuf);

impl Flight {
    /// An empty folder of this name.
    ///
    /// # Errors
    /// No space.
    pub fn new(daemon: &Daemon, name: &str) -> Result<Self> {
        let path = daemon.config.flight().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).attempt("make room in memory for the image")?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Milliseconds since `begun`.
#[must_use]
pub fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}
