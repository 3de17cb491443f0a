//! The Postgres protocol, as far as change capture needs it: sessions with TLS and SCRAM, simple queries,
//! COPY out, and logical replication.
//!
//! ```text
//!   URL, PG* environment, .pgpass ── options, pgpass ──> ConnectOptions
//!                 hosts (each in turn, until one is wanted)  ─┤
//!                 tls (sslmode, root and client certificates) ─┤
//!                 auth (SCRAM, channel binding, md5)          ─┤
//!                                                             v
//!          socket <── connection (frames in one buffer) <── Client ── query, execute, copy_out
//!                                                             │
//!                                                    start_replication
//!                                                             v
//!                      ReplicationStream: fill, next_message        Feedback: its own task, its own timer
//! ```
//!
//! Frontend messages and the SCRAM exchange come from the crate `postgres-protocol`; backend messages are
//! parsed here, because that crate refuses `CopyBothResponse` and copies what it parses.
//!
//! Every error is a [`crate::runtime::Error`] whose class says whether to try again; see [`ServerError`].
//! Passwords live in [`ConnectOptions`] alone, whose `Debug` hides them.

mod auth;
mod client;
mod connection;
mod error;
mod hosts;
mod options;
mod pgpass;
mod replication;
mod stream;
mod tls;

pub(in crate::postgres) use client::OUTPUT_SETTINGS;
pub use client::{Client, CopyOut, Row, Session, quote_ident, quote_literal};
pub use error::{ServerError, is_not_let_in, server_error, sqlstate};
pub use hosts::{Endpoint, Host, SessionAttrs, answered};
pub use options::{ChannelBindingMode, ConnectOptions, SslMode};
pub use replication::{Feedback, ReplicationMessage, ReplicationOptions, ReplicationStream, Streaming};
