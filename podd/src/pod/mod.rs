//! A pod: what it is (`spec`, `state`, `journal`), and one file for each thing that can be done to it.

pub mod arrive;
pub mod checkpoint;
pub mod create;
pub mod elsewhere;
pub mod exec;
pub mod file;
pub mod freeze;
pub mod health;
pub mod init;
pub mod inspect;
pub mod journal;
pub mod logs;
pub mod migrate;
pub mod postcopy;
pub mod precopy;
pub mod predict;
pub mod preflight;
pub mod rehearse;
pub mod restore;
pub mod spec;
pub mod start;
pub mod state;
pub mod stop;
