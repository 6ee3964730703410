//! The one way in which facts about a host are read: its files, its folders, and what a few of its programs say.
//!
//! [`ThisHost`] reads the running one. [`Recorder`] does, too, and keeps all that was asked for; a [`Recording`] answers from
//! that, so that what was a host's state one day can be judged again in tests, whatever the host is today.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// No program gets longer, in seconds.
const PATIENCE: &str = "60";
/// Of a program's output, and of a file's lines: bytes.
const MOST: u64 = 8 << 20;
/// Where apt keeps what it has read, unless it is told not to.
const APT_CACHE: &str = "/var/cache/apt/pkgcache.bin";

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Its exit code; 127 if there is no such program.
    pub code: i32,
    /// Standard output.
    pub out: String,
}

/// A host whose facts can be read. Nothing is ever changed by it.
pub trait Reader: Sync {
    /// Wall time.
    fn now(&self) -> Timestamp;
    /// Whether the kernel's clock is kept by a time service (`STA_UNSYNC`, adjtimex(2)).
    fn is_synchronized(&self) -> Option<bool>;
    /// The first so many bytes of a file.
    ///
    /// # Errors
    /// I/O errors.
    fn head(&self, path: &str, limit: u64) -> io::Result<String>;
    /// Lines of a file that contain this.
    ///
    /// # Errors
    /// I/O errors.
    fn lines_with(&self, path: &str, part: &str) -> io::Result<Vec<String>>;
    /// Names in a folder, in order.
    ///
    /// # Errors
    /// I/O errors.
    fn names(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// I/O errors.
    fn link(&self, path: &str) -> io::Result<String>;
    /// Runs a program that only tells, in the C locale.
    ///
    /// # Errors
    /// It cannot be run at all.
    fn run(&self, command: &[&str]) -> io::Result<Said>;
}

/// A short file without the white space around it.
///
/// # Errors
/// I/O errors.
pub fn word(reader: &dyn Reader, path: &str) -> io::Result<String> {
    Ok(reader.head(path, 4096)?.trim().to_owned())
}

/// The running host.
#[derive(Debug, Default)]
pub struct ThisHost {
    /// Where apt keeps what it has read, as long as this lives: without, each question takes it a second.
    apt: OnceLock<Option<TempDir>>,
}

impl ThisHost {
    /// Options for a program of apt's. Where apt keeps its own file (apt.conf(5), `Dir::Cache::pkgcache`; container images do
    /// not), there are none.
    fn apt_options(&self) -> Vec<String> {
        let own = || (!Path::new(APT_CACHE).exists()).then(|| tempfile::tempdir().ok()).flatten();
        let path = |folder: &TempDir| format!("Dir::Cache::pkgcache={}", folder.path().join("pkgcache.bin").display());
        let set = self.apt.get_or_init(own).as_ref().map(path);
        set.map(|set| vec!["-o".to_owned(), set]).unwrap_or_default()
    }
}

impl Reader for ThisHost {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn is_synchronized(&self) -> Option<bool> {
        crate::sys::clock::is_synchronized()
    }

    fn head(&self, path: &str, limit: u64) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn lines_with(&self, path: &str, part: &str) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut left = BufReader::new(File::open(path)?.take(MOST));
        let mut line = Vec::new();
        while left.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            if text.contains(part) {
                found.push(text.trim_end().to_owned());
            }
            line.clear();
        }
        Ok(found)
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_link(path)?.to_string_lossy().into_owned())
    }

    fn run(&self, command: &[&str]) -> io::Result<Said> {
        // coreutils' timeout ends it; what it says beyond the limit ends it, too, by a closed pipe.
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let options = if program.starts_with("apt-") { self.apt_options() } else { Vec::new() };
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", PATIENCE, program])
            .args(options)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut out = Vec::new();
        let read = child.stdout.take().map_or(Ok(0), |stdout| stdout.take(MOST).read_to_end(&mut out));
        let status = child.wait()?;
        read?;
        Ok(Said { code: status.code().unwrap_or(128), out: String::from_utf8_lossy(&out).into_owned() })
    }
}

/// What was read of a host at one moment. Whatever is not in it was not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    /// What it is of, for people.
    pub about: String,
    /// Wall time of that host.
    pub now: Timestamp,
    /// See [`Reader::is_synchronized`].
    pub synchronized: Option<bool>,
    /// Beginnings of files.
    pub files: BTreeMap<String, String>,
    /// Lines of files that contained something.
    pub lines: BTreeMap<String, Vec<String>>,
    /// Folders.
    pub folders: BTreeMap<String, Vec<String>>,
    /// Symbolic links.
    pub links: BTreeMap<String, String>,
    /// Programs, by their words.
    pub commands: BTreeMap<String, Said>,
}

impl Reader for Recording {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn is_synchronized(&self) -> Option<bool> {
        self.synchronized
    }

    fn head(&self, path: &str, _limit: u64) -> io::Result<String> {
        found(&self.files, path)
    }

    fn lines_with(&self, path: &str, _part: &str) -> io::Result<Vec<String>> {
        found(&self.lines, path)
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        found(&self.folders, folder)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        found(&self.links, path)
    }

    fn run(&self, command: &[&str]) -> io::Result<Said> {
        let nothing = Said { code: 127, out: String::new() };
        Ok(self.commands.get(&command.join(" ")).cloned().unwrap_or(nothing))
    }
}

fn found<T: Clone>(kept: &BTreeMap<String, T>, key: &str) -> io::Result<T> {
    kept.get(key).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Reads the running host and keeps what it was asked for.
#[derive(Debug)]
pub struct Recorder(ThisHost, Mutex<Recording>);

impl Recorder {
    /// One that was asked for nothing yet.
    #[must_use]
    pub fn new(about: &str) -> Self {
        let host = ThisHost::default();
        let (now, synchronized) = (host.now(), host.is_synchronized());
        Self(host, Mutex::new(Recording { about: about.to_owned(), now, synchronized, ..Recording::default() }))
    }

    /// All that was read.
    #[must_use]
    pub fn finish(self) -> Recording {
        self.1.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep<T>(&self, answer: io::Result<T>, put: impl FnOnce(&mut Recording, &T)) -> io::Result<T> {
        answer.inspect(|answer| put(&mut self.1.lock().unwrap_or_else(PoisonError::into_inner), answer))
    }
}

impl Reader for Recorder {
    fn now(&self) -> Timestamp {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).now
    }

    fn is_synchronized(&self) -> Option<bool> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).synchronized
    }

    fn head(&self, path: &str, limit: u64) -> io::Result<String> {
        self.keep(self.0.head(path, limit), |kept, text| {
            kept.files.insert(path.to_owned(), text.clone());
        })
    }

    fn lines_with(&self, path: &str, part: &str) -> io::Result<Vec<String>> {
        self.keep(self.0.lines_with(path, part), |kept, lines| {
            kept.lines.insert(path.to_owned(), lines.clone());
        })
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        self.keep(self.0.names(folder), |kept, names| {
            kept.folders.insert(folder.to_owned(), names.clone());
        })
    }

    fn link(&self, path: &str) -> io::Result<String> {
        self.keep(self.0.link(path), |kept, to| {
            kept.links.insert(path.to_owned(), to.clone());
        })
    }

    fn run(&self, command: &[&str]) -> io::Result<Said> {
        self.keep(self.0.run(command), |kept, said| {
            kept.commands.insert(command.join(" "), said.clone());
        })
    }
}
