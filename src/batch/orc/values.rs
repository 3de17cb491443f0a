//! A stripe's streams to arrays.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{ArrayRef, BinaryArray, BooleanArray, ListArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};

use super::cells::EPOCH_SECONDS;
use super::column::StreamKind;
use super::decode::{BitsReader, Chunks, Fields, IntsReader, broken};
use crate::batch::csv::calendar::parse_time;
use crate::runtime::{Error, Result};

/// Streams of a stripe that were not taken yet.
pub(super) struct StripeStreams<F> {
    /// By column and kind: where a stream stands, and its length.
    places: HashMap<(u64, u64), (u64, u64)>,
    /// By column: the encoding, and the size of the dictionary.
    encodings: Vec<(u64, u64)>,
    input: F,
}

impl<F: Fn(u64, u64) -> Result<Chunks>> StripeStreams<F> {
    /// From a stripe's footer and its place in the file.
    pub(super) fn read(footer: &[u8], mut offset: u64, input: F) -> Result<Self> {
        let (mut places, mut encodings) = (HashMap::new(), Vec::new());
        for field in Fields(footer) {
            let (field, value) = field?;
            let mut numbers = [0; 4];
            if field <= 2 {
                for part in Fields(value.bytes()?) {
                    let (part, value) = part?;
                    if let Some(number) = numbers.get_mut(part as usize) {
                        *number = value.number()?;
                    }
                }
            }
            let [_, first, second, third] = numbers;
            match field {
                1 => {
                    places.insert((second, first), (offset, third));
                    offset = offset.checked_add(third).ok_or_else(|| broken("a stream is too long"))?;
                }
                2 => encodings.push((first, second)),
                _ => {}
            }
        }
        Ok(Self { places, encodings, input })
    }

    fn find(&self, column: usize, kind: StreamKind) -> Option<Result<Chunks>> {
        self.places.get(&(column as u64, kind as u64)).map(|(offset, bytes)| (self.input)(*offset, *bytes))
    }

    /// A stream that may be left out where it has no bytes.
    fn take(&self, column: usize, kind: StreamKind) -> Result<Chunks> {
        self.find(column, kind).unwrap_or_else(|| (self.input)(0, 0))
    }
}

/// Reads a column.
pub(super) struct Decoder {
    data_type: DataType,
    present: Option<BitsReader>,
    values: Values,
}

enum Values {
    Bool(BitsReader),
    Int(IntsReader),
    Float(Chunks),
    Decimal(Chunks),
    Direct { texts: Chunks, lengths: IntsReader },
    Numbered { numbers: IntsReader, texts: Vec<u8>, ends: Vec<usize> },
    Timestamp { seconds: IntsReader, nanos: IntsReader },
    List { lengths: IntsReader, element: Box<Decoder> },
}

impl Decoder {
    pub(super) fn new<F>(field: &Field, column: usize, streams: &mut StripeStreams<F>) -> Result<Self>
    where
        F: Fn(u64, u64) -> Result<Chunks>,
    {
        let ints = |kind, signed| Ok::<_, Error>(IntsReader::new(streams.take(column, kind)?, signed));
        let present = streams.find(column, StreamKind::Present).transpose()?.map(BitsReader::new);
        let data = StreamKind::Data;
        let values = match field.data_type() {
            DataType::Boolean => Values::Bool(BitsReader::new(streams.take(column, data)?)),
            DataType::Float32 | DataType::Float64 => Values::Float(streams.take(column, data)?),
            DataType::Decimal128(..) => Values::Decimal(streams.take(column, data)?),
            DataType::Utf8 | DataType::Time64(_) | DataType::Binary => {
                let mut lengths = ints(StreamKind::Length, false)?;
                match streams.encodings.get(column) {
                    Some((3, size)) => {
                        let texts = streams.take(column, StreamKind::DictionaryData)?.all()?;
                        let mut end = 0;
                        let ends = (0..*size).map(|_| {
                            end += lengths.next()? as usize;
                            Ok(end)
                        });
                        let ends: Vec<usize> = ends.collect::<Result<_>>()?;
                        if end > texts.len() {
                            return Err(broken("a dictionary is too short"));
                        }
                        Values::Numbered { numbers: ints(data, false)?, texts, ends }
                    }
                    _ => Values::Direct { texts: streams.take(column, data)?, lengths },
                }
            }
            DataType::Timestamp(..) => {
                Values::Timestamp { seconds: ints(data, true)?, nanos: ints(StreamKind::Secondary, false)? }
            }
            DataType::List(element) => {
                let lengths = ints(StreamKind::Length, false)?;
                Values::List { lengths, element: Box::new(Self::new(element, column + 1, streams)?) }
            }
            _ => Values::Int(ints(data, true)?),
        };
        Ok(Self { data_type: field.data_type().clone(), present, values })
    }

