//! Names of the record headers.

/// [`Position`](crate::change::Position) of the change, in its text form. On every record, tombstones too.
pub const POSITION: &str = "tidemark.position";
/// [`SchemaVersion`](crate::change::SchemaVersion) of the row, in decimal. On every record, tombstones too.
pub const SCHEMA: &str = "tidemark.schema";
/// On the delete of a key change: the new key, as the JSON of a record key.
pub const NEW_KEY: &str = "__debezium.newkey";
/// On the create of a key change: the old key, as the JSON of a record key.
pub const OLD_KEY: &str = "__debezium.oldkey";
