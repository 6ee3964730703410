//! What can go wrong with trust, in sentences, each with its cure.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, ErrorKind};

/// Why a host could not be identified, or a connection not be trusted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the sentences say what the fields are
pub enum TrustError {
    #[error("`{0}` cannot be a host's name")]
    BadName(String),
    #[error("{0} cannot be a host's peer address: other hosts must be able to dial it")]
    BadAddress(SocketAddr),
    #[error("an invitation cannot be valid for {0} s")]
    BadLifetime(u64),
    #[error("this host already has an identity: it is `{name}` at {address}")]
    HasIdentity { name: String, address: SocketAddr },
    #[error("this host holds the key of a fleet's CA ({0}): it cannot join another fleet")]
    HoldsCa(PathBuf),
    #[error("this host has no identity yet")]
    NoIdentity,
    #[error("this host is not the authority of its fleet")]
    NotAuthority,
    #[error("`{0}` is the authority itself")]
    IsAuthority(String),
    #[error("the clock of this host says {now}, which cannot be: certificates made now would be useless")]
    Clock { now: Timestamp },
    #[error("the certificate of {whose} expired on {date}; the clock of this host says {now}")]
    Expired { whose: String, date: Timestamp, now: Timestamp },
    #[error("the certificate of {whose} is valid only from {date}; the clock of this host says {now}")]
    NotYetValid { whose: String, date: Timestamp, now: Timestamp },
    #[error("{0} has a certificate that this fleet's CA did not issue")]
    Stranger(String),
    #[error("the host at {peer} proves to be {presented}, not `{expected}`")]
    WrongHost { peer: String, expected: String, presented: String },
    #[error("{peer} does not accept this host's certificate: {why}")]
    RefusedUs { peer: String, why: String },
    #[error("{peer} does not speak {alpn}")]
    Protocol { peer: String, alpn: String },
    #[error("TLS with {peer} failed")]
    Tls { peer: String, source: rustls::Error },
    #[error("{doing} {peer} took longer than {limit:?}")]
    Timeout { doing: &'static str, peer: String, limit: Duration },
    #[error("{doing} {peer} failed")]
    Network { doing: &'static str, peer: String, source: io::Error },
    #[error("the message from {peer} cannot be understood: {why}")]
    Message { peer: String, why: String },
    #[error("this is not a whole invitation token: {0}")]
    Token(&'static str),
    #[error("the invitation is for `{invited}`, but this host shall be `{name}`")]
    OtherName { invited: String, name: String },
    #[error("{peer} refused: {refusal}")]
    Refused { peer: String, refusal: Refusal },
    #[error("{doing} {path} failed", path = path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{path} can be read by others (mode {mode:03o})", path = path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    #[error("the answer from {peer} is not acceptable: {why}")]
    BadAnswer { peer: String, why: String },
}

/// Why the authority did not sign. It travels to the host that asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "refusal")]
#[allow(missing_docs)] // the sentences say what the fields are
pub enum Refusal {
    #[error("it never gave out this invitation, or has replaced it by a newer one")]
    Unknown,
    #[error("the invitation expired on {at}; its clock says {now}")]
    Expired { at: Timestamp, now: Timestamp },
    #[error("the invitation was used on {at} by another host")]
    Used { at: Timestamp },
    #[error("the invitation is for `{invited}`, not for `{name}`")]
    OtherName { invited: String, name: String },
    #[error("the address {0} is its own", address)]
    AddressTaken { address: SocketAddr },
    #[error("`{name}` is not a host of this fleet any more")]
    NotAMember { name: String },
    #[error("only a host with a valid certificate can renew it")]
    NoCertificate,
    #[error("the request makes no sense: {why}")]
    BadRequest { why: String },
    #[error("it is not the authority of its fleet")]
    NotAuthority,
    #[error("it could not sign; its log says why")]
    Trouble,
    #[serde(other)]
    #[error("for a reason that this version does not know")]
    Other,
}

impl TrustError {
    /// What an operator can do about it.
    pub fn cure(&self) -> Option<String> {
        let text = match self {
            Self::BadName(_) => {
                "use 1 to 63 of a-z, 0-9 and `-`, with at least one letter or inner `-`, not starting or ending with `-`".into()
            }
            Self::BadAddress(_) => "give the IP address and port at which the other hosts reach this one".into(),
            Self::BadLifetime(_) => "choose between 1 s and 30 days".into(),
            Self::HasIdentity { .. } => "to start anew, stop podd and remove the folder `pki` in its state folder".into(),
            Self::HoldsCa(_) => "if that fleet is gone for good, remove the folder `pki` in podd's state folder".into(),
            Self::NoIdentity => "run `podctl host init` (first host) or `podctl host join` (all others)".into(),
            Self::NotAuthority => "run this on the host where `podctl host init` was run".into(),
            Self::IsAuthority(_) => "choose another name for the new host".into(),
            Self::Clock { .. } => "set the clock (see `timedatectl`) and try again".into(),
            Self::Expired { .. } => {
                "if the clock is right: stop podd on the host whose certificate it is, remove its folder `pki` and join with a \
                 new invitation (on the authority: restart podd, which renews its own)"
                    .into()
            }
            Self::NotYetValid { .. } => "set the clocks of both hosts (see `timedatectl`)".into(),
            Self::Stranger(_) => "check the address; both hosts must have joined the same fleet".into(),
            Self::WrongHost { .. } => "check the host's address in `podctl host ls`".into(),
            Self::RefusedUs { .. } => "compare the clocks; both hosts must have joined the same fleet".into(),
            Self::Protocol { .. } => "check the port, and compare `podctl version` on both hosts: one is upgraded after the other, by one version at a time"
                    .into(),
            Self::Timeout { .. } | Self::Network { .. } => {
                "check that podd runs there, the address, and the firewall in between".into()
            }
            Self::Token(_) => "copy the whole line that `podctl host invite` printed".into(),
            Self::OtherName { invited, .. } => format!("join as `{invited}`, or ask for an invitation for the other name"),
            Self::Refused { refusal, .. } => return refusal.cure(),
            Self::Damaged { path, .. } if path.ends_with("invitations.json") => "remove the file and invite again".into(),
            Self::Damaged { .. } => "restore the folder from a backup, or remove it and join again".into(),
            Self::Exposed { path, .. } => format!("chmod 600 {}", path.display()),
            Self::BadAnswer { .. } => "invite again; if it repeats, do not trust the host at that address".into(),
            Self::File { .. } => "check free space and permissions there".into(),
            Self::Tls { .. } | Self::Message { .. } => "check that both hosts run the same version of podd".into(),
            Self::Certificate(_) | Self::Setup(_) | Self::Random(_) => return None,
        };
        Some(text)
    }

    /// Class for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadName(_) | Self::BadAddress(_) | Self::BadLifetime(_) | Self::Token(_) | Self::OtherName { .. } => {
                ErrorKind::Usage
            }
            Self::HasIdentity { .. }
            | Self::HoldsCa(_)
            | Self::NoIdentity
            | Self::NotAuthority
            | Self::IsAuthority(_) => ErrorKind::Conflict,
            Self::Timeout { .. } | Self::Network { .. } => ErrorKind::Unreachable,
            _ => ErrorKind::Failed,
        }
    }

