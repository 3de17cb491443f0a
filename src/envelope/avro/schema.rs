//! Connect's schemas as Avro, in the way of Confluent's `AvroConverter`.
//!
//! | Connect | Avro |
//! |---|---|
//! | struct | record, named by the struct; written out once, by its name after that |
//! | optional | union of null and the type, null by default |
//! | optional with a default | union of the type and null |
//! | int16 | int, with `connect.type` |
//! | name, version, parameters, doc, default | `connect.name`, `connect.version`, … |
//! | Decimal | bytes with logical type `decimal`; without it where Avro has no such scale |
//!
//! A table's shape only grows, and a new column takes null by default: whoever reads with a newer schema reads older
//! records, too. A type that widens within Avro's promotions (int to long, float to double) stays compatible; any
//! other change of type is refused by a registry that looks, and isolates its table.

use serde_json::{Map, Value, json};

use super::names;
use crate::change::TableSchema;
use crate::envelope::connect::{self, Kind, Schema};
use crate::envelope::json::DecimalHandling;

/// The property of a field that holds the column's own name, where Avro does not take it.
const COLUMN: &str = "tidemark.column";

/// The schemas of a topic's records, as a registry takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AvroSchemas {
    /// Full name and text of the key's; none for records without a key.
    pub key: Option<Named>,
    /// Full name and text of the value's.
    pub value: Named,
}

/// A schema with the full name of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Full name.
    pub name: String,
    /// Its JSON.
    pub schema: String,
}

impl AvroSchemas {
    /// Those of one version of a table.
    pub fn new(source_name: &str, table: &TableSchema, decimals: DecimalHandling) -> Self {
        let columns = names::fields(table);
        let key_columns: Vec<String> = table.key.iter().map(|index| columns[*index].clone()).collect();
        Self {
            key: connect::key(source_name, table, decimals).map(|key| Named::new(&key, &key_columns)),
            value: Named::new(&connect::envelope(source_name, table, decimals), &columns),
        }
    }

    /// Those of records without rows.
    pub(in crate::envelope) fn of(key: &Schema, value: &Schema) -> Self {
        Self { key: Some(Named::new(key, &[])), value: Named::new(value, &[]) }
    }
}

impl Named {
    /// `columns` are the names of the fields of a row or key.
    fn new(schema: &Schema, columns: &[String]) -> Self {
        let mut writer = Writer { columns, written: Vec::new() };
        let name = names::legal_full(schema.name.as_deref().unwrap_or_default());
        Self { schema: writer.base(schema).to_string(), name }
    }
}

struct Writer<'a> {
    /// Names of the fields of a row or key.
    columns: &'a [String],
    /// Full names of the records written out.
    written: Vec<String>,
}

impl Writer<'_> {
    fn schema(&mut self, schema: &Schema) -> Value {
        let base = self.base(schema);
        match (schema.optional, schema.default) {
            (false, _) => base,
            (true, None) => json!(["null", base]),
            (true, Some(_)) => json!([base, "null"]),
        }
    }

    /// Without the union of an optional one.
    fn base(&mut self, schema: &Schema) -> Value {
        let mut out = Map::new();
        match &schema.kind {
            Kind::Struct(fields) => {
                let full = names::legal_full(schema.name.as_deref().unwrap_or_default());
                if self.written.contains(&full) {
                    return full.into();
                }
                self.written.push(full.clone());
                let (namespace, name) = full.rsplit_once('.').unwrap_or(("", &full));
                out.insert("type".into(), "record".into());
                out.insert("name".into(), name.into());
                out.insert("namespace".into(), namespace.into());
                let is_row = matches!(name, "Key" | "Value");
                out.insert("fields".into(), self.fields(fields, is_row));
            }
            Kind::Array(items) => {
                out.insert("type".into(), "array".into());
                out.insert("items".into(), self.schema(items));
            }
            kind => drop(out.insert("type".into(), primitive(kind).into())),
        }
        properties(schema, &mut out);
        match out.len() {
            1 => out.remove("type").unwrap_or_default(),
            _ => Value::Object(out),
        }
    }

    fn fields(&mut self, fields: &[connect::Field], is_row: bool) -> Value {
        let columns = self.columns;
        let field = |(index, field): (usize, &connect::Field)| {
            let name = columns.get(index).filter(|_| is_row).unwrap_or(&field.name);
            let mut out = Map::new();
            out.insert("name".into(), name.as_str().into());
            out.insert("type".into(), self.schema(&field.schema));
            if field.schema.optional {
                out.insert("default".into(), field.schema.default.map_or(Value::Null, Into::into));
            }
            if *name != field.name {
                out.insert(COLUMN.into(), field.name.as_str().into());
            }
            Value::Object(out)
        };
        fields.iter().enumerate().map(field).collect()
    }
}

const fn primitive(kind: &Kind) -> &'static str {
    match kind {
        Kind::Boolean => "boolean",
        Kind::Int16 | Kind::Int32 => "int",
        Kind::Int64 => "long",
        Kind::Float32 => "float",
        Kind::Float64 => "double",
        Kind::Bytes => "bytes",
        Kind::String | Kind::Array(_) | Kind::Struct(_) => "string",
    }
}

fn properties(schema: &Schema, out: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Option<Value>| value.map(|value| out.insert(key.into(), value));
    let parameter = |name: &str| {
        let (_, value) = schema.parameters.iter().find(|(parameter, _)| *parameter == name)?;
        value.parse::<i64>().ok()
    };
    if schema.kind == Kind::Int16 {
        put("connect.type", Some("int16".into()));
    }
    // Only Decimal has both.
    let decimal = parameter("scale").zip(parameter("connect.decimal.precision"));
    let decimal = decimal.filter(|(scale, precision)| (0..=*precision).contains(scale));
    if let Some((scale, precision)) = decimal {
        put("scale", Some(scale.into()));
        put("precision", Some(precision.into()));
    }
    put("connect.doc", schema.doc.map(Into::into));
    put("connect.version", schema.version.map(Into::into));
    if !schema.parameters.is_empty() {
        let parameters = schema.parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
        put("connect.parameters", Some(Value::Object(parameters.collect())));
    }
    put("connect.default", schema.default.map(Into::into));
    put("connect.name", schema.name.as_deref().map(|name| names::legal_full(name).into()));
    if decimal.is_some() {
        put("logicalType", Some("decimal".into()));
    }
}
