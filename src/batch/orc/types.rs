//! Types at rest as ORC names them, both ways.
//!
//! ORC has a type for instants (`timestamp with local time zone`), but Spark (to 4.1) refuses every file that has a column
//! of it, and Trino the column in tables of Hive. So instants are `timestamp`, the local time of UTC, as which both read
//! Parquet's, too; an attribute tells them apart. Files from before have the other type: it is read as ever.

use std::sync::Arc;

use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};

use super::decode::{Fields, broken};
use super::proto::Message;
use crate::batch::schema::LIST_ELEMENT;
use crate::runtime::{Error, Result};

/// Attribute of a text that is a time of day, and of a timestamp that is an instant.
const ATTRIBUTE: &[u8] = b"tidemark.type";
const TIME: &[u8] = b"time";
const INSTANT: &[u8] = b"instant";

/// A type of a file.
#[derive(Debug, Default)]
pub(super) struct Type {
    kind: u64,
    pub(super) below: Vec<usize>,
    pub(super) names: Vec<String>,
    precision: u64,
    scale: u64,
    time: bool,
    instant: bool,
}

impl Type {
    pub(super) fn read(message: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        for field in Fields(message) {
            match field? {
                (1, value) => found.kind = value.number()?,
                (2, value) => {
                    found
                        .below
                        .extend(Fields::packed(value.bytes()?)?.into_iter().map(|number| number as usize));
                }
                (3, value) => found.names.push(String::from_utf8_lossy(value.bytes()?).into_owned()),
                (5, value) => found.precision = value.number()?,
                (6, value) => found.scale = value.number()?,
                (7, value) => {
                    let pair = value.bytes()?;
                    found.time |= pair == attribute(TIME).into_bytes();
                    found.instant |= pair == attribute(INSTANT).into_bytes();
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A column of a file as Arrow has it.
pub(super) fn field_of(name: &str, number: usize, types: &[Type]) -> Result<Field> {
    let unknown = || broken(&format!("column {name:?} has an unknown type"));
    let found = types.get(number).ok_or_else(unknown)?;
    let data_type = match found.kind {
        0 => DataType::Boolean,
        2 => DataType::Int16,
        3 => DataType::Int32,
        4 => DataType::Int64,
        5 => DataType::Float32,
        6 => DataType::Float64,
        7 if found.time => DataType::Time64(TimeUnit::Microsecond),
        7 => DataType::Utf8,
        8 => DataType::Binary,
        9 if found.instant => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        9 => DataType::Timestamp(TimeUnit::Microsecond, None),
        // An element comes after its list, so that this ends.
        10 => match found.below.first() {
            Some(below) if *below > number => {
                DataType::List(Arc::new(field_of(LIST_ELEMENT, *below, types)?))
            }
            _ => return Err(unknown()),
        },
        14 => DataType::Decimal128(found.precision as u8, found.scale as i8),
        15 => DataType::Date32,
        18 => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => return Err(unknown()),
    };
    Ok(Field::new(name, data_type, true))
}

/// All types of a file, in their order.
pub(super) fn types_of(schema: &SchemaRef) -> Result<Vec<Message>> {
    let (mut below, mut numbers) = (Vec::new(), Vec::new());
    for field in schema.fields() {
        let number = 1 + below.len() as u64;
        numbers.push(number);
        put_type(field.data_type(), number, &mut below)?;
    }
    let mut root = Message::default();
    root.number(1, 12);
    root.numbers(2, numbers);
    schema.fields().iter().for_each(|field| root.bytes(3, field.name().as_bytes()));
    below.insert(0, root);
    Ok(below)
}

/// The type of a column of that number, and of what is below it.
fn put_type(data_type: &DataType, number: u64, types: &mut Vec<Message>) -> Result<()> {
    let mut message = Message::default();
    let kind = match data_type {
        DataType::Boolean => 0,
        DataType::Int16 => 2,
        DataType::Int32 => 3,
        DataType::Int64 => 4,
        DataType::Float32 => 5,
        DataType::Float64 => 6,
        DataType::Utf8 | DataType::Time64(TimeUnit::Microsecond) => 7,
        DataType::Binary => 8,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 9,
        DataType::List(_) => 10,
        DataType::Decimal128(..) => 14,
        DataType::Date32 => 15,
        other => return Err(Error::operator(format!("ORC has no type for {other}; please report it"))),
    };
    message.number(1, kind);
    match data_type {
        DataType::List(_) => message.numbers(2, [number + 1]),
        DataType::Decimal128(precision, scale) => {
            message.number(5, u64::from(*precision));
            message.number(6, *scale as u64);
        }
        DataType::Time64(_) => message.message(7, &attribute(TIME)),
        DataType::Timestamp(_, Some(_)) => message.message(7, &attribute(INSTANT)),
        _ => {}
    }
    types.push(message);
    if let DataType::List(element) = data_type {
        put_type(element.data_type(), number + 1, types)?;
    }
    Ok(())
}

fn attribute(value: &[u8]) -> Message {
    let mut pair = Message::default();
    pair.bytes(1, ATTRIBUTE);
    pair.bytes(2, value);
    pair
}
