//! Cells back out of arrays: the reverse of [`data_type`](super::data_type).

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrowPrimitiveType};

use super::columns::{DATE_INFINITY, TIMESTAMP_INFINITY};
use super::decimal;
use super::schema::DecimalForm;
use crate::change::{ColumnType, Datum};

/// The value of one cell. Text and bytes are borrowed from the array; unscaled values come in their
/// shortest form.
///
/// # Panics
/// When the array is not of the type [`data_type`](super::data_type) gives for the column type, or has
/// no such row.
pub fn datum<'a>(array: &'a dyn Array, column_type: &ColumnType, row: usize) -> Datum<'a> {
    if array.is_null(row) {
        return Datum::Null;
    }
    match column_type {
        ColumnType::Bool => Datum::Bool(array.as_boolean().value(row)),
        ColumnType::Int16 => Datum::Int(value::<Int16Type>(array, row).into()),
        ColumnType::Int32 => Datum::Int(value::<Int32Type>(array, row).into()),
        ColumnType::Int64 => Datum::Int(value::<Int64Type>(array, row)),
        ColumnType::Float32 => Datum::Float(value::<Float32Type>(array, row).into()),
        ColumnType::Float64 => Datum::Float(value::<Float64Type>(array, row)),
        ColumnType::Decimal { precision, scale } => decimal_datum(array, *precision, *scale, row),
        ColumnType::Numeric
        | ColumnType::Text { .. }
        | ColumnType::Bits { .. }
        | ColumnType::TimeTz
        | ColumnType::Interval => Datum::Text(Cow::Borrowed(array.as_string::<i32>().value(row))),
        ColumnType::Bytes => Datum::Bytes(Cow::Borrowed(array.as_binary::<i32>().value(row))),
        ColumnType::Date => date_datum(value::<Date32Type>(array, row)),
        ColumnType::Time { .. } => Datum::Time(value::<Time64MicrosecondType>(array, row)),
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => {
            timestamp_datum(value::<TimestampMicrosecondType>(array, row))
        }
        ColumnType::Array { element } => {
            let list = array.as_list::<i32>();
            let (start, end) = (list.value_offsets()[row], list.value_offsets()[row + 1]);
            let items = list.values().as_ref();
            Datum::List((start..end).map(|item| datum(items, element, item as usize)).collect())
        }
    }
}

/// The value of days at rest.
pub(super) fn date_datum(days: i32) -> Datum<'static> {
    Datum::Date(if days == -DATE_INFINITY { i32::MIN } else { days })
}

/// The value of microseconds at rest.
pub(super) fn timestamp_datum(micros: i64) -> Datum<'static> {
    Datum::Timestamp(match micros {
        TIMESTAMP_INFINITY => Datum::INFINITY,
        at if at == -TIMESTAMP_INFINITY => Datum::NEG_INFINITY,
        at => at.into(),
    })
}

fn value<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

fn decimal_datum(array: &dyn Array, precision: u16, scale: i16, row: usize) -> Datum<'_> {
    match DecimalForm::of(precision, scale) {
        DecimalForm::Fixed { shift, .. } => {
            let at_rest = value::<Decimal128Type>(array, row);
            Datum::Decimal(Cow::Owned(decimal::from_i128(at_rest / 10_i128.pow(shift))))
        }
        DecimalForm::Text => {
            let text = array.as_string::<i32>().value(row);
            // NaN, the only other value which a numeric with precision can hold.
            decimal::parse(text.as_bytes(), scale)
                .map_or(Datum::Text(Cow::Borrowed(text)), |bytes| Datum::Decimal(Cow::Owned(bytes)))
        }
    }
}
