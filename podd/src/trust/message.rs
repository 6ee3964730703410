//! What is said under [`super::JOIN`]: one request, one answer, each a 32-bit big endian length and JSON.

use std::io;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{KnownHost, Refusal, TrustError};

/// Largest message in bytes.
pub(super) const MAX: u32 = 64 * 1024;
/// Hosts named in an answer at most, so that it stays below [`MAX`]; the others are learnt from these.
pub(super) const MAX_HOSTS: usize = 400;

/// From the host that wants a certificate. No `Debug`: there is a secret in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub(super) enum Request {
    /// The first one, for a secret.
    Join { secret: String, csr: String, name: String, listen: SocketAddr },
    /// The next one, for the present one.
    Renew { csr: String, listen: SocketAddr },
}

/// From the authority.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub(super) enum Answer {
    /// Certificate and CA as PEM; the authority itself is not among `hosts`.
    Signed { certificate: String, ca: String, authority: KnownHost, hosts: Vec<KnownHost> },
    /// Why not.
    Refused { why: Refusal },
}

pub(super) async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    peer: &str,
    message: &T,
) -> Result<(), TrustError> {
    let unfit = |why: String| TrustError::Message { peer: peer.to_owned(), why };
    let body = serde_json::to_vec(message).map_err(|error| unfit(error.to_string()))?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX);
    let length = length.ok_or_else(|| unfit(format!("its {} bytes are too many", body.len())))?;
    let frame = [&length.to_be_bytes()[..], &body].concat();
    let work = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    work.await.map_err(|source| TrustError::of_io(peer, "sending to", source))
}

pub(super) async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    peer: &str,
) -> Result<T, TrustError> {
    let broken = |source: io::Error| TrustError::of_io(peer, "receiving from", source);
    let unfit = |why: String| TrustError::Message { peer: peer.to_owned(), why };
    let length = stream.read_u32().await.map_err(broken)?;
    if length > MAX {
        return Err(unfit(format!("it claims {length} bytes, the most is {MAX}")));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.map_err(broken)?;
    serde_json::from_slice(&body).map_err(|error| unfit(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn a_full_answer_fits() {
        let host = |index: usize| KnownHost {
            name: format!("{index:x>63}"),
            address: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap(),
        };
        let pem = "x".repeat(1500);
        let answer = Answer::Signed {
            certificate: pem.clone(),
            ca: pem,
            authority: host(0),
            hosts: (0..MAX_HOSTS).map(host).collect(),
        };
        let mut wire = Vec::new();
        run(send(&mut wire, "b", &answer)).unwrap();
        let back: Answer = run(receive(&mut &wire[..], "b")).unwrap();
        assert!(matches!(back, Answer::Signed { hosts, .. } if hosts.len() == MAX_HOSTS));
    }

    #[test]
    fn long_and_cut_messages_are_refused() {
        let mut wire = Vec::new();
        assert!(run(send(&mut wire, "b", &"x".repeat(70_000))).is_err() && wire.is_empty());
        let long = [0, 1, 0, 1];
        assert!(run(receive::<Answer>(&mut &long[..], "b")).unwrap_err().to_string().contains("65537"));
        run(send(&mut wire, "b", &Answer::Refused { why: Refusal::Unknown })).unwrap();
        for at in 0..wire.len() {
            assert!(run(receive::<Answer>(&mut &wire[..at], "b")).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_refusal_of_a_later_version_is_still_a_refusal() {
        let later = br#"{"answer":"refused","why":{"refusal":"full-moon","phase":1}}"#;
        let back: Answer = serde_json::from_slice(later).unwrap();
        assert!(matches!(back, Answer::Refused { why: Refusal::Other }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_message(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let wire = [&(body.len() as u32).to_be_bytes()[..], &body].concat();
            let _ = run(receive::<Request>(&mut &wire[..], "b"));
            let _ = run(receive::<Request>(&mut &body[..], "b"));
        }
    }
}
