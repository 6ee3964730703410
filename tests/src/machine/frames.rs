//! What `vm exec` and the agent in a machine say to each other over TCP: frames of a kind (1 byte), a length (4 bytes,
//! big-endian) and that many bytes. The first frame is the command line; then input one way, output the other.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// A command line, as JSON. Client to agent, first.
pub const REQUEST: u8 = 0;
/// Input. Nothing in it: the end.
pub const INPUT: u8 = 1;
/// Standard output.
pub const OUTPUT: u8 = 2;
/// Standard error.
pub const ERRORS: u8 = 3;
/// Exit code, 4 bytes; the last frame.
pub const EXIT: u8 = 4;
/// The agent's port.
pub const PORT: u16 = 7777;
/// Longest frame, bytes.
pub const LONGEST: usize = 1 << 20;

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Writes one frame.
///
/// # Errors
/// The stream's.
pub fn write(stream: &mut impl Write, kind: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(data.len() + 5);
    frame.push(kind);
    frame.extend(length.to_be_bytes());
    frame.extend(data);
    stream.write_all(&frame)
}

/// Reads one frame; none at the end of the stream.
///
/// # Errors
/// The stream's; a frame that is cut or too long.
pub fn read(stream: &mut impl Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    if stream.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..])?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data)?;
    Ok(Some((head[0], data)))
}

/// Passes what comes from a reader on as frames, until its end.
///
/// # Errors
/// The reader's or the sender's.
pub fn pump(from: &mut impl Read, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => send(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_nonsense_is_refused() {
        let mut wire = Vec::new();
        write(&mut wire, OUTPUT, b"hello").unwrap();
        write(&mut wire, INPUT, b"").unwrap();
        let mut reader = wire.as_slice();
        assert_eq!(read(&mut reader).unwrap(), Some((OUTPUT, b"hello".to_vec())));
        assert_eq!(read(&mut reader).unwrap(), Some((INPUT, Vec::new())));
        assert_eq!(read(&mut reader).unwrap(), None);
        assert!(read(&mut &wire[..7]).is_err(), "cut");
        assert!(read(&mut [OUTPUT, 255, 255, 255, 255].as_slice()).is_err(), "too long");
    }
}
