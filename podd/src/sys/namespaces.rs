//! Entering other namespaces, and making the user namespace that maps a pod's ids.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid};

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
    let kept = Kept::make(CloneFlags::CLONE_NEWUSER, base, || Ok(()))?;
    Ok(File::open(format!("/proc/{}/ns/user", kept.holder))?.into())
}

/// Becomes the root of the user namespace in which this process is, of whose ids it has none yet.
///
/// # Errors
/// The namespace has no id maps.
pub fn become_root() -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    Ok(nix::unistd::setresuid(uid, uid, uid)?)
}

/// New namespaces, kept by a process that does nothing else. It ends when this is dropped, and with this process.
#[derive(Debug)]
pub struct Kept {
    holder: Pid,
    /// None when they are to go.
    line: Option<UnixStream>,
}

impl Kept {
    /// Makes those of `namespaces`, a user namespace that maps `base..base + 65536` among them, and does `furnish` in there. This
    /// process has one thread.
    ///
    /// # Errors
    /// User namespaces are off or used up (`user.max_user_namespaces`), or `furnish`'s own; nothing is left then.
    pub fn make(namespaces: CloneFlags, base: u32, furnish: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        let (line, mut other_end) = UnixStream::pair()?;
        let holder = clone_into(namespaces.bits(), || {
            // With this copy, it would not see the end of ours.
            let _ = nix::unistd::close(line.as_raw_fd());
            let furnished = other_end.read_exact(&mut [0]).and_then(|()| furnish());
            let said = match furnished {
                Ok(()) => other_end.write_all(&[0]),
                Err(e) => other_end.write_all(e.to_string().as_bytes()),
            };
            if said.is_ok() {
                let _ = other_end.read(&mut [0]);
            }
            0
        })?;
        // With this one, we would not see its end.
        drop(other_end);
        let kept = Self { holder, line: Some(line) };
        write_id_maps(holder, base)?;
        kept.furnished()?;
        Ok(kept)
    }

    fn furnished(&self) -> io::Result<()> {
        let Some(mut line) = self.line.as_ref() else { return Ok(()) };
        line.write_all(&[0])?;
        let mut said = vec![0; 1024];
        let length = line.read(&mut said)?;
        match &said[..length] {
            [0] => Ok(()),
            [] => Err(io::Error::other("the process in there has ended")),
            error => Err(io::Error::other(String::from_utf8_lossy(error).into_owned())),
        }
    }

    /// The process that keeps them.
    #[must_use]
    pub fn holder(&self) -> Pid {
        self.holder
    }

    /// Whether a process is in the network namespace among them.
    #[must_use]
    pub fn have_network_of(&self, pid: i32) -> bool {
        let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net"));
        matches!((network(pid), network(self.holder.as_raw())), (Ok(one), Ok(other)) if one == other)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.line = None;
        let _ = waitpid(self.holder, None);
    }
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
