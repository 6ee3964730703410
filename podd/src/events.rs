//! The journal of this host: what happened to it and to its pods, who wanted it, and how it ended. Kept for ever.
//!
//! `podctl events` follows it, `podctl history` looks back, a [webhook] has it delivered.

pub mod webhook;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::Result;
use crate::patch::decide::{Decision, Severity};
use crate::patch::notice::Notice;
use crate::patch::policy::words;
use crate::patch::run::{HostRun, Run, Step};
use crate::pod::journal::{self, Migration};
use crate::supervisor::Daemon;

/// Who does what nobody asked for.
pub const PODD: &str = "podd";

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Number on this host, from 1, growing with time.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// Whose journal it is.
    pub host: String,
    /// Who wanted it: a user of this host, `host NAME`, `pod NAME`, or `podd`.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// Kinds of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// Whether the host needs patching has changed.
    Verdict {
        /// As `podctl status` shows it.
        verdict: String,
        /// The one before; empty: there was none.
        before: String,
        /// How bad it is.
        severity: Option<Severity>,
        /// Until when something must be done.
        deadline: Option<Timestamp>,
        /// The last sentence of how it came about.
        why: String,
    },
    /// The host's owner has said when it is to be patched; neither: as the policy says.
    Chosen {
        /// Then.
        time: Option<Timestamp>,
        /// Now.
        at_once: bool,
    },
    /// A pod was told that it will be touched.
    Notice {
        /// What it was told.
        notice: Notice,
    },
    /// A pod wants no more time.
    Acknowledged {
        /// The pod.
        pod: String,
        /// The notice.
        notice: String,
    },
    /// A pod got more time.
    Delayed {
        /// The pod.
        pod: String,
        /// The notice.
        notice: String,
        /// How much more, in s.
        seconds: u64,
        /// It is not touched before.
        not_before: Timestamp,
    },
    /// A pod got no more time.
    NotDelayed {
        /// The pod.
        pod: String,
        /// The notice.
        notice: String,
        /// Why.
        why: String,
    },
    /// A pod will not be touched after all.
    Withdrawn {
        /// The pod.
        pod: String,
        /// The notice.
        notice: String,
    },
    /// A move has ended, in the journal of either host.
    Move {
        /// The pod.
        pod: String,
        /// Identifier, as in `podctl migrations`.
        migration: String,
        /// Source.
        from: String,
        /// Target.
        to: String,
        /// The pod is the target's now; with an error, it did not go well there.
        moved: bool,
        /// How long it stood still, in ms, if the source knows.
        blackout_ms: Option<f64>,
        /// Why it did not go.
        error: Option<String>,
    },
    /// A patch run has gone on, in the journal of the host that carries it out.
    Run {
        /// The run.
        run: String,
        /// Where it stands.
        state: String,
        /// The host that it is about; none: all.
        on: Option<String>,
        /// What begins there.
        step: Option<String>,
        /// In words.
        text: String,
    },
    /// A host has left the fleet: somebody removed it.
    HostRemoved {
        /// The host.
        removed: String,
    },
    /// The webhook could not be told of an event.
    Undelivered {
        /// Its number.
        id: u64,
        /// Where to.
        url: String,
        /// Why.
        why: String,
    },
}

