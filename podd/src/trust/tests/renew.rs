//! Certificates that grow old.

use std::fs;

use super::super::join::ask;
use super::super::message::Request;
use super::super::{certificate, connect, tls};
use super::*;

#[tokio::test]
async fn a_member_renews_with_its_certificate_and_a_removed_one_does_not() {
    let (mut a, b) = fleet().await;
    assert!(renew_if_due(&b.pki(), now()).await.unwrap().is_none(), "not due");
    shorten(&a.pki(), &b.pki(), 300);
    let old = b.identity();
    let served = a.serve(2, vec![b.known()]);
    let fresh = renew_if_due(&b.pki(), now()).await.unwrap().unwrap();
    assert!(fresh.validity.not_after > old.validity.not_after);
    assert_eq!(fresh.key.cert[1], old.key.cert[1], "same CA");
    assert!(renew_if_due(&b.pki(), now()).await.unwrap().is_none());
    // Without a certificate nothing is renewed.
    let config = tls::pinned_config(certificate::digest(&a.identity().ca), JOIN).unwrap();
    let mut stream = connect::dial(config, "a", a.address, &[JOIN], SHORT).await.unwrap();
    let csr = certificate::make_request(&certificate::make_key().unwrap(), "b").unwrap();
    let ask = ask(&mut stream, "a", &Request::Renew { csr, listen: b.address }).await;
    assert!(matches!(ask, Err(TrustError::Refused { refusal: Refusal::NoCertificate, .. })));
    let results = served.await.unwrap();
    assert_eq!(results[0].as_ref().unwrap().name, "b");
    // Not in the store any more.
    a.listener = Some(TcpListener::bind(a.address).await.unwrap());
    shorten(&a.pki(), &b.pki(), 300);
    let served = a.serve(1, vec![]);
    let error = renew_if_due(&b.pki(), now()).await.unwrap_err();
    assert!(matches!(error, TrustError::Refused { refusal: Refusal::NotAMember { .. }, .. }), "{error:?}");
    assert!(served.await.unwrap().remove(0).is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_named_with_date_and_clock() {
    let (mut a, b) = fleet().await;
    // Ours: seen before anything is sent.
    let good = fs::read(b.pki().join("host.pem")).unwrap();
    shorten(&a.pki(), &b.pki(), 400);
    let error = connect(&b.identity(), "a", a.address, &[PEER], SHORT).await.unwrap_err();
    let text = sentence(&error);
    assert!(text.contains("`b`, expired on 20") && text.contains("clock of this host says 20"), "{text}");
    // Theirs: we see it, with the date.
    fs::write(b.pki().join("host.pem"), good).unwrap();
    shorten(&a.pki(), &a.pki(), 400);
    let date = a.identity().validity.not_after;
    let served = echo(&mut a, &[PEER]);
    let error = connect(&b.identity(), "a", a.address, &[PEER], SHORT).await.unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error:?}");
    assert!(sentence(&error).contains(&date.to_string()), "{error}");
    let refused = served.await.unwrap().unwrap_err();
    assert!(matches!(refused, TrustError::RefusedUs { .. }), "{refused:?}");
    // The authority heals itself.
    assert!(renew_if_due(&a.pki(), now()).await.unwrap().is_some());
    a.identity().check(now()).unwrap();
}
