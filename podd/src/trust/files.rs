//! Files below `<state>/pki`: readable by root alone, replaced whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::TrustError;
use crate::sys::replace::replace;

pub(super) const CA: &str = "ca.pem";
pub(super) const CA_KEY: &str = "ca.key";
pub(super) const HOST: &str = "host.pem";
pub(super) const HOST_KEY: &str = "host.key";
pub(super) const RECORD: &str = "host.json";
pub(super) const INVITATIONS: &str = "invitations.json";

/// Whoever changes the folder holds this; dropped, it is free again (also when the process dies).
pub(super) struct Lock(#[allow(dead_code)] File);

/// Makes the folder if there is none and waits for the lock on it. Blocks: hold it for file work only, never while
/// waiting for a peer.
pub(super) fn lock(pki: &Path) -> Result<Lock, TrustError> {
    DirBuilder::new().recursive(true).mode(0o700).create(pki).map_err(TrustError::file("making", pki))?;
    fs::set_permissions(pki, fs::Permissions::from_mode(0o700)).map_err(TrustError::file("protecting", pki))?;
    let path = pki.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(TrustError::file("opening", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|errno| TrustError::file("locking", &path)(errno.into()))?;
    Ok(Lock(file))
}

/// Replaces a file: after a power cut it has the old content or the new one.
pub(super) fn write(_lock: &Lock, pki: &Path, name: &str, content: &[u8]) -> Result<(), TrustError> {
    let path = pki.join(name);
    replace(&path, content, 0o600).map_err(TrustError::file("writing", &path))
}

/// The content of a file, none if there is no such file.
pub(super) fn read(pki: &Path, name: &str) -> Result<Option<String>, TrustError> {
    let path = pki.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrustError::file("reading", &path)(error)),
    }
}

/// As [`read`], for a file that must be there.
pub(super) fn need(pki: &Path, name: &str) -> Result<String, TrustError> {
    read(pki, name)?.ok_or_else(|| TrustError::damaged(&pki.join(name), "it is missing"))
}

/// As [`read`], for a key: refused if others could have read it.
pub(super) fn read_key(pki: &Path, name: &str) -> Result<Option<String>, TrustError> {
    let path = pki.join(name);
    match fs::metadata(&path) {
        Ok(facts) if facts.permissions().mode() & 0o077 != 0 => {
            Err(TrustError::Exposed { path, mode: facts.permissions().mode() & 0o777 })
        }
        _ => read(pki, name),
    }
}

pub(super) fn exists(pki: &Path, name: &str) -> bool {
    pki.join(name).exists()
}
