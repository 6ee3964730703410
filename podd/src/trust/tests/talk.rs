//! Who is let in, and who is not.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::super::{certificate, tls};
use super::*;

#[tokio::test]
async fn two_members_know_each_other_by_name() {
    let (mut a, b) = fleet().await;
    for _ in 0..2 {
        let served = echo(&mut a, &[PEER, API]);
        let mut stream = connect(&b.identity(), "a", a.address, &[PEER], SHORT).await.unwrap();
        ping(&mut stream).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "nothing is resumed");
        assert_eq!(peer_name(session).as_deref(), Some("a"));
        assert!(stream.get_ref().0.nodelay().unwrap());
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(stream.get_ref().0).unwrap(), 10_000);
        assert_eq!(served.await.unwrap().unwrap().as_deref(), Some("b"));
        a.listener = Some(TcpListener::bind(a.address).await.unwrap());
    }
    // And the other way round.
    let mut b = b;
    let served = echo(&mut b, &[PEER]);
    let mut stream = connect(&a.identity(), "b", b.address, &[PEER], SHORT).await.unwrap();
    ping(&mut stream).await.unwrap();
    assert_eq!(served.await.unwrap().unwrap().as_deref(), Some("a"));
}

#[tokio::test]
async fn a_stranger_with_a_ca_of_its_own_is_refused_by_both_sides() {
    let (mut a, _b) = fleet().await;
    let stranger = Host::authority("b").await;
    // The client side sees it.
    let served = echo(&mut a, &[PEER]);
    let error = connect(&stranger.identity(), "a", a.address, &[PEER], SHORT).await.unwrap_err();
    assert!(matches!(error, TrustError::Stranger(_)), "{error:?}");
    assert!(sentence(&error).contains("did not issue"));
    assert!(served.await.unwrap().is_err());
    // A client that looks away: the server refuses.
    a.listener = Some(TcpListener::bind(a.address).await.unwrap());
    let served = echo(&mut a, &[PEER]);
    let mut roots = RootCertStore::empty();
    roots.add(a.identity().ca.clone()).unwrap();
    let key = fs::read(stranger.pki().join("host.key")).unwrap();
    let chain = stranger.identity().key.cert.clone();
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key).unwrap());
    let mut config = config.unwrap();
    config.alpn_protocols = vec![PEER.into()];
    let tcp = TcpStream::connect(a.address).await.unwrap();
    let server = ServerName::try_from("a").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(server, tcp).await.unwrap();
    let failed = ping(&mut stream).await.unwrap_err();
    let error = TrustError::of_io("a", "asking", failed);
    assert!(matches!(error, TrustError::RefusedUs { .. }), "{error:?}");
    assert!(matches!(served.await.unwrap().unwrap_err(), TrustError::Stranger(_)));
}

#[tokio::test]
async fn without_a_certificate_there_is_no_peer_name() {
    let (mut a, _b) = fleet().await;
    let fingerprint = certificate::digest(&a.identity().ca);
    let served = echo(&mut a, &[PEER, JOIN]);
    let config = tls::pinned_config(fingerprint, PEER).unwrap();
    let mut stream = crate::trust::connect::dial(config, "a", a.address, &[PEER], SHORT).await.unwrap();
    ping(&mut stream).await.unwrap();
    assert_eq!(served.await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_member_under_another_name_is_refused() {
    let (mut a, b) = fleet().await;
    let served = echo(&mut a, &[PEER]);
    let error = connect(&b.identity(), "c", a.address, &[PEER], SHORT).await.unwrap_err();
    assert!(matches!(&error, TrustError::WrongHost { expected, .. } if expected == "c"), "{error:?}");
    assert!(sentence(&error).contains("proves to be"), "{error}");
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn protocols_must_agree() {
    let (mut a, b) = fleet().await;
    let served = echo(&mut a, &[API]);
    let error = connect(&b.identity(), "a", a.address, &[PEER], SHORT).await.unwrap_err();
    assert!(matches!(&error, TrustError::Protocol { alpn, .. } if alpn == PEER), "{error:?}");
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn a_silent_or_absent_host_is_noticed() {
    let (a, b) = fleet().await;
    let started = Instant::now();
    let quick = Duration::from_millis(200);
    // It accepts (the kernel does) and never says a word.
    let error = connect(&b.identity(), "a", a.address, &[PEER], quick).await.unwrap_err();
    assert!(matches!(error, TrustError::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < SHORT);
    let address = a.address;
    drop(a);
    let error = connect(&b.identity(), "a", address, &[PEER], SHORT).await.unwrap_err();
    assert_eq!(error.kind(), crate::api::ErrorKind::Unreachable, "{error:?}");
    assert_eq!(sentence(&error), format!("connecting to `a` ({address}) failed"));
    let api = crate::api::ApiError::from(error);
    assert!(api.message.contains("refused") && api.cure.is_some(), "{api}");
}
