//! One value of one column, to Avro and back: the one place that looks at a column's type.

use std::borrow::Cow;

use super::read::Reader;
use super::source::{NULL, SOME};
use crate::change::{ColumnType, Datum};
use crate::envelope::json::scan::number_length;
use crate::envelope::json::value::{LIKE_INFINITY, in_unit, integer};
use crate::envelope::json::{DecimalHandling, Options};
use crate::envelope::text::array::{self, Part};
use crate::envelope::text::numeric::{self, Number};
use crate::envelope::text::{Malformed, bits, bytea, datetime};

/// What Debezium writes for `timestamp 'infinity'`, as a number of any unit.
const INFINITY: i64 = 9_223_372_036_825_200_000;
const NEG_INFINITY: i64 = -9_223_372_036_832_400_000;

/// Whether a value is in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fit {
    /// It is.
    Whole,
    /// Its Avro type cannot hold it. What was written of it has to be taken back.
    Beyond,
}

/// Buffers to be used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    text: Vec<u8>,
    items: Vec<u8>,
}

/// Why a list ends early.
enum Stop {
    Beyond,
    Bad(Malformed),
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Bad(malformed)
    }
}

/// An int or a long: zigzag, seven bits a byte, the lowest first.
pub(super) fn write_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A string or bytes.
pub(super) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    write_long(text.len() as i64, out);
    out.extend_from_slice(text);
}

