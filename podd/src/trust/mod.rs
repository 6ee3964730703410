//! Who may talk to whom: the fleet's own small certificate authority, host identities, TLS between hosts.
//!
//! One host, the *authority*, makes the CA (`init`). It invites the others by name (`invite`: a secret that works once);
//! an invited host makes its own key, proves the secret over TLS and gets a certificate (`join`, `serve_join`). From then
//! on hosts talk by mutual TLS 1.3, and a certificate's name is the host's name: nothing else identifies a peer. Keys
//! never leave the host that made them.
//!
//! Below `<state>/pki/` (0700; files 0600, each replaced by rename):
//!
//! | file | what |
//! |---|---|
//! | `ca.pem` | the fleet's CA |
//! | `ca.key` | its key; only on the authority |
//! | `host.key` | this host's key; on disk before anything is asked with it |
//! | `host.json` | name, peer address, who the authority is |
//! | `host.pem` | this host's certificate; written last, so a host without it has no identity |
//! | `invitations.json` | hashes of the secrets given out; only on the authority |
//!
//! This module decides who a peer *is*. What a peer may do is for its callers, which must refuse whatever has no
//! [`peer_name`] on every protocol but [`JOIN`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

mod certificate;
mod connect;
mod dates;
mod error;
mod files;
mod identity;
mod invitation;
mod join;
mod message;
mod protocol;
mod renew;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use connect::{accept, connect, set_stall_limit};
pub use dates::{Validity, validity};
pub use error::{Refusal, TrustError};
pub use identity::{Identity, init};
pub use invitation::{forget, invite, joined};
pub use join::{Joined, join, serve_join};
pub use protocol::Protocol;
pub use renew::renew_if_due;
pub use tls::{client_config, peer_name, server_config};

/// ALPN of the API: HTTP/1.1.
pub const API: &str = "http/1.1";
/// ALPN of hosts that join or renew: the only one that is served to a peer without a certificate.
pub const JOIN: &str = "podd-join/1";

/// A host of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHost {
    /// Name, as in its certificate.
    pub name: String,
    /// Where its podd listens for peers.
    pub address: SocketAddr,
}

/// A host that has been given a certificate: [`KnownHost`], from the authority's side.
pub type JoinedHost = KnownHost;

/// A host name is also the DNS name in its certificate, hence the rules about hyphens and digits.
fn check_name(name: &str) -> Result<(), TrustError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.bytes().all(|byte| byte.is_ascii_digit());
    if good { Ok(()) } else { Err(TrustError::BadName(name.to_owned())) }
}

/// The address goes into the certificate and to all other hosts: it must be one that they can dial.
fn check_address(address: SocketAddr) -> Result<(), TrustError> {
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
        return Err(TrustError::BadAddress(address));
    }
    Ok(())
}
