//! The pod daemon: runs pods, moves them between hosts, keeps their records.
//!
//! `api` and `client` are all that `podctl` and other hosts may use; the rest is the daemon's own.

pub mod api;
pub mod client;
pub mod config;
pub mod doctor;
pub mod error;
pub mod events;
pub mod fault;
pub mod layers;
pub mod patch;
pub mod peer;
pub mod pod;
pub mod recover;
pub mod reserved;
pub mod server;
pub mod shim;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod trust;
