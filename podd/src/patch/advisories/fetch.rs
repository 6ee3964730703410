//! Feeds from a mirror or from disk, bounded in size and time, with their checksum if that is asked for.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::cache::{State, temporary};
use super::config::{Config, unsigned};
use super::error::{Error, Result};
use super::{Feed, guard};

/// Most bytes of a checksum's file; its first word is the checksum.
const MAX_CHECKSUM: u64 = 4096;
/// Most bytes of a validator that are kept.
const MAX_VALIDATOR: usize = 256;
/// Most files of a folder.
const MAX_FILES: u64 = 500_000;

/// What a mirror answers.
pub(super) enum Got {
    /// Nothing newer than what we have.
    Same,
    /// The feed.
    New(Download),
}

/// A fetched feed.
pub(super) struct Download {
    /// Without a name: it goes when it is closed.
    pub file: File,
    pub etag: Option<String>,
    pub modified: Option<String>,
    pub dated: Option<Timestamp>,
}

/// Asks a mirror for what is newer than `known`.
pub(super) fn get(config: &Config, feed: Feed, url: &str, dir: &Path, known: Option<&State>) -> Result<Got> {
    let agent = agent(url, unsigned(config.connect_timeout), unsigned(config.timeout), 5);
    let response = ask(&agent, config, url, known)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED if known.is_some_and(|k| k.etag.is_some() || k.modified.is_some()) => {
            return Ok(Got::Same);
        }
        status => return Err(Error::Status { url: url.to_owned(), status: status.as_u16() }),
    }
    let (etag, modified) = (validator(response.headers(), "etag"), validator(response.headers(), "last-modified"));
    // A date that cannot be read is as good as none; one that cannot be is not.
    let parser = DateTimeParser::new().relaxed_weekday(true);
    let read = modified.as_deref().and_then(|text| Some((parser.parse_timestamp(text).ok()?, text)));
    let dated = read.map(|(time, text)| guard::date(url, "Last-Modified", Some(time), text)).transpose()?;
    let limit = feed.limit();
    if response.body().content_length().is_some_and(|length| length > limit) {
        return Err(Error::TooLarge { what: url.to_owned(), limit });
    }
    let mut file = temporary(dir)?.into_file();
    let mut body = guard::Capped::new(response.into_body().into_reader(), url, limit);
    let found = copy(&mut body, &mut file, config.checksum, dir, |e| broken(e, config, url))?;
    if let Some(found) = found {
        let beside = format!("{url}.sha256");
        let response = ask(&agent, config, &beside, None)?;
        if response.status() != StatusCode::OK {
            return Err(Error::Status { url: beside, status: response.status().as_u16() });
        }
        let mut text = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_CHECKSUM);
        body.read_to_end(&mut text).map_err(|e| broken(e, config, &beside))?;
        compare_checksum(url, &beside, &text, found)?;
    }
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", dir))?;
    Ok(Got::New(Download { file, etag, modified, dated }))
}

/// What speaks HTTP to others, with a limit for the connection and one for all. The host's own certificates decide whom to trust,
/// and an `https` address never leads to an `http` one.
#[must_use]
pub fn agent(url: &str, connect: Duration, all: Duration, redirects: u32) -> Agent {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let agent = Agent::config_builder()
        .tls_config(tls)
        .https_only(url.starts_with("https://"))
        .http_status_as_error(false)
        .max_redirects(redirects)
        .timeout_connect(Some(connect))
        .timeout_global(Some(all))
        .user_agent("podd");
    Agent::new_with_config(agent.build())
}

fn ask(agent: &Agent, config: &Config, url: &str, known: Option<&State>) -> Result<Response<Body>> {
    let mut request = agent.get(url);
    if let Some(etag) = known.and_then(|known| known.etag.as_deref()) {
        request = request.header("If-None-Match", etag);
    }
    if let Some(modified) = known.and_then(|known| known.modified.as_deref()) {
        request = request.header("If-Modified-Since", modified);
    }
    request.call().map_err(|e| refused(e, config, url))
}

fn refused(e: ureq::Error, config: &Config, url: &str) -> Error {
    match e {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            let reason = format!("no connection within {} s", config.connect_timeout.as_secs());
            Error::Unreachable { url: url.to_owned(), reason }
        }
        ureq::Error::Timeout(_) => Error::Slow { url: url.to_owned(), seconds: config.timeout.as_secs() },
        e => Error::Unreachable { url: url.to_owned(), reason: e.to_string() },
    }
}

