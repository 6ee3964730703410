//! Harness of the whole-system tests: a lab of hosts on this machine, each with its own podd, driven as an operator
//! would drive it. Nothing here is a mock: real podd, real CRIU, real applications.

#![allow(clippy::missing_panics_doc)]

pub mod bench;
pub mod debian;
pub mod invariants;
pub mod lab;
pub mod machine;
pub mod traces;
pub mod workload;

pub use lab::{Lab, Run};
