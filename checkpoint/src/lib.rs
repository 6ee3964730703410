//! Dump, ship and restore process trees.
//!
//! This crate knows nothing of pods' names, networks or policies: it drives CRIU, describes hosts and
//! processes, and moves bytes in formats that check themselves. `podd` decides; this crate does.

mod awake;
pub mod baseline;
mod bpf;
mod btf;
pub mod clocks;
pub mod compat;
pub mod criu;
pub mod files;
pub mod guard;
pub mod host;
pub mod image;
mod mappings;
pub mod memory;
pub mod network_lock;
pub mod process;
pub mod sleep;
mod sys;
pub mod waits;
pub mod wire;
