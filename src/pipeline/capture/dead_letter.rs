//! Changes that could not be encoded, as they came off the wire.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::change::{TableSchema, Value};
use crate::envelope::RowChange;
use crate::log::TopicRecords;

/// Appends a change to the topic of dead letters: position, reason, and each column as Postgres sent it.
pub fn write(topic: &mut TopicRecords, schema: &TableSchema, row: &RowChange<'_>, reason: &str) {
    let old = row.old.map(|old| columns(schema, old.values));
    let letter = json!({
        "schema": schema.name.schema,
        "table": schema.name.table,
        "schema_version": schema.version,
        "position": row.position,
        "op": row.op.letter(),
        "reason": reason,
        "old": old,
        "new": row.new.map(|values| columns(schema, values)),
    });
    let mut record = topic.begin(row.commit_us / 1000);
    record.null();
    record.field(|buffer| buffer.extend_from_slice(letter.to_string().as_bytes()));
    record.finish();
}

/// Columns in the order of the wire, by name where the schema still tells it; text that is not UTF-8 as base64.
fn columns(schema: &TableSchema, values: &[Value<'_>]) -> Json {
    let mut names = schema.columns.iter().filter(|column| !column.dropped).map(|column| column.name.clone());
    let mut object = Map::new();
    for (index, value) in values.iter().enumerate() {
        let name = names.next().unwrap_or_else(|| format!("column {index}"));
        let json = match value {
            Value::Null => Json::Null,
            Value::Unchanged => json!({ "unchanged": true }),
            Value::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Json::from(text),
                Err(_) => json!({ "base64": BASE64_STANDARD.encode(text) }),
            },
        };
        object.insert(name, json);
    }
    Json::Object(object)
}
