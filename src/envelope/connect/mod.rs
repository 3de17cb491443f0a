//! The shape of a table's records in Kafka Connect's terms, as Debezium makes it.
//!
//! ```text
//!   TableSchema ──> Schema of key and envelope ──┬─ json ──> {"schema":…} beside each payload
//!                                                └─ envelope::avro::schema ──> what a registry holds
//! ```
//!
//! The one place that says which Connect type, semantic name and parameters a column has, so that JSON with schemas
//! and Avro cannot come apart.

mod json;

use super::json::DecimalHandling;
use super::routing::topic_name;
use crate::change::{ColumnType, TableSchema, TextKind};

/// A schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schema {
    pub kind: Kind,
    pub optional: bool,
    pub name: Option<String>,
    pub version: Option<u32>,
    pub doc: Option<&'static str>,
    pub parameters: Vec<(&'static str, String)>,
    pub default: Option<&'static str>,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    String,
    Bytes,
    Array(Box<Schema>),
    Struct(Vec<Field>),
}

/// A field of a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub name: String,
    pub schema: Schema,
}

/// The labels of `source.snapshot`.
const SNAPSHOT: &str = "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental";

impl Schema {
    const fn new(kind: Kind) -> Self {
        Self {
            kind,
            optional: false,
            name: None,
            version: None,
            doc: None,
            parameters: Vec::new(),
            default: None,
        }
    }

    fn named(kind: Kind, name: &str, version: u32) -> Self {
        Self { name: Some(name.to_owned()), version: Some(version), ..Self::new(kind) }
    }

    fn optional(self, optional: bool) -> Self {
        Self { optional, ..self }
    }

    fn with(mut self, parameter: &'static str, value: &impl ToString) -> Self {
        self.parameters.push((parameter, value.to_string()));
        self
    }
}

impl Field {
    fn new(name: &str, schema: Schema) -> Self {
        Self { name: name.to_owned(), schema }
    }
}

/// The schema of a table's keys; none for a table without one.
pub(super) fn key(source_name: &str, table: &TableSchema, decimals: DecimalHandling) -> Option<Schema> {
    let fields: Vec<Field> =
        table.key_columns().map(|c| Field::new(&c.name, column(&c.column_type, decimals))).collect();
    let topic = topic_name(source_name, &table.name);
    (!fields.is_empty())
        .then(|| Schema { name: Some(format!("{topic}.Key")), ..Schema::new(Kind::Struct(fields)) })
}

/// The schema of a table's envelopes.
pub(super) fn envelope(source_name: &str, table: &TableSchema, decimals: DecimalHandling) -> Schema {
    let topic = topic_name(source_name, &table.name);
    let row = table
        .columns
        .iter()
        .map(|c| Field::new(&c.name, column(&c.column_type, decimals).optional(c.nullable)))
        .collect();
    let row =
        Schema { name: Some(format!("{topic}.Value")), ..Schema::new(Kind::Struct(row)) }.optional(true);
    let fields = vec![
        Field::new("before", row.clone()),
        Field::new("after", row),
        Field::new("source", source()),
        Field::new("transaction", transaction()),
        Field::new("op", Schema::new(Kind::String)),
        optional("ts_ms", Kind::Int64),
        optional("ts_us", Kind::Int64),
        optional("ts_ns", Kind::Int64),
    ];
    Schema::named(Kind::Struct(fields), &format!("{topic}.Envelope"), 2)
}

fn required(name: &str, kind: Kind) -> Field {
    Field::new(name, Schema::new(kind))
}

fn optional(name: &str, kind: Kind) -> Field {
    Field::new(name, Schema::new(kind).optional(true))
}

fn source() -> Schema {
    let snapshot =
        Schema::named(Kind::String, "io.debezium.data.Enum", 1).with("allowed", &SNAPSHOT).optional(true);
    let fields = vec![
        required("version", Kind::String),
        required("connector", Kind::String),
        required("name", Kind::String),
        required("ts_ms", Kind::Int64),
        Field::new("snapshot", Schema { default: Some("false"), ..snapshot }),
        required("db", Kind::String),
        optional("sequence", Kind::String),
        optional("ts_us", Kind::Int64),
        optional("ts_ns", Kind::Int64),
        required("schema", Kind::String),
        required("table", Kind::String),
        optional("txId", Kind::Int64),
        optional("lsn", Kind::Int64),
        optional("xmin", Kind::Int64),
        optional("origin", Kind::String),
        optional("origin_lsn", Kind::Int64),
    ];
    Schema::named(Kind::Struct(fields), "io.debezium.connector.postgresql.Source", 1)
}

