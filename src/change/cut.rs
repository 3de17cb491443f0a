//! The points that divide two days.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::{Lsn, Position, SchemaVersion, TableName, Timeline};

/// A day folder, `ds=YYYY-MM-DD`: the day which a [`Cut`] ends, in the cut's time zone.
pub type Ds = Date;

/// The point that divides two days, as one record of the topic `<name>.cuts`. Written once, never changed.
///
/// The state of a table at the cut is all its changes below the `ends` of its log partitions, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The day it ends.
    pub ds: Ds,
    /// Timeline of `lsn`.
    pub timeline: Timeline,
    /// A position between two transactions: those whose commit record lies below it are in, others are not.
    pub lsn: Lsn,
    /// Position of the last change before the cut.
    pub position: Position,
    /// What made the cut: `midnight` or `request`.
    pub reason: String,
    /// The instant which the cut stands for: midnight, or the commit time of the request's marker.
    pub at: Timestamp,
    /// IANA name of the time zone in which `ds` is a day.
    pub time_zone: String,
    /// The database's tables at the cut, by topic.
    pub tables: BTreeMap<String, CutTable>,
}

/// A table at a [`Cut`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutTable {
    /// The table.
    #[serde(flatten)]
    pub name: TableName,
    /// Its shape at the cut.
    pub schema_version: SchemaVersion,
    /// Records with a value (tombstones are not counted) since the cut before.
    pub changes: u64,
    /// Changes since the cut before which could not be encoded: they are in the topic `<name>.dead-letters`.
    #[serde(default)]
    pub dead_letters: u64,
    /// End offset of each log partition of its topic: the first offset after the cut.
    pub ends: Vec<LogEnd>,
}

/// The end of one log partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Number of the log partition within its topic.
    pub partition: u32,
    /// Offset just past its last record.
    pub end: u64,
}
