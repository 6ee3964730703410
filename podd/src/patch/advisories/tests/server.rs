//! A small HTTP server on 127.0.0.1, one request per connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What it answers: the path and the headers in lower case, then the connection.
type Answer = Box<dyn Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send>;

pub struct Server {
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(answer: impl Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (a, r, s) = (answer.clone(), requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if s.load(Ordering::SeqCst) {
                    return;
                }
                let (path, headers) = request(&stream);
                r.lock().unwrap().push(format!("{path}\n{headers}"));
                // A client that has heard enough hangs up.
                let _ = a.lock().unwrap()(&path, &headers, &mut stream);
            }
        });
        Self { url, answer, requests, stop, thread: Some(thread) }
    }

    /// One that always answers with this content.
    pub fn with(content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref().to_vec();
        Self::new(move |_, _, stream| ok(stream, "", &content))
    }

    pub fn change(&self, answer: impl Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    pub fn last_request(&self) -> String {
        self.requests.lock().unwrap().last().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        let _ = self.thread.take().unwrap().join();
    }
}

/// Headers are whole lines.
pub fn ok(stream: &mut TcpStream, headers: &str, content: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", content.len())?;
    stream.write_all(content)
}

pub fn status(stream: &mut TcpStream, status: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

fn request(stream: &TcpStream) -> (String, String) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    (path, lines.map(|line| line.to_lowercase() + "\n").collect())
}
