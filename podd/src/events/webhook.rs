//! Tells a program of the operators' of each event: by POST, signed, again and again until it answers, but not for ever.
//!
//! Form and signature are those of the Standard Webhooks specification: the headers `webhook-id` (the same whenever it is told
//! again: whoever gets it twice can see that), `webhook-timestamp` (seconds since 1970) and `webhook-signature`: `v1,` and the
//! Base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`. The secret is the content of a file; `whsec_` and Base64, or the bytes
//! themselves. What was delivered is on disk, so no event is left out because podd or its host died.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use ring::hmac;
use serde_json::json;

use super::{Entry, PODD, What, note};
use crate::patch::advisories::agent;
use crate::patch::policy::Notify;
use crate::patch::watch;
use crate::supervisor::Daemon;

/// Times that an event is told, at most. With [`pause`] that is for some twenty minutes.
const TRIES: u32 = 12;
/// For one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// More are not caught up on: whoever was away for so long looks at the journal.
const BACKLOG: u64 = 1000;
/// A policy that names a webhook now is seen after this.
const LOOK: Duration = Duration::from_secs(60);

/// Delivers events for as long as podd runs.
pub async fn deliver(daemon: Arc<Daemon>) {
    let mut bell = daemon.bell.listen();
    loop {
        if let Err(error) = deliver_all(&daemon).await {
            tracing::error!(error = error.message, "events cannot be delivered");
        }
        let _ = tokio::time::timeout(LOOK, bell.changed()).await;
    }
}

async fn deliver_all(daemon: &Arc<Daemon>) -> crate::error::Result<()> {
    let newest = daemon.store.newest_event()?;
    let Some(policy) = watch::policy(daemon).0 else {
        // It cannot be read, and nobody knows whether it names a webhook: that is looked at again.
        return Ok(());
    };
    let Some(url) = policy.notify.webhook.clone() else {
        // Nobody wants to know; whoever is named later is told from then on.
        return Ok(daemon.store.set_delivered(newest)?);
    };
    let done = daemon.store.delivered()?;
    let skipped = newest.saturating_sub(done).saturating_sub(BACKLOG);
    if skipped > 0 {
        let (id, why) =
            (done + skipped, format!("with it, the {skipped} oldest of {} are left out", skipped + BACKLOG));
        daemon.store.set_delivered(id)?;
        note(daemon, PODD, What::Undelivered { id, url, why })?;
    }
    loop {
        let done = daemon.store.delivered()?;
        let Some(entry) = daemon.store.events(done, 1)?.pop() else { return Ok(()) };
        // That nobody could be told is nothing to tell him.
        if !matches!(entry.what, What::Undelivered { .. })
            && let Some((url, why)) = tell(daemon, &entry).await
        {
            note(daemon, PODD, What::Undelivered { id: entry.id, url, why })?;
        }
        daemon.store.set_delivered(entry.id)?;
    }
}

fn to(daemon: &Daemon) -> Option<Notify> {
    let policy = watch::policy(daemon).0?;
    policy.notify.webhook.is_some().then(|| policy.notify.clone())
}

/// Tells of one event; whom it could not tell, and why.
async fn tell(daemon: &Daemon, entry: &Entry) -> Option<(String, String)> {
    let mut failed = None;
    for attempt in 0..TRIES {
        // The policy may be mended meanwhile.
        let notify = to(daemon)?;
        let url = notify.webhook.clone().unwrap_or_default();
        let asked = entry.clone();
        match tokio::task::spawn_blocking(move || post(&notify, &asked, Timestamp::now())).await {
            Ok(Ok(())) => return None,
            Ok(Err(why)) => {
                if attempt == 0 {
                    tracing::warn!(url, why, event = entry.id, "the webhook was not told; it will be again");
                }
                failed = Some((url, why));
            }
            Err(error) => failed = Some((url, error.to_string())),
        }
        if attempt + 1 < TRIES {
            tokio::time::sleep(pause(attempt)).await;
        }
    }
    failed
}

