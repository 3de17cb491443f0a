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
    /// End offset of each log partition of its topic: the first offset after the cut. The topic of its later copies
    /// is [`BACKFILL_PARTITION`].
    pub ends: Vec<LogEnd>,
    /// The copy that was made of it again and came to its end since the cut before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<CutBackfill>,
    /// Why the table is not in this day: it holds something at the source that is not in the log. A copy that a later
    /// cut tells of mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
    /// The condition of rows which its copy took, where its owner wanted not all of them: the others are not in its days,
    /// unless a change brought them whole. `false`: it was not copied at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill_where: Option<String>,
}

/// Number under which the topic of a table's later copies (its backfill topic, of one partition) stands among its log
/// partitions.
pub const BACKFILL_PARTITION: u32 = u32::MAX;

/// A later copy of a table, whole. The table at the cut is these rows and the changes after `position`, of each key the
/// newest by position; nothing from before is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutBackfill {
    /// What commits before it is in the copy: rows have its LSN and ordinals from 1, later changes lie beyond.
    pub position: Position,
    /// The same for the last of several points at which the copy was read: a row of a later point stands above the
    /// changes between the two. None where there was one point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Position>,
    /// The table's shape when it was copied.
    pub schema_version: SchemaVersion,
    /// Ends of the log partitions when the copy began: changes after `position`, and the copy's rows, lie at these
    /// offsets or later. One that is not named had none.
    pub from: Vec<LogEnd>,
    /// Offset in the backfill topic just past the copy's last row.
    pub end: u64,
    /// Rows of the copy.
    pub rows: u64,
    /// Records with a value between `from` and the cut, the copy's rows left aside.
    pub changes: u64,
    /// Rows of the copy, and changes between `from` and the cut, which could not be encoded.
    pub dead_letters: u64,
}

impl CutBackfill {
    /// Changes from it on find whatever row they need; one before it may come ahead of the copy's row.
    pub fn settled(&self) -> Position {
        self.last.unwrap_or(self.position)
    }

    /// First offset of a log partition that may be needed.
    pub fn from_of(&self, partition: u32) -> u64 {
        self.from.iter().find(|from| from.partition == partition).map_or(0, |from| from.end)
    }
}

/// The end of one log partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Number of the log partition within its topic.
    pub partition: u32,
    /// Offset just past its last record.
    pub end: u64,
}
