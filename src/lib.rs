//! Tidemark streams every row change and every additive schema change of a Postgres database into a durable
//! log, and turns that log into write-once, full-table daily snapshots.
//!
//! See ARCHITECTURE.md for the flow and the reasons; each module's head draws and argues its own part.

pub mod batch;
pub mod change;
pub mod cli;
pub mod config;
pub mod coord;
pub mod envelope;
pub mod lake;
pub mod log;
pub mod notice;
pub mod ops;
pub mod pipeline;
pub mod postgres;
pub mod registry;
pub mod runtime;
