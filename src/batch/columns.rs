//! The buffer of one column: values appended, taken back, finished into an array.
//!
//! Own buffers rather than `arrow_array::builder`, because a row that turns out to be refused at its last
//! column must be taken back from the others ([`ColumnBuilder::truncate`]), and those cannot.

use std::fmt;
use std::sync::Arc;

use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{ArrayRef, ListArray};
use arrow_buffer::NullBufferBuilder;
use arrow_schema::{DataType, TimeUnit};

use super::buffers::{Bools, Fixed, VALUE_OVERHEAD, Variable, offset, take_offsets};
use super::decimal;
use super::schema::{DecimalForm, data_type, element_field};
use crate::change::{ColumnType, Datum};

/// Infinity of a date at rest; minus infinity is its negative.
pub(super) const DATE_INFINITY: i32 = i32::MAX;
/// Infinity of a timestamp at rest; minus infinity is its negative.
pub(super) const TIMESTAMP_INFINITY: i64 = i64::MAX;
/// 24:00, the largest time of day.
pub(super) const TIME_MAX: i64 = 86_400_000_000;

/// A column's buffer, by its type at rest.
pub(super) enum ColumnBuilder {
    Bool(Bools),
    Int16(Fixed<Int16Type>),
    Int32(Fixed<Int32Type>),
    Int64(Fixed<Int64Type>),
    Float32(Fixed<Float32Type>),
    Float64(Fixed<Float64Type>),
    Decimal { values: Fixed<Decimal128Type>, form: DecimalLimits },
    DecimalText { values: Variable, precision: u16, scale: i16 },
    Text(Variable),
    Bytes(Variable),
    Date(Fixed<Date32Type>),
    Time(Fixed<Time64MicrosecondType>),
    Timestamp(Fixed<TimestampMicrosecondType>),
    List { offsets: Vec<i32>, nulls: NullBufferBuilder, element: Box<ColumnBuilder> },
}

/// How unscaled values of a column become those at rest, and which of them fit.
pub(super) struct DecimalLimits {
    /// Value at rest = unscaled value x factor.
    factor: i128,
    /// Values at rest are below it, in absolute value.
    bound: i128,
}

/// Why a buffer does not take a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is one of the column's type, and the type at rest cannot hold it: see [`super::exact`].
    Beyond,
    /// It is none of the column's type.
    Wrong(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Wrong(reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beyond => f.write_str("a value that the type of the file's column cannot hold"),
            Self::Wrong(reason) => f.write_str(reason),
        }
    }
}

impl ColumnBuilder {
    /// An empty buffer for a column type.
    pub(super) fn new(column_type: &ColumnType) -> Self {
        match column_type {
            ColumnType::Decimal { precision, scale } => match DecimalForm::of(*precision, *scale) {
                DecimalForm::Fixed { precision, scale, shift } => Self::decimal(precision, scale, shift),
                DecimalForm::Text => {
                    Self::DecimalText { values: Variable::new(), precision: *precision, scale: *scale }
                }
            },
            ColumnType::Array { element } => Self::list(Self::new(element)),
            plain => Self::at_rest(&data_type(plain)).unwrap_or_else(|| Self::Text(Variable::new())),
        }
    }