/// Writes a value, given as Postgres's text, without the branch of a union.
pub(super) fn write(
    column_type: &ColumnType,
    options: Options,
    text: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<Fit, Malformed> {
    let ColumnType::Array { element } = column_type else {
        return write_scalar(column_type, options, text, &mut scratch.text, out);
    };
    if array::has_bounds(text) {
        return Ok(Fit::Beyond);
    }
    let Scratch { text: unescaped, items } = scratch;
    items.clear();
    let (mut count, mut depth) = (0, 0);
    let written = array::parts(text, unescaped, |part| {
        match part {
            Part::Open if depth == 1 => return Err(Stop::Beyond),
            Part::Open => depth += 1,
            Part::Close => {}
            Part::Null => items.push(NULL),
            Part::Element(text) => {
                items.push(SOME);
                // An element's text may lie in the buffer of escapes: it needs one of its own, which only bytes use.
                if write_scalar(element, options, text, &mut Vec::new(), items)? == Fit::Beyond {
                    return Err(Stop::Beyond);
                }
            }
        }
        count += i64::from(matches!(part, Part::Null | Part::Element(_)));
        Ok(())
    });
    match written {
        Ok(()) => {}
        Err(Stop::Beyond) => return Ok(Fit::Beyond),
        Err(Stop::Bad(malformed)) => return Err(malformed),
    }
    if count > 0 {
        write_long(count, out);
        out.extend_from_slice(items);
    }
    out.push(0);
    Ok(Fit::Whole)
}

fn write_scalar(
    column_type: &ColumnType,
    options: Options,
    text: &[u8],
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Fit, Malformed> {
    match column_type {
        ColumnType::Bool => out.push(match text {
            b"t" | b"true" => 1,
            b"f" | b"false" => 0,
            _ => return Err(Malformed("not a boolean")),
        }),
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            write_long(integer(column_type, text)?, out);
        }
        ColumnType::Float32 => out.extend_from_slice(&float::<f32>(text)?.to_le_bytes()),
        ColumnType::Float64 => out.extend_from_slice(&float::<f64>(text)?.to_le_bytes()),
        ColumnType::Decimal { scale, .. } => return write_decimal(*scale, options, text, out),
        ColumnType::Numeric => return write_numeric(options, text, out),
        ColumnType::Text { .. } | ColumnType::TimeTz | ColumnType::Interval => {
            if std::str::from_utf8(text).is_err() {
                return Err(Malformed("not valid UTF-8"));
            }
            write_string(text, out);
        }
        ColumnType::Bytes => {
            scratch.clear();
            bytea::append_raw(text, scratch)?;
            write_string(scratch, out);
        }
        ColumnType::Bits { length: 1 } => out.push(u8::from(bits::is_set(text)?)),
        ColumnType::Bits { length } => {
            scratch.clear();
            bits::append_bytes(*length, text, scratch)?;
            write_string(scratch, out);
        }
        ColumnType::Date => write_long(i64::from(datetime::date(text)?), out),
        ColumnType::Time { precision } => {
            write_long(in_unit(*precision, i128::from(datetime::time(text)?))? as i64, out);
        }
        ColumnType::Timestamp { precision } => return write_timestamp(*precision, text, out),
        ColumnType::TimestampTz { precision } => {
            // At most some thirty characters: their number is one byte.
            let at = out.len();
            out.push(0);
            datetime::write_instant(*precision, text, out)?;
            out[at] = ((out.len() - at - 1) * 2) as u8;
        }
        ColumnType::Array { .. } => {
            return Err(Malformed("an array of arrays, which Postgres does not have"));
        }
    }
    Ok(Fit::Whole)
}

/// A float, from the forms that Postgres prints.
fn float<F: std::str::FromStr>(text: &[u8]) -> Result<F, Malformed> {
    const BAD: Malformed = Malformed("not a floating-point number");
    let special = matches!(text, b"NaN" | b"Infinity" | b"-Infinity");
    if !special && number_length(text) != Some(text.len()) {
        return Err(BAD);
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(BAD)
}

fn write_decimal(scale: i16, options: Options, text: &[u8], out: &mut Vec<u8>) -> Result<Fit, Malformed> {
    let unscaled = match numeric::parse(text)? {
        Number::Special("NaN") if options.decimal_handling == DecimalHandling::Precise => {
            return Ok(Fit::Beyond);
        }
        Number::Special("NaN") => None,
        Number::Special(_) => {
            return Err(Malformed("an infinity, which a numeric with a precision cannot be"));
        }
        Number::Finite(digits) => Some(digits.unscaled(i32::from(scale))?),
    };
    match unscaled {
        Some(unscaled) if options.decimal_handling == DecimalHandling::Precise => {
            write_string(unscaled.bytes(), out);
        }
        _ => write_string(text, out),
    }
    Ok(Fit::Whole)
}

fn write_numeric(options: Options, text: &[u8], out: &mut Vec<u8>) -> Result<Fit, Malformed> {
    match (numeric::parse(text)?, options.decimal_handling) {
        (_, DecimalHandling::String) => write_string(text, out),
        (Number::Special(_), DecimalHandling::Precise) => return Ok(Fit::Beyond),
        (Number::Finite(digits), DecimalHandling::Precise) => {
            let scale = digits.scale();
            write_long(scale as i64, out);
            write_string(digits.unscaled(scale as i32)?.bytes(), out);
        }
    }
    Ok(Fit::Whole)
}

fn write_timestamp(precision: u8, text: &[u8], out: &mut Vec<u8>) -> Result<Fit, Malformed> {
    let value = match datetime::timestamp(text)? {
        Datum::INFINITY => INFINITY,
        Datum::NEG_INFINITY => NEG_INFINITY,
        micros if micros == LIKE_INFINITY && precision > 3 => return Ok(Fit::Beyond),
        micros => match i64::try_from(in_unit(precision, micros)?) {
            Ok(value) => value,
            Err(_) => return Ok(Fit::Beyond),
        },
    };
    write_long(value, out);
    Ok(Fit::Whole)
}

/// Reads a value, without the branch of a union.
pub(super) fn read<'a>(
    column_type: &ColumnType,
    options: Options,
    reader: &mut Reader<'a>,
) -> Result<Datum<'a>, Malformed> {
    let precise = options.decimal_handling == DecimalHandling::Precise;
    Ok(match column_type {
        ColumnType::Bool => Datum::Bool(reader.boolean()?),
        ColumnType::Int16 => Datum::Int(i64::from(reader.within::<i16>()?)),
        ColumnType::Int32 => Datum::Int(i64::from(reader.within::<i32>()?)),
        ColumnType::Int64 => Datum::Int(reader.long()?),
        ColumnType::Float32 => Datum::Float(f64::from(f32::from_le_bytes(reader.array()?))),
        ColumnType::Float64 => Datum::Float(f64::from_le_bytes(reader.array()?)),
        ColumnType::Decimal { .. } if precise => {
            let bytes = reader.bytes()?;
            if bytes.is_empty() {
                return Err(Malformed("a number without bytes"));
            }
            Datum::Decimal(Cow::Borrowed(bytes))
        }
        ColumnType::Decimal { scale, .. } => read_decimal_text(*scale, reader.string()?)?,
        ColumnType::Numeric if precise => {
            let scale = i64::from(reader.within::<i32>()?);
            Datum::Text(Cow::Owned(numeric::to_text(reader.bytes()?, scale)?))
        }
        ColumnType::Numeric => {
            let text = reader.string()?;
            numeric::parse(text.as_bytes())?;
            Datum::Text(Cow::Borrowed(text))
        }
        ColumnType::Text { .. } | ColumnType::TimeTz | ColumnType::Interval => {
            Datum::Text(Cow::Borrowed(reader.string()?))
        }
        ColumnType::Bytes => Datum::Bytes(Cow::Borrowed(reader.bytes()?)),
        ColumnType::Bits { length: 1 } => Datum::Text(bits::one(reader.boolean()?).into()),
        ColumnType::Bits { length } => Datum::Text(bits::to_text(*length, reader.bytes()?)?.into()),
        ColumnType::Date => Datum::Date(reader.within()?),
        ColumnType::Time { precision } => {
            let micros = reader.long()?.checked_mul(if *precision <= 3 { 1_000 } else { 1 });
            let day = micros.filter(|micros| (0..=86_400_000_000).contains(micros));
            Datum::Time(day.ok_or(Malformed("not a time of day"))?)
        }
        ColumnType::Timestamp { precision } => Datum::Timestamp(match reader.long()? {
            INFINITY => Datum::INFINITY,
            NEG_INFINITY => Datum::NEG_INFINITY,
            value => i128::from(value) * if *precision <= 3 { 1_000 } else { 1 },
        }),
        ColumnType::TimestampTz { .. } => Datum::Timestamp(datetime::instant(reader.string()?.as_bytes())?),
        ColumnType::Array { element } => Datum::List(read_list(element, options, reader)?),
    })
}

fn read_decimal_text(scale: i16, text: &str) -> Result<Datum<'_>, Malformed> {
    match numeric::parse(text.as_bytes())? {
        Number::Special("NaN") => Ok(Datum::Text(Cow::Borrowed(text))),
        Number::Special(_) => Err(Malformed("an infinity in a numeric with a precision")),
        Number::Finite(digits) => {
            let unscaled = digits.unscaled(i32::from(scale))?;
            Ok(Datum::Decimal(Cow::Owned(unscaled.bytes().to_vec())))
        }
    }
}

fn read_list<'a>(
    element: &ColumnType,
    options: Options,
    reader: &mut Reader<'a>,
) -> Result<Vec<Datum<'a>>, Malformed> {
    if element.is_array() {
        return Err(Malformed("an array of arrays, which Postgres does not have"));
    }
    let mut list = Vec::new();
    loop {
        // A block with a negative count has its size in bytes before its items.
        let count = reader.long()?;
        if count < 0 {
            reader.long()?;
        }
        if count == 0 {
            return Ok(list);
        }
        for _ in 0..count.unsigned_abs() {
            list.push(if reader.is_null()? { Datum::Null } else { read(element, options, reader)? });
        }
    }
}
