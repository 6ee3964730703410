//! Writes at a given rate over several connections: the others beside the client whose answers are looked at.
//!
//! What a silence keeps from being written is not caught up with: the server would be seen as slow after a move because
//! of the catching up alone. The rate that was achieved tells it.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::trace::Trace;
use super::{GIVE_UP, Options, is_over, read_line};

/// Each connection writes this often.
const TICK: Duration = Duration::from_millis(10);
/// Pause before a connection is made again.
const AGAIN: Duration = Duration::from_millis(10);
/// One of several attempts to connect takes no longer.
const ATTEMPT: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Serialize)]
pub struct Report {
    written: u64,
    /// Of the whole run, silences included.
    per_second: f64,
    reconnects: u64,
    /// Why connections ended early.
    errors: Vec<String>,
    trace: Option<Trace>,
}

/// Runs until the end that the options name.
pub fn run(options: &Options) -> Report {
    let begun = Instant::now();
    let trace = Mutex::new(Trace::new());
    let connections = options.connections.max(1);
    let ends: Vec<(u64, u64, Option<io::Error>)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..connections)
            .map(|n| {
                let trace = &trace;
                scope.spawn(move || writer(options, n, begun, trace))
            })
            .collect();
        writers.into_iter().map(|w| w.join().expect("it does not panic")).collect()
    });
    let written = ends.iter().map(|end| end.0).sum();
    Report {
        written,
        per_second: written as f64 / begun.elapsed().as_secs_f64(),
        reconnects: ends.iter().map(|end| end.1).sum(),
        errors: ends.into_iter().filter_map(|end| end.2).map(|error| error.to_string()).collect(),
        trace: trace.into_inner().ok(),
    }
}

/// One connection after the other; writes, reconnections, and why it ended early.
fn writer(options: &Options, number: u64, begun: Instant, trace: &Mutex<Trace>) -> (u64, u64, Option<io::Error>) {
    let (mut written, mut reconnects, mut failing) = (0, 0, None::<Instant>);
    loop {
        let before = written;
        let Err(error) = session(options, number, begun, &mut written, trace) else {
            return (written, reconnects, None);
        };
        if written > before || failing.is_none() {
            failing = Some(Instant::now());
            reconnects += 1;
        }
        if !options.reconnect || failing.is_some_and(|since| since.elapsed() > GIVE_UP) {
            return (written, reconnects - 1, Some(error));
        }
        if is_over(options, begun) {
            return (written, reconnects, Some(error));
        }
        std::thread::sleep(AGAIN);
    }
}

fn session(options: &Options, number: u64, begun: Instant, written: &mut u64, trace: &Mutex<Trace>) -> io::Result<()> {
    let mut stream = connect(options)?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let value = "x".repeat(options.value);
    let each = options.load / options.connections.max(1) as f64 * TICK.as_secs_f64();
    // Where in the keys it writes next: spread over all of them, the same in each run.
    let mut random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(number + 1) | 1;
    let (mut due, mut next) = (0.0, Instant::now());
    while !is_over(options, begun) {
        due += each;
        let count = due as u64;
        due -= count as f64;
        let mut batch = String::new();
        for _ in 0..count {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = format!("key:{}", random % options.keys.max(1) + 1);
            batch += &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len());
        }
        let asked = Instant::now();
        stream.write_all(batch.as_bytes())?;
        for _ in 0..count {
            let line = read_line(&mut replies)?;
            if line != "+OK" {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected reply {line:?}")));
            }
            *written += 1;
            if let Ok(mut trace) = trace.lock() {
                trace.note(SystemTime::now(), asked.elapsed());
            }
        }
        next = (next + TICK).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// A connection whose reads return now and then, so that the end is not missed.
pub fn connect(options: &Options) -> io::Result<TcpStream> {
    let limit = if options.reconnect { ATTEMPT } else { GIVE_UP };
    let stream = TcpStream::connect_timeout(&options.addr, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(super::TICK))?;
    Ok(stream)
}
