//! What a pod's command has printed. The files are the pod's own, in its writable layer: nothing in them is trusted,
//! and no link in there is followed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use crate::api::{ExitStatus, LogLine};

/// Opens a plain file below the pod's writable layer; none if it is absent or anything else.
fn open_plain(upper: &Path, name: &str) -> Option<File> {
    let root = File::open(upper).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = File::from(rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// The beginning of a plain file below the pod's writable layer, as text; none if there is no such file.
#[must_use]
pub fn read_plain(upper: &Path, name: &str, most: u64) -> Option<String> {
    let mut text = Vec::new();
    open_plain(upper, name)?.take(most).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// What the pod's init wrote when the command ended.
#[must_use]
pub fn exit_file(upper: &Path, oom: bool) -> Option<ExitStatus> {
    #[derive(Deserialize)]
    struct Exit {
        code: i32,
        signal: Option<i32>,
    }
    let exit: Exit = serde_json::from_str(&read_plain(upper, ".podd/exit", 1024)?).ok()?;
    Some(ExitStatus { code: exit.code & 0xff, signal: exit.signal, oom })
}

/// What podd itself has to say to whoever follows a log.
#[must_use]
pub fn word_of_podd(text: String) -> LogLine {
    LogLine { time: jiff::Timestamp::now().to_string(), stream: "podd".to_owned(), text }
}

/// A reader of a pod's log that can go on where it stopped, across rotation.
pub struct Log {
    upper: std::path::PathBuf,
    file: Option<File>,
    inode: u64,
    partial: Vec<u8>,
    /// Beginnings of lines that the pod's init has written in parts.
    begun: Vec<LogLine>,
}

/// A line longer than this is shown in parts.
const LONGEST: usize = 1 << 20;

impl Log {
    /// The log of the pod with this writable layer, from its beginning.
    #[must_use]
    pub fn new(upper: &Path) -> Self {
        Self { upper: upper.to_owned(), file: None, inode: 0, partial: Vec::new(), begun: Vec::new() }
    }

    /// All complete lines that have come since the last call.
    pub fn read(&mut self) -> Vec<LogLine> {
        use std::os::unix::fs::MetadataExt;
        let mut lines = Vec::new();
        if self.file.is_none() {
            if let Some(mut old) = open_plain(&self.upper, ".podd/log.1") {
                self.take(&mut old, &mut lines);
            }
        } else if let Some(mut now) = self.file.take() {
            self.take(&mut now, &mut lines);
            self.file = Some(now);
        }
        // A new inode: the file we held was rotated away, and its rest has just been read.
        if let Some(mut current) = open_plain(&self.upper, ".podd/log") {
            let inode = current.metadata().map_or(0, |m| m.ino());
            if inode != self.inode || self.file.is_none() {
                self.take(&mut current, &mut lines);
                self.inode = inode;
                self.file = Some(current);
            }
        }
        lines
    }

    fn take(&mut self, file: &mut File, lines: &mut Vec<LogLine>) {
        let mut bytes = std::mem::take(&mut self.partial);
        // Bounded by the log's own limit; a pod that grew it by hand gets no more than this from us at a time.
        let _ = file.take(64 << 20).read_to_end(&mut bytes);
        let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        self.partial = bytes.split_off(end);
        for record in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let (part, whole) = parse(record);
            lines.extend(self.joined(part, whole));
        }
    }

    /// The whole line, once its last part is there.
    fn joined(&mut self, part: LogLine, whole: bool) -> Option<LogLine> {
        let at = self.begun.iter().position(|b| b.stream == part.stream);
        let line = match at.map(|at| self.begun.swap_remove(at)) {
            Some(mut begun) => {
                begun.text.push_str(&part.text);
                begun
            }
            None => part,
        };
        if whole || line.text.len() > LONGEST {
            return Some(line);
        }
        self.begun.push(line);
        None
    }
}

/// A record in the Kubernetes CRI log format, `TIME STREAM F|P TEXT`, and whether it ends its line.
fn parse(record: &[u8]) -> (LogLine, bool) {
    let record = String::from_utf8_lossy(record);
    let mut fields = record.splitn(4, ' ');
    match (fields.next(), fields.next(), fields.next(), fields.next()) {
        (Some(time), Some(stream @ ("stdout" | "stderr")), Some(tag @ ("F" | "P")), Some(text)) => {
            (LogLine { time: time.to_owned(), stream: stream.to_owned(), text: text.to_owned() }, tag == "F")
        }
        _ => (LogLine { time: String::new(), stream: "stdout".into(), text: record.into_owned() }, true),
    }
}
