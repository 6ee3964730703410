//! The journal of a migration: each step is recorded *before* it is done, so that after a crash both sides know
//! what may have happened.
//!
//! ```text
//! source                                target
//! preparing  ── facts, reserve ──────▶  receiving
//!            ── layers, files ───────▶
//! freezing   ── (frozen) delta, memory ▶
//!            ◀───────────── ready ────  held       (restored, frozen)
//! given  ═══════ commit(epoch) ══════▶  committed  (before the thaw)
//!            ◀──────────── thawed ────  running
//! done       (copy deleted)
//! ```
//!
//! The double line is the handover. Before the source records `given`, every failure ends in `aborted`: the source
//! thaws, the target discards. From then on the source never thaws by itself; it asks the target until the answer is
//! *thawed* or *lost*. The target says *lost* only after it has durably recorded `discarded`, which it may do only
//! while it has not recorded `committed`; then the source takes the pod back (`returned`). With memory that comes later
//! (`pod::postcopy`), it says *borrows* first, and *thawed* when it needs the source no more.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::MigrateReport;

/// One move, as one of its two hosts sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// Identifier, the same on both hosts (32 hex digits).
    pub id: String,
    /// This host's part.
    pub role: Role,
    /// The other host.
    pub peer: String,
    /// The pod's id.
    pub pod_id: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's epoch after the move.
    pub epoch: u64,
    /// When it began.
    pub started: Timestamp,
    /// The last step recorded.
    pub step: Step,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The outcome, on the source.
    pub report: Option<MigrateReport>,
    /// It is a rehearsal: a clone goes over, and is destroyed.
    #[serde(default)]
    pub rehearsal: bool,
    /// Who wanted it.
    #[serde(default)]
    pub by: String,
    /// Who wants the pod to go on here, as the other host is gone for good and cannot say whether it has it.
    #[serde(default)]
    pub forsaken: Option<String>,
}

impl Migration {
    /// Source and target, seen from `host`, in whose journal it is.
    #[must_use]
    pub fn between(&self, host: &str) -> (String, String) {
        let (here, there) = (host.to_owned(), self.peer.clone());
        if self.role == Role::Source { (here, there) } else { (there, here) }
    }
}

/// A host's part in a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The pod leaves.
    Source,
    /// The pod arrives.
    Target,
}

impl Role {
    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// A step of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Source: the pod runs; facts, layers and files go over.
    Preparing,
    /// Source: the pod may be frozen.
    Freezing,
    /// Source: the pod belongs to the target. The handover.
    Given,
    /// Source: the target runs the pod; the copy here may be deleted.
    Done,
    /// Source: it ran on here.
    Aborted,
    /// Source: the target declined after the handover; the pod runs here again.
    Returned,
    /// Target: nothing is held that matters.
    Receiving,
    /// Target: being restored, or restored and frozen; once *ready* is said, the source may have given the pod away.
    Held,
    /// Target: the pod is ours; it may be thawed.
    Committed,
    /// Target: it runs here.
    Running,
    /// Target: it will never run here under this epoch.
    Discarded,
}

impl Step {
    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Done | Self::Aborted | Self::Returned | Self::Running | Self::Discarded => true,
            Self::Preparing | Self::Freezing | Self::Given | Self::Receiving | Self::Held | Self::Committed => false,
        }
    }

    /// The name in the journal.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Freezing => "freezing",
            Self::Given => "given",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::Returned => "returned",
            Self::Receiving => "receiving",
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Running => "running",
            Self::Discarded => "discarded",
        }
    }
}
