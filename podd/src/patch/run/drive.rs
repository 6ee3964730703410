//! The coordinator of a run: writes each step down, has copies kept, has it done, looks at what came of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use super::keep::{newest, newest_without, spread};
use super::orders::{self, Checked, Order, Refusal};
use super::{Foretold, HostRun, Kept, Run, State, Step, Trouble};
use crate::api::{ApiError, ErrorKind};
use crate::error::Result;
use crate::events::{self, What};
use crate::patch::plan::Plan;
use crate::patch::policy::RunPolicy;
use crate::patch::watch;
use crate::supervisor::Daemon;

/// Between two tries to have a majority keep the journal.
const PAUSE: Duration = Duration::from_secs(1);
/// Later hosts may look so long at what keeps them from being patched, so many at once: apt's lists and packages come over the
/// network.
const AHEAD: Duration = Duration::from_secs(300);
const AT_ONCE: usize = 16;
/// A run is begun so often, should another one be begun at the same moment.
const TRIES: u32 = 4;

/// What an operator wants of a run that is under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steer {
    /// The run; none: the open one.
    pub run: Option<String>,
    /// Who wants it.
    pub by: String,
    /// What.
    pub what: Wish,
}

/// See [`Steer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Begin nothing more.
    Pause,
    /// Go on.
    Resume,
    /// End it where it is.
    Cancel,
}

/// The run that this host carries out.
#[derive(Debug)]
pub struct Drive {
    run: Mutex<Run>,
    /// Held by whoever carries it out: one at a time.
    at_work: AsyncMutex<()>,
}

/// Why a step did not come to its end.
pub(super) enum Halt {
    /// The run is not to go on, here or at all; or the journal cannot be written.
    Run(ApiError),
    /// The host could not be patched.
    Host(Box<Trouble>),
}

impl From<ApiError> for Halt {
    fn from(error: ApiError) -> Self {
        Self::Run(error)
    }
}

pub(super) type Done = std::result::Result<(), Halt>;

/// Begins a run of this plan.
///
/// # Errors
/// Another one is under way, or too few hosts answer.
pub async fn begin(daemon: &Arc<Daemon>, plan: &Plan, by: &str) -> Result<Run> {
    for _ in 1..TRIES {
        match try_to_begin(daemon, plan, by).await {
            // Two that begin at the same moment, as cron has them do, can each keep the other one from a majority.
            Err(error) if error.kind == ErrorKind::Conflict && newest(daemon, None).await?.is_none() => {
                tokio::time::sleep(PAUSE.mul_f64(rand::random())).await;
            }
            tried => return tried,
        }
    }
    try_to_begin(daemon, plan, by).await
}

async fn try_to_begin(daemon: &Arc<Daemon>, plan: &Plan, by: &str) -> Result<Run> {
    if let Some(open) = newest(daemon, None).await? {
        return Err(busy(&open));
    }
    let members = crate::server::host_names(daemon).await?;
    let run = Run::new(plan, members, &daemon.config.host, by, Timestamp::now());
    if daemon.store.put_run(&run, &[])? != Kept::Yes {
        return Err(daemon
            .store
            .open_run()?
            .map_or_else(|| ApiError::conflict("another run is under way"), |o| busy(&o)));
    }
    let error = match spread(daemon, &run).await {
        Ok(copies) if copies >= run.majority() => return Ok(start(daemon, run)),
        Ok(copies) => {
            let (needed, all) = (run.majority(), run.members.len());
            ApiError::unreachable(format!("{copies} of {all} hosts answer, and a run needs {needed}"))
                .cure("see with `podctl host ls` which do not")
        }
        Err(error) => error,
    };
    let cancelled = ended(run, State::Cancelled { why: error.message.clone() });
    daemon.store.put_run(&cancelled, &[])?;
    let _ = spread(daemon, &cancelled).await;
    Err(error)
}

