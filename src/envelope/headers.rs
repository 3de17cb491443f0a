//! Record headers: their names, and those that every record has.

use crate::change::{Lsn, Position, SchemaVersion, Timeline};
use crate::log::RecordWriter;

/// [`Position`](crate::change::Position) of the change, in its text form. On every record, tombstones too.
pub const POSITION: &str = "tidemark.position";
/// [`SchemaVersion`](crate::change::SchemaVersion) of the row, in decimal. On every record, tombstones too.
pub const SCHEMA: &str = "tidemark.schema";
/// On the delete of a key change and its tombstone: the new key, as the JSON of a record key.
pub const NEW_KEY: &str = "__debezium.newkey";
/// On the create of a key change: the old key, as the JSON of a record key.
pub const OLD_KEY: &str = "__debezium.oldkey";
/// In Avro, on a value whose row after holds them: the columns whose TOAST value the statement left alone, as a JSON
/// array of names. Their fields are null, which for them means nothing.
pub const UNCHANGED: &str = "tidemark.unchanged";
/// In Avro: columns of the row after whose value their Avro type cannot hold, as a JSON object of column to value, in
/// the form of the JSON envelope. Their fields are null.
pub const EXACT: &str = "tidemark.exact";
/// The same for the row before.
pub const EXACT_BEFORE: &str = "tidemark.exact.before";

/// The headers of every record, kept as finished pieces.
#[derive(Clone, Debug)]
pub(super) struct HeaderStamp {
    schema_version: String,
    /// The text of a position up to its ordinal.
    position: Vec<u8>,
}

impl HeaderStamp {
    pub(super) fn new(version: SchemaVersion) -> Self {
        Self { schema_version: version.0.to_string(), position: Vec::new() }
    }

    /// Makes the pieces fit a transaction.
    pub(super) fn prepare(&mut self, timeline: Timeline, commit_lsn: Lsn) {
        let whole = Position { timeline, commit_lsn, ordinal: 0 }.to_string();
        self.position.clear();
        self.position.extend_from_slice(whole.strip_suffix('0').unwrap_or(&whole).as_bytes());
    }

    pub(super) fn write(&self, ordinal: u64, record: &mut RecordWriter<'_>) {
        record.header(POSITION, |out| {
            out.extend_from_slice(&self.position);
            out.extend_from_slice(itoa::Buffer::new().format(ordinal).as_bytes());
        });
        record.header(SCHEMA, |out| out.extend_from_slice(self.schema_version.as_bytes()));
    }
}
