//! An ORC file of [`super::write`] to record batches of the schema wanted now.
//!
//! A stripe's streams are read as they are, and decompressed a chunk at a time: what is held is one stripe, compressed,
//! its dictionaries, and one batch. The file may have been written for an older version of the table; [`Widening`] says
//! what is mended and what is refused.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;

use super::decode::{Chunks, Fields, broken};
use super::types::{Type, field_of};
use super::values::{Decoder, StripeStreams};
use super::write::{MAGIC, ROW_BYTES};
use crate::batch::format::{OrcCompression as Codec, ReaderOptions, Source};
use crate::batch::widen::Widening;
use crate::runtime::{Error, Result};

/// The postscript's length is a byte at the end.
const TAIL_BYTES_MAX: u64 = 256;

/// Batches of an ORC file.
pub(in crate::batch) struct OrcReader {
    input: Input,
    tail: Tail,
    /// The file's columns that are read: their fields, and the numbers of their types.
    fields: SchemaRef,
    columns: Vec<usize>,
    widening: Widening,
    batch_rows: usize,
    next_stripe: usize,
    stripe: Option<Stripe>,
}

struct Stripe {
    decoders: Vec<Decoder>,
    rows_left: usize,
}

enum Input {
    Bytes(Bytes),
    File(File, u64),
}

/// What stands at the end of a file.
struct Tail {
    codec: Codec,
    chunk_bytes_max: usize,
    types: Vec<Type>,
    stripes: Vec<StripePlace>,
    rows: u64,
    row_bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct StripePlace {
    offset: u64,
    index_bytes: u64,
    data_bytes: u64,
    footer_bytes: u64,
    rows: u64,
}

impl OrcReader {
    pub(in crate::batch) fn open(
        schema: &SchemaRef,
        source: Source,
        options: &ReaderOptions,
    ) -> Result<Self> {
        let input = match source {
            Source::Bytes(bytes) => Input::Bytes(bytes),
            Source::File(file) => {
                let bytes =
                    file.metadata().map_err(|error| Error::operator("cannot read ORC").cause(error))?.len();
                Input::File(file, bytes)
            }
        };
        let tail = Tail::read(&input)?;
        let root = tail.types.first().ok_or_else(|| broken("it has no types"))?;
        let fields: Vec<_> = root
            .names
            .iter()
            .zip(&root.below)
            .map(|(name, number)| field_of(name, *number, &tail.types))
            .collect::<Result<_>>()?;
        let file_schema: SchemaRef = Arc::new(Schema::new(fields));
        let (widening, columns) = Widening::plan(&file_schema, schema, options.wanted(schema)?)?;
        let fields: SchemaRef = Arc::new(
            file_schema.project(&columns).map_err(|error| Error::operator("cannot read ORC").cause(error))?,
        );
        let columns = columns.iter().map(|column| root.below[*column]).collect();
        let row_bytes = tail.row_bytes + widening.row_bytes();
        let batch_rows = (options.batch_bytes / row_bytes.max(1)).clamp(1, options.batch_rows.max(1));
        Ok(Self { input, tail, fields, columns, widening, batch_rows, next_stripe: 0, stripe: None })
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        self.widening.schema()
    }

    /// Rows in the file.
    pub(in crate::batch) const fn rows(&self) -> u64 {
        self.tail.rows
    }

    pub(in crate::batch) fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.batch().transpose()
    }

    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(stripe) = self.stripe.as_mut().filter(|stripe| stripe.rows_left > 0) else {
                let Some(place) = self.tail.stripes.get(self.next_stripe) else { return Ok(None) };
                self.stripe = Some(self.open_stripe(*place)?);
                self.next_stripe += 1;
                continue;
            };
            let rows = self.batch_rows.min(stripe.rows_left);
            stripe.rows_left -= rows;
            let arrays =
                stripe.decoders.iter_mut().map(|decoder| decoder.array(rows)).collect::<Result<_>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.fields), arrays, &options);
            let batch = batch.map_err(|error| Error::operator("cannot read ORC").cause(error))?;
            return self.widening.apply(&batch).map(Some);
        }
    }

    fn open_stripe(&self, place: StripePlace) -> Result<Stripe> {
        let data_at = place.offset + place.index_bytes;
        let footer = self.input.read(data_at + place.data_bytes, place.footer_bytes)?;
        let footer = self.tail.message(footer)?;
        let input = |offset, bytes| {
            let stream = self.input.read(offset, bytes)?;
            Ok(Chunks::new(self.tail.codec, self.tail.chunk_bytes_max, stream))
        };
        let mut streams = StripeStreams::read(&footer, place.offset, input)?;
        let fields = self.fields.fields().iter();
        let decoders =
            fields.zip(&self.columns).map(|(field, column)| Decoder::new(field, *column, &mut streams));
        Ok(Stripe { decoders: decoders.collect::<Result<_>>()?, rows_left: place.rows as usize })
    }
}

