//! Reads facts and advisories of this host again and again, and answers what follows from them.
//!
//! What is remembered between decisions (since when a fix can be had, what the owner wants) is in the store. Facts are not: they
//! are read again. What cannot be read keeps its last good state, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex as AsyncMutex;

use super::advisories::{self, Advisories};
use super::cover::{self, Manifest};
use super::decide::{Decision, Exposure, LATELY, LINUX, Mechanism, Question, Record, Situation, Verdict, decide};
use super::facts::{Facts, Missing, advisories_of};
use super::mechanism;
use super::policy::Policy;
use super::reader::ThisHost;
use super::run::State;
use crate::api::{ApiError, ChooseRequest, ErrorKind, PodSilence, StatusView};
use crate::error::{Attempt, Result};
use crate::events::{self, PODD, What};
use crate::pod::predict;
use crate::pod::state::PodState;
use crate::supervisor::Daemon;
use crate::sys::replace::replace;

/// After podd's start, the host has other things to do.
const AT_FIRST: Duration = Duration::from_secs(60);
/// Advisories are asked for again after this; at once if that failed, or they come from elsewhere now.
const ADVISED: SignedDuration = SignedDuration::from_hours(6);

/// What was read last.
#[derive(Debug, Default)]
pub struct Watch {
    known: Mutex<Option<Arc<Known>>>,
    policy: Mutex<Option<Arc<Policy>>>,
    /// Held while what is remembered is changed.
    record: Mutex<()>,
    /// Held while it is read.
    turn: AsyncMutex<()>,
}

#[derive(Debug)]
struct Known {
    facts: Facts,
    advisories: Advisories,
    manifests: Vec<Manifest>,
    /// When the feeds were asked, and which.
    advised: (Timestamp, advisories::Config),
}

/// Reads again and again, for as long as podd runs.
pub async fn watch(daemon: Arc<Daemon>) {
    tokio::time::sleep(AT_FIRST).await;
    loop {
        if let Err(error) = look(&daemon, false).await {
            tracing::warn!(error = error.message, "the status of this host cannot be told");
        }
        let (policy, _) = policy(&daemon);
        let pause = policy.map_or(AT_FIRST, |policy| policy.facts.interval.0.unsigned_abs());
        tokio::time::sleep(pause.max(AT_FIRST)).await;
    }
}

/// Reads all now; whoever comes meanwhile waits for that. `ask` has the feeds asked, too.
///
/// # Errors
/// The store's.
pub async fn look(daemon: &Arc<Daemon>, ask: bool) -> Result<()> {
    let came = Timestamp::now();
    let _turn = daemon.watch.turn.lock().await;
    if !ask && known(daemon).is_some_and(|known| known.facts.at >= came) {
        return Ok(());
    }
    let looking = daemon.clone();
    tokio::task::spawn_blocking(move || read(&looking, ask)).await.attempt("read the facts of this host")?
}

