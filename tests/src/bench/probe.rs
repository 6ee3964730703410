//! The client's view of one move (`src/bin/counter`): the longest silence that began while the move was under way, what
//! became of the connection, and how much got through before, meanwhile and after.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::host::{Failure, Server, VALUE, Workload};
use super::report::{Latency, Move, Throughput};
use crate::Lab;
use crate::workload::helper;

/// A silence may begin a moment before the clock was read.
const SLACK: u64 = 5;
/// Of the latencies in the picture, ms before the silence and after it.
const SHOWN: (u64, u64) = (300, 1000);
/// Steps of the client's lists, ms.
const COUNT: u64 = 100;
const LATENCY: u64 = 5;
/// The counter gives up after 120 s without an answer.
const ENDS: Duration = Duration::from_secs(150);

/// A client and the others, at work.
pub struct Probe {
    client: Child,
    others: Option<Child>,
    enough: PathBuf,
}

/// What they saw.
pub struct Seen {
    client: Counted,
    others: Option<Written>,
}

#[derive(Default, Deserialize)]
struct Counted {
    gaps: u64,
    reconnects: u64,
    silences: Vec<Silence>,
    error: Option<String>,
    trace: Option<Trace>,
}

#[derive(Default, Deserialize)]
struct Written {
    per_second: f64,
    reconnects: u64,
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct Silence {
    at_ms: u64,
    ms: f64,
}

#[derive(Default, Deserialize)]
struct Trace {
    begun_ms: u64,
    per_100_ms: Vec<u32>,
    worst_us_per_5_ms: Vec<u32>,
}

impl Probe {
    pub fn start(lab: &Lab, server: &Server, load: f64) -> Result<Self, Failure> {
        // The one folder that the client sees, too.
        let enough = lab.dir().join("client/enough");
        let _ = std::fs::remove_file(&enough);
        let (program, address) = (helper("counter").display().to_string(), server.address.to_string());
        let until = enough.display().to_string();
        let common = [program.as_str(), "--addr", &address, "--until-file", &until, "--json", "--reconnect", "--trace"];
        let start = |more: &[&str]| {
            let words = [&common[..], more].concat();
            let mut command = lab.client(&words);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|e| Failure(format!("no client: {e}")))
        };
        if server.workload == Workload::Nginx {
            return Ok(Self { client: start(&["--http", "/small"])?, others: None, enough });
        }
        let (load_text, keys, value) = (load.to_string(), server.workload.keys().to_string(), VALUE.to_string());
        let others = match load {
            0.0 => None,
            _ => Some(start(&["--load", &load_text, "--keys", &keys, "--value", &value])?),
        };
        Ok(Self { client: start(&["--key", "counter"])?, others, enough })
    }

