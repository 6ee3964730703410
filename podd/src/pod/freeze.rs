//! Holding a pod still, and dumping it while it is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use checkpoint::clocks::Clocks;
use checkpoint::process::{Terminals, leave_vdso, watched_paths};
use checkpoint::waits::{self, Waits};

use super::start::{announce, await_workers};
use super::state::{PodRecord, PodState};
use super::stop::not_running;
use crate::error::{Attempt, Result};
use crate::shim::{CRIU_LIMIT, OUTCOME_LIMIT, Request, client};
use crate::supervisor::Daemon;
use crate::sys::backlog;
use crate::sys::hold::{Hold, deliver};
use crate::sys::network::{self, outer_name};
use crate::sys::process::ProcessId;

/// Time for all processes to stand still.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Time for programs to accept the connections that wait for them, and for shells to take their terminals back.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// Time for handshakes to end: more than most round trips. One that hangs was perhaps never meant to end.
const HANDSHAKE_LIMIT: Duration = Duration::from_millis(300);
/// Time for a CRIU to get ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Time for the shim to clean up after a dump that has failed.
const PUT_BACK_LIMIT: Duration = Duration::from_secs(60);
/// Deleted-but-open files up to this size travel inside the image, in bytes.
pub const GHOST_LIMIT: u32 = 256 << 20;

/// Something that catches what comes for the pod until it is thawed, if the host can do that.
#[must_use]
pub fn hold(daemon: &Daemon, record: &PodRecord) -> Option<Hold> {
    let network = record.spec.network.as_ref()?;
    let made = tokio::task::block_in_place(|| Hold::new(&record.id, &daemon.config.network.bridge, network.mac));
    made.inspect_err(|e| {
        tracing::warn!(pod = record.spec.name, error = %e, "packets that come while it is frozen will be lost and sent again");
    })
    .ok()
}

/// On which kernel the pod will go on: another one has another vDSO, and a thread that stands still in there would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextKernel {
    /// One like this host's.
    Same,
    /// Another one.
    Other,
    /// Whichever it will be.
    Unknown,
}

/// A pod that stands still.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// When it began to.
    pub since: Instant,
    /// What its processes watch, as far as that was so a moment before.
    watched: Vec<String>,
    /// What they wait for.
    waits: Waits,
}

/// Freezes the pod's processes, then cuts its link. On failure the pod runs on.
///
/// In this order: an answer that a still running process sends into a cut link would be repeated only a second after
/// the restore, since a restored connection knows no round-trip time (RFC 6298, 2.1).
///
/// # Errors
/// Processes that do not stand still, or do not accept connections; or threads that are never out of the vDSO, on the way to another
/// kernel.
pub fn freeze(daemon: &Daemon, record: &PodRecord, hold: Option<&Hold>, kernel: NextKernel) -> Result<Frozen> {
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    let frozen = tokio::task::block_in_place(|| {
        // What takes time at first.
        let _ = waits::are_told();
        let watched = watched(daemon, record);
        let terminals = Terminals::of(&daemon.cgroup(&record.id).pids());
        let (since, interrupted) = freeze_processes(daemon, record, init, (&terminals, kernel), hold)?;
        let waits = Waits::of(&daemon.cgroup(&record.id).pids(), interrupted);
        daemon.unplug(record)?;
        Ok::<_, std::io::Error>(Frozen { since, watched, waits })
    });
    if frozen.is_err() {
        let _ = thaw(daemon, record, &hold.map(Hold::take).unwrap_or_default());
    }
    frozen.attempt(format!("freeze {}", record.spec.name))
}

/// What the pod's processes watch (inotify(7)).
fn watched(daemon: &Daemon, record: &PodRecord) -> Vec<String> {
    let pids = daemon.cgroup(&record.id).pids();
    let Some(root) = pids.first().map(|pid| PathBuf::from(format!("/proc/{pid}/root"))) else { return Vec::new() };
    let paths = watched_paths(&pids, &root);
    paths.into_iter().filter_map(|path| path.into_os_string().into_string().ok()).collect()
}

