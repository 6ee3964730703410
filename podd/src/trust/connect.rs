//! Connections between hosts, made and accepted so that a dead link is noticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{Identity, TrustError, client_config, peer_name};

/// Silence after which a link counts as cut: data without acknowledgement, or probes without answer.
const CUT: Duration = Duration::from_secs(10);
/// Probes on an idle connection: after 4 s, then every 2 s.
const PROBE_AFTER: Duration = Duration::from_secs(4);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;

/// Calls a host and makes sure that it is the one named `peer`, within `timeout`; `alpn`: what it may speak, the best first.
///
/// The host looks at our certificate after this returns: see [`TrustError::of_io`] for the first failed read.
pub async fn connect(
    identity: &Identity,
    peer: &str,
    address: SocketAddr,
    alpn: &[&str],
    timeout: Duration,
) -> Result<client::TlsStream<TcpStream>, TrustError> {
    identity.check(Timestamp::now())?;
    let stream = dial(client_config(identity, alpn)?, peer, address, alpn, timeout).await?;
    match peer_name(stream.get_ref().1) {
        Some(name) if name == peer => Ok(stream),
        presented => Err(TrustError::WrongHost {
            peer: address.to_string(),
            expected: peer.to_owned(),
            presented: presented.unwrap_or_else(|| "no host".to_owned()),
        }),
    }
}

/// Accepts a call, within `timeout`. Who called: [`peer_name`]; for which protocol: `alpn_protocol()` of the connection.
pub async fn accept(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
    timeout: Duration,
) -> Result<server::TlsStream<TcpStream>, TrustError> {
    let peer = stream.peer_addr().map_or_else(|_| "a client".to_owned(), |address| address.to_string());
    prepare(&stream).map_err(|source| TrustError::of_io(&peer, "setting up the connection with", source))?;
    let handshake = TlsAcceptor::from(config.clone()).accept(stream);
    let stream = within(timeout, &peer, "the TLS handshake with", handshake)
        .await?
        .map_err(|source| TrustError::of_handshake(&peer, &["a protocol of podd"], source))?;
    Ok(stream)
}

/// Changes how long the other side may leave data unacknowledged, or its receive window closed.
///
/// Linux counts a closed window like a dead peer: a reader that stands still for longer (a slow disk) loses the
/// connection. 10 s is what [`connect`] and [`accept`] set.
pub fn set_stall_limit(stream: &TcpStream, limit: Duration) -> Result<(), TrustError> {
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)
        .map_err(|errno| TrustError::of_io("the peer", "setting the stall limit for", errno.into()))
}

pub(super) async fn dial(
    config: Arc<ClientConfig>,
    peer: &str,
    address: SocketAddr,
    alpn: &[&str],
    timeout: Duration,
) -> Result<client::TlsStream<TcpStream>, TrustError> {
    let label = format!("`{peer}` ({address})");
    let server = ServerName::try_from(peer.to_owned()).map_err(|_| TrustError::BadName(peer.to_owned()))?;
    let work = async {
        let stream =
            TcpStream::connect(address).await.map_err(|source| TrustError::of_io(&label, "connecting to", source))?;
        prepare(&stream).map_err(|source| TrustError::of_io(&label, "setting up the connection with", source))?;
        TlsConnector::from(config)
            .connect(server, stream)
            .await
            .map_err(|source| TrustError::of_handshake(&label, alpn, source))
    };
    let stream = within(timeout, &label, "connecting to", work).await??;
    let agreed = stream.get_ref().1.alpn_protocol();
    if !alpn.iter().any(|name| agreed == Some(name.as_bytes())) {
        return Err(TrustError::Protocol { peer: label, alpn: alpn.join(" or ") });
    }
    Ok(stream)
}

pub(super) async fn within<T>(
    timeout: Duration,
    peer: &str,
    doing: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, TrustError> {
    tokio::time::timeout(timeout, work).await.map_err(|_| TrustError::Timeout {
        peer: peer.to_owned(),
        doing,
        limit: timeout,
    })
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // Probes are not sent while data is in flight; without this the kernel retransmits for a quarter of an hour.
    sockopt::set_tcp_user_timeout(stream, CUT.as_millis() as u32)?;
    Ok(())
}
