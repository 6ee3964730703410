//! The pod's first process: a small static program that podd copies into the pod's writable layer and executes there.
//! Its source is `podd/init/`; its command line is described in `podd/init/main.rs`.

/// The program.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podd-init"));

/// Where it lies in the pod; its log and its exit record lie beside it.
pub const PATH: &str = "/.podd/init";
