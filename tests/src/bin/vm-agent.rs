//! In a machine: runs what `vm exec` asks for. `vm-agent ADDRESS:PORT`

use std::process::ExitCode;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_default();
    match tests::machine::agent::serve(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vm-agent: cannot listen on `{address}`: {e}");
            ExitCode::FAILURE
        }
    }
}
