//! Whether a pod's program does its work: the probe of its spec, asked now and then.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::exec;
use super::spec::{Health, Probe};
use super::state::{PodRecord, PodState};
use super::stop::not_running;
use crate::api::{ApiError, ExecRequest, HealthState, HealthView};
use crate::error::{Attempt, Result};
use crate::supervisor::{Daemon, Pod};
use crate::sys::namespaces::in_network_of;
use crate::sys::process::ProcessId;

/// A pod that has not been healthy yet is asked this often.
const IMPATIENT: Duration = Duration::from_secs(1);
/// Time for a killed command to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// So much of what a failed command says is kept, in bytes.
const MOST_WORDS: u64 = 200;

impl HealthView {
    /// Before the first answer.
    pub const STARTING: Self = Self { state: HealthState::Starting, failures: 0, reason: None };

    /// What is known after a further answer. Pure.
    #[must_use]
    pub fn after(&self, answer: std::result::Result<(), String>, retries: u32) -> Self {
        match answer {
            Ok(()) => Self { state: HealthState::Healthy, failures: 0, reason: None },
            Err(reason) => {
                let failures = self.failures.saturating_add(1);
                let state = if failures >= retries { HealthState::Unhealthy } else { self.state };
                Self { state, failures, reason: Some(reason) }
            }
        }
    }
}

/// Asks for as long as this init of the pod lives, if the pod's spec says what.
pub async fn watch(daemon: Arc<Daemon>, id: String, init: ProcessId) {
    let Ok(pod) = daemon.pod(&id) else { return };
    let Some(health) = pod.record().spec.health else { return };
    pod.set_health(HealthView::STARTING);
    loop {
        let record = pod.record();
        if !matches!(record.state, PodState::Running { init: now, .. } if now == init) {
            return;
        }
        // A pod that is being frozen must not have one more process. Whoever freezes it says so first, and then waits
        // for us (see `Claim::quiet`).
        let asking = pod.probing().await;
        let answer = if pod.doing().is_none() { Some(probe(&daemon, &record, &health).await) } else { None };
        drop(asking);
        if let Some(answer) = answer {
            let before = pod.health().unwrap_or(HealthView::STARTING);
            let next = before.after(answer.map_err(|e| e.message), health.retries);
            tell(&pod, before.state, &next);
            pod.set_health(next);
        }
        let interval = Duration::from_secs(health.interval_s.into());
        let waiting = pod.health().is_none_or(|h| h.state == HealthState::Starting);
        tokio::time::sleep(if waiting { interval.min(IMPATIENT) } else { interval }).await;
    }
}

/// Says so in the log when a pod falls ill or gets well.
fn tell(pod: &Pod, before: HealthState, next: &HealthView) {
    let name = pod.record().spec.name;
    match next.state {
        HealthState::Unhealthy if before != next.state => {
            tracing::warn!(pod = name, reason = next.reason, "the pod is unhealthy");
        }
        HealthState::Healthy if before == HealthState::Unhealthy => tracing::info!(pod = name, "the pod is healthy"),
        _ => {}
    }
}

/// Asks once.
///
/// # Errors
/// Why the pod is not well, in one sentence.
pub async fn probe(daemon: &Daemon, record: &PodRecord, health: &Health) -> Result<()> {
    let limit = Duration::from_secs(health.timeout_s.into());
    let asked: Pin<Box<dyn Future<Output = Result<()>> + Send>> = match &health.probe {
        // It keeps to the limit itself, and sees to the end of what it has started.
        Probe::Command(command) => return run(daemon, record, command, limit).await,
        Probe::Http { port, path } => Box::pin(async { get(connect(daemon, record, *port).await?, *port, path).await }),
        Probe::Tcp(port) => Box::pin(async { connect(daemon, record, *port).await.map(drop) }),
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(late(limit)))
}

fn late(limit: Duration) -> ApiError {
    ApiError::failed(format!("no answer within {} s", limit.as_secs()))
}

/// Ends within the limit and [`KILL_LIMIT`], and with it all that the command has started.
async fn run(daemon: &Daemon, record: &PodRecord, command: &[String], limit: Duration) -> Result<()> {
    let request = ExecRequest { command: command.to_vec(), ..ExecRequest::default() };
    let mut session = exec::command_killed_whole(daemon, record, &request)?;
    session.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut session = session.spawn().attempt("start the health command")?;
    let mut stderr = session.stderr.take();
    let ended = async {
        let mut words = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.take(MOST_WORDS).read_to_end(&mut words).await;
            let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
        }
        (session.wait().await, words)
    };
    let Ok((status, words)) = tokio::time::timeout(limit, ended).await else {
        let pid = session.id().and_then(|pid| i32::try_from(pid).ok());
        let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        // Until it is gone, the pod has processes that cannot be dumped.
        let _ = tokio::time::timeout(KILL_LIMIT, session.wait()).await;
        return Err(late(limit));
    };
    let status = status.attempt("wait for the health command")?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
    let colon = if words.is_empty() { "" } else { ": " };
    Err(ApiError::failed(format!("{} ended with {}{colon}{words}", command.join(" "), status.code().unwrap_or(255))))
}

/// From inside the pod's network, to its own addresses and to loopback.
async fn connect(daemon: &Daemon, record: &PodRecord, port: u16) -> Result<TcpStream> {
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    let own = record.spec.network.iter().flat_map(|n| &n.addresses).filter_map(|a| a.split('/').next()?.parse().ok());
    let addresses: Vec<IpAddr> = own.chain([Ipv4Addr::LOCALHOST.into()]).collect();
    let dialled = tokio::task::spawn_blocking(move || {
        in_network_of(init.pid, || {
            let mut last = Err(std::io::ErrorKind::AddrNotAvailable.into());
            for address in addresses {
                last = std::net::TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2));
                if last.is_ok() {
                    break;
                }
            }
            last
        })
    });
    let stream = dialled.await.attempt("connect")?.attempt(format!("connect to port {port}"))?;
    stream.set_nonblocking(true).attempt("connect")?;
    TcpStream::from_std(stream).attempt("connect")
}

async fn get(stream: TcpStream, port: u16, path: &str) -> Result<()> {
    let what = || format!("get {path} from port {port}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.attempt(what())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::USER_AGENT, "podd")
        .body(Empty::<Bytes>::new())
        .attempt(what())?;
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer.attempt(what())?.status();
    match status.as_u16() {
        200..=399 => Ok(()),
        _ => Err(ApiError::failed(format!("{path} at port {port} is answered with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_make_a_pod_unhealthy() {
        let bad = || Err("no".to_owned());
        let one = HealthView::STARTING.after(bad(), 2);
        assert_eq!((one.state, one.failures, one.reason.as_deref()), (HealthState::Starting, 1, Some("no")));
        let two = one.after(bad(), 2);
        assert_eq!((two.state, two.failures), (HealthState::Unhealthy, 2));
        let well = two.after(Ok(()), 2);
        assert_eq!(well, HealthView { state: HealthState::Healthy, failures: 0, reason: None });
        assert_eq!(well.after(bad(), 2).state, HealthState::Healthy, "one failure is forgiven");
        assert_eq!(HealthView::STARTING.after(bad(), 1).state, HealthState::Unhealthy);
    }
}
