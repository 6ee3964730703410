//! Tokens and certificates: who gets one.

use std::fs;
use std::sync::Arc;

use super::super::certificate::Facts;
use super::super::connect::dial;
use super::super::invitation::{Application, admit};
use super::super::message::{Answer, Request, receive, send};
use super::super::token::Token;
use super::super::{certificate, files, identity, tls};
use super::*;

#[tokio::test]
async fn a_host_joins_and_learns_of_the_others() {
    let mut a = Host::authority("a").await;
    let b = Host::new().await;
    let c = KnownHost { name: "c".into(), address: local(7) };
    let token = a.invite("b");
    assert!(!token.contains(char::is_whitespace));
    let served = a.serve(1, vec![a.known(), c.clone()]);
    let joined = b.join(&a, &token, "b").await.unwrap();
    let recorded = served.await.unwrap().remove(0).unwrap();
    assert_eq!(recorded, KnownHost { name: "b".into(), address: b.address });
    assert_eq!(joined.hosts, [a.known(), c]);
    assert_eq!(joined.identity.name, "b");
    assert_eq!(joined.identity.authority, Some(a.known()));
    assert!(a.identity().is_authority() && !joined.identity.is_authority());
    assert_eq!(crate::trust::joined(&a.pki()).unwrap(), [recorded]);
    joined.identity.check(now()).unwrap();
    let life = joined.identity.validity.not_after.duration_since(now()).as_hours() / 24;
    assert!((364..=366).contains(&life), "{life} days");
    // The secret is nowhere on the authority's disk.
    let secret = Token::parse(&token).unwrap().secret();
    for file in fs::read_dir(a.pki()).unwrap() {
        let content = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!content.contains(&secret));
    }
    // Nobody signs for others without the CA's key.
    assert!(matches!(invite(&b.pki(), "c", 60, now()), Err(TrustError::NotAuthority)));
    // One identity a host.
    let again = b.join(&a, &token, "b").await.unwrap_err();
    assert!(matches!(again, TrustError::HasIdentity { .. }));
    assert!(matches!(a.join(&b, &token, "b").await, Err(TrustError::HasIdentity { .. })));
}

#[tokio::test]
async fn a_used_token_is_of_no_use_to_another_host() {
    let mut a = Host::authority("a").await;
    let (b, thief) = (Host::new().await, Host::new().await);
    let token = a.invite("b");
    let served = a.serve(2, vec![]);
    b.join(&a, &token, "b").await.unwrap();
    let error = thief.join(&a, &token, "b").await.unwrap_err();
    assert!(matches!(&error, TrustError::Refused { refusal: Refusal::Used { .. }, .. }), "{error:?}");
    assert!(sentence(&error).contains("was used on"), "{error}");
    assert!(Identity::load(&thief.pki()).unwrap().is_none());
    let served = served.await.unwrap();
    assert!(served[0].is_ok() && served[1].is_err());
}

