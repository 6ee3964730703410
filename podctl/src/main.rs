//! The command line of the pod daemon.
fn main() {}
