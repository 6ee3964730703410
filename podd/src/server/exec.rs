//! `exec` over an upgraded HTTP connection: frames both ways, see `api::exec_stream`.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;

use crate::api::{ApiError, ExecRequest, exec_stream};
use crate::client::frames;
use crate::error::{Attempt, Result};
use crate::pod::exec;
use crate::supervisor::Daemon;
use crate::sys::mounts;

/// The route's handler: starts the command, then upgrades.
pub async fn exec(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    mut request: Request,
) -> std::result::Result<Response, ApiError> {
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.attempt("read the request")?;
    let wanted: ExecRequest =
        serde_json::from_slice(&body).map_err(|e| ApiError::usage(format!("the request is not understood: {e}")))?;
    let session = Session::start(&daemon, &name, &wanted)?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => session.run(TokioIo::new(connection)).await,
            Err(e) => tracing::debug!(error = %e, "an exec connection was not upgraded"),
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, frames::PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}

/// A running command and its ends of the pipes, or its terminal.
struct Session {
    child: Child,
    terminal: Option<OwnedFd>,
    stdin: Option<Box<dyn AsyncWrite + Unpin + Send>>,
    outputs: Vec<(u8, Box<dyn AsyncRead + Unpin + Send>)>,
}

impl Session {
    fn start(daemon: &Daemon, name: &str, wanted: &ExecRequest) -> Result<Self> {
        let record = daemon.pod(name)?.record();
        let mut command = exec::command(daemon, &record, wanted)?;
        // The connection's end is the command's end.
        command.kill_on_drop(true);
        let Some((columns, rows)) = wanted.tty else {
            command.stdin(if wanted.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().attempt("start the command")?;
            let stdin = child.stdin.take().map(|s| Box::new(s) as Box<dyn AsyncWrite + Unpin + Send>);
            let mut outputs: Vec<(u8, Box<dyn AsyncRead + Unpin + Send>)> = Vec::new();
            if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
                outputs.push((exec_stream::STDOUT, Box::new(out)));
                outputs.push((exec_stream::STDERR, Box::new(err)));
            }
            return Ok(Self { child, terminal: None, stdin, outputs });
        };
        let crate::pod::state::PodState::Running { init, .. } = record.state else {
            return Err(crate::pod::stop::not_running(daemon, &record));
        };
        let root = std::path::PathBuf::from(format!("/proc/{}/root", init.pid));
        let (master, slave) = mounts::open_terminal(&root).attempt("open a terminal in the pod")?;
        mounts::resize_terminal(&master, columns, rows).attempt("set the terminal's size")?;
        let copy = |fd: &OwnedFd| fd.try_clone().attempt("open a terminal in the pod");
        command.stdin(copy(&slave)?).stdout(copy(&slave)?).stderr(slave);
        let child = command.spawn().attempt("start the command")?;
        // The command object still holds the slave; without this the master would never report the end.
        drop(command);
        let file = |fd: OwnedFd| tokio::fs::File::from_std(std::fs::File::from(fd));
        Ok(Self {
            child,
            stdin: Some(Box::new(file(copy(&master)?))),
            outputs: vec![(exec_stream::STDOUT, Box::new(file(copy(&master)?)))],
            terminal: Some(master),
        })
    }

    /// Connects both sides until the command has ended, or the client has left.
    async fn run(mut self, connection: impl AsyncRead + AsyncWrite + Send + 'static) {
        let (mut from_client, mut to_client) = tokio::io::split(connection);
        let (frames_out, mut outgoing) = mpsc::channel::<(u8, Vec<u8>)>(16);
        let mut pumps = Vec::new();
        for (kind, mut output) in self.outputs.drain(..) {
            let frames_out = frames_out.clone();
            pumps.push(tokio::spawn(async move {
                let mut buffer = vec![0; exec_stream::MAX];
                // A terminal whose last user is gone reports EIO: the end.
                while let Ok(n @ 1..) = output.read(&mut buffer).await {
                    if frames_out.send((kind, buffer[..n].to_vec())).await.is_err() {
                        return;
                    }
                }
            }));
        }
        let writer = tokio::spawn(async move {
            while let Some((kind, payload)) = outgoing.recv().await {
                if frames::write(&mut to_client, kind, &payload).await.is_err() {
                    return;
                }
            }
            let _ = to_client.shutdown().await;
        });
        // Reading frames is not cancel safe, so it has a task of its own.
        let (frames_in, mut incoming) = mpsc::channel(16);
        let reader = tokio::spawn(async move {
            while let Ok(Some(frame)) = frames::read(&mut from_client).await {
                if frames_in.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let code = loop {
            tokio::select! {
                ended = self.child.wait() => break ended.map_or(255, exit_code),
                frame = incoming.recv() => match frame {
                    Some(frame) => self.take(&frame).await,
                    None => {
                        let _ = self.child.start_kill();
                        break self.child.wait().await.map_or(255, exit_code);
                    }
                },
            }
        };
        // What the command wrote last comes before its exit code; a grandchild may hold the pipes open for ever.
        for pump in pumps {
            let abort = pump.abort_handle();
            if tokio::time::timeout(std::time::Duration::from_millis(300), pump).await.is_err() {
                abort.abort();
            }
        }
        let _ = frames_out.send((exec_stream::EXIT, code.to_be_bytes().to_vec())).await;
        drop(frames_out);
        let _ = writer.await;
        reader.abort();
    }

    async fn take(&mut self, frame: &frames::Frame) {
        match (frame.kind, &frame.payload[..]) {
            (exec_stream::STDIN, []) => self.stdin = None,
            (exec_stream::STDIN, bytes) => {
                if let Some(stdin) = &mut self.stdin {
                    let written: io::Result<()> = async {
                        stdin.write_all(bytes).await?;
                        stdin.flush().await
                    }
                    .await;
                    if written.is_err() {
                        self.stdin = None;
                    }
                }
            }
            (exec_stream::RESIZE, &[c1, c0, r1, r0]) => {
                if let Some(master) = &self.terminal {
                    let _ = mounts::resize_terminal(master, u16::from_be_bytes([c1, c0]), u16::from_be_bytes([r1, r0]));
                }
            }
            (exec_stream::SIGNAL, &[number]) => {
                if let (Some(pid), Ok(signal)) =
                    (self.child.id(), nix::sys::signal::Signal::try_from(i32::from(number)))
                {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
                }
            }
            _ => {}
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255)
}
