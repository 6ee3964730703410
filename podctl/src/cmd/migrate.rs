//! `podctl migrate`.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use podd::api::{ApiError, MemoryMode, MigrateReport, MigrateRequest, PodView, Progress};
use podd::client::path;
use podd::patch::policy::Length;

use super::Podctl;
use crate::error::{DONE, Outcome, combined, exit_code};
use crate::flags::pod_name;
use crate::output::words;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl preflight web --to b   tells beforehand whether it can be moved
  podctl migrate web --to b
  podctl migrate web --to b --json | jq .blackout_ms
  podctl migrate --all --to b   all that run here, some at a time
  podctl migrate web --to b --mode stop-copy   no memory goes ahead: less work in all, a longer blackout
  podctl migrate web --to b --mode post-copy   it runs there before all memory has come: for one that writes fast

Exit code 3 means that preflight refused: nothing was frozen and the pod runs on as before.")]
pub struct Args {
    /// The pods.
    #[arg(value_parser = pod_name, value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Move all pods that run on this host.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Move them to this host of the fleet.
    #[arg(long, value_name = "HOST")]
    to: String,
    /// How memory goes.
    #[arg(long, value_enum, default_value_t)]
    mode: MemoryMode,
    /// Rehearse each first, and leave it where it is if that fails.
    #[arg(long)]
    rehearse: bool,
    /// Tell pods so long before, such as 15m; each may ask for more time, or say that it is ready. Ctrl-C calls it off.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    notice: Option<Length>,
}

fn length(text: &str) -> Result<Length, String> {
    Length::try_from(text.to_owned())
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    if let ([name], false) = (args.names.as_slice(), args.all) {
        let progress = ctl.out.progress(&format!("{name} to {}", args.to));
        let report = migrate(name, &args, ctl, |p| progress.update(&p)).await?;
        drop(progress);
        ctl.out.show(&report, in_words);
        return Ok(DONE);
    }
    let names = if args.all { running(ctl).await? } else { args.names.clone() };
    let progress = ctl.out.progress(&format!("{} to {}", words::count(names.len() as u32, "pod"), args.to));
    // All at once: podd lets a few go at a time, and whoever shall be told is told now.
    let mut moving: FuturesUnordered<_> = names.iter().map(|name| migrate(name, &args, ctl, |_| ())).collect();
    let (mut reports, mut codes) = (Vec::new(), Vec::new());
    while let Some(moved) = moving.next().await {
        match moved {
            Ok(report) => {
                if !ctl.out.is_json() {
                    ctl.out.text(&in_words(&report));
                }
                reports.push(report);
            }
            Err(error) => {
                ctl.out.error(&error);
                codes.push(exit_code(error.kind));
            }
        }
        progress.say(&format!("{} moved, {} to go", reports.len(), names.len() - reports.len() - codes.len()));
    }
    drop(progress);
    if ctl.out.is_json() {
        ctl.out.value(&reports);
    }
    Ok(combined(codes))
}

async fn running(ctl: &Podctl<'_>) -> Result<Vec<String>, ApiError> {
    let pods: Vec<PodView> = ctl.daemon.get(&path(&["pods"])).await?;
    Ok(pods.into_iter().filter(|pod| pod.state == "running").map(|pod| pod.name).collect())
}

async fn migrate(
    name: &str,
    args: &Args,
    ctl: &Podctl<'_>,
    on_progress: impl FnMut(Progress),
) -> Result<MigrateReport, ApiError> {
    if args.rehearse {
        super::rehearse::rehearse(name, &args.to, ctl).await?;
    }
    let notice_s = args.notice.map(|notice| notice.0.unsigned_abs().as_secs());
    let request = MigrateRequest { to: args.to.clone(), mode: args.mode, notice_s };
    ctl.daemon.stream(&path(&["pods", name, "migrate"]), &request, on_progress).await
}

fn in_words(report: &MigrateReport) -> String {
    let MigrateReport { pod, from, to, mode, why, blackout_ms, total_ms, predicted, phases, bytes, rounds, .. } =
        report;
    let parts = [
        ("freeze", phases.freeze_ms),
        ("dump", phases.dump_ms),
        ("transfer", phases.transfer_ms),
        ("restore", phases.restore_ms),
        ("announce", phases.announce_ms),
    ];
    let expected = predicted.map(|p| format!(", {} expected", words::ms(p.expected.blackout_ms))).unwrap_or_default();
    let wire = match bytes.packed {
        0 => String::new(),
        packed => format!(", {} of it compressed: {} over the wire", words::bytes(packed), words::bytes(bytes.wire)),
    };
    let later = match report.resident_ms {
        Some(ms) => format!(", {} within {} ms after it)", words::bytes(bytes.later), words::ms(ms)),
        None => ")".to_owned(),
    };
    let how = if mode == "pre-copy" { format!("{mode} in {}", words::count(*rounds, "round")) } else { mode.clone() };
    // Moves of an earlier podd do not say.
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    format!(
        "{pod} moved from {from} to {to} in {:.1} s: {} ms blackout{expected} ({}); {how}{why}: {} memory ({} in the freeze{later}, {} files{wire}",
        total_ms / 1000.0,
        words::ms(*blackout_ms),
        parts.map(|(phase, ms)| format!("{phase} {}", words::ms(ms))).join(", "),
        words::bytes(bytes.memory),
        words::bytes(bytes.frozen),
        words::bytes(bytes.files),
    )
}

#[cfg(test)]
mod tests {
    use podd::api::{Bytes, Phases, Prediction, Times};

    use super::*;

    #[test]
    fn report_in_words() {
        let times = |blackout_ms| Times { blackout_ms, total_ms: 2000.0 };
        let report = MigrateReport {
            pod: "web".into(),
            from: "a".into(),
            to: "b".into(),
            mode: "pre-copy".into(),
            why: "write-protection".into(),
            tracker: Some("write-protection".into()),
            resident_ms: None,
            blackout_ms: 312.3,
            total_ms: 1840.0,
            predicted: Some(Prediction { expected: times(280.0), model: times(300.0) }),
            phases: Phases {
                preflight_ms: 20.0,
                prepare_ms: 400.0,
                freeze_ms: 4.0,
                dump_ms: 150.4,
                transfer_ms: 60.0,
                restore_ms: 90.0,
                announce_ms: 8.0,
            },
            bytes: Bytes {
                memory: 268_435_456,
                frozen: 12_000_000,
                later: 0,
                files: 4_000_000,
                packed: 200_000_000,
                wire: 120_500_000,
            },
            rounds: 3,
        };
        assert_eq!(
            in_words(&report),
            "web moved from a to b in 1.8 s: 312 ms blackout, 280 expected (freeze 4, dump 150, transfer 60, restore 90, announce 8); \
             pre-copy in 3 rounds (write-protection): 268 MB memory (12 MB in the freeze), 4 MB files, 200 MB of it compressed: \
             120 MB over the wire"
        );
        let report = MigrateReport { mode: "stop-copy".into(), why: "as asked for".into(), ..report };
        assert!(in_words(&report).contains("; stop-copy (as asked for): 268 MB memory"), "{}", in_words(&report));
        let bytes = Bytes { later: 30_000_000, ..report.bytes.clone() };
        let report = MigrateReport { mode: "post-copy".into(), resident_ms: Some(120.4), bytes, ..report };
        let said = in_words(&report);
        assert!(
            said.contains("268 MB memory (12 MB in the freeze, 30 MB within 120 ms after it), 4 MB files"),
            "{said}"
        );
    }
}
