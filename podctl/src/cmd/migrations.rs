//! `podctl migrations`.

use jiff::Timestamp;
use podd::api::MigrationView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What was expected of each move, what it took, and the error.
    #[arg(long)]
    pub(super) predictions: bool,
}

/// How far a move is. A rehearsal is called off in any case: what counts is whether it showed that something breaks. And
/// what the journal of a target ends with is no news of the pod, which may have left since.
pub(super) fn step(m: &MigrationView) -> &str {
    match m.step.as_str() {
        "aborted" | "discarded" if m.rehearsal && m.error.is_none() => "rehearsed",
        "running" => "done",
        step => step,
    }
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let moves: Vec<MigrationView> = ctl.daemon.get(&path(&["migrations"])).await?;
    ctl.out.show(&moves, |moves| match args.predictions {
        true => predictions(moves, Timestamp::now()),
        false => in_words(moves, Timestamp::now()),
    });
    Ok(DONE)
}

/// Of moves from this host, as only a source measures.
fn predictions(moves: &[MigrationView], now: Timestamp) -> String {
    let rows = moves.iter().filter_map(|m| {
        let (expected, blackout_ms, total_ms) = (m.predicted?, m.blackout_ms?, m.total_ms?);
        let compared = |expected: f64, took: f64, unit: f64| {
            let words = [took, expected].map(|ms| words::ms(ms / unit));
            (format!("{}, {} expected", words[0], words[1]), format!("{:+.0} %", 100.0 * (expected / took - 1.0)))
        };
        let (blackout, off) = compared(expected.blackout_ms, blackout_ms, 1.0);
        let (total, total_off) = compared(expected.total_ms, total_ms, 1000.0);
        Some([m.pod.clone(), m.to.clone(), words::age(m.started, now), blackout, off, total, total_off])
    });
    table(["POD", "TO", "STARTED", "BLACKOUT, MS", "OFF BY", "IN ALL, S", "OFF BY"], rows)
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
        step(&MigrationView {
            id,
            pod,
            from,
            to,
            step: step_of,
            rehearsal,
            started,
            blackout_ms: None,
            total_ms: None,
            predicted: None,
            error,
        })
        .to_owned()
    }

    #[test]
    fn predictions_beside_what_was() {
        use podd::api::Times;
        let (id, pod, from, to) = ("0".to_owned(), "web".to_owned(), "a".to_owned(), "b".to_owned());
        let step = "done".to_owned();
        let predicted = Some(Times { blackout_ms: 90.0, total_ms: 1500.0 });
        let (started, blackout_ms, total_ms) = (Timestamp::UNIX_EPOCH, Some(60.0), Some(2000.0));
        let view = MigrationView {
            id,
            pod,
            from,
            to,
            step,
            rehearsal: false,
            started,
            blackout_ms,
            total_ms,
            predicted,
            error: None,
        };
        let aborted = MigrationView { blackout_ms: None, ..view.clone() };
        assert_eq!(
            predictions(&[view, aborted], Timestamp::UNIX_EPOCH),
            "\
POD  TO  STARTED  BLACKOUT, MS     OFF BY  IN ALL, S        OFF BY
web  b   0 s      60, 90 expected  +50 %   2, 1.5 expected  -25 %
"
        );
    }

    #[test]
    fn both_hosts_show_the_same_end_of_a_move() {
        assert_eq!([shown("done", false, None), shown("running", false, None)], ["done", "done"]);
        assert_eq!([shown("aborted", true, None), shown("discarded", true, None)], ["rehearsed", "rehearsed"]);
        assert_eq!([shown("aborted", true, Some("ill")), shown("aborted", false, None)], ["aborted", "aborted"]);
    }
}
