//! Invitations: given out once, used once, remembered for a while so that a refusal can say why.

use std::net::SocketAddr;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rcgen::PublicKeyData;
use serde::{Deserialize, Serialize};

use super::certificate::{self, Authority, digest, hex, random};
use super::files::{self, Lock};
use super::token::Token;
use super::{Identity, JoinedHost, Refusal, TrustError, check_address, check_name};
use crate::api::Invitation;

const LONGEST_S: u64 = 30 * 24 * 3600;
/// How long an invitation is remembered after it expired.
const MEMORY: SignedDuration = SignedDuration::from_hours(30 * 24);

/// One invitation, in `invitations.json`.
#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    /// SHA-256 of the secret; the secret itself is not kept.
    secret_sha256: String,
    name: String,
    expires: Timestamp,
    used: Option<Use>,
}

/// Who used it: written before anything is signed.
#[derive(Clone, Serialize, Deserialize)]
struct Use {
    at: Timestamp,
    /// SHA-256 of the public key: the same host may ask again, if it lost the answer.
    key_sha256: String,
    address: SocketAddr,
    certificate: Option<String>,
}

/// What a host that joins sends.
pub(super) struct Application {
    pub(super) secret: String,
    pub(super) csr: String,
    pub(super) name: String,
    pub(super) listen: SocketAddr,
}

/// Invites the host `name` for `valid_s` seconds (1 s to 30 days). Replaces an unused invitation for the same name.
///
/// Whether there is such a host already is for the caller to know.
pub fn invite(pki: &Path, name: &str, valid_s: u64, now: Timestamp) -> Result<Invitation, TrustError> {
    check_name(name)?;
    if !(1..=LONGEST_S).contains(&valid_s) {
        return Err(TrustError::BadLifetime(valid_s));
    }
    let lock = files::lock(pki)?;
    let identity = Identity::load(pki)?.ok_or(TrustError::NoIdentity)?;
    if !identity.is_authority() {
        return Err(TrustError::NotAuthority);
    }
    if identity.name == name {
        return Err(TrustError::IsAuthority(name.to_owned()));
    }
    let token =
        Token { fingerprint: digest(&identity.ca), secret: random()?, name: name.to_owned(), authority: identity.name };
    let lifetime = SignedDuration::from_secs(i64::try_from(valid_s).unwrap_or(i64::MAX));
    let expires = now.saturating_add(lifetime).map_err(|_| TrustError::BadLifetime(valid_s))?;
    let mut entries = read(pki)?;
    entries.retain(|entry| {
        let forgotten = entry.expires.checked_add(MEMORY).is_ok_and(|end| end < now);
        let replaced = entry.name == name && entry.used.is_none();
        !forgotten && !replaced
    });
    entries.push(Entry {
        secret_sha256: hex(&digest(token.secret().as_bytes())),
        name: name.to_owned(),
        expires,
        used: None,
    });
    write(&lock, pki, &entries)?;
    Ok(Invitation { token: token.to_string(), expires })
}

/// Hosts that invitations of the last weeks were used by: to be held against the store after a crash, which can come
/// between the certificate and the store's record of it.
pub fn joined(pki: &Path) -> Result<Vec<JoinedHost>, TrustError> {
    let used = |entry: Entry| Some(JoinedHost { name: entry.name, address: entry.used?.address });
    Ok(read(pki)?.into_iter().filter_map(used).collect())
}

/// Forgets that this host has joined: it must be invited anew.
pub fn forget(pki: &Path, name: &str) -> Result<(), TrustError> {
    let lock = files::lock(pki)?;
    let mut entries = read(pki)?;
    entries.retain(|entry| entry.name != name);
    write(&lock, pki, &entries)
}

/// Signs for an invited host: certificate as PEM, or why not. Blocks.
pub(super) fn admit(
    pki: &Path,
    application: &Application,
    now: Timestamp,
) -> Result<Result<String, Refusal>, TrustError> {
    let lock = files::lock(pki)?;
    let Some(identity) = Identity::load(pki)?.filter(Identity::is_authority) else {
        return Ok(Err(Refusal::NotAuthority));
    };
    let mut entries = read(pki)?;
    let secret = hex(&digest(application.secret.as_bytes()));
    let Some(index) = entries.iter().position(|entry| entry.secret_sha256 == secret) else {
        return Ok(Err(Refusal::Unknown));
    };
    let key = match judge(&entries[index], application, &identity, now) {
        Ok(key) => key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let authority = Authority::load(pki)?;
    if let Some(Use { certificate: Some(same), address, .. }) = &entries[index].used
        && *address == application.listen
    {
        return Ok(Ok(same.clone()));
    }
    // Burnt first: whatever fails from here on, no second key gets a certificate for this secret.
    let at = entries[index].used.as_ref().map_or(now, |used| used.at);
    let burnt = Use { at, key_sha256: hex(&digest(key.der_bytes())), address: application.listen, certificate: None };
    entries[index].used = Some(burnt.clone());
    write(&lock, pki, &entries)?;
    let signed = authority.sign(&key, &application.name, application.listen.ip(), now)?;
    entries[index].used = Some(Use { certificate: Some(signed.clone()), ..burnt });
    write(&lock, pki, &entries)?;
    Ok(Ok(signed))
}

/// Pure: may this application be signed, and with which key?
fn judge(
    entry: &Entry,
    application: &Application,
    identity: &Identity,
    now: Timestamp,
) -> Result<rcgen::PublicKey, Refusal> {
    if entry.name != application.name {
        return Err(Refusal::OtherName { invited: entry.name.clone(), name: application.name.clone() });
    }
    if now >= entry.expires {
        return Err(Refusal::Expired { at: entry.expires, now });
    }
    let bad = |why: String| Refusal::BadRequest { why };
    let key = certificate::requested_key(&application.csr).map_err(bad)?;
    if let Some(used) = &entry.used
        && used.key_sha256 != hex(&digest(key.der_bytes()))
    {
        return Err(Refusal::Used { at: used.at });
    }
    check_address(application.listen).map_err(|error| bad(error.to_string()))?;
    if application.listen == identity.address {
        return Err(Refusal::AddressTaken { address: application.listen });
    }
    Ok(key)
}

fn read(pki: &Path) -> Result<Vec<Entry>, TrustError> {
    let Some(text) = files::read(pki, files::INVITATIONS)? else {
        return Ok(Vec::new());
    };
    serde_json::from_str(&text).map_err(|error| TrustError::damaged(&pki.join(files::INVITATIONS), error.to_string()))
}

fn write(lock: &Lock, pki: &Path, entries: &[Entry]) -> Result<(), TrustError> {
    let text = serde_json::to_vec_pretty(entries)
        .map_err(|error| TrustError::damaged(&pki.join(files::INVITATIONS), error.to_string()))?;
    files::write(lock, pki, files::INVITATIONS, &text)
}
