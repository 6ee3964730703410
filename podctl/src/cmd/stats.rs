//! `podctl stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use podd::api::{ApiError, PodStats, PodView};
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome, combined, exit_code};
use crate::flags::pod_name;
use crate::output::{table, words};

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to show [default: all that run].
    #[arg(value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
    /// Show new figures every second until interrupted.
    #[arg(long)]
    watch: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let mut before = BTreeMap::new();
    loop {
        let (stats, code) = read(args, ctl).await?;
        if !args.watch {
            ctl.out.show(&stats, |stats| in_words(stats, &before));
            return Ok(code);
        }
        if ctl.out.is_json() {
            ctl.out.value_line(&stats);
        } else {
            ctl.out.next_picture();
            ctl.out.text(&in_words(&stats, &before));
        }
        if ctl.out.gone() {
            return Ok(DONE);
        }
        if code != DONE {
            return Ok(code);
        }
        before = stats.into_iter().map(|stats| (stats.name.clone(), stats)).collect();
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The figures of all pods asked for. Without names a pod that ended meanwhile is no error.
async fn read(args: &Args, ctl: &Podctl<'_>) -> Result<(Vec<PodStats>, u8), ApiError> {
    let mut names = args.names.clone();
    if names.is_empty() {
        let pods: Vec<PodView> = ctl.daemon.get(&path(&["pods"])).await?;
        names = pods.into_iter().filter(|pod| pod.state == "running").map(|pod| pod.name).collect();
    }
    let mut all = Vec::new();
    let mut codes = Vec::new();
    for name in &names {
        match ctl.daemon.get(&path(&["pods", name, "stats"])).await {
            Ok(stats) => all.push(stats),
            Err(error) if args.names.is_empty() && exit_code(error.kind) == crate::error::FAILED => {}
            Err(error) => {
                ctl.out.error(&error);
                codes.push(exit_code(error.kind));
            }
        }
    }
    Ok((all, combined(codes)))
}

fn in_words(all: &[PodStats], before: &BTreeMap<String, PodStats>) -> String {
    let rows = all.iter().map(|stats| {
        [
            stats.name.clone(),
            before.get(&stats.name).and_then(|before| percent(before, stats)).unwrap_or_default(),
            words::cpu_time(stats.cpu_usec),
            words::memory(stats.memory),
            stats.memory_limit.map(words::memory).unwrap_or_default(),
            stats.pids.to_string(),
            words::bytes(stats.rx_bytes),
            words::bytes(stats.tx_bytes),
        ]
    });
    table(["NAME", "CPU", "CPU TIME", "MEMORY", "LIMIT", "PIDS", "RECEIVED", "SENT"], rows)
}

/// Of one core; none if the clock went back or the counter began anew.
fn percent(before: &PodStats, now: &PodStats) -> Option<String> {
    let elapsed = now.time.duration_since(before.time).as_micros();
    let used = now.cpu_usec.checked_sub(before.cpu_usec)?;
    (elapsed > 0).then(|| format!("{:.1} %", used as f64 * 100.0 / elapsed as f64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn figures_as_a_table() {
        let first = PodStats {
            name: "web".into(),
            cpu_usec: 1_500_000,
            memory: 300 << 20,
            memory_limit: Some(512 << 20),
            pids: 5,
            rx_bytes: 1_200,
            tx_bytes: 268_435_456,
            time: "2024-02-29T12:00:00Z".parse().unwrap(),
        };
        let second = PodStats { cpu_usec: 2_250_000, time: "2024-02-29T12:00:01Z".parse().unwrap(), ..first.clone() };
        assert_eq!(
            in_words(std::slice::from_ref(&first), &BTreeMap::new()),
            "\
NAME  CPU  CPU TIME  MEMORY   LIMIT    PIDS  RECEIVED  SENT
web   -    1.50 s    300 MiB  512 MiB  5     1.2 kB    268 MB
"
        );
        assert_eq!(percent(&first, &second).as_deref(), Some("75.0 %"));
        assert_eq!(percent(&second, &first), None);
        assert_eq!(percent(&first, &first), None);
    }
}
