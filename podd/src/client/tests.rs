#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use serde_json::{Value, json};

use super::*;
use crate::api::{LogLine, exec_stream};

/// A daemon that answers from a table; its socket vanishes with it.
struct Fake {
    _folder: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Fake {
    async fn start(app: Router) -> (Self, Client) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("podd.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (Self { _folder: folder, server }, Client::local(&socket))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn error(status: u16, kind: &str) -> (StatusCode, axum::Json<Value>) {
    let body = json!({ "kind": kind, "message": format!("it is {kind}"), "cure": "do it" });
    (StatusCode::from_u16(status).unwrap(), axum::Json(body))
}

#[tokio::test]
async fn requests_carry_json_both_ways() {
    let app = Router::new()
        .route("/v1/a", get(|| async { axum::Json(json!([1, 2])) }))
        .route("/v1/b", post(|axum::Json(body): axum::Json<Value>| async move { axum::Json(json!({ "got": body })) }))
        .route("/v1/none", post(|body: String| async move { axum::Json(json!(body.len())) }))
        .route("/v1/d", delete(|| async { StatusCode::NO_CONTENT }))
        .route("/v1/c", delete(|| async { axum::Json(Value::Null) }));
    let (_fake, client) = Fake::start(app).await;
    assert_eq!(client.get::<Vec<u8>>("/v1/a").await.unwrap(), [1, 2]);
    assert_eq!(client.post::<_, Value>("/v1/b", &json!({"x": 1})).await.unwrap(), json!({"got": {"x": 1}}));
    assert_eq!(client.post::<_, Value>("/v1/none", &()).await.unwrap(), json!(0));
    client.delete("/v1/c").await.unwrap();
    client.delete("/v1/d").await.unwrap();
}

#[tokio::test]
async fn errors_keep_kind_message_and_cure() {
    let app = Router::new()
        .route("/v1/refused", get(|| async { error(412, "refused") }))
        .route("/v1/plain", get(|| async { (StatusCode::CONFLICT, "no\x1b[2J json") }))
        .route("/v1/html", get(|| async { "<html>" }));
    let (_fake, client) = Fake::start(app).await;
    let refused = client.get::<Value>("/v1/refused").await.unwrap_err();
    assert_eq!(
        (refused.kind, refused.message.as_str(), refused.cure.as_deref()),
        (ErrorKind::Refused, "it is refused", Some("do it"))
    );
    let plain = client.get::<Value>("/v1/plain").await.unwrap_err();
    assert_eq!(plain.kind, ErrorKind::Conflict);
    assert!(plain.message.contains("409") && plain.message.contains("no[2J json"), "{}", plain.message);
    let html = client.get::<Value>("/v1/html").await.unwrap_err();
    assert_eq!(html.kind, ErrorKind::Failed);
    assert!(html.cure.unwrap().contains("podctl version"));
    assert_eq!(client.get::<Value>("/v1/nothing").await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn no_daemon_is_unreachable_with_a_cure() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podd.sock");
    let error = Client::local(&socket).get::<Value>("/v1/version").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.message.contains(socket.to_str().unwrap()), "{}", error.message);
    assert!(error.cure.unwrap().contains("systemctl start podd"));

    let denied = no_connection(socket, &std::io::ErrorKind::PermissionDenied.into());
    assert_eq!(denied.kind, ErrorKind::Unreachable);
    assert!(denied.cure.unwrap().contains("group podd"));
}

#[tokio::test]
async fn a_daemon_that_dies_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let dying = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
    let error = Client::local(&socket).post::<_, Value>("/v1/x", &json!({})).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    dying.await.unwrap();
}

#[tokio::test]
async fn streams_end_with_a_result_or_an_error() {
    let chunked = |chunks: &'static [&'static str]| {
        post(move || async move {
            let chunks = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(*chunk));
            Body::from_stream(futures_util::stream::iter(chunks))
        })
    };
    let app = Router::new()
        .route(
            "/v1/good",
            chunked(&[
                "{\"event\":\"progress\",\"phase\":\"memory\",\"done\":1,\"total\":2}\n{\"event\":\"pro",
                "gress\",\"phase\":\"memory\",\"done\":2,\"total\":2}\n\n{\"event\":\"result\",\"value\":{\"a\":7}}",
            ]),
        )
        .route("/v1/bad", chunked(&["{\"event\":\"error\",\"kind\":\"failed\",\"message\":\"m\",\"cure\":null}\n"]))
        .route("/v1/cut", chunked(&["{\"event\":\"progress\",\"phase\":\"x\",\"done\":0,\"total\":0}\n"]))
        .route("/v1/odd", chunked(&["{\"event\":\"dance\"}\n"]));
    let (_fake, client) = Fake::start(app).await;
    let mut seen = Vec::new();
    let value: Value = client.stream("/v1/good", &(), |p| seen.push((p.phase, p.done))).await.unwrap();
    assert_eq!(value, json!({"a": 7}));
    assert_eq!(seen, [("memory".to_owned(), 1), ("memory".to_owned(), 2)]);
    let kind = |path: &'static str| {
        let client = client.clone();
        async move { client.stream::<_, Value>(path, &(), |_| ()).await.unwrap_err().kind }
    };
    assert_eq!(kind("/v1/bad").await, ErrorKind::Failed);
    assert_eq!(kind("/v1/cut").await, ErrorKind::Unreachable);
    assert_eq!(kind("/v1/odd").await, ErrorKind::Failed);
}