impl Tail {
    fn read(input: &Input) -> Result<Self> {
        let bytes = input.bytes();
        let last = input.read(bytes.saturating_sub(TAIL_BYTES_MAX), bytes.min(TAIL_BYTES_MAX))?;
        let length = *last.last().ok_or_else(|| broken("it is empty"))? as usize;
        let postscript = (last.len() - 1).checked_sub(length).map(|at| &last[at..last.len() - 1]);
        let (mut footer_bytes, mut codec, mut chunk_bytes_max, mut magic) = (0, 0, 0, &[][..]);
        for field in Fields(postscript.ok_or_else(|| broken("it has no postscript"))?) {
            match field? {
                (1, value) => footer_bytes = value.number()?,
                (2, value) => codec = value.number()?,
                (3, value) => chunk_bytes_max = value.number()?,
                (8000, value) => magic = value.bytes()?,
                _ => {}
            }
        }
        if magic != MAGIC {
            return Err(broken("it does not end as an ORC file does"));
        }
        let codec = match codec {
            0 => Codec::None,
            1 => Codec::Zlib,
            2 => Codec::Snappy,
            5 => Codec::Zstd(0),
            other => return Err(broken(&format!("its compression {other} is not one of ours"))),
        };
        let chunk_bytes_max = chunk_bytes_max as usize;
        let mut tail =
            Self { codec, chunk_bytes_max, types: Vec::new(), stripes: Vec::new(), rows: 0, row_bytes: 0 };
        let at = bytes
            .checked_sub(1 + length as u64 + footer_bytes)
            .ok_or_else(|| broken("its footer is too long"))?;
        let footer = tail.message(input.read(at, footer_bytes)?)?;
        for field in Fields(&footer) {
            match field? {
                (3, value) => tail.stripes.push(StripePlace::read(value.bytes()?)?),
                (4, value) => tail.types.push(Type::read(value.bytes()?)?),
                (5, value) => tail.metadata(value.bytes()?)?,
                (6, value) => tail.rows = value.number()?,
                _ => {}
            }
        }
        Ok(tail)
    }

    fn message(&self, bytes: Bytes) -> Result<Vec<u8>> {
        Chunks::new(self.codec, self.chunk_bytes_max, bytes).all()
    }

    fn metadata(&mut self, item: &[u8]) -> Result<()> {
        let mut ours = false;
        for field in Fields(item) {
            match field? {
                (1, name) => ours = name.bytes()? == ROW_BYTES,
                (2, value) if ours => {
                    let number = std::str::from_utf8(value.bytes()?).ok().and_then(|text| text.parse().ok());
                    self.row_bytes = number.ok_or_else(|| broken("the memory of a row is no number"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl StripePlace {
    fn read(message: &[u8]) -> Result<Self> {
        let mut place = Self::default();
        for field in Fields(message) {
            let (field, value) = field?;
            match field {
                1 => place.offset = value.number()?,
                2 => place.index_bytes = value.number()?,
                3 => place.data_bytes = value.number()?,
                4 => place.footer_bytes = value.number()?,
                5 => place.rows = value.number()?,
                _ => {}
            }
        }
        Ok(place)
    }
}

impl Input {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Bytes> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            return Err(broken("a part of it lies beyond its end"));
        }
        match self {
            Self::Bytes(all) => Ok(all.slice(offset as usize..(offset + bytes) as usize)),
            Self::File(file, _) => {
                let mut out = vec![0; bytes as usize];
                file.read_exact_at(&mut out, offset)
                    .map_err(|error| Error::operator("cannot read ORC").cause(error))?;
                Ok(out.into())
            }
        }
    }
}
