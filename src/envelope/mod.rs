//! Change to record and back: topics, keys, values and headers. Pure: no I/O, no clock, no state but caches.
//!
//! ```text
//!   RowChange (Postgres text) ── TableEncoder ──> records of a topic: key, value, headers
//!        TableSchema              │ JSON or Avro          │
//!             └─ connect ─────────┘                       │
//!   row of Datums             <── TableDecoder ───────────┘
//! ```
//!
//! The value is Debezium's payload, so that its consumers read it as it is; what that envelope cannot carry
//! (the position, the schema version, the other key of a key change) travels in [`headers`]. Why it is safe:
//!
//! * A value is itself or it is missing: an unchanged TOAST value is left out (in Avro: named in a header), every
//!   other text is parsed and checked, and whatever does not fit its type is an error that names the column. Nothing
//!   is replaced by a placeholder, rounded or cut.
//! * A change is encoded whole or not at all: an error takes back what the change had written.
//! * No input makes either side panic; the decoder accepts any valid JSON and Avro of the right shape.
//!
//! Which records a change becomes is in `encode`, for all formats; how they look is a format's own. To add a
//! representation, extend `json::value` and `avro::value`, the places that look at a column's type, and `connect`,
//! which names it.

pub mod avro;
mod connect;
mod decode;
mod encode;
mod format;
pub mod headers;
pub mod json;
pub mod routing;
mod source;
mod text;
mod transaction;

pub use decode::{DecodeError, Decoded, Peeked, peek};
pub use encode::{EncodeError, OldKind, OldRow, RowChange, TransactionOrder};
pub use format::{Format, Options, TableDecoder, TableEncoder};
pub use json::DecimalHandling;
pub use source::SourceInfo;
pub use transaction::{Boundary, DataCollection, TransactionEncoder, TransactionRecord};
