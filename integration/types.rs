//! Every type of Postgres, with its extremes: the table in `docs/types.md` and what a real server makes of it.
//!
//! `TIDEMARK_WRITE_DOCS=1 cargo test --test types` writes the table anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "types/cases.rs"]
mod cases;
#[path = "types/document.rs"]
mod document;
#[path = "types/server.rs"]
mod server;
mod support;
