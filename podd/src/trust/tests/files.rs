//! What is on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::certificate::{self, Facts};
use super::*;

#[test]
fn init_makes_a_folder_that_only_root_can_read_and_refuses_to_do_it_twice() {
    let folder = TempDir::new().unwrap();
    let pki = folder.path().join("state/pki");
    assert!(Identity::load(&pki).unwrap().is_none());
    let made = init(&pki, "web-1", local(7), now()).unwrap();
    assert_eq!((made.name.as_str(), made.address, made.is_authority()), ("web-1", local(7), true));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&pki), 0o700);
    let mut names = Vec::new();
    for file in fs::read_dir(&pki).unwrap() {
        let file = file.unwrap();
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["ca.key", "ca.pem", "host.json", "host.key", "host.pem", "lock"]);
    let again = init(&pki, "web-2", local(8), now()).unwrap_err();
    assert_eq!(sentence(&again), "this host already has an identity: it is `web-1` at 127.0.0.1:7");
    let shown = format!("{made:?}");
    assert!(!shown.contains("PRIVATE") && shown.contains("web-1"));
    // A key that others can read is not used.
    fs::set_permissions(pki.join("host.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load(&pki).unwrap_err();
    assert!(matches!(error, TrustError::Exposed { mode: 0o640, .. }), "{error:?}");
}

#[test]
fn an_init_that_was_cut_goes_on_with_its_ca() {
    let folder = TempDir::new().unwrap();
    let pki = folder.path();
    let first = init(pki, "a", local(7), now()).unwrap().ca_pem;
    fs::write(pki.join(".ca.pem.new"), "half a certificate").unwrap();
    for lost in [&["host.pem"][..], &["host.pem", "host.json"], &["host.pem", "host.json", "host.key"]] {
        lost.iter().for_each(|name| fs::remove_file(pki.join(name)).unwrap());
        assert_eq!(init(pki, "a", local(7), now()).unwrap().ca_pem, first);
    }
    for name in ["host.pem", "host.json", "ca.pem"] {
        fs::remove_file(pki.join(name)).unwrap();
    }
    assert_ne!(init(pki, "a", local(7), now()).unwrap().ca_pem, first, "no certificate, no CA");
}

#[test]
fn damaged_files_are_named() {
    let folder = TempDir::new().unwrap();
    let (pki, other) = (folder.path().join("a"), folder.path().join("b"));
    init(&pki, "a", local(7), now()).unwrap();
    init(&other, "a", local(7), now()).unwrap();
    for name in ["ca.pem", "host.pem", "host.key", "host.json"] {
        let good = fs::read(pki.join(name)).unwrap();
        let cut = good[..good.len() / 2].to_vec();
        let mut cases = vec![Vec::new(), b"{}".to_vec(), vec![0xff; 10], cut];
        if name != "host.json" {
            cases.push(fs::read(other.join(name)).unwrap());
        }
        for bad in cases {
            fs::write(pki.join(name), bad).unwrap();
            sentence(&Identity::load(&pki).unwrap_err());
        }
        fs::write(pki.join(name), good).unwrap();
        Identity::load(&pki).unwrap().unwrap();
    }
    fs::write(pki.join("invitations.json"), "{").unwrap();
    let error = invite(&pki, "b", 60, now()).unwrap_err();
    assert!(error.cure().unwrap().contains("invite again"));
}

#[test]
fn bad_names_addresses_lifetimes_and_clocks_are_refused() {
    let folder = TempDir::new().unwrap();
    let pki = folder.path();
    let long = "x".repeat(64);
    for name in ["", "A", "a_b", "a.b", "a b", "ä", "-a", "a-", "12", "a/../b", "*", &long] {
        assert!(matches!(init(pki, name, local(7), now()), Err(TrustError::BadName(_))), "{name}");
    }
    for address in ["0.0.0.0:7", "[::]:7", "127.0.0.1:0", "224.0.0.1:7"] {
        let error = init(pki, "a", address.parse().unwrap(), now()).unwrap_err();
        assert!(matches!(error, TrustError::BadAddress(_)));
    }
    let error = init(pki, "a", local(7), Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(sentence(&error).contains("1970-01-01"), "{error}");
    assert!(matches!(invite(pki, "b", 60, now()), Err(TrustError::NoIdentity)));
    let long = "x".repeat(63);
    init(pki, &long, "[::1]:7".parse().unwrap(), now()).unwrap();
    assert!(matches!(invite(pki, "b", 0, now()), Err(TrustError::BadLifetime(0))));
    assert!(matches!(invite(pki, "b", u64::MAX, now()), Err(TrustError::BadLifetime(_))));
    assert!(matches!(invite(pki, &long, 60, now()), Err(TrustError::IsAuthority(_))));
}

#[test]
fn certificates_say_the_dates_that_were_meant() {
    for at in [
        "2028-02-29T12:00:00Z",
        "2049-12-31T23:59:59Z",
        "2050-01-01T00:30:00Z",
        "2096-02-29T00:00:00Z",
        "2099-12-31T23:59:59Z",
        "9999-12-01T00:00:00Z",
    ] {
        let folder = TempDir::new().unwrap();
        let at: Timestamp = at.parse().unwrap();
        let made = init(folder.path(), "a", local(7), at).unwrap();
        assert_eq!(made.validity, validity(at, 1));
        assert_eq!(Facts::of_pem(&made.ca_pem).unwrap().validity, validity(at, 10));
        made.check(at).unwrap();
        invite(folder.path(), "b", 60, at).unwrap();
    }
}

#[test]
fn a_host_certificate_does_not_outlive_the_ca() {
    let folder = TempDir::new().unwrap();
    init(folder.path(), "a", local(7), "2028-02-29T12:00:00Z".parse().unwrap()).unwrap();
    let authority = Authority::load(folder.path()).unwrap();
    let key = certificate::make_key().unwrap();
    let end: Timestamp = "2038-02-28T12:00:00Z".parse().unwrap();
    let signed = authority.sign(&key, "b", local(7).ip(), "2037-12-01T00:00:00Z".parse().unwrap()).unwrap();
    assert_eq!(Facts::of_pem(&signed).unwrap().validity.not_after, end);
    let error = authority.sign(&key, "b", local(7).ip(), end).unwrap_err();
    assert!(sentence(&error).contains("the fleet's CA expired on 2038-02-28T12:00:00Z"), "{error}");
}

#[test]
fn a_request_with_a_forged_signature_is_refused() {
    let key = certificate::make_key().unwrap();
    let pem = certificate::make_request(&key, "b").unwrap();
    certificate::requested_key(&pem).unwrap();
    // The last line is within the signature.
    let at = pem.trim_end().rfind("\n-----END").unwrap() - 4;
    let other = if &pem[at..=at] == "A" { "B" } else { "A" };
    let forged = format!("{}{other}{}", &pem[..at], &pem[at + 1..]);
    assert!(certificate::requested_key(&forged).is_err());
    assert!(certificate::requested_key("").is_err());
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = certificate::make_request(&other, "b").unwrap();
    assert!(certificate::requested_key(&request).unwrap_err().contains("P-256"));
}