    /// The next rows.
    pub(super) fn array(&mut self, rows: usize) -> Result<ArrayRef> {
        let nulls = match &mut self.present {
            None => None,
            Some(present) => {
                let bits: Vec<bool> = (0..rows).map(|_| present.bit()).collect::<Result<_>>()?;
                Some(NullBuffer::new(BooleanBuffer::from(bits)))
            }
        };
        let valid = |row| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let data_type = &self.data_type;
        Ok(match (&mut self.values, data_type) {
            (Values::Bool(bits), _) => {
                let values = (0..rows).map(|row| if valid(row) { bits.bit() } else { Ok(false) });
                let values: Vec<bool> = values.collect::<Result<_>>()?;
                Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
            }
            (Values::Int(ints), data_type) => {
                let mut values = Vec::with_capacity(rows);
                for row in 0..rows {
                    values.push(if valid(row) { ints.next()? } else { 0 });
                }
                integers(values, data_type, nulls)?
            }
            (Values::Float(chunks), DataType::Float32) => {
                let values = fixed(chunks, rows, valid, |bytes: [u8; 4]| f32::from_le_bytes(bytes))?;
                primitive::<Float32Type>(values, data_type, nulls)
            }
            (Values::Float(chunks), _) => {
                let values = fixed(chunks, rows, valid, |bytes: [u8; 8]| f64::from_le_bytes(bytes))?;
                primitive::<Float64Type>(values, data_type, nulls)
            }
            (Values::Decimal(chunks), _) => {
                let values = (0..rows).map(|row| {
                    let value = if valid(row) { chunks.varint128()? } else { 0 };
                    Ok((value >> 1) as i128 ^ -((value & 1) as i128))
                });
                primitive::<Decimal128Type>(values.collect::<Result<_>>()?, data_type, nulls)
            }
            (Values::Timestamp { seconds, nanos }, _) => {
                let values = (0..rows)
                    .map(|row| if valid(row) { timestamp(seconds.next()?, nanos.next()?) } else { Ok(0) });
                primitive::<TimestampMicrosecondType>(values.collect::<Result<_>>()?, data_type, nulls)
            }
            (Values::List { lengths, element }, DataType::List(field)) => {
                let mut offsets = vec![0_i32];
                for row in 0..rows {
                    let length = if valid(row) { lengths.next()? } else { 0 };
                    push_offset(&mut offsets, length)?;
                }
                let elements = element.array(offsets[rows] as usize)?;
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let list = ListArray::try_new(Arc::clone(field), offsets, elements, nulls);
                Arc::new(list.map_err(|error| Error::operator("cannot read ORC").cause(error))?)
            }
            (values, data_type) => {
                let mut bytes = Vec::new();
                let mut offsets = vec![0_i32];
                for row in 0..rows {
                    let before = bytes.len();
                    if valid(row) {
                        values.text(&mut bytes)?;
                    }
                    push_offset(&mut offsets, (bytes.len() - before) as i64)?;
                }
                texts(bytes, offsets, data_type, nulls)?
            }
        })
    }
}

