//! What a host is, and how the first one of a fleet comes to be.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::certificate::{self, Authority, Facts};
use super::files::{self, Lock};
use super::{KnownHost, TrustError, Validity, check_address, check_name, tls};

/// 2020-01-01: a clock before that was never set.
const FIRST_CREDIBLE_SECOND: i64 = 1_577_836_800;

/// This host: name, address, certificate and key.
#[derive(Clone)]
pub struct Identity {
    /// Name, as in the certificate.
    pub name: String,
    /// Where this podd listens for peers.
    pub address: SocketAddr,
    /// The fleet's CA.
    pub ca_pem: String,
    /// Dates of this host's certificate.
    pub validity: Validity,
    /// The host that signs; none: this one.
    pub authority: Option<KnownHost>,
    pub(super) ca: CertificateDer<'static>,
    pub(super) key: Arc<CertifiedKey>,
}

/// `host.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    address: SocketAddr,
    authority: Option<KnownHost>,
}

/// Makes the fleet's CA and this host's own identity. Refused if there is one.
///
/// After a crash half-way it goes on with the CA that it had made.
pub fn init(pki: &Path, name: &str, listen: SocketAddr, now: Timestamp) -> Result<Identity, TrustError> {
    check_name(name)?;
    check_address(listen)?;
    check_clock(now)?;
    let lock = files::lock(pki)?;
    refuse_second(pki)?;
    if !(files::exists(pki, files::CA_KEY) && files::exists(pki, files::CA)) {
        let (ca, key) = certificate::make_ca(now)?;
        files::write(&lock, pki, files::CA_KEY, key.as_bytes())?;
        files::write(&lock, pki, files::CA, ca.as_bytes())?;
    }
    let key = pending_key(&lock, pki)?;
    let signed = Authority::load(pki)?.sign(&key, name, listen.ip(), now)?;
    let ca = files::need(pki, files::CA)?;
    adopt(&lock, pki, &KnownHost { name: name.to_owned(), address: listen }, None, &ca, &signed)
}

impl Identity {
    /// This host's identity, none if it has never been given one.
    ///
    /// Says nothing about dates: see [`Identity::check`].
    pub fn load(pki: &Path) -> Result<Option<Self>, TrustError> {
        let Some(pem) = files::read(pki, files::HOST)? else {
            return Ok(None);
        };
        let path = pki.join(files::HOST);
        let record: Record = serde_json::from_str(&files::need(pki, files::RECORD)?)
            .map_err(|error| TrustError::damaged(&pki.join(files::RECORD), error.to_string()))?;
        let ca_pem = files::need(pki, files::CA)?;
        let ca = certificate::der_of(&ca_pem).map_err(|why| TrustError::damaged(&pki.join(files::CA), why))?;
        let der = certificate::der_of(&pem).map_err(|why| TrustError::damaged(&path, why))?;
        let facts = Facts::of_der(&der).map_err(|why| TrustError::damaged(&path, why))?;
        if facts.host.as_deref() != Some(&record.name) {
            return Err(TrustError::damaged(&path, format!("it is not the certificate of `{}`", record.name)));
        }
        if !certificate::issued_by(&der, &ca).map_err(|why| TrustError::damaged(&path, why))? {
            return Err(TrustError::damaged(&path, "the CA in ca.pem did not issue it"));
        }
        let key = load_key(pki, vec![der, ca.clone()])?;
        Ok(Some(Self {
            name: record.name,
            address: record.address,
            ca_pem,
            validity: facts.validity,
            authority: record.authority,
            ca,
            key: Arc::new(key),
        }))
    }

    /// This host signs for the fleet.
    pub fn is_authority(&self) -> bool {
        self.authority.is_none()
    }

    /// The certificate is good now; if not, says which date and which clock disagree.
    pub fn check(&self, now: Timestamp) -> Result<(), TrustError> {
        check_dates(&format!("this host, `{}`,", self.name), self.validity, now)
    }
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Identity")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("validity", &self.validity)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// A host has one identity.
pub(super) fn refuse_second(pki: &Path) -> Result<(), TrustError> {
    match Identity::load(pki)? {
        Some(present) => Err(TrustError::HasIdentity { name: present.name, address: present.address }),
        None => Ok(()),
    }
}

pub(super) fn check_clock(now: Timestamp) -> Result<(), TrustError> {
    if now.as_second() < FIRST_CREDIBLE_SECOND { Err(TrustError::Clock { now }) } else { Ok(()) }
}

pub(super) fn check_dates(whose: &str, dates: Validity, now: Timestamp) -> Result<(), TrustError> {
    let whose = whose.to_owned();
    if now > dates.not_after {
        return Err(TrustError::Expired { whose, date: dates.not_after, now });
    }
    if now < dates.not_before {
        return Err(TrustError::NotYetValid { whose, date: dates.not_before, now });
    }
    Ok(())
}

/// The key of a host without certificate: it is on disk before anybody is asked to sign it, and stays the same when the
/// question has to be repeated.
pub(super) fn pending_key(lock: &Lock, pki: &Path) -> Result<KeyPair, TrustError> {
    if let Some(pem) = files::read_key(pki, files::HOST_KEY)?
        && let Ok(key) = KeyPair::from_pem(&pem)
    {
        return Ok(key);
    }
    let key = certificate::make_key()?;
    files::write(lock, pki, files::HOST_KEY, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// Takes on a new identity; the certificate comes last, because without it there is none.
pub(super) fn adopt(
    lock: &Lock,
    pki: &Path,
    host: &KnownHost,
    authority: Option<KnownHost>,
    ca: &str,
    signed: &str,
) -> Result<Identity, TrustError> {
    let record = Record { name: host.name.clone(), address: host.address, authority };
    let record = serde_json::to_vec_pretty(&record)
        .map_err(|error| TrustError::damaged(&pki.join(files::RECORD), error.to_string()))?;
    files::write(lock, pki, files::CA, ca.as_bytes())?;
    files::write(lock, pki, files::RECORD, &record)?;
    files::write(lock, pki, files::HOST, signed.as_bytes())?;
    Identity::load(pki)?.ok_or(TrustError::NoIdentity)
}

fn load_key(pki: &Path, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, TrustError> {
    let path = pki.join(files::HOST_KEY);
    let pem = files::read_key(pki, files::HOST_KEY)?.ok_or_else(|| TrustError::damaged(&path, "it is missing"))?;
    let key =
        PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| TrustError::damaged(&path, error.to_string()))?;
    let key = tls::provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| TrustError::damaged(&path, error.to_string()))?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|_| TrustError::damaged(&path, "it does not belong to host.pem"))?;
    Ok(key)
}
