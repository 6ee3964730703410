//! The pod daemon.
fn main() {}