impl What {
    /// The name of its kind, as in JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Verdict { .. } => "verdict",
            Self::Chosen { .. } => "chosen",
            Self::Notice { .. } => "notice",
            Self::Acknowledged { .. } => "acknowledged",
            Self::Delayed { .. } => "delayed",
            Self::NotDelayed { .. } => "not-delayed",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Move { .. } => "move",
            Self::Run { .. } => "run",
            Self::HostRemoved { .. } => "host-removed",
            Self::Undelivered { .. } => "undelivered",
        }
    }

    /// The pod that it is about, if it is about one.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Notice { notice } => Some(&notice.pod),
            Self::Acknowledged { pod, .. }
            | Self::Delayed { pod, .. }
            | Self::NotDelayed { pod, .. }
            | Self::Withdrawn { pod, .. }
            | Self::Move { pod, .. } => Some(pod),
            Self::Verdict { .. } | Self::Chosen { .. } | Self::Run { .. } => None,
            Self::HostRemoved { .. } | Self::Undelivered { .. } => None,
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::Verdict { verdict, before, severity, deadline, why } => {
                let before = if before.is_empty() { String::new() } else { format!(", was {before}") };
                let severity = severity.map(|severity| format!(", severity {}", severity.name())).unwrap_or_default();
                let deadline = deadline.map(|deadline| format!(", due by {deadline}")).unwrap_or_default();
                format!("the host is {verdict}{before}{severity}{deadline}: {why}")
            }
            Self::Chosen { at_once: true, .. } => "the host is to be patched now".to_owned(),
            Self::Chosen { time: Some(at), .. } => format!("the host is to be patched at {at}"),
            Self::Chosen { .. } => "the host is to be patched as the policy says".to_owned(),
            Self::Notice { notice } => notice.in_words(),
            Self::Acknowledged { pod, .. } => format!("{pod} is ready: go ahead"),
            Self::Delayed { pod, seconds, not_before, .. } => {
                let more = SignedDuration::from_secs(i64::try_from(*seconds).unwrap_or(i64::MAX));
                format!("{pod} gets {} more: not before {not_before}", words(more))
            }
            Self::NotDelayed { pod, why, .. } => format!("{pod} gets no more time: {why}"),
            Self::Withdrawn { pod, .. } => format!("{pod} will not be touched after all"),
            Self::Move { pod, from, to, moved: true, blackout_ms, error, .. } => {
                let blackout = blackout_ms.map(|ms| format!(": {ms:.0} ms blackout")).unwrap_or_default();
                let but = error.as_deref().map(|error| format!(", but: {error}")).unwrap_or_default();
                format!("{pod} moved from {from} to {to}{blackout}{but}")
            }
            Self::Move { pod, from, to, error, .. } => {
                let why = error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
                format!("{pod} did not move from {from} to {to}{why}")
            }
            Self::Run { run, text, .. } => format!("patch run {run}: {text}"),
            Self::HostRemoved { removed } => format!("{removed} was removed from the fleet"),
            Self::Undelivered { id, url, why } => format!("{url} could not be told of event {id}: {why}"),
        }
    }

    /// Of a decision that differs from the one before.
    #[must_use]
    pub fn verdict(decision: &Decision, before: &str) -> Self {
        Self::Verdict {
            verdict: decision.verdict.name().to_owned(),
            before: before.to_owned(),
            severity: decision.severity,
            deadline: decision.deadline,
            why: decision.chain.last().cloned().unwrap_or_default(),
        }
    }

    /// Of a run, and of one of its hosts.
    #[must_use]
    pub fn run(run: &Run, host: Option<&HostRun>) -> Self {
        let text = match host {
            None => format!("{}, {}", run.state.word(), run.in_words()),
            Some(host) => match host.trouble.as_ref().filter(|_| matches!(host.step, Step::Failed | Step::PutBack)) {
                Some(trouble) => format!("{}: {}: {}", host.host, host.step.word(), trouble.what),
                None => match host.foretold.as_ref().filter(|_| host.step == Step::Waiting) {
                    Some(foretold) => format!("{}: {}", host.host, foretold.in_words()),
                    None => format!("{}: {}", host.host, host.step.word()),
                },
            },
        };
        Self::Run {
            run: run.id.clone(),
            state: run.state.word().to_owned(),
            on: host.map(|host| host.host.clone()),
            step: host.map(|host| host.step.word().to_owned()),
            text,
        }
    }

    /// Of a run whose coordinator is away.
    #[must_use]
    pub fn stands_still(run: &Run) -> Self {
        let coordinator = &run.coordinator;
        Self::Run {
            run: run.id.clone(),
            state: run.state.word().to_owned(),
            on: Some(coordinator.clone()),
            step: run.host(coordinator).map(|host| host.step.word().to_owned()),
            text: format!(
                "it stands still: {coordinator}, which carries it out, does not answer; `podctl patch resume` on another host has that one take over"
            ),
        }
    }

    /// Of a move that has ended; none if it was a rehearsal, or goes on.
    #[must_use]
    pub fn of(migration: &Migration, host: &str) -> Option<Self> {
        let moved = matches!(migration.step, journal::Step::Done | journal::Step::Running);
        if migration.rehearsal || !migration.step.is_final() {
            return None;
        }
        let (from, to) = migration.between(host);
        Some(Self::Move {
            pod: migration.pod.clone(),
            migration: migration.id.clone(),
            from,
            to,
            moved,
            blackout_ms: migration.report.as_ref().map(|report| report.blackout_ms),
            error: migration.error.clone(),
        })
    }
}

/// Tells whoever follows that there is more.
#[derive(Debug)]
pub struct Bell(watch::Sender<u64>);

impl Default for Bell {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Bell {
    /// There is an event of this number.
    pub fn ring(&self, id: u64) {
        self.0.send_replace(id);
    }

    /// Changes with each event.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// An event of now, not yet written down: the store does that together with what it tells of.
#[must_use]
pub fn entry(daemon: &Daemon, by: &str, what: What) -> Entry {
    Entry { id: 0, at: Timestamp::now(), host: daemon.config.host.clone(), by: by.to_owned(), what }
}

/// Tells whoever follows of events that are written down.
pub fn tell(daemon: &Daemon, events: &[Entry]) {
    for event in events {
        tracing::info!(event = event.what.kind(), by = event.by, "{}", event.what.in_words());
    }
    if let (false, Ok(newest)) = (events.is_empty(), daemon.store.newest_event()) {
        daemon.bell.ring(newest);
    }
}

/// Writes something down that nothing else goes with, and tells whoever follows.
///
/// # Errors
/// The store's.
pub fn note(daemon: &Daemon, by: &str, what: What) -> Result<()> {
    let event = [entry(daemon, by, what)];
    daemon.store.add_events(&event)?;
    tell(daemon, &event);
    Ok(())
}