impl Values {
    /// Appends the next text.
    fn text(&mut self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Direct { texts, lengths } => texts.read(lengths.next()? as usize, out),
            Self::Numbered { numbers, texts, ends } => {
                let number = numbers.next()? as usize;
                let end = *ends.get(number).ok_or_else(|| broken("a text is not in its dictionary"))?;
                let start = if number == 0 { 0 } else { ends[number - 1] };
                out.extend_from_slice(&texts[start..end]);
                Ok(())
            }
            _ => Err(broken("a column has the streams of another type")),
        }
    }
}

fn push_offset(offsets: &mut Vec<i32>, length: i64) -> Result<()> {
    let last = i64::from(offsets.last().copied().unwrap_or(0));
    let next = last.checked_add(length).and_then(|next| i32::try_from(next).ok()).filter(|_| length >= 0);
    offsets.push(next.ok_or_else(|| broken("more than 2 GiB in one batch"))?);
    Ok(())
}

fn fixed<T: Default, const N: usize>(
    chunks: &mut Chunks,
    rows: usize,
    valid: impl Fn(usize) -> bool,
    value: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let count = (0..rows).filter(|row| valid(*row)).count();
    let mut bytes = Vec::new();
    chunks.read(count * N, &mut bytes)?;
    let mut values = bytes.as_chunks::<N>().0.iter();
    let value = |row| {
        if valid(row) { values.next().map(|bytes| value(*bytes)).unwrap_or_default() } else { T::default() }
    };
    Ok((0..rows).map(value).collect())
}

fn integers(values: Vec<i64>, data_type: &DataType, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    fn narrow<T: TryFrom<i64>>(values: Vec<i64>) -> Result<Vec<T>> {
        let narrow = |value| T::try_from(value).map_err(|_| broken("an integer is too large for its type"));
        values.into_iter().map(narrow).collect()
    }
    Ok(match data_type {
        DataType::Int16 => primitive::<Int16Type>(narrow(values)?, data_type, nulls),
        DataType::Int32 => primitive::<Int32Type>(narrow(values)?, data_type, nulls),
        DataType::Date32 => primitive::<Date32Type>(narrow(values)?, data_type, nulls),
        _ => primitive::<Int64Type>(values, data_type, nulls),
    })
}

fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    data_type: &DataType,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    let array = PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls);
    Arc::new(array.with_data_type(data_type.clone()))
}

fn texts(
    bytes: Vec<u8>,
    offsets: Vec<i32>,
    data_type: &DataType,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let not_text = |error| broken("a text is not UTF-8").cause(error);
    if let DataType::Time64(_) = data_type {
        let time = |(row, ends): (usize, &[i32])| {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                return Ok(0);
            }
            parse_time(&bytes[ends[0] as usize..ends[1] as usize]).ok_or_else(|| broken("a time is none"))
        };
        let times = offsets.windows(2).enumerate().map(time).collect::<Result<_>>()?;
        return Ok(primitive::<Time64MicrosecondType>(times, data_type, nulls));
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(if *data_type == DataType::Binary {
        Arc::new(BinaryArray::try_new(offsets, Buffer::from(bytes), nulls).map_err(not_text)?)
    } else {
        Arc::new(StringArray::try_new(offsets, Buffer::from(bytes), nulls).map_err(not_text)?)
    })
}

/// Microseconds since 1970 of what the writer made of them.
fn timestamp(seconds: i64, nanos: i64) -> Result<i64> {
    let zeros = nanos & 7;
    let nanos = (nanos >> 3) * if zeros == 0 { 1 } else { 10_i64.pow(zeros as u32 + 1) };
    let seconds = seconds.checked_add(EPOCH_SECONDS);
    let seconds = seconds.map(|seconds| if seconds < 0 && nanos > 999_999 { seconds - 1 } else { seconds });
    let micros = seconds.map(|seconds| i128::from(seconds) * 1_000_000 + i128::from(nanos / 1000));
    micros.and_then(|micros| i64::try_from(micros).ok()).ok_or_else(|| broken("a timestamp is too large"))
}