    /// Ends them: there is nothing to be seen any more, and they would wait for it.
    pub fn abandon(&mut self) {
        for child in std::iter::once(&mut self.client).chain(&mut self.others) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Tells them to end; what they saw.
    pub fn finish(self) -> Result<Seen, Failure> {
        std::fs::write(&self.enough, "")
            .map_err(|e| Failure(format!("cannot write {}: {e}", self.enough.display())))?;
        let client = report("the client", self.client);
        let others = self.others.map(|child| report("the load", child)).transpose();
        Ok(Seen { client: client?, others: others? })
    }
}

/// Waits for the end of a child and reads what it printed.
fn report<T: DeserializeOwned>(what: &str, mut child: Child) -> Result<T, Failure> {
    let begun = Instant::now();
    let mut out = child.stdout.take();
    let reader = std::thread::spawn(move || out.as_mut().map(std::io::read_to_string));
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > ENDS {
            // The lab ends it.
            return Err(Failure(format!("{what} did not end")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = reader.join().ok().flatten().and_then(Result::ok).unwrap_or_default();
    serde_json::from_str(&text).map_err(|e| Failure(format!("{what} printed no report: {e}")))
}

impl Seen {
    /// What it means for a move that lasted from `begun` to `ended`, both in ms of Unix time.
    pub fn judge(&self, begun: u64, ended: u64, phases: Vec<(String, f64)>) -> Move {
        let client = &self.client;
        let within = |silence: &&Silence| (begun.saturating_sub(SLACK)..=ended).contains(&silence.at_ms);
        let longest = client.silences.iter().filter(within).max_by(|a, b| a.ms.total_cmp(&b.ms));
        let (at, blackout_ms) = longest.map_or((begun, 0.0), |silence| (silence.at_ms, silence.ms));
        let resumed = at + blackout_ms as u64;
        let none = Trace::default();
        let trace = client.trace.as_ref().unwrap_or(&none);
        let others = self.others.as_ref();
        let errors = client.error.iter().chain(others.into_iter().flat_map(|others| &others.errors));
        Move {
            expected_ms: None,
            blackout_ms,
            phases,
            reconnects: client.reconnects,
            gaps: client.gaps,
            throughput: Throughput {
                before: trace.per_second(begun - 1000, begun),
                meanwhile: trace.per_second(begun, at),
                second_after: trace.per_second(resumed, resumed + 1000),
                three_after: trace.per_second(resumed + 3000, resumed + 4000),
            },
            load_achieved: others.map(|others| others.per_second),
            load_reconnects: others.map_or(0, |others| others.reconnects),
            errors: errors.cloned().collect(),
            latency: trace.around(at, resumed),
        }
    }
}

impl Trace {
    /// Answers a second between two times, from the steps that lie within; none if there is no such step.
    fn per_second(&self, from: u64, to: u64) -> Option<f64> {
        let first = from.saturating_sub(self.begun_ms).div_ceil(COUNT) as usize;
        let last = (to.saturating_sub(self.begun_ms) / COUNT) as usize;
        let counts = self.per_100_ms.get(first..last).filter(|counts| !counts.is_empty())?;
        let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        Some(sum as f64 * 1000.0 / (counts.len() as u64 * COUNT) as f64)
    }

    /// Requests around a silence: when made, in ms from its begin, and how long they took, in ms.
    fn around(&self, at: u64, resumed: u64) -> Vec<Latency> {
        let first = at.saturating_sub(self.begun_ms + SHOWN.0) / LATENCY;
        let last = (resumed + SHOWN.1).saturating_sub(self.begun_ms) / LATENCY;
        let steps = (first..last).filter_map(|step| Some((step, *self.worst_us_per_5_ms.get(step as usize)?)));
        steps
            .filter(|(_, worst)| *worst > 0)
            .map(|(step, worst)| {
                let from_silence = (self.begun_ms + step * LATENCY) as f64 - at as f64;
                Latency(from_silence, f64::from(worst) / 1000.0)
            })
            .collect()
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(silences: Vec<Silence>) -> Seen {
        let trace = Trace {
            begun_ms: 10_000,
            per_100_ms: vec![20; 80],
            worst_us_per_5_ms: (0..2000).map(|n| u32::from(n % 2 == 0) * 500).collect(),
        };
        Seen { client: Counted { silences, trace: Some(trace), ..Counted::default() }, others: None }
    }

    #[test]
    fn the_blackout_is_the_longest_silence_of_the_move_itself() {
        let silences = [(12_000, 900.0), (12_996, 80.0), (13_100, 50.0), (13_600, 700.0)];
        let found = seen(silences.map(|(at_ms, ms)| Silence { at_ms, ms }).into()).judge(13_000, 13_500, Vec::new());
        assert!((found.blackout_ms - 80.0).abs() < 1e-9);
        assert_eq!(found.throughput.before, Some(200.0));
        assert_eq!(found.throughput.three_after, Some(200.0));
        assert_eq!(found.throughput.meanwhile, None, "it began with the move");
        let times: Vec<f64> = found.latency.iter().map(|latency| latency.0).collect();
        assert!(times[0] >= -306.0 && times[times.len() - 1] <= 1080.0, "{times:?}");
    }

    #[test]
    fn no_silence_is_no_blackout() {
        assert!(seen(Vec::new()).judge(13_000, 13_500, Vec::new()).blackout_ms.abs() < 1e-9);
    }
}
