//! `podctl migrate`.

use podd::api::{MigrateReport, MigrateRequest};
use podd::client::path;
use podd::patch::policy::Length;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::words;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl preflight web --to b   tells beforehand whether it can be moved
  podctl migrate web --to b
  podctl migrate web --to b --json | jq .blackout_ms

Exit code 3 means that preflight refused: nothing was frozen and the pod runs on as before.")]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Move it to this host of the fleet.
    #[arg(long, value_name = "HOST")]
    to: String,
    /// Rehearse first, and stay if that fails.
    #[arg(long)]
    rehearse: bool,
    /// Tell the pod so long before, such as 15m; it may ask for more time, or say that it is ready. Ctrl-C calls it off.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    notice: Option<Length>,
}

fn length(text: &str) -> Result<Length, String> {
    Length::try_from(text.to_owned())
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    if args.rehearse {
        super::rehearse::rehearse(&args.name, &args.to, ctl).await?;
    }
    let progress = ctl.out.progress(&format!("{} to {}", args.name, args.to));
    let url = path(&["pods", &args.name, "migrate"]);
    let notice_s = args.notice.map(|notice| notice.0.unsigned_abs().as_secs());
    let report: MigrateReport =
        ctl.daemon.stream(&url, &MigrateRequest { to: args.to, notice_s }, |p| progress.update(&p)).await?;
    drop(progress);
    ctl.out.show(&report, in_words);
    Ok(DONE)
}

fn in_words(report: &MigrateReport) -> String {
    let MigrateReport { pod, from, to, blackout_ms, total_ms, predicted, phases, bytes, rounds, mode: _, tracker: _ } =
        report;
    let parts = [
        ("freeze", phases.freeze_ms),
        ("dump", phases.dump_ms),
        ("transfer", phases.transfer_ms),
        ("restore", phases.restore_ms),
        ("announce", phases.announce_ms),
    ];
    let expected = predicted.map(|p| format!(", {} expected", words::ms(p.expected.blackout_ms))).unwrap_or_default();
    format!(
        "{pod} moved from {from} to {to} in {:.1} s: {} ms blackout{expected} ({}); {} memory ({} in the freeze), {} files, {}",
        total_ms / 1000.0,
        words::ms(*blackout_ms),
        parts.map(|(phase, ms)| format!("{phase} {}", words::ms(ms))).join(", "),
        words::bytes(bytes.memory),
        words::bytes(bytes.frozen),
        words::bytes(bytes.files),
        words::count(*rounds, "round"),
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
            mode: "stop-copy".into(),
            tracker: None,
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
            bytes: Bytes { memory: 268_435_456, frozen: 12_000_000, files: 4_000_000, wire: 272_500_000 },
            rounds: 1,
        };
        assert_eq!(
            in_words(&report),
            "web moved from a to b in 1.8 s: 312 ms blackout, 280 expected (freeze 4, dump 150, transfer 60, restore 90, announce 8); \
             268 MB memory (12 MB in the freeze), 4 MB files, 1 round"
        );
    }
}
