//! Entering other namespaces, and making the user namespace that maps a pod's ids.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::process::clone_into;

/// How many ids a pod has.
pub const ID_COUNT: u32 = 65_536;

/// Runs `work` on a thread of its own inside the network namespace of a process; only that thread changes.
///
/// # Errors
/// The process is gone, or `work`'s own.
pub fn in_network_of<T: Send>(pid: i32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    on_own_thread(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Runs `work` on a thread of its own, which may change its namespaces.
///
/// # Errors
/// `work`'s own.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the network thread panicked")))
    })
}

/// Writes the id maps of a process that has just entered a new user namespace.
///
/// # Errors
/// The range is not allowed, or the process is gone.
pub fn write_id_maps(pid: Pid, base: u32) -> io::Result<()> {
    let map = format!("0 {base} {ID_COUNT}\n");
    fs::write(format!("/proc/{pid}/gid_map"), &map)?;
    fs::write(format!("/proc/{pid}/uid_map"), &map)
}

/// A user namespace that maps `base..base + 65536`, for id-mapped mounts.
///
/// # Errors
/// User namespaces are off or used up (`user.max_user_namespaces`).
pub fn user_namespace(base: u32) -> io::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let pid = clone_into(CloneFlags::CLONE_NEWUSER.bits(), || {
        // Holds the namespace until the parent has opened it, and ends with the parent.
        nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&write)).ok();
        let _ = nix::unistd::read(&read, &mut [0; 1]);
        0
    })?;
    let made = write_id_maps(pid, base).and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(write);
    waitpid(pid, None)?;
    Ok(made?.into())
}

/// Whether the file system of `folder` supports id-mapped mounts: tries one, in a child's mount namespace.
#[must_use]
pub fn id_mapped_mounts_work(folder: &std::path::Path) -> bool {
    // The child would inherit locks of a multi-threaded process, so a fresh program does it: the shim's own first step.
    std::process::Command::new("/proc/self/exe")
        .arg("probe-id-maps")
        .arg(folder)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The body of `podd probe-id-maps`: binds `folder` over itself with shifted ids.
///
/// # Errors
/// Why it cannot be done.
pub fn probe_id_maps(folder: &std::path::Path) -> io::Result<()> {
    super::mounts::private_mount_namespace()?;
    let ids = user_namespace(0x0008_0000)?;
    super::mounts::id_mapped_bind(folder, folder, std::os::fd::AsFd::as_fd(&ids), true)
}
