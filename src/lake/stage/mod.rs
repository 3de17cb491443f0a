//! Staging: records of one log partition of a table, in, and change files, out.
//!
//! ```text
//!   log ── push / push_dead / skip ──> open file ──(its hour, day or size ends; a cut)──> 1. the range's link in the sequence
//!                                       │     ▲                                           2. dead letters of the range
//!                            (early)    ▼     │                                           3. the change file of the range
//!                                       pieces, which no reader sees
//! ```
//!
//! Why a crash loses and doubles nothing: the change files *are* the progress. Their names say which offsets
//! they cover; whoever starts lists them ([`chain()`]) and reads the log from the first offset that neither one of them nor a
//! piece of the next one covers ([`pieces`]). Of many who stage at once, all write the same files: see [`sequence`].
//!
//! So an hour of a log partition is one file, sorted by key, however often memory was short in it, whoever took it over, and
//! whatever columns came ([`build`]). It has a second one where it outgrows `stage_bytes_max`, where the table's key changed,
//! and where a commit is told to be of an hour that was over, as when a server's clock was set back.

mod build;
mod chain;
mod dead;
mod file;
mod pieces;
mod rows;
pub(in crate::lake) mod sequence;
mod stager;

use std::sync::Arc;

use crate::change::{Datum, Op, Position, TableSchema};

pub(super) use build::in_change_file;
pub use chain::{Chain, ChangeFile, chain, covering, recent};
pub(super) use dead::read_lines;
pub use dead::{DeadLetter, Payload};
pub(super) use file::FORMAT;
pub(super) use pieces::{early, is_early};
pub(super) use rows::SCHEMA_COLUMN;
pub use rows::{META_COLUMNS, change_schema};
pub use stager::Stager;
pub(super) use stager::Staging;

/// Where a change file ends, besides its hour, day, schema and the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageLimits {
    /// Rows of a change file, but for what was written of it early.
    pub rows_max: usize,
    /// Bytes of its decoded rows, as `batch::RowBuilder` counts them, and of its dead letters.
    pub bytes_max: usize,
}

/// One record, decoded.
#[derive(Clone, Copy, Debug)]
pub struct StagedChange<'a> {
    /// Its offset in the log partition.
    pub offset: u64,
    /// Its place among all changes.
    pub position: Position,
    /// What happened.
    pub op: Op,
    /// Commit time, microseconds since 1970.
    pub commit_us: i64,
    /// The shape of `before` and `row`.
    pub schema: &'a Arc<TableSchema>,
    /// The old key as it stands in the record's header, when this is the `c` half of a key change.
    pub old_key: Option<&'a str>,
    /// The old row, where the server logged it (a delete: at least its key).
    pub before: Option<&'a [Datum<'a>]>,
    /// The new row; empty for deletes and truncates.
    pub row: &'a [Datum<'a>],
    /// The record's key, for the dead letters.
    pub raw_key: Option<&'a [u8]>,
    /// The record's value, for the dead letters.
    pub raw_value: Option<&'a [u8]>,
}

/// A record that could not be decoded.
#[derive(Clone, Copy, Debug)]
pub struct DeadRecord<'a> {
    /// Its offset in the log partition.
    pub offset: u64,
    /// Its place among all changes, if its header could be read.
    pub position: Option<Position>,
    /// The record's time, microseconds since 1970.
    pub commit_us: i64,
    /// What is wrong with it.
    pub reason: &'a str,
    /// The record's key.
    pub raw_key: Option<&'a [u8]>,
    /// The record's value.
    pub raw_value: Option<&'a [u8]>,
}
