//! One value of one column, to JSON and back: the one place that looks at a column's type.
//!
//! To add a representation, give it an arm in [`write_scalar`] and one in [`read_scalar`]; the forms are
//! listed at the head of [`super`].

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::scan::Scanner;
use super::{DecimalHandling, Options, string};
use crate::change::{ColumnType, Datum};
use crate::envelope::text::Malformed;
use crate::envelope::text::array::{self, Part};
use crate::envelope::text::numeric::{self, Number};
use crate::envelope::text::{bits, bytea, datetime};

/// What Debezium writes for `timestamp 'infinity'`, as a number of any unit.
const INFINITY: &str = "9223372036825200000";
const NEG_INFINITY: &str = "-9223372036832400000";
/// The timestamp whose microseconds are that number.
pub(in crate::envelope) const LIKE_INFINITY: i128 = 9_223_372_036_825_200_000;
const LIKE_INFINITY_TEXT: &str = "9223372036825200000.0";
/// Dimensions that an array may have.
const DEPTH_MAX: usize = 6;

/// Writes a value, given as Postgres's text. `scratch` is any buffer, to be used again.
pub(super) fn write(
    column_type: &ColumnType,
    options: Options,
    text: &[u8],
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let ColumnType::Array { element } = column_type else {
        return write_scalar(column_type, options, text, out);
    };
    if array::has_bounds(text) {
        return string::write(text, out);
    }
    let start = out.len();
    array::parts(text, scratch, |part| {
        if part == Part::Close {
            out.push(b']');
            return Ok(());
        }
        if out.len() > start && out.last() != Some(&b'[') {
            out.push(b',');
        }
        match part {
            Part::Open | Part::Close => out.push(b'['),
            Part::Null => out.extend_from_slice(b"null"),
            Part::Element(text) => write_scalar(element, options, text, out)?,
        }
        Ok(())
    })
}

/// A value, given as Postgres's text, as it is after it was written and read.
pub(in crate::envelope) fn datum(
    column_type: &ColumnType,
    options: Options,
    text: &str,
) -> Result<Datum<'static>, Malformed> {
    let (mut scratch, mut json) = (Vec::new(), Vec::new());
    write(column_type, options, text.as_bytes(), &mut scratch, &mut json)?;
    let json = String::from_utf8(json).map_err(|_| Malformed("not text"))?;
    let mut scan = Scanner::new(&json);
    let datum = read(column_type, options, &mut scan)?.into_owned();
    scan.end()?;
    Ok(datum)
}

fn write_scalar(
    column_type: &ColumnType,
    options: Options,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    match column_type {
        ColumnType::Bool => match text {
            b"t" | b"true" => out.extend_from_slice(b"true"),
            b"f" | b"false" => out.extend_from_slice(b"false"),
            _ => return Err(Malformed("not a boolean")),
        },
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            integer(column_type, text)?;
            out.extend_from_slice(text);
        }
        ColumnType::Float32 | ColumnType::Float64 => write_float(text, out)?,
        ColumnType::Decimal { scale, .. } => write_decimal(*scale, options, text, out)?,
        ColumnType::Numeric => write_numeric(options, text, out)?,
        ColumnType::Text { .. } | ColumnType::TimeTz | ColumnType::Interval => string::write(text, out)?,
        ColumnType::Bytes => in_quotes(out, |out| bytea::write_base64(text, out))?,
        ColumnType::Bits { length: 1 } => {
            out.extend_from_slice(if bits::is_set(text)? { b"true" } else { b"false" });
        }
        ColumnType::Bits { length } => {
            let mut bytes = Vec::new();
            bits::append_bytes(*length, text, &mut bytes)?;
            out.push(b'"');
            bytea::append_base64(&bytes, out);
            out.push(b'"');
        }
        ColumnType::Date => write_integer(i64::from(datetime::date(text)?), out),
        ColumnType::Time { precision } => {
            write_integer(in_unit(*precision, i128::from(datetime::time(text)?))? as i64, out);
        }
        ColumnType::Timestamp { precision } => write_timestamp(*precision, text, out)?,
        ColumnType::TimestampTz { precision } => {
            in_quotes(out, |out| datetime::write_instant(*precision, text, out))?;
        }
        ColumnType::Array { .. } => {
            return Err(Malformed("an array of arrays, which Postgres does not have"));
        }
    }
    Ok(())
}

