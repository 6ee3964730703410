//! A pod: what it is (`spec`, `state`, `journal`), and one file for each thing that can be done to it.

pub mod exec;
pub mod init;
pub mod journal;
pub mod spec;
pub mod state;
