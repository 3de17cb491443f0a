//! Changes that could not be encoded, or are too large for their topic, as they came off the wire.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::change::{TableSchema, Value};
use crate::envelope::{EncodeError, RowChange};
use crate::log::TopicRecords;

/// What is kept of a value where a letter would be too large for its own topic.
const KEPT_BYTES: usize = 256;

/// Has a change that cannot be carried as a dead letter, and says so.
pub fn bury(
    topic: &mut TopicRecords,
    schema: &TableSchema,
    row: &RowChange<'_>,
    error: &EncodeError,
    bytes_max: Option<usize>,
) {
    // Of a table that is refused as a whole it has been told when that was found.
    if !matches!(error, EncodeError::Refused(_)) {
        tracing::error!(table = %schema.name, position = %row.position, %error,
            "a change cannot be carried and went to the dead letters");
    }
    write(topic, schema, row, &error.to_string(), bytes_max);
}

/// Appends a change to the topic of dead letters: position, reason, and each column as Postgres sent it, or the
/// beginnings of the long ones and their lengths where the letter would have more than `bytes_max` bytes. The
/// columns of the key are always whole.
fn write(
    topic: &mut TopicRecords,
    schema: &TableSchema,
    row: &RowChange<'_>,
    reason: &str,
    bytes_max: Option<usize>,
) {
    let fits = |bytes: usize| bytes_max.is_none_or(|bytes_max| bytes <= bytes_max);
    // A value that is itself too large is not written out first.
    let whole = fits(values_bytes(row)).then(|| letter(schema, row, reason, usize::MAX).to_string());
    let whole = whole.filter(|whole| fits(whole.len()));
    let text = whole.unwrap_or_else(|| letter(schema, row, reason, KEPT_BYTES).to_string());
    let mut record = topic.begin(row.commit_us / 1000);
    record.null();
    record.field(|buffer| buffer.extend_from_slice(text.as_bytes()));
    record.finish();
}

fn values_bytes(row: &RowChange<'_>) -> usize {
    let values = row.old.iter().flat_map(|old| old.values).chain(row.new.into_iter().flatten());
    let bytes = |value: &Value<'_>| match value {
        Value::Text(text) => text.len(),
        Value::LeftOut { begins, .. } => begins.len(),
        Value::Null | Value::Unchanged => 0,
    };
    values.map(bytes).sum()
}

fn letter(schema: &TableSchema, row: &RowChange<'_>, reason: &str, kept_bytes: usize) -> Json {
    json!({
        "schema": schema.name.schema,
        "table": schema.name.table,
        "schema_version": schema.version,
        "position": row.position,
        "op": row.op.letter(),
        "reason": reason,
        "old": row.old.map(|old| columns(schema, old.values, kept_bytes)),
        "new": row.new.map(|values| columns(schema, values, kept_bytes)),
    })
}

/// Columns in the order of the wire, by name where the schema still tells it; text that is not UTF-8 as base64.
fn columns(schema: &TableSchema, values: &[Value<'_>], kept_bytes: usize) -> Json {
    let mut live = schema.columns.iter().enumerate().filter(|(_, column)| !column.dropped);
    let mut object = Map::new();
    for (index, value) in values.iter().enumerate() {
        let (at, name) = match live.next() {
            Some((at, column)) => (Some(at), column.name.clone()),
            None => (None, format!("column {index}")),
        };
        let in_key = at.is_some_and(|at| schema.key.contains(&at));
        let json = match value {
            Value::Null => Json::Null,
            Value::Unchanged => json!({ "unchanged": true }),
            Value::LeftOut { bytes, begins } => {
                json!({ "bytes": bytes, "begins": String::from_utf8_lossy(begins) })
            }
            Value::Text(text) if text.len() > kept_bytes && !in_key => {
                json!({ "bytes": text.len(), "begins": String::from_utf8_lossy(&text[..kept_bytes]) })
            }
            Value::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Json::from(text),
                Err(_) => json!({ "base64": BASE64_STANDARD.encode(text) }),
            },
        };
        object.insert(name, json);
    }
    Json::Object(object)
}
