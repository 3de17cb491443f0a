//! The value of a field's text, by the column's type at rest: the reverse of `cells`.

use std::borrow::Cow;

use arrow_schema::{DataType, TimeUnit};
use serde_json::value::RawValue;

use super::calendar;
use crate::batch::datum::{date_datum, timestamp_datum};
use crate::batch::decimal;
use crate::change::Datum;

/// The value, or what the text is expected to be.
pub(super) fn value<'a>(data_type: &DataType, text: &'a [u8]) -> Result<Datum<'a>, &'static str> {
    let (value, expected) = match data_type {
        DataType::Boolean => (boolean(text), "true or false"),
        DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            (utf8(text).and_then(|text| text.parse().ok()).map(Datum::Int), "an integer")
        }
        DataType::Float32 => (
            utf8(text).and_then(|text| text.parse::<f32>().ok()).map(|value| Datum::Float(value.into())),
            "a float of 32 bits",
        ),
        DataType::Float64 => (utf8(text).and_then(|text| text.parse().ok()).map(Datum::Float), "a float"),
        DataType::Decimal128(_, scale) => {
            let unscaled = decimal::parse(text, i16::from(*scale));
            (unscaled.map(|bytes| Datum::Decimal(Cow::Owned(bytes))), "a decimal of the column's scale")
        }
        DataType::Utf8 => (utf8(text).map(|text| Datum::Text(Cow::Borrowed(text))), "UTF-8"),
        DataType::Binary => (hex(text), "\\x and hexadecimal digits"),
        DataType::Date32 => (calendar::parse_date(text).map(date_datum), "a date such as 2026-11-20"),
        DataType::Time64(TimeUnit::Microsecond) => {
            (calendar::parse_time(text).map(Datum::Time), "a time such as 10:15:30.123456")
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => (
            calendar::parse_timestamp(text, zone.is_some()).map(timestamp_datum),
            "a timestamp such as 2026-11-20 10:15:30.123456, with +00 if it is an instant",
        ),
        DataType::List(field) => (list(field.data_type(), text), "a JSON array of the element's type"),
        _ => (None, "a type that CSV files hold"),
    };
    value.ok_or(expected)
}

fn utf8(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok()
}

fn boolean(text: &[u8]) -> Option<Datum<'static>> {
    match text {
        b"true" => Some(Datum::Bool(true)),
        b"false" => Some(Datum::Bool(false)),
        _ => None,
    }
}

fn hex(text: &[u8]) -> Option<Datum<'static>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    let pairs = text.strip_prefix(b"\\x")?.chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    Some(Datum::Bytes(Cow::Owned(pairs.map(byte).collect::<Option<_>>()?)))
}

fn list<'a>(element: &DataType, text: &'a [u8]) -> Option<Datum<'a>> {
    // Numbers are taken as they stand: through JSON's own numbers, digits of a float could change.
    let items: Vec<Option<&RawValue>> = serde_json::from_slice(text).ok()?;
    let item = |item: Option<&RawValue>| {
        let Some(item) = item else { return Some(Datum::Null) };
        let text: Cow<'_, str> = if item.get().starts_with('"') {
            Cow::Owned(serde_json::from_str(item.get()).ok()?)
        } else if *element == DataType::Utf8 {
            return None;
        } else {
            Cow::Borrowed(item.get())
        };
        Some(value(element, text.as_bytes()).ok()?.into_owned())
    };
    Some(Datum::List(items.into_iter().map(item).collect::<Option<_>>()?))
}
