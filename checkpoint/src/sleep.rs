//! A pod's time while its host boots: it goes on by what the wall's clock says, as the host's own clocks begin anew.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::clocks::{self, Clocks};
use crate::process::{PodTimer, note_timers};

/// Name of the file beside CRIU's images.
const NOTE: &str = "asleep";

#[derive(Serialize, Deserialize)]
struct Note {
    /// Since 1970 UTC.
    since: Duration,
    clocks: Clocks,
    timers: Vec<PodTimer>,
}

/// Notes beside a dump what a frozen pod's clocks and timers show now.
///
/// # Errors
/// I/O errors.
pub fn note(images: &Path, clocks: Clocks, timers: Vec<PodTimer>) -> io::Result<()> {
    let note = Note { since: now(), clocks, timers };
    let bytes = bincode::serde::encode_to_vec(note, bincode::config::standard()).map_err(io::Error::other)?;
    fs::write(images.join(NOTE), bytes)
}

/// Has the restore of these images set the pod's clocks and timers by the time that has passed; none, if the wall's clock went back.
/// Without a note they go on where they stood.
///
/// # Errors
/// The note is damaged; I/O errors.
pub fn wake(images: &Path) -> io::Result<()> {
    let bytes = match fs::read(images.join(NOTE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let read = bincode::serde::decode_from_slice(&bytes, bincode::config::standard());
    let (note, _): (Note, usize) = read.map_err(io::Error::other)?;
    let passed = now().saturating_sub(note.since);
    let nanoseconds = i64::try_from(passed.as_nanos()).map_err(io::Error::other)?;
    let clocks = note.clocks.plus(Clocks { monotonic: nanoseconds, boottime: nanoseconds });
    clocks::note(images, clocks.ahead_of(Clocks::here()?))?;
    note_timers(images, &note.timers, passed)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn without_a_note_nothing_is_told_and_a_broken_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        wake(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        note(folder.path(), Clocks { monotonic: 5, boottime: 6 }, Vec::new()).unwrap();
        wake(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        fs::write(folder.path().join(NOTE), [0xff]).unwrap();
        assert!(wake(folder.path()).is_err());
    }
}
