//! nginx in a pod, and what its clients saw (`src/bin/web.rs`).

use super::{Client, Hosts, STARTS};
use crate::lab::eventually;

/// What the small page says.
pub const SMALL: &str = "still here";

/// Worker processes of another user than the master's; connections that last as long as the client wishes.
pub const CONFIGURATION: &str = "
user www-data;
worker_processes 2;
pid /run/nginx.pid;
error_log stderr warn;
events { worker_connections 256; }
http {
    access_log /var/log/nginx/access.log;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 600;
    send_timeout 600;
    root /srv/www;
    server { listen 80; }
}
";

/// Starts nginx with that configuration, its first argument, and a page that says its second one.
pub const SCRIPT: &str = "mkdir -p /srv/www /var/log/nginx /var/lib/nginx && echo \"$2\" >/srv/www/small &&
    echo \"$1\" >/etc/nginx/nginx.conf && exec nginx -g 'daemon off;'";

/// What a download saw.
#[derive(Debug, serde::Deserialize)]
pub struct Download {
    /// Bytes of the body.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Bytes that had come when it was told to hurry.
    pub leisurely: u64,
    /// Why it ended early, if it did.
    pub error: Option<String>,
}

/// What a client that asks again and again saw.
#[derive(Debug, serde::Deserialize)]
pub struct Asked {
    /// Right answers.
    pub right: u64,
    /// Longest time without an answer on one connection, ms.
    pub longest_silence_ms: f64,
    /// Everything else that happened.
    pub errors: Vec<String>,
}

/// Starts nginx in a pod named `name` on `host`, and waits until it answers.
pub fn nginx(lab: &impl Hosts, host: &str, name: &str, address: &str) {
    let (root, cidr) = (lab.rootfs("nginx"), format!("{address}/16"));
    let mut arguments = vec!["run", "--name", name, "--rootfs", &root, "--ip", &cidr, "--"];
    arguments.extend(["sh", "-c", SCRIPT, "sh", CONFIGURATION, SMALL]);
    lab.ok(host, &arguments);
    eventually("nginx answers", STARTS, || {
        lab.podctl(host, &["exec", name, "--", "wget", "-qO-", "http://127.0.0.1/small"]).out.contains(SMALL)
    });
}

/// Downloads at `rate` bytes a second until told to finish, then as fast as possible.
#[must_use]
pub fn download(lab: &impl Hosts, address: &str, path: &str, rate: u64) -> Client {
    let (address, rate) = (format!("{address}:80"), rate.to_string());
    Client::start(lab, "web", &["get", &address, path, &rate])
}

/// Asks for the small page over connections that must last, until told to finish.
#[must_use]
pub fn ask(lab: &impl Hosts, address: &str, connections: u32) -> Client {
    let (address, connections) = (format!("{address}:80"), connections.to_string());
    Client::start(lab, "web", &["ask", &address, "/small", &format!("{SMALL}\n"), &connections])
}

/// Asks for the small page over one new connection after the other, until told to finish.
#[must_use]
pub fn knock(lab: &impl Hosts, address: &str) -> Client {
    Client::start(lab, "web", &["knock", &format!("{address}:80"), "/small", &format!("{SMALL}\n")])
}
