//! Every syscall and every unsafe block of the daemon.

pub mod announce;
pub mod backlog;
pub mod capabilities;
pub mod cgroup;
pub mod clock;
pub mod hold;
pub mod limits;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod process;
pub mod replace;
pub mod seccomp;
pub mod tcp;
