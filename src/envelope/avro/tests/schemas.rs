//! The schemas that are registered: in full once, then what changes from version to version.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use serde_json::{Value as Json, json};

use super::fixture::*;
use crate::change::{ColumnType, Op, TableName, TableSchema, TextKind, Value};
use crate::envelope::DecimalHandling;
use crate::envelope::avro::AvroSchemas;
use crate::envelope::json::Options;

fn schemas(table: &crate::change::TableSchema) -> AvroSchemas {
    AvroSchemas::new("shop", table, DecimalHandling::Precise)
}

fn parsed(table: &crate::change::TableSchema) -> Schema {
    Schema::parse_str(&schemas(table).value.schema).unwrap()
}

#[test]
fn a_tables_schemas_are_as_debezium_and_the_avro_converter_make_them() {
    let columns = vec![
        column("id", ColumnType::Int64),
        column("total", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("level", ColumnType::Int16),
        column("status", text(TextKind::Enum(vec!["new".into(), "paid".into()]))),
        column("tags", array(ColumnType::TEXT)),
    ];
    let AvroSchemas { key, value } = schemas(&table(columns, vec![0]));
    let (key, value) = (key.unwrap(), value);
    assert_eq!(
        (key.name.as_str(), value.name.as_str()),
        ("shop.public.orders.Key", "shop.public.orders.Envelope")
    );
    let key: Json = serde_json::from_str(&key.schema).unwrap();
    let expected: Json = serde_json::from_str(include_str!("../../../../schemas/avro/key.avsc")).unwrap();
    assert_eq!(key, expected, "schemas/avro/key.avsc");
    let value: Json = serde_json::from_str(&value.schema).unwrap();
    let expected: Json =
        serde_json::from_str(include_str!("../../../../schemas/avro/envelope.avsc")).unwrap();
    assert_eq!(value, expected, "schemas/avro/envelope.avsc");
}

#[test]
fn every_type_makes_a_schema_that_apache_avro_takes() {
    let types = [
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Float32,
        ColumnType::Float64,
        ColumnType::Decimal { precision: 1000, scale: 1000 },
        ColumnType::Decimal { precision: 3, scale: -3 },
        ColumnType::Numeric,
        text(TextKind::Uuid),
        text(TextKind::Json),
        text(TextKind::Other),
        ColumnType::Bytes,
        ColumnType::Bits { length: 1 },
        ColumnType::Bits { length: 19 },
        ColumnType::Date,
        ColumnType::Time { precision: 3 },
        ColumnType::Time { precision: 6 },
        ColumnType::Timestamp { precision: 0 },
        ColumnType::Timestamp { precision: 6 },
        ColumnType::TimestampTz { precision: 0 },
        ColumnType::TimeTz,
        ColumnType::Interval,
        ColumnType::Numeric,
        array(ColumnType::Numeric),
        array(ColumnType::Int16),
    ];
    let named = |(index, kind): (usize, ColumnType)| column(&format!("c{index}"), kind);
    let mut table = table(types.into_iter().enumerate().map(named).collect(), vec![6, 1]);
    table.name = TableName::new("2-nd", "Größe");
    let AvroSchemas { key, value } = AvroSchemas::new("my-shop", &table, DecimalHandling::Precise);
    Schema::parse_str(&key.unwrap().schema).unwrap();
    Schema::parse_str(&value.schema).unwrap();
    assert_eq!(value.name, "my_shop._2_nd.Gr__e.Envelope");
    let strings = AvroSchemas::new("my-shop", &table, DecimalHandling::String);
    assert!(!strings.value.schema.contains("VariableScaleDecimal"));
}

#[test]
fn a_name_that_avro_does_not_take_keeps_its_original_beside_it() {
    let table = table(vec![column("id", ColumnType::Int64), column("net €", ColumnType::Int32)], vec![0]);
    let value: Json = serde_json::from_str(&schemas(&table).value.schema).unwrap();
    let row = &value["fields"][0]["type"][1]["fields"];
    assert_eq!(
        row[1],
        json!({"name": "net__", "type": ["null", "int"], "default": null, "tidemark.column": "net €"})
    );
}

#[test]
fn what_a_table_gains_keeps_older_records_readable() {
    let first = table(vec![column("id", ColumnType::Int32), column("a", ColumnType::Int32)], vec![0]);
    let mut source = table(
        vec![
            column("id", ColumnType::Int64),
            column("b", array(ColumnType::Numeric)),
            column("c", ColumnType::Bool),
        ],
        vec![0],
    );
    source.columns[2].nullable = false;
    let next = first.evolve(&source).unwrap().after;
    let new = [Value::Text(b"7"), Value::Null];
    let out = encode(&first, Options::default(), &change(Op::Create, None, Some(&new))).unwrap();
    let value = out.iter().next().unwrap().value.unwrap()[5..].to_vec();
    let read_by = |newer: &TableSchema| {
        let (writer, reader) = (parsed(&first), parsed(newer));
        let reader = GenericDatumReader::builder(&writer).reader_schema(&reader).build().unwrap();
        reader.read_value(&mut &value[..]).map(|value| fields(fields(value)["after"].clone()))
    };
    let row = read_by(&next).unwrap();
    assert_eq!((&row["id"], &row["a"]), (&Avro::Long(7), &Avro::Null));
    assert_eq!((&row["b"], &row["c"]), (&Avro::Null, &Avro::Null));
    let retyped = table(vec![column("id", ColumnType::Bool), column("a", ColumnType::Bool)], vec![0]);
    let row = read_by(&first.evolve(&retyped).unwrap().after).unwrap();
    assert_eq!(
        (&row["id"], &row["id__v2"]),
        (&Avro::Int(7), &Avro::Null),
        "a column of another type is another column"
    );
}
