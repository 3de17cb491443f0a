//! Values that their column's type at rest cannot hold: they stand as JSON in one more column.
//!
//! ```text
//!   in a file    price decimal | tags list | … | __exact text
//!                null          | null      |   | {"price":"NaN","tags":"[0:1]={a,b}"}
//!   in memory    price struct(value decimal, exact text) | tags struct(value list, exact text) | …
//! ```
//!
//! These are NaN of a `numeric(p,s)`, timestamps from the year 294247 on, arrays of more than one dimension or with a
//! lower bound other than 1, and lists with such an element; in ORC also times of the last second of 1969 (`untold`). A type that held them all would be text for every reader
//! and every row; this way the column keeps its type, and who never has such values never sees the column.
//!
//! A value in the column is what a CSV list has for it as an element: a string of its text, a list as a list, an array
//! with bounds as a string of Postgres's text. The keys stand in the order of the table's columns, so the same row gives
//! the same bytes. Rows are merged cell by cell, also by the key: so in memory the value and its text are one cell.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, StructArray};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::value::RawValue;

use super::csv::{calendar, write_float, write_hex, write_json_text};
use super::decimal;
use super::schema::{DecimalForm, arrow_schema};
use super::untold::told;
use super::widen::Origin;
use crate::change::{Column, ColumnType, Datum};
use crate::runtime::{Error, Result};

/// The name of the column, the last one of its file.
pub const EXACT: &str = "__exact";

/// Whether the type at rest lacks some values of a column type.
pub fn may_exceed(column_type: &ColumnType) -> bool {
    match column_type {
        ColumnType::Decimal { precision, scale } => {
            matches!(DecimalForm::of(*precision, *scale), DecimalForm::Fixed { .. })
        }
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } | ColumnType::Array { .. } => true,
        _ => false,
    }
}

/// The column itself.
pub fn exact_field() -> Field {
    Field::new(EXACT, DataType::Utf8, true)
}

/// The schema of complete rows of which some value stands in [`EXACT`]: as [`arrow_schema`], with that column behind the
/// others; those that it may stand in for are nullable.
pub fn exact_schema(columns: &[Column]) -> SchemaRef {
    with_exact(&arrow_schema(columns), columns.iter().map(|column| &column.column_type))
}

