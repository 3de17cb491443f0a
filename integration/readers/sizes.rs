//! Parquet beside what pyarrow writes of the same rows: no more than a tenth larger. And bloom filters, as DuckDB asks them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tidemark::batch::{Compression, FileWriter, Format, RowBuilder, WriterOptions, arrow_schema};
use tidemark::change::{Column, ColumnType, Datum, TextKind};

use super::{column, saved, seen, text, unscaled};

const ROWS: i64 = 200_000;
const GROUP_ROWS: usize = 100_000;
/// As `[lake] compression = "zstd"` has it.
const LEVEL: i32 = 1;

type Rows = Box<dyn Fn(&mut StdRng, i64) -> Vec<Datum<'static>>>;

fn file(columns: &[Column], key: &[usize], rows: &Rows) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(7);
    let options = WriterOptions { row_group_rows: GROUP_ROWS, key: key.to_vec(), ..WriterOptions::default() };
    let format = Format::Parquet { compression: Compression::Zstd(LEVEL) };
    let mut writer = FileWriter::new(&format, arrow_schema(columns), &options).unwrap();
    let mut builder = RowBuilder::new(columns);
    for id in 0..ROWS {
        builder.push(&rows(&mut random, id)).unwrap();
        if builder.len() == 8192 {
            writer.write(&builder.finish()).unwrap();
        }
    }
    writer.write(&builder.finish()).unwrap();
    writer.finish().unwrap()
}

fn uuid(number: u128) -> Datum<'static> {
    let hex = format!("{number:032x}");
    text(&[&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// Name, columns, key, and how the rows are.
fn tables() -> Vec<(&'static str, Vec<Column>, Vec<usize>, Rows)> {
    let id = || Column { nullable: false, ..column("id", ColumnType::Int64) };
    let decimal = || ColumnType::Decimal { precision: 12, scale: 2 };
    let narrow: Rows = Box::new(|random, id| {
        vec![
            Datum::Int(id),
            Datum::Int(random.random_range(0..1000)),
            unscaled(random.random_range(0..1_000_000)),
        ]
    });
    let wide: Rows = Box::new(|random, id| {
        let mut row = vec![Datum::Int(id)];
        for n in 0..5 {
            row.push(Datum::Int(random.random_range(0..10_i64.pow(n + 1))));
            row.push(if random.random_bool(0.1) {
                Datum::Null
            } else {
                Datum::Float(random.random::<f64>())
            });
            row.push(Datum::Timestamp(
                1_795_169_730_000_000 + i128::from(random.random_range(0..86_400_000_000_i64)),
            ));
            row.push(text(["open", "paid", "shipped", "returned"][random.random_range(0..4)]));
        }
        row
    });
    let strings: Rows = Box::new(|random, id| {
        let words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];
        let note: Vec<_> =
            (0..random.random_range(1..12)).map(|_| words[random.random_range(0..8)]).collect();
        vec![
            uuid((id as u128) << 96 | u128::from(random.random::<u64>())),
            text(&format!("user{id}@example.com")),
            text(&note.join(" ")),
        ]
    });
    let mut wide_columns = vec![id()];
    for n in 0..5 {
        wide_columns.push(column(["i0", "i1", "i2", "i3", "i4"][n], ColumnType::Int32));
        wide_columns.push(column(["f0", "f1", "f2", "f3", "f4"][n], ColumnType::Float64));
        wide_columns
            .push(column(["t0", "t1", "t2", "t3", "t4"][n], ColumnType::TimestampTz { precision: 6 }));
        wide_columns.push(column(["s0", "s1", "s2", "s3", "s4"][n], ColumnType::TEXT));
    }
    let uuid = Column { nullable: false, ..column("id", ColumnType::Text { text: TextKind::Uuid }) };
    vec![
        ("narrow", vec![id(), column("a", ColumnType::Int32), column("b", decimal())], vec![0], narrow),
        ("wide", wide_columns, vec![0], wide),
        (
            "strings",
            vec![uuid, column("mail", ColumnType::TEXT), column("note", ColumnType::TEXT)],
            vec![0, 1],
            strings,
        ),
    ]
}

#[test]
fn parquet_is_at_most_a_tenth_larger_than_what_pyarrow_writes_of_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    for (name, columns, key, rows) in tables() {
        let bytes = file(&columns, &key, &rows);
        let path = saved(&folder, super::PARQUET, &bytes);
        let (group, level) = (GROUP_ROWS.to_string(), LEVEL.to_string());
        let mut arguments = vec!["pyarrow-bytes", &path, &group, &level];
        arguments.extend(key.iter().map(|index| columns[*index].name.as_str()));
        let theirs = seen(&arguments).as_u64().unwrap();
        let ratio = bytes.len() as f64 / theirs as f64;
        println!("{name}: {} bytes, pyarrow's {theirs}: {ratio:.3}", bytes.len());
        assert!(ratio < 1.1, "{name}: {} bytes, pyarrow's are {theirs}", bytes.len());
    }
}

