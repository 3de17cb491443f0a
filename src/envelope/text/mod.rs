//! Postgres's text forms, parsed. Every parser takes any bytes and reads them to the end or refuses them.

pub(super) mod array;
pub(super) mod bits;
pub(super) mod bytea;
pub(super) mod datetime;
pub(super) mod numeric;

/// Why a text is not a value of its type. Never quotes the text: it may be private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub &'static str);
