//! Change to record and back: topics, keys, values and headers. Pure: no I/O, no clock, no state but caches.
//!
//! ```text
//!   RowChange (Postgres text) ── json::TableEncoder ──> records of a topic: key, value, headers
//!                                                            │
//!   row of Datums             <── json::TableDecoder ────────┘
//! ```
//!
//! The value is Debezium's payload, so that its consumers read it as it is; what that envelope cannot carry
//! (the position, the schema version, the other key of a key change) travels in [`headers`]. Why it is safe:
//!
//! * A value is itself or it is missing: an unchanged TOAST value leaves its field out, every other text is
//!   parsed and checked, and whatever does not fit its type is an error that names the column. Nothing is
//!   replaced by a placeholder, rounded or cut.
//! * A change is encoded whole or not at all: an error takes back what the change had written.
//! * No input makes either side panic; the decoder accepts any valid JSON of the right shape.
//!
//! To add a representation, extend `json::value`, the one place that looks at a column's type.

pub mod headers;
pub mod json;
pub mod routing;
mod text;