/// Freezes them at a moment at which no connection waits to be accepted, no terminal for its shell, and no thread is in code that is
/// another one on another kernel. Returns when that began and when they stood still.
fn freeze_processes(
    daemon: &Daemon,
    record: &PodRecord,
    init: ProcessId,
    (terminals, kernel): (&Terminals, NextKernel),
    hold: Option<&Hold>,
) -> std::io::Result<(Instant, Clocks)> {
    let cgroup = daemon.cgroup(&record.id);
    let begun = Instant::now();
    if let Some(hold) = hold {
        let outer = outer_name(&record.id);
        // Only from now on does the hold get anything but noise.
        drop(hold.take());
        network::deafen(&outer)?;
        settle(&outer, init, hold, begun)?;
    }
    loop {
        let since = Instant::now();
        cgroup.freeze(FREEZE_LIMIT)?;
        let in_vdso = if kernel == NextKernel::Same { None } else { leave_vdso(cgroup.freezer(), &cgroup.pids())? };
        let interrupted = Clocks::here()?;
        // Connections within the pod, and without a hold all others, may have come in between.
        let backlog = backlog::of_frozen(init.pid)?;
        let late = begun.elapsed() > SETTLE_LIMIT;
        let obstacle = match (backlog.unaccepted, terminals.abandoned()) {
            (0, None) => in_vdso.filter(|_| kernel == NextKernel::Other).map(|tid| {
                format!("thread {tid} does not leave the kernel's own code (vDSO), which is another one there")
            }),
            (0, Some(terminal)) => {
                Some(format!("the foreground job of {terminal} has ended, and its shell does not take it back"))
            }
            (n, _) => Some(format!("{n} connections wait for a program in it to accept them")),
        };
        match obstacle {
            // Those of unix sockets can be carried as long as nothing was written into them: CRIU knows.
            None if late || (backlog.unaccepted_unix == 0 && in_vdso.is_none()) => return Ok((since, interrupted)),
            Some(what) if late => {
                let limit = SETTLE_LIMIT.as_secs();
                return Err(std::io::Error::other(format!("{what}, for {limit} s already")));
            }
            _ => cgroup.thaw()?,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// While requests for new connections wait in the hold, those under way get established and accepted.
fn settle(outer: &str, init: ProcessId, hold: &Hold, begun: Instant) -> std::io::Result<()> {
    loop {
        hold.pass(outer)?;
        let backlog = backlog::of(init.pid)?;
        let handshakes = backlog.half_open > 0 && begun.elapsed() < HANDSHAKE_LIMIT;
        if !handshakes && (backlog.unaccepted == 0 || begun.elapsed() > SETTLE_LIMIT) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
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
        release(daemon, record)?;
        plugged
    })
    .attempt(format!("thaw {}", record.spec.name))
}

/// Lets the processes go on, also with what they were waiting for when they were dumped.
///
/// # Errors
/// The cgroup is gone.
pub fn release(daemon: &Daemon, record: &PodRecord) -> std::io::Result<()> {
    let cgroup = daemon.cgroup(&record.id);
    let pids = cgroup.pids();
    Waits::take(&daemon.config.bundle(&record.id)).thaw(&pids, || cgroup.thaw())
}

impl Frozen {
    /// A pod that stands still already, since an earlier dump.
    #[must_use]
    pub fn already(daemon: &Daemon, record: &PodRecord) -> Self {
        let waits = Waits::noted(&daemon.config.bundle(&record.id));
        Self { since: Instant::now(), watched: watched(daemon, record), waits }
    }
}

/// A CRIU that is ready to dump a pod.
#[derive(Debug)]
pub struct Dumper {
    shim: client::Dumper,
    images: PathBuf,
    watched: Vec<String>,
}

impl Dumper {
    /// Has the pod's shim start one, for a dump into the folder `images`. The pod may run meanwhile.
    ///
    /// # Errors
    /// CRIU's reason.
    pub async fn start(daemon: &Daemon, record: &PodRecord, images: &Path) -> Result<Self> {
        let watched = tokio::task::block_in_place(|| watched(daemon, record));
        let request = Request::PrepareDump {
            images: images.to_owned(),
            limit_s: CRIU_LIMIT.as_secs(),
            ghost_limit: GHOST_LIMIT,
            watched: watched.clone(),
        };
        let started = client::Dumper::start(&daemon.config.bundle(&record.id), &request, START_LIMIT).await;
        let shim = started.attempt(format!("get ready to dump {}", record.spec.name))?;
        Ok(Self { shim, images: images.to_owned(), watched })
    }

    /// Dumps the frozen pod.
    ///
    /// # Errors
    /// CRIU's reason; the pod is still frozen and unharmed.
    pub async fn dump(mut self, daemon: &Daemon, record: &PodRecord, frozen: &Frozen) -> Result<()> {
        if self.watched != frozen.watched {
            self = Self::start(daemon, record, &self.images).await?;
        }
        let bundle = daemon.config.bundle(&record.id);
        // For whoever takes the pod over, and for it to go on here.
        let noted = frozen.waits.note(&bundle).and_then(|()| frozen.waits.note(&self.images));
        noted.attempt("note what the pod waits for")?;
        let dumped = self.shim.dump(OUTCOME_LIMIT).await;
        if dumped.is_err() {
            keep_log(daemon, record, &self.images.join("dump.log"));
            // A shim that is late may still be putting the processes back: it answers when it has done. A dead one does not.
            let _ = client::status(&bundle, PUT_BACK_LIMIT).await;
            if let Err(e) = await_workers(daemon, record).await {
                tracing::warn!(pod = record.spec.name, error = %e, "thawing the pod all the same");
            }
        }
        dumped.attempt(format!("dump {}", record.spec.name))
    }
}

/// Keeps CRIU's log of what has failed; of each pod the last one of a dump and of a restore.
pub fn keep_log(daemon: &Daemon, record: &PodRecord, log: &Path) {
    let Some(name) = log.file_name().map(|name| format!("{}-{}", record.spec.name, name.to_string_lossy())) else {
        return;
    };
    let folder = daemon.config.criu_logs();
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::copy(log, folder.join(&name))) {
        Ok(_) => {
            tracing::warn!(pod = record.spec.name, log = %folder.join(name).display(), "CRIU failed; its log is kept")
        }
        // It never came to the log.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => tracing::warn!(pod = record.spec.name, error = %e, "CRIU failed, and its log cannot be kept"),
    }
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
