//! `podctl doctor`.

use podd::api::{Check, Verdict};
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, FAILED, Outcome};
use crate::output::table;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(ctl: &Podctl<'_>) -> Outcome {
    let checks: Vec<Check> = ctl.daemon.get(&path(&["doctor"])).await?;
    ctl.out.show(&checks, |checks| in_words(checks));
    Ok(code(&checks))
}

fn code(checks: &[Check]) -> u8 {
    match checks.iter().any(|check| check.verdict == Verdict::Fail) {
        true => FAILED,
        false => DONE,
    }
}

fn in_words(checks: &[Check]) -> String {
    let rows = checks.iter().map(|check| {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        [check.name.clone(), verdict.to_owned(), check.fact.clone(), check.cure.clone().unwrap_or_default()]
    });
    table(["CHECK", "RESULT", "FACT", "CURE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_changes_the_exit_code() {
        let check = |verdict| Check { name: "criu".into(), verdict, fact: "4.2.1".into(), cure: None };
        assert_eq!(code(&[check(Verdict::Ok), check(Verdict::Warn)]), DONE);
        assert_eq!(code(&[check(Verdict::Ok), check(Verdict::Fail)]), FAILED);
        assert_eq!(in_words(&[check(Verdict::Fail)]), "CHECK  RESULT  FACT   CURE\ncriu   FAIL    4.2.1  -\n");
    }
}
