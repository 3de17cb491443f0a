//! Batches of an older version of a table's schema, made into the newer one.
//!
//! Shapes only ever grow, so what a file may lack is known: an [`Origin`] says what its rows hold in a column that
//! was added since, and types widened since are cast where no value can change. Everything else is an error that
//! names column and types.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
};
use arrow_array::{
    Array, ArrayRef, ListArray, PrimitiveArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::take::take;

use super::columns::ColumnBuilder;
use super::decimal;
use crate::change::{ColumnType, Datum};
use crate::runtime::{Error, Result};

/// What the rows of a file hold in a column of the schema wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// What the file's column of that name holds; null if the file has no such column.
    Column(String),
    /// Null: it was added later.
    Null,
    /// One value, the same in all rows: an array of length one.
    Constant(ArrayRef),
}

impl Origin {
    /// A constant of a column type; or why a file cannot hold it.
    pub fn constant(column_type: &ColumnType, value: &Datum<'_>) -> Result<Self, String> {
        let mut column = ColumnBuilder::new(column_type);
        column.append(value)?;
        Ok(Self::Constant(column.finish()))
    }
}

/// Where a wanted column comes from.
enum From {
    /// A column of the batch as read.
    Read(usize),
    /// No column: all rows are the same.
    Same(Same),
}

/// A column in which all rows are the same, made again only for a batch that is longer than all before.
pub(super) struct Same {
    /// Of length one.
    value: ArrayRef,
    longest: ArrayRef,
}

impl Same {
    /// For an origin that is not a column of the file, in the type of a wanted field; none for one that is.
    pub(super) fn of(origin: &Origin, field: &Field) -> Result<Option<Self>> {
        let to = field.data_type();
        let value = match origin {
            Origin::Column(_) => return Ok(None),
            Origin::Null => return Self::null(field).map(Some),
            Origin::Constant(value) if widens(value.data_type(), to) => cast(value, to),
            Origin::Constant(value) => {
                return Err(Error::operator(format!(
                    "the rows in which column {:?} is missing hold a constant of {}, which does not widen to {to}, \
                     its type now",
                    field.name(),
                    value.data_type()
                )));
            }
        };
        Ok(Some(Self { longest: Arc::clone(&value), value }))
    }

    /// Nulls, unless the field may not be null.
    pub(super) fn null(field: &Field) -> Result<Self> {
        if !field.is_nullable() {
            return Err(Error::operator(format!(
                "the file lacks column {:?} ({}), which may not be null",
                field.name(),
                field.data_type()
            )));
        }
        let value = new_null_array(field.data_type(), 1);
        Ok(Self { longest: Arc::clone(&value), value })
    }

    /// The column of a batch of so many rows.
    pub(super) fn rows(&mut self, rows: usize) -> Result<ArrayRef> {
        if self.longest.len() < rows {
            let first = UInt32Array::from(vec![0; rows]);
            self.longest = take(self.value.as_ref(), &first, None)
                .map_err(|error| Error::operator("a constant cannot be repeated").cause(error))?;
        }
        Ok(self.longest.slice(0, rows))
    }

    /// Memory of a row, in bytes, roughly.
    pub(super) fn row_bytes(&self) -> usize {
        self.value.to_data().get_slice_memory_size().unwrap_or_default()
    }
}

/// How batches of a file become batches of the schema wanted.
pub(super) struct Widening {
    schema: SchemaRef,
    columns: Vec<From>,
}

impl Widening {
    /// Compares a file's schema with the table's, of which `wanted` has the columns to read, with the origin of
    /// each. Also returns which of the file's columns those are, ascending.
    pub(super) fn plan(
        file: &Schema,
        schema: &Schema,
        (wanted, origins): (SchemaRef, Vec<Origin>),
    ) -> Result<(Self, Vec<usize>)> {
        if let Some(field) = file.fields().iter().find(|field| schema.index_of(field.name()).is_err()) {
            return Err(Error::operator(format!(
                "the file has a column {:?} ({}), which the table's schema does not know",
                field.name(),
                field.data_type()
            )));
        }
        let mut columns = Vec::with_capacity(origins.len());
        for (field, origin) in wanted.fields().iter().zip(&origins) {
            columns.push(match (Same::of(origin, field)?, origin) {
                (Some(same), _) => From::Same(same),
                (None, Origin::Column(name)) => check(file, name, field)?,
                (None, _) => From::Same(Same::null(field)?),
            });
        }
        let mut read: Vec<usize> = columns.iter().filter_map(From::read).collect();
        read.sort_unstable();
        read.dedup();
        for column in &mut columns {
            if let From::Read(index) = column {
                *index = read.partition_point(|other| other < index);
            }
        }
        Ok((Self { schema: wanted, columns }, read))
    }

    /// The schema of the batches that come out.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Memory, roughly, that a row takes in columns which the file does not have.
    pub(super) fn row_bytes(&self) -> usize {
        let bytes = |column: &From| match column {
            From::Read(_) => 0,
            From::Same(same) => same.row_bytes(),
        };
        self.columns.iter().map(bytes).sum()
    }

