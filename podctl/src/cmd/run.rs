//! `podctl run`: pods are services, so it returns as soon as the pod runs, unless `--attach` is given.

use std::time::Duration;

use podd::api::{ApiError, ExitStatus, KillRequest};
use podd::client::path;
use tokio::signal::unix::{SignalKind, signal};

use super::{Podctl, create, logs, pod_name_of};
use crate::error::{self, DONE, Outcome};
use crate::flags::PodFlags;

/// For the last lines of the log, after the pod has ended.
const LAST_LINES: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl run --name web --rootfs /srv/web-root --ip 10.0.0.5/24 --gateway 10.0.0.1 -- nginx -g 'daemon off;'
  podctl run --name cache --image oci:/srv/images/redis:7 --memory 512M --cpus 1.5 --restart always
  podctl run -f web.toml --name web-2 --ip 10.0.0.6/24
  podctl run --name job --image docker-archive:job.tar --attach -- ./import --all

A pod file has the same keys as the flags:
  name = \"web\"
  rootfs = \"/srv/web-root\"
  command = [\"nginx\", \"-g\", \"daemon off;\"]
  ip = [\"10.0.0.5/24\", \"fd00::5/64\"]
  gateway = \"10.0.0.1\"
  memory = \"512M\"
  cpus = 1.5
  volumes = [\"/srv/www:/var/www:ro\"]
  restart = \"always\"
  stop_timeout = \"10s\"
  env = { LANG = \"C.UTF-8\" }")]
pub struct Args {
    #[command(flatten)]
    pub pod: PodFlags,
    /// Follow the pod's output until its command ends for the first time, and exit with its code.
    #[arg(long)]
    pub attach: bool,
    /// Return at once (the default).
    #[arg(short, long, conflicts_with = "attach")]
    pub detach: bool,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let pod = create::create(ctl, args.pod.spec()?, true).await?;
    if args.attach {
        return attach(ctl, &pod.name).await;
    }
    ctl.out.show(&pod, pod_name_of);
    Ok(DONE)
}

/// The first interrupt goes to the pod, the second leaves it alone.
async fn attach(ctl: &Podctl<'_>, name: &str) -> Outcome {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let log = path(&["pods", name, "logs"]) + "?follow=true&once=true";
    let waiting = path(&["pods", name, "wait"]);
    let follow = ctl.daemon.lines(&log, |line| logs::print(ctl.out, &line, false));
    let wait = ctl.daemon.post::<_, ExitStatus>(&waiting, &());
    tokio::pin!(follow, wait);
    let mut following = true;
    let mut told = false;
    let status = loop {
        let number = tokio::select! {
            status = &mut wait => break status?,
            end = &mut follow, if following => {
                following = false;
                end?;
                if ctl.out.gone() {
                    return Ok(DONE);
                }
                continue;
            }
            _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        };
        if told {
            ctl.out.note(&format!("{name} runs on; `podctl stop {name}` ends it"));
            return Ok(u8::try_from(128 + number).unwrap_or(error::FAILED));
        }
        told = true;
        ctl.daemon
            .post::<_, serde_json::Value>(&path(&["pods", name, "kill"]), &KillRequest { signal: number })
            .await?;
    };
    if following {
        // The exit code is known; a log that fails or does not end cannot change it.
        tokio::time::timeout(LAST_LINES, &mut follow).await.ok();
    }
    Ok(code(&status))
}

fn code(status: &ExitStatus) -> u8 {
    u8::try_from(status.code).unwrap_or(error::FAILED)
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, ApiError> {
    signal(kind).map_err(|e| error::failed(format!("signals cannot be received: {e}"), None))
}
