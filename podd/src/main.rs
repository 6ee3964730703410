//! The pod daemon's program: the daemon itself, and the small processes that it starts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use podd::patch::facts::Facts;
use podd::patch::reader::Recorder;

/// Runs pods, moves them between hosts, keeps their records.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon.
    Serve {
        /// Configuration file [default: /etc/podd/podd.toml].
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Parent one pod (started by the daemon).
    #[command(hide = true)]
    Shim {
        /// The pod's runtime folder.
        bundle: PathBuf,
    },
    /// Try id-mapped mounts (started by the daemon).
    #[command(hide = true)]
    ProbeIdMaps {
        /// Where.
        folder: PathBuf,
    },
    /// Print all that the status service reads of this host, for a report about a wrong verdict.
    RecordFacts {
        /// What the host is, in a few words.
        about: String,
    },
    /// Run a command inside a pod (started by the daemon).
    #[command(hide = true)]
    Enter,
}

fn main() -> ExitCode {
    // Pods have folders that we make; a unit's or a shell's stricter mask must not close them to the pod's users.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    podd::sys::process::share_memory_arenas();
    // The shim and enter fork and must be single-threaded, so the runtime is made only for the daemon.
    let result = match Arguments::parse().command {
        Command::Serve { config } => podd::server::main(config.as_deref()).map_err(|e| e.to_string()),
        Command::Shim { bundle } => podd::shim::main(&bundle).map_err(|e| e.to_string()),
        Command::ProbeIdMaps { folder } => podd::sys::namespaces::probe_id_maps(&folder).map_err(|e| e.to_string()),
        Command::RecordFacts { about } => record_facts(&about).map_err(|e| e.to_string()),
        Command::Enter => podd::pod::exec::enter().map_err(|e| e.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "podd: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn record_facts(about: &str) -> Result<(), Box<dyn std::error::Error>> {
    let recorder = Recorder::new(about);
    let _ = Facts::read(&recorder);
    let text = serde_json::to_string_pretty(&recorder.finish())?;
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
