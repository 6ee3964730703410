//! `podctl migrations`.

use jiff::Timestamp;
use podd::api::MigrationView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {}

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
            if m.rehearsal && m.error.is_none() { "rehearsed".to_owned() } else { m.step.clone() },
            m.blackout_ms.map(|ms| format!("{} ms", words::ms(ms))).unwrap_or_default(),
            m.error.clone().unwrap_or_default(),
        ]
    });
    table(["ID", "POD", "FROM", "TO", "STARTED", "STEP", "BLACKOUT", "ERROR"], rows)
}
