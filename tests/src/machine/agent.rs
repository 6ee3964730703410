//! The agent in a machine: runs commands as root for whoever reaches its port, which only the lab's network can.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::frames::{self, ERRORS, EXIT, INPUT, OUTPUT, REQUEST, Request};

/// How long output is waited for after a command's end: what it left running in the background may keep it open.
const LINGER: Duration = Duration::from_millis(500);

/// Serves for ever.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(address: &str) -> io::Result<()> {
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        // A connection that breaks ends its command and nothing else.
        thread::spawn(move || session(stream));
    }
    Ok(())
}

fn session(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some((REQUEST, request)) = frames::read(&mut stream)? else { return Ok(()) };
    let request: Request = serde_json::from_slice(&request)?;
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let send = |kind: u8, data: &[u8]| frames::write(&mut *writer.lock().expect("no sender panics"), kind, data);
    let mut child = match spawn(&request.command) {
        Ok(child) => child,
        Err(e) => {
            send(ERRORS, format!("cannot run {:?}: {e}\n", request.command).as_bytes())?;
            let code: i32 = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            return send(EXIT, &code.to_be_bytes());
        }
    };
    let group = Pid::from_raw(child.id().cast_signed());
    let ended = Arc::new(AtomicBool::new(false));
    let (done, drained) = channel();
    pump(child.stdout.take(), OUTPUT, &writer, done.clone());
    pump(child.stderr.take(), ERRORS, &writer, done);
    let mut input = child.stdin.take();
    let over = Arc::clone(&ended);
    thread::spawn(move || {
        while let Ok(Some((INPUT, data))) = frames::read(&mut stream) {
            // A command that reads no further gets no more.
            let unread = input.as_mut().is_some_and(|pipe| pipe.write_all(&data).is_err());
            if unread || data.is_empty() {
                input = None;
            }
        }
        // Whoever asked has gone: nobody waits for this command any more.
        if !over.load(Ordering::SeqCst) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    });
    let status = child.wait()?;
    ended.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let _ = drained.recv_timeout(LINGER);
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    send(EXIT, &code.to_be_bytes())?;
    writer.lock().expect("no sender panics").shutdown(Shutdown::Both)
}

fn spawn(command: &[String]) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn pump(from: Option<impl io::Read + Send + 'static>, kind: u8, to: &Arc<Mutex<TcpStream>>, done: Sender<()>) {
    let to = Arc::clone(to);
    thread::spawn(move || {
        if let Some(mut from) = from {
            let send = |data: &[u8]| frames::write(&mut *to.lock().expect("no sender panics"), kind, data);
            let _ = frames::pump(&mut from, send);
        }
        let _ = done.send(());
    });
}