/// Why no other run can begin.
#[must_use]
pub fn busy(open: &Run) -> ApiError {
    let (id, coordinator, how) = (&open.id, &open.coordinator, open.state.word());
    ApiError::conflict(format!("run {id}, which {coordinator} carries out, is {how}")).cure(match open.state {
        State::Running => "wait for its end: `podctl patch runs`",
        _ => "`podctl patch resume` has it go on, `podctl patch cancel` ends it where it is",
    })
}

fn ended(run: Run, state: State) -> Run {
    Run { state, ended: Some(Timestamp::now()), revision: run.revision + 1, ..run }
}

/// Goes on with a run that this host carries out; at its start.
pub fn go_on(daemon: &Arc<Daemon>) {
    match daemon.store.open_run() {
        Ok(Some(run)) if run.coordinator == daemon.config.host && run.state == State::Running => {
            start(daemon, run);
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "the journal of patch runs cannot be read"),
    }
}

fn start(daemon: &Arc<Daemon>, run: Run) -> Run {
    let drive = drive(daemon, &run);
    let worker = daemon.clone();
    tokio::spawn(async move {
        let _alone = drive.at_work.lock().await;
        if let Err(error) = drive.to_the_end(&worker).await {
            let run = drive.run();
            tracing::warn!(run = run.id, error = error.message, "the run stands still");
        }
    });
    run
}

/// The one drive of a run, made if there is none.
fn drive(daemon: &Daemon, run: &Run) -> Arc<Drive> {
    let mut driving = daemon.driving.lock().unwrap_or_else(PoisonError::into_inner);
    match &*driving {
        Some(drive) if drive.run().id == run.id && drive.run().term == run.term => drive.clone(),
        _ => {
            let drive = Arc::new(Drive { run: Mutex::new(run.clone()), at_work: AsyncMutex::default() });
            *driving = Some(drive.clone());
            drive
        }
    }
}

/// Does what an operator wants with a run, wherever it is carried out. If its coordinator does not answer, this host takes over.
///
/// # Errors
/// There is no such run, it has ended, or too few hosts answer.
pub async fn steer_any(daemon: &Arc<Daemon>, wish: Steer) -> Result<Run> {
    let none = || {
        let what =
            wish.run.as_ref().map_or_else(|| "no run is under way".to_owned(), |run| format!("there is no run {run}"));
        ApiError::not_found(what).cure("`podctl patch runs` lists them")
    };
    let run = match newest(daemon, wish.run.as_deref()).await {
        // Of its own run a host needs nobody to know how it stands; what is grave still needs a majority.
        Err(error) => daemon.store.open_run()?.filter(|run| run.coordinator == daemon.config.host).ok_or(error)?,
        newest => newest?.ok_or_else(none)?,
    };
    if !run.is_open() {
        return Err(ApiError::conflict(format!("run {} is {}", run.id, run.state.word())));
    }
    if run.coordinator == daemon.config.host {
        return steer(daemon, wish).await;
    }
    let call = orders::Call::Steer(wish.clone());
    match orders::call_host(daemon, &run.coordinator, &call).await {
        Err(_) if is_silent(daemon, &run.coordinator).await => {
            if wish.what == Wish::Pause {
                let message = format!("{} carries it out, and does not answer", run.coordinator);
                return Err(ApiError::unreachable(message)
                    .cure("`podctl patch resume` has this host take over, `podctl patch cancel` ends the run"));
            }
            let (run, copies) = take_over(daemon, run, |_| ()).await?;
            if copies < run.majority() {
                return Err(ApiError::unreachable(format!("{copies} hosts answer, too few to take the run over")));
            }
            steer(daemon, wish).await
        }
        answer => answer,
    }
}

