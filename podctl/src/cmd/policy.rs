//! `podctl policy check`, `show` and `explain`: of a file, without podd.

use std::path::PathBuf;

use jiff::Timestamp;
use podd::api::{ApiError, ErrorKind};
use podd::patch::policy::{HORIZON, Overdue, PATH, Policy};
use serde::Serialize;

use crate::error::{DONE, Outcome, failed};
use crate::output::{Output, table};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Tell whether a policy is understood and can be kept.
    Check(Args),
    /// Print a policy with all defaults filled in.
    Show(Args),
    /// Say in words what a policy means, and list the windows to come.
    Explain(Args),
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file.
    #[arg(default_value = PATH)]
    file: PathBuf,
}

#[derive(Serialize)]
struct Explanation {
    sentences: Vec<String>,
    slots: Vec<podd::patch::policy::Slot>,
}

/// Windows that are listed.
const SLOTS: usize = 10;

pub fn run(verb: &Verb, out: &Output) -> Outcome {
    let (Verb::Check(args) | Verb::Show(args) | Verb::Explain(args)) = verb;
    let now = Timestamp::now();
    let policy = Policy::load(&args.file, now).map_err(|error| told(&error.to_string()))?;
    match verb {
        Verb::Check(_) => out.show(&policy, |_| match args.file.exists() {
            true => format!("{} can be kept", args.file.display()),
            false => format!("there is no {}: the defaults hold", args.file.display()),
        }),
        Verb::Show(_) => {
            let text = toml::to_string(&policy).map_err(|error| failed(error.to_string(), None))?;
            out.show(&policy, |_| text);
        }
        Verb::Explain(_) => out.show(&explain(&policy, now)?, in_words),
    }
    Ok(DONE)
}

fn told(text: &str) -> ApiError {
    let error = ApiError::told(ErrorKind::Usage, text);
    let cure = error.cure.clone().unwrap_or_else(|| "look at the README's section \"Policy\"".to_owned());
    error.cure(cure)
}

fn explain(policy: &Policy, now: Timestamp) -> Result<Explanation, ApiError> {
    let windows = policy.windows().map_err(|why| told(&why))?;
    let until = now.checked_add(HORIZON).unwrap_or(Timestamp::MAX);
    let slots = windows.slots(now, until).into_iter().take(SLOTS).collect();
    let (deadlines, phases) = (&policy.deadlines, &policy.phases);
    let names = |list: &mut dyn Iterator<Item = &podd::patch::decide::Mechanism>| {
        list.map(|mechanism| mechanism.name()).collect::<Vec<_>>().join(", ")
    };
    let mut sentences = vec![
        format!(
            "A fix must run {} after it can be had if the fault is exploited, {} if it is of high urgency, else {}.",
            deadlines.exploited, deadlines.high, deadlines.rest
        ),
        format!(
            "For {} the host's owner may choose the time; then, or in the last window before the deadline, it is done.",
            phases.self_service
        ),
        match phases.overdue {
            Overdue::InWindow => "What is overdue still waits for a window.".to_owned(),
            Overdue::AnyTime => "What is overdue is done at any time.".to_owned(),
        },
        format!("Pods are told {} before, and may ask for {} more.", phases.notice, phases.delay),
        format!(
            "{} host(s) may be away together, and {} % of the fleet's memory stays free.",
            policy.limits.max_unavailable, policy.limits.headroom
        ),
    ];
    if !policy.mechanisms.forbid.is_empty() {
        sentences.push(format!("Never: {}.", names(&mut policy.mechanisms.forbid.iter())));
    }
    if !policy.mechanisms.prefer.is_empty() {
        sentences.push(format!("Rather: {}.", names(&mut policy.mechanisms.prefer.iter())));
    }
    Ok(Explanation { sentences, slots })
}

fn in_words(explanation: &Explanation) -> String {
    let rows = explanation.slots.iter().map(|slot| {
        let length = podd::patch::policy::words(slot.end.duration_since(slot.start));
        [slot.window.clone(), slot.start.to_string(), slot.end.to_string(), length]
    });
    format!("{}\n\n{}", explanation.sentences.join("\n"), table(["WINDOW", "FROM", "UNTIL", "LENGTH"], rows))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_policy_in_words() {
        let text = "[[windows]]\nname = \"night\"\nstart = \"02:00\"\nduration = \"3h\"\n[mechanisms]\nforbid = [\"in-place\"]\n";
        let now = "2026-11-29T12:00:00Z".parse().expect("a time");
        let policy = Policy::parse(text, Path::new("p"), now).expect("a policy");
        let said = in_words(&explain(&policy, now).expect("it is explained"));
        assert!(said.contains("\nNever: in-place.\n"), "{said}");
        assert!(said.contains("\nnight   2026-11-30T02:00:00Z  2026-11-30T05:00:00Z  3h\n"), "{said}");
        assert_eq!(told("p is wrong\n  cure: mend it").cure.as_deref(), Some("mend it"));
    }
}
