//! Preflight rules: can this pod go to that host? Pure: facts in, findings out.

use serde::{Deserialize, Serialize};

/// What one rule found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule's name, such as `cpu-features`.
    pub rule: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// What was seen.
    pub fact: String,
    /// What the operator can do; none where nothing needs doing.
    pub cure: Option<String>,
}

/// A rule's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No objection.
    Go,
    /// Go, with a consequence that the fact names.
    GoWith,
    /// Refused.
    No,
}