/// Has the open run go on without these hosts, which leave the fleet; this host takes it over if one of them carried it out. The run,
/// if it was about them.
///
/// # Errors
/// Another host carries it out, or too few of the rest answer.
pub async fn dismiss(daemon: &Arc<Daemon>, gone: &[String], by: &str) -> Result<Option<Run>> {
    let Some(run) = newest_without(daemon, None, gone).await? else { return Ok(None) };
    let counts_on = run.members.iter().any(|member| gone.contains(member));
    let (run, copies) = if run.coordinator == daemon.config.host {
        let drive = drive(daemon, &run);
        // Also if this has been written down before, and the others have not heard of it.
        let copies = drive.write(daemon, None, |run| run.dismiss(gone, Timestamp::now())).await?;
        (drive.run(), copies)
    } else if !counts_on {
        return Ok(None);
    } else if gone.contains(&run.coordinator) {
        let why = format!("{by} removed {}, which carried it out, from the fleet", run.coordinator);
        take_over(daemon, run, |run| {
            run.dismiss(gone, Timestamp::now());
            run.state = State::Stopped { why };
        })
        .await?
    } else {
        let (id, coordinator) = (&run.id, &run.coordinator);
        return Err(ApiError::conflict(format!("run {id}, which {coordinator} carries out, counts on them"))
            .cure(format!("give this command on {coordinator}, or end the run first: `podctl patch cancel`")));
    };
    if copies < run.majority() {
        return Err(ApiError::unreachable(format!("{copies} of the {} hosts that are left answer", run.members.len()))
            .cure("see with `podctl host ls` which do not; name all that are gone for good in one command"));
    }
    Ok(Some(run))
}

/// Makes this host the one that carries a run out, with a change; so many hosts keep a copy that says so.
async fn take_over(daemon: &Arc<Daemon>, run: Run, change: impl FnOnce(&mut Run)) -> Result<(Run, usize)> {
    tracing::warn!(run = run.id, from = run.coordinator, "taking the run over");
    let mut run = Run { coordinator: daemon.config.host.clone(), term: run.term + 1, revision: 0, ..run };
    change(&mut run);
    match daemon.store.put_run(&run, &[])? {
        Kept::Yes => {}
        kept => return Err(ApiError::conflict(format!("the run cannot be taken over: {kept:?}"))),
    }
    let copies = spread(daemon, &run).await?;
    Ok((run, copies))
}

/// Whether a host answers no question at all.
pub async fn is_silent(daemon: &Daemon, host: &str) -> bool {
    orders::call_host::<Option<Run>>(daemon, host, &orders::Call::Open).await.is_err()
}

/// Does what an operator wants with a run that this host carries out.
///
/// # Errors
/// It does not; the store's.
pub async fn steer(daemon: &Arc<Daemon>, wish: Steer) -> Result<Run> {
    let run = daemon.store.open_run()?.filter(|run| run.coordinator == daemon.config.host);
    let run = run.filter(|run| wish.run.as_ref().is_none_or(|id| *id == run.id));
    let run = run.ok_or_else(|| ApiError::not_found("this host carries no run out"))?;
    let drive = drive(daemon, &run);
    let by = wish.by.clone();
    match wish.what {
        Wish::Pause => {
            if let State::Stopped { .. } = run.state {
                return Err(ApiError::conflict(format!("run {} is stopped already", run.id)));
            }
            drive.write(daemon, None, |run| run.state = State::Paused { by }).await?;
        }
        Wish::Resume => {
            drive.write(daemon, None, |run| run.resume(&policy(daemon), Timestamp::now())).await?;
            start(daemon, drive.run());
        }
        Wish::Cancel => {
            // Whatever is under way comes to its end first.
            drive.write(daemon, None, |run| run.state = State::Paused { by: by.clone() }).await?;
            let _alone = drive.at_work.lock().await;
            let run = drive.run();
            let is_open = |host: &&HostRun| match host.step {
                Step::Waiting => false,
                Step::Failed => !host.asleep.is_empty(),
                step => !step.is_final(),
            };
            for host in run.hosts.iter().filter(is_open) {
                for order in [Order::Resume, Order::Uncordon] {
                    let _: std::result::Result<(), Refusal> = orders::order(daemon, &run, &host.host, order).await;
                }
            }
            drive
                .write(daemon, None, |run| *run = ended(run.clone(), State::Cancelled { why: format!("by {by}") }))
                .await?;
        }
    }
    Ok(drive.run())
}

