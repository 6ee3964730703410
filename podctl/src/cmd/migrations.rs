//! `podctl migrations`.

use jiff::Timestamp;
use podd::api::MigrationView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// A rehearsal is called off in any case: what counts is whether it showed that something breaks.
fn step(m: &MigrationView) -> String {
    let over = m.step == "aborted" || m.step == "discarded";
    if m.rehearsal && over && m.error.is_none() { "rehearsed".to_owned() } else { m.step.clone() }
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
            step(m),
            m.blackout_ms.map(|ms| format!("{} ms", words::ms(ms))).unwrap_or_default(),
            m.error.clone().unwrap_or_default(),
        ]
    });
    table(["ID", "POD", "FROM", "TO", "STARTED", "STEP", "BLACKOUT", "ERROR"], rows)
}
