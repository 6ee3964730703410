//! rustls configurations: TLS 1.3 only, the ring provider, the fleet's CA and nothing else.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::certificate::{Facts, digest};
use super::{Identity, TrustError};

/// For the port on which peers call. A client certificate is verified if it comes, and may be absent, since a host that
/// joins has none: whoever serves another protocol than [`super::JOIN`] must refuse a connection without [`peer_name`].
///
/// Made from one certificate: make it again after a renewal.
pub fn server_config(identity: &Identity, alpn: &[&str]) -> Result<Arc<ServerConfig>, TrustError> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TrustError::Setup(Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TrustError::Setup)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())));
    config.alpn_protocols = wire(alpn);
    // No resumption: every connection looks at certificates and dates again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For calling a peer. The server name to ask for is the host's name.
pub fn client_config(identity: &Identity, alpn: &[&str]) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TrustError::Setup)?
        .with_root_certificates(roots(identity)?)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())));
    config.alpn_protocols = wire(alpn);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a host that has no certificate and knows its fleet's CA by fingerprint only.
pub(super) fn pinned_config(fingerprint: [u8; 32], alpn: &str) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TrustError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { fingerprint, provider: provider() }))
        .with_no_client_auth();
    config.alpn_protocols = wire(&[alpn]);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name in the other side's verified certificate; none: it showed no certificate, or one that names no host.
pub fn peer_name(connection: &CommonState) -> Option<String> {
    Facts::of_der(connection.peer_certificates()?.first()?).ok()?.host
}

/// The fastest first, as a migration's blackout is made of it: AES-128 where there are instructions for it, ChaCha20 elsewhere.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let [aes, chacha] = [TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    let [first, second] = if has_aes() { [aes, chacha] } else { [chacha, aes] };
    let cipher_suites = vec![first, second, TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

fn roots(identity: &Identity) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone()).map_err(TrustError::Setup)?;
    Ok(roots)
}

fn wire(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// Accepts a chain that ends in the CA with this SHA-256 fingerprint; all the rest is webpki's usual verification.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = chain.iter().find(|ca| digest(ca) == self.fingerprint).ok_or(CertificateError::UnknownIssuer)?;
        // webpki does not look at the dates of a trust anchor.
        let dates = Facts::of_der(ca).map_err(|_| CertificateError::BadEncoding)?.validity;
        let second = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if second > dates.not_after.as_second() {
            return Err(CertificateError::Expired.into());
        }
        if second < dates.not_before.as_second() {
            return Err(CertificateError::NotValidYet.into());
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(certificate, &[], server, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
