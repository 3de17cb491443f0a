//! A row's key as a JSON array, for manifests and dead letters.

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use serde_json::Value;

use crate::batch::datum;
use crate::change::{Datum, TableSchema};

/// The key of a row whose table columns are the batch's; `None` for a table without a key.
///
/// A value that its type cannot hold is as in [`EXACT`](crate::batch::EXACT). Of the others, integers, booleans and finite floats are JSON's own; dates and times are the numbers at rest (days or
/// microseconds); decimals, text and the rest are strings, bytes in hexadecimal.
pub(super) fn key_json(schema: &TableSchema, batch: &RecordBatch, row: usize) -> Option<String> {
    if schema.key.is_empty() {
        return None;
    }
    let cell = |index: &usize| cell_json(schema, batch.column(*index).as_ref(), *index, row);
    Some(Value::Array(schema.key.iter().map(cell).collect()).to_string())
}

fn cell_json(schema: &TableSchema, array: &dyn Array, column: usize, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Struct(_) => {
            let cell = array.as_struct();
            let exact = cell.column(1).as_string::<i32>();
            if exact.is_null(row) {
                cell_json(schema, cell.column(0).as_ref(), column, row)
            } else {
                serde_json::from_str(exact.value(row)).unwrap_or_default()
            }
        }
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row).into(),
        _ => datum_json(&datum(array, &schema.columns[column].column_type, row)),
    }
}

fn float(value: f64) -> Value {
    // JSON has no NaN and no infinity.
    if value.is_finite() { value.into() } else { value.to_string().into() }
}

fn datum_json(datum: &Datum<'_>) -> Value {
    match datum {
        Datum::Null | Datum::Unchanged => Value::Null,
        Datum::Bool(value) => (*value).into(),
        Datum::Int(value) | Datum::Time(value) => (*value).into(),
        Datum::Float(value) => float(*value),
        Datum::Date(days) => (*days).into(),
        Datum::Timestamp(us) => i64::try_from(*us).map_or_else(|_| us.to_string().into(), Value::from),
        Datum::Text(text) => text.as_ref().into(),
        Datum::Decimal(bytes) | Datum::Bytes(bytes) => super::super::store::hexadecimal(bytes).into(),
        Datum::List(items) => Value::Array(items.iter().map(datum_json).collect()),
    }
}
