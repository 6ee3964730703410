//! `podctl exec`: relays bytes, signals and window sizes between the caller and a command in a pod.

use std::io::Read;

use podd::api::{ApiError, ErrorKind, ExecRequest, exec_stream};
use podd::client::frames::{self, Frame};
use podd::client::{ExecConnection, path};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Podctl;
use crate::error::{self, DONE, Outcome};
use crate::flags::{key_value, pod_name};
use crate::output::{Output, Stream};
use crate::terminal::{self, RawMode};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl exec web -- ls -l /var/www
  podctl exec -it web -- /bin/sh
  pg_dump shop | podctl exec -i -u postgres db -- psql shop")]
pub struct Args {
    /// Connect standard input.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Run as this user [default: the pod's].
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Start in this directory [default: the pod's].
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Set an environment variable; may be repeated.
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// The pod.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    if args.tty && args.interactive && !terminal::on_stdin() {
        return Err(error::usage("standard input is not a terminal".to_owned(), "leave -t out"));
    }
    let url = path(&["pods", &args.name, "exec"]);
    let (interactive, tty) = (args.interactive, args.tty);
    let connection = ctl.daemon.upgrade(&url, &request(args)).await?;
    // Only now: an error before this should find an ordinary terminal.
    let raw = match tty && interactive {
        true => Some(RawMode::enter().map_err(|e| error::failed(format!("the terminal refuses raw mode: {e}"), None))?),
        false => None,
    };
    let outcome = relay(connection, interactive, tty, ctl.out).await;
    drop(raw);
    outcome
}

fn request(args: Args) -> ExecRequest {
    let mut env: std::collections::BTreeMap<_, _> = args.env.into_iter().collect();
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    ExecRequest {
        command: args.command,
        env,
        user: args.user,
        workdir: args.workdir,
        tty: args.tty.then(|| terminal::size().unwrap_or((80, 24))),
        stdin: args.interactive,
    }
}

async fn relay(connection: ExecConnection, interactive: bool, tty: bool, out: &Output) -> Outcome {
    let (mut from_pod, to_pod) = tokio::io::split(connection);
    let (sender, frames) = mpsc::channel(4);
    let (leave, mut left) = mpsc::channel(1);
    // Before the first byte arrives: a signal from now on must not end podctl with the terminal still raw.
    let signals = Signals::listen(tty).map_err(|e| error::failed(format!("signals cannot be received: {e}"), None))?;
    tokio::spawn(send(frames, to_pod));
    tokio::spawn(signals.forward(sender.clone(), leave));
    if interactive {
        // A thread of its own, never joined: a read from a terminal cannot be called off.
        std::thread::spawn(move || read_stdin(&sender));
    }
    tokio::select! {
        outcome = receive(&mut from_pod, out) => outcome,
        Some(number) = left.recv() => Ok(u8::try_from(128 + number).unwrap_or(error::FAILED)),
    }
}

/// Prints what the command writes until its exit code comes.
async fn receive(from_pod: &mut (impl AsyncRead + Unpin), out: &Output) -> Outcome {
    loop {
        let Frame { kind, payload } = match frames::read(from_pod).await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                return Err(broken("the connection closed before the command's exit code came"));
            }
            Err(e) => return Err(broken(&e.to_string())),
        };
        match kind {
            exec_stream::STDOUT => out.bytes(Stream::Stdout, &payload),
            exec_stream::STDERR => out.bytes(Stream::Stderr, &payload),
            exec_stream::EXIT => {
                let code = payload.try_into().map(i32::from_be_bytes);
                let code = code.map_err(|_| broken("its exit code is not understood here"))?;
                return Ok(u8::try_from(code).unwrap_or(u8::MAX));
            }
            exec_stream::ERROR => {
                return Err(serde_json::from_slice(&payload).unwrap_or_else(|e| broken(&e.to_string())));
            }
            other => return Err(broken(&format!("a frame of unknown kind {other} came"))),
        }
        if out.gone() {
            // As a command in a local pipe would end; podd ends ours when the connection closes.
            return Ok(DONE);
        }
    }
}

fn broken(why: &str) -> ApiError {
    ApiError {
        kind: ErrorKind::Unreachable,
        message: format!("the command's output broke off: {why}"),
        cure: Some("look with `podctl ls` whether the pod still runs, and at `journalctl -u podd`".to_owned()),
    }
}

async fn send(mut frames: mpsc::Receiver<Frame>, mut to_pod: impl AsyncWrite + Unpin) {
    while let Some(frame) = frames.recv().await {
        // The reading half says what happened.
        if frames::write(&mut to_pod, frame.kind, &frame.payload).await.is_err() {
            return;
        }
    }
}

fn read_stdin(sender: &mpsc::Sender<Frame>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; exec_stream::MAX / 2];
    loop {
        let count = match stdin.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // A terminal that hung up: the end of input, as for any program.
            Err(_) => 0,
        };
        let frame = Frame { kind: exec_stream::STDIN, payload: buffer[..count].to_vec() };
        if sender.blocking_send(frame).is_err() || count == 0 {
            return;
        }
    }
}

struct Signals {
    tty: bool,
    window: tokio::signal::unix::Signal,
    ending: [(i32, tokio::signal::unix::Signal); 6],
}

impl Signals {
    fn listen(tty: bool) -> std::io::Result<Self> {
        let one = |kind: SignalKind| Ok::<_, std::io::Error>((kind.as_raw_value(), signal(kind)?));
        Ok(Self {
            tty,
            window: signal(SignalKind::window_change())?,
            ending: [
                one(SignalKind::hangup())?,
                one(SignalKind::interrupt())?,
                one(SignalKind::quit())?,
                one(SignalKind::terminate())?,
                one(SignalKind::user_defined1())?,
                one(SignalKind::user_defined2())?,
            ],
        })
    }

    /// Passes signals on. With a terminal, hangup and terminate end podctl too: the shell in the pod ignores them,
    /// and the caller's terminal must be restored.
    async fn forward(self, sender: mpsc::Sender<Frame>, leave: mpsc::Sender<i32>) {
        let Self { tty, mut window, ending: [hup, int, quit, term, usr1, usr2] } = self;
        let (mut hup, mut int, mut quit, mut term, mut usr1, mut usr2) = (hup, int, quit, term, usr1, usr2);
        loop {
            let number = tokio::select! {
                _ = window.recv() => {
                    if let (true, Some((columns, rows))) = (tty, terminal::size()) {
                        let payload = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                        if sender.send(Frame { kind: exec_stream::RESIZE, payload }).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                _ = hup.1.recv() => hup.0,
                _ = int.1.recv() => int.0,
                _ = quit.1.recv() => quit.0,
                _ = term.1.recv() => term.0,
                _ = usr1.1.recv() => usr1.0,
                _ = usr2.1.recv() => usr2.0,
            };
            let payload = u8::try_from(number).map(|byte| vec![byte]).unwrap_or_default();
            let sent = sender.send(Frame { kind: exec_stream::SIGNAL, payload }).await;
            if tty && (number == hup.0 || number == term.0) {
                leave.send(number).await.ok();
            }
            if sent.is_err() {
                return;
            }
        }
    }
}
