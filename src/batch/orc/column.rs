//! Writers of columns. Each has its streams, the marks of its row groups, and its statistics.

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};

use super::bits::Bits;
use super::bloom::Bloom;
use super::cells;
use super::ints::Ints;
use super::proto::Message;
use super::stats::{Kind, Stats};
use super::stream::Stream;
use super::texts::{Texts, write_texts};
use crate::batch::format::OrcCompression as Codec;
use crate::runtime::{Error, Result};

/// Kinds of streams, in the numbers of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    Present = 0,
    Data = 1,
    Length = 2,
    DictionaryData = 3,
    Secondary = 5,
    RowIndex = 6,
    BloomFilterUtf8 = 8,
}

/// How a column of a stripe is encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoding {
    /// `DIRECT` is 0, `DIRECT_V2` 2, `DICTIONARY_V2` 3.
    pub(super) kind: u64,
    pub(super) dictionary: Option<u64>,
}

/// What a stripe has of a column.
#[derive(Debug)]
pub(super) struct ColumnStripe {
    pub(super) encoding: Encoding,
    pub(super) index: Message,
    pub(super) bloom: Option<Message>,
    pub(super) streams: Vec<(StreamKind, Vec<u8>)>,
    pub(super) stats: Message,
}

/// A writer of a column and what is below it.
#[derive(Debug)]
pub(super) struct Column {
    present: Bits,
    present_out: Stream,
    /// Marks of the row groups: in the stream of nulls, and in the others.
    marks: Vec<(Vec<u64>, Vec<u64>)>,
    groups: Vec<Stats>,
    stats: Stats,
    stripe: Stats,
    file: Stats,
    bloom: Option<(Bloom, Vec<Message>)>,
    values: Values,
}

/// Encoders by type.
#[derive(Debug)]
enum Values {
    Root,
    Bool { bits: Bits, out: Stream },
    Int { ints: Ints, out: Stream },
    Float { out: Stream },
    Decimal { out: Stream, scales: Ints, scales_out: Stream },
    Bytes(Box<Texts>),
    Timestamp { seconds: Ints, out: Stream, nanos: Ints, nanos_out: Stream },
    List { lengths: Ints, out: Stream, element: Box<Column> },
}

impl Column {
    /// A writer for a field, or for the rows as a whole.
    pub(super) fn new(
        data_type: Option<&DataType>,
        codec: Codec,
        bloom: bool,
        dictionary: bool,
    ) -> Result<Self> {
        let stream = || Stream::new(codec);
        let ints = || Values::Int { ints: Ints::new(true), out: stream() };
        let int_stats = Kind::Int { range: None, sum: Some(0) };
        let float_stats = Kind::Float { range: None, sum: 0.0 };
        let (values, kind) = match data_type {
            None => (Values::Root, Kind::None),
            Some(DataType::Boolean) => {
                (Values::Bool { bits: Bits::default(), out: stream() }, Kind::Bool { trues: 0 })
            }
            Some(DataType::Int16 | DataType::Int32 | DataType::Int64) => (ints(), int_stats),
            Some(DataType::Date32) => (ints(), Kind::Date { range: None }),
            Some(DataType::Float32 | DataType::Float64) => (Values::Float { out: stream() }, float_stats),
            Some(DataType::Decimal128(_, scale)) => (
                Values::Decimal { out: stream(), scales: Ints::new(true), scales_out: stream() },
                Kind::Decimal { range: None, sum: Some(0), scale: *scale },
            ),
            Some(DataType::Utf8 | DataType::Time64(TimeUnit::Microsecond)) => {
                (Values::Bytes(Box::new(Texts::new(codec, dictionary))), Kind::Text { range: None, bytes: 0 })
            }
            Some(DataType::Binary) => {
                (Values::Bytes(Box::new(Texts::new(codec, false))), Kind::Bytes { bytes: 0 })
            }
            Some(DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                let (seconds, nanos) = (Ints::new(true), Ints::new(false));
                let values = Values::Timestamp { seconds, out: stream(), nanos, nanos_out: stream() };
                (values, Kind::Timestamp { range: None })
            }
            Some(DataType::List(element)) => {
                let element = Box::new(Self::new(Some(element.data_type()), codec, false, dictionary)?);
                let values = Values::List { lengths: Ints::new(false), out: stream(), element };
                (values, Kind::List { range: None, elements: 0 })
            }
            Some(other) => {
                return Err(Error::operator(format!("ORC has no type for {other}; please report it")));
            }
        };
        let stats = Stats::new(kind);
        let mut column = Self {
            present: Bits::default(),
            present_out: stream(),
            marks: Vec::new(),
            groups: Vec::new(),
            stripe: stats.clone(),
            file: stats.clone(),
            stats,
            bloom: bloom.then(|| (Bloom::new(), Vec::new())),
            values,
        };
        column.begin_group()?;
        Ok(column)
    }

