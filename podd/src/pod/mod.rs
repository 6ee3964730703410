//! A pod: what it is (`spec`, `state`), and one file for each thing that can be done to it.

pub mod init;
pub mod spec;
