//! The port for other podds: mutual TLS; without a certificate of the fleet one can only join.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsStream;

use crate::api::ApiError;
use crate::patch::run::orders;
use crate::peer::{Message, Peer, learn_hosts};
use crate::pod::arrive;
use crate::server::refuse_if_removed;
use crate::store::Host;
use crate::supervisor::Daemon;
use crate::trust::{self, Identity, KnownHost};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between two questions which hosts there are.
const LEARN: Duration = Duration::from_secs(600);

/// Serves other hosts for as long as this host has an identity; waits until it has one.
pub async fn serve(daemon: Arc<Daemon>) {
    let mut renewed = Timestamp::UNIX_EPOCH;
    loop {
        let Ok(identity) = daemon.identity() else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let address = daemon.config.listen.unwrap_or(identity.address);
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(e) => {
                tracing::error!(%address, error = %e, "cannot listen for other hosts; trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
                continue;
            }
        };
        tracing::info!(%address, "listening for other hosts");
        let mut identity = identity;
        loop {
            // Once a day, and at the start.
            if Timestamp::now().duration_since(renewed).as_hours() >= 24 {
                renewed = Timestamp::now();
                match trust::renew_if_due(&daemon.config.state.join("pki"), renewed).await {
                    Ok(Some(fresh)) => identity = fresh,
                    Ok(None) => {}
                    Err(e) => tracing::warn!(error = %e, "cannot renew this host's certificate"),
                }
            }
            match tokio::time::timeout(Duration::from_secs(3600), listener.accept()).await {
                Err(_) => {}
                Ok(Ok((stream, from))) => {
                    tokio::spawn(answer(daemon.clone(), identity.clone(), stream, from));
                }
                // Out of descriptors: a pause lets others close theirs.
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Waits until the port of a new identity is open: whoever founded or joined a fleet may rely on it.
///
/// # Errors
/// It is not after some seconds.
pub async fn wait_until_listening(daemon: &Daemon, identity: &Identity) -> crate::error::Result<()> {
    let address = daemon.config.listen.unwrap_or(identity.address);
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(crate::api::ApiError::failed(format!("this podd does not listen on {address}"))
        .cure("the reason is in podd's log; the address must be one of this host"))
}

/// Has all hosts learn of a new one: they must know each other when the authority, whom they would ask, is gone.
async fn tell_of(daemon: &Daemon, new: &str) -> crate::error::Result<()> {
    let others = daemon.store.hosts()?.into_iter().filter(|host| host.name != daemon.config.host && host.name != new);
    join_all(others.map(async |host| orders::call_host::<()>(daemon, &host.name, &orders::Call::Learn).await.is_ok()))
        .await;
    Ok(())
}

/// Learns again and again which hosts there are, for as long as podd runs: it may have missed one.
pub async fn learn(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(LEARN).await;
        let _ = learn_hosts(&daemon).await;
    }
}

async fn answer(daemon: Arc<Daemon>, identity: Identity, stream: TcpStream, from: SocketAddr) {
    if let Err(e) = converse(daemon, identity, stream).await {
        tracing::debug!(%from, error = %e, "a connection of another host ended");
    }
}

async fn converse(daemon: Arc<Daemon>, identity: Identity, stream: TcpStream) -> crate::error::Result<()> {
    let config = trust::server_config(&identity, &[daemon.config.protocol.offers(), &[trust::JOIN]].concat())?;
    let stream = trust::accept(&config, stream, HANDSHAKE).await?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() == Some(trust::JOIN.as_bytes()) {
        let hosts = known_hosts(&daemon)?;
        let joined = trust::serve_join(stream, &daemon.config.state.join("pki"), &hosts).await?;
        tracing::info!(host = joined.name, address = %joined.address, "a host joined");
        daemon.store.put_host(&Host { name: joined.name.clone(), address: joined.address })?;
        tell_of(&daemon, &joined.name).await?;
        return Ok(());
    }
    let name =
        trust::peer_name(session).ok_or_else(|| ApiError::failed("the caller shows no certificate of this fleet"))?;
    // Any holder of a certificate of our CA is a member, unless it was removed; one whom we have not met yet cannot be called back, though.
    refuse_if_removed(&daemon)?;
    let is_removed = || Ok::<_, ApiError>(daemon.store.removed_hosts()?.contains(&name));
    // It may have joined anew, and only the authority knows.
    if is_removed()? && (learn_hosts(&daemon).await.is_err() || is_removed()?) {
        let reason = format!("{name} was removed from this fleet");
        let mut peer = Peer::new(TlsStream::from(stream));
        // To whoever still talks, an end of the connection would come before the reason.
        let _ = peer.receive_within(HANDSHAKE).await;
        return peer.send(&Message::Refused { reason }).await;
    }
    arrive::serve(&daemon, Peer::new(TlsStream::from(stream)), &name).await
}

/// The hosts of the store, in the words of `trust`.
///
/// # Errors
/// The store's.
pub fn known_hosts(daemon: &Daemon) -> crate::error::Result<Vec<KnownHost>> {
    Ok(daemon.store.hosts()?.into_iter().map(|h| KnownHost { name: h.name, address: h.address }).collect())
}

/// Hosts whose certificate was signed just before a crash, so that the store does not know them.
pub fn learn_joined(daemon: &Daemon) {
    let known: Vec<String> = known_hosts(daemon).unwrap_or_default().into_iter().map(|h| h.name).collect();
    for host in trust::joined(&daemon.config.state.join("pki")).unwrap_or_default() {
        if !known.contains(&host.name) {
            let _ = daemon.store.put_host(&Host { name: host.name, address: host.address });
        }
    }
}