    /// Counts rows of the table, for the column that stands for them as a whole.
    pub(super) fn rows(&mut self, rows: usize) {
        (0..rows).for_each(|_| self.stats.value());
    }

    /// Appends an array.
    pub(super) fn write(&mut self, array: &ArrayRef) -> Result<()> {
        for row in 0..array.len() {
            let valid = array.is_valid(row);
            self.present.push(valid, &mut self.present_out)?;
            if valid { self.stats.value() } else { self.stats.null() }
        }
        let bloom = self.bloom.as_mut().map(|(bloom, _)| bloom);
        let kind = &mut self.stats.kind;
        match (&mut self.values, array.data_type()) {
            (Values::Root, _) => Ok(()),
            (Values::Bool { bits, out }, _) => cells::bools(array.as_boolean(), kind, bits, out),
            (Values::Int { ints, out }, DataType::Int16) => {
                cells::ints(array.as_primitive::<Int16Type>(), kind, bloom, ints, out)
            }
            (Values::Int { ints, out }, DataType::Int32) => {
                cells::ints(array.as_primitive::<Int32Type>(), kind, bloom, ints, out)
            }
            (Values::Int { ints, out }, DataType::Date32) => {
                cells::ints(array.as_primitive::<Date32Type>(), kind, bloom, ints, out)
            }
            (Values::Int { ints, out }, _) => {
                cells::ints(array.as_primitive::<Int64Type>(), kind, bloom, ints, out)
            }
            (Values::Float { out }, DataType::Float32) => {
                cells::floats(array.as_primitive::<Float32Type>(), kind, out)
            }
            (Values::Float { out }, _) => cells::floats(array.as_primitive::<Float64Type>(), kind, out),
            (Values::Decimal { out, scales, scales_out, .. }, _) => {
                cells::decimals(array.as_primitive(), kind, out)?;
                cells::scales(array.as_primitive(), scales, scales_out)
            }
            (Values::Bytes(texts), DataType::Utf8) => {
                let values = array.as_string::<i32>().iter().flatten().map(str::as_bytes);
                write_texts(values, kind, bloom, texts)
            }
            (Values::Bytes(texts), DataType::Binary) => {
                write_texts(array.as_binary::<i32>().iter().flatten(), kind, bloom, texts)
            }
            (Values::Bytes(texts), _) => cells::times(array.as_primitive(), kind, texts),
            (Values::Timestamp { seconds, out, nanos, nanos_out }, _) => {
                cells::timestamps(array.as_primitive(), kind, (seconds, out), (nanos, nanos_out))
            }
            (Values::List { lengths, out, element }, _) => {
                let array = array.as_list::<i32>();
                cells::lengths(array, kind, lengths, out)?;
                cells::each_list(array, |elements| element.write(&elements))
            }
        }
    }

    /// Ends a row group, and begins another if there are more rows in this stripe.
    pub(super) fn end_group(&mut self, more: bool) -> Result<()> {
        let group = std::mem::replace(&mut self.stats, Stats::new(self.stripe.kind.empty()));
        self.stripe.add(&group);
        self.groups.push(group);
        if let Some((bloom, filters)) = &mut self.bloom {
            filters.push(bloom.finish());
        }
        if let Values::List { element, .. } = &mut self.values {
            element.end_group(more)?;
        }
        if more { self.begin_group() } else { Ok(()) }
    }

    /// Ends all runs and notes where the next row group begins.
    fn begin_group(&mut self) -> Result<()> {
        let (mut nulls, mut data) = (Vec::new(), Vec::new());
        self.present.mark(&mut self.present_out, &mut nulls)?;
        match &mut self.values {
            Values::Root => {}
            Values::Bool { bits, out } => bits.mark(out, &mut data)?,
            Values::Int { ints, out } => ints.mark(out, &mut data)?,
            Values::Float { out } => out.position(&mut data),
            Values::Decimal { out, scales, scales_out, .. } => {
                out.position(&mut data);
                scales.mark(scales_out, &mut data)?;
            }
            // These keep their own: a dictionary is written at the end.
            Values::Bytes(texts) => texts.mark()?,
            Values::Timestamp { seconds, out, nanos, nanos_out } => {
                seconds.mark(out, &mut data)?;
                nanos.mark(nanos_out, &mut data)?;
            }
            Values::List { lengths, out, .. } => lengths.mark(out, &mut data)?,
        }
        self.marks.push((nulls, data));
        Ok(())
    }

