//! Whether a host that was patched is well: each thing that was looked at is told, not only that it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::tool;
use crate::api::Verdict as Check;
use crate::error::Result;
use crate::patch::decide::{Mechanism, Verdict};
use crate::patch::run::keep::own_part;
use crate::patch::run::orders::{Call, call_host};
use crate::patch::run::{Change, Proof, Run};
use crate::patch::watch;
use crate::server;
use crate::supervisor::Daemon;

/// A host that has just come up has its network after a while.
const PEERS_LIMIT: Duration = Duration::from_secs(60);
/// The operators' own tests.
const VERIFY_LIMIT: Duration = Duration::from_secs(600);
const DMESG_LIMIT: Duration = Duration::from_secs(30);
/// Finds what a kernel says that has stumbled, since `$1` (in seconds of the epoch) if that is given; 1: nothing, 3: it cannot be asked.
const STUMBLES: &str =
    "log=$(dmesg --level=emerg,alert,crit,err,warn ${1:+--since \"$(date -d \"@$1\" '+%F %T')\"}) || exit 3
    printf '%s\\n' \"$log\" | grep -m 1 -E 'BUG:|Oops|general protection fault|soft lockup|hung_task|Kernel panic'";

/// Looks at everything.
pub(super) async fn prove(
    daemon: &Arc<Daemon>,
    run: &str,
    change: &Change,
    boot_id: Option<&str>,
    peers: &[String],
) -> Result<Vec<Proof>> {
    watch::look(daemon, false).await?;
    let (facts, decision) = (watch::facts(daemon), watch::status(daemon)?.decision);
    let mut proofs = Vec::new();
    if let Some(before) = boot_id {
        let seen = if daemon.boot == before { "it is still the boot before" } else { "another boot than before" };
        proofs.push(proof("boot", daemon.boot != before, seen));
    }
    if let Some(wanted) = &change.kernel {
        let runs = facts.and_then(|facts| Some(facts.kernel.known()?.version.clone())).unwrap_or_default();
        let seen = if runs == *wanted { format!("{runs} runs") } else { format!("{runs} runs, {wanted} was to") };
        proofs.push(proof("kernel", runs == *wanted, seen));
    }
    let open: Vec<String> = change.ends.iter().filter(|key| decision.fixes().contains(*key)).cloned().collect();
    proofs.push(match &decision.verdict {
        // What came since this was installed is for the next run.
        Verdict::Unknown { missing } if !decision.update_missing => {
            proof("advisories", false, missing.first().map_or("unknown", |missing| missing.what.as_str()))
        }
        Verdict::Due { mechanism: Mechanism::LivePatch } => proof("advisories", false, "a live patch is still due"),
        _ if open.is_empty() => proof("advisories", true, format!("{} ended", change.ends.len())),
        _ => proof("advisories", false, format!("still there: {}", open.join(", "))),
    });
    proofs.push(match server::doctor(daemon).await {
        Err(error) => proof("doctor", false, error.message),
        Ok(checks) => match checks.iter().find(|check| check.verdict == Check::Fail) {
            Some(check) => proof("doctor", false, format!("{}: {}", check.name, check.fact)),
            None => proof("doctor", true, format!("{} checks", checks.len())),
        },
    });
    proofs.push(kernel_log(daemon, run, boot_id.is_some()).await?);
    proofs.push(network(daemon, peers).await);
    let policy = watch::policy(daemon).0.unwrap_or_default();
    for command in &policy.verify {
        let said = tool::run(daemon, run, &["sh", "-c", command], VERIFY_LIMIT).await?;
        let seen = if said.is_well() { "it succeeded".to_owned() } else { said.last() };
        proofs.push(proof(&format!("verify `{command}`"), said.is_well(), seen));
    }
    Ok(proofs)
}

fn proof(what: &str, well: bool, seen: impl Into<String>) -> Proof {
    Proof { what: what.to_owned(), well, seen: seen.into() }
}

/// Of this boot: the kernel's buffer begins with it; and if the host was not to boot, since the run has begun with it.
async fn kernel_log(daemon: &Daemon, run: &str, has_booted: bool) -> Result<Proof> {
    let begun = own_part(daemon)?.and_then(|host| host.begun.first().map(|begun| begun.at)).filter(|_| !has_booted);
    let since = begun.map(|begun| begun.as_second().to_string()).unwrap_or_default();
    let said = tool::run(daemon, run, &["sh", "-c", STUMBLES, "sh", &since], DMESG_LIMIT).await?;
    Ok(match said.status.and_then(|status| status.code()) {
        Some(0) => proof("kernel log", false, said.last()),
        Some(1) => proof("kernel log", true, "the kernel has not stumbled"),
        _ => proof("kernel log", true, format!("it cannot be read: {}", said.last())),
    })
}

/// Whether all of these hosts answer, from here.
async fn network(daemon: &Daemon, peers: &[String]) -> Proof {
    let begun = Instant::now();
    loop {
        let asked = peers.iter().filter(|peer| **peer != daemon.config.host);
        let answers = join_all(
            asked.map(async |peer| (peer.as_str(), call_host::<Option<Run>>(daemon, peer, &Call::Open).await.is_ok())),
        );
        let answers = answers.await;
        let silent: Vec<&str> = answers.iter().filter(|(_, well)| !well).map(|(peer, _)| *peer).collect();
        if silent.is_empty() {
            return proof("network", true, format!("{} hosts answer", answers.len()));
        }
        if begun.elapsed() > PEERS_LIMIT {
            return proof("network", false, format!("{} cannot be reached from here", silent.join(", ")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
