//! `podctl completion`.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::error::{DONE, Outcome};
use crate::output::{Output, Stream};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl completion bash > /etc/bash_completion.d/podctl
  podctl completion zsh > ~/.zfunc/_podctl
  podctl completion fish > ~/.config/fish/completions/podctl.fish")]
pub struct Args {
    /// The shell.
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: &Args, out: &Output) -> Outcome {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podctl", &mut script);
    out.bytes(Stream::Stdout, &script);
    Ok(DONE)
}