    /// An empty buffer for a type at rest; `None` for one that no column type has.
    pub(super) fn at_rest(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Boolean => Self::Bool(Bools::new()),
            DataType::Int16 => Self::Int16(Fixed::new(data_type)),
            DataType::Int32 => Self::Int32(Fixed::new(data_type)),
            DataType::Int64 => Self::Int64(Fixed::new(data_type)),
            DataType::Float32 => Self::Float32(Fixed::new(data_type)),
            DataType::Float64 => Self::Float64(Fixed::new(data_type)),
            DataType::Decimal128(precision, scale) => Self::decimal(*precision, *scale, 0),
            DataType::Utf8 => Self::Text(Variable::new()),
            DataType::Binary => Self::Bytes(Variable::new()),
            DataType::Date32 => Self::Date(Fixed::new(data_type)),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(Fixed::new(data_type)),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Self::Timestamp(Fixed::new(data_type)),
            DataType::List(field) => Self::list(Self::at_rest(field.data_type())?),
            _ => return None,
        })
    }

    fn decimal(precision: u8, scale: i8, shift: u32) -> Self {
        let values = Fixed::new(&DataType::Decimal128(precision, scale));
        let form = DecimalLimits { factor: 10_i128.pow(shift), bound: 10_i128.pow(u32::from(precision)) };
        Self::Decimal { values, form }
    }

    fn list(element: Self) -> Self {
        Self::List { offsets: vec![0], nulls: NullBufferBuilder::new(0), element: Box::new(element) }
    }

    /// Appends a value and returns the memory it takes, roughly; or says why it is not taken (then the buffer may
    /// hold a part: [`Self::truncate`] takes it back).
    ///
    /// [`Datum::Unchanged`] is appended as null: whether that is right is the row's question.
    pub(super) fn append(&mut self, datum: &Datum<'_>) -> Result<usize, Refusal> {
        Ok(match (self, datum) {
            (column, Datum::Null | Datum::Unchanged) => column.append_null()?,
            (Self::Bool(values), Datum::Bool(value)) => values.append(*value)?,
            (Self::Int16(values), Datum::Int(value)) => values.append_int(*value)?,
            (Self::Int32(values), Datum::Int(value)) => values.append_int(*value)?,
            (Self::Int64(values), Datum::Int(value)) => values.append(*value)?,
            (Self::Float32(values), Datum::Float(value)) => values.append(float32(*value)?)?,
            (Self::Float64(values), Datum::Float(value)) => values.append(*value)?,
            (Self::Decimal { values, form }, Datum::Decimal(bytes)) => values.append(form.at_rest(bytes)?)?,
            (Self::Decimal { .. }, Datum::Text(text)) if text == "NaN" => return Err(Refusal::Beyond),
            (Self::DecimalText { values, precision, scale }, Datum::Decimal(bytes)) => {
                values.append_decimal(bytes, *precision, *scale)?
            }
            (Self::DecimalText { values, .. }, Datum::Text(text)) if text == "NaN" => {
                values.append(text.as_bytes())?
            }
            (Self::Text(values), Datum::Text(text)) => values.append(text.as_bytes())?,
            (Self::Bytes(values), Datum::Bytes(bytes)) => values.append(bytes)?,
            (Self::Date(values), Datum::Date(days)) => values.append(date(*days)?)?,
            (Self::Time(values), Datum::Time(time)) => values.append(time_of_day(*time)?)?,
            (Self::Timestamp(values), Datum::Timestamp(instant)) => values.append(timestamp(*instant)?)?,
            (Self::List { offsets, nulls, element }, Datum::List(items)) => {
                let bytes = append_items(element, items)?;
                offsets.push(offset(element.len())?);
                nulls.append_non_null();
                bytes + 2 * VALUE_OVERHEAD
            }
            // An array with other bounds than a list has.
            (Self::List { .. }, Datum::Text(_)) => return Err(Refusal::Beyond),
            (column, datum) => {
                return Err(format!("{} where {} is expected", kind(datum), column.expects()).into());
            }
        })
    }

    fn append_null(&mut self) -> Result<usize, String> {
        match self {
            Self::Bool(values) => values.append_null(),
            Self::Int16(values) => values.append_null(),
            Self::Int32(values) => values.append_null(),
            Self::Int64(values) => values.append_null(),
            Self::Float32(values) => values.append_null(),
            Self::Float64(values) => values.append_null(),
            Self::Decimal { values, .. } => values.append_null(),
            Self::DecimalText { values, .. } | Self::Text(values) | Self::Bytes(values) => {
                values.append_null();
            }
            Self::Date(values) => values.append_null(),
            Self::Time(values) => values.append_null(),
            Self::Timestamp(values) => values.append_null(),
            Self::List { offsets, nulls, element } => {
                offsets.push(offset(element.len())?);
                nulls.append_null();
            }
        }
        Ok(VALUE_OVERHEAD)
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Int16(values) => values.len(),
            Self::Int32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Float32(values) => values.len(),
            Self::Float64(values) => values.len(),
            Self::Decimal { values, .. } => values.len(),
            Self::DecimalText { values, .. } | Self::Text(values) | Self::Bytes(values) => values.len(),
            Self::Date(values) => values.len(),
            Self::Time(values) => values.len(),
            Self::Timestamp(values) => values.len(),
            Self::List { nulls, .. } => nulls.len(),
        }
    }

    /// Keeps the first `len` values; a buffer that holds fewer stays as it is.
    pub(super) fn truncate(&mut self, len: usize) {
        match self {
            Self::Bool(values) => values.truncate(len),
            Self::Int16(values) => values.truncate(len),
            Self::Int32(values) => values.truncate(len),
            Self::Int64(values) => values.truncate(len),
            Self::Float32(values) => values.truncate(len),
            Self::Float64(values) => values.truncate(len),
            Self::Decimal { values, .. } => values.truncate(len),
            Self::DecimalText { values, .. } | Self::Text(values) | Self::Bytes(values) => {
                values.truncate(len);
            }
            Self::Date(values) => values.truncate(len),
            Self::Time(values) => values.truncate(len),
            Self::Timestamp(values) => values.truncate(len),
            Self::List { offsets, nulls, element } => {
                offsets.truncate(len + 1);
                nulls.truncate(len);
                element.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
        }
    }

    /// The values as an array; the buffer is empty afterwards.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(values) => values.finish(),
            Self::Int16(values) => values.finish(),
            Self::Int32(values) => values.finish(),
            Self::Int64(values) => values.finish(),
            Self::Float32(values) => values.finish(),
            Self::Float64(values) => values.finish(),
            Self::Decimal { values, .. } => values.finish(),
            Self::DecimalText { values, .. } | Self::Text(values) => values.finish_text(),
            Self::Bytes(values) => values.finish_bytes(),
            Self::Date(values) => values.finish(),
            Self::Time(values) => values.finish(),
            Self::Timestamp(values) => values.finish(),
            Self::List { offsets, nulls, element } => {
                let items = element.finish();
                let field = element_field(items.data_type().clone());
                Arc::new(ListArray::new(field, take_offsets(offsets), items, nulls.finish()))
            }
        }
    }

    /// What a value must be, for errors.
    fn expects(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Int16(_) | Self::Int32(_) | Self::Int64(_) => "an integer",
            Self::Float32(_) | Self::Float64(_) => "a float",
            Self::Decimal { .. } | Self::DecimalText { .. } => "a decimal",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Date(_) => "a date",
            Self::Time(_) => "a time",
            Self::Timestamp(_) => "a timestamp",
            Self::List { .. } => "a list",
        }
    }
}

