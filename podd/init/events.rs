//! What podd is going to do with the pod, told to the application: `/run/podd/events.json`, which podd writes, and a socket
//! beside it, over which any process of the pod may answer. `/run/podd` is a link: whoever clears /run must not take away the
//! folder to which the socket is bound, as it could not be restored then.
//!
//! The socket speaks HTTP/1.1, one request a connection (`curl --unix-socket /run/podd/events.sock http://podd/events`):
//!
//! ```text
//! GET /events                            the file
//! POST /events/ID/acknowledge            go ahead: the pod is ready
//! POST /events/ID/delay?seconds=N        not before N seconds more
//! ```
//!
//! Answers are notes for podd, `ID ack` and `ID delay N` in `/.podd/answers`; what it makes of them, the file shows.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::sys;

/// Where applications look.
const LINK: &str = "/run/podd";
/// Where that leads, from init's own folder.
const FOLDER: &str = "events";
/// Connections that are listened to at once; for another one, the oldest has to go.
pub const CONNECTIONS: usize = 8;
/// Longest request in bytes, and longest file of events.
const LONGEST: usize = 8 * 1024;
const LONGEST_FILE: u64 = 64 * 1024;
/// Answers to one event that are kept.
const ANSWERS: usize = 64;
/// Until podd has something to say.
const NOTHING: &str = "{\"incarnation\":0,\"events\":[]}\n";

/// The socket and who is connected.
pub struct Events {
    listener: UnixListener,
    connections: Vec<Connection>,
    file: PathBuf,
    answers: PathBuf,
}

struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
}

impl Events {
    /// Listens, and shows it where applications look.
    pub fn open(own: &Path) -> io::Result<Events> {
        let events = Events::listen(own)?;
        // Applications are other users.
        for (folder, mode) in [(own.to_owned(), 0o711), (own.join(FOLDER), 0o755)] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
        }
        fs::create_dir_all("/run")?;
        match std::os::unix::fs::symlink(own.join(FOLDER), LINK) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(events),
        }
    }

    /// Listens in a folder of `own`; notes for podd go to `own` itself.
    fn listen(own: &Path) -> io::Result<Events> {
        let folder = own.join(FOLDER);
        let (file, socket) = (folder.join("events.json"), folder.join("events.sock"));
        fs::create_dir_all(folder)?;
        // Of an earlier run.
        let _ = fs::remove_file(&socket);
        if !file.exists() {
            fs::write(&file, NOTHING)?;
        }
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        Ok(Events { listener, connections: Vec::new(), file, answers: own.join("answers") })
    }

    /// What to wait for: new connections, and requests.
    pub fn descriptors(&self) -> [Option<i32>; CONNECTIONS + 1] {
        let mut all = [None; CONNECTIONS + 1];
        all[0] = Some(self.listener.as_raw_fd());
        for (place, connection) in all[1..].iter_mut().zip(&self.connections) {
            *place = Some(connection.stream.as_raw_fd());
        }
        all
    }

    /// Goes on where something can be read.
    pub fn serve(&mut self, ready: [bool; CONNECTIONS + 1]) {
        let mut waiting = Vec::new();
        for (mut connection, ready) in self.connections.drain(..).zip(&ready[1..]) {
            if !ready {
                waiting.push(connection);
                continue;
            }
            match connection.read() {
                Ok(Some(request)) => connection.answer(&answer(&request, &self.file, &self.answers)),
                Ok(None) => waiting.push(connection),
                Err(_) => {}
            }
        }
        if ready[0]
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            if waiting.len() == CONNECTIONS {
                waiting.remove(0);
            }
            waiting.push(Connection { stream, request: Vec::new() });
        }
        self.connections = waiting;
    }
}

impl Connection {
    /// Reads what is there; the request's first line once the whole request has come.
    fn read(&mut self) -> io::Result<Option<String>> {
        let mut buffer = [0; 2048];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        self.request.extend_from_slice(&buffer[..length]);
        let Some(head) = self.request.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.request.len() > LONGEST { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
        };
        let text = String::from_utf8_lossy(&self.request[..head]).into_owned();
        // A body says nothing here, but must be read: the client would see a broken connection.
        let body = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
        });
        let body = body.unwrap_or(0);
        if body > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let whole = self.request.len() >= head + 4 + body;
        Ok(whole.then(|| text.lines().next().unwrap_or_default().to_string()))
    }

    /// Short enough for the socket's buffer; whoever does not read it gets part of it.
    fn answer(self, (status, text): &(&str, String)) {
        let length = text.len();
        let head = "Content-Type: application/json\r\nConnection: close";
        let answer = format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{text}");
        sys::say(self.stream.as_fd(), answer.as_bytes());
    }
}

fn answer(request: &str, file: &Path, answers: &Path) -> (&'static str, String) {
    let told = told(file);
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let note = match (method, parts.as_slice()) {
        ("GET", ["" | "events"]) => return ("200 OK", told),
        ("POST", ["events", id, "acknowledge"]) if is_known(id, &told) => format!("{id} ack"),
        ("POST", ["events", id, "delay"]) if is_known(id, &told) => {
            let seconds = query.split('&').find_map(|part| part.strip_prefix("seconds=")?.parse::<u32>().ok());
            match seconds {
                Some(seconds) => format!("{id} delay {seconds}"),
                None => return wrong("400 Bad Request", "add ?seconds=N, how much more time the pod needs"),
            }
        }
        ("POST", ["events", _, "acknowledge" | "delay"]) => {
            return wrong("404 Not Found", "there is no such event (any more): GET /events lists them");
        }
        _ => return wrong("404 Not Found", "there are GET /events, POST /events/ID/acknowledge and /events/ID/delay"),
    };
    match add(&note, &told, answers) {
        Ok(()) => ("202 Accepted", "{\"accepted\":true}\n".to_string()),
        Err(error) => wrong("503 Service Unavailable", &format!("the answer cannot be noted: {error}")),
    }
}