#[test]
fn bloom_filters_of_a_key_hold_every_value_and_few_others() {
    let folder = tempfile::tempdir().unwrap();
    let (_, columns, key, rows) = tables().remove(2);
    let path = saved(&folder, super::PARQUET, &file(&columns, &key, &rows));
    let probe = |column: &str, value: &str| {
        format!(
            "SELECT list(bloom_filter_excludes ORDER BY row_group_id) FROM parquet_bloom_probe('{path}', '{column}', '{value}')"
        )
    };
    for id in [0, 5000, 99_999, 100_000, 199_999] {
        let own = usize::from(id >= 100_000);
        let found = seen(&["sql", &path, &probe("mail", &format!("user{id}@example.com"))]);
        let excluded: Vec<bool> =
            serde_json::from_str(&found[0][0].as_str().unwrap().to_lowercase()).unwrap();
        assert!(excluded.len() == 2 && !excluded[own], "{id}: {excluded:?}");
    }
    let union: Vec<_> = (0..500).map(|n| probe("mail", &format!("nobody{n}@example.com"))).collect();
    let found = seen(&[
        "sql",
        &path,
        &format!("SELECT count(*) FROM ({}) x(l), unnest(l) u(e) WHERE e", union.join(" UNION ALL ")),
    ]);
    let excluded: u32 = found[0][0].as_str().unwrap().parse().unwrap();
    assert!(excluded > 900, "{excluded} of 1000 are told to be absent");
    let metadata = format!(
        "SELECT path_in_schema, bool_and(bloom_filter_length > 0) FROM parquet_metadata('{path}') GROUP BY 1 ORDER BY 1"
    );
    assert_eq!(seen(&["sql", &path, &metadata]), json!([["id", "True"], ["mail", "True"], ["note", "None"]]));
}

/// Zero and its negative are equal to SQL, and their bits are not.
#[test]
fn a_key_of_floats_has_no_bloom_filter_by_which_a_reader_would_pass_over_minus_zero() {
    let folder = tempfile::tempdir().unwrap();
    let columns = vec![column("k", ColumnType::Float64), column("id", ColumnType::Int64)];
    let float = |n: i64| if n == 5000 { -0.0 } else { (n - 5000) as f64 };
    let rows: Rows = Box::new(move |_, n| vec![Datum::Float(float(n)), Datum::Int(n)]);
    let path = saved(&folder, super::PARQUET, &file(&columns, &[0, 1], &rows));
    let sql = |query: &str| seen(&["sql", &path, query]);
    let found = sql(&format!("SELECT id FROM '{path}' WHERE k = 0"));
    assert_eq!(found, json!([["5000"]]));
    let metadata = sql(&format!(
        "SELECT path_in_schema, bool_and(bloom_filter_length > 0) FROM parquet_metadata('{path}') GROUP BY 1 ORDER BY 1"
    ));
    assert_eq!(metadata, json!([["id", "True"], ["k", "None"]]));
}