pub(super) fn with_exact<'a>(schema: &Schema, types: impl Iterator<Item = &'a ColumnType>) -> SchemaRef {
    let field = |(field, column_type): (&Arc<Field>, &ColumnType)| {
        let nullable = field.is_nullable() || may_exceed(column_type);
        field.as_ref().clone().with_nullable(nullable)
    };
    let fields = schema.fields().iter().zip(types).map(field).chain([exact_field()]);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The type of a cell in memory that holds a value or its text.
fn cell_type(value: &DataType) -> DataType {
    DataType::Struct(cell_fields(value))
}

fn cell_fields(value: &DataType) -> Fields {
    [Field::new("value", value.clone(), true), Field::new("exact", DataType::Utf8, true)]
        .into_iter()
        .collect()
}

/// A schema of rows in memory: each column that [`EXACT`] may stand in for is a struct of its value and its text.
pub fn cell_schema(schema: &Schema, columns: &[Column]) -> SchemaRef {
    let field = |(field, column): (&Arc<Field>, &Column)| {
        if may_exceed(&column.column_type) {
            Field::new(field.name(), cell_type(field.data_type()), false)
        } else {
            field.as_ref().clone()
        }
    };
    Arc::new(Schema::new(schema.fields().iter().zip(columns).map(field).collect::<Vec<_>>()))
}

/// Rows of a file, with [`EXACT`] as their last column, as rows in memory of a [`cell_schema`]. `origins`, one for each
/// other column, say under which name a column stands in the file's texts.
///
/// A column which was made text since takes over its texts. Values that ORC cannot tell become text, too.
pub fn join(batch: &RecordBatch, schema: &SchemaRef, origins: &[Origin]) -> Result<RecordBatch> {
    joined(batch, schema, origins, told)
}

/// The same, where no file will be ORC.
pub fn join_as_told(batch: &RecordBatch, schema: &SchemaRef, origins: &[Origin]) -> Result<RecordBatch> {
    joined(batch, schema, origins, StructArray::clone)
}

fn joined(
    batch: &RecordBatch,
    schema: &SchemaRef,
    origins: &[Origin],
    told: impl Fn(&StructArray) -> StructArray,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let texts = texts(batch.column(schema.fields().len()).as_string())?;
    if let Some(name) = texts.keys().find(|name| schema.index_of(name).is_err()) {
        return Err(not_ours(&format!("names {name:?}, which is no column")));
    }
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for ((index, field), origin) in schema.fields().iter().enumerate().zip(origins) {
        let array = batch.column(index);
        let exact = match origin {
            Origin::Column { name, .. } => texts.get(name).map(|texts| sparse(texts, rows)),
            Origin::Constant { beyond: Some(text), .. } => Some((0..rows).map(|_| Some(text)).collect()),
            Origin::Null | Origin::Constant { .. } => None,
        };
        arrays.push(match (field.data_type(), exact) {
            (DataType::Struct(fields), exact) => {
                let exact = exact.unwrap_or_else(|| StringArray::new_null(rows));
                let cell = StructArray::new(fields.clone(), vec![Arc::clone(array), Arc::new(exact)], None);
                Arc::new(told(&cell))
            }
            (DataType::Utf8, Some(exact)) => Arc::new(replaced(array.as_string(), &exact)?),
            (_, None) => Arc::clone(array),
            (_, Some(_)) => {
                return Err(not_ours(&format!("names column {:?}, which holds all", field.name())));
            }
        });
    }
    assembled(schema, arrays, rows)
}

/// By column: the rows with a text, ascending.
fn texts(exact: &StringArray) -> Result<HashMap<String, Vec<(usize, &str)>>> {
    let mut texts: HashMap<_, Vec<_>> = HashMap::new();
    if exact.null_count() == exact.len() {
        return Ok(texts);
    }
    for (row, text) in exact.iter().enumerate() {
        let Some(text) = text else { continue };
        let values: HashMap<String, &RawValue> =
            serde_json::from_str(text).map_err(|error| not_ours("is not an object of JSON").cause(error))?;
        for (name, value) in values {
            texts.entry(name).or_default().push((row, value.get()));
        }
    }
    Ok(texts)
}

fn not_ours(what: &str) -> Error {
    Error::operator(format!("column {EXACT:?} {what}"))
        .mend("The file is damaged, or was not written by Tidemark.")
}

fn sparse(texts: &[(usize, &str)], rows: usize) -> StringArray {
    let mut texts = texts.iter().peekable();
    (0..rows).map(|row| texts.next_if(|(at, _)| *at == row).map(|(_, text)| *text)).collect()
}

/// Texts of JSON strings in the place of nulls.
fn replaced(array: &StringArray, exact: &StringArray) -> Result<StringArray> {
    let mut out = StringBuilder::new();
    for (value, json) in array.iter().zip(exact) {
        match json {
            None => out.append_option(value),
            Some(json) => out.append_value(
                serde_json::from_str::<String>(json)
                    .map_err(|error| not_ours("has a list for a column of text").cause(error))?,
            ),
        }
    }
    Ok(out.finish())
}

/// Rows in memory of a [`cell_schema`], as rows of a file of the [`exact_schema`]. Adds to `counts`, by column, how many
/// values stand as text.
pub fn split(batch: &RecordBatch, schema: &SchemaRef, counts: &mut [u64]) -> Result<RecordBatch> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    let mut texts: Vec<(usize, &StringArray)> = Vec::new();
    for (index, array) in batch.columns().iter().enumerate() {
        let Some(cells) = array.as_struct_opt() else {
            arrays.push(Arc::clone(array));
            continue;
        };
        arrays.push(Arc::clone(cells.column(0)));
        let exact: &StringArray = cells.column(1).as_string();
        if exact.null_count() < exact.len() {
            counts[index] += (exact.len() - exact.null_count()) as u64;
            texts.push((index, exact));
        }
    }
    let names = |index: usize| schema.field(index).name().as_str();
    arrays.push(Arc::new(objects(batch.num_rows(), |row, object| {
        for (index, exact) in texts.iter().filter(|(_, exact)| exact.is_valid(row)) {
            object.push(names(*index), exact.value(row).as_bytes());
        }
    })));
    assembled(schema, arrays, batch.num_rows())
}

/// A column of an object a row, or of null where it stays empty.
fn objects(rows: usize, fill: impl Fn(usize, &mut Object)) -> StringArray {
    let mut out = StringBuilder::new();
    let mut object = Object(Vec::new());
    for row in 0..rows {
        object.0.clear();
        fill(row, &mut object);
        if object.0.is_empty() {
            out.append_null();
        } else {
            object.0.push(b'}');
            out.append_value(String::from_utf8_lossy(&object.0));
        }
    }
    out.finish()
}

