//! Post-copy: a pod goes on here while a part of its memory is still on its source, where its processes stand still. Its shim puts that
//! in place ([`checkpoint::memory::lazy`]); podd is what it asks, and asks the source.
//!
//! The source keeps the pod until all has come, as it does anyway until it is told that the pod runs. Should it lose the pod meanwhile, or
//! the shim die, the pod cannot go on, and ends as one that crashes does.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::memory::lazy::{self, Request};
use checkpoint::process::pod_pid;
use nix::libc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::journal::{Migration, Role, Step};
use super::start::KILL_LIMIT;
use super::state::PodState;
use crate::api::ApiError;
use crate::error::{Attempt, Result};
use crate::peer::{Message, Peer, unexpected, unpack};
use crate::shim::client;
use crate::supervisor::Daemon;
use crate::sys::process::ProcessId;

/// A source that does not send memory within this is called once more.
const LATE: Duration = Duration::from_secs(10);
/// Between two tries to reach it.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// Between two looks whether a shim listens, or at the pod's processes.
const A_MOMENT: Duration = Duration::from_millis(1);
/// So often is a process looked for.
const TRIES: u32 = 5;

/// Why this host can take no part in it, if so.
#[must_use]
pub fn cannot(daemon: &Daemon) -> Option<String> {
    let host = &daemon.config.host;
    if !daemon.leaves_memory() {
        return Some(format!("the CRIU of {host} cannot leave memory behind; the one that scripts/criu builds can"));
    }
    (!lazy::is_possible()).then(|| format!("{host} has no /dev/userfaultfd: that takes Linux 6.1"))
}

/// Refuses unless this host and `to` can take part in it.
///
/// # Errors
/// That refusal, or the host does not answer.
pub async fn refuse_unless_possible(daemon: &Daemon, to: &str) -> Result<()> {
    let here = cannot(daemon);
    let there = match Peer::call(daemon, to).await?.ask(&Message::AskLater).await {
        Ok(Message::Later { cannot }) => cannot,
        // It hung up.
        _ => Some(format!("the podd of {to} does not know of it")),
    };
    match here.or(there) {
        None => Ok(()),
        Some(reason) => {
            Err(ApiError::conflict(format!("it cannot go by post-copy: {reason}")).cure("say `--mode auto`"))
        }
    }
}

/// Memory of a process of a pod that was dumped here to go to host `from`, and stands still; none: this host does not have it, and never
/// will.
///
/// # Errors
/// It cannot be read just now.
pub fn pages(daemon: &Daemon, from: &str, id: &str, process: i32, ranges: &[Range<u64>]) -> Result<Option<Vec<u8>>> {
    let migration = daemon
        .store
        .migration(id)?
        .filter(|m| m.role == Role::Source && m.peer == from && matches!(m.step, Step::Freezing | Step::Given));
    let Some(migration) = migration else { return Ok(None) };
    tokio::task::block_in_place(|| {
        if migration.step == Step::Given {
            crate::fault::point(&daemon.config.run, "source", "lent");
        }
        let find = || daemon.cgroup(&migration.pod_id).pids().into_iter().find(|pid| pod_pid(*pid) == Some(process));
        // What cannot be read just now looks like what is gone.
        let pid = (0..TRIES).find_map(|n| {
            std::thread::sleep(A_MOMENT * n);
            find()
        });
        let Some(pid) = pid else { return Ok(None) };
        match lazy::read(pid, ranges) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                Err(e).attempt("read the pod's memory")
            }
            read => {
                Ok(read.inspect_err(|e| tracing::error!(pod = migration.pod, error = %e, "its memory is lost")).ok())
            }
        }
    })
}

/// The task that fetches a pod's memory.
pub type Fetching = JoinHandle<Result<()>>;

/// Begins to fetch what the pod's shim asks for, which was started for that. Until [`end`], or [`stop`].
pub async fn begin(daemon: &Arc<Daemon>, migration: &Migration) {
    let Ok(pod) = daemon.pod(&migration.pod_id) else { return };
    stop(daemon, migration).await;
    *pod.fetching().await = Some(tokio::spawn(fetch(daemon.clone(), migration.clone())));
}

/// The same, unless it is fetched already. Before a pod is thawed: what is done to it then may wait for a page.
pub async fn go_on(daemon: &Arc<Daemon>, migration: &Migration) {
    let Ok(pod) = daemon.pod(&migration.pod_id) else { return };
    let is_fetched = pod.fetching().await.is_some();
    if !is_fetched {
        begin(daemon, migration).await;
    }
}

/// Waits until all memory has come.
///
/// # Errors
/// It never will, and the pod was killed.
pub async fn end(daemon: &Arc<Daemon>, migration: &Migration) -> Result<()> {
    go_on(daemon, migration).await;
    let pod = daemon.pod(&migration.pod_id)?;
    let fetching = pod.fetching().await.take();
    match fetching {
        Some(fetching) => fetching.await.attempt("fetch the pod's memory")?,
        None => Err(ApiError::failed("somebody else gave the pod up")),
    }
}

