//! The command line as a whole; each verb's own flags are in `cmd/<verb>.rs`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::cmd;

/// Run server applications in pods, and move them between hosts while they serve.
#[derive(Debug, Parser)]
#[command(name = "podctl", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Talk to this host of the contexts file.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "socket", help_heading = "Global options")]
    pub host: Option<String>,
    /// Print results as JSON on stdout and errors as JSON on stderr.
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Talk to the podd behind this Unix socket [env: PODD_SOCKET] [default: /run/podd/podd.sock].
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub socket: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by preflight, 4 podd unreachable.
Hosts for --host are in $PODCTL_CONFIG, ~/.config/podctl/config.toml or /etc/podd/podctl.toml:
  default = \"a\"
  [hosts.a]
  socket = \"/run/podd/podd.sock\"";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a pod and start it.
    Run(cmd::run::Args),
    /// Create a pod without starting it.
    Create(cmd::create::Args),
    /// Start pods that are created or have ended.
    Start(cmd::start::Args),
    /// Ask pods to end, and kill them if they do not in time.
    Stop(cmd::stop::Args),
    /// Send a signal to pods' commands.
    Kill(cmd::kill::Args),
    /// Remove pods with their files and logs.
    Rm(cmd::rm::Args),
    /// List the pods of this host.
    Ls(cmd::ls::Args),
    /// Show everything known about pods.
    Inspect(cmd::inspect::Args),
    /// Print what a pod has written to its standard output and error.
    Logs(cmd::logs::Args),
    /// Run a command inside a running pod and pass its exit code on.
    Exec(cmd::exec::Args),
    /// Show what pods use of processor, memory and network.
    Stats(cmd::stats::Args),
    /// List the processes of a pod.
    Top(cmd::top::Args),
    /// Write a running pod to an image file.
    Checkpoint(cmd::checkpoint::Args),
    /// Bring a pod back from an image.
    Restore(cmd::restore::Args),
    /// Write pods to this host's disk and free their memory.
    Suspend(cmd::suspend::Args),
    /// Let suspended pods go on where they were; also one whose move is in doubt, as the other host is gone for good.
    Resume(cmd::resume::Args),
    /// Move a running pod to another host with its memory, files, addresses and open connections.
    Migrate(cmd::migrate::Args),
    /// Restore a clone of a running pod on another host, cut off from everything, to see whether a move would succeed.
    Rehearse(cmd::rehearse::Args),
    /// Tell whether a pod can be checkpointed or moved, and what stands in the way.
    Preflight(cmd::preflight::Args),
    /// Check whether this host can run and move pods.
    Doctor(cmd::doctor::Args),
    /// List past and present moves.
    Migrations(cmd::migrations::Args),
    /// Print what happens on this host, and to its pods, as it happens.
    Events(cmd::events::Args),
    /// Tell what has happened on this host since its first day: when, who wanted it, and how it ended.
    History(cmd::history::Args),
    /// Tell whether hosts need patching, one line a host.
    Status(cmd::status::Args),
    /// Tell why a host needs patching or not: the whole chain, advisory by advisory, and what it would cost its pods.
    Why(cmd::why::Args),
    /// List the advisories that a host has not ended.
    Advisories(cmd::advisories::Args),
    /// Look after the patching of hosts.
    #[command(subcommand)]
    Patch(cmd::patch::Verb),
    /// Check and explain the policy for patching.
    #[command(subcommand)]
    Policy(cmd::policy::Verb),
    /// Say whose word counts about what live patches cover.
    #[command(subcommand)]
    Livepatch(cmd::livepatch::Verb),
    /// Make this host part of a fleet.
    #[command(subcommand)]
    Host(cmd::host::Verb),
    /// Print a completion script for a shell.
    Completion(cmd::completion::Args),
    /// Print the versions of podctl and podd.
    Version(cmd::version::Args),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Verb, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.verb).map_err(|error| error.kind())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_flag_has_a_sentence() {
        fn walk(command: &clap::Command) {
            let name = command.get_name();
            if name == "help" {
                return;
            }
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "{name} has no help");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{name} {argument} has no help");
            }
            command.get_subcommands().for_each(walk);
        }
        let mut command = Cli::command();
        command.build();
        walk(&command);
    }

    #[test]
    fn run_takes_all_flags_of_a_pod() {
        let line = "podctl run --name web --rootfs /r --ip 10.0.0.5/24 --ip fd00::5/64 --gateway 10.0.0.1 -e A=1 -e B=x=y \
                    --user 33:33 -w /srv --memory 512M --cpus 1.5 --pids 9 -v /a:/b:ro --volume /c:/d --cap-add NET_RAW \
                    --restart always --hostname h --stop-timeout 5s --allow-new-privileges --attach -- redis-server --port 1";
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let Verb::Run(args) = parsed(&words).unwrap() else { panic!() };
        assert!(args.attach);
        let spec = args.pod.spec().unwrap();
        assert_eq!(spec.command, ["redis-server", "--port", "1"]);
        assert_eq!((spec.env["A"].as_str(), spec.env["B"].as_str()), ("1", "x=y"));
        assert_eq!((spec.volumes.len(), spec.stop_timeout_s, spec.limits.pids), (2, 5, Some(9)));
        assert_eq!(spec.network.unwrap().addresses.len(), 2);
    }

    #[test]
    fn exec_leaves_the_commands_flags_alone() {
        for line in ["podctl exec -it -u 33 -e A=1 web -- ls -l --json", "podctl exec -i -t web ls -l --json"] {
            let Verb::Exec(args) = parsed(line).unwrap() else { panic!() };
            assert!(args.interactive && args.tty);
            assert_eq!(args.command, ["ls", "-l", "--json"], "{line}");
        }
    }

    #[test]
    fn global_flags_may_stand_anywhere() {
        let cli = Cli::try_parse_from(["podctl", "host", "ls", "--json", "--host", "b"]).unwrap();
        assert!(cli.json && cli.host.as_deref() == Some("b"));
        // A host that is asked about is not the one that is asked.
        for verb in ["status b", "why b", "advisories b", "patch check b", "patch start-now b"] {
            let cli = Cli::try_parse_from(format!("podctl {verb}").split(' ')).unwrap();
            assert!(cli.host.is_none() && format!("{:?}", cli.verb).contains("of: Some(\"b\")"), "{cli:?}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        use clap::error::ErrorKind;
        for (line, kind) in [
            ("podctl start", ErrorKind::MissingRequiredArgument),
            ("podctl stop web Bad!", ErrorKind::ValueValidation),
            ("podctl kill -s NOPE web", ErrorKind::ValueValidation),
            ("podctl migrate web", ErrorKind::MissingRequiredArgument),
            ("podctl exec web", ErrorKind::MissingRequiredArgument),
            ("podctl run -e =x", ErrorKind::ValueValidation),
            ("podctl run -d --attach", ErrorKind::ArgumentConflict),
            ("podctl --host a --socket /x ls", ErrorKind::ArgumentConflict),
            ("podctl host join 10.0.0.1 token --name b --listen 10.0.0.2:7777", ErrorKind::ValueValidation),
            ("podctl fly", ErrorKind::InvalidSubcommand),
        ] {
            assert_eq!(parsed(line).unwrap_err(), kind, "{line}");
        }
    }
}