#[tokio::test]
async fn log_lines_arrive_until_the_reader_has_enough() {
    const LOG: &str = concat!(
        "{\"time\":\"t\",\"stream\":\"stdout\",\"text\":\"one\"}\n",
        "{\"time\":\"t\",\"stream\":\"stderr\",\"text\":\"two\"}\n",
        "{\"event\":\"error\",\"kind\":\"not-found\",\"message\":\"gone\",\"cure\":null}\n",
    );
    let (_fake, client) = Fake::start(Router::new().route("/v1/log", get(|| async { LOG }))).await;
    let mut seen = Vec::new();
    let end = client
        .lines("/v1/log", |line: LogLine| {
            seen.push(line.text);
            true
        })
        .await;
    assert_eq!(seen, ["one", "two"]);
    assert_eq!(end.unwrap_err().message, "gone");
    let mut count = 0;
    client
        .lines("/v1/log", |_: LogLine| {
            count += 1;
            false
        })
        .await
        .unwrap();
    assert_eq!(count, 1);
}

async fn echo(mut request: Request) -> impl IntoResponse {
    assert_eq!(request.headers()[header::UPGRADE], frames::PROTOCOL);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        while let Some(frame) = frames::read(&mut io).await.unwrap() {
            if frame.payload.is_empty() {
                break;
            }
            frames::write(&mut io, exec_stream::STDOUT, &frame.payload).await.unwrap();
        }
        frames::write(&mut io, exec_stream::EXIT, &7_u32.to_be_bytes()).await.unwrap();
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, frames::PROTOCOL)])
}

#[tokio::test]
async fn upgrade_gives_a_raw_connection() {
    let app = Router::new()
        .route("/v1/exec", post(echo))
        .route("/v1/none", post(|| async { error(409, "conflict") }))
        .route("/v1/ok", post(|| async { "" }));
    let (_fake, client) = Fake::start(app).await;
    let mut io = client.upgrade("/v1/exec", &json!({})).await.unwrap();
    let big = vec![b'x'; exec_stream::MAX];
    frames::write(&mut io, exec_stream::STDIN, &big).await.unwrap();
    assert_eq!(frames::read(&mut io).await.unwrap(), Some(frames::Frame { kind: exec_stream::STDOUT, payload: big }));
    frames::write(&mut io, exec_stream::STDIN, &[]).await.unwrap();
    let exit = frames::read(&mut io).await.unwrap().unwrap();
    assert_eq!((exit.kind, exit.payload), (exec_stream::EXIT, vec![0, 0, 0, 7]));
    assert_eq!(frames::read(&mut io).await.unwrap(), None);

    assert_eq!(client.upgrade("/v1/none", &()).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(client.upgrade("/v1/ok", &()).await.unwrap_err().kind, ErrorKind::Failed);
}

#[tokio::test]
async fn frames_are_bounded() {
    let mut sink = Vec::new();
    assert!(frames::write(&mut sink, 0, &vec![0; exec_stream::MAX + 1]).await.is_err());
    let mut lying: &[u8] = &[0, 0xff, 0xff, 0xff, 0xff, 1];
    assert!(frames::read(&mut lying).await.is_err());
    let mut short: &[u8] = &[0, 0, 0, 0, 9, 1];
    assert!(frames::read(&mut short).await.is_err());
    assert_eq!(frames::read(&mut &b""[..]).await.unwrap(), None);
}

#[test]
fn paths_are_encoded() {
    assert_eq!(path(&["pods", "web-1", "start"]), "/v1/pods/web-1/start");
    assert_eq!(path(&["pods", "../x y?"]), "/v1/pods/%2E%2E%2Fx%20y%3F");
}