/// Fetches no more: before what was restored is given up, or restored anew.
pub async fn stop(daemon: &Daemon, migration: &Migration) {
    let Ok(pod) = daemon.pod(&migration.pod_id) else { return };
    if let Some(fetching) = pod.fetching().await.take() {
        fetching.abort();
        let _ = fetching.await;
    }
}

async fn fetch(daemon: Arc<Daemon>, migration: Migration) -> Result<()> {
    let mut fetch = Fetch { daemon: &daemon, migration: &migration, source: None, held: Vec::new() };
    let fetched = fetch.all().await;
    if let Err(e) = &fetched {
        tracing::error!(pod = migration.pod, error = %e, "the rest of its memory does not come");
        // First: as soon as nobody holds its memory, what is missing is zero.
        let killed = tokio::task::block_in_place(|| daemon.cgroup(&migration.pod_id).kill(KILL_LIMIT));
        let _ = killed.inspect_err(|e| tracing::error!(pod = migration.pod, error = %e, "it cannot be killed"));
    }
    fetched
}

struct Fetch<'a> {
    daemon: &'a Arc<Daemon>,
    migration: &'a Migration,
    source: Option<Peer>,
    held: Vec<OwnedFd>,
}

impl Fetch<'_> {
    async fn all(&mut self) -> Result<()> {
        let bundle = self.daemon.config.bundle(&self.migration.pod_id);
        let shim = client::shim(&bundle).map_err(|_| shim_gone())?;
        // It may be about to listen.
        let mut pager = loop {
            match UnixStream::connect(lazy::socket(&bundle)).await {
                Ok(pager) => break pager,
                Err(_) if shim.is_alive() => tokio::time::sleep(A_MOMENT).await,
                Err(_) => return Err(shim_gone()),
            }
        };
        loop {
            let size = pager.read_u32_le().await.map_err(|_| shim_gone())? as usize;
            let mut request = vec![0; size.min(Request::MOST)];
            pager.read_exact(&mut request).await.map_err(|_| shim_gone())?;
            let request = Request::decode(&request).attempt("understand the shim")?;
            let size = request.answer_size();
            let answer = match request {
                Request::Pages { process, ranges } => self.pages(shim, process, &ranges, size).await?,
                Request::Hold { descriptor } => {
                    self.held.push(lazy::hold(shim.pid, descriptor).attempt("hold the pod's memory")?);
                    vec![0]
                }
                Request::Nothing => return Ok(()),
                Request::Kill { reason } => return Err(ApiError::failed(reason)),
            };
            pager.write_all(&answer).await.map_err(|_| shim_gone())?;
        }
    }

    /// From the source, however long it is away, unless it is gone for good.
    async fn pages(&mut self, shim: ProcessId, process: i32, ranges: &[Range<u64>], size: usize) -> Result<Vec<u8>> {
        let [mut pause, longest] = PAUSES;
        let host = &self.migration.peer;
        loop {
            let asked = tokio::time::timeout(LATE, self.ask(process, ranges)).await;
            let error = match asked {
                Ok(Ok(Some(data))) if data.len() == size => return Ok(data),
                Ok(Ok(Some(_))) => return Err(ApiError::failed(format!("{host} sent another size of memory"))),
                Ok(Ok(None)) => return Err(ApiError::failed(format!("{host} has lost the pod's processes"))),
                Ok(Err(error)) => error.message,
                Err(_) => "no answer".to_owned(),
            };
            // Whatever it still says would be the answer to this question.
            self.source = None;
            if self.daemon.store.removed_hosts()?.contains(host) {
                return Err(ApiError::failed(format!("{host} is gone for good, and had a part of its memory")));
            }
            // Nobody else looks meanwhile.
            let record = self.daemon.pod(&self.migration.pod_id)?.record();
            if matches!(record.state, PodState::Running { init, .. } if !init.is_alive()) {
                return Err(ApiError::failed("it ended before all of its memory had come"));
            }
            if !shim.is_alive() {
                return Err(shim_gone());
            }
            tracing::warn!(pod = self.migration.pod, host, error, "its memory is still there; asking again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Asks once; none: it does not have it.
    async fn ask(&mut self, process: i32, ranges: &[Range<u64>]) -> Result<Option<Vec<u8>>> {
        let mut source = match self.source.take() {
            Some(source) => source,
            None => Peer::call(self.daemon, &self.migration.peer).await?,
        };
        let migration = self.migration.id.clone();
        source.send(&Message::AskPages { migration, process, ranges: ranges.to_vec() }).await?;
        let answer = match source.answer().await? {
            Message::Chunk { .. } => Some(source.receive_data().await?),
            Message::Packed { size, .. } => Some(unpack(&source.receive_data().await?, size)?),
            Message::Gone => None,
            other => return Err(unexpected(&other)),
        };
        self.source = Some(source);
        Ok(answer)
    }
}

fn shim_gone() -> ApiError {
    ApiError::failed("its shim died while its memory was still coming")
}
