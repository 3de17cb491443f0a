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

use super::columns::{ColumnBuilder, Refusal};
use super::decimal;
use super::exact::exact_json;
use super::schema::{DecimalForm, data_type};
use super::untold::untold_rows;
use crate::change::{ColumnType, Datum};
use crate::runtime::{Error, Result};

/// What the rows of a file hold in a column of the schema wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// What stands in a column of the file; null if the file has no such column.
    Column {
        /// The file's column, by its name there ([`name_at_rest`](super::name_at_rest)).
        name: String,
        /// The types which it had since, its own first: values become those of each in turn, as they did at the source.
        /// Empty: at once those of the one wanted.
        types: Vec<ColumnType>,
    },
    /// Null: it was added later.
    Null,
    /// One value, the same in all rows.
    Constant {
        /// An array of length one.
        value: ArrayRef,
        /// What stands beside the null that it is then, as in [`EXACT`](super::EXACT), where its type cannot hold it.
        beyond: Option<String>,
        /// The types since, as above.
        types: Vec<ColumnType>,
    },
}

impl Origin {
    /// A column of the file, whatever types it had.
    pub fn column(name: impl Into<String>) -> Self {
        Self::Column { name: name.into(), types: Vec::new() }
    }

    /// A constant of the first of these types; or why it is none of it.
    pub fn constant(value: &Datum<'_>, types: Vec<ColumnType>) -> Result<Self, String> {
        let first = types.first().ok_or("a constant has a type")?;
        let mut column = ColumnBuilder::new(first);
        let beyond = match column.append(value) {
            Ok(_) => None,
            Err(Refusal::Wrong(reason)) => return Err(reason),
            Err(Refusal::Beyond) => {
                column.truncate(0);
                column.append(&Datum::Null).map_err(|refusal| refusal.to_string())?;
                Some(exact_json(value, first))
            }
        };
        Ok(Self::Constant { value: column.finish(), beyond, types })
    }

    /// Whether it is a constant that its column's type cannot hold.
    pub const fn is_beyond(&self) -> bool {
        matches!(self, Self::Constant { beyond: Some(_), .. })
    }

    /// Whether it is a constant that ORC cannot tell.
    pub fn is_untold(&self) -> bool {
        matches!(self, Self::Constant { value, .. } if !untold_rows(value).is_empty())
    }
}

/// Where a wanted column comes from.
enum From {
    /// A column of the batch as read.
    Read(usize, Steps),
    /// No column: all rows are the same.
    Same(Same),
}

/// A type that values become, on their way from the file's to the one wanted.
struct Step {
    to: DataType,
    /// Digits after the point of a decimal that is text at rest.
    digits: Option<usize>,
}

/// The types that values become, one after the other; the last is the one wanted.
pub(super) struct Steps(Vec<Step>);

impl Steps {
    /// From the type at rest `from`, through `types`, to the field's; the error names the field.
    pub(super) fn plan(from: &DataType, types: &[ColumnType], field: &Field) -> Result<Self> {
        let mut steps: Vec<Step> =
            types.iter().map(|of| Step { to: data_type(of), digits: digits_as_text(of) }).collect();
        if steps.last().is_none_or(|last| last.to != *field.data_type()) {
            steps.push(Step { to: field.data_type().clone(), digits: None });
        }
        let mut at = from;
        for step in &steps {
            if !widens(at, &step.to) {
                return Err(Error::operator(format!(
                    "column {:?} is {at} in the file, which does not widen to {}, its type now",
                    field.name(),
                    step.to
                )));
            }
            at = &step.to;
        }
        let mut last = from.clone();
        steps.retain(|step| {
            let changes = step.to != last || step.digits.is_some();
            last = step.to.clone();
            changes
        });
        Ok(Self(steps))
    }

    pub(super) fn apply(&self, array: &ArrayRef) -> ArrayRef {
        self.0.iter().fold(Arc::clone(array), |array, step| {
            let array = cast(&array, &step.to);
            step.digits.map_or_else(|| Arc::clone(&array), |digits| padded(&array, digits))
        })
    }
}

/// Digits after the point of a decimal type that is text at rest.
fn digits_as_text(column_type: &ColumnType) -> Option<usize> {
    match column_type {
        ColumnType::Decimal { precision, scale } => {
            let text = DecimalForm::of(*precision, *scale) == DecimalForm::Text;
            text.then(|| usize::try_from(*scale).ok()).flatten()
        }
        ColumnType::Array { element } => digits_as_text(element),
        _ => None,
    }
}

/// Texts of numbers with at least so many digits after the point.
fn padded(array: &ArrayRef, digits: usize) -> ArrayRef {
    if let DataType::List(field) = array.data_type() {
        let list = array.as_list::<i32>();
        let items = padded(list.values(), digits);
        return Arc::new(ListArray::new(
            Arc::clone(field),
            list.offsets().clone(),
            items,
            list.nulls().cloned(),
        ));
    }
    let mut text = StringBuilder::new();
    let mut number = String::new();
    for value in array.as_string::<i32>() {
        number.clear();
        number.push_str(value.unwrap_or_default());
        // NaN stays itself.
        if digits > 0 && number.ends_with(|c: char| c.is_ascii_digit()) {
            let has = match number.find('.') {
                Some(point) => number.len() - point - 1,
                None => {
                    number.push('.');
                    0
                }
            };
            number.extend(std::iter::repeat_n('0', digits.saturating_sub(has)));
        }
        text.append_option(value.map(|_| &number));
    }
    Arc::new(text.finish())
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
        let value = match origin {
            Origin::Column { .. } => return Ok(None),
            Origin::Null => return Self::null(field).map(Some),
            Origin::Constant { value, types, .. } => Steps::plan(value.data_type(), types, field)
                .map_err(|error| error.context("rows without a column hold a constant in it"))?
                .apply(value),
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
                (None, Origin::Column { name, types }) => check(file, name, types, field)?,
                (None, _) => From::Same(Same::null(field)?),
            });
        }
        let mut read: Vec<usize> = columns.iter().filter_map(From::read).collect();
        read.sort_unstable();
        read.dedup();
        for column in &mut columns {
            if let From::Read(index, _) = column {
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
            From::Read(..) => 0,
            From::Same(same) => same.row_bytes(),
        };
        self.columns.iter().map(bytes).sum()
    }

    /// A batch as read, with the columns that [`Self::plan`] named, in the schema wanted.
    pub(super) fn apply(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            arrays.push(match column {
                From::Read(index, steps) => steps.apply(batch.column(*index)),
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
            Self::Read(index, _) => Some(*index),
            Self::Same(_) => None,
        }
    }
}

/// The column of the file for a wanted one; nulls if the file has none of that name.
fn check(file: &Schema, name: &str, types: &[ColumnType], field: &Field) -> Result<From> {
    let Ok(index) = file.index_of(name) else { return Ok(From::Same(Same::null(field)?)) };
    Ok(From::Read(index, Steps::plan(file.field(index).data_type(), types, field)?))
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
