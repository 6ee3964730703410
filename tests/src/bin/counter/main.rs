//! Counts in a redis server over one connection, without pause, and notices whatever a move of the server's pod did
//! to it.
//!
//! ```text
//! counter --addr IP:PORT [--key KEY] [--seconds S] [--until-file PATH] [--interval-us N] [--json]
//!         [--http PATH] [--reconnect] [--trace]
//! counter --addr IP:PORT --load WRITES_PER_SECOND [--connections N] [--keys N] [--value BYTES] ...
//! ```
//!
//! Each reply must be the one before plus 1 (`gaps` counts those that are not), and the connection must last: it never
//! connects again, unless `--reconnect` allows it. With `--http` it asks a web server for PATH instead. `--trace` adds
//! what it saw over time. With `--load` it is the others: see `load.rs`.
//!
//! A silence is the time between two replies; `at_ms` is when it began, in milliseconds of Unix time, so
//! that it can be laid beside podd's timeline. Ends after S seconds or once PATH exists, whichever comes first. Exit code
//! 0 only without gaps and with the connection alive at the end, 2 for wrong arguments.

mod load;
mod trace;

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use trace::{Trace, unix_ms};

/// How many of the longest silences are reported.
const LONGEST: usize = 5;
/// A server that is silent for this long will not come back.
const GIVE_UP: Duration = Duration::from_secs(120);
/// How often the end is looked for while nothing comes.
const TICK: Duration = Duration::from_millis(100);
/// Pause before a connection is made again.
const AGAIN: Duration = Duration::from_millis(2);

struct Options {
    addr: SocketAddr,
    key: String,
    seconds: Option<f64>,
    until_file: Option<PathBuf>,
    interval: Duration,
    json: bool,
    http: Option<String>,
    reconnect: bool,
    trace: bool,
    /// Writes a second; 0: count.
    load: f64,
    connections: u64,
    keys: u64,
    value: usize,
}

#[derive(Default, Serialize)]
struct Report {
    increments: u64,
    first: Option<i64>,
    last: Option<i64>,
    gaps: u64,
    /// 0 without `--reconnect`: a lost connection is an error.
    reconnects: u64,
    longest_silence_ms: f64,
    silences: Vec<Silence>,
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Trace>,
    #[serde(skip)]
    before: Option<(Instant, SystemTime)>,
}

#[derive(Serialize)]
struct Silence {
    at_ms: u64,
    ms: f64,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("counter: {reason}");
            return ExitCode::from(2);
        }
    };
    if options.load > 0.0 {
        println!("{}", serde_json::json!(load::run(&options)));
        return ExitCode::SUCCESS;
    }
    let mut report = Report { trace: options.trace.then(Trace::new), ..Report::default() };
    if let Err(error) = count(&options, &mut report) {
        report.error = Some(error.to_string());
    }
    if options.json {
        println!("{}", serde_json::json!(report));
    } else {
        println!(
            "{} increments from {:?} to {:?}, {} gaps, longest silence {:.1} ms, {}",
            report.increments,
            report.first,
            report.last,
            report.gaps,
            report.longest_silence_ms,
            report.error.as_deref().unwrap_or("connection alive")
        );
    }
    ExitCode::from(u8::from(report.gaps > 0 || report.error.is_some()))
}

fn count(options: &Options, report: &mut Report) -> io::Result<()> {
    let begin = Instant::now();
    let mut failing = None::<Instant>;
    loop {
        let before = report.increments;
        let Err(error) = session(options, begin, report) else { return Ok(()) };
        if !options.reconnect {
            return Err(error);
        }
        // Attempts that come to nothing belong to the connection that broke before them.
        if report.increments > before || failing.is_none() {
            failing = Some(Instant::now());
            report.reconnects += 1;
        }
        if failing.is_some_and(|since| since.elapsed() > GIVE_UP) || is_over(options, begin) {
            return Err(error);
        }
        std::thread::sleep(AGAIN);
    }
}

/// Over one connection.
fn session(options: &Options, begin: Instant, report: &mut Report) -> io::Result<()> {
    let stream = load::connect(options)?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let request = match &options.http {
        Some(path) => format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n"),
        None => format!("*2\r\n$4\r\nINCR\r\n${}\r\n{}\r\n", options.key.len(), options.key),
    };
    let mut looked = Instant::now();
    loop {
        if options.seconds.is_some_and(|seconds| begin.elapsed().as_secs_f64() >= seconds) {
            return Ok(());
        }
        if looked.elapsed() >= TICK {
            looked = Instant::now();
            if is_over(options, begin) {
                return Ok(());
            }
        }
        let asked = Instant::now();
        (&stream).write_all(request.as_bytes())?;
        let value = match &options.http {
            Some(_) => read_page(&mut replies).map(|()| report.last.unwrap_or(0) + 1)?,
            None => read_reply(&mut replies)?,
        };
        let (now, at) = (Instant::now(), SystemTime::now());
        if let Some(trace) = &mut report.trace {
            trace.note(at, now - asked);
        }
        if let Some((instant, at)) = report.before {
            note_silence(report, now - instant, at);
        }
        report.before = Some((now, at));
        report.gaps += u64::from(report.last.is_some_and(|last| value != last + 1));
        report.first.get_or_insert(value);
        report.last = Some(value);
        report.increments += 1;
        if !options.interval.is_zero() {
            std::thread::sleep(options.interval);
        }
    }
}

fn is_over(options: &Options, begin: Instant) -> bool {
    options.seconds.is_some_and(|seconds| begin.elapsed().as_secs_f64() >= seconds)
        || options.until_file.as_ref().is_some_and(|path| path.exists())
}

