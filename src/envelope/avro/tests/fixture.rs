//! Tables, changes and records to test with, and apache-avro as the reader that is not ours.

use std::collections::HashMap;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;

use crate::change::{
    Column, ColumnType, Datum, Lsn, Op, Position, ReplicaIdentity, SchemaVersion, TableName, TableSchema,
    TextKind, Value,
};
use crate::envelope::avro::{AvroSchemas, SchemaIds, TableDecoder, TableEncoder};
use crate::envelope::json::{self, DecimalHandling, Options};
use crate::envelope::{DecodeError, Decoded, EncodeError, OldKind, OldRow, RowChange, SourceInfo};
use crate::log::{RecordRef, TopicRecords};

pub const POSITION: Position = Position { timeline: 1, commit_lsn: Lsn(0x16_B374_D848), ordinal: 3 };
pub const IDS: SchemaIds = SchemaIds { key: 7, value: 0x0102_0304 };
pub const STRINGS: Options = Options { decimal_handling: DecimalHandling::String };

pub fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "its type", true)
}

/// Columns of the key take no null.
pub fn table(mut columns: Vec<Column>, key: Vec<usize>) -> TableSchema {
    for index in &key {
        columns[*index].nullable = false;
    }
    TableSchema {
        name: TableName::new("public", "orders"),
        oid: 1,
        version: SchemaVersion(7),
        columns,
        key,
        identity: ReplicaIdentity::Default,
        comment: None,
        dropped: false,
    }
}

pub fn source() -> SourceInfo {
    SourceInfo { name: "shop".into(), database: "shopdb".into(), version: "0.1.0".into() }
}

pub fn change<'a>(op: Op, old: Option<OldRow<'a>>, new: Option<&'a [Value<'a>]>) -> RowChange<'a> {
    RowChange {
        op,
        position: POSITION,
        lsn: Lsn(0x16_B374_0000),
        commit_us: 1_795_342_530_123_456,
        now_ms: 1_795_342_531_000,
        xid: Some(750),
        snapshot: false,
        last_end_lsn: Some(Lsn(0x16_B373_0000)),
        transaction: None,
        old,
        new,
    }
}

pub fn full<'a>(values: &'a [Value<'a>]) -> OldRow<'a> {
    OldRow { kind: OldKind::Full, values }
}

pub fn key_only<'a>(values: &'a [Value<'a>]) -> OldRow<'a> {
    OldRow { kind: OldKind::Key, values }
}

pub fn text(kind: TextKind) -> ColumnType {
    ColumnType::Text { text: kind }
}

pub fn array(element: ColumnType) -> ColumnType {
    ColumnType::Array { element: Box::new(element) }
}

fn layout(schema: &TableSchema) -> Vec<Option<usize>> {
    (0..schema.columns.len()).map(Some).collect()
}

pub fn encode(
    schema: &TableSchema,
    options: Options,
    change: &RowChange<'_>,
) -> Result<TopicRecords, EncodeError> {
    let mut out = TopicRecords::new(Arc::from("shop.public.orders"));
    TableEncoder::new(&source(), schema, &layout(schema), options, IDS).encode(change, &mut out)?;
    Ok(out)
}

pub fn encode_json(
    schema: &TableSchema,
    options: Options,
    change: &RowChange<'_>,
) -> Result<TopicRecords, EncodeError> {
    let mut out = TopicRecords::new(Arc::from("shop.public.orders"));
    json::TableEncoder::new(&source(), schema, &layout(schema), options).encode(change, &mut out)?;
    Ok(out)
}

pub type Row<'a> = (Decoded<'a>, Vec<Datum<'a>>);

/// All records, decoded by us.
pub fn decode<'a>(
    schema: &TableSchema,
    options: Options,
    out: &'a TopicRecords,
) -> Result<Vec<Row<'a>>, DecodeError> {
    let decoder = TableDecoder::new(schema, options);
    let decode = |record: RecordRef<'a>| {
        let mut row = Vec::new();
        decoder.decode(&record, &mut row).map(|decoded| (decoded, row))
    };
    out.iter().map(decode).collect()
}

/// All records of the JSON envelope, decoded.
pub fn decode_json<'a>(schema: &TableSchema, options: Options, out: &'a TopicRecords) -> Vec<Row<'a>> {
    let decoder = json::TableDecoder::new(schema, options);
    let decode = |record: RecordRef<'a>| {
        let mut row = Vec::new();
        let decoded = decoder.decode(&record, &mut row).unwrap();
        (decoded, row)
    };
    out.iter().map(decode).collect()
}

/// A key or value as apache-avro reads it by the schema that would be registered. Nothing may be left over.
pub fn read(schema: &str, id: u32, bytes: &[u8]) -> Avro {
    let schema = Schema::parse_str(schema).unwrap();
    let [0, a, b, c, d, body @ ..] = bytes else { panic!("no id in {bytes:?}") };
    assert_eq!(u32::from_be_bytes([*a, *b, *c, *d]), id);
    let mut rest = body;
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let value = reader.read_value(&mut rest).unwrap();
    assert!(rest.is_empty(), "{} bytes are left over", rest.len());
    value
}

/// The value of a record, by its fields; unions taken off.
pub fn read_value(schema: &TableSchema, options: Options, record: &RecordRef<'_>) -> HashMap<String, Avro> {
    let schemas = AvroSchemas::new("shop", schema, options.decimal_handling);
    fields(read(&schemas.value.schema, IDS.value, record.value.unwrap()))
}

pub fn fields(record: Avro) -> HashMap<String, Avro> {
    let Avro::Record(fields) = plain(record) else { panic!("not a record") };
    fields.into_iter().map(|(name, value)| (name, plain(value))).collect()
}

/// Without the union around it.
pub fn plain(value: Avro) -> Avro {
    match value {
        Avro::Union(_, inner) => *inner,
        other => other,
    }
}

/// One row of one column, inserted.
pub fn insert_one(
    column_type: &ColumnType,
    options: Options,
    value: Value<'_>,
) -> Result<(TableSchema, TopicRecords), EncodeError> {
    let schema = table(vec![column("v", column_type.clone())], vec![]);
    let out = encode(&schema, options, &change(Op::Create, None, Some(&[value])))?;
    Ok((schema, out))
}
