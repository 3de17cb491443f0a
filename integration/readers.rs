//! Files as readers see them that we did not write: pyarrow, DuckDB, pandas.
//!
//! What each must see is written out by hand here; nothing of it is computed by the code under test.

mod cases;
mod orc;
mod sizes;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tidemark::batch::{
    Compression, EXACT, FileReader, FileWriter, Format, ReaderOptions, RowBuilder, WriterOptions,
    arrow_schema, datum, exact_schema,
};
use tidemark::change::{Column, ColumnType, Datum};

use cases::{Case, every_case, text, unscaled};

const PARQUET: Format = Format::Parquet { compression: Compression::Zstd(3) };

fn python() -> PathBuf {
    let python = std::env::var_os("TIDEMARK_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing: run `make venv`", python.display());
    python
}

/// What `integration/readers/values.py` prints.
fn seen(arguments: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/readers/values.py");
    let output = Command::new(python()).arg(script).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "values.py {arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "", true)
}

/// The number that an unscaled value of at most 16 bytes stands for.
fn signed(bytes: &[u8]) -> i128 {
    bytes.iter().fold(if bytes[0] < 0x80 { 0 } else { -1 }, |value, byte| value << 8 | i128::from(*byte))
}

fn columns(cases: &[Case]) -> Vec<Column> {
    cases.iter().map(|case| column(case.name, case.column_type.clone())).collect()
}

/// Row `number` of a table whose columns hold their cases one below the other, then nulls.
fn row(cases: &[Case], number: usize) -> Vec<Datum<'static>> {
    cases
        .iter()
        .map(|case| case.values.get(number).map_or(Datum::Null, |(value, ..)| value.clone()))
        .collect()
}

fn write(format: Format, columns: &[Column], rows: impl Iterator<Item = Vec<Datum<'static>>>) -> Vec<u8> {
    let mut builder = RowBuilder::new(columns);
    for row in rows {
        builder.push(&row).unwrap();
    }
    let mut writer = FileWriter::new(&format, arrow_schema(columns), &WriterOptions::default()).unwrap();
    writer.write(&builder.finish()).unwrap();
    writer.finish().unwrap()
}

