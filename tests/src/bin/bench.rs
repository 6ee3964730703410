//! The benchmark; started by `scripts/bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use ::tests::bench::{self, CONTENDERS, ON_REQUEST, Options, WORKLOADS};
use clap::Parser;

/// Moves servers by podd and by other means, in turns in one run, under the eyes of a client, and writes what it saw:
/// BENCH.md, BENCH.json and pictures in tests/bench.
///
/// The machine should have nothing else to do. What cannot run here is reported with the reason.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Of redis, nginx
    #[arg(long, value_delimiter = ',', default_values_t = WORKLOADS.map(String::from))]
    workloads: Vec<String>,
    /// Of redis's data, MB
    #[arg(long, value_delimiter = ',', default_values_t = [20, 350, 700])]
    sizes: Vec<u64>,
    /// Moves of each contender, workload and size
    #[arg(long, default_value_t = 10)]
    moves: u32,
    /// Of podd, podd-post-copy, criu, criu-lazy, runc, podman, restart; podman and post-copy are not among them unless they are named
    #[arg(long, value_delimiter = ',', default_values_t = CONTENDERS.into_iter().filter(|name| !ON_REQUEST.contains(name)).map(String::from))]
    contenders: Vec<String>,
    /// Writes a second of others than the client
    #[arg(long, default_value_t = 10_000.0)]
    load: f64,
    /// Measure the status service instead, and write nothing
    #[arg(long)]
    status: bool,
    /// Measure suspend and resume of redis instead, of these sizes and so many times, and write nothing. The state of the lab's hosts
    /// is in PODD_TEST_DIR, on a disk or a tmpfs
    #[arg(long, conflicts_with = "status")]
    sleep: bool,
    /// Measure pods that stay where they are instead, beside bare processes, in so many rounds as there would be moves, and podd at rest;
    /// write nothing
    #[arg(long, conflicts_with_all = ["status", "sleep"])]
    steady: bool,
    /// Folder of the results
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Date of the run
    #[arg(long, default_value = "an unknown day", hide = true)]
    date: String,
}

fn main() -> ExitCode {
    let Arguments { workloads, sizes, moves, contenders, load, status, sleep, steady, out, date } = Arguments::parse();
    if status {
        return ended(bench::status::run().map(|figures| print!("{figures}")));
    }
    if sleep {
        return ended(bench::sleep::run(&sizes, moves).map(|figures| print!("{figures}")));
    }
    if steady {
        return ended(bench::steady::measure(moves).map(|figures| print!("{figures}")));
    }
    let command: Vec<String> = std::iter::once("scripts/bench".to_owned()).chain(asked()).collect();
    let out = out.unwrap_or_else(::tests::lab::root);
    let options = Options { workloads, sizes, moves, contenders, load, out, date, command: command.join(" ") };
    ended(bench::run(&options))
}

fn ended(result: Result<(), bench::Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What the user asked for: not the date, nor the place of the results.
fn asked() -> Vec<String> {
    let mut words = Vec::new();
    let mut all = std::env::args().skip(1);
    while let Some(word) = all.next() {
        match word.as_str() {
            "--date" | "--out" => drop(all.next()),
            _ => words.push(word),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_at_commas_and_podman_must_be_named() {
        let asked = Arguments::try_parse_from(["bench", "--sizes", "20,700", "--contenders", "podd,podman"]);
        let asked = asked.expect("these are right");
        assert_eq!((asked.sizes, asked.contenders), (vec![20, 700], vec!["podd".to_owned(), "podman".to_owned()]));
        let plain = Arguments::try_parse_from(["bench"]).expect("all have defaults");
        assert!(plain.contenders.len() == 5 && !plain.contenders.contains(&"podman".to_owned()));
        assert_eq!((plain.sizes, plain.moves), (vec![20, 350, 700], 10));
        assert!(Arguments::try_parse_from(["bench", "--sizes", "much"]).is_err());
    }
}
