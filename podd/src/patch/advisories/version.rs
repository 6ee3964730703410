//! The order of Debian versions, as dpkg has it.

use std::cmp::Ordering;

use debversion::Version;

/// Longest version in bytes. The longest that Debian's advisories of 2023 name has 69.
pub(super) const MAX_VERSION: usize = 128;

/// A text that is no Debian version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{version:?} is not a Debian version: {reason}\n  cure: `man 7 deb-version` has the rules")]
pub struct BadVersion {
    /// As given, shortened.
    pub version: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

/// dpkg's order of two versions: tested against `dpkg --compare-versions`.
///
/// # Errors
/// [`BadVersion`]: one of them is none.
pub fn compare(a: &str, b: &str) -> Result<Ordering, BadVersion> {
    Ok(parse(a)?.cmp(&parse(b)?))
}

/// Whether dpkg could compare it. What dpkg compares with a warning passes too: a version that starts with a letter or has
/// an underscore, as the archive's oldest ones. What dpkg reads differently than it was meant does not: blanks at the ends,
/// `+1:` as an epoch, a colon in the revision, other alphabets, and the empty version (dpkg: older than all).
///
/// # Errors
/// [`BadVersion`].
pub(super) fn check(version: &str) -> Result<(), BadVersion> {
    split(version).map(drop)
}

/// Epoch, upstream version and revision. The library's own way takes most of the time of a decision about thousands of
/// advisories, as it is a regular expression.
fn split(version: &str) -> Result<(Option<u32>, &str, Option<&str>), BadVersion> {
    let bad = |reason| Err(BadVersion { version: version.chars().take(64).collect(), reason });
    if version.is_empty() {
        return bad("it is empty");
    }
    if version.len() > MAX_VERSION {
        return bad("it is longer than 128 bytes");
    }
    if !version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+~-_:".contains(&b)) {
        return bad("it has a character that no version has");
    }
    let (epoch, rest) = match version.split_once(':') {
        None => (None, version),
        Some((epoch, _)) if !epoch.bytes().all(|b| b.is_ascii_digit()) => return bad("its epoch is not a number"),
        Some((epoch, rest)) => match epoch.parse::<i32>() {
            Ok(epoch) => (Some(epoch.unsigned_abs()), rest),
            Err(_) => return bad("its epoch is missing or beyond 2147483647"),
        },
    };
    match rest.rsplit_once('-') {
        _ if rest.is_empty() => bad("nothing follows its epoch"),
        Some(("", _)) => bad("nothing stands before its revision"),
        Some((_, "")) => bad("its revision is empty"),
        Some((_, revision)) if revision.contains(':') => bad("its revision has a colon"),
        Some((upstream, revision)) => Ok((epoch, upstream, Some(revision))),
        None => Ok((epoch, rest, None)),
    }
}

/// debversion 0.5.5 and dpkg differ in one thing. To dpkg a number that is missing at the end is 0 (`1.a` equals `1.a0`), to
/// debversion it is less than 0. With the 0 written out they agree, and no other comparison changes: a 0 after the last
/// non-digit ends that part of the comparison just where the end of the text did.
pub(super) fn parse(version: &str) -> Result<Version, BadVersion> {
    let (epoch, upstream, revision) = split(version)?;
    let part = |text: &str| match text.ends_with(|c: char| c.is_ascii_digit()) {
        true => text.to_owned(),
        false => format!("{text}0"),
    };
    Ok(Version { epoch, upstream_version: part(upstream), debian_revision: revision.map(part) })
}