fn known(daemon: &Daemon) -> Option<Arc<Known>> {
    daemon.watch.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Whether facts were read since podd started.
#[must_use]
pub fn has_looked(daemon: &Daemon) -> bool {
    known(daemon).is_some()
}

fn read(daemon: &Daemon, ask: bool) -> Result<()> {
    let facts = Facts::read(&ThisHost::default());
    let config = policy(daemon).0.map(|policy| policy.advisories.clone()).unwrap_or_default();
    let advised = known(daemon).filter(|known| !ask && is_fresh(known, &config)).map(|known| known.advised.clone());
    let advisories = advise(daemon, &config, &facts, advised.is_none());
    let advised = advised.unwrap_or((Timestamp::now(), config));
    let manifests = cover::manifests(&daemon.config.livepatch);
    let known = Arc::new(Known { facts, advisories, manifests, advised });
    *daemon.watch.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    settle(daemon)?;
    daemon.told.stir();
    Ok(())
}

fn is_fresh(known: &Known, config: &advisories::Config) -> bool {
    let (at, of) = &known.advised;
    let age = Timestamp::now().duration_since(*at);
    let healthy = known.advisories.feeds.iter().all(|feed| feed.problem.is_none());
    of == config && healthy && age < ADVISED && !age.is_negative()
}

/// Advisories about what is here, of the releases that it comes from.
fn advise(daemon: &Daemon, config: &advisories::Config, facts: &Facts, ask: bool) -> Advisories {
    let mut all = Advisories { list: Vec::new(), feeds: Vec::new() };
    let Some(codename) = facts.system.known().filter(|system| system.id == "debian").map(|system| &system.codename)
    else {
        return all;
    };
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in facts.packages.known().into_iter().flatten() {
        wanted.entry(codename.clone()).or_default().insert(package.source.clone());
    }
    let kernel = facts.kernel.known().and_then(|kernel| advisories_of(&kernel.version, codename));
    let kernel = kernel.map_or(codename.as_str(), |(release, _)| release);
    wanted.entry(kernel.to_owned()).or_default().insert(LINUX.to_owned());
    let (cache, now) = (daemon.config.state.join("advisories"), Timestamp::now());
    for (release, packages) in wanted {
        if ask {
            // What failed is told by `read`, too.
            let _ = advisories::refresh(config, &cache, &release, now);
        }
        let Advisories { list, feeds } = advisories::read(config, &cache, &release, &packages, now);
        all.list.extend(list);
        all.feeds.extend(feeds);
    }
    all
}

/// A policy, and why it is not the one in the file. None: there never was a good one.
pub type Said = (Option<Arc<Policy>>, Option<String>);

/// What the operators want.
pub fn policy(daemon: &Daemon) -> Said {
    let mut last = daemon.watch.policy.lock().unwrap_or_else(PoisonError::into_inner);
    match Policy::load(&daemon.config.policy, Timestamp::now()) {
        Ok(policy) => {
            let policy = Arc::new(policy);
            if last.replace(policy.clone()).as_ref() != Some(&policy)
                && let Err(error) = keep_policy(daemon, &policy)
            {
                tracing::warn!(%error, "the policy cannot be kept, should its file be broken one day");
            }
            (Some(policy), None)
        }
        Err(error) => {
            if last.is_none() {
                let kept = Policy::load_present(&last_good(daemon), Timestamp::now());
                *last = kept.ok().flatten().map(Arc::new);
            }
            (last.clone(), Some(error.to_string()))
        }
    }
}

/// Where the last good policy is, for a podd that starts with a broken one.
fn last_good(daemon: &Daemon) -> PathBuf {
    daemon.config.state.join("policy-last-good.toml")
}

fn keep_policy(daemon: &Daemon, policy: &Policy) -> io::Result<()> {
    let path = last_good(daemon);
    match daemon.config.policy.exists() {
        true => replace(&path, toml::to_string(policy).map_err(io::Error::other)?.as_bytes(), 0o600),
        // There is none: what there was before is no more.
        false => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Decides, and keeps what the next decision needs: since when each fix can be had. A verdict that has changed is an event. None:
/// nothing was read yet, or there is no policy.
///
/// # Errors
/// The store's.
pub fn settle(daemon: &Daemon) -> Result<Option<(Decision, Arc<Policy>)>> {
    let Some(known) = known(daemon) else { return Ok(None) };
    let _alone = daemon.watch.record.lock().unwrap_or_else(PoisonError::into_inner);
    let before = daemon.store.patch_record()?;
    let policy = policy(daemon);
    let decision = decision(daemon, Some(&known), policy.clone(), &before);
    let mut record = remembered(before.clone(), &decision, Timestamp::now());
    record.verdict = decision.verdict.name().to_owned();
    if record != before {
        let is_new = record.verdict != before.verdict;
        let event = is_new.then(|| events::entry(daemon, PODD, What::verdict(&decision, &before.verdict)));
        daemon.store.put_patch_record(&record, event.as_slice())?;
        events::tell(daemon, event.as_slice());
    }
    Ok(policy.0.map(|policy| (decision, policy)))
}

/// Notes since when each fix can be had, and forgets those that are in use.
fn remembered(mut record: Record, decision: &Decision, now: Timestamp) -> Record {
    let looked_at = match decision.verdict {
        Verdict::Unknown { .. } => decision.update_missing,
        Verdict::Leave { .. } => false,
        Verdict::Blocked { .. } => !decision.exposures.is_empty(),
        _ => true,
    };
    if !looked_at {
        // What the host is exposed to (a clock, hardware): nothing is forgotten because it could not be seen once.
        return record;
    }
    let fixes = decision.fixes();
    // A fix that apt does not bring for once has been seen all the same.
    let open = decision.exposures.iter().filter(|exposure| exposure.fixed_in.is_some()).map(Exposure::key);
    let open: BTreeSet<String> = open.collect();
    record.seen.retain(|key, _| fixes.contains(key) || open.contains(key));
    if fixes.is_empty() {
        // What the owner wanted was about what is done now.
        (record.chosen, record.at_once) = (None, false);
    }
    for key in fixes {
        record.seen.entry(key).or_insert(now);
    }
    record
}

/// What patch runs add to what is remembered: hosts that were left because of their hardware, and whether the breaker is open.
fn with_runs(daemon: &Daemon, record: &Record) -> Record {
    let runs = daemon.store.runs(Timestamp::now() - LATELY).unwrap_or_default();
    let left = runs.iter().flat_map(|run| &run.hosts).filter(|host| !host.patch);
    let left = left.filter_map(|host| host.begun.first().map(|begun| begun.at)).collect();
    let breaker_open = runs.iter().any(|run| matches!(run.state, State::Stopped { .. }));
    Record { left, breaker_open, ..record.clone() }
}

fn decision(daemon: &Daemon, known: Option<&Known>, (policy, problem): Said, record: &Record) -> Decision {
    let unknown = |what: &str, cure: &str| Decision::unknown(Missing { what: what.to_owned(), cure: cure.to_owned() });
    let Some(known) = known else {
        return unknown("the facts of this host have not been read yet", "ask again with `podctl status --refresh`");
    };
    let Some(policy) = policy else {
        let problem = ApiError::told(ErrorKind::Usage, &problem.unwrap_or_default());
        return unknown(&problem.message, problem.cure.as_deref().unwrap_or("correct it"));
    };
    let windows = match policy.windows() {
        Ok(windows) => windows,
        Err(why) => return unknown(&why, "correct it in podd's policy"),
    };
    let record = &with_runs(daemon, record);
    let situation = Situation { keeps_memory: daemon.config.in_place, covers: cover::covers(&known.manifests) };
    decide(Question {
        facts: &known.facts,
        advisories: &known.advisories,
        policy: &policy,
        windows: &windows,
        record,
        situation: &situation,
        now: Timestamp::now(),
    })
}

/// Whether this host needs patching.
///
/// # Errors
/// The store's.
pub fn status(daemon: &Daemon) -> Result<StatusView> {
    let record = daemon.store.patch_record()?;
    let known = known(daemon);
    let policy = policy(daemon);
    let mut remarks: Vec<String> = policy.1.iter().map(|why| format!("the last good policy holds: {why}")).collect();
    if let Some(known) = &known {
        let hints = &known.facts.reboot_hints;
        if !hints.is_empty() {
            remarks.push(format!("packages that asked for a reboot: {}", hints.join(", ")));
        }
        for feed in &known.advisories.feeds {
            if let Some(problem) = &feed.problem {
                remarks.push(format!("the {} feed is not new: {problem}", feed.feed.name()));
            }
        }
        let sessions = known.facts.stale.known().into_iter().flatten().filter(|process| !process.can_restart());
        let sessions = sessions.count();
        if sessions > 0 {
            remarks.push(format!("{sessions} program(s) of users run with replaced files until they are ended"));
        }
        for manifest in known.manifests.iter().filter(|manifest| manifest.problem.is_some()) {
            let problem = manifest.problem.as_deref().unwrap_or_default();
            remarks.push(format!("{} does not count: {problem}", manifest.path.display()));
        }
    }
    if let Some(run) = daemon.store.open_run()? {
        let host = run.host(&daemon.config.host).filter(|host| !host.step.is_final());
        let here = host.map(|host| format!(", here at {}", host.step.word())).unwrap_or_default();
        remarks.push(format!("patch run {} is {}{here}: {}", run.id, run.state.word(), run.in_words()));
    }
    Ok(StatusView {
        host: daemon.config.host.clone(),
        now: Timestamp::now(),
        facts_at: known.as_ref().map(|known| known.facts.at),
        kernel: known.as_ref().and_then(|known| known.facts.kernel.known().cloned()),
        feeds: known.as_ref().map(|known| known.advisories.feeds.clone()).unwrap_or_default(),
        decision: decision(daemon, known.as_deref(), policy, &record),
        chosen: record.chosen,
        at_once: record.at_once,
        pods: Vec::new(),
        notices: daemon.store.notices()?.into_values().collect(),
        remarks,
        facts: None,
    })
}

/// The same, without what it is exposed to: that can be long.
///
/// # Errors
/// The store's.
pub fn brief(daemon: &Daemon) -> Result<StatusView> {
    let mut status = status(daemon)?;
    status.decision.exposures.clear();
    Ok(status)
}

/// The whole, with all facts, and how long each running pod would be silent in a move, or asleep while the host boots.
///
/// # Errors
/// The store's.
pub fn explained(daemon: &Daemon) -> Result<StatusView> {
    let status = status(daemon)?;
    let stay = matches!(
        status.decision.verdict,
        Verdict::Due { mechanism: Mechanism::InPlace } | Verdict::Wait { mechanism: Mechanism::InPlace, .. }
    );
    let boot = if stay { mechanism::expected_in_place_ms(daemon)? } else { None };
    let running = daemon.pods().into_iter().map(|pod| pod.record());
    // How long they sleep while the host boots, nobody knows before it has done so once.
    let running =
        running.filter(|record| (!stay || boot.is_some()) && matches!(record.state, PodState::Running { .. }));
    let silence = |record: crate::pod::state::PodRecord| {
        let blackout_ms = match boot {
            Some(boot) => boot,
            None => predict::expected(daemon, &record, "", 0)?.expected.blackout_ms,
        };
        Ok(PodSilence { pod: record.spec.name, blackout_ms })
    };
    Ok(StatusView { pods: running.map(silence).collect::<Result<_>>()?, facts: facts(daemon).map(Box::new), ..status })
}

/// The facts that were read last.
#[must_use]
pub fn facts(daemon: &Daemon) -> Option<Facts> {
    known(daemon).map(|known| known.facts.clone())
}

/// What trusted manifests say that live patches cover.
#[must_use]
pub fn covers(daemon: &Daemon) -> Vec<super::decide::Cover> {
    known(daemon).map(|known| cover::covers(&known.manifests)).unwrap_or_default()
}

/// What the owner of this host wants: patched now, at a time, or as the policy says (neither). `by`: who said so.
///
/// # Errors
/// The time does not do; or the store's.
pub fn choose(daemon: &Daemon, by: &str, request: &ChooseRequest) -> Result<StatusView> {
    let now = Timestamp::now();
    if let Some(at) = request.at {
        let status = status(daemon)?;
        let cure = "`podctl why` tells the deadline; `podctl patch start-now` is always possible";
        if at < now {
            return Err(ApiError::usage(format!("{at} is past")).cure(cure));
        }
        if let Some(deadline) = status.decision.deadline.filter(|deadline| at > *deadline) {
            return Err(ApiError::conflict(format!("{at} is after the deadline, {deadline}")).cure(cure));
        }
        let policy = policy(daemon).0;
        let first = daemon.store.patch_record()?.seen.into_values().min();
        let own = first.zip(policy.as_ref()).and_then(|(first, p)| first.checked_add(p.phases.self_service.0).ok());
        if let Some(end) = own.filter(|end| at > *end && *end > now) {
            return Err(
                ApiError::conflict(format!("{at} is after the owner's own time, which ends at {end}")).cure(cure)
            );
        }
        let windows = policy.and_then(|policy| policy.windows().ok());
        let until = at.checked_add(SignedDuration::from_mins(1)).unwrap_or(at);
        if windows.is_some_and(|windows| windows.next(at, until).is_none()) {
            return Err(ApiError::conflict(format!("{at} is in no window")).cure("`podctl policy explain` lists them"));
        }
    }
    {
        let _alone = daemon.watch.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = daemon.store.patch_record()?;
        (record.at_once, record.chosen) = (request.at_once, request.at);
        let event = [events::entry(daemon, by, What::Chosen { time: request.at, at_once: request.at_once })];
        daemon.store.put_patch_record(&record, &event)?;
        events::tell(daemon, &event);
    }
    daemon.told.stir();
    brief(daemon)
}
