//! Batches of an older version of a table's schema, made into the newer one.
//!
//! Shapes only ever grow, so what a file may lack is known: columns added since are null, types widened
//! since are cast where no value can change. Everything else is an error that names column and types.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
};
use arrow_array::{
    Array, ArrayRef, ListArray, PrimitiveArray, RecordBatch, RecordBatchOptions, new_null_array,
};
use arrow_schema::{DataType, FieldRef, Schema, SchemaRef};

use super::decimal;
use crate::runtime::{Error, Result};

/// Where a wanted column comes from.
enum From {
    /// A column of the batch as read.
    Read(usize),
    /// Nowhere: it was added later.
    Null,
}

/// How batches of a file become batches of the schema wanted.
pub(super) struct Widening {
    schema: SchemaRef,
    columns: Vec<From>,
}

impl Widening {
    /// Compares a file's schema with the table's, of which `wanted` has the columns to read. Also returns
    /// which of the file's columns those are, ascending.
    pub(super) fn plan(file: &Schema, schema: &Schema, wanted: SchemaRef) -> Result<(Self, Vec<usize>)> {
        if let Some(field) = file.fields().iter().find(|field| schema.index_of(field.name()).is_err()) {
            return Err(Error::operator(format!(
                "the file has a column {:?} ({}), which the table's schema does not know",
                field.name(),
                field.data_type()
            )));
        }
        let found: Vec<_> = wanted.fields().iter().map(|field| check(file, field)).collect::<Result<_>>()?;
        let mut read: Vec<usize> = found.iter().flatten().copied().collect();
        read.sort_unstable();
        let place = |index: &usize| read.partition_point(|other| other < index);
        let columns = found.iter().map(|index| index.as_ref().map_or(From::Null, |i| From::Read(place(i))));
        let columns = columns.collect();
        Ok((Self { schema: wanted, columns }, read))
    }

    /// The schema of the batches that come out.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A batch as read, with the columns that [`Self::plan`] named, in the schema wanted.
    pub(super) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter().zip(self.schema.fields()) {
            arrays.push(match column {
                From::Read(index) => cast(batch.column(*index), field.data_type()),
                From::Null => new_null_array(field.data_type(), batch.num_rows()),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(|error| {
            Error::operator("the file has nulls where the table's schema allows none").cause(error)
        })
    }
}

/// The column of the file for a wanted one; none if it was added later.
fn check(file: &Schema, field: &FieldRef) -> Result<Option<usize>> {
    match file.index_of(field.name()) {
        Ok(index) => {
            let from = file.field(index).data_type();
            if widens(from, field.data_type()) {
                return Ok(Some(index));
            }
            Err(Error::operator(format!(
                "column {:?} is {from} in the file, which does not widen to {}, its type now",
                field.name(),
                field.data_type()
            )))
        }
        Err(_) if field.is_nullable() => Ok(None),
        Err(_) => Err(Error::operator(format!(
            "the file lacks column {:?} ({}), which may not be null",
            field.name(),
            field.data_type()
        ))),
    }
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
