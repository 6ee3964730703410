//! The command line of the pod daemon: flags in, one request to podd, words or JSON out.
//!
//! It decides nothing about pods: what may be done and how is podd's business. Exit codes: 0 done, 1 failed,
//! 2 usage, 3 refused by preflight, 4 daemon unreachable; `exec` and `run --attach` pass the command's own on.

// Doc comments of flags are help texts for terminals, where `[default: 1h]` is no link.
#![allow(rustdoc::broken_intra_doc_links)]

mod cli;
mod cmd;
mod context;
mod error;
mod flags;
mod output;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
            return error::not_parsed(&error, &Output::new(json));
        }
    };
    let out = Output::new(cli.json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(&error::failed(format!("the asynchronous runtime does not start: {error}"), None));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cmd::run(cli, &out));
    let code = outcome.unwrap_or_else(|error| {
        out.error(&error);
        error::exit_code(error.kind)
    });
    out.finish(code)
}
