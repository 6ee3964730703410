//! Faults on demand, for tests: what if we die here?
//!
//! A file `fault` in the daemon's run folder (root's alone) holds lines `ROLE STEP WHAT`, such as `source given crash`,
//! `target held pause 2000` or `run reboot crash`. It is looked at after each journal entry of a move or of a patch run, once the
//! entry is on disk and before it is acted upon; and, while memory that was left behind (post-copy) comes, at `source lent` and `target
//! borrows`, and while big files are compared, at `source compares` and `target compares`. `crash` is kill -9; `pause` waits milliseconds, in which a test kills something else. A line
//! works once.

use std::path::Path;
use std::time::Duration;

/// Does what the fault file asks for at this entry.
pub fn point(run: &Path, role: &str, step: &str) {
    let path = run.join("fault");
    let Ok(text) = std::fs::read_to_string(&path) else { return };
    let here = format!("{role} {step} ");
    let Some(what) = text.lines().find_map(|line| line.strip_prefix(&here)) else { return };
    let rest: String = text.lines().filter(|line| !line.starts_with(&here)).map(|line| format!("{line}\n")).collect();
    let _ = std::fs::write(&path, rest);
    tracing::warn!(role, step, what, "fault on demand");
    match what.split_once(' ') {
        Some(("pause", ms)) => std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
        _ => drop(nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)),
    }
}
