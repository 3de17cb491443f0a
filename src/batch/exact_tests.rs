//! Values that their types cannot hold, through builders, files and memory.

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};

use super::testing::column;
use super::tests::{FORMATS, assert_rows, batch, file, unscaled};
use super::*;
use crate::change::{Column, ColumnType, Datum};

/// A table whose columns may exceed their types, and rows with such values, one with none, and one of nulls.
fn exceeding() -> (Vec<Column>, Vec<Vec<Datum<'static>>>) {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    let decimal = ColumnType::Decimal { precision: 5, scale: 2 };
    let columns = vec![
        Column { nullable: false, ..column("price", decimal.clone()) },
        column("at", ColumnType::Timestamp { precision: 6 }),
        column("since \"x\"", ColumnType::TimestampTz { precision: 6 }),
        column("grid", array(ColumnType::Int32)),
        column("prices", array(decimal)),
        column("blobs", array(ColumnType::Bytes)),
        column("note", ColumnType::TEXT),
    ];
    let last = Datum::Timestamp(9_224_318_015_999_999_999);
    let list = |items: &[Datum<'static>]| Datum::List(items.to_vec());
    let text = |text: &'static str| Datum::Text(text.into());
    let row = |price, at, since, grid, prices, blobs| vec![price, at, since, grid, prices, blobs, text("n")];
    let [one, two] = [1, 2].map(Datum::Int);
    let rows = vec![
        row(
            unscaled(150),
            Datum::Timestamp(0),
            Datum::Null,
            list(std::slice::from_ref(&one)),
            Datum::Null,
            Datum::Null,
        ),
        row(
            text("NaN"),
            last.clone(),
            last.clone(),
            list(&[list(&[one.clone(), two.clone()]), list(&[Datum::Null, two])]),
            list(&[unscaled(-5), text("NaN")]),
            text("[0:0]={\"\\\\x00ff\"}"),
        ),
        row(
            unscaled(1),
            Datum::Timestamp(i64::MAX.into()),
            Datum::Timestamp(Datum::INFINITY),
            text("[0:0]={1}"),
            list(&[list(&[unscaled(12345)])]),
            list(&[list(&[Datum::Bytes(vec![0, 255].into())])]),
        ),
    ];
    (columns, rows)
}

fn by_name(columns: &[Column]) -> Vec<Origin> {
    columns.iter().map(|column| Origin::column(&column.name)).collect()
}

/// What stands in the column of texts, by row.
fn texts(batches: &[RecordBatch]) -> Vec<Option<String>> {
    let column = |batch: &RecordBatch| batch.column_by_name(EXACT).unwrap().clone();
    let text = |text: Option<&str>| text.map(str::to_owned);
    batches
        .iter()
        .flat_map(|batch| column(batch).as_string::<i32>().iter().map(text).collect::<Vec<_>>())
        .collect()
}

#[test]
fn what_a_columns_type_cannot_hold_stands_as_json_beside_it() {
    let (columns, rows) = exceeding();
    let batch = batch(&columns, &rows);
    let expected = [
        None,
        Some(concat!(
            r#"{"price":"NaN","at":"294276-12-31 23:59:59.999999","since \"x\"":"294276-12-31 23:59:59.999999+00","#,
            r#""grid":[[1,2],[null,2]],"prices":["-0.05","NaN"],"blobs":"[0:0]={\"\\\\x00ff\"}"}"#
        )),
        Some(concat!(
            r#"{"at":"294247-01-10 04:00:54.775807","grid":"[0:0]={1}","prices":[["123.45"]],"#,
            r#""blobs":[["\\x00ff"]]}"#
        )),
    ];
    for format in FORMATS {
        let bytes = file(format, std::slice::from_ref(&batch), &WriterOptions::default());
        let options = ReaderOptions::default();
        let reader = FileReader::open(&format, &exact_schema(&columns), bytes, &options).unwrap();
        let read: Vec<_> = reader.map(|batch| batch.unwrap()).collect();
        assert_eq!(texts(&read).iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{format:?}");
        let nulls: Vec<_> = (0..columns.len()).map(|index| read[0].column(index).null_count()).collect();
        assert_eq!(nulls, [1, 2, 2, 2, 3, 3, 0], "{format:?}");
        assert!(read[0].schema().field(0).is_nullable(), "a null stands in for the text");
    }
}

#[test]
fn values_and_their_texts_are_one_cell_in_memory_and_come_apart_as_they_were() {
    let (columns, rows) = exceeding();
    let written = batch(&columns, &rows);
    let schema = cell_schema(&arrow_schema(&columns), &columns);
    let cells = join(&written, &schema, &by_name(&columns)).unwrap();
    let mut counts = vec![0; columns.len()];
    assert_eq!(split(&cells, &written.schema(), &mut counts).unwrap(), written);
    assert_eq!(counts, [1, 2, 1, 2, 2, 2, 0]);
    let turned =
        arrow_select::interleave::interleave_record_batch(&[&cells], &[(0, 2), (0, 0), (0, 1)]).unwrap();
    let turned = split(&turned, &written.schema(), &mut counts).unwrap();
    let expected = [2, 0, 1].map(|row| texts(std::slice::from_ref(&written))[row].clone());
    assert_eq!(texts(&[turned]), expected);
}

#[test]
fn a_column_made_text_since_takes_its_texts_over() {
    let old = [column("price", ColumnType::Decimal { precision: 5, scale: 2 })];
    let rows = [vec![Datum::Text("NaN".into())], vec![unscaled(150)], vec![Datum::Null]];
    let bytes = file(FORMATS[0], &[batch(&old, &rows)], &WriterOptions::default());
    let new = [column("price", ColumnType::Numeric)];
    let reader =
        FileReader::open(&FORMATS[0], &exact_schema(&new), bytes, &ReaderOptions::default()).unwrap();
    let read: Vec<_> = reader
        .map(|batch| join(&batch.unwrap(), &cell_schema(&arrow_schema(&new), &new), &by_name(&new)).unwrap())
        .collect();
    let text = |text: &'static str| vec![Datum::Text(text.into())];
    assert_rows(&new, &read, &[text("NaN"), text("1.50"), vec![Datum::Null]]);
}

#[test]
fn a_refused_row_takes_its_texts_with_it() {
    let columns =
        [column("price", ColumnType::Decimal { precision: 5, scale: 2 }), column("n", ColumnType::Int16)];
    let mut builder = RowBuilder::new(&columns);
    let nan = Datum::Text("NaN".into());
    builder.push(&[nan.clone(), Datum::Int(1 << 20)]).unwrap_err();
    builder.push(&[unscaled(1), Datum::Int(1)]).unwrap();
    assert_eq!(builder.finish().schema(), arrow_schema(&columns));
    builder.push(&[nan.clone(), Datum::Int(1)]).unwrap();
    builder.push(&[nan, Datum::Int(1 << 20)]).unwrap_err();
    assert_eq!(texts(&[builder.finish()]), [Some(r#"{"price":"NaN"}"#.to_owned())]);
}

#[test]
fn a_damaged_column_of_texts_is_an_error() {
    let columns =
        [column("price", ColumnType::Decimal { precision: 5, scale: 2 }), column("n", ColumnType::Int16)];
    for (text, reason) in [
        ("x", "is not an object of JSON"),
        (r#"{"gone":"NaN"}"#, "names \"gone\", which is no column"),
        (r#"{"n":"NaN"}"#, "names column \"n\", which holds all"),
    ] {
        let mut arrays = batch(&columns, &[vec![Datum::Null, Datum::Null]]).columns().to_vec();
        arrays.push(std::sync::Arc::new(arrow_array::StringArray::from(vec![text])));
        let batch = RecordBatch::try_new(exact_schema(&columns), arrays).unwrap();
        let error = join(&batch, &cell_schema(&arrow_schema(&columns), &columns), &by_name(&columns))
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
}
