//! The status service: whether this host needs patching, why, by which means, and when.
//!
//! `facts -> decide -> status`. What is done about it is not decided here by doing it: [`decide::decide`] is a pure function of
//! what was read, what the operators want, and the time. [`watch`] reads again and again, and keeps what the decisions need of
//! each other.

pub mod advisories;
pub mod cordon;
pub mod cover;
pub mod decide;
pub mod facts;
pub mod mechanism;
pub mod metrics;
pub mod notice;
pub mod plan;
pub mod policy;
pub mod reader;
pub mod run;
pub mod told;
pub mod watch;