/// An object of JSON being written, without its closing brace.
struct Object(Vec<u8>);

impl Object {
    fn push(&mut self, name: &str, json: &[u8]) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        write_json_text(name, &mut self.0);
        self.0.push(b':');
        self.0.extend_from_slice(json);
    }
}

fn assembled(schema: &SchemaRef, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
        .map_err(|error| Error::operator("rows are not of the schema of their file").cause(error))
}

/// Values of rows being collected that go into [`EXACT`].
#[derive(Default)]
pub(super) struct Beyond {
    /// Row, column, JSON; ascending.
    values: Vec<(usize, usize, Vec<u8>)>,
}

impl Beyond {
    /// Adds a value and returns the memory it takes, roughly.
    pub(super) fn push(&mut self, row: usize, column: usize, datum: &Datum<'_>, of: &ColumnType) -> usize {
        let mut json = Vec::new();
        write_json(datum, of, &mut json);
        let bytes = json.len();
        self.values.push((row, column, json));
        bytes
    }

    /// Keeps the values of the first `rows` rows.
    pub(super) fn truncate(&mut self, rows: usize) {
        let kept = self.values.partition_point(|(row, ..)| *row < rows);
        self.values.truncate(kept);
    }

    /// The column, if any row has a value in it; empty afterwards.
    pub(super) fn finish(&mut self, rows: usize, schema: &Schema) -> Option<ArrayRef> {
        let values = std::mem::take(&mut self.values);
        if values.is_empty() {
            return None;
        }
        Some(Arc::new(objects(rows, |row, object| {
            let first = values.partition_point(|(at, ..)| *at < row);
            for (_, column, json) in values[first..].iter().take_while(|(at, ..)| *at == row) {
                object.push(schema.field(*column).name(), json);
            }
        })))
    }
}

/// A value as it stands in [`EXACT`].
pub(super) fn exact_json(datum: &Datum<'_>, column_type: &ColumnType) -> String {
    let mut json = Vec::new();
    write_json(datum, column_type, &mut json);
    String::from_utf8_lossy(&json).into_owned()
}

/// A value as JSON, as it is in a CSV list.
fn write_json(datum: &Datum<'_>, column_type: &ColumnType, out: &mut Vec<u8>) {
    let quoted = |out: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>)| {
        out.push(b'"');
        write(out);
        out.push(b'"');
    };
    match (datum, column_type) {
        (Datum::Null | Datum::Unchanged, _) => out.extend_from_slice(b"null"),
        (Datum::Bool(value), _) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        // Writing to a vector cannot fail.
        (Datum::Int(value), _) => drop(write!(out, "{value}")),
        (Datum::Float(value), ColumnType::Float32) => write_float_json(*value as f32, out),
        (Datum::Float(value), _) => write_float_json(*value, out),
        (Datum::Decimal(unscaled), kind) => {
            let scale = if let ColumnType::Decimal { scale, .. } = kind { *scale } else { 0 };
            quoted(out, &|out| {
                decimal::write_text(unscaled, scale, out);
            });
        }
        (Datum::Text(text), _) => write_json_text(text, out),
        (Datum::Bytes(bytes), _) => {
            // The backslash of `\x` is escaped in JSON.
            out.extend_from_slice(b"\"\\");
            write_hex(bytes, out);
            out.push(b'"');
        }
        (Datum::Date(days), _) => quoted(out, &|out| calendar::write_date_value(*days, out)),
        (Datum::Time(micros), _) => quoted(out, &|out| calendar::write_time(*micros, out)),
        (Datum::Timestamp(micros), kind) => {
            let utc = matches!(kind, ColumnType::TimestampTz { .. });
            quoted(out, &|out| calendar::write_timestamp_value(*micros, utc, out));
        }
        (Datum::List(items), kind) => {
            // Of more dimensions, the lists in the list have the element's type, too.
            let element = match kind {
                ColumnType::Array { element } => element.as_ref(),
                element => element,
            };
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_json(item, element, out);
            }
            out.push(b']');
        }
    }
}

fn write_float_json(value: impl std::fmt::Debug + Into<f64> + Copy, out: &mut Vec<u8>) {
    let finite = value.into().is_finite();
    out.extend_from_slice(if finite { b"" } else { b"\"" });
    write_float(value, out);
    out.extend_from_slice(if finite { b"" } else { b"\"" });
}
