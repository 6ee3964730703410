//! A pod: what it is (`spec`, `state`, `journal`), and one file for each thing that can be done to it.

pub mod create;
pub mod exec;
pub mod file;
pub mod init;
pub mod journal;
pub mod logs;
pub mod spec;
pub mod start;
pub mod state;
pub mod stop;
