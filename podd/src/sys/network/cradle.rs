//! The network namespace from which those of pods are made.
//!
//! All network namespaces of a host share one table of TCP connections, of half a million buckets on a large one. Whoever lists
//! the connections of a namespace walks all of them: some milliseconds, and a move does so several times while clients wait.
//! Since Linux 6.1 a namespace can have a table of its own, whose size is a setting of the namespace that the process is in which
//! makes it (Documentation/networking/ip-sysctl.rst, `tcp_child_ehash_entries`). The host's own setting stays as it is, for it
//! would hold for others' containers.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::{block_on, set_up};
use crate::sys::namespaces::on_own_thread;

/// Buckets: some connections in each, should there be a hundred thousand.
const BUCKETS: &str = "16384";
/// Limits that the kernel derives from the size of the table. Pods have those of their host.
const DERIVED: [&str; 2] = ["tcp_max_tw_buckets", "tcp_max_syn_backlog"];

fn setting(name: &str) -> String {
    format!("/proc/sys/net/ipv4/{name}")
}

/// Makes it, at this path, if it is not there.
///
/// # Errors
/// The kernel has no such tables (before Linux 6.1), or I/O errors; pods do without.
pub fn ensure(at: &Path) -> io::Result<()> {
    if open(at).is_some() {
        return Ok(());
    }
    fs::write(at, "")?;
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        fs::write(setting("tcp_child_ehash_entries"), BUCKETS)?;
        // CRIU tries out what connections can do.
        block_on(async |netlink| set_up(&netlink, "lo").await)?;
        Ok(mount(Some("/proc/thread-self/ns/net"), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    })
}

/// The namespace at this path; none if the host has none.
#[must_use]
pub fn open(at: &Path) -> Option<File> {
    let file = File::open(at).ok()?;
    (fstatfs(&file).ok()?.filesystem_type() == NSFS_MAGIC).then_some(file)
}

/// Does some work in the namespace at this path, if there is one. The process must have one thread.
///
/// # Errors
/// There is no way back.
pub fn within<T>(at: &Path, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some(cradle) = open(at) else { return Ok(work()) };
    let home = File::open("/proc/self/ns/net")?;
    setns(cradle, CloneFlags::CLONE_NEWNET)?;
    let done = work();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    Ok(done)
}

/// The limits of the network namespace that this thread is in.
pub(super) fn limits() -> Vec<(&'static str, String)> {
    DERIVED.into_iter().filter_map(|name| Some((name, fs::read_to_string(setting(name)).ok()?))).collect()
}

/// Sets those of the network namespace that this thread is in. Best effort.
pub(super) fn set_limits(limits: &[(&str, String)]) {
    for (name, value) in limits {
        let _ = fs::write(setting(name), value);
    }
}
