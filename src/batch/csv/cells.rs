//! The text of cells: a column's array made ready once a batch, its cells written one by one.

use std::fmt::Debug;
use std::io::Write;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, BinaryArray, BooleanArray, ListArray, PrimitiveArray, StringArray};
use arrow_schema::{DataType, TimeUnit};

use super::calendar;
use crate::batch::decimal;

/// A column's array, by its type.
pub(super) enum Cells<'a> {
    Bool(&'a BooleanArray),
    Int16(&'a PrimitiveArray<Int16Type>),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    Float32(&'a PrimitiveArray<Float32Type>),
    Float64(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, i8),
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Time(&'a PrimitiveArray<Time64MicrosecondType>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>, bool),
    List(&'a ListArray, Box<Cells<'a>>),
}

impl<'a> Cells<'a> {
    /// `None` for a type that a CSV file does not hold.
    pub(super) fn new(array: &'a dyn Array) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Int16 => Self::Int16(array.as_primitive()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::Float32 => Self::Float32(array.as_primitive()),
            DataType::Float64 => Self::Float64(array.as_primitive()),
            DataType::Decimal128(_, scale) => Self::Decimal(array.as_primitive(), *scale),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Binary => Self::Bytes(array.as_binary()),
            DataType::Date32 => Self::Date(array.as_primitive()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(array.as_primitive()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Self::Timestamp(array.as_primitive(), zone.is_some())
            }
            DataType::List(_) => {
                let list = array.as_list();
                Self::List(list, Box::new(Self::new(list.values().as_ref())?))
            }
            _ => return None,
        })
    }

    /// Appends a cell as a field of a record.
    pub(super) fn write_field(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return;
        }
        match self {
            Self::Text(array) => write_quoted(array.value(row).as_bytes(), out),
            Self::List(list, items) => {
                let start = out.len();
                write_list(list, items, row, out);
                quote_from(start, out);
            }
            cells => cells.write_plain(row, out),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(array) => array.is_null(row),
            Self::Int16(array) => array.is_null(row),
            Self::Int32(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Float32(array) => array.is_null(row),
            Self::Float64(array) => array.is_null(row),
            Self::Decimal(array, _) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Timestamp(array, _) => array.is_null(row),
            Self::List(array, _) => array.is_null(row),
        }
    }

    /// The bare text of a value. Only that of text and lists ever needs quotes.
    fn write_plain(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bool(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Self::Int16(array) => write_int(array.value(row), out),
            Self::Int32(array) => write_int(array.value(row), out),
            Self::Int64(array) => write_int(array.value(row), out),
            Self::Float32(array) => write_float(array.value(row), out),
            Self::Float64(array) => write_float(array.value(row), out),
            Self::Decimal(array, scale) => {
                decimal::write_text(&array.value(row).to_be_bytes(), i16::from(*scale), out);
            }
            Self::Text(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Self::Bytes(array) => write_hex(array.value(row), out),
            Self::Date(array) => calendar::write_date(array.value(row), out),
            Self::Time(array) => calendar::write_time(array.value(row), out),
            Self::Timestamp(array, utc) => calendar::write_timestamp(array.value(row), *utc, out),
            Self::List(list, items) => write_list(list, items, row, out),
        }
    }

    /// A value as JSON.
    fn write_json(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return out.extend_from_slice(b"null");
        }
        let bare = match self {
            Self::Bool(_) | Self::Int16(_) | Self::Int32(_) | Self::Int64(_) | Self::List(..) => true,
            Self::Float32(array) => array.value(row).is_finite(),
            Self::Float64(array) => array.value(row).is_finite(),
            _ => false,
        };
        match self {
            cells if bare => cells.write_plain(row, out),
            Self::Text(array) => write_json_text(array.value(row), out),
            Self::Bytes(array) => {
                // The backslash of `\x` is escaped in JSON.
                out.extend_from_slice(b"\"\\");
                write_hex(array.value(row), out);
                out.push(b'"');
            }
            cells => {
                out.push(b'"');
                cells.write_plain(row, out);
                out.push(b'"');
            }
        }
    }
}

fn write_list(list: &ListArray, items: &Cells<'_>, row: usize, out: &mut Vec<u8>) {
    let (start, end) = (list.value_offsets()[row], list.value_offsets()[row + 1]);
    out.push(b'[');
    for item in start..end {
        if item > start {
            out.push(b',');
        }
        items.write_json(item as usize, out);
    }
    out.push(b']');
}

fn write_int(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Rust's `Debug` of a float is the shortest text that reads back to it, with an exponent where it is long.
pub(in crate::batch) fn write_float(value: impl Debug + Into<f64> + Copy, out: &mut Vec<u8>) {
    let wide: f64 = value.into();
    if wide.is_infinite() {
        out.extend_from_slice(if wide > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{value:?}");
    }
}

pub(in crate::batch) fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\x");
    out.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
}

pub(in crate::batch) fn write_json_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte if byte < 0x20 => {
                // Writing to a vector cannot fail.
                let _ = write!(out, "\\u{byte:04x}");
            }
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Appends text as a field, quoted if RFC 4180 asks for it or if it is empty (which unquoted is null).
pub(super) fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    let special = memchr::memchr3(b'"', b',', b'\n', text).is_some() || memchr::memchr(b'\r', text).is_some();
    if !special && !text.is_empty() {
        return out.extend_from_slice(text);
    }
    out.push(b'"');
    let mut rest = text;
    while let Some(quote) = memchr::memchr(b'"', rest) {
        out.extend_from_slice(&rest[..=quote]);
        out.push(b'"');
        rest = &rest[quote + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Quotes the text that begins at `start` where it needs quotes.
fn quote_from(start: usize, out: &mut Vec<u8>) {
    if memchr::memchr2(b'"', b',', &out[start..]).is_some() {
        let text = out.split_off(start);
        write_quoted(&text, out);
    }
}
