//! Hosts that talk, that join, and that must not, over loopback.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client;

use super::certificate::Authority;
use super::*;

const PEER: &str = "podd-peer/2";

mod files;
mod join;
mod renew;
mod talk;

const SHORT: Duration = Duration::from_secs(5);

fn now() -> Timestamp {
    Timestamp::now()
}

fn ago(seconds: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A host that listens, with its folder.
struct Host {
    folder: TempDir,
    listener: Option<TcpListener>,
    address: SocketAddr,
}

impl Host {
    async fn new() -> Self {
        let listener = TcpListener::bind(local(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { folder: TempDir::new().unwrap(), listener: Some(listener), address }
    }

    async fn authority(name: &str) -> Self {
        let host = Self::new().await;
        init(&host.pki(), name, host.address, now()).unwrap();
        host
    }

    fn pki(&self) -> PathBuf {
        self.folder.path().join("pki")
    }

    fn identity(&self) -> Identity {
        Identity::load(&self.pki()).unwrap().unwrap()
    }

    fn known(&self) -> KnownHost {
        KnownHost { name: self.identity().name, address: self.address }
    }

    /// Answers `calls` connections with ALPN join, and returns what became of each.
    fn serve(&mut self, calls: usize, hosts: Vec<KnownHost>) -> JoinHandle<Vec<Result<JoinedHost, TrustError>>> {
        let listener = self.listener.take().unwrap();
        let config = server_config(&self.identity(), &[PEER, JOIN]).unwrap();
        let pki = self.pki();
        tokio::spawn(async move {
            let mut results = Vec::new();
            for _ in 0..calls {
                let (stream, _) = listener.accept().await.unwrap();
                results.push(match accept(&config, stream, SHORT).await {
                    Ok(stream) => super::join::serve(stream, &pki, &hosts, Duration::from_millis(500)).await,
                    Err(error) => Err(error),
                });
            }
            results
        })
    }

    fn invite(&self, name: &str) -> String {
        invite(&self.pki(), name, 600, now()).unwrap().token
    }

    async fn join(&self, authority: &Host, token: &str, name: &str) -> Result<Joined, TrustError> {
        super::join(authority.address, token, name, self.address, &self.pki()).await
    }
}

/// Authority `a` and member `b`.
async fn fleet() -> (Host, Host) {
    let mut a = Host::authority("a").await;
    let b = Host::new().await;
    let token = a.invite("b");
    let served = a.serve(1, vec![]);
    b.join(&a, &token, "b").await.unwrap();
    served.await.unwrap().remove(0).unwrap();
    a.listener = Some(TcpListener::bind(a.address).await.unwrap());
    (a, b)
}

/// Accepts one connection and says who called; `echo`es four bytes.
fn echo(host: &mut Host, alpn: &'static [&'static str]) -> JoinHandle<Result<Option<String>, TrustError>> {
    let listener = host.listener.take().unwrap();
    let config = server_config(&host.identity(), alpn).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = accept(&config, stream, SHORT).await?;
        let name = peer_name(stream.get_ref().1);
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(name)
    })
}

async fn ping(stream: &mut client::TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut word = [0; 4];
    stream.read_exact(&mut word).await?;
    assert_eq!(&word, b"ping");
    Ok(())
}

fn sentence(error: &TrustError) -> String {
    assert!(error.cure().is_some(), "no cure for: {error}");
    error.to_string()
}

/// Gives the host a certificate that was made `days` ago.
fn shorten(authority: &Path, host: &Path, days: i64) {
    let identity = Identity::load(host).unwrap().unwrap();
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(host.join("host.key")).unwrap()).unwrap();
    let made = ago(days * 24 * 3600);
    let signed = Authority::load(authority).unwrap().sign(&key, &identity.name, identity.address.ip(), made).unwrap();
    fs::write(host.join("host.pem"), signed).unwrap();
}
