//! A daemon that answers by rote, on a Unix socket of its own.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use podd::api::exec_stream;
use podd::client::frames;
use serde_json::{Value, json};

/// `METHOD path body` of every request, in order.
type Seen = Arc<Mutex<Vec<String>>>;

pub struct Fake {
    folder: tempfile::TempDir,
    seen: Seen,
    // Dropping it ends the server.
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seen = Seen::default();
        let app = router(seen.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let path = folder.path().join("podd.sock");
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(path).unwrap() });
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { folder, seen, _runtime: runtime }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("podd.sock")
    }

    /// A file beside the socket.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn podctl(&self, arguments: &[&str]) -> Command {
        let mut command = podctl(arguments);
        command.env("PODD_SOCKET", self.socket());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.podctl(arguments).output().unwrap()
    }
}

/// podctl with nothing of the caller's environment that matters to it.
pub fn podctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podctl"));
    command.args(arguments);
    for name in ["PODD_SOCKET", "PODCTL_CONFIG", "XDG_CONFIG_HOME", "HOME"] {
        command.env_remove(name);
    }
    command
}

pub fn pod(name: &str) -> Value {
    json!({
        "name": name, "id": "0123456789abcdef", "state": "running", "addresses": ["10.0.0.5/24"],
        "command": ["sleep", "9"], "started": "2024-02-29T12:00:00Z", "exit": null, "restarts": 0, "health": null, "host": "a",
        "epoch": 1,
    })
}

pub fn report() -> Value {
    json!({
        "pod": "web", "from": "a", "to": "b", "mode": "stop-copy", "why": "as asked for", "tracker": null, "total_ms": 1840.0,
        "predicted": { "expected": { "blackout_ms": 280.0, "total_ms": 2000.0 },
                       "model": { "blackout_ms": 300.0, "total_ms": 2100.0 } },
        "blackout_ms": 312.0,
        "phases": { "preflight_ms": 1.0, "prepare_ms": 2.0, "freeze_ms": 4.0, "dump_ms": 150.0, "transfer_ms": 60.0,
                    "restore_ms": 90.0, "announce_ms": 8.0 },
        "bytes": { "memory": 268_000_000, "frozen": 12_000_000, "later": 0, "files": 4_000_000, "packed": 0, "wire": 272_000_000 }, "rounds": 1,
    })
}

/// Pods called `no-KIND` fail with that kind.
fn refusal(name: &str) -> Option<Response> {
    let kind = name.strip_prefix("no-")?;
    let status = match kind {
        "usage" => 400,
        "not-found" => 404,
        "conflict" => 409,
        "refused" => 412,
        "failed" => 500,
        _ => 503,
    };
    let body = json!({ "kind": kind, "message": format!("{name} is {kind}"), "cure": "try another" });
    Some((StatusCode::from_u16(status).unwrap(), Json(body)).into_response())
}

fn router(seen: Seen) -> Router {
    let stream = |result: fn(&str) -> Value| {
        post(move |Path(name): Path<String>| async move {
            refusal(&name).unwrap_or_else(|| events(&result(&name)).into_response())
        })
    };
    let value = |result: fn(&str) -> Value| {
        post(move |Path(name): Path<String>| async move {
            refusal(&name).unwrap_or_else(|| Json(result(&name)).into_response())
        })
    };
    Router::new()
        .route("/v1/pods", get(|| async { Json((0..5_000).map(|n| pod(&format!("web-{n}"))).collect::<Value>()) }))
        .route("/v1/pods", post(|| async { events(&pod("web")) }))
        .route("/v1/pods/{name}", delete(|| async { Json(Value::Null) }))
        .route("/v1/pods/{name}/start", stream(pod))
        .route("/v1/pods/{name}/migrate", stream(|_| report()))
        .route("/v1/pods/{name}/stop", value(pod))
        .route("/v1/pods/{name}/kill", value(|_| Value::Null))
        .route("/v1/pods/{name}/wait", value(|_| json!({ "code": 42, "signal": null, "oom": false })))
        .route("/v1/pods/{name}/logs", get(|| async { LOG }))
        .route("/v1/pods/{name}/exec", post(exec))
        .route(
            "/v1/pods/{name}/preflight",
            value(|_| json!([{ "rule": "io-uring", "verdict": "no", "fact": "a ring", "cure": "none of it" }])),
        )
        .route(
            "/v1/doctor",
            get(|| async { Json(json!([{ "name": "criu", "verdict": "fail", "fact": "3.17", "cure": "newer" }])) }),
        )
        .route(
            "/v1/host/invite",
            post(|| async { Json(json!({ "token": "s3cret", "expires": "2999-01-01T00:00:00Z" })) }),
        )
        .layer(axum::middleware::from_fn_with_state(seen, record))
}

const LOG: &str = concat!(
    "{\"time\":\"T1\",\"stream\":\"stdout\",\"text\":\"one\"}\n",
    "{\"time\":\"T2\",\"stream\":\"stderr\",\"text\":\"two\"}\n",
);

fn events(result: &Value) -> String {
    let progress = json!({ "event": "progress", "phase": "memory", "done": 1, "total": 2 });
    format!("{progress}\n{}\n", json!({ "event": "result", "value": result }))
}

async fn record(State(seen): State<Seen>, request: Request, next: axum::middleware::Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let line = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    seen.lock().unwrap().push(line.trim_end().to_owned());
    next.run(Request::from_parts(parts, body.into())).await
}

/// `cat` echoes and exits with 7; `report` writes down every frame; `vanish` closes the connection at the first one;
/// `fail` sends an error.
async fn exec(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let asked: podd::api::ExecRequest = serde_json::from_slice(&body).unwrap();
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let command = asked.command[0].as_str();
        frames::write(&mut io, exec_stream::STDERR, format!("ready {:?}\r\n", asked.tty).as_bytes()).await.unwrap();
        if command == "fail" {
            let error = json!({ "kind": "conflict", "message": "web has ended", "cure": null }).to_string();
            return frames::write(&mut io, exec_stream::ERROR, error.as_bytes()).await.unwrap();
        }
        while let Ok(Some(frame)) = frames::read(&mut io).await {
            if command == "vanish" || (frame.kind == exec_stream::STDIN && frame.payload.is_empty()) {
                break;
            }
            let bytes = match command {
                "report" => format!("frame {} {:?}\r\n", frame.kind, frame.payload).into_bytes(),
                _ => frame.payload,
            };
            if frames::write(&mut io, exec_stream::STDOUT, &bytes).await.is_err() || bytes == b"frame 0 [113]\r\n" {
                break;
            }
        }
        if command != "vanish" {
            frames::write(&mut io, exec_stream::EXIT, &7_i32.to_be_bytes()).await.ok();
        }
    });
    (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", frames::PROTOCOL)]).into_response()
}
