//! The pod's init: PID 1 inside a pod. It starts the application, passes signals on to it, reaps what is left to it,
//! keeps the log, records how the application ended, and listens to what the pod answers to podd (`events`).
//!
//! ```text
//! /.podd/init --user USER[:GROUP[:SUPPLEMENTARY,...]] --cwd DIR --log-bytes N -- COMMAND [ARGUMENT...]
//! ```
//!
//! Names are looked up in the pod's own /etc/passwd and /etc/group. The environment is the application's. Beside the
//! program lie `log` and `log.1` (CRI format, together at most N bytes) and, after the end, `exit`:
//! `{"code":N,"signal":N|null}`. Exit codes of its own, as of other container tools: 125 it could not set the
//! application up, 126 the command cannot be executed, 127 there is no such command.
//!
//! It is checkpointed and restored along with the application, at any moment: so it has one thread, no timers, and no
//! descriptors but files, two pipes, a signalfd and sockets of its own pod. It is static, as the pod's libc is the application's business, and
//! uses no crates, as it is built without cargo (see `build.rs`).

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

mod app;
mod args;
mod events;
mod lines;
mod log;
mod sys;
mod time;
mod user;

use args::Config;
use events::Events;
use lines::{Lines, Stream};
use log::Log;

const DIR: &str = "/.podd";
/// Grandchildren may hold the pipes open for ever: after the application's end, this much silence is an end too.
const SILENCE_MS: i32 = 200;
/// ... and so is this much talk.
const DRAIN: Duration = Duration::from_secs(2);
/// While log lines wait to be reported as dropped, try again this often.
const RETRY_MS: i32 = 1000;

fn main() {
    sys::close_inherited();
    let dir = Path::new(DIR);
    // A record of an earlier run must not pass for this one's.
    let _ = fs::remove_file(dir.join("exit"));
    let config = args::parse(std::env::args_os().skip(1));
    let mut log = Log::open(dir, config.as_ref().map_or(args::LOG_BYTES, |config| config.log_bytes));
    let ended = config.and_then(|config| run(&config, &mut log)).unwrap_or_else(|reason| {
        log.note(SystemTime::now(), &reason);
        Ended::Code(125)
    });
    log.flush(SystemTime::now());
    if let Err(error) = record(dir, ended) {
        log.note(SystemTime::now(), &format!("cannot record the exit code: {error}"));
        log.flush(SystemTime::now());
    }
    std::process::exit(ended.code());
}

/// How the application ended.
#[derive(Clone, Copy)]
enum Ended {
    Code(i32),
    Signal(i32),
}

impl Ended {
    fn code(self) -> i32 {
        match self {
            Ended::Code(code) => code,
            Ended::Signal(signal) => 128 + signal,
        }
    }
}

fn run(config: &Config, log: &mut Log) -> Result<Ended, String> {
    let user = user::find(&config.user, Path::new("/etc"))?;
    let failed = |what: &str, error: io::Error| format!("{what}: {error}");
    // Before the fork, so that no signal is lost.
    let mut signals = sys::take_signals().map_err(|error| failed("signalfd", error))?;
    // The application finds it from its first moment on.
    let mut events = Events::open(Path::new(DIR))
        .inspect_err(|error| log.note(SystemTime::now(), &format!("no events are told in this pod: {error}")))
        .ok();
    let (out, out_end) = sys::pipe().map_err(|error| failed("pipe", error))?;
    let (err, err_end) = sys::pipe().map_err(|error| failed("pipe", error))?;
    let app = match sys::fork().map_err(|error| failed("fork", error))? {
        None => app::become_app(config, &user, &out_end, &err_end),
        Some(pid) => pid,
    };
    drop((out_end, err_end));

    let mut outputs = [Output::new(Stream::Stdout, out), Output::new(Stream::Stderr, err)];
    let ended = loop {
        let wait = if log.has_dropped() { RETRY_MS } else { -1 };
        let mut fds = [None; 3 + events::CONNECTIONS + 1];
        fds[..3].copy_from_slice(&[Some(signals.as_raw_fd()), outputs[0].fd(), outputs[1].fd()]);
        if let Some(events) = &events {
            fds[3..].copy_from_slice(&events.descriptors());
        }
        let [signalled, out, err, asked @ ..] = sys::poll(fds, wait);
        transfer(&mut outputs, [out, err], log);
        if let Some(events) = &mut events {
            events.serve(asked);
        }
        if signalled {
            pass_on(&mut signals, app);
        }
        if let Some(ended) = reap(app) {
            break ended;
        }
    };
    drain(&mut outputs, log);
    Ok(ended)
}

/// One of the application's two output streams.
struct Output {
    lines: Lines,
    pipe: Option<fs::File>,
}

impl Output {
    fn new(stream: Stream, pipe: fs::File) -> Output {
        Output { lines: Lines::new(stream), pipe: Some(pipe) }
    }

    fn fd(&self) -> Option<i32> {
        self.pipe.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads once, so that one stream cannot starve the other.
    fn transfer(&mut self, log: &mut Log) {
        let mut buffer = [0; 16 * 1024];
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(&mut buffer) {
            Ok(0) => self.finish(log),
            Ok(length) => self.lines.push(&buffer[..length], SystemTime::now(), log),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.finish(log),
        }
    }

    fn finish(&mut self, log: &mut Log) {
        self.lines.finish(SystemTime::now(), log);
        self.pipe = None;
    }
}

fn transfer(outputs: &mut [Output; 2], ready: [bool; 2], log: &mut Log) {
    for (output, ready) in outputs.iter_mut().zip(ready) {
        if ready {
            output.transfer(log);
        }
    }
    log.flush(SystemTime::now());
}

/// What the application wrote before it ended may still be in the pipes.
fn drain(outputs: &mut [Output; 2], log: &mut Log) {
    let begin = Instant::now();
    while begin.elapsed() < DRAIN && outputs.iter().any(|output| output.pipe.is_some()) {
        let ready = sys::poll([outputs[0].fd(), outputs[1].fd()], SILENCE_MS);
        if !ready.contains(&true) {
            break;
        }
        transfer(outputs, ready, log);
    }
    for output in outputs {
        output.finish(log);
    }
}

/// Everything but SIGCHLD is meant for the application: init itself needs no signals.
fn pass_on(signals: &mut fs::File, app: i32) {
    while let Some(signal) = sys::next_signal(signals) {
        if signal != sys::SIGCHLD {
            sys::kill(app, signal);
        }
    }
}

/// Reaps every zombie, whoever its parent was.
fn reap(app: i32) -> Option<Ended> {
    let mut ended = None;
    while let Some((pid, status)) = sys::wait() {
        if pid == app {
            // The layout of a wait status: signal in the low 7 bits, exit code in the next byte.
            ended = Some(match status & 0x7f {
                0 => Ended::Code(status >> 8 & 0xff),
                signal => Ended::Signal(signal),
            });
        }
    }
    ended
}

/// Whole or not at all: podd reads this file after a host's crash too.
fn record(dir: &Path, ended: Ended) -> io::Result<()> {
    let signal = match ended {
        Ended::Code(_) => "null".to_string(),
        Ended::Signal(signal) => signal.to_string(),
    };
    let new = dir.join("exit.new");
    let mut file = fs::File::create(&new)?;
    writeln!(file, "{{\"code\":{},\"signal\":{signal}}}", ended.code())?;
    file.sync_data()?;
    fs::rename(new, dir.join("exit"))
}