/// An error while a body is read: ours, a timeout, or the mirror broke off.
fn broken(e: io::Error, config: &Config, url: &str) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::Half { from: url.to_owned() },
        _ => match e.downcast::<Error>() {
            Ok(ours) => ours,
            Err(e) => refused(ureq::Error::from(e), config, url),
        },
    }
}

fn validator(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (text.len() <= MAX_VALIDATOR).then(|| text.to_owned())
}

/// Copies all; gives the SHA-256 if that is wanted.
fn copy(
    from: &mut impl Read,
    to: &mut File,
    hash: bool,
    dir: &Path,
    broken: impl FnOnce(io::Error) -> Error,
) -> Result<Option<String>> {
    let mut chunk = vec![0; 64 << 10];
    let mut sha = Sha256::new();
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(hash.then(|| hex(sha))),
            Ok(n) => {
                if hash {
                    sha.update(&chunk[..n]);
                }
                to.write_all(&chunk[..n]).map_err(Error::io("write into", dir))?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(e)),
        }
    }
}

fn hex(sha: Sha256) -> String {
    format!("{:x}", sha.finalize())
}

fn compare_checksum(from: &str, beside: &str, text: &[u8], found: String) -> Result<()> {
    let word = String::from_utf8_lossy(text).split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    if word.len() != 64 || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::NoChecksum(beside.to_owned()));
    }
    match word == found {
        true => Ok(()),
        false => Err(Error::Checksum { from: from.to_owned(), wanted: word, found }),
    }
}

/// The files of a feed at a path.
pub(super) fn find(feed: Feed, path: &Path, release: &str) -> Result<Vec<PathBuf>> {
    if !fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let none = |wanted: &str| Error::NoFile { dir: path.to_owned(), wanted: wanted.to_owned() };
    let mut files = match feed {
        Feed::Debsecan => return Ok(vec![path.join(release)]),
        Feed::Tracker | Feed::Kev => list(path, &["json"])?,
        Feed::Osv => list(path, &["json", "zip"])?,
    };
    match feed {
        Feed::Osv if files.is_empty() => Err(none("*.json or *.zip")),
        Feed::Osv => Ok(files),
        _ => {
            // Of two with the same time the one whose name is later.
            files.sort_by_cached_key(|file| (fs::metadata(file).and_then(|m| m.modified()).ok(), file.clone()));
            files.pop().map(|newest| vec![newest]).ok_or_else(|| none("*.json"))
        }
    }
}

fn list(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
            files.push(path);
        }
        if files.len() as u64 > MAX_FILES {
            return Err(Error::TooMany { from: dir.display().to_string(), limit: MAX_FILES });
        }
    }
    files.sort();
    Ok(files)
}

/// A file, with its time: regular, not too large, and as its checksum says.
pub(super) fn open(config: &Config, feed: Feed, path: &Path) -> Result<(File, Timestamp)> {
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    // Before it is opened: opening a pipe waits for a writer.
    if !metadata.is_file() {
        return Err(Error::NotFile(path.to_owned()));
    }
    let from = path.display().to_string();
    let limit = feed.limit();
    if metadata.len() > limit {
        return Err(Error::TooLarge { what: from, limit });
    }
    let dated = modified(&metadata, &from)?;
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    if config.checksum {
        let mut sha = Sha256::new();
        io::copy(&mut guard::Capped::new(&mut file, &from, limit), &mut sha).map_err(|e| Error::read(e, &from))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let beside = format!("{from}.sha256");
        let mut text = Vec::new();
        let read = File::open(&beside).and_then(|file| file.take(MAX_CHECKSUM).read_to_end(&mut text));
        read.map_err(Error::io("read", &beside))?;
        compare_checksum(&from, &beside, &text, hex(sha))?;
    }
    Ok((file, dated))
}

fn modified(metadata: &Metadata, from: &str) -> Result<Timestamp> {
    let time = metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    let value = time.map_or_else(|| "beyond year 9999".to_owned(), |time| time.to_string());
    guard::date(from, "the time", time, &value)
}
