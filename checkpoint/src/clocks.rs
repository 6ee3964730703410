//! A pod's clocks across a move: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on by exactly the time that passed.
//!
//! A pod has a time namespace (time_namespaces(7)) whose offsets make its clocks independent of the host's. CRIU has them
//! go on from the moment of the dump, as if no time had passed since, and once a process is in the namespace nobody can
//! change them any more. But CRIU reads the dumped values right before it sets the offsets (timens.c): so it is made to
//! read them from a named pipe, into which the values are written that are right at that moment.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::libc;
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};

/// What two clocks show, or how far they are ahead of others, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl Clocks {
    /// This host's, now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn here() -> io::Result<Self> {
        let now = |clock| clock_gettime(clock).map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
        Ok(Self { monotonic: now(ClockId::CLOCK_MONOTONIC)?, boottime: now(ClockId::CLOCK_BOOTTIME)? })
    }

    /// Those of the time namespace for the children of a process, now. For a process of a pod that is the pod's own.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: i32) -> io::Result<Self> {
        let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
        Ok(Self::here()?.plus(parse_offsets(&offsets).ok_or_else(|| io::Error::other("timens_offsets has changed"))?))
    }

    /// These and a difference.
    #[must_use]
    pub fn plus(self, ahead: Self) -> Self {
        Self { monotonic: self.monotonic + ahead.monotonic, boottime: self.boottime + ahead.boottime }
    }

    /// How far these are ahead of `others`.
    #[must_use]
    pub fn ahead_of(self, others: Self) -> Self {
        Self { monotonic: self.monotonic - others.monotonic, boottime: self.boottime - others.boottime }
    }

    /// The contents of CRIU's image (`timens.proto`), from its own first bytes and these values.
    fn image(self, dumped: &[u8]) -> io::Result<Vec<u8>> {
        /// Two magic numbers of 4 bytes each; then comes the size of the message.
        const MAGIC: usize = 8;
        let magic = dumped.get(..MAGIC).ok_or_else(|| io::Error::other("CRIU's image of the clocks is cut short"))?;
        let field = |number: u8, nanoseconds: i64| {
            let mut time = vec![0x08];
            varint(&mut time, (nanoseconds / 1_000_000_000).cast_unsigned());
            time.push(0x10);
            varint(&mut time, (nanoseconds % 1_000_000_000).cast_unsigned());
            let mut bytes = vec![number << 3 | 2, time.len() as u8];
            bytes.append(&mut time);
            bytes
        };
        let message = [field(1, self.monotonic), field(2, self.boottime)].concat();
        Ok([magic, &(message.len() as u32).to_le_bytes(), &message].concat())
    }
}

/// `monotonic SECONDS NANOSECONDS` and `boottime ...`, the nanoseconds never negative.
fn parse_offsets(text: &str) -> Option<Clocks> {
    let offset = |name: &str| -> Option<i64> {
        let mut words = text.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace();
        let (seconds, nanoseconds) = (words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    };
    Some(Clocks { monotonic: offset("monotonic")?, boottime: offset("boottime")? })
}

/// A number as protobuf writes it.
pub(crate) fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Name of the file beside CRIU's images that says how far the pod's clocks are ahead of this host's.
const AHEAD: &str = "clocks-ahead";

/// Notes beside a dump what the pod's clocks are to show: as far ahead of this host's as `ahead`.
///
/// # Errors
/// I/O errors.
pub fn note(images: &Path, ahead: Clocks) -> io::Result<()> {
    fs::write(images.join(AHEAD), [ahead.monotonic.to_le_bytes(), ahead.boottime.to_le_bytes()].concat())
}

/// Tells CRIU the time when it asks. Without a note, or in a dump without clocks, there is nothing to tell.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    pipe: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Teller {
    /// Puts a named pipe in the place of CRIU's image.
    pub(crate) fn start(images: &Path) -> io::Result<Self> {
        let Some(pipe) = image_in(images)? else { return Ok(Self::default()) };
        let Ok(note) = fs::read(images.join(AHEAD)) else { return Ok(Self::default()) };
        let ahead = match note.as_chunks() {
            ([monotonic, boottime], []) => {
                Clocks { monotonic: i64::from_le_bytes(*monotonic), boottime: i64::from_le_bytes(*boottime) }
            }
            _ => return Err(io::Error::other("the note about the pod's clocks is damaged")),
        };
        // Kept, should these images be restored once more.
        let kept = pipe.with_extension("dumped");
        if !kept.exists() {
            fs::rename(&pipe, &kept)?;
        }
        let dumped = fs::read(&kept)?;
        let _ = fs::remove_file(&pipe);
        mkfifo(&pipe, Mode::from_bits_truncate(0o644))?;
        let over = Arc::new(AtomicBool::new(false));
        let (path, end) = (pipe.clone(), over.clone());
        let thread = std::thread::Builder::new().name("clocks".into()).spawn(move || {
            // Until CRIU opens the other end.
            let mut pipe = File::options().write(true).open(path)?;
            if end.load(Ordering::Acquire) {
                return Ok(());
            }
            pipe.write_all(&Clocks::here()?.plus(ahead).image(&dumped)?)
        })?;
        Ok(Self { pipe, over, thread: Some(thread) })
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // Should CRIU never have asked, the thread still waits for it, or is about to.
        self.over.store(true, Ordering::Release);
        // If somebody has removed the pipe, it waits for ever, and ends with this process.
        if let Ok(_reader) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.pipe) {
            let _ = thread.join();
        }
    }
}

