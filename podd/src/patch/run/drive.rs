//! The coordinator of a run: writes each step down, has copies kept, has it done, looks at what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use super::keep::{newest, newest_without, spread};
use super::orders::{self, Checked, Order, Refusal};
use super::{Foretold, HostRun, Kept, Run, State, Step, Trouble, steps};
use crate::api::{ApiError, ErrorKind};
use crate::error::Result;
use crate::events::{self, What};
use crate::patch::decide::Mechanism;
use crate::patch::plan::Plan;
use crate::patch::policy::{RunPolicy, words};
use crate::patch::watch;
use crate::supervisor::Daemon;

/// Between two tries to have a majority keep the journal.
const PAUSE: Duration = Duration::from_secs(1);
/// Later hosts may look so long at what keeps them from being patched, so many at once: apt's lists and packages come over the
/// network.
const AHEAD: SignedDuration = SignedDuration::from_secs(300);
const AT_ONCE: usize = 16;
/// Between two looks at the coordinator of a run.
const LOOK: Duration = Duration::from_secs(20);
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
        Ok(copies) if copies >= run.majority() => {
            events::note(daemon, by, What::run(&run, None))?;
            return Ok(start(daemon, run));
        }
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
    // A run is to stand still at once, whichever hosts are away: whoever is known to carry it out is told first.
    let open = daemon.store.open_run()?.filter(|_| wish.what == Wish::Pause);
    if let Some(open) = open.filter(|open| wish.run.as_ref().is_none_or(|id| *id == open.id)) {
        let paused = match open.coordinator == daemon.config.host {
            true => steer(daemon, wish.clone()).await,
            false => orders::call_host(daemon, &open.coordinator, &orders::Call::Steer(wish.clone())).await,
        };
        if paused.is_ok() {
            return paused;
        }
    }
    let run = match newest(daemon, wish.run.as_deref()).await {
        // Of its own run a host needs nobody to know how it stands; what is grave still needs a majority.
        Err(error) => daemon.store.open_run()?.filter(|run| run.coordinator == daemon.config.host).ok_or(error)?,
        newest => newest?.ok_or_else(none)?,
    };
    if !run.is_open() {
        return Err(ApiError::conflict(format!("run {} is {}", run.id, run.state.word()))
            .cure("`podctl patch run` begins another one, if something is due"));
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
                return Err(ApiError::unreachable(format!("{copies} hosts answer, too few to take the run over"))
                    .cure("see with `podctl host ls` which do not; of those that are gone for good: `podctl host rm NAME --gone`"));
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
        Kept::Newer { coordinator } | Kept::Busy { coordinator, .. } => {
            return Err(ApiError::conflict(format!("{coordinator} has taken the run over already"))
                .cure("`podctl patch runs` shows how it stands"));
        }
    }
    let copies = spread(daemon, &run).await?;
    events::note(daemon, &run.by, What::run(&run, None))?;
    Ok((run, copies))
}

/// Whether a host answers no question at all.
pub async fn is_silent(daemon: &Daemon, host: &str) -> bool {
    orders::call_host::<Option<Run>>(daemon, host, &orders::Call::Open).await.is_err()
}

