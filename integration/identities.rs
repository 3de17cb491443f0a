//! By what a table's rows are told apart: replica identities, keys of every type and under every name, and keys that
//! become others. The oracle is Postgres itself, and DuckDB reads the lake.

#![allow(clippy::format_push_string, clippy::format_collect, reason = "SQL is put together from parts")]

mod changes;
mod keys;
mod names;
mod toast;
