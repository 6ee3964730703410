//! `podctl why`.

use jiff::{SignedDuration, Timestamp};
use podd::api::StatusView;
use podd::patch::decide::{Standing, Verdict, needs_boot};
use podd::patch::facts::{Facts, Hardware};
use podd::patch::policy::words as duration;

use super::Podctl;
use super::status::{code, query, when};
use crate::error::{Outcome, failed};
use crate::output::{printable, table, words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The host; without it, the one that is asked.
    #[arg(value_name = "HOST")]
    of: Option<String>,
    /// Show all advisories, not only the twenty worst.
    #[arg(long)]
    all: bool,
}

/// Advisories that are shown.
const WORST: usize = 20;

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let host = args.of.as_deref();
    let status = one(ctl, host, false).await?;
    ctl.out.show(&status, |status| in_words(status, if args.all { usize::MAX } else { WORST }));
    Ok(code(&[status]))
}

/// The whole of one host.
pub(super) async fn one(
    ctl: &Podctl<'_>,
    host: Option<&str>,
    refresh: bool,
) -> Result<StatusView, podd::api::ApiError> {
    let query = match host {
        Some(_) => query(host, refresh, true),
        None => format!("/v1/status?refresh={refresh}&why=true"),
    };
    let hosts: Vec<StatusView> = ctl.daemon.get(&query).await?;
    hosts.into_iter().next().ok_or_else(|| failed("podd told of no host".to_owned(), None))
}

fn in_words(status: &StatusView, most: usize) -> String {
    let decision = &status.decision;
    let mut text = format!("{}: {}\n", status.host, verdict(status));
    let mut line = |line: String| text += &format!("  {}\n", printable(&line));
    decision.chain.iter().cloned().for_each(&mut line);
    status.remarks.iter().map(|remark| remark.replace('\n', " ")).for_each(&mut line);
    let wants = match (status.at_once, status.chosen) {
        (true, _) => Some("its owner wants it now".to_owned()),
        (false, Some(at)) => Some(format!("its owner chose {at}")),
        (false, None) => None,
    };
    wants.into_iter().for_each(&mut line);
    status.facts.iter().flat_map(|facts| of_host(facts, status.now)).for_each(&mut line);
    let feeds = status.feeds.iter().map(|feed| {
        let age = feed.age(status.now).map(duration).unwrap_or_else(|| "never".to_owned());
        let problem = feed.problem.as_deref().unwrap_or_default().lines().next().unwrap_or_default().to_owned();
        [feed.feed.name().to_owned(), feed.from.clone(), age, feed.entries.to_string(), problem]
    });
    if feeds.len() > 0 {
        text += "\n";
        text += &table(["FEED", "FROM", "AGE", "ENTRIES", "PROBLEM"], feeds);
    }
    if !decision.exposures.is_empty() {
        text += "\n";
        text += &exposures(status, most);
    }
    if !status.pods.is_empty() {
        text += "\n";
        let rows = status.pods.iter().map(|pod| [pod.pod.clone(), format!("{} ms", words::ms(pod.blackout_ms))]);
        text += &table(["POD", "SILENT IN A MOVE"], rows);
    }
    if !status.notices.is_empty() {
        text += "\n";
        let rows = status.notices.iter().map(|notice| {
            let answer = match notice.acknowledged {
                true => "ready".to_owned(),
                false if notice.delayed_s > 0 => format!("wanted {} s more", notice.delayed_s),
                false => String::new(),
            };
            [notice.pod.clone(), format!("{:.0}", notice.not_before), answer]
        });
        text += &table(["POD", "TOLD: NOT BEFORE", "ITS ANSWER"], rows);
    }
    text
}