    /// A batch as read, with the columns that [`Self::plan`] named, in the schema wanted.
    pub(super) fn apply(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            arrays.push(match column {
                From::Read(index) => cast(batch.column(*index), field.data_type()),
                From::Same(same) => same.rows(batch.num_rows())?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(|error| {
            Error::operator("the file has nulls where the table's schema allows none").cause(error)
        })
    }
}

impl From {
    const fn read(&self) -> Option<usize> {
        match self {
            Self::Read(index) => Some(*index),
            Self::Same(_) => None,
        }
    }
}

/// The column of the file for a wanted one; nulls if the file has none of that name.
fn check(file: &Schema, name: &str, field: &Field) -> Result<From> {
    let Ok(index) = file.index_of(name) else { return Ok(From::Same(Same::null(field)?)) };
    let from = file.field(index).data_type();
    if widens(from, field.data_type()) {
        return Ok(From::Read(index));
    }
    Err(Error::operator(format!(
        "column {:?} is {from} in the file{}, which does not widen to {}, its type now",
        field.name(),
        if name == field.name() { String::new() } else { format!(" (as {name:?})") },
        field.data_type()
    )))
}

/// Whether every value of the one type is a value of the other.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{Decimal128, Float32, Float64, Int16, Int32, Int64, List, Utf8};
    match (from, to) {
        (Int16, Int32 | Int64)
        | (Int32, Int64)
        | (Float32, Float64)
        | (Int16 | Int32 | Int64 | Decimal128(..), Utf8) => true,
        (Int16, Decimal128(precision, scale)) => whole(*precision, *scale) >= 5,
        (Int32, Decimal128(precision, scale)) => whole(*precision, *scale) >= 10,
        (Int64, Decimal128(precision, scale)) => whole(*precision, *scale) >= 19,
        (Decimal128(p, s), Decimal128(precision, scale)) => {
            scale >= s && whole(*precision, *scale) >= whole(*p, *s)
        }
        (List(from), List(to)) => widens(from.data_type(), to.data_type()),
        (from, to) => from == to,
    }
}

/// Digits before the point.
fn whole(precision: u8, scale: i8) -> i16 {
    i16::from(precision) - i16::from(scale)
}

/// The array in a type that [`widens`] allows.
fn cast(array: &ArrayRef, to: &DataType) -> ArrayRef {
    match (array.data_type(), to) {
        (from, to) if from == to => Arc::clone(array),
        (DataType::Int16, _) => cast_int::<Int16Type>(array, to),
        (DataType::Int32, _) => cast_int::<Int32Type>(array, to),
        (DataType::Int64, _) => cast_int::<Int64Type>(array, to),
        (DataType::Float32, _) => {
            Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float64Type>(f64::from))
        }
        (DataType::Decimal128(_, scale), DataType::Utf8) => {
            decimal_text(array.as_primitive::<Decimal128Type>(), *scale)
        }
        (DataType::Decimal128(_, from), DataType::Decimal128(_, scale)) => {
            let factor = 10_i128.pow(u32::from((scale - from).unsigned_abs()));
            let values = array.as_primitive::<Decimal128Type>();
            Arc::new(values.unary::<_, Decimal128Type>(|v| v * factor).with_data_type(to.clone()))
        }
        (DataType::List(_), DataType::List(field)) => {
            let list = array.as_list::<i32>();
            let items = cast(list.values(), field.data_type());
            Arc::new(ListArray::new(Arc::clone(field), list.offsets().clone(), items, list.nulls().cloned()))
        }
        _ => Arc::clone(array),
    }
}

fn cast_int<T: ArrowPrimitiveType>(array: &ArrayRef, to: &DataType) -> ArrayRef
where
    T::Native: Into<i64>,
{
    let values: &PrimitiveArray<T> = array.as_primitive();
    match to {
        DataType::Int32 => Arc::new(values.unary::<_, Int32Type>(|v| v.into() as i32)),
        DataType::Int64 => Arc::new(values.unary::<_, Int64Type>(Into::into)),
        DataType::Decimal128(_, scale) => {
            let factor = 10_i128.pow(u32::from(scale.unsigned_abs()));
            let values = values.unary::<_, Decimal128Type>(|v| i128::from(v.into()) * factor);
            Arc::new(values.with_data_type(to.clone()))
        }
        _ => {
            let mut text = StringBuilder::new();
            let mut digits = String::new();
            for value in values {
                let value = value.map(|value| {
                    digits.clear();
                    // Writing to a string cannot fail.
                    let _ = write!(digits, "{}", value.into());
                    digits.as_str()
                });
                text.append_option(value);
            }
            Arc::new(text.finish())
        }
    }
}

fn decimal_text(values: &PrimitiveArray<Decimal128Type>, scale: i8) -> ArrayRef {
    let mut text = StringBuilder::new();
    let mut digits = Vec::new();
    for value in values {
        digits.clear();
        if let Some(value) = value {
            decimal::write_text(&value.to_be_bytes(), i16::from(scale), &mut digits);
        }
        text.append_option(value.map(|_| String::from_utf8_lossy(&digits)));
    }
    Arc::new(text.finish())
}
