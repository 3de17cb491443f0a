//! Dead letters at rest: one JSON object a line.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::change::{Position, SchemaVersion};
use crate::runtime::{Error, Result};

/// A record which is not in the lake's tables, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Log partition of the table's topic.
    pub partition: u32,
    /// Offset of the record: with it, the log can be read again.
    pub offset: u64,
    /// Place of the change, if it is known.
    pub position: Option<Position>,
    /// What is wrong, naming the column.
    pub reason: String,
    /// Version of the table's shape, if it is known.
    pub schema_version: Option<SchemaVersion>,
    /// The record's key, or the row's key as a JSON array when it was found while merging.
    pub key: Option<Payload>,
    /// The record's value.
    pub value: Option<Payload>,
}

/// Bytes in JSON: text as it is, anything else in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// UTF-8.
    Text(String),
    /// Not UTF-8.
    Binary {
        /// The bytes.
        base64: String,
    },
}

impl Payload {
    /// Of those bytes.
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Binary { base64: BASE64_STANDARD.encode(bytes) },
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::Binary { base64 } => BASE64_STANDARD
                .decode(base64)
                .map_err(|error| Error::operator("a dead letter holds damaged base64").cause(error)),
        }
    }
}

impl DeadLetter {
    /// The object's line.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        // Writing plain data to a vector cannot fail.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }
}

/// The dead letters in an object; `shown` names it in errors.
pub(in crate::lake) fn read_lines(object: &[u8], shown: &str) -> Result<Vec<DeadLetter>> {
    let lines = object.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            serde_json::from_slice(line)
                .map_err(|error| Error::operator(format!("{shown} holds a damaged dead letter")).cause(error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_survive() {
        for bytes in [&b"plain"[..], b"\xFF\x00", b""] {
            let text = serde_json::to_string(&Payload::new(bytes)).unwrap();
            assert_eq!(serde_json::from_str::<Payload>(&text).unwrap().bytes().unwrap(), bytes);
        }
    }
}
