//! Resource limits (setrlimit(2)) of what podd starts.

use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// `RLIM_NLIMITS` of Linux: resources are numbered from 0.
const RESOURCES: u32 = 16;

/// Raises this process's limit of open files to what is allowed: CRIU, which inherits it, needs more descriptors
/// than the pod that it restores.
///
/// # Errors
/// `setrlimit(2)`'s.
pub fn raise_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Lifts the ceilings (hard limits) of this process, where it may (CAP_SYS_RESOURCE on the host). What CRIU restores inherits
/// them, and in the pod's user namespace nobody could set them higher than that again.
pub fn lift_ceilings() {
    let files = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|n| n.trim().parse().ok());
    for resource in 0..RESOURCES {
        if let Ok(limit) = exchange(0, resource, None) {
            let most = if resource == libc::RLIMIT_NOFILE { files } else { Some(libc::RLIM_INFINITY) };
            let lifted = libc::rlimit { rlim_max: most.unwrap_or(limit.rlim_max), ..limit };
            let _ = exchange(0, resource, Some(lifted));
        }
    }
}

/// Gives this process the limits of another one, as far as it may.
///
/// # Errors
/// There is no such process.
pub fn take_over(pid: i32) -> io::Result<()> {
    for resource in 0..RESOURCES {
        let limit = exchange(pid, resource, None)?;
        let _ = exchange(0, resource, Some(limit));
    }
    Ok(())
}

/// What a limit of a process (0: this one) was, and perhaps a new one.
fn exchange(pid: i32, resource: u32, new: Option<libc::rlimit>) -> io::Result<libc::rlimit> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `new` is null or points to a live value; `old` is written within this call.
    Errno::result(unsafe { libc::prlimit(pid, resource, new, &raw mut old) })?;
    Ok(old)
}
