//! What a record says before its row is read: headers, and the parts that JSON and Avro have in common.

use super::headers;
use crate::change::{Datum, Op, Position, SchemaVersion};
use crate::log::RecordRef;

/// A record that is not one of the decoder's table and version. Names the column, never the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A header that is missing or not what it should be.
    #[error("header {0}: missing or malformed")]
    Header(&'static str),
    /// Made under another version of the table: a decoder for that version is needed.
    #[error("the record has schema version {}, the decoder has {}", found.0, expected.0)]
    Version {
        /// The decoder's version.
        expected: SchemaVersion,
        /// The record's version.
        found: SchemaVersion,
    },
    /// Key, value or a header is not the JSON that was expected.
    #[error("{reason}, at byte {at}")]
    Json {
        /// Where, within the key or value.
        at: usize,
        /// What was expected or wrong.
        reason: &'static str,
    },
    /// A value is not the Avro that was expected.
    #[error("Avro: {reason}, at byte {at}")]
    Avro {
        /// Where, within the value.
        at: usize,
        /// What was expected or wrong.
        reason: &'static str,
    },
    /// A field of a row.
    #[error("field {column:?}: {reason}, at byte {at}")]
    Column {
        /// The field.
        column: String,
        /// Where, within the key or value.
        at: usize,
        /// What was expected or wrong.
        reason: &'static str,
    },
    /// An envelope that lacks what its operation needs.
    #[error("{0}")]
    Envelope(&'static str),
}

/// What the headers of a record say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Where the change stands.
    pub position: Position,
    /// The version of the table it was encoded under.
    pub schema_version: SchemaVersion,
    /// Whether the record has no value.
    pub is_tombstone: bool,
}

/// A record but for its row.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<'a> {
    /// What happened; none for a tombstone.
    pub op: Option<Op>,
    /// Where the change stands.
    pub position: Position,
    /// The version of the table it was encoded under.
    pub schema_version: SchemaVersion,
    /// Commit time, microseconds since 1970 (of a tombstone: whole milliseconds).
    pub commit_us: i64,
    /// On the create of a key change: the old key's JSON, as in the key of a JSON record.
    pub old_key: Option<&'a [u8]>,
    /// On the delete of a key change and its tombstone: the new key's JSON.
    pub new_key: Option<&'a [u8]>,
    /// On an update of a table without a key: the row before, which the new one replaces.
    pub before: Option<Vec<Datum<'a>>>,
}

impl Decoded<'_> {
    /// Whether the record has no value.
    pub const fn is_tombstone(&self) -> bool {
        self.op.is_none()
    }
}

/// Reads a record's headers only.
pub fn peek(record: &RecordRef<'_>) -> Result<Peeked, DecodeError> {
    Headers::read(record).map(|headers| headers.peeked)
}

/// The headers of a record.
pub(super) struct Headers<'a> {
    pub peeked: Peeked,
    pub old_key: Option<&'a [u8]>,
    pub new_key: Option<&'a [u8]>,
    pub unchanged: Option<&'a [u8]>,
    pub exact: Option<&'a [u8]>,
    pub exact_before: Option<&'a [u8]>,
}

impl<'a> Headers<'a> {
    pub(super) fn read(record: &RecordRef<'a>) -> Result<Self, DecodeError> {
        let [mut position, mut schema, mut old_key, mut new_key] = [None; 4];
        let [mut unchanged, mut exact, mut exact_before] = [None; 3];
        for (name, value) in record.headers() {
            let slot = match name {
                headers::POSITION => &mut position,
                headers::SCHEMA => &mut schema,
                headers::OLD_KEY => &mut old_key,
                headers::NEW_KEY => &mut new_key,
                headers::UNCHANGED => &mut unchanged,
                headers::EXACT => &mut exact,
                headers::EXACT_BEFORE => &mut exact_before,
                _ => continue,
            };
            *slot = Some(value);
        }
        let text = |value: Option<&'a [u8]>| value.and_then(|v| std::str::from_utf8(v).ok());
        let position = text(position).and_then(|text| text.parse().ok());
        let version = text(schema).and_then(|text| text.parse().ok());
        let peeked = Peeked {
            position: position.ok_or(DecodeError::Header(headers::POSITION))?,
            schema_version: SchemaVersion(version.ok_or(DecodeError::Header(headers::SCHEMA))?),
            is_tombstone: record.value.is_none(),
        };
        Ok(Self { peeked, old_key, new_key, unchanged, exact, exact_before })
    }

    /// A record of the expected version, as far as its headers tell it.
    pub(super) fn decoded(
        &self,
        record: &RecordRef<'a>,
        expected: SchemaVersion,
    ) -> Result<Decoded<'a>, DecodeError> {
        let found = self.peeked.schema_version;
        if found != expected {
            return Err(DecodeError::Version { expected, found });
        }
        Ok(Decoded {
            op: None,
            position: self.peeked.position,
            schema_version: found,
            commit_us: record.timestamp_ms.saturating_mul(1_000),
            old_key: self.old_key,
            new_key: self.new_key,
            before: None,
        })
    }
}
