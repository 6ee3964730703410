//! Results: `BENCH.json` with every move, `BENCH.md` with medians.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::host::{self, Failure};
use super::{OURS, Options, plot};
use crate::Lab;
use crate::machine::tools;

/// All that is known of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub date: String,
    pub command: String,
    pub machine: Machine,
    /// Writes a second of others.
    pub load: f64,
    pub results: Vec<Series>,
}

/// What it ran on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_mb: u64,
    pub kernel: String,
    /// Programs and their versions.
    pub versions: Vec<String>,
}

/// Moves of one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    pub workload: String,
    pub megabytes: u64,
    pub contender: String,
    /// In turns with the others; false: one contender after the other, as their servers did not fit side by side.
    pub interleaved: bool,
    pub moves: Vec<Move>,
    /// Why there are no (more) moves.
    pub cannot: Option<String>,
}

/// One move, as the client saw it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Move {
    pub blackout_ms: f64,
    /// What the tool had said before.
    pub expected_ms: Option<f64>,
    /// What the tools say, in ms and in their order.
    pub phases: Vec<(String, f64)>,
    pub reconnects: u64,
    /// Answers that were not the one before plus one.
    pub gaps: u64,
    /// Of the client.
    pub throughput: Throughput,
    /// Writes a second of the others, silences included.
    pub load_achieved: Option<f64>,
    pub load_reconnects: u64,
    pub errors: Vec<String>,
    /// For the picture.
    #[serde(skip)]
    pub latency: Vec<Latency>,
}

/// Answers a second, where there was time enough to tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Throughput {
    pub before: Option<f64>,
    /// From the move's begin to the blackout's.
    pub meanwhile: Option<f64>,
    /// In the second after the blackout.
    pub second_after: Option<f64>,
    /// In the fourth second after it.
    pub three_after: Option<f64>,
}

/// When a request was made, in ms from the begin of the blackout, and how long it took, in ms.
#[derive(Clone, Copy, Debug)]
pub struct Latency(pub f64, pub f64);

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}

impl Series {
    /// Without moves yet.
    pub fn new(workload: &str, megabytes: u64, contender: &str, interleaved: bool) -> Self {
        let (workload, contender) = (workload.to_owned(), contender.to_owned());
        Self { workload, megabytes, contender, interleaved, moves: Vec::new(), cannot: None }
    }

    /// Blackouts, ms.
    pub fn blackout(&self) -> Option<Spread> {
        Spread::of(self.moves.iter().map(|m| m.blackout_ms))
    }

    /// Of the throughput before, in percent.
    fn percent(&self, of: impl Fn(&Throughput) -> Option<f64>) -> String {
        let values = self.moves.iter().filter_map(|m| Some(of(&m.throughput)? * 100.0 / m.throughput.before?));
        Spread::of(values).map_or_else(|| "-".to_owned(), |spread| format!("{:.0} %", spread.median))
    }
}

impl Report {
    /// Without results yet.
    pub fn new(options: &Options, lab: &Lab) -> Self {
        let (date, command, load) = (options.date.clone(), options.command.clone(), options.load);
        Self { date, command, machine: Machine::here(options, lab), load, results: Vec::new() }
    }

