//! Rows a second from values to files and back, 16 columns, one thread:
//! `cargo bench --profile fast --bench batch [rows]`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use tidemark::batch::{
    Compression, FileReader, FileWriter, Format, ReaderOptions, RowBuilder, WriterOptions, arrow_schema,
    datum,
};
use tidemark::change::{Column, ColumnType, Datum, TextKind};

const BATCH_ROWS: usize = 8192;

fn columns() -> Vec<Column> {
    let text = |text| ColumnType::Text { text };
    let types = [
        ColumnType::Int64,
        ColumnType::Int32,
        ColumnType::Int16,
        ColumnType::Bool,
        ColumnType::Float64,
        ColumnType::Decimal { precision: 12, scale: 2 },
        ColumnType::Numeric,
        ColumnType::TEXT,
        ColumnType::TEXT,
        text(TextKind::Uuid),
        text(TextKind::Json),
        ColumnType::Bytes,
        ColumnType::Date,
        ColumnType::Timestamp { precision: 6 },
        ColumnType::TimestampTz { precision: 0 },
        ColumnType::Array { element: Box::new(ColumnType::TEXT) },
    ];
    let column = |(index, column_type)| Column::new(format!("c{index}"), column_type, "", true);
    types.into_iter().enumerate().map(column).collect()
}

/// A number that looks random, the same each time.
fn mixed(id: u64) -> u64 {
    let x = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn row(id: u64) -> Vec<Datum<'static>> {
    let random = mixed(id);
    let text = |text: String| Datum::Text(text.into());
    let cents = (random % 10_000_000) as u32;
    vec![
        Datum::Int(id as i64),
        Datum::Int((random % 100_000) as i64),
        Datum::Int((random % 7) as i64),
        Datum::Bool(random.is_multiple_of(2)),
        Datum::Float(random as f64 / 1e9),
        if random.is_multiple_of(11) {
            Datum::Null
        } else {
            Datum::Decimal(cents.to_be_bytes().to_vec().into())
        },
        text(format!("{}.{:03}", random % 5000, random % 1000)),
        text(["open", "paid", "shipped", "returned"][(random % 4) as usize].to_owned()),
        text(format!("customer {} of city {}", random % 50_000, random % 300)),
        text(format!("{random:016x}-{id:016x}")),
        text(format!("{{\"source\": \"web\", \"visit\": {}}}", random % 1_000_000)),
        Datum::Bytes(random.to_be_bytes().to_vec().into()),
        Datum::Date(20_000 + (random % 1000) as i32),
        Datum::Timestamp(1_795_169_730_000_000 + i128::from(random % 1_000_000_000)),
        Datum::Timestamp(1_795_169_730_000_000 + i128::from(id) * 1000),
        Datum::List((0..random % 3).map(|n| text(format!("tag{n}"))).collect()),
    ]
}

fn report(what: &str, rows: usize, took: Duration, bytes: usize) {
    let (seconds, mib) = (took.as_secs_f64(), bytes as f64 / f64::from(1 << 20));
    println!("{what:<40} {:>10.0} rows/s  {mib:>8.1} MiB", rows as f64 / seconds);
}

fn build(columns: &[Column], rows: &[Vec<Datum<'static>>]) -> Vec<RecordBatch> {
    let mut builder = RowBuilder::new(columns);
    let mut batches = Vec::new();
    for row in rows {
        if let Err(error) = builder.push(row) {
            panic!("{error}");
        }
        if builder.len() == BATCH_ROWS {
            batches.push(builder.finish());
        }
    }
    batches.push(builder.finish());
    batches
}

fn main() {
    let rows = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(500_000);
    let columns = columns();
    let schema = arrow_schema(&columns);
    let data: Vec<_> = (0..rows as u64).map(row).collect();

    let start = Instant::now();
    let batches = build(&columns, &data);
    let memory = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    report("values to batches", rows, start.elapsed(), memory);

    let start = Instant::now();
    for batch in &batches {
        for (array, column) in batch.columns().iter().zip(&columns) {
            for index in 0..batch.num_rows() {
                black_box(datum(array.as_ref(), &column.column_type, index));
            }
        }
    }
    report("batches to values", rows, start.elapsed(), memory);

    let parquet = |compression| Format::Parquet { compression };
    for (name, format) in [
        ("parquet, plain", parquet(Compression::None)),
        ("parquet, snappy", parquet(Compression::Snappy)),
        ("parquet, zstd 1", parquet(Compression::Zstd(1))),
        ("parquet, zstd 3", parquet(Compression::Zstd(3))),
        ("csv, gzip", Format::CsvGzip),
    ] {
        if let Err(error) = file(name, format, &schema, &columns, &data) {
            panic!("{name}: {error}");
        }
    }
}

/// Values to batches to a file, and back to batches.
fn file(
    name: &str,
    format: Format,
    schema: &arrow_schema::SchemaRef,
    columns: &[Column],
    data: &[Vec<Datum<'static>>],
) -> tidemark::runtime::Result<()> {
    let start = Instant::now();
    let mut writer = FileWriter::new(&format, schema.clone(), &WriterOptions::default())?;
    let mut memory = 0;
    for rows in data.chunks(BATCH_ROWS) {
        for batch in build(columns, rows) {
            writer.write(&batch)?;
        }
        memory = memory.max(writer.memory());
    }
    let bytes = writer.finish()?;
    report(&format!("values to {name}"), data.len(), start.elapsed(), bytes.len());
    println!("{:<40} {:>10.1} MiB held at most", "", memory as f64 / f64::from(1 << 20));

    let (start, len) = (Instant::now(), bytes.len());
    let mut read = 0;
    for batch in FileReader::open(&format, schema, bytes, &ReaderOptions::default())? {
        read += batch?.num_rows();
    }
    assert_eq!(read, data.len());
    report(&format!("{name} to batches"), read, start.elapsed(), len);
    Ok(())
}