#[tokio::test]
async fn a_lost_answer_can_be_fetched_again_and_is_the_same() {
    let mut a = Host::authority("a").await;
    let b = Host::new().await;
    let token = a.invite("b");
    let served = a.serve(3, vec![]);
    // The connection is cut when the request has been sent.
    let parsed = Token::parse(&token).unwrap();
    let key = identity::pending_key(&files::lock(&b.pki()).unwrap(), &b.pki()).unwrap();
    let request = Request::Join {
        secret: parsed.secret(),
        csr: certificate::make_request(&key, "b").unwrap(),
        name: "b".into(),
        listen: b.address,
    };
    let config = tls::pinned_config(parsed.fingerprint, JOIN).unwrap();
    let mut stream = dial(config, "a", a.address, &[JOIN], SHORT).await.unwrap();
    send(&mut stream, "a", &request).await.unwrap();
    drop(stream);
    while crate::trust::joined(&a.pki()).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The host has nothing yet, and asks again.
    assert!(Identity::load(&b.pki()).unwrap().is_none());
    b.join(&a, &token, "b").await.unwrap();
    let first = fs::read_to_string(b.pki().join("host.pem")).unwrap();
    fs::remove_file(b.pki().join("host.pem")).unwrap();
    b.join(&a, &token, "b").await.unwrap();
    assert_eq!(first, fs::read_to_string(b.pki().join("host.pem")).unwrap());
    assert!(served.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(crate::trust::joined(&a.pki()).unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_that_is_cut_or_stalls_burns_nothing() {
    let mut a = Host::authority("a").await;
    let b = Host::new().await;
    let token = a.invite("b");
    let fingerprint = Token::parse(&token).unwrap().fingerprint;
    let served = a.serve(5, vec![]);
    for half in [&b""[..], b"\0\0\x01", b"\0\0\0\x10{\"ask\":"] {
        let config = tls::pinned_config(fingerprint, JOIN).unwrap();
        let mut stream = dial(config, "a", a.address, &[JOIN], SHORT).await.unwrap();
        stream.write_all(half).await.unwrap();
        stream.flush().await.unwrap();
        if half.len() != 3 {
            continue; // cut
        }
        let mut rest = Vec::new(); // stalls, until the server hangs up
        let _ = stream.read_to_end(&mut rest).await;
    }
    drop(TcpStream::connect(a.address).await.unwrap());
    b.join(&a, &token, "b").await.unwrap();
    let served = served.await.unwrap();
    assert!(matches!(served[0], Err(TrustError::Network { .. })), "{:?}", served[0]);
    assert!(matches!(served[1], Err(TrustError::Timeout { .. })), "{:?}", served[1]);
    assert!(matches!(served[2], Err(TrustError::Network { .. })), "{:?}", served[2]);
    assert!(served[3].is_err() && served[4].is_ok());
}

#[tokio::test]
async fn expired_foreign_replaced_and_unknown_tokens_are_told_apart() {
    let mut a = Host::authority("a").await;
    let b = Host::new().await;
    let expired = invite(&a.pki(), "x", 60, ago(61)).unwrap().token;
    let replaced = a.invite("b");
    let foreign = a.invite("b");
    let mut renamed = Token::parse(&foreign).unwrap();
    renamed.name = "c".into();
    let mut unknown = Token::parse(&foreign).unwrap();
    unknown.secret = [1; 16];
    let served = a.serve(4, vec![]);
    let refused = async |token: &str, name: &str| match b.join(&a, token, name).await.unwrap_err() {
        TrustError::Refused { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&expired, "x").await, Refusal::Expired { .. }));
    assert_eq!(refused(&replaced, "b").await, Refusal::Unknown);
    assert_eq!(refused(&unknown.to_string(), "b").await, Refusal::Unknown);
    let other = Refusal::OtherName { invited: "b".into(), name: "c".into() };
    assert_eq!(refused(&renamed.to_string(), "c").await, other);
    assert!(served.await.unwrap().iter().all(Result::is_err));
    // Without asking anybody:
    let error = b.join(&a, &foreign, "c").await.unwrap_err();
    assert_eq!(sentence(&error), "the invitation is for `b`, but this host shall be `c`");
    let error = b.join(&a, &foreign[..40], "b").await.unwrap_err();
    assert!(sentence(&error).contains("not a whole invitation token"));
    assert!(Identity::load(&b.pki()).unwrap().is_none());
    assert!(crate::trust::joined(&a.pki()).unwrap().is_empty());
}

#[tokio::test]
async fn the_secret_is_not_told_to_a_host_of_another_ca() {
    let a = Host::authority("a").await;
    let mut false_a = Host::authority("a").await;
    let b = Host::new().await;
    let token = a.invite("b");
    let served = false_a.serve(1, vec![]);
    let error = b.join(&false_a, &token, "b").await.unwrap_err();
    assert!(matches!(error, TrustError::Stranger(_)), "{error:?}");
    assert!(served.await.unwrap().remove(0).is_err());
    assert!(Identity::load(&b.pki()).unwrap().is_none());
}

#[tokio::test]
async fn the_secret_is_not_told_to_another_member() {
    let (a, mut b) = fleet().await;
    let c = Host::new().await;
    let token = a.invite("c");
    let served = b.serve(1, vec![]);
    let error = c.join(&b, &token, "c").await.unwrap_err();
    assert!(matches!(error, TrustError::WrongHost { .. }), "{error:?}");
    assert!(served.await.unwrap().remove(0).is_err());
}

#[tokio::test]
async fn a_true_ca_shown_with_another_cas_certificate_is_refused() {
    // The man in the middle shows the right CA in its chain, but has no certificate from it.
    let a = Host::authority("a").await;
    let mut false_a = Host::authority("a").await;
    let b = Host::new().await;
    let token = a.invite("b");
    let mut forged = false_a.identity();
    let mut key = (*forged.key).clone();
    key.cert[1] = a.identity().ca;
    forged.key = Arc::new(key);
    let config = server_config(&forged, &[JOIN]).unwrap();
    let listener = false_a.listener.take().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        accept(&config, stream, SHORT).await.map(drop)
    });
    let error = b.join(&false_a, &token, "b").await.unwrap_err();
    assert!(matches!(error, TrustError::Stranger(_)), "{error:?}");
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn an_answer_with_another_ca_key_or_name_is_not_taken() {
    let mut a = Host::authority("a").await;
    let other = Host::authority("a").await;
    let token = a.invite("b");
    let config = server_config(&a.identity(), &[JOIN]).unwrap();
    let listener = a.listener.take().unwrap();
    let (pki, alien, own) = (a.pki(), other.identity().ca_pem, a.known());
    let served = tokio::spawn(async move {
        let authority = Authority::load(&pki).unwrap();
        for case in 0..3 {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = accept(&config, stream, SHORT).await.unwrap();
            let request = receive(&mut stream, "b").await.unwrap();
            let Request::Join { csr, listen, .. } = request else { panic!() };
            let key = certificate::requested_key(&csr).unwrap();
            let name = if case == 1 { "c" } else { "b" };
            let signed = authority.sign(&key, name, listen.ip(), now()).unwrap();
            let wrong = authority.sign(&certificate::make_key().unwrap(), name, listen.ip(), now()).unwrap();
            let answer = Answer::Signed {
                certificate: if case == 2 { wrong } else { signed },
                ca: if case == 0 { alien.clone() } else { fs::read_to_string(pki.join("ca.pem")).unwrap() },
                authority: own.clone(),
                hosts: vec![],
            };
            send(&mut stream, "b", &answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let b = Host::new().await;
    for why in ["not the one in the token", "another name", "another key"] {
        let error = b.join(&a, &token, "b").await.unwrap_err();
        assert!(matches!(&error, TrustError::BadAnswer { .. }), "{error:?}");
        assert!(sentence(&error).contains(why), "{error}");
    }
    assert!(Identity::load(&b.pki()).unwrap().is_none());
    served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_hosts_that_race_with_one_token_exactly_one_joins() {
    let a = Host::authority("a").await;
    let secret = Token::parse(&a.invite("b")).unwrap().secret();
    let racers = (1..=8).map(|port| {
        let (pki, secret) = (a.pki(), secret.clone());
        tokio::task::spawn_blocking(move || {
            let key = certificate::make_key().unwrap();
            let application = Application {
                secret,
                csr: certificate::make_request(&key, "b").unwrap(),
                name: "b".into(),
                listen: local(port),
            };
            admit(&pki, &application, now()).unwrap()
        })
    });
    let mut signed = 0;
    for racer in racers.collect::<Vec<_>>() {
        match racer.await.unwrap() {
            Ok(_) => signed += 1,
            Err(refusal) => assert!(matches!(refusal, Refusal::Used { .. }), "{refusal}"),
        }
    }
    assert_eq!(signed, 1);
}

#[tokio::test]
async fn a_crash_between_burning_and_signing_leaves_the_token_to_its_first_user() {
    let a = Host::authority("a").await;
    let secret = Token::parse(&a.invite("b")).unwrap().secret();
    let application = |key: &rcgen::KeyPair, listen| Application {
        secret: secret.clone(),
        csr: certificate::make_request(key, "b").unwrap(),
        name: "b".into(),
        listen,
    };
    let (first, other) = (certificate::make_key().unwrap(), certificate::make_key().unwrap());
    // The authority's own address is refused, and burns nothing.
    let own = admit(&a.pki(), &application(&other, a.address), now()).unwrap();
    assert!(matches!(own, Err(Refusal::AddressTaken { .. })));
    // What a crash before the signature leaves on disk.
    let record = a.pki().join("invitations.json");
    admit(&a.pki(), &application(&first, local(7)), now()).unwrap().unwrap();
    let mut entries: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    entries[0]["used"]["certificate"] = serde_json::Value::Null;
    fs::write(&record, entries.to_string()).unwrap();
    let refused = admit(&a.pki(), &application(&other, local(7)), now()).unwrap();
    assert!(matches!(refused, Err(Refusal::Used { .. })));
    let again = admit(&a.pki(), &application(&first, local(7)), now()).unwrap().unwrap();
    assert_eq!(Facts::of_pem(&again).unwrap().host.as_deref(), Some("b"));
}