/// What was read of the host that the chain does not speak of.
fn of_host(facts: &Facts, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let up = facts.uptime_s.known().and_then(|seconds| i64::try_from(*seconds).ok());
    if let Some(up) = up {
        lines.push(format!("it has been up for {}", duration(SignedDuration::from_secs(up))));
    }
    let sources = facts.sources.known().into_iter().flatten().map(|source| {
        let valid = source.valid_until.map(|end| format!(", valid until {end:.0}")).unwrap_or_default();
        format!("{} ({} old{valid})", source.origin.codename, duration(now.duration_since(source.date)))
    });
    let sources: Vec<String> = sources.collect();
    if !sources.is_empty() {
        lines.push(format!("apt's sources: {}", sources.join(", ")));
    }
    let revisions = facts.microcode.known().map(|microcode| microcode.revisions.join(", "));
    lines.extend(revisions.filter(|revisions| !revisions.is_empty()).map(|revisions| format!("microcode {revisions}")));
    let Hardware { corrected, uncorrected, hot, disks, log, memory_pressure } = &facts.hardware;
    let count = |what: &str, count: &Option<u64>| count.map(|count| format!("{count} {what} memory errors"));
    let pressure =
        memory_pressure.map(|part| format!("{}.{:02} % of the time all waits for memory", part / 100, part % 100));
    let disks = disks
        .iter()
        .flatten()
        .map(|disk| format!("{} {}", disk.name, if disk.passed { "is well" } else { "expects to fail" }));
    let hardware: Vec<String> = [count("corrected", corrected), count("uncorrected", uncorrected), pressure]
        .into_iter()
        .flatten()
        .chain(disks)
        .chain(hot.iter().map(|sensor| format!("{sensor} is hot")))
        .chain(log.iter().cloned())
        .collect();
    if !hardware.is_empty() {
        lines.push(format!("hardware: {}", hardware.join("; ")));
    }
    lines
}

fn verdict(status: &StatusView) -> String {
    match &status.decision.verdict {
        Verdict::Wait { until, mechanism, why } => {
            format!("{} at {until} ({}, {why})", mechanism.verdict(), when(*until, status.now))
        }
        Verdict::Due { mechanism } => format!("{} now", mechanism.verdict()),
        Verdict::Covered { patches } => format!("covered by live patch {}", patches.join(", ")),
        Verdict::Leave { signs } => format!("pods should leave: {}", signs.join("; ")),
        Verdict::Blocked { reason, cure } => format!("blocked: {reason}\n  cure: {cure}"),
        Verdict::Unknown { missing } => {
            let lines =
                missing.iter().map(|missing| format!("\n  missing: {}\n  cure: {}", missing.what, missing.cure));
            format!("unknown{}", lines.collect::<String>())
        }
        Verdict::Current => "current".to_owned(),
    }
}

/// Advisory by advisory: what runs, what ends it, and whether that can be had.
pub(super) fn exposures(status: &StatusView, most: usize) -> String {
    let all = &status.decision.exposures;
    let rows = all.iter().take(most).map(|exposure| {
        let standing = match &exposure.standing {
            Standing::Fixed(version) if needs_boot(&exposure.package) => format!("{version} ends it, by a boot"),
            Standing::Fixed(version) => format!("{version} ends it, by a restart"),
            Standing::Covered(patch) => format!("covered by {patch}"),
            Standing::Open if exposure.fixed_in.is_some() => "apt does not bring what ends it".to_owned(),
            Standing::Open => "nothing ends it yet".to_owned(),
        };
        [
            exposure.id.clone(),
            exposure.package.clone(),
            exposure.severity.name().to_owned(),
            exposure.running.clone(),
            exposure.fixed_in.clone().unwrap_or_default(),
            standing,
            words::shortened(&exposure.summary, 60),
        ]
    });
    let mut text = table(["ADVISORY", "PACKAGE", "SEVERITY", "RUNNING", "FIXED IN", "STANDING", "SUMMARY"], rows);
    if all.len() > most {
        text += &format!("and {} more: podctl advisories\n", all.len() - most);
    }
    text
}

#[cfg(test)]
mod tests {
    use podd::patch::decide::{Exposure, Mechanism, Severity};

    use super::super::status::tests::view;
    use super::*;

    #[test]
    fn the_whole_chain() {
        let mut status = view(Verdict::Due { mechanism: Mechanism::Evacuate });
        status.decision.chain = vec!["the kernel 6.1.0-47-amd64 runs".into()];
        let exposure = Exposure {
            id: "CVE-2026-1".into(),
            package: "linux".into(),
            running: "6.1.170-3".into(),
            fixed_in: Some("6.1.172-1".into()),
            severity: Severity::High,
            summary: "a fault".into(),
            standing: Standing::Fixed("6.1.172-1".into()),
        };
        status.decision.exposures = vec![exposure.clone(), exposure];
        status.pods = vec![podd::api::PodSilence { pod: "web".into(), blackout_ms: 89.4 }];
        assert_eq!(
            in_words(&status, 1),
            "\
a: evacuate-and-reboot now
  the kernel 6.1.0-47-amd64 runs

ADVISORY    PACKAGE  SEVERITY  RUNNING    FIXED IN   STANDING                      SUMMARY
CVE-2026-1  linux    high      6.1.170-3  6.1.172-1  6.1.172-1 ends it, by a boot  a fault
and 1 more: podctl advisories

POD  SILENT IN A MOVE
web  89 ms
"
        );
        assert_eq!(code(&[status]), 10);
    }
}