fn saved(folder: &tempfile::TempDir, format: Format, bytes: &[u8]) -> String {
    let path = folder.path().join(format!("file.{}", format.extension()));
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a reader must see of a column of `rows` rows.
fn expected(case: &Case, rows: usize, of: impl Fn(&(Datum<'static>, Value, Value)) -> Value) -> Vec<Value> {
    (0..rows).map(|row| case.values.get(row).map_or(Value::Null, &of)).collect()
}

fn assert_parquet(cases: &[Case], rows: usize) {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write(PARQUET, &columns(cases), (0..rows).map(|number| row(cases, number)));
    let path = saved(&folder, PARQUET, &bytes);
    let (pyarrow, duckdb) = (seen(&["parquet-pyarrow", &path]), seen(&["parquet-duckdb", &path]));
    for (index, case) in cases.iter().enumerate() {
        let values = expected(case, rows, |(_, pyarrow, _)| pyarrow.clone());
        let should =
            json!({"name": case.name, "type": case.pyarrow, "parquet": case.parquet, "values": values});
        assert_eq!(pyarrow[index], should, "pyarrow");
        let values = expected(case, rows, |(.., duckdb)| duckdb.clone());
        let should = json!({"name": case.name, "type": case.duckdb, "values": values});
        assert_eq!(duckdb[index], should, "DuckDB");
    }
}

#[test]
fn parquet_of_every_type_and_extreme_is_read_alike_by_others() {
    let cases = every_case();
    let rows = cases.iter().map(|case| case.values.len()).max().unwrap() + 1;
    assert_parquet(&cases, rows);
}

#[test]
fn parquet_without_rows_or_with_nulls_only_keeps_its_types() {
    let mut cases = every_case();
    for case in &mut cases {
        case.values.clear();
    }
    assert_parquet(&cases, 0);
    assert_parquet(&cases, 1);
    assert_parquet(&cases, 5);
}

#[test]
fn csv_of_every_type_and_extreme_is_read_alike_by_duckdb() {
    let folder = tempfile::tempdir().unwrap();
    let cases = every_case();
    for rows in [cases.iter().map(|case| case.values.len()).max().unwrap() + 1, 1, 0] {
        let bytes = write(Format::CsvGzip, &columns(&cases), (0..rows).map(|number| row(&cases, number)));
        let path = saved(&folder, Format::CsvGzip, &bytes);
        let types: serde_json::Map<_, _> =
            cases.iter().map(|case| (case.name.to_owned(), json!(case.duckdb))).collect();
        let duckdb = seen(&["csv-duckdb", &path, &Value::Object(types).to_string()]);
        for (index, case) in cases.iter().enumerate() {
            let values = expected(case, rows, |(.., duckdb)| duckdb.clone());
            assert_eq!(duckdb[index], json!({"name": case.name, "type": case.duckdb, "values": values}));
        }
    }
}

#[test]
fn csv_is_read_by_pandas() {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        column("id", ColumnType::Int64),
        column("note", ColumnType::TEXT),
        column("local", ColumnType::Timestamp { precision: 6 }),
        column("instant", ColumnType::TimestampTz { precision: 0 }),
        column("tags", ColumnType::Array { element: Box::new(ColumnType::TEXT) }),
    ];
    let rows = [
        vec![
            Datum::Int(1),
            text("a \"b\",\nc"),
            Datum::Timestamp(1_795_169_730_123_456),
            Datum::Timestamp(1_795_169_730_000_000),
            Datum::List(vec![text("x"), text("y")]),
        ],
        vec![Datum::Int(2), text(""), Datum::Timestamp(0), Datum::Timestamp(-1), Datum::Null],
    ];
    let path = saved(&folder, Format::CsvGzip, &write(Format::CsvGzip, &columns, rows.into_iter()));
    assert_eq!(
        seen(&["csv-pandas", &path, "[\"local\", \"instant\"]"]),
        json!([
            {"name": "id", "values": ["1", "2"]},
            {"name": "note", "values": ["a \"b\",\nc", ""]},
            {"name": "local", "values": ["2026-11-20 10:15:30.123456", "1970-01-01 00:00:00"]},
            {"name": "instant", "values": ["2026-11-20 10:15:30+00:00", "1969-12-31 23:59:59.999999+00:00"]},
            {"name": "tags", "values": ["[\"x\",\"y\"]", ""]},
        ])
    );
}

/// Values that their columns' types cannot hold, each in a row of its own, and what must stand beside the null.
fn beyond_their_types() -> Vec<(&'static str, ColumnType, Datum<'static>, &'static str)> {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    let decimal = ColumnType::Decimal { precision: 12, scale: 2 };
    let last = || Datum::Timestamp(9_224_318_015_999_999_999);
    let list = Datum::List;
    vec![
        ("price", decimal.clone(), text("NaN"), r#""NaN""#),
        ("at", ColumnType::Timestamp { precision: 6 }, last(), r#""294276-12-31 23:59:59.999999""#),
        ("since", ColumnType::TimestampTz { precision: 6 }, last(), r#""294276-12-31 23:59:59.999999+00""#),
        (
            "grid",
            array(ColumnType::Int64),
            list(vec![
                list(vec![Datum::Int(i64::MAX), Datum::Null]),
                list(vec![Datum::Int(3), Datum::Int(4)]),
            ]),
            "[[9223372036854775807,null],[3,4]]",
        ),
        (
            "bounds",
            array(ColumnType::TEXT),
            text("[0:1]={a,\"b \\\"c\\\"\"}"),
            r#""[0:1]={a,\"b \\\"c\\\"\"}""#,
        ),
        ("prices", array(decimal), list(vec![unscaled(-5), text("NaN")]), r#"["-0.05","NaN"]"#),
    ]
}

#[test]
fn values_that_their_types_lack_are_read_by_others_beside_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let cases = beyond_their_types();
    let mut columns: Vec<_> = cases.iter().map(|(name, of, ..)| column(name, of.clone())).collect();
    columns.push(column("id", ColumnType::Int32));
    let row = |index: usize| {
        let cell = |at: usize| if at == index { cases[at].2.clone() } else { Datum::Null };
        (0..cases.len()).map(cell).chain([Datum::Int(index as i64)]).collect::<Vec<_>>()
    };
    let texts: Vec<_> =
        cases.iter().map(|(name, .., json)| json!(format!("{{\"{name}\":{json}}}"))).collect();
    let mut builder = RowBuilder::new(&columns);
    (0..cases.len()).for_each(|index| builder.push(&row(index)).unwrap());
    let batch = builder.finish();
    for format in [PARQUET, Format::CsvGzip] {
        let mut writer = FileWriter::new(&format, exact_schema(&columns), &WriterOptions::default()).unwrap();
        writer.write(&batch).unwrap();
        let path = saved(&folder, format, &writer.finish().unwrap());
        if format == PARQUET {
            let seen = seen(&["parquet-pyarrow", &path]);
            assert_eq!(seen[cases.len() + 1]["name"], EXACT, "the last one");
            assert_eq!(seen[cases.len() + 1]["values"], json!(texts), "pyarrow");
            assert!((0..cases.len()).all(|at| seen[at]["values"] == json!(vec![Value::Null; cases.len()])));
        }
        // What one asks of them.
        let query = "SELECT id, json_extract_string(__exact, '$.price'), json_extract_string(__exact, '$.since'), \
                     (__exact->'grid')::BIGINT[][], (__exact->'prices')::VARCHAR[], \
                     json_extract_string(__exact, '$.bounds') FROM t ORDER BY id";
        let none = |index: usize, shown: [&str; 5]| {
            let mut row = vec![index.to_string()];
            row.extend(shown.map(str::to_owned));
            json!(row)
        };
        let blank = ["None"; 5];
        let [mut price, mut since, mut grid, mut bounds, mut prices] = [blank; 5];
        price[0] = "NaN";
        since[1] = "294276-12-31 23:59:59.999999+00";
        grid[2] = "[[9223372036854775807, None], [3, 4]]";
        prices[3] = "['-0.05', 'NaN']";
        bounds[4] = "[0:1]={a,\"b \\\"c\\\"\"}";
        let expected = [price, blank, since, grid, bounds, prices];
        let expected: Vec<_> = expected.into_iter().enumerate().map(|(at, shown)| none(at, shown)).collect();
        assert_eq!(seen(&["sql", &path, query]), json!(expected), "{format:?}");
    }
}

const MANY: i64 = 100_000;

fn many_columns() -> [Column; 5] {
    [
        Column { nullable: false, ..column("id", ColumnType::Int64) },
        column("amount", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("label", ColumnType::TEXT),
        column("moment", ColumnType::TimestampTz { precision: 0 }),
        column("tags", ColumnType::Array { element: Box::new(ColumnType::TEXT) }),
    ]
}

fn many_row(id: i64) -> Vec<Datum<'static>> {
    vec![
        Datum::Int(id),
        if id % 10 == 0 { Datum::Null } else { unscaled((id * 7).into()) },
        text(&format!("row-{id}")),
        Datum::Timestamp(i128::from(id) * 1_000_000),
        Datum::List((0..id % 3).map(|n| text(&n.to_string())).collect()),
    ]
}

/// A file of many rows, in row groups of 30,000, written in batches that do not divide them.
fn many_rows(format: Format) -> Vec<u8> {
    let columns = many_columns();
    let options = WriterOptions { row_group_rows: 30_000, key: vec![0], ..WriterOptions::default() };
    let mut writer = FileWriter::new(&format, arrow_schema(&columns), &options).unwrap();
    let mut builder = RowBuilder::new(&columns);
    let mut file = Vec::new();
    for id in 0..MANY {
        builder.push(&many_row(id)).unwrap();
        if builder.len() == 7001 {
            writer.write(&builder.finish()).unwrap();
            file.extend(writer.take());
        }
    }
    writer.write(&builder.finish()).unwrap();
    file.extend(writer.finish().unwrap());
    file
}

#[test]
fn many_rows_in_several_row_groups_sum_up_in_duckdb() {
    let folder = tempfile::tempdir().unwrap();
    let query = "SELECT count(*), sum(id), count(DISTINCT id), count(amount), sum(amount), \
                 count(DISTINCT label), count(*) FILTER (label = 'row-' || id), \
                 count(*) FILTER (epoch_us(moment) = id * 1000000), sum(len(tags)) FROM t";
    for compression in [Compression::Zstd(3), Compression::Snappy, Compression::None] {
        let path = saved(&folder, PARQUET, &many_rows(Format::Parquet { compression }));
        // 7 x (0 + ... + 99999 without the tens) / 100 = 7 x (4999950000 - 499950000) / 100; tags: 0 + 1 + 2 a
        // triple, of which there are 33333, and one empty list.
        let row = [
            "100000",
            "4999950000",
            "100000",
            "90000",
            "315000000.00",
            "100000",
            "100000",
            "100000",
            "99999",
        ];
        assert_eq!(seen(&["sql", &path, query]), json!([row]));
    }
}

#[test]
fn the_footer_tells_statistics_order_and_origin_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(&folder, PARQUET, &many_rows(PARQUET));
    assert_eq!(
        seen(&["metadata", &path]),
        json!({
            "created_by": "tidemark version 1.2.0",
            "format": "1.0",
            "key_values": null,
            "rows": [30000, 30000, 30000, 10000],
            "sorting": vec![vec![(0, false, false)]; 4],
            "compression": ["ZSTD"],
            "nulls": [[0, 3000, 0, 0, 10000], [0, 3000, 0, 0, 10000], [0, 3000, 0, 0, 10000], [0, 1000, 0, 0, 3334]],
            "bounds": [[0, 29999], [30000, 59999], [60000, 89999], [90000, 99999]],
            "indexes": true,
        })
    );
}

#[test]
fn many_rows_come_back_through_a_file_in_batches() {
    let columns = many_columns();
    let folder = tempfile::tempdir().unwrap();
    for format in [PARQUET, Format::CsvGzip] {
        let bytes = many_rows(format);
        assert!(many_rows(format) == bytes, "{format:?} is not the same the second time");
        let file = std::fs::File::open(saved(&folder, format, &bytes)).unwrap();
        let options = ReaderOptions { batch_rows: 4096, ..ReaderOptions::default() };
        let reader = FileReader::open(&format, &arrow_schema(&columns), file, &options).unwrap();
        let mut id = 0;
        for batch in reader {
            let batch = batch.unwrap();
            assert!(batch.num_rows() <= 4096);
            for index in 0..batch.num_rows() {
                for ((array, column), written) in batch.columns().iter().zip(&columns).zip(many_row(id)) {
                    let read = datum(array.as_ref(), &column.column_type, index);
                    match (&read, &written) {
                        (Datum::Decimal(read), Datum::Decimal(written)) => {
                            assert_eq!(signed(read), signed(written), "row {id}");
                        }
                        (read, written) => assert_eq!(read, written, "row {id}"),
                    }
                }
                id += 1;
            }
        }
        assert_eq!(id, MANY);
    }
}
