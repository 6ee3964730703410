//! How a host becomes a member, and gets its next certificate later.
//!
//! ```text
//! host                                        authority
//!  key on disk
//!  ---- TLS, ALPN podd-join/1 ------------->
//!  chain ends in the token's CA?
//!  ---- secret, CSR, name, address -------->  invitation: known, not expired, unused or used by this very key
//!                                             invitation burnt (on disk), then signed
//!  <--- certificate, CA, hosts -------------
//!  CA as in the token? own key and name?
//!  host.pem on disk
//! ```
//!
//! If the answer is lost, the host asks again with the same key and gets the same certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::certificate::{self, Facts, digest};
use super::connect::{dial, within};
use super::identity::{adopt, check_dates, pending_key, refuse_second};
use super::invitation::{Application, admit};
use super::message::{Answer, MAX_HOSTS, Request, receive, send};
use super::token::Token;
use super::{
    Identity, JOIN, JoinedHost, KnownHost, Refusal, TrustError, check_address, check_name, files, peer_name, renew, tls,
};

/// Longest wait for the connection, for the request, for the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A new member, and whom it now knows.
#[derive(Debug)]
pub struct Joined {
    /// This host.
    pub identity: Identity,
    /// All others that the authority named, itself first.
    pub hosts: Vec<KnownHost>,
}

/// Makes this host the member `name` of the fleet whose authority gave out `token`.
///
/// May be repeated after any failure: the invitation is not lost with an answer.
pub async fn join(
    authority: SocketAddr,
    token: &str,
    name: &str,
    listen: SocketAddr,
    pki: &Path,
) -> Result<Joined, TrustError> {
    check_name(name)?;
    check_address(listen)?;
    let token = Token::parse(token)?;
    if token.name != name {
        return Err(TrustError::OtherName { invited: token.name, name: name.to_owned() });
    }
    let key = {
        let lock = files::lock(pki)?;
        refuse_second(pki)?;
        if files::exists(pki, files::CA_KEY) {
            return Err(TrustError::HoldsCa(pki.join(files::CA_KEY)));
        }
        pending_key(&lock, pki)?
    };
    let request = Request::Join {
        secret: token.secret(),
        csr: certificate::make_request(&key, name)?,
        name: name.to_owned(),
        listen,
    };
    let label = format!("the authority `{}` ({authority})", token.authority);
    let config = tls::pinned_config(token.fingerprint, JOIN)?;
    let mut stream = dial(config, &token.authority, authority, &[JOIN], PATIENCE).await?;
    let (signed, ca, asked, mut hosts) = ask(&mut stream, &label, &request).await?;

    let bad = |why: String| TrustError::BadAnswer { peer: label.clone(), why };
    if digest(&certificate::der_of(&ca).map_err(bad)?) != token.fingerprint {
        return Err(bad("its CA is not the one in the token".to_owned()));
    }
    if asked.name != token.authority {
        return Err(bad(format!("it calls itself `{}`", asked.name)));
    }
    verify(&label, &signed, &ca, name, &key.public_key_der(), Timestamp::now())?;
    let lock = files::lock(pki)?;
    refuse_second(pki)?;
    let own = KnownHost { name: name.to_owned(), address: listen };
    let identity = adopt(&lock, pki, &own, Some(asked.clone()), &ca, &signed)?;
    hosts.retain(|host| host.name != name && host.name != asked.name && check_name(&host.name).is_ok());
    hosts.insert(0, asked);
    Ok(Joined { identity, hosts })
}

/// Answers one request on a connection whose ALPN is [`JOIN`]: a host that joins, or a member that renews.
///
/// `hosts` are the members that the store knows: they are told to a new one, and only they can renew. The result is a
/// member (new, or known with maybe a new address) for the store to record, also if the answer could not be delivered:
/// it may have arrived.
pub async fn serve_join(
    stream: TlsStream<TcpStream>,
    pki: &Path,
    hosts: &[KnownHost],
) -> Result<JoinedHost, TrustError> {
    serve(stream, pki, hosts, PATIENCE).await
}