    /// Ends the stripe and gives it, this column before those below it. The row group must have ended.
    pub(super) fn finish(&mut self, stripe: &mut Vec<ColumnStripe>) -> Result<()> {
        let mut streams = Vec::new();
        self.present.finish(&mut self.present_out)?;
        let nulls = self.present_out.finish()?;
        let has_nulls = self.stripe.has_nulls();
        if has_nulls {
            streams.push((StreamKind::Present, nulls));
        }
        let (encoding, marks) = self.values.finish(&mut streams)?;
        let mut index = Message::default();
        for (n, ((nulls, data), stats)) in self.marks.iter().zip(&self.groups).enumerate() {
            let data = marks.as_ref().map_or(data, |marks| &marks[n]);
            let nulls = if has_nulls { nulls.as_slice() } else { &[] };
            let mut entry = Message::default();
            entry.numbers(1, nulls.iter().chain(data).copied());
            entry.message(2, &stats.message());
            index.message(1, &entry);
        }
        let bloom = self.bloom.as_mut().map(|(_, filters)| {
            let mut index = Message::default();
            filters.drain(..).for_each(|filter| index.message(1, &filter));
            index
        });
        stripe.push(ColumnStripe { encoding, index, bloom, streams, stats: self.stripe.message() });
        self.file.add(&self.stripe);
        self.stripe = Stats::new(self.stripe.kind.empty());
        self.marks.clear();
        self.groups.clear();
        if let Values::List { element, .. } = &mut self.values {
            element.finish(stripe)?;
        }
        self.begin_group()
    }

    /// Statistics of the file, this column before those below it.
    pub(super) fn file_stats(&self, stats: &mut Vec<Message>) {
        stats.push(self.file.message());
        if let Values::List { element, .. } = &self.values {
            element.file_stats(stats);
        }
    }

    /// Memory that the rows of the stripe take, roughly. The row group must have ended.
    pub(super) fn memory(&self) -> usize {
        let element = if let Values::List { element, .. } = &self.values { element.memory() } else { 0 };
        self.stripe.memory() + element
    }

    /// Bytes that the stripe has so far.
    pub(super) fn bytes(&self) -> usize {
        self.present_out.bytes()
            + match &self.values {
                Values::Root => 0,
                Values::Bool { out, .. } | Values::Int { out, .. } | Values::Float { out } => out.bytes(),
                Values::Decimal { out, scales_out, .. } => out.bytes() + scales_out.bytes(),
                Values::Bytes(texts) => texts.bytes(),
                Values::Timestamp { out, nanos_out, .. } => out.bytes() + nanos_out.bytes(),
                Values::List { out, element, .. } => out.bytes() + element.bytes(),
            }
    }
}

impl Values {
    /// Ends all streams; gives other marks of the row groups, if they are not those that were noted.
    fn finish(
        &mut self,
        streams: &mut Vec<(StreamKind, Vec<u8>)>,
    ) -> Result<(Encoding, Option<Vec<Vec<u64>>>)> {
        let direct = |kind| (Encoding { kind, dictionary: None }, None);
        match self {
            Self::Root => return Ok(direct(0)),
            Self::Bool { bits, out } => {
                bits.finish(out)?;
                streams.push((StreamKind::Data, out.finish()?));
                return Ok(direct(0));
            }
            Self::Float { out } => {
                streams.push((StreamKind::Data, out.finish()?));
                return Ok(direct(0));
            }
            Self::Int { ints, out } => {
                ints.finish(out)?;
                streams.push((StreamKind::Data, out.finish()?));
            }
            Self::Decimal { out, scales, scales_out, .. } => {
                scales.finish(scales_out)?;
                streams.push((StreamKind::Data, out.finish()?));
                streams.push((StreamKind::Secondary, scales_out.finish()?));
            }
            Self::Timestamp { seconds, out, nanos, nanos_out } => {
                seconds.finish(out)?;
                nanos.finish(nanos_out)?;
                streams.push((StreamKind::Data, out.finish()?));
                streams.push((StreamKind::Secondary, nanos_out.finish()?));
            }
            Self::List { lengths, out, .. } => {
                lengths.finish(out)?;
                streams.push((StreamKind::Length, out.finish()?));
            }
            Self::Bytes(texts) => {
                let (encoding, marks) = texts.finish(streams)?;
                return Ok((encoding, Some(marks)));
            }
        }
        Ok(direct(2))
    }
}