fn transaction() -> Schema {
    let fields = vec![
        required("id", Kind::String),
        required("total_order", Kind::Int64),
        required("data_collection_order", Kind::Int64),
    ];
    Schema::named(Kind::Struct(fields), "event.block", 1).optional(true)
}

/// The schema of the keys of `<name>.transaction`.
pub(super) fn transaction_key() -> Schema {
    let fields = vec![required("id", Kind::String)];
    Schema::named(Kind::Struct(fields), "io.debezium.connector.common.TransactionMetadataKey", 1)
}

/// The schema of the values of `<name>.transaction`.
pub(super) fn transaction_value() -> Schema {
    let fields = vec![required("data_collection", Kind::String), required("event_count", Kind::Int64)];
    let collection = Schema::named(Kind::Struct(fields), "event.collection", 1).optional(true);
    let fields = vec![
        required("status", Kind::String),
        required("id", Kind::String),
        optional("event_count", Kind::Int64),
        optional("data_collections", Kind::Array(Box::new(collection))),
        required("ts_ms", Kind::Int64),
    ];
    Schema::named(Kind::Struct(fields), "io.debezium.connector.common.TransactionMetadataValue", 1)
}

/// A column that may not be null.
fn column(column_type: &ColumnType, decimals: DecimalHandling) -> Schema {
    let plain = Schema::new;
    let named = Schema::named;
    match column_type {
        ColumnType::Bool | ColumnType::Bits { length: 1 } => plain(Kind::Boolean),
        ColumnType::Int16 => plain(Kind::Int16),
        ColumnType::Int32 => plain(Kind::Int32),
        ColumnType::Int64 => plain(Kind::Int64),
        ColumnType::Float32 => plain(Kind::Float32),
        ColumnType::Float64 => plain(Kind::Float64),
        ColumnType::Decimal { .. } | ColumnType::Numeric if decimals == DecimalHandling::String => {
            plain(Kind::String)
        }
        ColumnType::Decimal { precision, scale } => {
            named(Kind::Bytes, "org.apache.kafka.connect.data.Decimal", 1)
                .with("scale", scale)
                .with("connect.decimal.precision", precision)
        }
        ColumnType::Numeric => {
            let fields = vec![required("scale", Kind::Int32), required("value", Kind::Bytes)];
            let doc = Some("Variable scaled decimal");
            Schema { doc, ..named(Kind::Struct(fields), "io.debezium.data.VariableScaleDecimal", 1) }
        }
        ColumnType::Text { text } => match text {
            TextKind::Plain | TextKind::Other => plain(Kind::String),
            TextKind::Uuid => named(Kind::String, "io.debezium.data.Uuid", 1),
            TextKind::Json => named(Kind::String, "io.debezium.data.Json", 1),
            TextKind::Xml => named(Kind::String, "io.debezium.data.Xml", 1),
            TextKind::Tsvector => named(Kind::String, "io.debezium.data.Tsvector", 1),
            TextKind::Ltree => named(Kind::String, "io.debezium.data.Ltree", 1),
            TextKind::Enum(labels) => {
                named(Kind::String, "io.debezium.data.Enum", 1).with("allowed", &labels.join(","))
            }
        },
        ColumnType::Bytes => plain(Kind::Bytes),
        ColumnType::Bits { length } => named(Kind::Bytes, "io.debezium.data.Bits", 1).with("length", length),
        ColumnType::Date => named(Kind::Int32, "io.debezium.time.Date", 1),
        ColumnType::Time { precision: ..=3 } => named(Kind::Int32, "io.debezium.time.Time", 1),
        ColumnType::Time { .. } => named(Kind::Int64, "io.debezium.time.MicroTime", 1),
        ColumnType::Timestamp { precision: ..=3 } => named(Kind::Int64, "io.debezium.time.Timestamp", 1),
        ColumnType::Timestamp { .. } => named(Kind::Int64, "io.debezium.time.MicroTimestamp", 1),
        ColumnType::TimestampTz { .. } => named(Kind::String, "io.debezium.time.ZonedTimestamp", 1),
        ColumnType::TimeTz => named(Kind::String, "io.debezium.time.ZonedTime", 1),
        ColumnType::Interval => named(Kind::String, "io.debezium.time.Interval", 1),
        ColumnType::Array { element } => {
            plain(Kind::Array(Box::new(column(element, decimals).optional(true))))
        }
    }
}
