//! Values of arrays into the streams of their columns, with what is known of them.

use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, BooleanArray, ListArray, PrimitiveArray};

use super::bits::Bits;
use super::bloom::Bloom;
use super::ints::Ints;
use super::proto::varint;
use super::stats::{Kind, widen};
use super::stream::Stream;
use super::texts::{Texts, write_texts};
use crate::batch::csv::calendar::write_time;
use crate::runtime::Result;

/// 2015-01-01 00:00:00 UTC, from which timestamps are counted.
pub(super) const EPOCH_SECONDS: i64 = 1_420_070_400;

pub(super) fn bools(array: &BooleanArray, kind: &mut Kind, bits: &mut Bits, out: &mut Stream) -> Result<()> {
    array.iter().flatten().try_for_each(|value| {
        if let Kind::Bool { trues } = kind {
            *trues += u64::from(value);
        }
        bits.push(value, out)
    })
}

/// Integers and dates.
pub(super) fn ints<T>(
    array: &PrimitiveArray<T>,
    kind: &mut Kind,
    mut bloom: Option<&mut Bloom>,
    ints: &mut Ints,
    out: &mut Stream,
) -> Result<()>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    for value in array.iter().flatten() {
        let value: i64 = value.into();
        match kind {
            Kind::Int { range, sum } => {
                widen(range, value);
                *sum = sum.and_then(|sum| sum.checked_add(value));
            }
            // A date has 32 bits.
            Kind::Date { range } => widen(range, value as i32),
            _ => {}
        }
        if let Some(bloom) = &mut bloom {
            bloom.add_int(value);
        }
        ints.push(value, out)?;
    }
    Ok(())
}

pub(super) fn floats<T>(array: &PrimitiveArray<T>, kind: &mut Kind, out: &mut Stream) -> Result<()>
where
    T: ArrowPrimitiveType,
    T::Native: Into<f64>,
{
    array.iter().flatten().try_for_each(|value| {
        if let Kind::Float { range, sum } = kind {
            let value = value.into();
            widen(range, value);
            *sum += value;
        }
        out.write(arrow_buffer::ToByteSlice::to_byte_slice(&value))
    })
}

pub(super) fn decimals(
    array: &PrimitiveArray<Decimal128Type>,
    kind: &mut Kind,
    out: &mut Stream,
) -> Result<()> {
    let mut bytes = Vec::new();
    array.iter().flatten().try_for_each(|value| {
        if let Kind::Decimal { range, sum, .. } = kind {
            widen(range, value);
            *sum = sum.and_then(|sum| sum.checked_add(value));
        }
        bytes.clear();
        varint128(&mut bytes, value);
        out.write(&bytes)
    })
}

/// The scale of each decimal, which ORC keeps beside it.
pub(super) fn scales(
    array: &PrimitiveArray<Decimal128Type>,
    scales: &mut Ints,
    out: &mut Stream,
) -> Result<()> {
    let scale = i64::from(array.scale());
    array.iter().flatten().try_for_each(|_| scales.push(scale, out))
}

/// Times of day, as text.
pub(super) fn times(
    array: &PrimitiveArray<Time64MicrosecondType>,
    kind: &mut Kind,
    texts: &mut Texts,
) -> Result<()> {
    let mut text = Vec::new();
    array.iter().flatten().try_for_each(|micros| {
        text.clear();
        write_time(micros, &mut text);
        write_texts(std::iter::once(text.as_slice()), kind, None, texts)
    })
}

pub(super) fn timestamps(
    array: &PrimitiveArray<TimestampMicrosecondType>,
    kind: &mut Kind,
    (seconds, seconds_out): (&mut Ints, &mut Stream),
    (nanos, nanos_out): (&mut Ints, &mut Stream),
) -> Result<()> {
    array.iter().flatten().try_for_each(|micros| {
        if let Kind::Timestamp { range } = kind {
            widen(range, i128::from(micros) * 1000);
        }
        let (whole, below) = timestamp(micros);
        seconds.push(whole, seconds_out)?;
        nanos.push(below, nanos_out)
    })
}

pub(super) fn lengths(
    array: &ListArray,
    kind: &mut Kind,
    lengths: &mut Ints,
    out: &mut Stream,
) -> Result<()> {
    (0..array.len()).filter(|row| array.is_valid(*row)).try_for_each(|row| {
        let length = array.value_length(row);
        if let Kind::List { range, elements } = kind {
            widen(range, length as u64);
            *elements += length as u64;
        }
        lengths.push(i64::from(length), out)
    })
}

/// The elements of all lists, in pieces: at once where no list is null.
pub(super) fn each_list(array: &ListArray, mut write: impl FnMut(ArrayRef) -> Result<()>) -> Result<()> {
    if array.null_count() > 0 {
        return array.iter().flatten().try_for_each(write);
    }
    let (from, to) = (array.value_offsets()[0] as usize, array.value_offsets()[array.len()] as usize);
    write(array.values().slice(from, to - from))
}

/// What is written of a time: seconds since 2015, and nanoseconds with their zeros counted. Readers subtract the second
/// again.
fn timestamp(micros: i64) -> (i64, i64) {
    let (mut seconds, nanos) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) * 1000);
    if seconds < 0 && nanos > 999_999 {
        seconds += 1;
    }
    (seconds - EPOCH_SECONDS, shortened(nanos))
}

/// From two zeros at the end on, they are left out, and the lowest three bits say how many they were, less one.
fn shortened(mut nanos: i64) -> i64 {
    if nanos == 0 || nanos % 100 != 0 {
        return nanos << 3;
    }
    let mut zeros = 0;
    while nanos % 10 == 0 && zeros < 8 {
        nanos /= 10;
        zeros += 1;
    }
    nanos << 3 | (zeros - 1)
}

/// As [`varint`] of a zigzag number, for 128 bits.
fn varint128(out: &mut Vec<u8>, value: i128) {
    let mut rest = (value << 1 ^ value >> 127) as u128;
    while rest > u128::from(u64::MAX) {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    varint(out, rest as u64);
}
