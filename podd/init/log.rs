//! The pod's log: two files in CRI format, together never larger than asked for (but for one record).
//!
//! The application must not stall or die because the disk is full: what cannot be written is dropped and counted, and
//! the count is logged as soon as there is room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::lines::Stream;
use crate::{sys, time};

/// Writes once this much has gathered.
const BATCH: usize = 32 * 1024;

/// The log files and what waits to be written.
pub struct Log {
    path: PathBuf,
    /// Bytes in each of the two files.
    limit: u64,
    /// None after a failure to open it: tried again with each batch.
    file: Option<File>,
    size: u64,
    batch: Vec<u8>,
    batch_lines: u64,
    dropped: u64,
}

impl Log {
    /// Continues `dir/log`, or begins it.
    pub fn open(dir: &Path, log_bytes: u64) -> Log {
        let path = dir.join("log");
        let mut log =
            Log { path, limit: log_bytes / 2, file: None, size: 0, batch: Vec::new(), batch_lines: 0, dropped: 0 };
        log.reopen();
        log
    }

    /// Adds a record: a whole line, or a part of one.
    pub fn line(&mut self, now: SystemTime, stream: Stream, whole: bool, text: &[u8]) {
        let record = record(now, stream, whole, text);
        if self.size + (self.batch.len() + record.len()) as u64 > self.limit {
            self.flush(now);
            if self.size + record.len() as u64 > self.limit {
                self.rotate();
            }
        }
        self.batch.extend_from_slice(&record);
        self.batch_lines += 1;
        if self.batch.len() >= BATCH {
            self.flush(now);
        }
    }

    /// Adds a line of init's own.
    pub fn note(&mut self, now: SystemTime, text: &str) {
        self.line(now, Stream::Stderr, true, format!("podd: {text}").as_bytes());
    }

    /// Lines were dropped, and the log does not say so yet.
    pub fn has_dropped(&self) -> bool {
        self.dropped > 0
    }

    /// Writes what has gathered.
    pub fn flush(&mut self, now: SystemTime) {
        if self.limit == 0 {
            self.batch.clear();
            return;
        }
        if self.batch.is_empty() && self.dropped == 0 {
            return;
        }
        let mut bytes = Vec::new();
        if self.dropped > 0 {
            let text = format!("podd: {} log lines were dropped: the log could not be written", self.dropped);
            bytes = record(now, Stream::Stderr, true, text.as_bytes());
        }
        // Together: a full disk often has room for the note alone, again and again.
        bytes.extend_from_slice(&self.batch);
        match self.write(&bytes) {
            Ok(()) => self.dropped = 0,
            Err(_) => self.dropped += self.batch_lines,
        }
        self.batch.clear();
        self.batch_lines = 0;
    }

    /// All or nothing: half a record would garble the next one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen();
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let result = file.write_all(bytes);
        match result {
            Ok(()) => self.size += bytes.len() as u64,
            Err(_) => file.set_len(self.size)?,
        }
        result
    }

    fn rotate(&mut self) {
        if self.size == 0 {
            return;
        }
        match fs::rename(&self.path, self.path.with_extension("1")) {
            Ok(()) => {
                self.file = None;
                self.reopen();
            }
            // Without a second file the bound still holds.
            Err(_) => {
                if self.file.as_ref().is_some_and(|file| file.set_len(0).is_ok()) {
                    self.size = 0;
                }
            }
        }
    }

    fn reopen(&mut self) {
        // The pod's root may put anything in the way: follow no link, wait for no fifo's reader.
        let flags = sys::O_NOFOLLOW | sys::O_NONBLOCK;
        self.file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    }
}