pub(super) async fn serve(
    mut stream: TlsStream<TcpStream>,
    pki: &Path,
    hosts: &[KnownHost],
    patience: Duration,
) -> Result<JoinedHost, TrustError> {
    let (tcp, session) = stream.get_ref();
    let label = tcp.peer_addr().map_or_else(|_| "a client".to_owned(), |address| address.to_string());
    let member = peer_name(session);
    let request: Request =
        within(patience, &label, "waiting for the request of", receive(&mut stream, &label)).await??;
    let decided = decide(pki, request, member, hosts).await;
    let (answer, result) = match decided {
        Ok(Ok((answer, host))) => (answer, Ok(host)),
        Ok(Err(why)) => {
            // Seen from here it is us who refuse; the sentence is the same.
            let refused = TrustError::Refused { peer: format!("this host, asked by {label},"), refusal: why.clone() };
            (Answer::Refused { why }, Err(refused))
        }
        Err(error) => (Answer::Refused { why: Refusal::Trouble }, Err(error)),
    };
    let delivery = async {
        send(&mut stream, &label, &answer).await?;
        stream.shutdown().await.map_err(|source| TrustError::of_io(&label, "closing the connection with", source))
    };
    let delivered = within(patience, &label, "sending the answer to", delivery).await;
    if let Err(error) = delivered.and_then(|sent| sent) {
        tracing::warn!(peer = %label, %error, "the answer to a joining host may be lost; it can ask again");
    }
    result
}

/// Sends a request and takes the answer apart: certificate, CA, authority, other hosts.
pub(super) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    label: &str,
    request: &Request,
) -> Result<(String, String, KnownHost, Vec<KnownHost>), TrustError> {
    within(PATIENCE, label, "sending the request to", send(stream, label, request)).await??;
    match within(PATIENCE, label, "waiting for the answer of", receive(stream, label)).await?? {
        Answer::Signed { certificate, ca, authority, hosts } => Ok((certificate, ca, authority, hosts)),
        Answer::Refused { why } => Err(TrustError::Refused { peer: label.to_owned(), refusal: why }),
    }
}

/// The certificate is ours, of our fleet, and good now.
pub(super) fn verify(
    label: &str,
    signed: &str,
    ca: &str,
    name: &str,
    key: &[u8],
    now: Timestamp,
) -> Result<(), TrustError> {
    let bad = |why: String| TrustError::BadAnswer { peer: label.to_owned(), why };
    let (signed, ca) = (certificate::der_of(signed).map_err(bad)?, certificate::der_of(ca).map_err(bad)?);
    let facts = Facts::of_der(&signed).map_err(bad)?;
    if facts.public_key != key {
        return Err(bad("the certificate is for another key".to_owned()));
    }
    if facts.host.as_deref() != Some(name) {
        return Err(bad("the certificate is for another name".to_owned()));
    }
    if !certificate::issued_by(&signed, &ca).map_err(bad)? {
        return Err(bad("the CA did not sign the certificate".to_owned()));
    }
    check_dates("this host, made just now,", facts.validity, now)
}

type Decision<T> = Result<Result<T, Refusal>, TrustError>;

async fn decide(
    pki: &Path,
    request: Request,
    member: Option<String>,
    hosts: &[KnownHost],
) -> Decision<(Answer, JoinedHost)> {
    let member = match member {
        None => Err(Refusal::NoCertificate),
        Some(name) if hosts.iter().any(|host| host.name == name) => Ok(name),
        Some(name) => Err(Refusal::NotAMember { name }),
    };
    let folder = pki.to_owned();
    // The lock and the disk can take their time: not on a thread that others wait for.
    let work = tokio::task::spawn_blocking(move || sign(&folder, request, member, Timestamp::now()));
    let signed = work
        .await
        .map_err(|error| TrustError::Message { peer: "the signing thread".to_owned(), why: error.to_string() })??;
    Ok(signed.map(|(certificate, identity, host)| {
        let own = KnownHost { name: identity.name, address: identity.address };
        let others = |known: &&KnownHost| known.name != own.name && known.name != host.name;
        let hosts = hosts.iter().filter(others).take(MAX_HOSTS).cloned().collect();
        (Answer::Signed { certificate, ca: identity.ca_pem, authority: own, hosts }, host)
    }))
}

fn sign(
    pki: &Path,
    request: Request,
    member: Result<String, Refusal>,
    now: Timestamp,
) -> Decision<(String, Identity, JoinedHost)> {
    let (name, address, signed) = match (request, member) {
        (Request::Join { secret, csr, name, listen }, _) => {
            let application = Application { secret, csr, name, listen };
            let signed = admit(pki, &application, now)?;
            (application.name, listen, signed)
        }
        (Request::Renew { csr, listen }, Ok(name)) => {
            let signed = renew::sign(pki, &name, &csr, listen, now)?;
            (name, listen, signed)
        }
        (Request::Renew { .. }, Err(refusal)) => return Ok(Err(refusal)),
    };
    let identity = Identity::load(pki)?.ok_or(TrustError::NoIdentity)?;
    Ok(signed.map(|signed| (signed, identity, JoinedHost { name, address })))
}
