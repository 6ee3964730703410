//! Results of the matrix: `KERNELS.json` for programs, which also says what need not be run again, and `KERNELS.md` for
//! people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::pods::KINDS;
use crate::machine::{Failure, version};

/// Everything that is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// What all of it ran on.
    pub lab: String,
    /// Kernels, by series.
    pub kernels: BTreeMap<String, KernelSeen>,
    /// One for each move that was asked for.
    pub moves: Vec<Move>,
}

/// A kernel that was booted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSeen {
    /// `uname -r`.
    pub release: String,
    /// Size of restartable sequences that it tells programs of (`AT_RSEQ_FEATURE_SIZE`), bytes; none if it does not.
    pub rseq_bytes: Option<u64>,
}

/// A move, or the refusal of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// Kind of pod.
    pub pod: String,
    /// Series under which it was started.
    pub born: String,
    /// Series of the source.
    pub from: String,
    /// Series of the target.
    pub to: String,
    /// `uname -r` of source and target.
    pub releases: [String; 2],
    /// What preflight said.
    pub preflight: Preflight,
    /// Bytes of restartable sequences that the pod has registered, if it can tell.
    #[serde(default)]
    pub registered: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    /// Preflight was right: it moved although nothing was in the way, or it was refused for a reason that is true.
    pub agree: bool,
    /// When, UTC.
    pub at: String,
    /// Commit of the checkout, `-dirty` if it had changes; none: of before 2026-11-30, when this was not noted.
    #[serde(default)]
    pub commit: Option<String>,
}

/// Preflight's verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Preflight {
    /// Not asked: the pod did not get that far.
    Unasked,
    /// Nothing is in the way.
    Go,
    /// Something is: `rule: fact`.
    No(Vec<String>),
}

/// What became of a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Outcome {
    /// It moved, and its load noticed nothing.
    Moved {
        /// From freeze to thaw by podd's clock, ms, under emulation.
        blackout_ms: f64,
    },
    /// It was refused, and its load noticed nothing.
    Refused,
    /// Something else.
    Failed {
        /// What was seen.
        why: String,
        /// Name of the folder of logs.
        logs: String,
    },
}

