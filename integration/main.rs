//! The integration tests: real servers, which the tests start themselves on free ports.
//!
//! ```text
//!   support/   servers, the connector as a process, waiting on a condition with a deadline
//!   oracle/    what Postgres itself says happened, and the comparison of records and rows with it
//!   lake/      histories of a table, for the lake alone
//!   others     one module for each capability: `cargo test --test integration cuts::`
//! ```
//!
//! They are one program, so that what they share is built once, servers that several can use are started once, and
//! tests of all modules fill the threads until the last one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod architecture;
mod avro;
mod backfill;
mod backfill_again;
mod backfill_filters;
mod bad_input;
mod change_history;
mod change_sequence;
mod cli;
mod cuts;
mod ddl;
mod ddl_trigger;
mod debezium;
mod deliver_shares;
mod exactness;
mod failover;
mod identities;
mod kafka_avro;
mod kafka_days;
mod kafka_exactness;
mod kafka_gap;
mod kafka_log;
mod kafka_security;
mod kafka_spill;
mod lake;
mod lake_edges;
mod lake_faults;
mod lake_model;
mod lake_tail;
mod log_faults;
mod notices;
mod oracle;
mod oracle_tables;
mod preflight;
mod publications;
mod reader_matrix;
mod readers;
mod replay;
mod replication_client;
mod retention;
mod s3;
mod schemas;
mod source_safety;
mod standby;
mod streaming;
mod support;
mod transactions;
mod types;
mod write_once;
mod zookeeper;
