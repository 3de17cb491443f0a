//! How fast rows become records and records become rows, in each format: one thread, tables of 16 and of 4 columns.
//!
//!     cargo bench --profile fast --bench envelope

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use tidemark::change::{
    Column, ColumnType, Lsn, Op, Position, ReplicaIdentity, TableName, TableSchema, TextKind, Value,
};
use tidemark::envelope::avro::SchemaIds;
use tidemark::envelope::{
    Format, OldKind, OldRow, Options, RowChange, SourceInfo, TableDecoder, TableEncoder,
};
use tidemark::log::TopicRecords;

const ROWS: usize = 1_000;
const ROUNDS: usize = 300;

fn columns() -> Vec<(&'static str, ColumnType, &'static [u8])> {
    let money = ColumnType::Decimal { precision: 12, scale: 2 };
    let text = |text| ColumnType::Text { text };
    vec![
        ("id", ColumnType::Int64, b"9007199254740993"),
        ("customer_id", ColumnType::Int32, b"184467"),
        ("quantity", ColumnType::Int32, b"12"),
        ("price", money.clone(), b"129.95"),
        ("total", money.clone(), b"1559.40"),
        ("tax", money, b"77.97"),
        ("status", text(TextKind::Enum(vec!["new".into(), "shipped".into()])), b"shipped"),
        ("name", ColumnType::TEXT, b"Stainless steel water bottle, 750 ml"),
        ("email", ColumnType::TEXT, b"customer.184467@example.com"),
        ("address", ColumnType::TEXT, b"Sheikh Zayed Road 214, Tower B, 31st floor, Dubai, UAE"),
        ("note", ColumnType::TEXT, "Bitte an der T\u{fc}r klingeln, nicht anrufen".as_bytes()),
        ("created_at", ColumnType::TimestampTz { precision: 0 }, b"2026-11-20 10:15:30.123456+00"),
        ("updated_at", ColumnType::TimestampTz { precision: 0 }, b"2026-11-22 08:10:00.5+00"),
        ("attributes", text(TextKind::Json), br#"{"color": "blue", "size": "L", "gift": true}"#),
        ("paid", ColumnType::Bool, b"t"),
        ("reference", text(TextKind::Uuid), b"0f8fad5b-d9cb-469f-a165-70867728950e"),
    ]
}

fn schema(columns: &[(&'static str, ColumnType, &'static [u8])]) -> TableSchema {
    let column = |(name, column_type, _): &(&'static str, ColumnType, &'static [u8])| {
        Column::new(*name, column_type.clone(), format!("{column_type:?}"), true)
    };
    let name = TableName::new("public", "order_lines");
    TableSchema::new(name, 16_384, columns.iter().map(column).collect(), vec![0], ReplicaIdentity::Default)
}

fn change<'a>(op: Op, ordinal: u64, values: &'a [Value<'a>]) -> RowChange<'a> {
    let full = OldRow { kind: OldKind::Full, values };
    RowChange {
        op,
        position: Position { timeline: 1, commit_lsn: Lsn(0x16_B374_D848), ordinal },
        lsn: Lsn(0x16_B370_0000 + ordinal * 256),
        commit_us: 1_795_342_530_123_456,
        now_ms: 1_795_342_530_200,
        xid: Some(750),
        snapshot: false,
        last_end_lsn: Some(Lsn(0x16_B360_0000)),
        transaction: None,
        old: (op == Op::Update).then_some(full),
        new: Some(values),
    }
}

/// The best of all rounds, in nanoseconds a row: the others were disturbed.
fn best(mut round: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round()?;
        best = best.min(start.elapsed().as_nanos() as f64 / ROWS as f64);
    }
    Ok(best)
}

fn report(what: &str, nanos: f64, bytes: usize) {
    let megabytes = bytes as f64 / (nanos * ROWS as f64) * 1_000.0;
    println!("{what:<44} {nanos:>8.0} ns/row {:>12.0} rows/s {megabytes:>8.0} MB/s", 1e9 / nanos);
}

fn main() -> Result<(), Box<dyn Error>> {
    let wide = columns();
    let narrow: Vec<_> = [0, 3, 6, 11].into_iter().map(|index| wide[index].clone()).collect();
    for (word, format) in
        [("JSON", Format::Json), ("JSON+schema", Format::JsonWithSchemas), ("Avro", Format::Avro)]
    {
        measure(&format!("{word}, 16 columns, insert"), format, &wide, Op::Create)?;
        measure(&format!("{word}, 16 columns, full update"), format, &wide, Op::Update)?;
        measure(&format!("{word}, 4 columns, insert"), format, &narrow, Op::Create)?;
    }
    Ok(())
}

fn measure(
    what: &str,
    format: Format,
    columns: &[(&'static str, ColumnType, &'static [u8])],
    op: Op,
) -> Result<(), Box<dyn Error>> {
    let schema = schema(columns);
    let source = SourceInfo { name: "shop".into(), database: "shopdb".into(), version: "0.1.0".into() };
    let layout: Vec<_> = (0..schema.columns.len()).map(Some).collect();
    let values: Vec<_> = columns.iter().map(|(_, _, text)| Value::Text(text)).collect();
    let options = Options { format, ..Options::default() };
    let ids = Some(SchemaIds { key: 1, value: 2 });
    let mut encoder = TableEncoder::new(&source, &schema, &layout, options, ids);
    let mut out = TopicRecords::new(Arc::from("shop.public.order_lines"));
    let empty = out.mark();
    let nanos = best(|| {
        out.rewind(empty);
        for ordinal in 0..ROWS as u64 {
            encoder.encode(&change(op, ordinal, &values), &mut out)?;
        }
        Ok(())
    })?;
    report(&format!("encode {what}"), nanos, out.bytes());

    let decoder = TableDecoder::new(&schema, options);
    let nanos = best(|| {
        let mut row = Vec::new();
        for record in out.iter() {
            decoder.decode(&record, &mut row)?;
            std::hint::black_box(&row);
        }
        Ok(())
    })?;
    report(&format!("decode {what}"), nanos, out.bytes());
    Ok(())
}