impl Results {
    /// What is there already.
    ///
    /// # Errors
    /// A file is there that holds something else.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Failure::io("read", path)(e)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Failure::io("read", path)(e.into())),
        }
    }

    /// Writes both files, whole.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn save(&self, json: &Path, series: &[String]) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(self).expect("results are JSON");
        text.push('\n');
        for (path, text) in [(json.to_owned(), text), (json.with_extension("md"), self.in_words(series))] {
            let new = path.with_extension("new");
            fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(Failure::io("write", &path))?;
        }
        Ok(())
    }

    /// The result of a move.
    #[must_use]
    pub fn find(&self, pod: &str, born: &str, from: &str, to: &str) -> Option<&Move> {
        self.moves
            .iter()
            .find(|m| (m.pod.as_str(), m.born.as_str(), m.from.as_str(), m.to.as_str()) == (pod, born, from, to))
    }

    /// Adds a result in the place of an older one.
    pub fn add(&mut self, result: Move) {
        self.moves
            .retain(|m| (&m.pod, &m.born, &m.from, &m.to) != (&result.pod, &result.born, &result.from, &result.to));
        self.moves.push(result);
        let kind = |m: &Move| KINDS.iter().position(|kind| kind.name == m.pod);
        self.moves.sort_by(|a, b| {
            let series = version::compare(&a.from, &b.from).then_with(|| version::compare(&a.to, &b.to));
            series.then_with(|| version::compare(&a.born, &b.born)).then_with(|| kind(a).cmp(&kind(b)))
        });
    }

    /// `KERNELS.md`. `series` are those that a whole matrix has.
    #[must_use]
    pub fn in_words(&self, series: &[String]) -> String {
        let mut text = String::new();
        let moved = self.moves.iter().filter(|m| matches!(m.outcome, Outcome::Moved { .. })).count();
        let refused = self.moves.iter().filter(|m| m.outcome == Outcome::Refused).count();
        let wrong: Vec<&Move> = self.moves.iter().filter(|m| !m.agree).collect();
        let first = self.moves.iter().map(|m| m.at.as_str()).min().unwrap_or("never");
        let last = self.moves.iter().map(|m| m.at.as_str()).max().unwrap_or("never");
        let _ = write!(
            text,
            "# Moves between kernels

Written by `scripts/vm matrix`; do not edit. Data: `KERNELS.json`. See README.md, \"Real kernels\".

{}. First result {first}, last one {last} UTC.

{} moves were asked for: {moved} pods moved, {refused} were refused, {} failed. Preflight and result disagree in {}.
Moves by commit: {}.

Figures are blackouts in ms *under emulation*, where everything takes several times as long as on a real host and two
machines share two processors: they compare nothing but themselves.

| series | kernel | restartable sequences, bytes |
|---|---|---|
",
            self.lab,
            self.moves.len(),
            self.moves.len() - moved - refused,
            wrong.len(),
            self.commits(),
        );
        for name in sorted(self.kernels.keys()) {
            let kernel = &self.kernels[&name];
            let bytes = kernel.rseq_bytes.map_or("not told".to_owned(), |n| n.to_string());
            let _ = writeln!(text, "| {name} | {} | {bytes} |", kernel.release);
        }
        text.push_str("\nPods, all under load while they move:\n\n");
        for kind in KINDS {
            let _ = writeln!(text, "- **{}**: {}.", kind.name, kind.about);
        }
        text.push_str(
            "\n## Results\n\nA number: preflight said go, the pod moved, its load noticed nothing. *no*: preflight refused, \
             for a reason that was\nchecked, and the pod ran on. **Bold**: see below. A dash: not run.\n\n",
        );
        self.table(&mut text);
        self.details(&mut text, &wrong);
        self.absent(&mut text, series);
        text
    }

    /// How many moves are of which commit.
    fn commits(&self) -> String {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for m in &self.moves {
            *counts.entry(m.commit.as_deref().unwrap_or_default()).or_default() += 1;
        }
        let words = counts.iter().map(|(commit, n)| match *commit {
            "" => format!("{n} not noted"),
            commit => format!("{n} of {commit}"),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn table(&self, text: &mut String) {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let _ = writeln!(text, "| from | to | born on | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(names.len()));
        let mut rows: Vec<(&str, &str, &str)> = Vec::new();
        for m in &self.moves {
            let row = (m.from.as_str(), m.to.as_str(), m.born.as_str());
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        for (from, to, born) in rows {
            let cells: Vec<String> =
                names.iter().map(|pod| self.find(pod, born, from, to).map_or("–".to_owned(), cell)).collect();
            let _ = writeln!(text, "| {from} | {to} | {born} | {} |", cells.join(" | "));
        }
    }

    fn details(&self, text: &mut String, wrong: &[&Move]) {
        let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
        for m in &self.moves {
            if let Preflight::No(why) = &m.preflight {
                why.iter().for_each(|why| *reasons.entry(why.as_str()).or_default() += 1);
            }
        }
        if !reasons.is_empty() {
            text.push_str("\n## Why preflight refused\n\n");
            for (why, count) in reasons {
                let _ = writeln!(text, "- {count} times {why}");
            }
        }
        text.push_str("\n## Where preflight and result disagree\n\n");
        for m in wrong {
            let preflight = match &m.preflight {
                Preflight::Unasked => "was not asked".to_owned(),
                Preflight::Go => "said go".to_owned(),
                Preflight::No(why) => format!("said no ({})", why.join("; ")),
            };
            let outcome = match &m.outcome {
                Outcome::Moved { .. } => "it moved".to_owned(),
                Outcome::Refused => "it was refused".to_owned(),
                Outcome::Failed { why, .. } => {
                    format!("it failed: {}", why.split_whitespace().collect::<Vec<_>>().join(" "))
                }
            };
            let _ = writeln!(
                text,
                "- {} from {} to {}, born on {}: preflight {preflight}, and {outcome}{} ({})",
                m.pod,
                m.from,
                m.to,
                m.born,
                if m.registered == Some(0) { "; it has no restartable sequences registered" } else { "" },
                m.at
            );
        }
        if wrong.is_empty() {
            text.push_str("Nowhere.\n");
        }
    }

    fn absent(&self, text: &mut String, series: &[String]) {
        text.push_str("\n## Not run\n\n");
        let mut lines = 0;
        for kind in KINDS.into_iter().filter(|kind| !kind.extra) {
            let mut pairs = Vec::new();
            for (i, a) in series.iter().enumerate() {
                for b in &series[i + 1..] {
                    if self.find(kind.name, a, a, b).is_none() || self.find(kind.name, b, b, a).is_none() {
                        pairs.push(format!("{a}–{b}"));
                    }
                }
            }
            if !pairs.is_empty() {
                let _ = writeln!(text, "- {}: {}", kind.name, pairs.join(", "));
                lines += 1;
            }
        }
        if lines == 0 {
            text.push_str("All pairs of the series above were run.\n");
        }
        text.push_str(
            "\nNot part of the matrix: Java; real hosts with different processors (all machines have the same emulated one); moves\n\
             between versions of podd.\n",
        );
    }
}

fn cell(m: &Move) -> String {
    let text = match &m.outcome {
        Outcome::Moved { blackout_ms } => format!("{blackout_ms:.0}"),
        Outcome::Refused => "no".to_owned(),
        Outcome::Failed { .. } => "failed".to_owned(),
    };
    match (m.agree, &m.outcome) {
        (true, Outcome::Refused) => format!("*{text}*"),
        (true, _) => text,
        (false, _) => format!("**{text}**"),
    }
}

/// Series in their order.
fn sorted<'a>(series: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut all: Vec<String> = series.cloned().collect();
    all.sort_by(|a, b| version::compare(a, b));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(from: &str, to: &str, born: &str, preflight: Preflight, outcome: Outcome, agree: bool) -> Move {
        let commit = version::compare(from, to).is_lt().then(|| "0123abc".to_owned());
        let [pod, from, to, born, at] = ["redis", from, to, born, "2026-01-02 03:04"].map(str::to_owned);
        Move {
            pod,
            born,
            releases: [from.clone(), to.clone()],
            from,
            to,
            preflight,
            registered: None,
            outcome,
            agree,
            at,
            commit,
        }
    }

    #[test]
    fn results_replace_older_ones_and_are_told_in_order() {
        let mut results = Results::default();
        let failed = Outcome::Failed { why: "no\n answer".to_owned(), logs: "x".to_owned() };
        results.add(one("6.12", "6.1", "6.12", Preflight::Go, failed, false));
        results.add(one("6.1", "6.12", "6.1", Preflight::Go, Outcome::Moved { blackout_ms: 812.4 }, true));
        results.add(one("7.2", "6.1", "7.2", Preflight::No(vec!["r: f".to_owned()]), Outcome::Refused, true));
        let text = results.in_words(&["6.1".to_owned(), "6.12".to_owned(), "6.17".to_owned()]);
        assert!(text.contains("| 6.1 | 6.12 | 6.1 | 812 | – |"), "{text}");
        assert!(text.contains("| 6.12 | 6.1 | 6.12 | **failed** |"), "{text}");
        assert!(text.contains("| 7.2 | 6.1 | 7.2 | *no* |") && text.contains("- 1 times r: f"), "{text}");
        assert!(text.contains("preflight said go, and it failed: no answer"), "{text}");
        assert!(text.contains("- redis: 6.1–6.17, 6.12–6.17\n"), "{text}");
        assert!(text.contains("Moves by commit: 2 not noted, 1 of 0123abc."), "{text}");
        results.add(one("6.12", "6.1", "6.12", Preflight::Go, Outcome::Moved { blackout_ms: 7.0 }, true));
        assert_eq!(results.moves.len(), 3);
        assert!(results.in_words(&[]).contains("Nowhere."));
    }
}
