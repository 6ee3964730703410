//! What live patches cover, by manifests that somebody has signed whom the operators trust.
//!
//! The kernel tells that a live patch is in place, never which faults it mends. Whoever makes one says that in a manifest, a
//! JSON file such as
//! ```json
//! {"patch": "kpatch_6_1_170_1", "kernels": ["6.1.170-3"], "advisories": ["CVE-2026-31431"],
//!  "module": "/usr/lib/podd/kpatch_6_1_170_1.ko"}
//! ```
//! `patch` is the module's name below /sys/kernel/livepatch, `kernels` are versions of kernel packages as `uname -v` tells them,
//! `module` is optional: the file to load. Beside `NAME.json` lies `NAME.json.sig`, its Ed25519 signature (RFC 8032), 64 bytes:
//! `openssl pkeyutl -sign -rawin -inkey KEY.pem -in NAME.json -out NAME.json.sig`. Public keys are in `trusted`, as PEM:
//! `openssl pkey -in KEY.pem -pubout`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::decide::Cover;
use crate::sys::replace::replace;

/// Where manifests and trusted keys are unless told otherwise.
pub const FOLDER: &str = "/etc/podd/livepatch";
/// Folder of trusted keys.
const TRUSTED: &str = "trusted";
/// Larger manifests and keys are none, in bytes.
const LARGEST: u64 = 1 << 20;
/// RFC 8410.
const ED25519_OID: &str = "1.3.101.112";

/// A manifest that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its file.
    pub path: PathBuf,
    /// What it says, if that counts.
    pub cover: Option<Cover>,
    /// Name of the key that signed it.
    pub signed_by: Option<String>,
    /// Why it does not count.
    pub problem: Option<String>,
}

/// Why a key is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// I/O.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{0} is no public Ed25519 key in PEM\n  cure: make one of the private key with `openssl pkey -in KEY.pem -pubout`"
    )]
    Key(PathBuf),
}

/// Manifests in a folder; none if there is no such folder.
#[must_use]
pub fn manifests(folder: &Path) -> Vec<Manifest> {
    let keys = keys(&folder.join(TRUSTED));
    let mut paths: Vec<PathBuf> =
        files(folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    paths.into_iter().map(|path| manifest(path, &keys)).collect()
}

/// What trusted manifests say.
#[must_use]
pub fn covers(manifests: &[Manifest]) -> Vec<Cover> {
    manifests.iter().filter_map(|manifest| manifest.cover.clone()).collect()
}

/// Trusts whoever has the private key to this public one; its name.
///
/// # Errors
/// [`Error`].
pub fn trust(folder: &Path, key: &Path) -> Result<String, Error> {
    let text = read(key)?;
    public_key(&text).ok_or_else(|| Error::Key(key.to_owned()))?;
    let name = key.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = folder.join(TRUSTED);
    let file = folder.join(format!("{name}.pem"));
    fs::create_dir_all(&folder).and_then(|()| replace(&file, &text, 0o644)).map_err(|source| Error::File {
        what: "write",
        path: file,
        source,
    })?;
    Ok(name)
}

fn manifest(path: PathBuf, keys: &[(String, Vec<u8>)]) -> Manifest {
    match verified(&path, keys) {
        Ok((cover, key)) => Manifest { path, cover: Some(cover), signed_by: Some(key), problem: None },
        Err(problem) => Manifest { path, cover: None, signed_by: None, problem: Some(problem) },
    }
}

fn verified(path: &Path, keys: &[(String, Vec<u8>)]) -> Result<(Cover, String), String> {
    let text = read(path).map_err(|error| error.to_string())?;
    let beside = PathBuf::from(format!("{}.sig", path.display()));
    let signature = read(&beside).map_err(|error| format!("it is not signed: {error}"))?;
    let signed = |key: &[u8]| UnparsedPublicKey::new(&ED25519, key).verify(&text, &signature).is_ok();
    let Some((name, _)) = keys.iter().find(|(_, key)| signed(key)) else {
        return Err(format!("none of {} trusted key(s) has signed it", keys.len()));
    };
    // Before that, nobody looks at what it says.
    let cover = serde_json::from_slice(&text).map_err(|error| format!("it is not understood: {error}"))?;
    Ok((cover, name.clone()))
}

fn keys(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let key = |path: PathBuf| {
        let name = path.file_stem()?.to_string_lossy().into_owned();
        Some((name, public_key(&read(&path).ok()?)?))
    };
    let paths = files(folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "pem"));
    paths.filter_map(key).collect()
}

fn public_key(pem: &[u8]) -> Option<Vec<u8>> {
    let (_, pem) = parse_x509_pem(pem).ok()?;
    let (_, key) = SubjectPublicKeyInfo::from_der(&pem.contents).ok()?;
    let is_ed25519 = pem.label == "PUBLIC KEY" && key.algorithm.algorithm.to_id_string() == ED25519_OID;
    is_ed25519.then(|| key.subject_public_key.data.to_vec())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes));
    read.map_err(|source| Error::File { what: "read", path: path.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    /// An Ed25519 key and its public half in PEM, as OpenSSL writes it (RFC 8410).
    fn key(seed: u8) -> (Ed25519KeyPair, String) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key");
        let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        der.extend(pair.public_key().as_ref());
        let body = BASE64_STANDARD.encode(der);
        (pair, format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"))
    }

    const TEXT: &str = r#"{"patch": "p", "kernels": ["6.1.170-3"], "advisories": ["CVE-2026-1"]}"#;

    #[test]
    fn only_what_a_trusted_key_has_signed_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let ((pair, pem), (stranger, _)) = (key(1), key(2));
        fs::write(at("vendor.pem"), pem).expect("a key");
        assert_eq!(trust(folder.path(), &at("vendor.pem")).expect("it is a key"), "vendor");
        let put = |name: &str, text: &str, signature: &[u8]| {
            fs::write(at(name), text).expect("a manifest");
            fs::write(at(&format!("{name}.sig")), signature).expect("a signature");
        };
        put("1.json", TEXT, pair.sign(TEXT.as_bytes()).as_ref());
        put("2.json", &TEXT.replace("6.1.170-3", "6.1.172-1"), pair.sign(TEXT.as_bytes()).as_ref());
        put("3.json", TEXT, stranger.sign(TEXT.as_bytes()).as_ref());
        put("4.json", "{\"patch\": 1}", pair.sign(b"{\"patch\": 1}").as_ref());
        put("5.json", TEXT, b"");
        fs::write(at("6.json"), TEXT).expect("a manifest");
        let found = manifests(folder.path());
        let problems: Vec<&str> = found.iter().map(|manifest| manifest.problem.as_deref().unwrap_or("none")).collect();
        assert_eq!((problems[0], found[0].signed_by.as_deref()), ("none", Some("vendor")));
        for (problem, part) in
            problems[1..].iter().zip(["none of 1", "none of 1", "not understood", "none of 1", "not signed"])
        {
            assert!(problem.contains(part), "{problem}");
        }
        let advisories = vec!["CVE-2026-1".to_owned()];
        let cover = Cover { patch: "p".to_owned(), kernels: vec!["6.1.170-3".to_owned()], advisories, module: None };
        assert_eq!(covers(&found), [cover]);
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.pem");
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            fs::write(&path, text).expect("a file");
            let said = trust(folder.path(), &path).expect_err("no key").to_string();
            assert!(said.contains("is no public Ed25519 key") && said.contains("\n  cure: "), "{said}");
        }
        assert!(!folder.path().join("trusted").exists(), "nothing was changed");
        assert!(manifests(&folder.path().join("absent")).is_empty());
    }
}
