//! What a coordinator has hosts do, and how it hears of it.
//!
//! An order is given with the run's term: a host that knows of a newer coordinator refuses it. What takes long goes on in a task
//! of the host, whoever hangs up; the coordinator asks again until it has ended. A coordinator that starts anew gives the order
//! anew: all of them may be carried out twice.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{Change, Kept, Run, State};
use crate::api::{ApiError, HealthState};
use crate::error::{Attempt, Result};
use crate::patch::cordon::Cordon;
use crate::patch::decide::Mechanism;
use crate::patch::mechanism;
use crate::peer::{self, Message, Peer};
use crate::supervisor::Daemon;

/// An answer comes after this, if only that it goes on.
const SOON: Duration = Duration::from_millis(500);
/// What has ended is remembered so long after the last question.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// A host that was asked to leave takes no pods for so long.
const LEAVES_WITHIN: SignedDuration = SignedDuration::from_mins(5);
/// Nothing is said for longer.
const SILENT: Duration = Duration::from_secs(15);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(300);

/// What one podd asks another about runs. JSON: a podd that does not know a question says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "call", content = "of")]
pub enum Call {
    /// Keep this copy; answered by [`Kept`].
    Keep(Box<Run>),
    /// Which run do you know that has not ended? Answered by an `Option` of [`Run`].
    Open,
    /// What do you know of this run? Answered by an `Option` of [`Run`].
    Copy {
        /// Its id.
        run: String,
    },
    /// Carry an order out; answered by [`Report`].
    Do {
        /// The run.
        run: String,
        /// Its term.
        term: u64,
        /// Names this order among those of the run.
        number: u64,
        /// What to do.
        order: Order,
    },
    /// Why do you take no pods? Answered by an `Option` of [`Cordon`].
    Cordoned,
    /// How are your pods? Answered by a list of [`PodStands`].
    Pods,
    /// You are about to leave the fleet: take no pods for a while, unless you have some. Answered by a list of [`PodStands`].
    Leave,
    /// Ask the authority which hosts there are: one has joined. Answered by nothing.
    Learn,
    /// These hosts have left the fleet. Answered by nothing.
    Removed {
        /// Their names.
        hosts: Vec<String>,
        /// Who says so.
        by: String,
    },
    /// Which hosts have left the fleet? Answered by their names.
    WhoLeft,
    /// You carry a run out: do this with it. Answered by [`Run`].
    Steer(super::drive::Steer),
}

/// Something that a host does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Order {
    /// Tell your boot's id.
    Boot,
    /// Tell how your pods are: a list of [`PodStands`].
    Pods,
    /// See whether you can be patched, and fetch what that needs: [`Checked`].
    Check {
        /// By this means.
        mechanism: Mechanism,
    },
    /// Take no pods.
    Cordon {
        /// Why.
        reason: String,
    },
    /// Take pods again.
    Uncordon,
    /// Send a clone of a pod there.
    Rehearse {
        /// Its id.
        pod: String,
        /// The host.
        to: String,
    },
    /// Send a pod there: [`Moved`].
    Move {
        /// Its id.
        pod: String,
        /// The host.
        to: String,
    },
    /// Install this.
    Patch {
        /// What.
        change: Change,
    },
    /// Load the live patches that there are.
    LivePatch,
    /// Start programs again that run with what was replaced.
    Restart,
    /// Put all running pods to sleep, on disk; they wake up with the host.
    Suspend,
    /// Wake up those that were put to sleep.
    Resume,
    /// Boot, unless you have since this boot.
    Reboot {
        /// Its id.
        boot_id: String,
    },
    /// See whether all is well: a list of [`Proof`](super::Proof)s.
    Prove {
        /// What was to be done.
        change: Change,
        /// The boot before; none: it was not to boot.
        boot_id: Option<String>,
        /// Hosts that should answer.
        peers: Vec<String>,
    },
}

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodStands {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// As `podctl ls` shows it.
    pub state: String,
    /// It comes, or leaves, and where it belongs is being settled.
    pub is_moving: bool,
    /// What its health probe says, if it has one.
    pub health: Option<HealthState>,
    /// No two pods of a group go to one host.
    #[serde(default)]
    pub group: Option<String>,
    /// How long it slept, the last time that its host booted, in ms.
    #[serde(default)]
    pub slept_ms: Option<f64>,
    /// It sleeps for a boot of its host, or did not wake up from that; none: its podd does not say.
    #[serde(default)]
    pub wakes: Option<bool>,
    /// Its host is about to wake it up.
    #[serde(default)]
    pub is_waking: bool,
}

/// A host can be patched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// What will be installed; none: there is nothing to do any more.
    pub change: Option<Change>,
    /// What people should know.
    pub remarks: Vec<String>,
}

/// A pod is on the other host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Moved {
    /// How long it stood still, in ms, if that is known: it may have gone before somebody asked for it again.
    pub blackout_ms: Option<f64>,
    /// It is nowhere, as it has ended.
    #[serde(default)]
    pub has_ended: bool,
    /// It has gone to this host before, instead.
    #[serde(default)]
    pub at: Option<String>,
}

