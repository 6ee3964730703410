//! Silence in a pod's network while it is restored.
//!
//! CRIU makes one connection after the other, and of half-closed ones it plays the other side: it sends packets with a mark of its
//! own (`SOCCR_MARK`). Meanwhile the kernel must not act by itself: the half of a connection within the pod that is there already
//! would send its FIN again, to a half that is not there yet, and be told that there is no such connection. CRIU's own lock is a
//! set of firewall rules, which a crash leaves behind, and the pod mute. Ours is a BPF program on the pod's cgroup, for all sockets
//! that were made there: it goes with its descriptors, whatever dies.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::bpf::{WORD, exit, if_equal, load, set};
use crate::sys;

/// Mark of the packets that CRIU sends (soccr/soccr.h).
pub const SOCCR_MARK: u32 = 0xc114;
/// Where `struct __sk_buff` has it (include/uapi/linux/bpf.h).
const MARK_AT: i16 = 8;

/// Until it is dropped, sockets of a cgroup neither send nor receive, but for packets with [`SOCCR_MARK`]. What they would have
/// sent, TCP sends again later.
#[derive(Debug)]
pub struct NetworkLock(#[expect(dead_code, reason = "held")] [OwnedFd; 2]);

impl NetworkLock {
    /// Locks the network of a cgroup (v2 folder).
    ///
    /// # Errors
    /// The kernel does not do this (`CONFIG_CGROUP_BPF`, Linux 5.7), or not for us.
    pub fn new(cgroup: &Path) -> io::Result<Self> {
        Ok(sys::filter_packets(&program(), &File::open(cgroup)?).map(Self)?)
    }
}

/// Lets a packet pass (1) if it has the mark.
fn program() -> [u64; 5] {
    [load(WORD, 2, 1, MARK_AT), set(0, 1), if_equal(2, SOCCR_MARK.cast_signed(), 1), set(0, 0), exit()]
}
