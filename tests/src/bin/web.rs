//! A client of a web server, which notices whatever a move of the server's pod did to its connections. It never
//! connects again where a connection should have lasted. Ends when its standard input does.
//!
//! ```text
//! web get IP:PORT PATH RATE               one download, RATE bytes a second; at full speed once standard input has ended
//! web ask IP:PORT PATH BODY CONNECTIONS   request after request over so many connections, which must last
//! web knock IP:PORT PATH BODY             request after request, each over a new connection
//! ```
//!
//! Prints what it saw as JSON. Exit code 2 for wrong arguments.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A server that is silent for this long will not come back.
const GIVE_UP: Duration = Duration::from_secs(60);
/// A slow reader takes something this often.
const TICK: Duration = Duration::from_millis(20);
/// Pause between two new connections: each leaves a port in TIME_WAIT for a minute.
const BETWEEN_NEW: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        // Whatever ends it, an error too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        told.store(true, Ordering::Release);
    });
    let report = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["get", address, path, rate] => get(address, path, rate, &over),
        ["ask", address, path, body, connections] => ask(address, path, body, connections, &over),
        ["knock", address, path, body] => knock(address, path, body, &over),
        _ => None,
    };
    match report {
        Some(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("web: get IP:PORT PATH RATE, ask IP:PORT PATH BODY CONNECTIONS, or knock IP:PORT PATH BODY");
            ExitCode::from(2)
        }
    }
}

fn get(address: &str, path: &str, rate: &str, hurry: &AtomicBool) -> Option<Value> {
    let (address, rate): (SocketAddr, u64) = (address.parse().ok()?, rate.parse().ok()?);
    let mut seen = (0, None);
    let mut hash = Sha256::new();
    let mut download = || -> io::Result<()> {
        let mut connection = Connection::open(address)?;
        let length = connection.request(path)?;
        let mut piece = vec![0; usize::try_from(rate / 50).unwrap_or(1).max(1)];
        while seen.0 < length {
            let wish = piece.len().min(usize::try_from(length - seen.0).unwrap_or(usize::MAX));
            connection.0.read_exact(&mut piece[..wish])?;
            hash.update(&piece[..wish]);
            seen.0 += wish as u64;
            if !hurry.load(Ordering::Acquire) {
                std::thread::sleep(TICK);
            } else if seen.1.is_none() {
                seen.1 = Some(seen.0);
            }
        }
        Ok(())
    };
    let error = download().err().map(|e| e.to_string());
    let sha256: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Some(json!({ "bytes": seen.0, "sha256": sha256, "leisurely": seen.1.unwrap_or(seen.0), "error": error }))
}

fn ask(address: &str, path: &str, body: &str, connections: &str, over: &AtomicBool) -> Option<Value> {
    let (address, connections): (SocketAddr, usize) = (address.parse().ok()?, connections.parse().ok()?);
    let answers: Vec<Answers> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| keep_asking(address, path, body, over))).collect();
        threads.into_iter().map(|t| t.join().expect("it does not panic")).collect()
    });
    Some(Answers::report(&answers))
}

fn knock(address: &str, path: &str, body: &str, over: &AtomicBool) -> Option<Value> {
    let address: SocketAddr = address.parse().ok()?;
    let mut answers = Answers::default();
    while !over.load(Ordering::Acquire) && answers.error.is_none() {
        let asked = Instant::now();
        match Connection::open(address).and_then(|mut c| c.expect(path, body)) {
            Ok(()) => answers.right += 1,
            Err(e) => answers.error = Some(e.to_string()),
        }
        answers.longest = answers.longest.max(asked.elapsed());
        std::thread::sleep(BETWEEN_NEW);
    }
    Some(Answers::report(&[answers]))
}

/// Over one connection.
fn keep_asking(address: SocketAddr, path: &str, body: &str, over: &AtomicBool) -> Answers {
    let mut answers = Answers::default();
    let mut work = || -> io::Result<()> {
        let mut connection = Connection::open(address)?;
        let mut before = Instant::now();
        while !over.load(Ordering::Acquire) {
            connection.expect(path, body)?;
            answers.right += 1;
            answers.longest = answers.longest.max(before.elapsed());
            before = Instant::now();
        }
        Ok(())
    };
    let error = work().err();
    Answers { error: error.map(|e| e.to_string()), ..answers }
}

#[derive(Default)]
struct Answers {
    right: u64,
    longest: Duration,
    error: Option<String>,
}

impl Answers {
    fn report(all: &[Self]) -> Value {
        json!({
            "right": all.iter().map(|a| a.right).sum::<u64>(),
            "longest_silence_ms": all.iter().map(|a| a.longest.as_secs_f64() * 1000.0).fold(0.0, f64::max),
            "errors": all.iter().filter_map(|a| a.error.as_ref()).collect::<Vec<_>>(),
        })
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, GIVE_UP)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GIVE_UP))?;
        stream.set_write_timeout(Some(GIVE_UP))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and reads the answer up to its body, whose length it returns.
    fn request(&mut self, path: &str) -> io::Result<u64> {
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n").as_bytes())?;
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut line = String::new();
        let mut length = None;
        self.0.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200 ") {
            return Err(wrong(&format!("the answer begins with {line:?}")));
        }
        while line != "\r\n" {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(wrong("the answer ends before its body"));
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        length.ok_or_else(|| wrong("the answer has no length"))
    }

    /// A request whose answer must have this body.
    fn expect(&mut self, path: &str, body: &str) -> io::Result<()> {
        let length = self.request(path)?;
        let mut got = vec![0; usize::try_from(length).unwrap_or(0).min(1 << 16)];
        self.0.read_exact(&mut got)?;
        if got == body.as_bytes() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer is {:?}", String::from_utf8_lossy(&got))))
    }
}
