//! Tables, changes and records to test with.

use std::sync::Arc;

use crate::change::{
    Column, ColumnType, Datum, Lsn, Op, Position, ReplicaIdentity, SchemaVersion, TableName, TableSchema,
    TextKind, Value,
};
use crate::envelope::json::{
    DecodeError, Decoded, EncodeError, OldKind, OldRow, Options, RowChange, SourceInfo, TableDecoder,
    TableEncoder,
};
use crate::log::TopicRecords;

pub const POSITION: Position = Position { timeline: 1, commit_lsn: Lsn(0x16_B374_D848), ordinal: 3 };

pub fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "its type", true)
}

pub fn table(columns: Vec<Column>, key: Vec<usize>) -> TableSchema {
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

pub fn encoder(schema: &TableSchema, options: Options) -> TableEncoder {
    let layout: Vec<_> = (0..schema.columns.len()).map(Some).collect();
    TableEncoder::new(&source(), schema, &layout, options)
}

pub fn records() -> TopicRecords {
    TopicRecords::new(Arc::from("shop.public.orders"))
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

/// One row of one column, inserted: its records.
pub fn insert_one(
    column_type: &ColumnType,
    options: Options,
    value: Value<'_>,
) -> Result<TopicRecords, EncodeError> {
    let schema = table(vec![column("v", column_type.clone())], vec![]);
    let mut out = records();
    encoder(&schema, options).encode(&change(Op::Create, None, Some(&[value])), &mut out)?;
    Ok(out)
}

/// The JSON of a value within its row.
pub fn json_of(column_type: &ColumnType, text: &str) -> Result<String, String> {
    let out = insert_one(column_type, Options::default(), Value::Text(text.as_bytes()))
        .map_err(|e| e.to_string())?;
    let record = out.iter().next().unwrap();
    let value = std::str::from_utf8(record.value.unwrap()).unwrap();
    let (_, after) = value.split_once("\"after\":{\"v\":").unwrap();
    Ok(after.split_once("},\"source\":").unwrap().0.to_owned())
}

/// The value that comes out again.
pub fn round_trip(column_type: &ColumnType, options: Options, text: &[u8]) -> Result<Datum<'static>, String> {
    let out = insert_one(column_type, options, Value::Text(text)).map_err(|e| e.to_string())?;
    let schema = table(vec![column("v", column_type.clone())], vec![]);
    let mut row = Vec::new();
    let record = out.iter().next().unwrap();
    TableDecoder::new(&schema, options).decode(&record, &mut row).map_err(|e| e.to_string())?;
    Ok(row.swap_remove(0).into_owned())
}

/// All records of `out`, decoded: what is said of them, and their rows.
pub fn decode_all<'a>(
    schema: &TableSchema,
    out: &'a TopicRecords,
) -> Result<Vec<(Decoded<'a>, Vec<Datum<'a>>)>, DecodeError> {
    let decoder = TableDecoder::new(schema, Options::default());
    out.iter()
        .map(|record| {
            let mut row = Vec::new();
            decoder.decode(&record, &mut row).map(|decoded| (decoded, row))
        })
        .collect()
}

pub fn text(kind: TextKind) -> ColumnType {
    ColumnType::Text { text: kind }
}

pub fn array(element: ColumnType) -> ColumnType {
    ColumnType::Array { element: Box::new(element) }
}

/// Bytes in Postgres's hex form.
pub fn hex(raw: &[u8]) -> String {
    raw.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
