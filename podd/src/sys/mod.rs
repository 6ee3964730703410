//! Every syscall and every unsafe block of the daemon.

pub mod capabilities;
pub mod seccomp;