impl Drive {
    pub(super) fn run(&self) -> Run {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn host(&self, name: &str) -> Result<HostRun> {
        self.run().host(name).cloned().ok_or_else(|| ApiError::failed(format!("{name} is no host of this run")))
    }

    /// Refuses unless the run is to go on.
    pub(super) fn may_go_on(&self) -> Result<()> {
        match self.run().state {
            State::Running => Ok(()),
            other => Err(ApiError::conflict(format!("the run is {}", other.word()))),
        }
    }

    /// Writes a change down, and has copies kept: so many are.
    async fn write(&self, daemon: &Arc<Daemon>, about: Option<&str>, change: impl FnOnce(&mut Run)) -> Result<usize> {
        let run = {
            let mut held = self.run.lock().unwrap_or_else(PoisonError::into_inner);
            let mut run = held.clone();
            change(&mut run);
            run.revision += 1;
            let is_told = held.state != run.state || about.is_some();
            let host = about.and_then(|name| run.host(name));
            let event = is_told.then(|| events::entry(daemon, &run.by, What::run(&run, host)));
            match daemon.store.put_run(&run, event.as_slice())? {
                Kept::Yes => {}
                Kept::Newer { coordinator } | Kept::Busy { coordinator, .. } => {
                    return Err(ApiError::conflict(format!("{coordinator} has taken the run over")));
                }
            }
            events::tell(daemon, event.as_slice());
            *held = run.clone();
            run
        };
        if let Some(host) = about.and_then(|name| run.host(name)) {
            crate::fault::point(&daemon.config.run, "run", host.step.word());
        }
        match spread(daemon, &run).await {
            Err(error) => {
                // Somebody else carries it out: what we have is not the newest.
                *self.run.lock().unwrap_or_else(PoisonError::into_inner) =
                    Run { state: State::Cancelled { why: error.message.clone() }, ..run };
                Err(error)
            }
            copies => copies,
        }
    }

    /// The same, and does not return before a majority keeps a copy.
    async fn write_for_sure(
        &self,
        daemon: &Arc<Daemon>,
        about: Option<&str>,
        change: impl FnOnce(&mut Run),
    ) -> Result<()> {
        let mut copies = self.write(daemon, about, change).await?;
        let needed = self.run().majority();
        while copies < needed {
            tracing::warn!(copies, needed, "too few hosts keep the run's journal; waiting for them");
            tokio::time::sleep(PAUSE).await;
            self.may_go_on()?;
            copies = spread(daemon, &self.run()).await?;
        }
        Ok(())
    }

    pub(super) async fn begin(&self, daemon: &Arc<Daemon>, host: &str, step: Step) -> Result<()> {
        let change = of_host(host, |host| host.begin(step, Timestamp::now()));
        match step.is_grave() {
            true => self.write_for_sure(daemon, Some(host), change).await,
            false => self.write(daemon, Some(host), change).await.map(drop),
        }
    }

    pub(super) async fn change(
        &self,
        daemon: &Arc<Daemon>,
        host: &str,
        change: impl FnOnce(&mut HostRun),
    ) -> Result<()> {
        self.write_for_sure(daemon, None, of_host(host, change)).await
    }

    async fn to_the_end(&self, daemon: &Arc<Daemon>) -> Result<()> {
        // Somebody may have taken over while we were away: nothing is done before a majority has heard of us.
        self.may_go_on()?;
        self.write_for_sure(daemon, None, |_| ()).await?;
        self.look_ahead(daemon).await?;
        loop {
            self.may_go_on()?;
            let wave = self.run().wave();
            if wave.is_empty() {
                break;
            }
            for ended in join_all(wave.iter().map(|host| self.patch(daemon, host))).await {
                ended?;
            }
        }
        self.write(daemon, None, |run| (run.state, run.ended) = (State::Done, Some(Timestamp::now()))).await.map(drop)
    }

    /// Before the first pod moves, people are told what keeps hosts from being patched whose turn comes later. It keeps nobody
    /// from going on: it may be mended by then, and is looked at again.
    async fn look_ahead(&self, daemon: &Arc<Daemon>) -> Result<()> {
        let run = self.run();
        let first = run.wave();
        let is_later = |host: &&HostRun| !first.contains(&host.host) && host.steps().contains(&Step::Check);
        let later: Vec<HostRun> = run.hosts.iter().filter(is_later).cloned().collect();
        let is_new = run.hosts.iter().all(|host| host.step == Step::Waiting);
        if run.looked_ahead.is_some() || !is_new || later.is_empty() {
            return Ok(());
        }
        let mut looks = stream::iter(later)
            .map(|host| async {
                let check = Order::Check { mechanism: host.mechanism };
                let checked = orders::order::<Checked>(daemon, &run, &host.host, check).await;
                (host, checked)
            })
            .buffer_unordered(AT_ONCE);
        let look = async {
            while let Some((host, checked)) = looks.next().await {
                let foretold = match checked {
                    Err(Refusal::Failed(ApiError { message: what, cure, .. })) => {
                        Some(Foretold { at: Timestamp::now(), what, cure })
                    }
                    // Who cannot be asked now is asked in its turn.
                    Ok(_) | Err(Refusal::Silent(_) | Refusal::Overtaken(_)) => None,
                };
                if foretold.is_some() || host.foretold.is_some() {
                    self.write(daemon, Some(&host.host), of_host(&host.host, |host| host.foretold = foretold)).await?;
                }
            }
            Ok::<_, ApiError>(())
        };
        let steered = async {
            while self.may_go_on().is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            looked = tokio::time::timeout(AHEAD, look) => looked.unwrap_or(Ok(()))?,
            () = steered => {}
        }
        self.may_go_on()?;
        self.write(daemon, None, |run| run.looked_ahead = Some(Timestamp::now())).await.map(drop)
    }

    /// All steps of a host.
    async fn patch(&self, daemon: &Arc<Daemon>, name: &str) -> Result<()> {
        loop {
            self.may_go_on()?;
            let host = self.host(name)?;
            if host.step.is_final() {
                return Ok(());
            }
            match self.perform(daemon, &host).await {
                // It may have been found that there is nothing to do.
                Ok(()) if self.host(name)?.step.is_final() => {}
                Ok(()) => self.begin(daemon, name, host.next()).await?,
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Host(trouble)) => self.fail(daemon, name, *trouble).await?,
            }
        }
    }

