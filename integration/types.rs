//! Every type of Postgres, with its extremes: the table in `docs/types.md` and what a real server makes of it.
//!
//! `TIDEMARK_WRITE_DOCS=1 cargo test --test integration types::` writes the table anew.

pub mod cases;
mod document;
mod server;
