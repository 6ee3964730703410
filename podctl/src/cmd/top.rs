//! `podctl top`.

use podd::api::ProcessView;
use podd::client::path;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::{table, words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let processes: Vec<ProcessView> = ctl.daemon.get(&path(&["pods", &args.name, "top"])).await?;
    ctl.out.show(&processes, |processes| in_words(processes));
    Ok(DONE)
}

fn in_words(processes: &[ProcessView]) -> String {
    let rows = processes.iter().map(|process| {
        [
            process.pid.to_string(),
            process.ppid.to_string(),
            process.host_pid.to_string(),
            process.uid.to_string(),
            process.state.clone(),
            words::memory(process.rss),
            process.threads.to_string(),
            words::cpu_time(process.cpu_usec),
            words::shortened(&process.command, 80),
        ]
    });
    table(["PID", "PARENT", "HOST PID", "UID", "STATE", "MEMORY", "THREADS", "CPU TIME", "COMMAND"], rows)
}