/// 1, 2, 4 s and so on, at most 5 minutes.
fn pause(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.min(9)).min(Duration::from_secs(300))
}

fn post(notify: &Notify, entry: &Entry, now: Timestamp) -> Result<(), String> {
    let url = notify.webhook.as_deref().unwrap_or_default();
    let id = format!("{}-{}", entry.host, entry.id);
    let seconds = now.as_second();
    let kind = format!("podd.{}", entry.what.kind());
    let body = json!({ "type": kind, "timestamp": entry.at, "data": entry }).to_string();
    // A redirect would make a GET of it, without what there is to say.
    let mut request = agent(url, LIMIT, LIMIT, 0)
        .post(url)
        .header("Content-Type", "application/json")
        .header("webhook-id", &id)
        .header("webhook-timestamp", seconds.to_string());
    if let Some(path) = &notify.secret {
        request = request.header("webhook-signature", sign(&secret(path)?, &id, seconds, &body));
    }
    let answer = request.send(&body).map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}

fn secret(path: &Path) -> Result<Vec<u8>, String> {
    let content = std::fs::read(path).map_err(|error| format!("cannot read the secret {}: {error}", path.display()))?;
    let bytes = content.trim_ascii();
    if bytes.is_empty() {
        return Err(format!("the secret {} is empty", path.display()));
    }
    match bytes.strip_prefix(b"whsec_") {
        Some(base64) => BASE64_STANDARD.decode(base64).map_err(|error| format!("the secret is no Base64: {error}")),
        None => Ok(bytes.to_owned()),
    }
}

fn sign(secret: &[u8], id: &str, seconds: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(signature))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Signed by Python's hmac module, the secret being the bytes `secret`.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let said = sign(b"secret", "msg_1", 1_674_087_231, "{\"a\":1}");
        assert_eq!(said, "v1,OBlYevwduLYW/vhkVoJAR+kNlBCCUbAWBvwkD8lGhUo=");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let all: Duration = (0..TRIES - 1).map(pause).sum();
        assert!(pause(0) == Duration::from_secs(1) && pause(TRIES) == Duration::from_secs(300));
        assert!((Duration::from_secs(900)..Duration::from_secs(3600)).contains(&all), "{all:?}");
    }

    #[test]
    fn a_post_says_what_happened_and_who_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "whsec_c2VjcmV0\n").expect("a secret");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let served = std::thread::spawn(move || {
            ["200 OK", "500 Oops"].map(|status| {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !String::from_utf8_lossy(&request).ends_with("chosen\"}") {
                    let length = stream.read(&mut buffer).expect("a request");
                    request.extend_from_slice(&buffer[..length]);
                }
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").expect("answered");
                String::from_utf8(request).expect("text")
            })
        });
        let at: Timestamp = "2026-11-29T02:00:00Z".parse().expect("a time");
        let what = What::Chosen { time: None, at_once: true };
        let entry = Entry { id: 7, at, host: "a".to_owned(), by: "root".to_owned(), what };
        let notify = Notify { webhook: Some(url), secret: Some(secret) };
        assert_eq!(post(&notify, &entry, at), Ok(()));
        assert_eq!(post(&notify, &entry, at), Err("it answered 500 Internal Server Error".to_owned()));
        let [request, _] = served.join().expect("it served");
        let (head, body) = request.split_once("\r\n\r\n").expect("a request");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("post /hook http/1.1\r\n") && head.contains("webhook-id: a-7\r\n"), "{head}");
        let signature = sign(b"secret", "a-7", at.as_second(), body);
        assert!(request.contains(&signature), "{request}");
        let said: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((said["type"].as_str(), said["data"]["event"].as_str()), (Some("podd.chosen"), Some("chosen")));
        assert_eq!((said["data"]["by"].as_str(), said["data"]["id"].as_u64()), (Some("root"), Some(7)));
        let missing = Notify { secret: Some("/nonexistent".into()), ..notify };
        assert!(post(&missing, &entry, at).expect_err("no secret").contains("cannot read the secret"));
    }
}