/// What a host says of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// It goes on.
    Working,
    /// It is done.
    Done {
        /// What came of it.
        value: Value,
    },
    /// It could not be done.
    Failed {
        /// Why.
        error: ApiError,
    },
    /// The host does not know this run in this term.
    Stale,
}

/// Why an order was not carried out.
#[derive(Debug)]
pub enum Refusal {
    /// The host cannot do it.
    Failed(ApiError),
    /// It does not answer, or not in words that are understood here.
    Silent(ApiError),
    /// Another host carries the run out now.
    Overtaken(ApiError),
}

impl Refusal {
    /// In words.
    #[must_use]
    pub fn why(&self) -> &str {
        let (Self::Failed(error) | Self::Silent(error) | Self::Overtaken(error)) = self;
        &error.message
    }
}

/// Orders under way on this host.
#[derive(Debug, Default)]
pub struct Hand {
    work: Mutex<HashMap<(String, u64), Work>>,
    /// Pods that sleep while their host boots are looked after: nobody else need.
    pub watching: AtomicBool,
    /// They are being woken up, or about to be.
    pub waking: AtomicBool,
    /// Held by whoever changes the host itself.
    turn: AsyncMutex<()>,
}

#[derive(Debug)]
struct Work {
    /// When it was asked for last.
    asked: Instant,
    said: watch::Receiver<Report>,
}

impl Hand {
    /// The right to change the host itself, after whoever has it.
    pub async fn turn(&self) -> impl Drop + '_ {
        self.turn.lock().await
    }
}

impl Order {
    /// Whether no other order may be carried out meanwhile.
    fn is_alone(&self) -> bool {
        match self {
            Self::Check { .. }
            | Self::Patch { .. }
            | Self::LivePatch
            | Self::Restart
            | Self::Suspend
            | Self::Resume
            | Self::Reboot { .. } => true,
            Self::Boot | Self::Pods | Self::Cordon { .. } | Self::Uncordon | Self::Rehearse { .. } => false,
            Self::Move { .. } | Self::Prove { .. } => false,
        }
    }
}

/// Carries an order out, or tells how far it is.
///
/// # Errors
/// The store's.
pub async fn carry_out(daemon: &Arc<Daemon>, run: &str, term: u64, number: u64, order: Order) -> Result<Report> {
    // What takes pods along asks itself whether the run goes on: not an old copy.
    let takes_pods = matches!(order, Order::Move { .. } | Order::Suspend | Order::Reboot { .. });
    let known = daemon.store.run(run)?.filter(|known| known.term == term && known.is_open());
    if known.is_none_or(|known| takes_pods && known.state != State::Running) {
        return Ok(Report::Stale);
    }
    let mut said = {
        let mut work = daemon.hand.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.retain(|_, work| work.asked.elapsed() < REMEMBERED || matches!(*work.said.borrow(), Report::Working));
        let begin = || {
            let (say, said) = watch::channel(Report::Working);
            let (daemon, run) = (daemon.clone(), run.to_owned());
            tokio::spawn(async move {
                let _turn = if order.is_alone() { Some(daemon.hand.turn.lock().await) } else { None };
                let report = match mechanism::perform(&daemon, (&run, term), order).await {
                    Ok(value) => Report::Done { value },
                    Err(error) => Report::Failed { error },
                };
                say.send_replace(report);
            });
            Work { asked: Instant::now(), said }
        };
        let work = work.entry((run.to_owned(), number)).or_insert_with(begin);
        work.asked = Instant::now();
        work.said.clone()
    };
    let ended = tokio::time::timeout(SOON, said.wait_for(|report| !matches!(report, Report::Working))).await;
    Ok(match ended {
        Ok(Ok(report)) => report.clone(),
        Ok(Err(_)) => Report::Failed { error: ApiError::failed("the daemon stumbled over an order") },
        Err(_) => Report::Working,
    })
}

