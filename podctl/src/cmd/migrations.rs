//! `podctl migrations`.

use jiff::Timestamp;
use podd::api::MigrationView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// How far a move is. A rehearsal is called off in any case: what counts is whether it showed that something breaks. And
/// what the journal of a target ends with is no news of the pod, which may have left since.
pub(super) fn step(m: &MigrationView) -> &str {
    match m.step.as_str() {
        "aborted" | "discarded" if m.rehearsal && m.error.is_none() => "rehearsed",
        "running" => "done",
        step => step,
    }
}

pub async fn run(ctl: &Podctl<'_>) -> Outcome {
    let moves: Vec<MigrationView> = ctl.daemon.get(&path(&["migrations"])).await?;
    ctl.out.show(&moves, |moves| in_words(moves, Timestamp::now()));
    Ok(DONE)
}

fn in_words(moves: &[MigrationView], now: Timestamp) -> String {
    let rows = moves.iter().map(|m| {
        [
            m.id.clone(),
            m.pod.clone(),
            m.from.clone(),
            m.to.clone(),
            words::age(m.started, now),
            step(m).to_owned(),
            m.blackout_ms.map(|ms| format!("{} ms", words::ms(ms))).unwrap_or_default(),
            m.error.clone().unwrap_or_default(),
        ]
    });
    table(["ID", "POD", "FROM", "TO", "STARTED", "STEP", "BLACKOUT", "ERROR"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(step_of: &str, rehearsal: bool, error: Option<&str>) -> String {
        let (id, pod, from, to) = ("0".to_owned(), "web".to_owned(), "a".to_owned(), "b".to_owned());
        let (started, step_of, error) = (Timestamp::UNIX_EPOCH, step_of.to_owned(), error.map(str::to_owned));
        step(&MigrationView { id, pod, from, to, step: step_of, rehearsal, started, blackout_ms: None, error })
            .to_owned()
    }

    #[test]
    fn both_hosts_show_the_same_end_of_a_move() {
        assert_eq!([shown("done", false, None), shown("running", false, None)], ["done", "done"]);
        assert_eq!([shown("aborted", true, None), shown("discarded", true, None)], ["rehearsed", "rehearsed"]);
        assert_eq!([shown("aborted", true, Some("ill")), shown("aborted", false, None)], ["aborted", "aborted"]);
    }
}
