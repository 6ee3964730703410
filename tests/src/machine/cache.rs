//! `~/.cache/podd/vm`: packages, root trees and disks, each under a name that its content determines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use super::{Failure, tools};

/// Free space that making kernels and a base takes at most, MiB.
const NEED_MIB: u64 = 3072;
/// Of each kind, so many are kept, besides those of labs, which have links of their own: a day of work on podd makes many.
const KEPT: usize = 3;
/// Work in progress that is older than this was broken off.
const BROKEN_OFF: Duration = Duration::from_secs(24 * 3600);

/// The cache's folder.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// Opens the cache.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open() -> Result<Self, Failure> {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
        Self::at(std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("podd/vm"))
    }

    /// The same in any folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn at(dir: PathBuf) -> Result<Self, Failure> {
        fs::create_dir_all(dir.join("packages")).map_err(Failure::io("make", &dir))?;
        Ok(Self(dir))
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Holds a lock until the value is dropped: several labs share the cache.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn lock(&self, name: &str) -> Result<Flock<File>, Failure> {
        lock(&self.path(&format!(".{name}.lock")))
    }

    /// A folder for work in progress; it vanishes unless it is [kept](Self::keep).
    ///
    /// # Errors
    /// The disk is too full, or it cannot be made.
    pub fn scratch(&self) -> Result<TempDir, Failure> {
        tools::need_space(&self.0, NEED_MIB, "XDG_CACHE_HOME")?;
        tempfile::Builder::new().prefix(".new-").tempdir_in(&self.0).map_err(Failure::io("make a folder in", &self.0))
    }

    /// Gives finished work its name.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn keep(&self, scratch: TempDir, name: &Path) -> Result<(), Failure> {
        fs::rename(scratch.path(), name).map_err(Failure::io("make", name))?;
        // Under its new name it is nobody's to remove.
        let _gone = scratch.keep();
        Ok(())
    }

    /// Writes a file so that it is whole or not there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<(), Failure> {
        let new = path.with_extension("new");
        fs::write(&new, content).map_err(Failure::io("write", &new))?;
        fs::rename(&new, path).map_err(Failure::io("write", path))
    }

    /// A thing is in use: `NAME` beside `NAME.used`.
    pub fn touch(&self, thing: &Path) {
        // Only the age of what can be made again hangs on it.
        let _ = fs::write(used(thing), "");
    }

    /// Removes all but the latest used trees or disks of this kind, and work that was broken off.
    pub fn tidy(&self, kind: &str) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let mut things: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let at = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if name.starts_with(kind) && !name.ends_with(".used") {
                things.push((at(&used(&path)), path));
            } else if name.starts_with(".new-") && at(&path).elapsed().is_ok_and(|age| age > BROKEN_OFF) {
                let _ = fs::remove_dir_all(&path);
            }
        }
        things.sort();
        for (_, thing) in things.iter().rev().skip(KEPT) {
            let _ = if thing.is_dir() { fs::remove_dir_all(thing) } else { fs::remove_file(thing) };
            let _ = fs::remove_file(used(thing));
        }
    }
}

/// Holds the lock in a file until the value is dropped.
///
/// # Errors
/// The file cannot be opened.
pub fn lock(path: &Path) -> Result<Flock<File>, Failure> {
    let file = File::options().create(true).append(true).open(path).map_err(Failure::io("open", path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| Failure::io("lock", path)(e.into()))
}

fn used(thing: &Path) -> PathBuf {
    let mut name = thing.as_os_str().to_owned();
    name.push(".used");
    PathBuf::from(name)
}
