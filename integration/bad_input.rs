//! What is wrong outside, and what the operator is told: through the real binary, against a real Postgres.
//!
//! Each case shows the same four things: the error names the thing and the mend, the exit code is right, no secret
//! is in what was printed, and after the mend the same configuration goes on and publishes a day that equals
//! Postgres.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by panicking")]

mod support;

#[path = "bad_input/commands.rs"]
mod commands;
#[path = "bad_input/config.rs"]
mod config;
#[path = "bad_input/connector.rs"]
mod connector;
#[path = "bad_input/local.rs"]
mod local;
#[path = "bad_input/rights.rs"]
mod rights;
#[path = "bad_input/slot.rs"]
mod slot;
#[path = "bad_input/source.rs"]
mod source;