/// Waits for `:NUMBER\r\n`.
fn read_reply(replies: &mut impl BufRead) -> io::Result<i64> {
    let line = read_line(replies)?;
    let number = line.strip_prefix(':').and_then(|number| number.parse().ok());
    number.ok_or_else(|| wrong(&line))
}

/// Waits for an answer 200 and its body.
fn read_page(replies: &mut impl BufRead) -> io::Result<()> {
    let line = read_line(replies)?;
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(wrong(&line));
    }
    let mut length = 0;
    loop {
        let line = read_line(replies)?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(|_| wrong(&line))?;
        }
    }
    // Small pages come whole with their head.
    replies.read_exact(&mut vec![0; usize::min(length, 1 << 20)])
}

fn wrong(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected reply {line:?}"))
}

/// A line without its end, however long the server is away: giving up early would hide how long that was.
fn read_line(replies: &mut impl BufRead) -> io::Result<String> {
    let begin = Instant::now();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match replies.read_until(b'\n', &mut line) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                if begin.elapsed() > GIVE_UP {
                    let message = format!("no reply for {} s", GIVE_UP.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn note_silence(report: &mut Report, length: Duration, at: SystemTime) {
    let ms = length.as_secs_f64() * 1000.0;
    report.longest_silence_ms = report.longest_silence_ms.max(ms);
    if report.silences.len() < LONGEST || report.silences.last().is_some_and(|shortest| ms > shortest.ms) {
        report.silences.push(Silence { at_ms: unix_ms(at), ms });
        report.silences.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        report.silences.truncate(LONGEST);
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut addr = None;
    let mut options = Options {
        addr: SocketAddr::from(([0, 0, 0, 0], 0)),
        key: "n".into(),
        seconds: None,
        until_file: None,
        interval: Duration::ZERO,
        json: false,
        http: None,
        reconnect: false,
        trace: false,
        load: 0.0,
        connections: 4,
        keys: 1,
        value: 600,
    };
    while let Some(name) = arguments.next() {
        let flag = match name.as_str() {
            "--json" => Some(&mut options.json),
            "--reconnect" => Some(&mut options.reconnect),
            "--trace" => Some(&mut options.trace),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
        let wrong = |_| format!("{name} {value} makes no sense");
        match name.as_str() {
            "--addr" => addr = Some(value.parse().map_err(|_| wrong(()))?),
            "--key" => options.key = value,
            "--seconds" => options.seconds = Some(value.parse().map_err(|_| wrong(()))?),
            "--until-file" => options.until_file = Some(value.into()),
            "--interval-us" => options.interval = Duration::from_micros(value.parse().map_err(|_| wrong(()))?),
            "--http" => options.http = Some(value),
            "--load" => options.load = value.parse().map_err(|_| wrong(()))?,
            "--connections" => options.connections = value.parse().map_err(|_| wrong(()))?,
            "--keys" => options.keys = value.parse().map_err(|_| wrong(()))?,
            "--value" => options.value = value.parse().map_err(|_| wrong(()))?,
            _ => return Err(format!("there is no option {name}")),
        }
    }
    options.addr = addr.ok_or("--addr IP:PORT is missing")?;
    if options.seconds.is_none() && options.until_file.is_none() {
        return Err("one of --seconds and --until-file is needed".into());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    /// Runs against a server that sends these replies, pausing before those whose number is given, then closes.
    fn against(replies: &[&'static str], pauses: &'static [usize]) -> (Report, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let replies = replies.to_vec();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for (number, reply) in replies.into_iter().enumerate() {
                let mut request = [0; 21];
                stream.read_exact(&mut request).unwrap();
                assert_eq!(&request, b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n");
                if pauses.contains(&number) {
                    std::thread::sleep(Duration::from_millis(300));
                }
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        let words = ["--addr", &addr.to_string(), "--key", "k", "--seconds", "20"].map(String::from);
        let mut report = Report::default();
        let result = count(&parse(words.into_iter()).unwrap(), &mut report);
        server.join().unwrap();
        (report, result)
    }

    #[test]
    fn a_closed_connection_is_a_failure() {
        let (report, result) = against(&[":5\r\n", ":6\r\n", ":7\r\n"], &[]);
        assert!(result.is_err());
        assert_eq!((report.increments, report.first, report.last, report.gaps), (3, Some(5), Some(7), 0));
    }

    #[test]
    fn gaps_are_counted_both_ways() {
        let (report, _) = against(&[":1\r\n", ":3\r\n", ":3\r\n", ":4\r\n", ":2\r\n"], &[]);
        assert_eq!(report.gaps, 3);
    }

    #[test]
    fn anything_but_a_number_is_a_failure() {
        let (report, result) = against(&[":1\r\n", "-LOADING\r\n"], &[]);
        assert!(result.unwrap_err().to_string().contains("-LOADING"));
        assert_eq!(report.increments, 1);
    }

    #[test]
    fn silences_are_measured_longer_than_a_read_waits() {
        let (report, _) = against(&[":1\r\n", ":2\r\n", ":3\r\n", ":4\r\n", ":5\r\n", ":6\r\n", ":7\r\n"], &[3]);
        assert!((300.0..2000.0).contains(&report.longest_silence_ms), "{}", report.longest_silence_ms);
        assert_eq!(report.silences.len(), LONGEST);
        assert!(report.silences[0].ms >= 300.0 && report.silences.windows(2).all(|pair| pair[0].ms >= pair[1].ms));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for words in ["", "--addr 127.0.0.1:1", "--addr x --seconds 1", "--addr 127.0.0.1:1 --seconds", "--what 1"] {
            assert!(parse(words.split_whitespace().map(String::from)).is_err(), "{words}");
        }
    }
}
