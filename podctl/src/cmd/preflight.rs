//! `podctl preflight`.

use podd::api::PreflightRequest;
use podd::client::compat::{Finding, Verdict};
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome, REFUSED};
use crate::flags::pod_name;
use crate::output::table;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Judge a move to this host [default: a checkpoint on this one].
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let request = PreflightRequest { to: args.to };
    let findings: Vec<Finding> = ctl.daemon.post(&path(&["pods", &args.name, "preflight"]), &request).await?;
    ctl.out.show(&findings, |findings| in_words(findings));
    Ok(code(&findings))
}

fn code(findings: &[Finding]) -> u8 {
    match findings.iter().any(|finding| finding.verdict == Verdict::No) {
        true => REFUSED,
        false => DONE,
    }
}

fn in_words(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let verdict = match finding.verdict {
            Verdict::Go => "go",
            Verdict::GoWith => "go with",
            Verdict::No => "no",
        };
        [finding.rule.clone(), verdict.to_owned(), finding.fact.clone(), finding.cure.clone().unwrap_or_default()]
    });
    table(["RULE", "VERDICT", "FACT", "CURE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_as_a_table_and_an_exit_code() {
        let finding = |rule: &str, verdict, fact: &str, cure: Option<&str>| Finding {
            rule: rule.into(),
            verdict,
            fact: fact.into(),
            cure: cure.map(Into::into),
        };
        let mut findings = vec![finding("cpu-features", Verdict::Go, "both have avx2", None)];
        assert_eq!(code(&findings), DONE);
        findings.push(finding("rlimits", Verdict::GoWith, "nofile will be lowered", None));
        assert_eq!(code(&findings), DONE);
        findings.push(finding("io-uring", Verdict::No, "redis (12) has a ring", Some("start it with --no-uring")));
        assert_eq!(code(&findings), REFUSED);
        assert_eq!(
            in_words(&findings),
            "\
RULE          VERDICT  FACT                    CURE
cpu-features  go       both have avx2          -
rlimits       go with  nofile will be lowered  -
io-uring      no       redis (12) has a ring   start it with --no-uring
"
        );
    }
}
