//! What is wrong outside, and what the operator is told: through the real binary, against a real Postgres.
//!
//! Each case shows the same four things: the error names the thing and the mend, the exit code is right, no secret
//! is in what was printed, and after the mend the same configuration goes on and publishes a day that equals
//! Postgres.

mod commands;
mod config;
mod connector;
mod local;
mod rights;
mod slot;
mod source;