fn wrong(status: &'static str, text: &str) -> (&'static str, String) {
    (status, format!("{{\"error\":\"{}\"}}\n", text.replace(['"', '\\'], "'")))
}

/// The file as podd wrote it.
fn told(file: &Path) -> String {
    let mut text = String::new();
    match fs::File::open(file).and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text)) {
        Ok(_) => text,
        Err(_) => NOTHING.to_string(),
    }
}

/// podd writes JSON without spaces, and identifiers of letters and digits.
fn is_known(id: &str, told: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) && told.contains(&format!("\"id\":\"{id}\""))
}

/// Adds a note, and forgets those on events that are over. Whole or not at all.
fn add(note: &str, told: &str, answers: &Path) -> io::Result<()> {
    let before = fs::read_to_string(answers).unwrap_or_default();
    let known = |line: &&str| line.split(' ').next().is_some_and(|id| is_known(id, told));
    let mut notes: Vec<&str> = before.lines().filter(known).collect();
    if notes.len() >= ANSWERS {
        return Err(io::Error::other("there are too many already"));
    }
    notes.push(note);
    let new = answers.with_extension("new");
    fs::write(&new, notes.join("\n") + "\n")?;
    fs::rename(new, answers)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TOLD: &str = "{\"incarnation\":1,\"events\":[{\"id\":\"a1\",\"kind\":\"move\"}]}\n";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("init-events-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ask(events: &mut Events, socket: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(socket).expect("it listens");
        stream.set_nonblocking(true).expect("a socket");
        // In two parts, as they may come.
        let (first, second) = request.split_at(request.len() / 2);
        stream.write_all(first).expect("sent");
        (0..3).for_each(|_| events.serve([true; CONNECTIONS + 1]));
        stream.write_all(second).expect("sent");
        (0..3).for_each(|_| events.serve([true; CONNECTIONS + 1]));
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    }

    #[test]
    fn whoever_asks_is_told_and_answers_are_noted() {
        let folder = Folder::new("asks");
        let mut events = Events::listen(&folder.0).expect("it listens");
        let socket = folder.0.join("events/events.sock");
        let get = b"GET /events HTTP/1.1\r\nHost: podd\r\n\r\n";
        assert!(ask(&mut events, &socket, get).ends_with(&format!("\r\n\r\n{NOTHING}")));
        fs::write(folder.0.join("events/events.json"), TOLD).expect("podd writes");
        assert!(ask(&mut events, &socket, get).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(ask(&mut events, &socket, get).ends_with(TOLD));
        for (target, status) in [
            ("/events/a1/delay?seconds=30", "202"),
            ("/events/a1/acknowledge", "202"),
            ("/events/a2/acknowledge", "404"),
            ("/events/id/acknowledge", "404"),
            ("/events/a1/delay?seconds=-1", "400"),
            ("/events/a1/delay", "400"),
            ("/events/../a1/acknowledge", "404"),
        ] {
            let request = format!("POST {target} HTTP/1.1\r\ncontent-length: 2\r\n\r\n{{}}");
            let said = ask(&mut events, &socket, request.as_bytes());
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {said}");
        }
        let noted = || fs::read_to_string(folder.0.join("answers")).expect("notes");
        assert_eq!(noted(), "a1 delay 30\na1 ack\n");
        fs::write(folder.0.join("events/events.json"), TOLD.replace("a1", "b2")).expect("podd writes");
        ask(&mut events, &socket, b"POST /events/b2/acknowledge HTTP/1.1\r\n\r\n");
        assert_eq!(noted(), "b2 ack\n", "what is over is forgotten");
    }

    #[test]
    fn nobody_can_keep_others_from_being_heard() {
        let folder = Folder::new("many");
        let mut events = Events::listen(&folder.0).expect("it listens");
        let socket = folder.0.join("events/events.sock");
        let idle: Vec<_> = (0..30)
            .map(|_| {
                let stream = UnixStream::connect(&socket).expect("it listens");
                events.serve([true, false, false, false, false, false, false, false, false]);
                stream
            })
            .collect();
        assert_eq!(events.connections.len(), CONNECTIONS);
        let mut long = UnixStream::connect(&socket).expect("it listens");
        long.write_all(&[b'x'; LONGEST + 2048]).expect("sent");
        (0..8).for_each(|_| events.serve([true; CONNECTIONS + 1]));
        assert!(ask(&mut events, &socket, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        drop(idle);
        (0..2).for_each(|_| events.serve([true; CONNECTIONS + 1]));
        assert!(events.connections.len() <= 1, "who has gone is forgotten");
        fs::write(folder.0.join("events/events.json"), TOLD).expect("podd writes");
        let post = b"POST /events/a1/delay?seconds=1 HTTP/1.1\r\n\r\n";
        let said: Vec<String> = (0..=ANSWERS).map(|_| ask(&mut events, &socket, post)).collect();
        assert!(said[ANSWERS - 1].starts_with("HTTP/1.1 202") && said[ANSWERS].starts_with("HTTP/1.1 503"));
    }
}