    /// What a failed read or write on a TLS connection means. `doing` reads on to the peer: `receiving from`.
    ///
    /// In TLS 1.3 a server looks at the client's certificate after the client's handshake is done: a refusal arrives
    /// with the first read.
    pub fn of_io(peer: &str, doing: &'static str, source: io::Error) -> Self {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::of_tls(peer, inner.clone()),
            None => Self::Network { peer: peer.to_owned(), doing, source },
        }
    }

    fn of_tls(peer: &str, source: rustls::Error) -> Self {
        use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
        let whose = peer.to_owned();
        let at = |time: rustls::pki_types::UnixTime| {
            i64::try_from(time.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX)
        };
        let refused = |why: &str| Self::RefusedUs { peer: peer.to_owned(), why: why.to_owned() };
        match &source {
            Error::InvalidCertificate(bad) => match bad {
                Bad::ExpiredContext { time, not_after } => {
                    Self::Expired { whose, date: at(*not_after), now: at(*time) }
                }
                Bad::NotValidYetContext { time, not_before } => {
                    Self::NotYetValid { whose, date: at(*not_before), now: at(*time) }
                }
                Bad::UnknownIssuer | Bad::BadSignature => Self::Stranger(whose),
                Bad::NotValidForNameContext { expected, presented } => Self::WrongHost {
                    peer: whose,
                    expected: expected.to_str().into_owned(),
                    presented: presented.join(", "),
                },
                _ => Self::Tls { peer: whose, source },
            },
            Error::AlertReceived(Alert::CertificateExpired) => {
                refused("it says that the certificate is not valid at its time")
            }
            Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => refused("it belongs to another fleet"),
            Error::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate | Alert::AccessDenied) => {
                refused("it cannot verify it")
            }
            _ => Self::Tls { peer: whose, source },
        }
    }

    /// A failed TLS handshake.
    pub(super) fn of_handshake(peer: &str, alpn: &[&str], source: io::Error) -> Self {
        use rustls::{AlertDescription, Error};
        match source.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol) => {
                Self::Protocol { peer: peer.to_owned(), alpn: alpn.join(" or ") }
            }
            _ => Self::of_io(peer, "the TLS handshake with", source),
        }
    }

    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    pub(super) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }
}

impl Refusal {
    fn cure(&self) -> Option<String> {
        let text = match self {
            Self::Unknown | Self::Used { .. } => "run `podctl host invite` again on the authority",
            Self::Expired { .. } => {
                "run `podctl host invite` again on the authority; compare the clocks if this comes as a surprise"
            }
            Self::OtherName { .. } => "join under the name in the invitation",
            Self::AddressTaken { .. } => "give the address of the host that joins",
            Self::NotAMember { .. } | Self::NoCertificate => "join again with a new invitation",
            Self::NotAuthority => "join at the host where `podctl host init` was run",
            Self::BadRequest { .. } | Self::Other => "check that both hosts run the same version of podd",
            Self::Trouble => "read the authority's log (`journalctl -u podd`)",
        };
        Some(text.to_owned())
    }
}

impl From<TrustError> for ApiError {
    fn from(error: TrustError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self { kind: error.kind(), message, cure: error.cure() }
    }
}