fn record(now: SystemTime, stream: Stream, whole: bool, text: &[u8]) -> Vec<u8> {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if whole { 'F' } else { 'P' };
    let mut record = format!("{} {stream} {tag} ", time::format(now)).into_bytes();
    record.extend_from_slice(text);
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::{Lines, MAX_TEXT};
    use std::time::{Duration, UNIX_EPOCH};

    const NOW: SystemTime = UNIX_EPOCH;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("init-log-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("folder");
            Folder(path)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap_or_default()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks() {
        let folder = Folder::new("chunks");
        let text = "first\n\nthird with ü\nlast";
        for size in 1..text.len() {
            let mut log = Log::open(&folder.0, 1 << 20);
            let mut lines = Lines::new(Stream::Stdout);
            let now = UNIX_EPOCH + Duration::from_nanos(1);
            text.as_bytes().chunks(size).for_each(|chunk| lines.push(chunk, now, &mut log));
            lines.finish(now, &mut log);
            log.flush(now);
            let stamp = "1970-01-01T00:00:00.000000001Z stdout F";
            let expected = format!("{stamp} first\n{stamp} \n{stamp} third with ü\n{stamp} last\n");
            assert_eq!(folder.read("log"), expected, "chunks of {size}");
            fs::remove_file(folder.0.join("log")).expect("remove");
        }
    }

    #[test]
    fn long_lines_go_in_parts_that_split_no_character() {
        let folder = Folder::new("long");
        let mut log = Log::open(&folder.0, 1 << 20);
        let mut lines = Lines::new(Stream::Stderr);
        let text = "a".to_string() + &"€".repeat(MAX_TEXT);
        lines.push(text.as_bytes(), NOW, &mut log);
        lines.push(b"\n", NOW, &mut log);
        log.flush(NOW);
        let content = folder.read("log");
        let mut joined = String::new();
        let count = content.lines().count();
        for (number, line) in content.lines().enumerate() {
            assert!(line.len() < 16 * 1024);
            let tag = if number + 1 == count { " stderr F " } else { " stderr P " };
            joined += line.split_once(tag).expect(tag).1;
        }
        assert_eq!(joined, text);
        assert_eq!(count, text.len().div_ceil(MAX_TEXT));
    }

    #[test]
    fn two_files_hold_the_newest_lines_within_the_bound() {
        let folder = Folder::new("rotation");
        let mut log = Log::open(&folder.0, 10_000);
        for number in 0..1000 {
            log.line(NOW, Stream::Stdout, true, format!("line {number}").as_bytes());
        }
        log.flush(NOW);
        let (old, new) = (folder.read("log.1"), folder.read("log"));
        assert!(old.len() <= 5000 && new.len() <= 5000, "{} {}", old.len(), new.len());
        assert!(old.len() > 4900, "{}", old.len());
        let numbers: Vec<u32> = (old + &new)
            .lines()
            .map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("number"))
            .collect();
        assert_eq!(numbers.last(), Some(&999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn a_restarted_pod_continues_its_log() {
        let folder = Folder::new("continue");
        for text in ["one", "two"] {
            let mut log = Log::open(&folder.0, 1000);
            log.line(NOW, Stream::Stdout, true, text.as_bytes());
            log.flush(NOW);
        }
        assert_eq!(folder.read("log").lines().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_later() {
        let folder = Folder::new("dropped");
        fs::create_dir(folder.0.join("log")).expect("in the way");
        let mut log = Log::open(&folder.0, 1 << 20);
        for _ in 0..3 {
            log.line(NOW, Stream::Stdout, true, b"lost");
        }
        log.flush(NOW);
        assert!(log.has_dropped());
        fs::remove_dir(folder.0.join("log")).expect("out of the way");
        log.flush(NOW);
        assert!(!log.has_dropped());
        assert!(folder.read("log").contains("stderr F podd: 3 log lines were dropped"), "{}", folder.read("log"));
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let folder = Folder::new("link");
        std::os::unix::fs::symlink(folder.0.join("target"), folder.0.join("log")).expect("link");
        let mut log = Log::open(&folder.0, 1 << 20);
        log.line(NOW, Stream::Stdout, true, b"lost");
        log.flush(NOW);
        assert!(log.has_dropped());
        assert!(!folder.0.join("target").exists());
    }

    #[test]
    fn no_log_is_kept_if_none_is_wanted() {
        let folder = Folder::new("none");
        let mut log = Log::open(&folder.0, 0);
        log.line(NOW, Stream::Stdout, true, b"x");
        log.flush(NOW);
        assert_eq!(folder.read("log"), "");
    }
}
