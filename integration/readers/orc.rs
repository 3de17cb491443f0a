//! ORC beside Parquet of the same rows: pyarrow must see the same in both. And Apache ORC's own reader must find what it looks
//! for, whatever row indexes and bloom filters let it skip.

use crate::support::Replay;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tidemark::batch::{
    FileReader, FileWriter, Format, OrcCompression, ReaderOptions, RowBuilder, WriterOptions, arrow_schema,
};
use tidemark::change::{Column, ColumnType, Datum};

use super::{PARQUET, column, saved, seen};

const ORC: [Format; 4] = [
    Format::Orc { compression: OrcCompression::Zstd(1) },
    Format::Orc { compression: OrcCompression::Zlib },
    Format::Orc { compression: OrcCompression::Snappy },
    Format::Orc { compression: OrcCompression::None },
];

fn every_type() -> Vec<Column> {
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let plain = [
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::Float32,
        ColumnType::Float64,
        decimal(9, 2),
        decimal(18, 0),
        decimal(38, 10),
        ColumnType::TEXT,
        ColumnType::Bytes,
        ColumnType::Date,
        ColumnType::Time { precision: 6 },
        ColumnType::Timestamp { precision: 6 },
        ColumnType::TimestampTz { precision: 6 },
    ];
    let lists = plain.iter().map(|element| ColumnType::Array { element: Box::new(element.clone()) });
    let types: Vec<_> = plain.iter().cloned().chain(lists).collect();
    types.into_iter().enumerate().map(|(n, of)| column(&format!("c{n}"), of)).collect()
}

/// How the values of a column go on from row to row: runs, steps, noise.
#[derive(Clone, Copy)]
struct Shape {
    nulls: f64,
    step: i64,
    repeat: usize,
    noise_bits: u32,
    outliers: f64,
}

impl Shape {
    fn any(random: &mut StdRng) -> Self {
        Self {
            nulls: [0.0, 0.0, 0.1, 0.9, 1.0][random.random_range(0..5)],
            step: [0, 1, -3, 1000][random.random_range(0..4)],
            repeat: [1, 1, 7, 300, 20_000][random.random_range(0..5)],
            noise_bits: [0, 0, 3, 20, 64][random.random_range(0..5)],
            outliers: [0.0, 0.02][random.random_range(0..2)],
        }
    }

    fn number(self, random: &mut StdRng, row: usize) -> i64 {
        let noise: i64 = if random.random_bool(self.outliers) { random.random() } else { 0 };
        let bits = if self.noise_bits == 0 { 0 } else { random.random::<i64>() >> (64 - self.noise_bits) };
        ((row / self.repeat) as i64).wrapping_mul(self.step).wrapping_add(noise).wrapping_add(bits)
    }

    fn value(self, random: &mut StdRng, row: usize, of: &ColumnType) -> Datum<'static> {
        if random.random_bool(self.nulls) {
            return Datum::Null;
        }
        let number = self.number(random, row);
        match of {
            ColumnType::Bool => Datum::Bool(number & 1 == 1),
            ColumnType::Int16 => Datum::Int((number as i16).into()),
            ColumnType::Int32 => Datum::Int((number as i32).into()),
            ColumnType::Int64 => Datum::Int(number),
            ColumnType::Float32 => Datum::Float((number as f32).into()),
            ColumnType::Float64 => Datum::Float(number as f64 / 7.0),
            ColumnType::Decimal { precision, .. } => {
                let most = 10_i128.pow(u32::from(*precision).min(37)) - 1;
                super::unscaled(i128::from(number).wrapping_mul(i128::from(number) | 1) % most)
            }
            ColumnType::Bytes => Datum::Bytes(number.to_be_bytes().to_vec().into()),
            ColumnType::Date => Datum::Date((number % 100_000) as i32),
            ColumnType::Time { .. } => Datum::Time(number.rem_euclid(86_400_000_001)),
            // What pyarrow's nanoseconds hold, but for the one second that ORC cannot tell.
            ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => {
                let micros = number % 9_000_000_000_000_000;
                Datum::Timestamp(if (-999_000..0).contains(&micros) { 0 } else { micros.into() })
            }
            ColumnType::Array { element } => {
                let length = random.random_range(0..4);
                Datum::List((0..length).map(|n| self.value(random, row + n, element)).collect())
            }
            _ => Datum::Text(format!("{number}-ü").repeat(1 + (number & 3) as usize).into()),
        }
    }
}

