//! The only place that prints: results on stdout, as words or with `--json` as JSON; errors, notes and progress on
//! stderr.
//!
//! A reader that goes away (`podctl ls | head`) is no error: what was asked for is still done, the rest of the output
//! is dropped, and endless commands look at [`Output::gone`].

mod progress;
mod table;
pub mod words;

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use podd::api::ApiError;
use serde::Serialize;

pub use self::progress::ProgressLine;
pub use self::table::{printable, table};
use crate::error;

/// Where bytes of a pod's own output go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Output {
    json: bool,
    gone: Cell<bool>,
    broken: RefCell<Option<io::Error>>,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json, gone: Cell::new(false), broken: RefCell::new(None) }
    }

    /// `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Nobody reads stdout any more.
    pub fn gone(&self) -> bool {
        self.gone.get()
    }

    /// A result: `value` as JSON, or what `words` makes of it.
    pub fn show<T: Serialize + ?Sized>(&self, value: &T, words: impl FnOnce(&T) -> String) {
        if self.json { self.value(value) } else { self.text(&words(value)) }
    }

    /// JSON, indented.
    pub fn value<T: Serialize + ?Sized>(&self, value: &T) {
        self.serialized(serde_json::to_string_pretty(value));
    }

    /// JSON in one line, for streams of values.
    pub fn value_line<T: Serialize + ?Sized>(&self, value: &T) {
        self.serialized(serde_json::to_string(value));
    }

    /// Text, with a line end added unless it has one; nothing if empty.
    pub fn text(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.bytes(Stream::Stdout, format!("{text}{end}").as_bytes());
    }

    /// Bytes of a pod's own output, as they are.
    pub fn bytes(&self, stream: Stream, bytes: &[u8]) {
        let result = match stream {
            Stream::Stdout if self.gone() => return,
            Stream::Stdout => all(&mut io::stdout().lock(), bytes),
            Stream::Stderr => all(&mut io::stderr().lock(), bytes),
        };
        match (stream, result) {
            (_, Ok(())) => {}
            (Stream::Stdout, Err(error)) => {
                self.gone.set(true);
                if error.kind() != io::ErrorKind::BrokenPipe {
                    self.broken.replace(Some(error));
                }
            }
            // Nowhere left to complain.
            (Stream::Stderr, Err(_)) => {}
        }
    }

    /// Starts the picture anew if stdout is a terminal; else separates by an empty line.
    pub fn next_picture(&self) {
        let clear: &[u8] = if io::stdout().is_terminal() { b"\x1b[H\x1b[2J" } else { b"\n" };
        self.bytes(Stream::Stdout, clear);
    }

    /// A remark on stderr that is no part of the result.
    pub fn note(&self, text: &str) {
        self.bytes(Stream::Stderr, format!("{text}\n").as_bytes());
    }

    /// A failure on stderr: sentence and cure, or an `ApiError` as JSON.
    pub fn error(&self, error: &ApiError) {
        let text = match self.json {
            true => serde_json::to_string(error).unwrap_or_else(|_| error.message.clone()),
            false => sentence(error),
        };
        self.note(&text);
    }

    /// A line on stderr that shows how far a request about `what` is; invisible unless stderr is a terminal.
    pub fn progress(&self, what: &str) -> ProgressLine {
        ProgressLine::new(what, self.json)
    }

    /// The exit code, once all is printed.
    pub fn finish(&self, code: u8) -> ExitCode {
        let flushed = if self.gone() { Ok(()) } else { io::stdout().lock().flush() };
        let broken = self.broken.take().or(flushed.err().filter(|e| e.kind() != io::ErrorKind::BrokenPipe));
        match broken {
            Some(broken) => {
                self.error(&error::failed(format!("the result could not be written: {broken}"), None));
                ExitCode::from(if code == error::DONE { error::FAILED } else { code })
            }
            None => ExitCode::from(code),
        }
    }

    fn serialized(&self, text: serde_json::Result<String>) {
        match text {
            Ok(text) => self.text(&text),
            Err(error) => {
                self.broken.replace(Some(error.into()));
            }
        }
    }
}

fn all(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn sentence(error: &ApiError) -> String {
    let mut text = format!("podctl: {}", printable(&error.message));
    if let Some(cure) = &error.cure {
        text.push_str("\n  cure: ");
        text.push_str(&printable(cure));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_a_sentence_and_a_cure() {
        let error = error::failed("web does not start: no \x1b[31mmemory".to_owned(), Some("raise --memory"));
        assert_eq!(sentence(&error), "podctl: web does not start: no \u{fffd}[31mmemory\n  cure: raise --memory");
        assert_eq!(sentence(&error::failed("x".to_owned(), None)), "podctl: x");
    }
}
