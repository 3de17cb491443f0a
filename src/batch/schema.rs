//! The one place where a [`ColumnType`] gets its type at rest.
//!
//! Chosen for what Trino, Spark, Hive, Redshift, DuckDB and pyarrow all read without loss:
//!
//! | `ColumnType` | Arrow | Parquet (ORC is alike, but for the time of day, which is text) |
//! |---|---|---|
//! | `Bool` | `Boolean` | BOOLEAN |
//! | `Int16`, `Int32`, `Int64` | the same | INT32 (16 bits, 32 bits), INT64 |
//! | `Float32`, `Float64` | the same | FLOAT, DOUBLE |
//! | `Decimal` of up to 38 digits | `Decimal128` | DECIMAL on INT32, INT64 or fixed bytes |
//! | `Decimal` of more digits, `Numeric` | `Utf8` | STRING, plain digits |
//! | `Text`, `Bits`, `TimeTz`, `Interval` | `Utf8` | STRING |
//! | `Bytes` | `Binary` | byte array |
//! | `Date` | `Date32` | DATE |
//! | `Time` | `Time64(µs)` | TIME(µs, local) |
//! | `Timestamp`, `TimestampTz` | `Timestamp(µs, none / UTC)` | TIMESTAMP(µs, local / UTC) |
//! | `Array` | `List` | three-level LIST |
//!
//! Decimals above 38 digits are text because no reader but pyarrow keeps them: Trino and Spark refuse the
//! file, DuckDB turns the column into a DOUBLE. [`as_text`] says for manifests why a column is text; single values that
//! their column's type lacks are those of [`super::exact`]. Infinity of a date is day ±(2³¹-1), of a timestamp
//! microsecond ±(2⁶³-1): what DuckDB writes and shows as `infinity`.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

use super::exact::EXACT;
use super::format::Format;
use crate::change::{Column, ColumnType, TextKind};

/// The name of a list's element, as the Parquet specification has it (`LogicalTypes.md`, "Lists").
pub const LIST_ELEMENT: &str = "element";

/// Most digits that every reader's decimal type holds.
pub(super) const DECIMAL_DIGITS_MAX: u16 = 38;

/// The schema of complete rows of a table (a snapshot): a field a column, nullable as the column says.
pub fn arrow_schema(columns: &[Column]) -> SchemaRef {
    schema(columns, |column| column.nullable)
}

/// The schema of rows that may lack values (change files: unchanged TOAST values, deletes that carry the
/// key only): as [`arrow_schema`], with every field nullable.
pub fn partial_schema(columns: &[Column]) -> SchemaRef {
    schema(columns, |_| true)
}

fn schema(columns: &[Column], nullable: impl Fn(&Column) -> bool) -> SchemaRef {
    let field = |column: &Column| {
        Field::new(name_at_rest(&column.name), data_type(&column.column_type), nullable(column))
    };
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// The name that a table's column has in files: [`EXACT`] is their own.
pub fn name_at_rest(name: &str) -> Cow<'_, str> {
    beside(name, &[EXACT])
}

/// A column's name beside columns of a file that are no columns of its table: one of their names has an underscore before
/// it, and so has what would then be taken. Their names begin with two.
pub fn beside<'a>(name: &'a str, own: &[&str]) -> Cow<'a, str> {
    let bare = name.trim_start_matches('_');
    let taken = name.starts_with("__") && own.iter().any(|own| own.trim_start_matches('_') == bare);
    if taken { Cow::Owned(format!("_{name}")) } else { Cow::Borrowed(name) }
}

/// The Arrow type that stands for a column type.
pub fn data_type(column_type: &ColumnType) -> DataType {
    match column_type {
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Int16 => DataType::Int16,
        ColumnType::Int32 => DataType::Int32,
        ColumnType::Int64 => DataType::Int64,
        ColumnType::Float32 => DataType::Float32,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Decimal { precision, scale } => match DecimalForm::of(*precision, *scale) {
            DecimalForm::Fixed { precision, scale, .. } => DataType::Decimal128(precision, scale),
            DecimalForm::Text => DataType::Utf8,
        },
        ColumnType::Numeric
        | ColumnType::Text { .. }
        | ColumnType::Bits { .. }
        | ColumnType::TimeTz
        | ColumnType::Interval => DataType::Utf8,
        ColumnType::Bytes => DataType::Binary,
        ColumnType::Date => DataType::Date32,
        ColumnType::Time { .. } => DataType::Time64(TimeUnit::Microsecond),
        ColumnType::Timestamp { .. } => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz { .. } => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::Array { element } => DataType::List(element_field(data_type(element))),
    }
}

/// Why a column of that type is text in files of a format; `None` where it is not, or its values are text to Postgres, too.
pub fn as_text(column_type: &ColumnType, format: &Format) -> Option<&'static str> {
    match column_type {
        ColumnType::Time { .. } => matches!(format, Format::Orc { .. }).then_some("ORC has no time of day"),
        ColumnType::Numeric => Some("a decimal of a file has one scale for all rows"),
        ColumnType::Decimal { precision, scale } => match DecimalForm::of(*precision, *scale) {
            DecimalForm::Fixed { .. } => None,
            DecimalForm::Text => Some("most readers' decimals end at 38 digits"),
        },
        ColumnType::Bits { .. } => Some("files have no strings of bits"),
        ColumnType::TimeTz => Some("files have no time of day with an offset"),
        ColumnType::Interval => Some("files have no interval in which months, days and seconds stay apart"),
        ColumnType::Text { text: TextKind::Other | TextKind::Tsvector | TextKind::Ltree } => {
            Some("files have no such type")
        }
        ColumnType::Array { element } => as_text(element, format),
        _ => None,
    }
}

/// The field of a list's elements; they may always be null.
pub(super) fn element_field(element: DataType) -> FieldRef {
    Arc::new(Field::new(LIST_ELEMENT, element, true))
}

/// How a `numeric(precision, scale)` is held. Postgres allows a scale below zero (digits before the point
/// are rounded away) and above the precision (the first digits after the point are zero); files do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecimalForm {
    /// As a `Decimal128` of this precision and scale.
    Fixed {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: i8,
        /// The value at rest is the column's unscaled value times ten to this power.
        shift: u32,
    },
    /// As plain digits.
    Text,
}

impl DecimalForm {
    pub(super) fn of(precision: u16, scale: i16) -> Self {
        let shift = scale.min(0).unsigned_abs();
        let at_rest = scale.max(0).unsigned_abs();
        match (precision + shift).max(at_rest) {
            digits @ 1..=DECIMAL_DIGITS_MAX => {
                Self::Fixed { precision: digits as u8, scale: at_rest as i8, shift: u32::from(shift) }
            }
            _ => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_fixed_while_all_readers_hold_it_and_text_beyond() {
        let of = |precision, scale| data_type(&ColumnType::Decimal { precision, scale });
        assert_eq!(of(12, 2), DataType::Decimal128(12, 2));
        assert_eq!(of(38, 38), DataType::Decimal128(38, 38));
        assert_eq!(of(39, 0), DataType::Utf8);
        assert_eq!(of(3, -3), DataType::Decimal128(6, 0), "negative scale: room for the zeros");
        assert_eq!(of(2, 5), DataType::Decimal128(5, 5), "scale above precision");
        assert_eq!(of(30, -9), DataType::Utf8);
        assert_eq!(of(1000, 1000), DataType::Utf8);
        assert_eq!(of(1, -1000), DataType::Utf8);
    }
}