/// Gives an order and waits until it has been carried out.
///
/// # Errors
/// [`Refusal`].
pub async fn order<T: DeserializeOwned>(
    daemon: &Arc<Daemon>,
    run: &Run,
    host: &str,
    order: Order,
) -> std::result::Result<T, Refusal> {
    let number = rand::random();
    let mut told = false;
    loop {
        let call = Call::Do { run: run.id.clone(), term: run.term, number, order: order.clone() };
        let report = match host == daemon.config.host {
            true => carry_out(daemon, &run.id, run.term, number, order.clone()).await,
            false => call_host(daemon, host, &call).await,
        };
        match report.map_err(Refusal::Silent)? {
            Report::Done { value } => {
                return serde_json::from_value(value).attempt("understand the host's answer").map_err(Refusal::Failed);
            }
            Report::Failed { error } => return Err(Refusal::Failed(error)),
            Report::Stale if told => {
                let what = format!("{host} takes orders from another coordinator");
                return Err(Refusal::Overtaken(ApiError::conflict(what)));
            }
            Report::Stale => {
                told = true;
                let newest = daemon.store.run(&run.id).map_err(|e| Refusal::Silent(e.into()))?;
                let newest = newest.unwrap_or_else(|| run.clone());
                // From this host, it is a copy that was written since.
                if let Kept::Newer { coordinator } = keep_at(daemon, host, &newest).await.map_err(Refusal::Silent)?
                    && coordinator != daemon.config.host
                {
                    let what = format!("{coordinator} has taken the run over");
                    return Err(Refusal::Overtaken(ApiError::conflict(what)));
                }
            }
            Report::Working => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Has a host keep a copy.
///
/// # Errors
/// It does not answer, or cannot.
pub async fn keep_at(daemon: &Arc<Daemon>, host: &str, run: &Run) -> Result<Kept> {
    match host == daemon.config.host {
        true => Ok(daemon.store.put_run(run, &[])?),
        false => call_host(daemon, host, &Call::Keep(Box::new(run.clone()))).await,
    }
}

/// Asks another host.
///
/// # Errors
/// It does not answer, or not in words that are understood here.
pub async fn call_host<T: DeserializeOwned>(daemon: &Daemon, host: &str, call: &Call) -> Result<T> {
    let asked = async { ask(&mut Peer::call(daemon, host).await?, host, call).await };
    let silent = || ApiError::unreachable(format!("{host} does not answer"));
    // Whoever steers a run may have to ask all hosts.
    let limit = if matches!(call, Call::Steer(_)) { SILENT * 4 } else { SILENT };
    tokio::time::timeout(limit, asked).await.map_err(|_| silent())?
}

/// Asks whoever is at the other end.
///
/// # Errors
/// As [`call_host`].
pub async fn ask<T: DeserializeOwned>(peer: &mut Peer, host: &str, call: &Call) -> Result<T> {
    let json = serde_json::to_string(call).attempt("say it")?;
    match peer.ask(&Message::Patch { json }).await? {
        Message::Status { json } => serde_json::from_str(&json).attempt(format!("understand the answer of {host}")),
        other => Err(peer::unexpected(&other)),
    }
}

/// Answers another host.
///
/// # Errors
/// The question is of a newer podd, or cannot be answered.
pub async fn answer(daemon: &Arc<Daemon>, json: &str, from: &str) -> Result<Value> {
    let cure = "compare `podctl version` on both hosts; upgrade the older one";
    let call: Call = serde_json::from_str(json)
        .map_err(|e| ApiError::failed(format!("{} does not understand {from}: {e}", daemon.config.host)).cure(cure))?;
    let value = match call {
        Call::Keep(run) => serde_json::to_value(daemon.store.put_run(&run, &[])?),
        Call::Open => serde_json::to_value(daemon.store.open_run()?),
        Call::Copy { run } => serde_json::to_value(daemon.store.run(&run)?),
        Call::Do { run, term, number, order } => {
            serde_json::to_value(carry_out(daemon, &run, term, number, order).await?)
        }
        Call::Cordoned => serde_json::to_value(cordoned(daemon)?),
        Call::Pods => serde_json::to_value(mechanism::stand(daemon)),
        Call::Learn => serde_json::to_value(peer::learn_hosts(daemon).await?),
        Call::Leave => serde_json::to_value(leave(daemon, from)?),
        Call::Removed { hosts, by } => serde_json::to_value(removed(daemon, &hosts, &format!("{by} on {from}"))?),
        Call::WhoLeft => serde_json::to_value(daemon.store.removed_hosts()?),
        Call::Steer(steer) => serde_json::to_value(super::drive::steer(daemon, steer).await?),
    };
    value.attempt("say it")
}

/// Owners of cordons of hosts that are about to leave.
const LEAVES: &str = "removal by ";

/// Hears who left. This host itself may join a fleet anew, and takes pods then.
fn removed(daemon: &Daemon, hosts: &[String], by: &str) -> Result<()> {
    crate::server::forget_hosts(daemon, hosts, by)?;
    if hosts.contains(&daemon.config.host) {
        for cordon in daemon.store.cordons()?.iter().filter(|cordon| cordon.owner.starts_with(LEAVES)) {
            daemon.store.delete_cordon(&cordon.owner)?;
        }
    }
    Ok(())
}

/// Takes no pods for a while, as it is about to leave the fleet; its pods, if it has some: then it stays.
fn leave(daemon: &Daemon, from: &str) -> Result<Vec<PodStands>> {
    let (owner, since) = (format!("{LEAVES}{from}"), Timestamp::now());
    let until = since.checked_add(LEAVES_WITHIN).ok();
    let reason = "it leaves the fleet".to_owned();
    daemon.store.put_cordon(&Cordon { owner: owner.clone(), reason, since, until })?;
    let pods = mechanism::stand(daemon);
    if !pods.is_empty() {
        daemon.store.delete_cordon(&owner)?;
    }
    Ok(pods)
}

/// Why this host takes no pods.
///
/// # Errors
/// The store's.
pub fn cordoned(daemon: &Daemon) -> Result<Option<Cordon>> {
    let takes_back = daemon.store.open_run()?.is_some_and(|run| run.takes_back(&daemon.config.host));
    let mut cordons = crate::patch::cordon::all(daemon)?.into_iter();
    Ok(cordons.find(|cordon| !takes_back || cordon.run().is_none()))
}