fn in_quotes(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    out.push(b'"');
    write(out)?;
    out.push(b'"');
    Ok(())
}

fn write_integer(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Checks an integer in the one form that is also JSON's, and its range.
pub(in crate::envelope) fn integer(column_type: &ColumnType, text: &[u8]) -> Result<i64, Malformed> {
    const BAD: Malformed = Malformed("not an integer of the column's size");
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() <= 19;
    if !canonical {
        return Err(BAD);
    }
    let mut magnitude = 0_u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(BAD);
        }
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    let max: u64 = match column_type {
        ColumnType::Int16 => 1 << 15,
        ColumnType::Int32 => 1 << 31,
        _ => 1 << 63,
    };
    match (negative, magnitude) {
        (true, m) if m <= max => Ok((m as i64).wrapping_neg()),
        (false, m) if m < max => Ok(m as i64),
        _ => Err(BAD),
    }
}

fn write_float(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match text {
        b"NaN" | b"Infinity" | b"-Infinity" => {
            out.push(b'"');
            out.extend_from_slice(text);
            out.push(b'"');
        }
        _ if super::scan::number_length(text) == Some(text.len()) => out.extend_from_slice(text),
        _ => return Err(Malformed("not a floating-point number")),
    }
    Ok(())
}

fn write_decimal(scale: i16, options: Options, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match numeric::parse(text)? {
        Number::Special("NaN") => out.extend_from_slice(b"\"NaN\""),
        Number::Special(_) => {
            return Err(Malformed("an infinity, which a numeric with a precision cannot be"));
        }
        Number::Finite(digits) => {
            let unscaled = digits.unscaled(i32::from(scale))?;
            out.push(b'"');
            match options.decimal_handling {
                DecimalHandling::Precise => bytea::append_base64(unscaled.bytes(), out),
                DecimalHandling::String => out.extend_from_slice(text),
            }
            out.push(b'"');
        }
    }
    Ok(())
}

fn write_numeric(options: Options, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match (numeric::parse(text)?, options.decimal_handling) {
        (Number::Finite(digits), DecimalHandling::Precise) => {
            let scale = digits.scale();
            out.extend_from_slice(b"{\"scale\":");
            write_integer(scale as i64, out);
            out.extend_from_slice(b",\"value\":\"");
            bytea::append_base64(digits.unscaled(scale as i32)?.bytes(), out);
            out.extend_from_slice(b"\"}");
        }
        _ => {
            out.push(b'"');
            out.extend_from_slice(text);
            out.push(b'"');
        }
    }
    Ok(())
}

/// Microseconds in the unit of a column of that precision: milliseconds up to three digits.
pub(in crate::envelope) fn in_unit(precision: u8, micros: i128) -> Result<i128, Malformed> {
    if precision > 3 {
        return Ok(micros);
    }
    // Quick for what fits 64 bits, as all but a few do.
    let (value, rest) = match i64::try_from(micros) {
        Ok(micros) => (i128::from(micros.div_euclid(1_000)), i128::from(micros.rem_euclid(1_000))),
        Err(_) => (micros.div_euclid(1_000), micros.rem_euclid(1_000)),
    };
    if rest == 0 { Ok(value) } else { Err(Malformed("has more digits after the seconds than its column")) }
}

fn write_timestamp(precision: u8, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let micros = datetime::timestamp(text)?;
    match micros {
        Datum::INFINITY => out.extend_from_slice(INFINITY.as_bytes()),
        Datum::NEG_INFINITY => out.extend_from_slice(NEG_INFINITY.as_bytes()),
        LIKE_INFINITY if precision > 3 => out.extend_from_slice(LIKE_INFINITY_TEXT.as_bytes()),
        _ => {
            let value = in_unit(precision, micros)?;
            match i64::try_from(value) {
                Ok(value) => write_integer(value, out),
                Err(_) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
            }
        }
    }
    Ok(())
}