/// Those of these hosts that answer no question at all; this one does.
pub(super) async fn silent(daemon: &Daemon, hosts: impl IntoIterator<Item = &String>) -> Vec<String> {
    let others = hosts.into_iter().filter(|host| **host != daemon.config.host);
    let asked = others.map(async |host| is_silent(daemon, host).await.then(|| host.clone()));
    join_all(asked).await.into_iter().flatten().collect()
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
                return Err(ApiError::conflict(format!("run {} is stopped already", run.id))
                    .cure("`podctl patch resume` has it go on, `podctl patch cancel` ends it where it is"));
            }
            drive.write(daemon, None, |run| run.state = State::Paused { by }).await?;
        }
        Wish::Resume => {
            let despite = silent(daemon, &run.members).await;
            let resume = |run: &mut Run| {
                run.resume(&policy(daemon), Timestamp::now());
                run.despite = despite;
            };
            drive.write(daemon, None, resume).await?;
            start(daemon, drive.run());
        }
        Wish::Cancel => {
            // Whatever is under way comes to its end first.
            drive.write(daemon, None, |run| run.state = State::Paused { by: by.clone() }).await?;
            let _alone = drive.at_work.lock().await;
            let run = drive.run();
            let is_open = |host: &&HostRun| match host.step {
                Step::Waiting => false,
                // Its pods may be asleep.
                Step::Failed => host.mechanism == Mechanism::InPlace,
                step => !step.is_final(),
            };
            let told = run.hosts.iter().filter(is_open).map(async |host| {
                // What fails is still cordoned.
                let orders = [Some(Order::Resume), (host.step != Step::Failed).then_some(Order::Uncordon)];
                let mut remarks = Vec::new();
                for order in orders.into_iter().flatten() {
                    let what = if order == Order::Resume { "wake its pods up" } else { "uncordon it" };
                    let done = orders::order::<()>(daemon, &run, &host.host, order).await;
                    if let Err(refusal) = done {
                        let remark = format!(
                            "it could not be told to {what}: {}; it does so when it hears of the end",
                            refusal.why()
                        );
                        remarks.push((host.host.clone(), remark));
                    }
                }
                remarks
            });
            let remarks: Vec<(String, String)> = join_all(told).await.into_iter().flatten().collect();
            let end = |run: &mut Run| {
                for (host, remark) in remarks {
                    run.host_mut(&host).into_iter().for_each(|host| host.remarks.push(remark.clone()));
                }
                *run = ended(run.clone(), State::Cancelled { why: format!("by {by}") });
            };
            drive.write(daemon, None, end).await?;
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
        let (needed, begun) = (self.run().majority(), Instant::now());
        while copies < needed {
            let run = self.run();
            let sleeps = |host: &HostRun| {
                host.mechanism == Mechanism::InPlace && matches!(host.step, Step::Suspend | Step::Reboot)
            };
            if begun.elapsed() > steps::SILENCE && run.hosts.iter().any(sleeps) {
                // Pods do not sleep for that.
                let why = format!("{copies} of {} hosts answer, and pods are asleep", run.members.len());
                self.write(daemon, None, |run| run.state = State::Stopped { why }).await?;
            }
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
            // A coordinator before us may have died between a failure and what follows from it.
            self.trip(daemon).await?;
            self.may_go_on()?;
            let wave = self.run().wave();
            if wave.is_empty() {
                break;
            }
            self.make_sure_of_room(daemon, &wave).await?;
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
        let names: Vec<String> = later.iter().map(|host| host.host.clone()).collect();
        let mut looks = stream::iter(later)
            .map(|host| async {
                let check = Order::Check { mechanism: host.mechanism };
                let checked = orders::order::<Checked>(daemon, &run, &host.host, check).await;
                (host, checked)
            })
            .buffer_unordered(AT_ONCE);
        let mut seen = BTreeSet::new();
        let look = async {
            while let Some((host, checked)) = looks.next().await {
                let foretold = match checked {
                    Err(Refusal::Failed(ApiError { message: what, cure, .. })) => {
                        Some(Foretold { at: Timestamp::now(), what, cure })
                    }
                    Err(Refusal::Silent(ApiError { message: what, .. })) => Some(Foretold {
                        at: Timestamp::now(),
                        what,
                        cure: Some("see that podd runs there; it is looked at again in its turn".to_owned()),
                    }),
                    Ok(_) | Err(Refusal::Overtaken(_)) => None,
                };
                seen.insert(host.host.clone());
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
            looked = tokio::time::timeout(AHEAD.unsigned_abs(), look) => looked.unwrap_or(Ok(()))?,
            () = steered => {}
        }
        self.may_go_on()?;
        let at = Timestamp::now();
        let unseen = |run: &mut Run| {
            for host in run.hosts.iter_mut().filter(|host| names.contains(&host.host) && !seen.contains(&host.host)) {
                let what = format!("it was not done looking at itself within {}", words(AHEAD));
                host.foretold = Some(Foretold { at, what, cure: None });
            }
            run.looked_ahead = Some(at);
        };
        self.write(daemon, None, unseen).await.map(drop)
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
        let change = of_host(name, |host| host.fail(trouble.clone()));
        let mut failed = self.host(name)?;
        failed.fail(trouble.clone());
        match failed.step.is_grave() {
            true => self.write_for_sure(daemon, Some(name), change).await?,
            false => self.write(daemon, Some(name), change).await.map(drop)?,
        }
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
        self.trip(daemon).await
    }

    /// Stops the run if its breaker says so.
    async fn trip(&self, daemon: &Arc<Daemon>) -> Result<()> {
        let run = self.run();
        match run.breaker(&policy(daemon)).filter(|_| run.state == State::Running) {
            Some(why) => self.write(daemon, None, |run| run.state = State::Stopped { why }).await.map(drop),
            None => Ok(()),
        }
    }

    /// Stops the run if hosts of this wave, whose turn has not come, may not be away: others do not answer, or have stopped to do
    /// so since the plan was made. They may be silent for a moment.
    async fn make_sure_of_room(&self, daemon: &Arc<Daemon>, wave: &[String]) -> Result<()> {
        let run = self.run();
        let is_new = |host: &HostRun| host.step == Step::Waiting && host.mechanism >= Mechanism::InPlace && host.patch;
        if !wave.iter().all(|name| run.host(name).is_some_and(is_new)) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let others = run.members.iter().filter(|member| !wave.contains(member) && !run.despite.contains(member));
            let silent = silent(daemon, others).await;
            let limits = watch::policy(daemon).0.unwrap_or_default();
            let domains = daemon.domains.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(why) = no_room(wave, &silent, limits.limits.max_unavailable as usize, &domains) else {
                return Ok(());
            };
            self.may_go_on()?;
            if begun.elapsed() > steps::SILENCE {
                return self.write(daemon, None, |run| run.state = State::Stopped { why }).await.map(drop);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Looks, for as long as podd runs, whether a run stands still because its coordinator is away, and has people told: it cannot do so
/// itself. Of the others, the first that answers tells.
pub async fn watch_coordinator(daemon: Arc<Daemon>) {
    let (mut silent, mut told): (Option<Instant>, Option<(String, u64)>) = (None, None);
    loop {
        tokio::time::sleep(LOOK).await;
        let open = daemon.store.open_run().ok().flatten();
        let Some(run) = open.filter(|run| run.coordinator != daemon.config.host && run.state == State::Running) else {
            silent = None;
            continue;
        };
        if !is_silent(&daemon, &run.coordinator).await {
            silent = None;
            continue;
        }
        let this = (run.id.clone(), run.term);
        let silent = silent.get_or_insert_with(Instant::now).elapsed();
        if told.as_ref() != Some(&this) && stands_still(&run, silent, Timestamp::now()) && tells(&daemon, &run).await {
            if let Err(error) = events::note(&daemon, events::PODD, What::stands_still(&run)) {
                tracing::error!(error = error.message, "an event cannot be written down");
            }
            told = Some(this);
        }
    }
}

/// Whether a run whose coordinator is silent stands still: it may boot in its own turn.
fn stands_still(run: &Run, silent: Duration, now: Timestamp) -> bool {
    let boots = run.host(&run.coordinator).and_then(|host| host.back_by).is_some_and(|by| by > now);
    silent > steps::SILENCE && !boots
}

/// Whether no member before this one answers.
async fn tells(daemon: &Arc<Daemon>, run: &Run) -> bool {
    for member in run.members.iter().filter(|member| **member != run.coordinator) {
        if *member == daemon.config.host {
            return true;
        }
        if !is_silent(daemon, member).await {
            return false;
        }
    }
    false
}

/// Why hosts of a wave may not be away while others are silent; none: they may.
fn no_room(
    wave: &[String],
    silent: &[String],
    most: usize,
    domains: &BTreeMap<String, Option<String>>,
) -> Option<String> {
    let first = silent.first()?;
    let domain = |host: &String| domains.get(host).cloned().flatten();
    let alike =
        |host: &String| domain(host).and_then(|own| silent.iter().find(|other| domain(other) == Some(own.clone())));
    if let Some((host, other)) = wave.iter().find_map(|host| Some((host, alike(host)?))) {
        return Some(format!("{other}, of the same domain as {host}, does not answer"));
    }
    (silent.len() + wave.len() > most.max(1))
        .then(|| format!("{first} does not answer, and no more than max-unavailable may be away"))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_that_are_silent_are_away_too() {
        let wave = ["a".to_owned()];
        let silent = ["c".to_owned()];
        let racks = |racks: [&str; 2]| {
            ["a", "c"].map(str::to_owned).into_iter().zip(racks.map(|r| Some(r.to_owned()))).collect()
        };
        let none = BTreeMap::new();
        assert_eq!(no_room(&wave, &[], 1, &none), None);
        assert_eq!(no_room(&wave, &silent, 2, &none), None);
        assert!(no_room(&wave, &silent, 1, &none).unwrap().contains("max-unavailable"));
        assert_eq!(no_room(&wave, &silent, 2, &racks(["r1", "r2"])), None);
        assert!(no_room(&wave, &silent, 2, &racks(["r1", "r1"])).unwrap().contains("of the same domain as a"));
    }

    #[test]
    fn a_coordinator_that_boots_in_its_turn_is_waited_for() {
        let at = |second| Timestamp::new(second, 0).unwrap();
        let step = crate::patch::plan::Step {
            wave: 1,
            host: "a".to_owned(),
            mechanism: Mechanism::Evacuate,
            patch: true,
            moves: Vec::new(),
            sleeps: Vec::new(),
            takes_s: None,
            why: String::new(),
        };
        let plan = Plan { steps: vec![step], left: Vec::new() };
        let mut run = Run::new(&plan, vec!["a".to_owned(), "b".to_owned()], "a", "root", at(0));
        let long = steps::SILENCE * 2;
        assert!(stands_still(&run, long, at(10)) && !stands_still(&run, Duration::ZERO, at(10)));
        run.hosts[0].back_by = Some(at(20));
        assert!(!stands_still(&run, long, at(10)) && stands_still(&run, long, at(21)), "it should be back");
    }
}