    async fn fail(&self, daemon: &Arc<Daemon>, name: &str, trouble: Trouble) -> Result<()> {
        // It may have been removed from the fleet meanwhile.
        if self.host(name)?.step.is_final() {
            return Ok(());
        }
        self.write(daemon, Some(name), of_host(name, |host| host.fail(trouble))).await?;
        // What was not touched gets its pods back first, breaker or not.
        let host = self.host(name)?;
        if host.step == Step::PutBack {
            let remark = match self.perform(daemon, &host).await {
                Ok(()) => None,
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Host(more)) => Some(more.what),
            };
            let change = of_host(name, |host| {
                host.remarks.extend(remark);
                host.begin(Step::Failed, Timestamp::now());
            });
            self.write(daemon, Some(name), change).await?;
        }
        if let Some(why) = self.run().breaker(&policy(daemon)) {
            self.write(daemon, None, |run| run.state = State::Stopped { why }).await?;
        }
        Ok(())
    }
}

/// A change of one host.
fn of_host(name: &str, change: impl FnOnce(&mut HostRun)) -> impl FnOnce(&mut Run) {
    move |run| {
        if let Some(host) = run.host_mut(name) {
            change(host);
        }
    }
}

pub(super) fn policy(daemon: &Daemon) -> RunPolicy {
    watch::policy(daemon).0.map(|policy| policy.run.clone()).unwrap_or_default()
}