/// CRIU's image of the clocks, if there is one: `timens-N.img`.
fn image_in(images: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("timens-") && (name.ends_with(".img") || name.ends_with(".dumped")) {
            return Ok(Some(path.with_extension("img")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn offsets_as_the_kernel_writes_them() {
        let text = "monotonic         -2  900000000\nboottime           5          0\n";
        assert_eq!(parse_offsets(text), Some(Clocks { monotonic: -1_100_000_000, boottime: 5_000_000_000 }));
        assert_eq!(parse_offsets("monotonic 1"), None);
        let own = Clocks::of(std::process::id().cast_signed()).unwrap().ahead_of(Clocks::here().unwrap());
        assert!(own.monotonic.abs() < 1_000_000_000, "{own:?}: this process is in the host's time namespace");
    }

    #[test]
    fn the_image_is_what_criu_would_have_written() {
        // Made by CRIU 4.2.1: monotonic 300.5 s, boottime 1.000000001 s.
        let message = [0x0a, 0x09, 0x08, 0xac, 0x02, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01];
        let boottime = [0x12, 0x04, 0x08, 0x01, 0x10, 0x01];
        let image = Clocks { monotonic: 300_500_000_000, boottime: 1_000_000_001 }.image(b"magicno.rest").unwrap();
        let expected: Vec<u8> = [b"magicno.".as_slice(), &[17, 0, 0, 0], &message, &boottime].concat();
        assert_eq!(image, expected);
        assert!(Clocks { monotonic: 0, boottime: 0 }.image(b"cut").is_err());
    }

    #[test]
    fn whoever_reads_gets_the_time_of_that_moment() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("timens-9.img"), b"magicno.\x02\0\0\0xx").unwrap();
        note(folder.path(), Clocks { monotonic: 0, boottime: 0 }).unwrap();
        for _ in 0..2 {
            let teller = Teller::start(folder.path()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(30));
            let before = Clocks::here().unwrap().image(b"magicno.").unwrap();
            let told = fs::read(folder.path().join("timens-9.img")).unwrap();
            let after = Clocks::here().unwrap().image(b"magicno.").unwrap();
            // Seconds come first, so this holds but for a carry of nanoseconds; the length is that of a message.
            assert_eq!(told.len(), 12 + usize::from(told[8]));
            assert!(told.len().abs_diff(before.len()) <= 2 && told.len().abs_diff(after.len()) <= 2);
            drop(teller);
        }
        // Nobody asks.
        drop(Teller::start(folder.path()).unwrap());
        // Nothing is noted.
        fs::remove_file(folder.path().join(AHEAD)).unwrap();
        assert!(Teller::start(folder.path()).unwrap().thread.is_none());
    }
}