/// Reads a value. JSON's null is [`Datum::Null`] for every type.
pub(in crate::envelope) fn read<'a>(
    column_type: &ColumnType,
    options: Options,
    scan: &mut Scanner<'a>,
) -> Result<Datum<'a>, Malformed> {
    match column_type {
        ColumnType::Array { element } if scan.peek() == Some(b'[') => read_list(element, options, 1, scan),
        ColumnType::Array { .. } if scan.peek() == Some(b'"') => read_bounded(scan),
        _ => read_scalar(column_type, options, scan),
    }
}

fn read_list<'a>(
    element: &ColumnType,
    options: Options,
    depth: usize,
    scan: &mut Scanner<'a>,
) -> Result<Datum<'a>, Malformed> {
    let mut list = Vec::new();
    scan.elements(|scan| {
        list.push(match scan.peek() {
            Some(b'[') if depth < DEPTH_MAX => read_list(element, options, depth + 1, scan)?,
            _ => read_scalar(element, options, scan)?,
        });
        Ok(())
    })?;
    Ok(Datum::List(list))
}

/// An array with a lower bound other than 1: Postgres's own text.
fn read_bounded<'a>(scan: &mut Scanner<'a>) -> Result<Datum<'a>, Malformed> {
    let text = scan.string()?;
    if array::has_bounds(text.as_bytes()) {
        Ok(Datum::Text(text))
    } else {
        Err(Malformed("expected an array, or the text of one with its bounds"))
    }
}

fn read_scalar<'a>(
    column_type: &ColumnType,
    options: Options,
    scan: &mut Scanner<'a>,
) -> Result<Datum<'a>, Malformed> {
    if scan.peek() == Some(b'n') {
        scan.literal("null")?;
        return Ok(Datum::Null);
    }
    Ok(match column_type {
        ColumnType::Bool => Datum::Bool(read_bool(scan)?),
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            Datum::Int(integer(column_type, scan.number()?.as_bytes())?)
        }
        ColumnType::Float32 => Datum::Float(f64::from(read_float::<f32>(scan)?)),
        ColumnType::Float64 => Datum::Float(read_float::<f64>(scan)?),
        ColumnType::Decimal { scale, .. } => read_decimal(*scale, options, scan)?,
        ColumnType::Numeric => Datum::Text(read_numeric(options, scan)?),
        ColumnType::Text { .. } | ColumnType::TimeTz | ColumnType::Interval => Datum::Text(scan.string()?),
        ColumnType::Bytes => Datum::Bytes(Cow::Owned(base64(&scan.string()?)?)),
        ColumnType::Bits { length: 1 } => Datum::Text(bits::one(read_bool(scan)?).into()),
        ColumnType::Bits { length } => Datum::Text(bits::to_text(*length, &base64(&scan.string()?)?)?.into()),
        ColumnType::Date => Datum::Date(integer(&ColumnType::Int32, scan.number()?.as_bytes())? as i32),
        ColumnType::Time { precision } => Datum::Time(read_time(*precision, scan.number()?)?),
        ColumnType::Timestamp { precision } => Datum::Timestamp(read_timestamp(*precision, scan.number()?)?),
        ColumnType::TimestampTz { .. } => Datum::Timestamp(datetime::instant(scan.string()?.as_bytes())?),
        ColumnType::Array { .. } => return Err(Malformed("expected an array")),
    })
}

fn read_bool(scan: &mut Scanner<'_>) -> Result<bool, Malformed> {
    match scan.peek() {
        Some(b't') => scan.literal("true").map(|()| true),
        Some(b'f') => scan.literal("false").map(|()| false),
        _ => Err(Malformed("expected true or false")),
    }
}

