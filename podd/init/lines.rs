//! Cuts a stream of bytes into lines.

use std::time::SystemTime;

use crate::log::Log;

/// Longest text of one record: with its timestamp and tags a record stays below 16 KiB.
pub const MAX_TEXT: usize = 16 * 1024 - 64;

/// One of the application's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that are no complete line yet.
pub struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    /// An empty stream.
    pub fn new(stream: Stream) -> Lines {
        Lines { stream, pending: Vec::new() }
    }

    /// Logs what is complete; a line that is too long goes in parts.
    pub fn push(&mut self, bytes: &[u8], now: SystemTime, log: &mut Log) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let window = &rest[..rest.len().min(MAX_TEXT + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                log.line(now, self.stream, true, &rest[..end]);
                rest = &rest[end + 1..];
            } else if window.len() > MAX_TEXT {
                let part = character_boundary(rest, MAX_TEXT);
                log.line(now, self.stream, false, &rest[..part]);
                rest = &rest[part..];
            } else {
                break;
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    /// Logs what is left at the end of the stream.
    pub fn finish(&mut self, now: SystemTime, log: &mut Log) {
        if !self.pending.is_empty() {
            log.line(now, self.stream, true, &self.pending);
            self.pending = Vec::new();
        }
    }
}

/// The last place at or before `at` that does not split a UTF-8 character (text that is not UTF-8 is cut anywhere).
fn character_boundary(text: &[u8], at: usize) -> usize {
    let continues = |index: &usize| text[*index] & 0b1100_0000 == 0b1000_0000;
    (at - 3..=at).rev().find(|index| !continues(index)).unwrap_or(at)
}
