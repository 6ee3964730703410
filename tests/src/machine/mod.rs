//! Emulated machines with stock Debian kernels of their own (QEMU under TCG), for what hosts that share a kernel cannot
//! show: moves between kernels, reboots, power cuts. `scripts/vm` is the command, [`Lab`] the harness of tests.
//!
//! | module | job |
//! |---|---|
//! | `room` | machines of one lab: make, start, reboot, cut the power, remove |
//! | `kernels` `version` | which kernels the mirrors offer; their packages |
//! | `base` `boot` | the disk image that all share; each machine's own disk of kernels |
//! | `supervisor` `qemu` | the process beside a machine; one run of QEMU |
//! | `lan` `group` | a network without a way out; processes by cgroup |
//! | `exec` `agent` `frames` `files` | commands in a machine, files into it and out of it |
//! | `archive` | signed archives of kernel packages for the machines' own apt |
//! | `livepatch` | a live patch for one of these kernels, and who says what it ends |
//! | `matrix` | pods under load between every two of several kernels |
//! | `cache` `tools` `failure` | files that can be made again; programs of the host; what goes wrong |
//!
//! Files that go into machines are in `tests/machine/`.

pub mod agent;
pub mod archive;
pub mod base;
pub mod boot;
pub mod cache;
pub mod exec;
pub mod failure;
pub mod files;
pub mod frames;
pub mod group;
pub mod harness;
pub mod kernels;
pub mod lan;
pub mod livepatch;
pub mod matrix;
pub mod qemu;
pub mod room;
pub mod supervisor;
pub mod tools;
pub mod version;

use std::path::PathBuf;

pub use failure::Failure;
pub use harness::Lab;
pub use room::Room;

/// A program of this crate, beside the running one or, from a test, in the folder above.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let dirs = own.ancestors().skip(1).take(2);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file()).unwrap_or_else(|| own.with_file_name(name))
}