fn file(
    format: Format,
    columns: &[Column],
    rows: &[Vec<Datum<'static>>],
    options: &WriterOptions,
) -> Vec<u8> {
    let mut writer = FileWriter::new(&format, arrow_schema(columns), options).unwrap();
    let mut bytes = Vec::new();
    for piece in rows.chunks(3000) {
        let mut builder = RowBuilder::new(columns);
        for row in piece {
            builder.push(row).unwrap();
        }
        writer.write(&builder.finish()).unwrap();
        bytes.extend(writer.take());
    }
    bytes.extend(writer.finish().unwrap());
    bytes
}

/// What `integration/readers/Predicates.java` prints.
fn predicates(file: &str, seed: u64, rounds: u32) -> serde_json::Value {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let jar = root.join(".orc/orc-tools.jar");
    assert!(jar.exists(), "{} is missing: run `scripts/fetch-orc` (or `make orc`)", jar.display());
    let output = std::process::Command::new("java")
        .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g", "-cp"])
        .arg(jar)
        .arg(root.join("integration/readers/Predicates.java"))
        .args([file, &seed.to_string(), &rounds.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn predicates_pushed_down_into_orc_find_every_row_that_they_hold_for() {
    let seed: u64 =
        std::env::var("TIDEMARK_TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let columns: Vec<_> =
        every_type().into_iter().filter(|c| !matches!(c.column_type, ColumnType::Array { .. })).collect();
    let (mut tried, mut skipped) = (0, 0);
    for (format, count) in ORC.into_iter().zip([35_000, 10_001, 9_999, 20_000]) {
        let mut shapes: Vec<_> = columns.iter().map(|_| Shape::any(&mut random)).collect();
        // As keys are: in order, and without nulls.
        shapes[3] = Shape { nulls: 0.0, step: 1, repeat: 1, noise_bits: 0, outliers: 0.0 };
        let rows: Vec<Vec<_>> = (0..count)
            .map(|row| {
                let both = columns.iter().zip(&shapes);
                both.map(|(column, shape)| shape.value(&mut random, row, &column.column_type)).collect()
            })
            .collect();
        let options = WriterOptions { row_group_rows: 12_345, key: vec![3, 9], ..WriterOptions::default() };
        let orc = saved(&folder, format, &file(format, &columns, &rows, &options));
        let found = predicates(&orc, random.random_range(0..1 << 40), 150);
        assert_eq!((&found["rows"], &found["wrong"]), (&json!(count), &json!([])), "{format:?}");
        tried += found["tried"].as_u64().unwrap();
        skipped += found["skipped"].as_u64().unwrap();
    }
    assert!(tried > 200 && skipped > 100_000, "{tried} predicates, {skipped} rows skipped");
}

#[test]
fn orc_of_any_columns_is_read_as_parquet_of_them_is() {
    let seed =
        std::env::var("TIDEMARK_TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let columns = every_type();
    for (round, format) in ORC.into_iter().enumerate() {
        let shapes: Vec<_> = columns.iter().map(|_| Shape::any(&mut random)).collect();
        let count = [0, 1, 9_999, 10_000, 10_001, 35_000][random.random_range(0..6)];
        let of_row = |row| columns.iter().zip(&shapes).map(move |(column, shape)| (row, column, *shape));
        let rows: Vec<Vec<_>> = (0..count)
            .map(|row| {
                of_row(row)
                    .map(|(row, column, shape)| shape.value(&mut random, row, &column.column_type))
                    .collect()
            })
            .collect();
        let options = WriterOptions {
            row_group_rows: [1 << 20, 12_345][round % 2],
            key: vec![3, 9],
            ..WriterOptions::default()
        };
        let parquet = saved(&folder, PARQUET, &file(PARQUET, &columns, &rows, &options));
        let bytes = file(format, &columns, &rows, &options);
        let orc = saved(&folder, format, &bytes);
        assert_eq!(
            seen(&["orc-pyarrow", &orc, &parquet]),
            json!({"rows": count, "differences": []}),
            "{format:?}"
        );
        let schema = arrow_schema(&columns);
        let batches = FileReader::open(&format, &schema, bytes, &ReaderOptions::default()).unwrap();
        let read: usize = batches.map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(read, count);
    }
}