fn append_items(element: &mut ColumnBuilder, items: &[Datum<'_>]) -> Result<usize, Refusal> {
    let mut bytes = 0;
    for (index, item) in items.iter().enumerate() {
        bytes += match item {
            Datum::Unchanged => Err("an unchanged TOAST value inside of a list".to_owned().into()),
            // A further dimension.
            Datum::List(_) => Err(Refusal::Beyond),
            item => element.append(item),
        }
        .map_err(|refusal| match refusal {
            Refusal::Beyond => Refusal::Beyond,
            Refusal::Wrong(reason) => Refusal::Wrong(format!("element {}: {reason}", index + 1)),
        })?;
    }
    Ok(bytes)
}

/// What a value is, for errors: never the value itself, which may be large and private.
pub(super) fn kind(datum: &Datum<'_>) -> &'static str {
    match datum {
        Datum::Null => "null",
        Datum::Unchanged => "an unchanged TOAST value",
        Datum::Bool(_) => "a boolean",
        Datum::Int(_) => "an integer",
        Datum::Float(_) => "a float",
        Datum::Decimal(_) => "a decimal",
        Datum::Text(_) => "text",
        Datum::Bytes(_) => "bytes",
        Datum::Date(_) => "a date",
        Datum::Time(_) => "a time",
        Datum::Timestamp(_) => "a timestamp",
        Datum::List(_) => "a list",
    }
}

impl DecimalLimits {
    fn at_rest(&self, bytes: &[u8]) -> Result<i128, String> {
        decimal::to_i128(bytes)
            .and_then(|unscaled| unscaled.checked_mul(self.factor))
            .filter(|value| value.unsigned_abs() < self.bound.unsigned_abs())
            .ok_or_else(|| format!("a decimal of more than {} digits", self.bound.ilog10()))
    }
}

fn float32(value: f64) -> Result<f32, String> {
    let narrow = value as f32;
    let same = f64::from(narrow).to_bits() == value.to_bits() || value.is_nan();
    same.then_some(narrow).ok_or_else(|| "a float that 32 bits do not hold".to_owned())
}

fn date(days: i32) -> Result<i32, String> {
    match days {
        i32::MIN => Ok(-DATE_INFINITY),
        days if days == -DATE_INFINITY => Err("a date too early for a file".to_owned()),
        days => Ok(days),
    }
}

fn time_of_day(time: i64) -> Result<i64, String> {
    let fits = (0..=TIME_MAX).contains(&time);
    fits.then_some(time).ok_or_else(|| "a time that is not within a day".to_owned())
}

fn timestamp(instant: i128) -> Result<i64, Refusal> {
    match instant {
        Datum::INFINITY => Ok(TIMESTAMP_INFINITY),
        Datum::NEG_INFINITY => Ok(-TIMESTAMP_INFINITY),
        instant => i64::try_from(instant)
            .ok()
            .filter(|at| at.unsigned_abs() < TIMESTAMP_INFINITY.unsigned_abs())
            .ok_or(Refusal::Beyond),
    }
}
