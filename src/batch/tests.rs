//! Rows through builders, files and readers.

use arrow_array::RecordBatch;

use super::testing::{column, every_column, row, same, with_seed};
use super::*;
use crate::change::{Column, ColumnType, Datum};

pub(super) const FORMATS: [Format; 8] = [
    Format::Orc { compression: OrcCompression::Zstd(1) },
    Format::Orc { compression: OrcCompression::Zlib },
    Format::Orc { compression: OrcCompression::Snappy },
    Format::Orc { compression: OrcCompression::None },
    Format::Parquet { compression: Compression::Zstd(3) },
    Format::Parquet { compression: Compression::Snappy },
    Format::Parquet { compression: Compression::None },
    Format::CsvGzip,
];

pub(super) fn batch(columns: &[Column], rows: &[Vec<Datum<'_>>]) -> RecordBatch {
    let mut builder = RowBuilder::new(columns);
    for row in rows {
        builder.push(row).unwrap();
    }
    assert_eq!(builder.len(), rows.len());
    builder.finish()
}

pub(super) fn file(format: Format, batches: &[RecordBatch], options: &WriterOptions) -> Vec<u8> {
    let mut writer = FileWriter::new(&format, batches[0].schema(), options).unwrap();
    let mut bytes = Vec::new();
    for batch in batches {
        writer.write(batch).unwrap();
        bytes.extend(writer.take());
    }
    bytes.extend(writer.finish().unwrap());
    bytes
}

pub(super) fn assert_rows(columns: &[Column], batches: &[RecordBatch], rows: &[Vec<Datum<'_>>]) {
    let mut number = 0;
    for batch in batches {
        for index in 0..batch.num_rows() {
            for (place, column) in columns.iter().enumerate() {
                let read = datum(batch.column(place).as_ref(), &column.column_type, index);
                let written = &rows[number][place];
                assert!(
                    same(&read, written),
                    "{column:?} of row {number}: {read:?}, but {written:?} was written"
                );
            }
            number += 1;
        }
    }
    assert_eq!(number, rows.len());
}

#[test]
fn rows_of_every_type_come_back_from_a_batch_as_they_were() {
    with_seed(|rng| {
        let columns = every_column();
        let rows: Vec<_> = (0..300).map(|_| row(rng, &columns)).collect();
        assert_rows(&columns, &[batch(&columns, &rows)], &rows);
    });
}

fn without_untold(value: &mut Datum<'static>) {
    match value {
        Datum::Timestamp(-999_000..0) => *value = Datum::Null,
        Datum::List(items) => items.iter_mut().for_each(without_untold),
        _ => {}
    }
}

#[test]
fn rows_of_every_type_come_back_from_every_format_as_they_were() {
    with_seed(|rng| {
        let columns = every_column();
        let rows: Vec<_> = (0..400).map(|_| row(rng, &columns)).collect();
        let batches = [batch(&columns, &rows[..150]), batch(&columns, &rows[150..])];
        let options = WriterOptions { row_group_rows: 130, ..WriterOptions::default() };
        for format in FORMATS {
            let (mut rows, mut batches) = (rows.clone(), batches.clone());
            if let Format::Orc { .. } = format {
                // These stand as text beside ORC's own: see `untold`.
                rows.iter_mut().flatten().for_each(without_untold);
                batches = [batch(&columns, &rows[..150]), batch(&columns, &rows[150..])];
            }
            let bytes = file(format, &batches, &options);
            let reader_options = ReaderOptions { batch_rows: 70, ..ReaderOptions::default() };
            let reader = FileReader::open(&format, &arrow_schema(&columns), bytes, &reader_options).unwrap();
            let read: Vec<_> = reader.map(|batch| batch.unwrap()).collect();
            assert!(read.iter().all(|batch| batch.num_rows() <= 70));
            assert_rows(&columns, &read, &rows);
        }
    });
}

#[test]
fn the_same_batches_give_the_same_bytes() {
    with_seed(|rng| {
        let columns = every_column();
        let rows: Vec<_> = (0..200).map(|_| row(rng, &columns)).collect();
        for format in FORMATS {
            let write = || file(format, &[batch(&columns, &rows)], &WriterOptions::default());
            let first = write();
            std::thread::scope(|scope| {
                assert!(scope.spawn(|| write() == first).join().unwrap(), "{format:?}");
            });
        }
    });
}

#[test]
fn a_refused_row_leaves_no_trace() {
    with_seed(|rng| {
        let mut columns = every_column();
        columns.push(column("last", ColumnType::Int16));
        let rows: Vec<_> = (0..60).map(|_| row(rng, &columns)).collect();
        let (mut plain, mut disturbed) = (RowBuilder::new(&columns), RowBuilder::new(&columns));
        for good in &rows {
            plain.push(good).unwrap();
            let mut bad = row(rng, &columns);
            *bad.last_mut().unwrap() = Datum::Int(1 << 20);
            let error = disturbed.push(&bad).unwrap_err();
            assert_eq!(error.column, "last");
            disturbed.push(good).unwrap();
        }
        assert_eq!(plain.bytes(), disturbed.bytes());
        assert_eq!(plain.finish(), disturbed.finish());
        assert!(disturbed.is_empty() && disturbed.bytes() == 0);
    });
}

#[test]
fn what_a_type_cannot_hold_is_refused_with_column_and_reason() {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    let decimal = ColumnType::Decimal { precision: 3, scale: 1 };
    let wide = ColumnType::Decimal { precision: 40, scale: 1 };
    let cases = [
        (ColumnType::Int16, Datum::Int(32768), "an integer out of range for Int16"),
        (ColumnType::Int32, Datum::Bool(true), "a boolean where an integer is expected"),
        (ColumnType::Float32, Datum::Float(0.1), "a float that 32 bits do not hold"),
        (decimal.clone(), Datum::Decimal(vec![0x03, 0xE8].into()), "a decimal of more than 3 digits"),
        (decimal.clone(), Datum::Decimal(vec![1; 17].into()), "a decimal of more than 3 digits"),
        (wide, Datum::Decimal(vec![0x7F; 17].into()), "a decimal of more than 40 digits"),
        (decimal, Datum::Text("1.5".into()), "text where a decimal is expected"),
        (ColumnType::Numeric, Datum::Decimal(vec![1].into()), "a decimal where text is expected"),
        (ColumnType::Time { precision: 6 }, Datum::Time(86_400_000_001), "a time that is not within a day"),
        (ColumnType::TEXT, Datum::Unchanged, "an unchanged TOAST value that was not completed"),
        (
            array(ColumnType::Bool),
            Datum::List(vec![Datum::Bool(true), Datum::Int(1)]),
            "element 2: an integer where a boolean is expected",
        ),
        (
            array(ColumnType::TEXT),
            Datum::List(vec![Datum::Unchanged]),
            "element 1: an unchanged TOAST value inside of a list",
        ),
    ];
    for (column_type, value, reason) in cases {
        let columns = [column("x", column_type)];
        let error = RowBuilder::new(&columns).push(&[value]).unwrap_err();
        assert_eq!(error, ValueError { column: "x".into(), reason: reason.into() });
    }
    let strict = [Column { nullable: false, ..column("x", ColumnType::Bool) }];
    let error = RowBuilder::new(&strict).push(&[Datum::Null]).unwrap_err();
    assert_eq!(error.to_string(), "column \"x\": null, but the column is not nullable");
    assert!(RowBuilder::new(&strict).push(&[]).is_err(), "a row too short");
}

#[test]
fn partial_rows_take_missing_values_as_nulls() {
    let columns =
        [Column { nullable: false, ..column("x", ColumnType::TEXT) }, column("y", ColumnType::TEXT)];
    let mut builder = RowBuilder::partial(&columns);
    builder.push(&[Datum::Null, Datum::Unchanged]).unwrap();
    let (arrays, exact) = builder.finish_arrays();
    assert_eq!(arrays.iter().map(arrow_array::Array::null_count).collect::<Vec<_>>(), [1, 1]);
    assert!(exact.is_none());
    assert!(partial_schema(&columns).field(0).is_nullable());
    assert!(!arrow_schema(&columns).field(0).is_nullable());
}

#[test]
fn a_batch_of_another_schema_is_not_written() {
    let one = batch(&[column("a", ColumnType::Bool)], &[]);
    let other = batch(&[column("b", ColumnType::Bool)], &[]);
    for format in FORMATS {
        let mut writer = FileWriter::new(&format, one.schema(), &WriterOptions::default()).unwrap();
        assert!(writer.write(&other).is_err());
    }
}

/// Rows of one schema, read from every format as another.
fn reread(
    from: &[Column],
    rows: &[Vec<Datum<'_>>],
    to: &[Column],
    options: &ReaderOptions,
) -> Vec<RecordBatch> {
    let read = |format: Format| {
        let bytes = file(format, &[batch(from, rows)], &WriterOptions::default());
        let reader = FileReader::open(&format, &arrow_schema(to), bytes, options).unwrap();
        reader.map(|batch| batch.unwrap()).collect::<Vec<_>>()
    };
    let first = read(FORMATS[0]);
    for format in FORMATS {
        assert_eq!(read(format), first, "{format:?}");
    }
    first
}

pub(super) fn unscaled(value: i128) -> Datum<'static> {
    Datum::Decimal(super::decimal::from_i128(value).into())
}

#[test]
fn a_file_of_an_older_schema_comes_out_in_the_newer_one() {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let cases = [
        (ColumnType::Int16, ColumnType::Int32, Datum::Int(-7), Datum::Int(-7)),
        (ColumnType::Int16, ColumnType::Int64, Datum::Int(-7), Datum::Int(-7)),
        (ColumnType::Int32, ColumnType::Int64, Datum::Int(-7), Datum::Int(-7)),
        (ColumnType::Int32, decimal(12, 2), Datum::Int(-7), unscaled(-700)),
        (ColumnType::Int64, ColumnType::Numeric, Datum::Int(-7), Datum::Text("-7".into())),
        (ColumnType::Float32, ColumnType::Float64, Datum::Float(0.5), Datum::Float(0.5)),
        (decimal(5, 1), decimal(9, 3), unscaled(-12345), unscaled(-1_234_500)),
        (decimal(3, -3), decimal(9, 0), unscaled(-12), unscaled(-12_000)),
        (decimal(5, 2), ColumnType::Numeric, unscaled(-5), Datum::Text("-0.05".into())),
        (decimal(5, 2), decimal(60, 2), unscaled(-5), unscaled(-5)),
        (
            array(ColumnType::Int32),
            array(ColumnType::Int64),
            Datum::List(vec![Datum::Int(1), Datum::Null]),
            Datum::List(vec![Datum::Int(1), Datum::Null]),
        ),
    ];
    for (old, new, written, expected) in cases {
        let from = [column("x", old)];
        let to = [column("added", ColumnType::Date), column("x", new)];
        let batches = reread(&from, &[vec![written], vec![Datum::Null]], &to, &ReaderOptions::default());
        let rows = [vec![Datum::Null, expected], vec![Datum::Null, Datum::Null]];
        assert_rows(&to, &batches, &rows);
    }
}

#[test]
fn rows_of_an_older_file_hold_in_a_newer_column_what_its_origin_says() {
    let from = [column("a", ColumnType::TEXT), column("n", ColumnType::Int32)];
    let written: Vec<_> =
        (0..5).map(|n| vec![Datum::Text(format!("a,\"{n}").into()), Datum::Int(n)]).collect();
    let list = ColumnType::Array { element: Box::new(ColumnType::TEXT) };
    let to = [
        column("a", ColumnType::TEXT),
        // Another column under the old one's name.
        column("n", ColumnType::TEXT),
        column("a renamed", ColumnType::TEXT),
        column("n renamed and widened", ColumnType::Int64),
        column("text", ColumnType::TEXT),
        column("list", list.clone()),
        column("widened since", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("null", ColumnType::Date),
    ];
    let quoted = Datum::Text("it's \"quoted\",\nand more".into());
    let items = Datum::List(vec![quoted.clone(), Datum::Null]);
    let origin = |column_type: &ColumnType, value: &Datum<'_>| {
        Origin::constant(value, vec![column_type.clone()]).unwrap()
    };
    let origins = vec![
        Origin::column("a"),
        Origin::Null,
        Origin::column("a"),
        Origin::column("n"),
        origin(&ColumnType::TEXT, &quoted),
        origin(&list, &items),
        origin(&ColumnType::Int32, &Datum::Int(-7)),
        origin(&ColumnType::Date, &Datum::Null),
    ];
    let rows: Vec<_> = written
        .iter()
        .map(|row| {
            let (a, n) = (row[0].clone(), row[1].clone());
            let (text, list) = (quoted.clone(), items.clone());
            vec![a.clone(), Datum::Null, a, n, text, list, unscaled(-700), Datum::Null]
        })
        .collect();
    for batch_rows in [1, 3, 100] {
        let options =
            ReaderOptions { batch_rows, origins: Some(origins.clone()), ..ReaderOptions::default() };
        let batches = reread(&from, &written, &to, &options);
        assert_rows(&to, &batches, &rows);
        let options = ReaderOptions { columns: Some(vec![5, 3]), ..options };
        let batches = reread(&from, &written, &to, &options);
        let wanted: Vec<_> = rows.iter().map(|row| vec![row[5].clone(), row[3].clone()]).collect();
        assert_rows(&[to[5].clone(), to[3].clone()], &batches, &wanted);
    }
}

#[test]
fn values_become_those_of_each_type_that_the_column_had() {
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let text = |text: &str| Datum::Text(text.to_owned().into());
    let list = |element: &ColumnType| ColumnType::Array { element: Box::new(element.clone()) };
    let float = Datum::Float(f64::from(0.1_f32));
    let cases = [
        // Not 0.1, in CSV neither.
        (vec![ColumnType::Float32, ColumnType::Float64], float.clone(), float),
        (vec![decimal(5, 1), decimal(9, 3), ColumnType::Numeric], unscaled(-125), text("-12.500")),
        (vec![decimal(5, 1), ColumnType::Numeric], unscaled(-125), text("-12.5")),
        (vec![ColumnType::Int32, decimal(12, 2), ColumnType::TEXT], Datum::Int(-7), text("-7.00")),
        // Decimals of so many digits are text at rest.
        (vec![ColumnType::Int32, decimal(60, 2), ColumnType::Numeric], Datum::Int(-7), text("-7.00")),
        (vec![decimal(50, 1), decimal(60, 3), ColumnType::Numeric], unscaled(-125), text("-12.500")),
        (vec![decimal(50, 1), decimal(60, 3), ColumnType::Numeric], text("NaN"), text("NaN")),
    ];
    for (types, written, expected) in cases {
        for list_of in [false, true] {
            let types: Vec<_> = types.iter().map(|t| if list_of { list(t) } else { t.clone() }).collect();
            let value = |datum: &Datum<'static>| {
                if list_of { Datum::List(vec![datum.clone(), Datum::Null]) } else { datum.clone() }
            };
            let from = [column("x", types[0].clone())];
            let to =
                [column("x", types[types.len() - 1].clone()), column("y", types[types.len() - 1].clone())];
            let constant = Origin::constant(&value(&written), types.clone()).unwrap();
            let origins = Some(vec![Origin::Column { name: "x".into(), types }, constant]);
            let options = ReaderOptions { origins, ..ReaderOptions::default() };
            let batches = reread(&from, &[vec![value(&written)], vec![Datum::Null]], &to, &options);
            let rows = [vec![value(&expected), value(&expected)], vec![Datum::Null, value(&expected)]];
            assert_rows(&to, &batches, &rows);
        }
    }
}

#[test]
fn a_constant_that_does_not_fit_its_column_is_refused_by_name() {
    let from = [column("x", ColumnType::Int64)];
    let to = [column("x", ColumnType::Int64), column("y", ColumnType::Int32)];
    let wrong = Origin::constant(&Datum::Text("secret".into()), vec![ColumnType::TEXT]).unwrap();
    for format in FORMATS {
        let bytes = file(format, &[batch(&from, &[])], &WriterOptions::default());
        let origins = Some(vec![Origin::column("x"), wrong.clone()]);
        let options = ReaderOptions { origins, ..ReaderOptions::default() };
        let error = FileReader::open(&format, &arrow_schema(&to), bytes, &options).err().unwrap().to_string();
        assert!(
            error.contains("column \"y\"") && error.contains("Utf8") && error.contains("Int32"),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
    let error = Origin::constant(&Datum::Int(1 << 40), vec![ColumnType::Int32]).unwrap_err();
    assert!(!error.is_empty());
}

#[test]
fn a_large_constant_counts_for_the_size_of_a_batch() {
    let from = [column("x", ColumnType::Int64)];
    let to = [column("x", ColumnType::Int64), column("y", ColumnType::TEXT)];
    let large = Origin::constant(&Datum::Text("y".repeat(1 << 16).into()), vec![ColumnType::TEXT]).unwrap();
    let rows: Vec<_> = (0..64).map(|n| vec![Datum::Int(n)]).collect();
    for format in FORMATS {
        let bytes = file(format, &[batch(&from, &rows)], &WriterOptions::default());
        let origins = Some(vec![Origin::column("x"), large.clone()]);
        let options = ReaderOptions { batch_bytes: 1 << 18, origins, ..ReaderOptions::default() };
        let reader = FileReader::open(&format, &arrow_schema(&to), bytes, &options).unwrap();
        assert!(reader.map(|batch| batch.unwrap().num_rows()).all(|rows| rows <= 4), "{format:?}");
    }
}

#[test]
fn only_the_columns_asked_for_come_out_in_their_order() {
    let columns = ["a", "b", "c"].map(|name| column(name, ColumnType::TEXT));
    let rows = [["1", "2", "3"].map(|text| Datum::Text(text.into())).to_vec()];
    let options = ReaderOptions { columns: Some(vec![2, 0]), ..ReaderOptions::default() };
    let batches = reread(&columns, &rows, &columns, &options);
    let wanted = [columns[2].clone(), columns[0].clone()];
    assert_rows(&wanted, &batches, &[vec![Datum::Text("3".into()), Datum::Text("1".into())]]);
}

#[test]
fn a_file_of_any_other_schema_is_refused_by_column_and_types() {
    let not_null = |name| Column { nullable: false, ..column(name, ColumnType::Int32) };
    let open = |format: Format, to: &[Column]| {
        let bytes = file(format, &[batch(&[column("x", ColumnType::Int64)], &[])], &WriterOptions::default());
        FileReader::open(&format, &arrow_schema(to), bytes, &ReaderOptions::default())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        open(FORMATS[0], &[column("x", ColumnType::Int32)]),
        "column \"x\" is Int64 in the file, which does not widen to Int32, its type now"
    );
    for format in [FORMATS[0], Format::CsvGzip] {
        assert!(open(format, &[column("y", ColumnType::Int64)]).starts_with("the file has a column \"x\""));
        let to = [column("x", ColumnType::Int64), not_null("y")];
        assert_eq!(open(format, &to), "the file lacks column \"y\" (Int32), which may not be null");
    }
}

#[test]
fn csv_that_does_not_fit_the_schema_is_refused_by_line_and_column() {
    let bytes = file(
        Format::CsvGzip,
        &[batch(
            &[column("x", ColumnType::TEXT)],
            &[vec![Datum::Text("1".into())], vec![Datum::Text("two".into())]],
        )],
        &WriterOptions::default(),
    );
    let schema = arrow_schema(&[column("x", ColumnType::Int16)]);
    let mut reader = FileReader::open(&Format::CsvGzip, &schema, bytes, &ReaderOptions::default()).unwrap();
    let error = reader.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "line 3, column \"x\": an integer is expected");
}

#[test]
fn a_batch_read_is_bounded_in_bytes() {
    let columns = [column("x", ColumnType::TEXT)];
    let rows: Vec<_> = (0..64).map(|_| vec![Datum::Text("x".repeat(1 << 16).into())]).collect();
    let options = ReaderOptions { batch_bytes: 1 << 18, ..ReaderOptions::default() };
    for format in FORMATS {
        let bytes = file(format, &[batch(&columns, &rows)], &WriterOptions::default());
        let reader = FileReader::open(&format, &arrow_schema(&columns), bytes, &options).unwrap();
        assert!(reader.map(|batch| batch.unwrap().num_rows()).all(|rows| rows <= 4), "{format:?}");
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    let columns = [column("x", ColumnType::Int64)];
    for format in FORMATS {
        let mut bytes = file(format, &[batch(&columns, &[vec![Datum::Int(1)]])], &WriterOptions::default());
        bytes.truncate(bytes.len() - 5);
        let opened = FileReader::open(&format, &arrow_schema(&columns), bytes, &ReaderOptions::default());
        assert!(opened.and_then(Iterator::collect::<Result<Vec<_>, _>>).is_err(), "{format:?}");
    }
}

#[test]
fn writers_and_readers_can_move_between_threads() {
    fn movable<T: Send>() {}
    movable::<FileWriter>();
    movable::<FileReader>();
    movable::<RowBuilder>();
}
