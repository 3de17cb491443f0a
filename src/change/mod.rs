//! The domain: what a change is, and where it stands. No I/O, and no knowledge of any other module.
//!
//! ```text
//!   Lsn ── Position ── orders ──> Change of a Row of Values, shaped by a TableSchema
//!                                         │
//!   SchemaChange ── new SchemaVersion ────┘          Cut ── divides two Ds
//! ```
//!
//! Every other module speaks in these types; each word means one thing (see ARCHITECTURE.md, "Words").

mod calendar;
mod cut;
mod datum;
mod evolve;
mod lsn;
mod position;
mod schema;
mod types;

pub use calendar::Calendar;
pub use cut::{BACKFILL_PARTITION, Cut, CutBackfill, CutTable, Ds, LogEnd};
pub use datum::Datum;
pub use evolve::Evolved;
pub use lsn::{Lsn, ParseLsnError};
pub use position::{ParsePositionError, Position, Timeline};
pub use schema::{
    ActionKind, Column, Existing, Holds, ReplicaIdentity, SchemaAction, SchemaChange, SchemaVersion,
    TableName, TableSchema,
};
pub use types::{ColumnType, TextKind};

/// What happened to a row, in Debezium's letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `c`: inserted.
    Create,
    /// `u`: updated in place, key unchanged.
    Update,
    /// `d`: deleted, or the old key of a key change.
    Delete,
    /// `t`: the whole table was truncated.
    Truncate,
    /// `r`: read by a backfill.
    Read,
}

impl Op {
    /// The envelope's letter.
    pub const fn letter(self) -> char {
        match self {
            Self::Create => 'c',
            Self::Update => 'u',
            Self::Delete => 'd',
            Self::Truncate => 't',
            Self::Read => 'r',
        }
    }

    /// The reverse of [`Op::letter`]; `None` for any other letter.
    pub const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'c' => Some(Self::Create),
            b'u' => Some(Self::Update),
            b'd' => Some(Self::Delete),
            b't' => Some(Self::Truncate),
            b'r' => Some(Self::Read),
            _ => None,
        }
    }
}

/// One column of a row as it came off the wire: Postgres's own text form, borrowed.
///
/// `Unchanged` is a TOASTed value that the server did not send because the statement left it alone.
/// It is not null and has no placeholder: whoever writes rows at rest completes it from the row held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL null.
    Null,
    /// An unchanged TOAST value, not sent.
    Unchanged,
    /// The type's text output, as `SELECT col::text` prints it under the session settings of the
    /// replication connection (`DateStyle=ISO`, `IntervalStyle=iso_8601`, `bytea_output=hex`,
    /// `extra_float_digits=3`, `TimeZone=UTC`).
    Text(&'a [u8]),
    /// A value of a change that was too large to be held, and was left out while it arrived.
    LeftOut {
        /// Its length.
        bytes: u64,
        /// Its first bytes.
        begins: &'a [u8],
    },
}
