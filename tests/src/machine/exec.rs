//! Commands in a machine, with input, output, errors and exit code kept apart.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::frames::{self, ERRORS, EXIT, INPUT, LONGEST, OUTPUT, REQUEST, Request};
use super::lan::Lan;

/// Runs a command in the machine with this control address; its exit code.
///
/// # Errors
/// The machine cannot be reached within `patience`, or the connection breaks before the command's end.
pub fn run(
    lan: &Lan,
    number: u8,
    patience: Duration,
    command: &[&str],
    mut input: impl Read + Send + 'static,
    mut out: impl Write,
    mut err: impl Write,
) -> io::Result<i32> {
    let mut stream = connect(lan, number, patience)?;
    let request = Request { command: command.iter().map(|&word| word.to_owned()).collect() };
    frames::write(&mut stream, REQUEST, &serde_json::to_vec(&request)?)?;
    let mut sender = stream.try_clone()?;
    // Not waited for: the command may end without reading its input.
    thread::spawn(move || {
        let sent = frames::pump(&mut input, |data| frames::write(&mut sender, INPUT, data));
        sent.and_then(|()| frames::write(&mut sender, INPUT, b""))
    });
    loop {
        match frames::read(&mut stream)? {
            Some((OUTPUT, data)) => out.write_all(&data).and_then(|()| out.flush())?,
            Some((ERRORS, data)) => err.write_all(&data).and_then(|()| err.flush())?,
            Some((EXIT, code)) => {
                let code: [u8; 4] = code.try_into().map_err(|_| io::Error::other("no exit code"))?;
                return Ok(i32::from_be_bytes(code));
            }
            Some((kind, _)) => return Err(io::Error::other(format!("a frame of kind {kind}"))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A socket belongs to the network namespace it was made in, whoever uses it later.
fn connect(lan: &Lan, number: u8, patience: Duration) -> io::Result<TcpStream> {
    const _: () = assert!(LONGEST > 64 * 1024, "pump sends frames of up to 64 KiB");
    let address = SocketAddr::from((Lan::control(number), frames::PORT));
    let stream = lan.inside(move || TcpStream::connect_timeout(&address, patience))??;
    stream.set_nodelay(true)?;
    // A machine that loses its power says nothing: whoever waits for it hears so after about 15 s.
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &5)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &5)?;
    Ok(stream)
}
