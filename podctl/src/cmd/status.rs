//! `podctl status`.

use jiff::Timestamp;
use podd::api::StatusView;
use podd::client::path;
use podd::patch::decide::Verdict;
use podd::patch::policy::words as length;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 nothing to do, 10 a patch is due, 11 it is overdue, 12 unknown, 13 blocked; of several hosts the highest.
Why it is so: podctl why HOST.")]
pub struct Args {
    /// Tell of this host only, not of all of the fleet.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Read facts and advisories anew first.
    #[arg(long)]
    refresh: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let hosts: Vec<StatusView> = ctl.daemon.get(&query(args.of.as_deref(), args.refresh, false)).await?;
    ctl.out.show(&hosts, |hosts| in_words(hosts));
    Ok(code(&hosts))
}

/// Of one host, or of all.
pub(super) fn query(host: Option<&str>, refresh: bool, why: bool) -> String {
    let whose = host.map_or_else(|| "fleet=true".to_owned(), |host| format!("host={}", encoded(host)));
    format!("{}?{whose}&refresh={refresh}&why={why}", path(&["status"]))
}

/// For the value of a parameter: as `path` does for a segment.
pub(super) fn encoded(text: &str) -> String {
    path(&[text]).rsplit('/').next().unwrap_or_default().to_owned()
}

pub(super) fn code(hosts: &[StatusView]) -> u8 {
    hosts.iter().map(|host| host.decision.exit_code()).max().unwrap_or(DONE)
}

pub(super) fn in_words(hosts: &[StatusView]) -> String {
    let rows = hosts.iter().map(|host| {
        let decision = &host.decision;
        let (verdict, start) = match &decision.verdict {
            Verdict::Wait { until, mechanism, .. } => {
                (format!("wait, then {}", mechanism.verdict()), when(*until, host.now))
            }
            Verdict::Due { .. } => (decision.verdict.name().to_owned(), "now".to_owned()),
            other => (other.name().to_owned(), String::new()),
        };
        [
            host.host.clone(),
            verdict,
            decision.severity.map(|severity| severity.name().to_owned()).unwrap_or_default(),
            decision.deadline.map(|deadline| when(deadline, host.now)).unwrap_or_default(),
            start,
            host.kernel.as_ref().map(|kernel| kernel.version.clone()).unwrap_or_default(),
            host.facts_at.map(|at| words::age(at, host.now)).unwrap_or_default(),
            remark(host),
        ]
    });
    table(["HOST", "VERDICT", "SEVERITY", "DEADLINE", "STARTS", "KERNEL", "FACTS", "REMARK"], rows)
}

/// What keeps it, in a sentence.
fn remark(host: &StatusView) -> String {
    let text = match &host.decision.verdict {
        Verdict::Unknown { missing } => missing.first().map(|missing| missing.what.clone()).unwrap_or_default(),
        Verdict::Blocked { reason, .. } => reason.clone(),
        Verdict::Leave { signs } => signs.join("; "),
        Verdict::Covered { patches } => patches.join(", "),
        Verdict::Wait { why, .. } => why.clone(),
        Verdict::Current | Verdict::Due { .. } => host.remarks.first().cloned().unwrap_or_default(),
    };
    words::shortened(text.lines().next().unwrap_or_default(), 80)
}

/// `in 2d 3h`, `4h ago`.
pub(super) fn when(at: Timestamp, now: Timestamp) -> String {
    let left = at.duration_since(now);
    if left.is_negative() { format!("{} ago", length(-left)) } else { format!("in {}", length(left)) }
}

#[cfg(test)]
pub(super) mod tests {
    use podd::patch::decide::{Mechanism, Severity};
    use podd::patch::facts::{Kernel, Missing};

    use super::*;

    pub fn view(verdict: Verdict) -> StatusView {
        let now = Timestamp::UNIX_EPOCH;
        let mut view = StatusView::unknown("a", now, Missing { what: "x".into(), cure: "y".into() });
        view.decision.verdict = verdict;
        view.facts_at = Some(now);
        view.kernel =
            Some(Kernel { release: "6.1.0-47-amd64".into(), flavour: "amd64".into(), version: "6.1.170-3".into() });
        view
    }

    #[test]
    fn one_line_a_host() {
        let until = Timestamp::new(3 * 3600, 0).expect("a time");
        let why = "window night".to_owned();
        let mut wait = view(Verdict::Wait { until, mechanism: Mechanism::Evacuate, why });
        wait.decision.severity = Some(Severity::High);
        wait.decision.deadline = Timestamp::new(2 * 86400, 0).ok();
        let hosts = [wait, view(Verdict::Current)];
        assert_eq!(
            in_words(&hosts),
            "\
HOST  VERDICT                         SEVERITY  DEADLINE  STARTS  KERNEL     FACTS  REMARK
a     wait, then evacuate-and-reboot  high      in 2d     in 3h   6.1.170-3  0 s    window night
a     current                         -         -         -       6.1.170-3  0 s    -
"
        );
        assert_eq!(code(&hosts), 10);
        assert_eq!(code(&hosts[1..]), 0);
    }

    #[test]
    fn names_of_hosts_are_encoded() {
        assert_eq!(query(Some("a&b"), true, false), "/v1/status?host=a%26b&refresh=true&why=false");
        assert_eq!(query(None, false, false), "/v1/status?fleet=true&refresh=false&why=false");
    }
}
