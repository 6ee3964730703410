//! `podctl ls`.

use jiff::Timestamp;
use podd::api::PodView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let pods: Vec<PodView> = ctl.daemon.get(&path(&["pods"])).await?;
    if args.quiet {
        let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        ctl.out.show(&names, |names| names.join("\n"));
    } else {
        ctl.out.show(&pods, |pods| in_words(pods, Timestamp::now()));
    }
    Ok(DONE)
}

fn in_words(pods: &[PodView], now: Timestamp) -> String {
    let rows = pods.iter().map(|pod| {
        [
            pod.name.clone(),
            match (pod.state.as_str(), &pod.last_checkpoint) {
                ("lost", Some(last)) => format!("lost, checkpoint of {} ago", words::age(last.taken, now)),
                _ => state(pod),
            },
            pod.started.map(|started| words::age(started, now)).unwrap_or_default(),
            pod.restarts.to_string(),
            pod.host.clone(),
            pod.addresses.join(" "),
            words::shortened(&pod.command.join(" "), 50),
        ]
    });
    table(["NAME", "STATE", "STARTED", "RESTARTS", "HOST", "ADDRESSES", "COMMAND"], rows)
}

/// `exited (137, out of memory)`.
pub(super) fn state(pod: &PodView) -> String {
    match pod.exit {
        Some(exit) if pod.state == "exited" => {
            format!("{} ({}{})", pod.state, exit.code, if exit.oom { ", out of memory" } else { "" })
        }
        Some(_) | None => match &pod.health {
            Some(health) => format!("{}, {}", pod.state, health.state.word()),
            None => pod.state.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use podd::api::{ExitStatus, LastCheckpoint};

    use super::*;

    #[test]
    fn pods_as_a_table() {
        let now: Timestamp = "2024-02-29T12:00:00Z".parse().unwrap();
        let web = PodView {
            name: "web".into(),
            id: "0123456789abcdef".into(),
            state: "running".into(),
            addresses: vec!["10.0.0.5/24".into(), "fd00::5/64".into()],
            command: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
            started: Some("2024-02-29T11:56:20Z".parse().unwrap()),
            exit: None,
            restarts: 2,
            host: "a".into(),
            epoch: 1,
            health: None,
            last_checkpoint: None,
        };
        let gone = PodView {
            name: "gone".into(),
            state: "lost".into(),
            addresses: vec![],
            started: None,
            restarts: 0,
            last_checkpoint: Some(LastCheckpoint {
                image: "/backup/gone.img".into(),
                host: "a".into(),
                taken: "2024-02-29T11:20:00Z".parse().unwrap(),
            }),
            ..web.clone()
        };
        let job = PodView {
            name: "import-job".into(),
            state: "exited".into(),
            addresses: vec![],
            started: None,
            exit: Some(ExitStatus { code: 137, signal: Some(9), oom: true }),
            restarts: 0,
            ..web.clone()
        };
        assert_eq!(
            in_words(&[web, job, gone], now),
            "\
NAME        STATE                           STARTED  RESTARTS  HOST  ADDRESSES               COMMAND
web         running                         3 min    2         a     10.0.0.5/24 fd00::5/64  nginx -g daemon off;
import-job  exited (137, out of memory)     -        0         a     -                       nginx -g daemon off;
gone        lost, checkpoint of 40 min ago  -        0         a     -                       nginx -g daemon off;
"
        );
    }
}