/// A number, or a string that names one which JSON cannot write.
fn read_float<F: std::str::FromStr + Into<f64> + Copy>(scan: &mut Scanner<'_>) -> Result<F, Malformed> {
    const BAD: Malformed = Malformed("not a floating-point number of the column's size");
    let special = scan.peek() == Some(b'"');
    let text = if special { scan.string()? } else { Cow::Borrowed(scan.number()?) };
    if special && !matches!(text.as_ref(), "NaN" | "Infinity" | "-Infinity") {
        return Err(BAD);
    }
    let value: F = text.parse().map_err(|_| BAD)?;
    if special || value.into().is_finite() { Ok(value) } else { Err(BAD) }
}

fn read_decimal<'a>(scale: i16, options: Options, scan: &mut Scanner<'a>) -> Result<Datum<'a>, Malformed> {
    let text = scan.string()?;
    if text == "NaN" {
        return Ok(Datum::Text(text));
    }
    let bytes = match options.decimal_handling {
        DecimalHandling::Precise => base64(&text)?,
        DecimalHandling::String => match numeric::parse(text.as_bytes())? {
            Number::Finite(digits) => digits.unscaled(i32::from(scale))?.bytes().to_vec(),
            Number::Special(_) => return Err(Malformed("an infinity in a numeric with a precision")),
        },
    };
    if bytes.is_empty() {
        Err(Malformed("a number without bytes"))
    } else {
        Ok(Datum::Decimal(Cow::Owned(bytes)))
    }
}

/// A `numeric` of any scale, as the text which Postgres prints.
fn read_numeric<'a>(options: Options, scan: &mut Scanner<'a>) -> Result<Cow<'a, str>, Malformed> {
    if scan.peek() == Some(b'"') {
        let text = scan.string()?;
        let number = numeric::parse(text.as_bytes())?;
        let as_text = options.decimal_handling == DecimalHandling::String;
        let expected = as_text || matches!(number, Number::Special(_));
        return if expected { Ok(text) } else { Err(Malformed("expected a scale and a value")) };
    }
    let mut scale = None;
    let mut value = None;
    scan.fields(|scan, name| {
        match name.as_ref() {
            "scale" => scale = Some(integer(&ColumnType::Int32, scan.number()?.as_bytes())?),
            "value" => value = Some(base64(&scan.string()?)?),
            _ => return Err(Malformed("expected only a scale and a value")),
        }
        Ok(())
    })?;
    match (scale, value) {
        (Some(scale), Some(value)) => numeric::to_text(&value, scale).map(Cow::Owned),
        _ => Err(Malformed("expected a scale and a value")),
    }
}

fn base64(text: &str) -> Result<Vec<u8>, Malformed> {
    STANDARD.decode(text).map_err(|_| Malformed("not base64"))
}

fn read_time(precision: u8, number: &str) -> Result<i64, Malformed> {
    let micros_per_unit = if precision <= 3 { 1_000 } else { 1 };
    integer(&ColumnType::Int64, number.as_bytes())?
        .checked_mul(micros_per_unit)
        .filter(|micros| (0..=86_400_000_000).contains(micros))
        .ok_or(Malformed("not a time of day"))
}

fn read_timestamp(precision: u8, number: &str) -> Result<i128, Malformed> {
    match number {
        INFINITY => return Ok(Datum::INFINITY),
        NEG_INFINITY => return Ok(Datum::NEG_INFINITY),
        LIKE_INFINITY_TEXT if precision > 3 => return Ok(LIKE_INFINITY),
        _ => {}
    }
    let value = match integer(&ColumnType::Int64, number.as_bytes()) {
        Ok(value) => i128::from(value),
        Err(_) => number.parse::<i128>().map_err(|_| Malformed("not a timestamp"))?,
    };
    let micros_per_unit = if precision <= 3 { 1_000 } else { 1 };
    value
        .checked_mul(micros_per_unit)
        .filter(|micros| micros.unsigned_abs() < u128::from(u64::MAX))
        .ok_or(Malformed("not a timestamp"))
}
