//! The next certificate, with the same key, when less than a third of the present one's life is left.

use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;
use rcgen::KeyPair;

use super::certificate::{self, Authority};
use super::connect::connect;
use super::identity::check_clock;
use super::join::{PATIENCE, ask, verify};
use super::message::Request;
use super::{Identity, JOIN, KnownHost, Refusal, TrustError, check_address, files};

/// Renews this host's certificate if it is time: the authority signs its own, any other host asks the authority. The
/// new identity, if there is one: TLS configurations must be made again from it.
///
/// To be called at start and once a day: there are four months of days on which the authority may be away.
pub async fn renew_if_due(pki: &Path, now: Timestamp) -> Result<Option<Identity>, TrustError> {
    let identity = Identity::load(pki)?.ok_or(TrustError::NoIdentity)?;
    if !identity.validity.due(now) {
        return Ok(None);
    }
    check_clock(now)?;
    let key = files::read_key(pki, files::HOST_KEY)?.ok_or(TrustError::NoIdentity)?;
    let key = KeyPair::from_pem(&key)?;
    let (signed, label) = match &identity.authority {
        None => {
            let signed = Authority::load(pki)?.sign(&key, &identity.name, identity.address.ip(), now)?;
            (signed, "this host".to_owned())
        }
        Some(authority) => {
            let label = format!("the authority `{}` ({})", authority.name, authority.address);
            (request(&identity, authority, &key, &label).await?, label)
        }
    };
    verify(&label, &signed, &identity.ca_pem, &identity.name, &key.public_key_der(), now)?;
    let lock = files::lock(pki)?;
    files::write(&lock, pki, files::HOST, signed.as_bytes())?;
    Identity::load(pki)
}

async fn request(identity: &Identity, authority: &KnownHost, key: &KeyPair, label: &str) -> Result<String, TrustError> {
    let csr = certificate::make_request(key, &identity.name)?;
    let mut stream = connect(identity, &authority.name, authority.address, &[JOIN], PATIENCE).await?;
    let request = Request::Renew { csr, listen: identity.address };
    let (signed, ..) = ask(&mut stream, label, &request).await?;
    Ok(signed)
}

/// The authority's side: `name` is the name in the caller's verified certificate. Blocks.
pub(super) fn sign(
    pki: &Path,
    name: &str,
    csr: &str,
    listen: SocketAddr,
    now: Timestamp,
) -> Result<Result<String, Refusal>, TrustError> {
    let bad = |why: String| Ok(Err(Refusal::BadRequest { why }));
    if !Identity::load(pki)?.is_some_and(|identity| identity.is_authority()) {
        return Ok(Err(Refusal::NotAuthority));
    }
    if let Err(error) = check_address(listen) {
        return bad(error.to_string());
    }
    match certificate::requested_key(csr) {
        Ok(key) => Authority::load(pki)?.sign(&key, name, listen.ip(), now).map(Ok),
        Err(why) => bad(why),
    }
}
