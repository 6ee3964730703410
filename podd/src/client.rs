//! The client of the HTTP API in [`crate::api`], used by `podctl`, by peers and by tests.
//!
//! One connection per request: no pool, no state, nothing to go stale while a pod moves. The transport is whatever
//! the connector yields, so that a Unix socket and mutual TLS look the same from here. Nothing here retries: the
//! caller knows what may be asked twice.

pub mod frames;
mod lines;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use checkpoint::baseline;
pub use checkpoint::compat;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use self::lines::Lines;
use crate::api::{ApiError, ErrorKind, Event, Progress};

/// Largest answer, or line of a streamed answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// For the connection, the handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer to a GET: none of them waits for a pod.
const GET_TIMEOUT: Duration = Duration::from_secs(60);

/// A byte stream to a daemon.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection attempt under way.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Box<dyn Io>, ApiError>> + Send>>;

/// The connection after a successful [`Client::upgrade`]: [`frames`] both ways.
pub type ExecConnection = TokioIo<hyper::upgrade::Upgraded>;

/// Talks to one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    connect: Arc<dyn Fn() -> Connecting + Send + Sync>,
    /// What error messages call the daemon, such as `podd on /run/podd/podd.sock`.
    peer: String,
}

impl Client {
    /// The daemon behind a Unix socket. Connects with the first request, not now.
    pub fn local(socket: &Path) -> Self {
        let path = socket.to_owned();
        let peer = format!("podd on {}", path.display());
        Self::new(peer, move || {
            let path = path.clone();
            Box::pin(async move {
                match tokio::net::UnixStream::connect(&path).await {
                    Ok(stream) => Ok(Box::new(stream) as Box<dyn Io>),
                    Err(error) => Err(no_connection(path, &error)),
                }
            })
        })
    }

    /// Any transport: `connect` makes a fresh, authenticated stream for each request, `peer` names the daemon in
    /// error messages.
    pub fn new(peer: String, connect: impl Fn() -> Connecting + Send + Sync + 'static) -> Self {
        Self { connect: Arc::new(connect), peer }
    }