    /// Writes all files.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn save(&self, out: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Failure(format!("no JSON: {e}")))?;
        let pictures = out.join("tests/bench");
        let put = |path: &Path, text: &str| {
            fs::write(path, text).map_err(|e| Failure(format!("cannot write {}: {e}", path.display())))
        };
        fs::create_dir_all(&pictures).map_err(|e| Failure(format!("cannot make {}: {e}", pictures.display())))?;
        put(&out.join("BENCH.json"), &(json + "\n"))?;
        let drawn = plot::all(&self.results)?;
        put(&out.join("BENCH.md"), &self.markdown(&drawn.iter().map(|(name, _)| *name).collect::<Vec<_>>()))?;
        drawn.iter().try_for_each(|(name, svg)| put(&pictures.join(name), svg))
    }

    /// How far podd's own account of the blackout is from the client's, ms, whichever is larger.
    fn account(&self) -> Option<Spread> {
        let ours = self.results.iter().filter(|series| series.contender.starts_with(OURS));
        let own = |m: &Move| -> f64 {
            m.phases.iter().filter(|(name, _)| !plot::SERVING.contains(&name.as_str())).map(|phase| phase.1).sum()
        };
        Spread::of(ours.flat_map(|series| &series.moves).map(|m| (m.blackout_ms - own(m)).abs()))
    }

    /// How many of podd's moves took as long as it had said, give or take a quarter, and of how many.
    fn predicted(&self) -> Option<(usize, usize)> {
        let moves = self.results.iter().flat_map(|series| &series.moves);
        let errors: Vec<f64> = moves.filter_map(|m| Some((m.expected_ms? / m.blackout_ms - 1.0).abs())).collect();
        let close = errors.iter().filter(|error| **error <= 0.25).count();
        (!errors.is_empty()).then_some((close, errors.len()))
    }

    /// For people.
    fn markdown(&self, pictures: &[&str]) -> String {
        let Machine { processor, cores, memory_mb, kernel, versions } = &self.machine;
        let mut text = format!(
            "# Benchmark\n\n`{}` wrote this on {}: {cores} cores of {processor}, {memory_mb} MB of memory, kernel \
             {kernel}; {}. All figures are the client's.\n\n",
            self.command,
            self.date,
            versions.join("; ")
        );
        text += &self.table();
        text += "\n*Blackout*: the longest silence that began during the move, ms: median (least to most). \
                 *Meanwhile*, *after 1 s*, *after 3 s*: the client's answers a second between the move's begin and \
                 the blackout, in the first second after it and in the fourth one, as part of those in the second \
                 before the move. *Connection*: whether the client's connection outlasted the moves. *Load*: what \
                 the others achieved, silences included.\n";
        if self.load > 0.0 {
            let _ = write!(
                text,
                "\nThe others want to write {} values a second, each of {} bytes.\n",
                self.load,
                host::VALUE
            );
        }
        if let Some(Spread { median, max, .. }) = self.account() {
            let _ = write!(
                text,
                "\npodd's own account of its blackouts is {median:.0} ms from the client's, {max:.0} at most.\n"
            );
        }
        if let Some((close, all)) = self.predicted() {
            let _ = write!(text, "\n{close} of its {all} blackouts were as it had predicted, within 25 %.\n");
        }
        if self.results.iter().any(|series| !series.interleaved) {
            text += "\nContenders took turns, but for sizes whose servers do not fit into the memory side by side: \
                     these went one after the other.\n";
        }
        for name in pictures {
            let _ = write!(text, "\n![{0}](tests/bench/{name})\n", name.trim_end_matches(".svg").replace('-', " "));
        }
        text
    }

    fn table(&self) -> String {
        let mut text = "| workload | size, MB | contender | moves | blackout, ms | connection | meanwhile | after 1 s | after 3 s | load, 1/s |\n\
                        |---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for series in &self.results {
            let Series { workload, megabytes, contender, moves, cannot, .. } = series;
            let _ = write!(text, "| {workload} | {megabytes} | {contender} | {} | ", moves.len());
            let Some(Spread { median, min, max }) = series.blackout() else {
                let why = cannot.as_deref().unwrap_or("no reason is known").replace(['\n', '|'], " ");
                let _ = writeln!(text, "cannot: {why} | | | | | |");
                continue;
            };
            let broken: u64 = moves.iter().map(|m| m.reconnects).sum();
            let errors = moves.iter().filter(|m| !m.errors.is_empty()).count();
            let connection = match (broken, errors) {
                (0, 0) => "kept".to_owned(),
                (broken, 0) => format!("made {broken} times again"),
                (_, errors) => format!("lost for good in {errors} moves"),
            };
            let load = Spread::of(moves.iter().filter_map(|m| m.load_achieved));
            let _ = writeln!(
                text,
                "**{median:.0}** ({min:.0} to {max:.0}) | {connection} | {} | {} | {} | {} |",
                series.percent(|t| t.meanwhile),
                series.percent(|t| t.second_after),
                series.percent(|t| t.three_after),
                load.map_or_else(|| "-".to_owned(), |spread| format!("{:.0}", spread.median)),
            );
        }
        let stopped = self.results.iter().filter(|series| !series.moves.is_empty() && series.cannot.is_some());
        for Series { workload, megabytes, contender, moves, cannot, .. } in stopped {
            let why = cannot.as_deref().unwrap_or_default().replace('\n', " ");
            let _ = write!(
                text,
                "\n{contender} with {workload} of {megabytes} MB ended after {} moves: {why}\n",
                moves.len()
            );
        }
        text
    }
}

impl Machine {
    fn here(options: &Options, lab: &Lab) -> Self {
        let first = |program: &str, words: &[&str]| {
            let out = tools::run(Command::new(program).args(words)).ok()?;
            Some(out.lines().next()?.trim().to_owned())
        };
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        let redis = lab.on("a", &["chroot", &crate::lab::rootfs("redis"), "redis-server", "--version"]);
        let redis = crate::lab::run(redis).out;
        let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v="));
        let asked = |name: &str| options.contenders.iter().any(|contender| contender == name);
        let criu = first(&host::criu().to_string_lossy(), &["--version"]);
        let versions = [
            first(&crate::lab::binary("podctl").to_string_lossy(), &["--version"]),
            criu.map(|version| version.replace("Version:", "CRIU")),
            asked("runc").then(|| first("runc", &["--version"])).flatten(),
            asked("podman").then(|| first("podman", &["--version"])).flatten(),
            redis.map(|version| format!("redis {version}")),
        ];
        Self {
            processor: processor.map_or("an unnamed processor", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mb: memory.unwrap_or(0) / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            versions: versions.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_table_has_medians_and_reasons() {
        let throughput = Throughput { before: Some(200.0), second_after: Some(150.0), ..Throughput::default() };
        let one = |blackout_ms| Move { blackout_ms, throughput: throughput.clone(), ..Move::default() };
        let mut podd = Series::new("redis", 20, "podd", true);
        podd.moves = vec![one(40.0), one(60.0), one(50.0)];
        let mut podman = Series::new("redis", 20, "podman", true);
        podman.cannot = Some("podman is\nnot | here".to_owned());
        let machine = Machine { processor: "P".into(), cores: 2, memory_mb: 1, kernel: "6.1".into(), versions: vec![] };
        let report = Report { date: "d".into(), command: "c".into(), machine, load: 10.0, results: vec![podd, podman] };
        let table = report.table();
        assert!(table.contains("| redis | 20 | podd | 3 | **50** (40 to 60) | kept | - | 75 % | - | - |"), "{table}");
        assert!(table.contains("| podman | 0 | cannot: podman is not   here |"), "{table}");
        assert!(table.lines().all(|line| line.matches('|').count() == 11), "{table}");
        assert!(report.markdown(&[]).contains("account of its blackouts is 50 ms from the client's, 60 at most"));
        assert!(report.markdown(&["phases.svg"]).contains("![phases](tests/bench/phases.svg)"));
    }
}
