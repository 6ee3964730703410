//! Rounds are loaded by the CRIU that is to restore the pod, as they come: the processes that it forks then have that memory
//! already, and it need not be read in the restore.
//!
//! It takes `scripts/patches/criu-nursery.patch`: the CRIU of a folder with a named pipe of this name reads from it what to load.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::event::{PollFd, PollFlags, poll};

/// Name of the pipe in the folder of images.
pub(super) const PIPE: &str = "memory-ahead";
/// Between two looks.
pub const A_MOMENT: Duration = Duration::from_micros(500);

/// The way to a CRIU that waits for the rest of its images. Dropped without [`go`](Self::go), it ends.
#[derive(Debug)]
pub struct Nursery(File);

/// Makes the CRIU that will be started for this folder wait for a [`Nursery`].
///
/// # Errors
/// I/O errors.
pub fn prepare(images: &Path) -> io::Result<()> {
    Ok(mkfifo(&images.join(PIPE), Mode::from_bits_truncate(0o600))?)
}

/// Undoes [`prepare`].
///
/// # Errors
/// I/O errors.
pub fn do_without(images: &Path) -> io::Result<()> {
    super::remove(&images.join(PIPE))
}

/// Whether CRIU is to wait for one.
pub(crate) fn is_prepared(images: &Path) -> bool {
    images.join(PIPE).exists()
}

impl Nursery {
    /// None if CRIU does not listen yet. If it does, whoever restores from that folder later waits for nobody.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open(images: &Path) -> io::Result<Option<Self>> {
        let path = images.join(PIPE);
        match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
            Ok(pipe) => fs::remove_file(path).map(|()| Some(Self(pipe))),
        }
    }

    /// Has a round loaded that is [in its place](super::unfold), and waits until it is.
    ///
    /// # Errors
    /// CRIU has ended, or takes longer than this.
    pub fn load(&mut self, round: u32, limit: Duration) -> io::Result<()> {
        // The empty line stays in the pipe until all before it is done.
        self.0.write_all(format!("pre{round}\n\n").as_bytes())?;
        let deadline = Instant::now() + limit;
        while rustix::io::ioctl_fionread(&self.0)? > 0 {
            let mut end = [PollFd::new(&self.0, PollFlags::empty())];
            poll(&mut end, Some(&rustix::time::Timespec::default()))?;
            if end[0].revents().contains(PollFlags::ERR) {
                return Err(Errno::EPIPE.into());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(A_MOMENT);
        }
        Ok(())
    }

    /// All images are there.
    ///
    /// # Errors
    /// CRIU has ended.
    pub fn go(mut self) -> io::Result<()> {
        self.0.write_all(b"go\n")
    }
}