    /// GET, answered within a minute.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = async { self.answer(self.send(Method::GET, path, Bytes::new(), false).await?).await };
        match tokio::time::timeout(GET_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable("did not answer within a minute", "see `journalctl -u podd` on that host")),
        }
    }

    /// POST with a JSON body (`&()` for none); waits as long as it takes.
    pub async fn post<B: Serialize + ?Sized, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ApiError> {
        self.answer(self.send(Method::POST, path, encode(body)?, false).await?).await
    }

    /// DELETE; waits as long as it takes.
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        let response = self.send(Method::DELETE, path, Bytes::new(), false).await?;
        self.answer::<serde_json::Value>(response).await.map(drop)
    }

    /// POST answered by a stream of [`Event`]s: hands every progress to `on_progress` and returns the result.
    /// A stream that ends without result or error is [`ErrorKind::Unreachable`]: what became of the request is unknown.
    pub async fn stream<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<T, ApiError> {
        let response = self.send(Method::POST, path, encode(body)?, false).await?;
        let mut lines = Lines::new(response.into_body());
        while let Some(line) = lines.next().await.map_err(|e| self.cut_off(&e))? {
            match self.decode(&line)? {
                Event::Progress(progress) => on_progress(progress),
                Event::Result { value } => {
                    return serde_json::from_value(value).map_err(|e| self.foreign(&e));
                }
                Event::Error(error) => return Err(error),
            }
        }
        Err(self.cut_off("no result came"))
    }

    /// GET of a log or of a journal: hands every line to `on_line` until the daemon ends the stream or `on_line` answers false.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut on_line: impl FnMut(T) -> bool,
    ) -> Result<(), ApiError> {
        let response = self.send(Method::GET, path, Bytes::new(), false).await?;
        let mut lines = Lines::new(response.into_body());
        while let Some(line) = lines.next().await.map_err(|e| self.cut_off(&e))? {
            match self.decode::<T>(&line) {
                Ok(line) => {
                    if !on_line(line) {
                        return Ok(());
                    }
                }
                Err(foreign) => match serde_json::from_slice(&line) {
                    Ok(Event::Error(error)) => return Err(error),
                    Ok(Event::Progress(_) | Event::Result { .. }) | Err(_) => return Err(foreign),
                },
            }
        }
        Ok(())
    }

    /// POST that turns the connection into a raw one, see [`frames`].
    pub async fn upgrade<B: Serialize + ?Sized>(&self, path: &str, body: &B) -> Result<ExecConnection, ApiError> {
        let response = self.send(Method::POST, path, encode(body)?, true).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.foreign(&format!("status {} instead of 101", response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| self.cut_off(&e.to_string()))?;
        Ok(TokioIo::new(upgraded))
    }

    /// Sends and waits for the head of the answer; a failure status becomes the [`ApiError`] in its body.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        upgrade: bool,
    ) -> Result<Response<Incoming>, ApiError> {
        let what = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "podd");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, frames::PROTOCOL);
        }
        let request = request.body(Full::new(body)).map_err(|error| ApiError {
            kind: ErrorKind::Usage,
            message: format!("{what:?} is not a request: {error}"),
            cure: None,
        })?;
        let mut sender = match tokio::time::timeout(CONNECT_TIMEOUT, self.connection()).await {
            Ok(sender) => sender?,
            Err(_) => {
                return Err(self.unreachable("does not accept connections", "see `systemctl status podd`"));
            }
        };
        let response = sender.send_request(request).await.map_err(|error| self.cut_off(&error.to_string()))?;
        match response.status() {
            status if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS => Ok(response),
            status => Err(self.refusal(&what, status, response.into_body()).await),
        }
    }

    async fn connection(&self) -> Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>, ApiError> {
        let stream = (self.connect)().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| self.cut_off(&error.to_string()))?;
        // Its errors reach the caller through the request and the body.
        tokio::spawn(async move { connection.with_upgrades().await.ok() });
        Ok(sender)
    }

    async fn answer<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, ApiError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        self.decode(&body.map_err(|error| self.cut_off(&error.to_string()))?.to_bytes())
    }

    async fn refusal(&self, what: &str, status: StatusCode, body: Incoming) -> ApiError {
        let body = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.cut_off(&error.to_string()),
        };
        if let Ok(error) = serde_json::from_slice(&body) {
            return error;
        }
        let said: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
        ApiError {
            kind: kind(status),
            message: format!("{} answered {status} to {what}: {said}", self.peer),
            cure: Some(VERSIONS.to_owned()),
        }
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ApiError> {
        // An empty answer, as with status 204, says as much as `null`.
        let bytes = if bytes.is_empty() { b"null" } else { bytes };
        serde_json::from_slice(bytes).map_err(|error| self.foreign(&error))
    }

    fn foreign(&self, error: &dyn std::fmt::Display) -> ApiError {
        ApiError {
            kind: ErrorKind::Failed,
            message: format!("{} gave an answer that is not understood here: {error}", self.peer),
            cure: Some(VERSIONS.to_owned()),
        }
    }

    fn cut_off(&self, error: &str) -> ApiError {
        self.unreachable(
            &format!("broke the connection off before the answer was complete ({error})"),
            "look with `podctl ls` what became of the request, and at `journalctl -u podd` for the reason",
        )
    }

    fn unreachable(&self, predicate: &str, cure: &str) -> ApiError {
        ApiError {
            kind: ErrorKind::Unreachable,
            message: format!("{} {predicate}", self.peer),
            cure: Some(cure.to_owned()),
        }
    }
}

const VERSIONS: &str = "compare both sides with `podctl version`; upgrade the older one";

/// A path under `/v1` from its segments, each percent-encoded: `path(&["pods", "web", "start"])`.
pub fn path(segments: &[&str]) -> String {
    let mut path = format!("/v{}", crate::api::API_VERSION);
    for segment in segments {
        path.push('/');
        for byte in segment.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => path.push(char::from(byte)),
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    path
}

fn encode<B: Serialize + ?Sized>(body: &B) -> Result<Bytes, ApiError> {
    match serde_json::to_vec(body) {
        Ok(bytes) if bytes == b"null" => Ok(Bytes::new()),
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(ApiError {
            kind: ErrorKind::Usage,
            message: format!("the request cannot be written as JSON: {error}"),
            cure: Some("use UTF-8 for paths and arguments".to_owned()),
        }),
    }
}

fn no_connection(socket: PathBuf, error: &std::io::Error) -> ApiError {
    let socket = socket.display();
    let (message, cure) = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => (
            format!("podd does not run on {socket}"),
            "start it with `systemctl start podd`, or name another socket with --socket or --host",
        ),
        std::io::ErrorKind::PermissionDenied => (
            format!("{socket} may not be opened by this user"),
            "join the group podd (`usermod -aG podd USER`, then log in again), or work as root",
        ),
        _ => (format!("{socket} cannot be connected to: {error}"), "name podd's socket with --socket or --host"),
    };
    ApiError { kind: ErrorKind::Unreachable, message, cure: Some(cure.to_owned()) }
}

/// For answers without an [`ApiError`], such as a proxy's.
fn kind(status: StatusCode) -> ErrorKind {
    match status {
        StatusCode::BAD_REQUEST => ErrorKind::Usage,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::CONFLICT => ErrorKind::Conflict,
        StatusCode::PRECONDITION_FAILED => ErrorKind::Refused,
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unreachable,
        _ => ErrorKind::Failed,
    }
}
