//! Record batches to an ORC file.

use arrow_array::{Array as _, RecordBatch};
use arrow_schema::{DataType, SchemaRef};

use super::ROW_GROUP_ROWS;
use super::column::{Column, ColumnStripe, StreamKind};
use super::proto::Message;
use super::stream::{CHUNK_BYTES, Stream};
use super::types::types_of;
use crate::batch::format::{OrcCompression as Codec, WriterOptions};
use crate::runtime::{Error, Result};

pub(super) const MAGIC: &[u8] = b"ORC";
/// Metadata of ours: memory of a row, so that batches read are bounded.
pub(super) const ROW_BYTES: &[u8] = b"tidemark.row_bytes";
/// Who wrote it: none of the writers that have a number.
const WRITER: u64 = 0x5449_444d;
/// All that was found wrong with statistics and bloom filters until now is right here.
const WRITER_VERSION: u64 = 9;

/// An ORC file being written into memory.
#[derive(Debug)]
pub(in crate::batch) struct OrcWriter {
    schema: SchemaRef,
    codec: Codec,
    stripe_rows_max: usize,
    stripe_bytes_max: usize,
    root: Column,
    columns: Vec<Column>,
    /// Bytes that were not taken yet, and all there were.
    out: Vec<u8>,
    written: usize,
    stripes: Vec<Message>,
    stripe_stats: Vec<Message>,
    rows: usize,
    stripe_rows: usize,
    group_rows: usize,
    /// Memory of a row, on average of that stripe where it is largest.
    row_bytes: usize,
}

impl OrcWriter {
    pub(in crate::batch) fn new(codec: Codec, schema: SchemaRef, options: &WriterOptions) -> Result<Self> {
        if let Codec::Zstd(level) = codec
            && !(1..=22).contains(&level)
        {
            return Err(Error::usage(format!("zstd level {level} is not one of 1 to 22")));
        }
        let fields = schema.fields().iter().enumerate();
        let columns = fields.map(|(at, field)| {
            let bloom = options.key.contains(&at) && has_bloom(field.data_type());
            let dictionary = !options.plain.contains(&at);
            Column::new(Some(field.data_type()), codec, bloom, dictionary)
        });
        let columns = columns.collect::<Result<_>>()?;
        Ok(Self {
            root: Column::new(None, codec, false, false)?,
            columns,
            schema,
            codec,
            stripe_rows_max: options.row_group_rows.max(1),
            stripe_bytes_max: options.row_group_bytes.max(1),
            out: MAGIC.to_vec(),
            written: MAGIC.len(),
            stripes: Vec::new(),
            stripe_stats: Vec::new(),
            rows: 0,
            stripe_rows: 0,
            group_rows: 0,
            row_bytes: 0,
        })
    }

    pub(in crate::batch) const fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(in crate::batch) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut start = 0;
        while start < batch.num_rows() {
            let room = (ROW_GROUP_ROWS - self.group_rows).min(self.stripe_rows_max - self.stripe_rows);
            let rows = room.min(batch.num_rows() - start);
            self.root.rows(rows);
            for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
                column.write(&array.slice(start, rows))?;
            }
            start += rows;
            self.rows += rows;
            self.stripe_rows += rows;
            self.group_rows += rows;
            if self.stripe_rows == self.stripe_rows_max || self.stripe_bytes() >= self.stripe_bytes_max {
                self.end_stripe()?;
            } else if self.group_rows == ROW_GROUP_ROWS {
                self.end_group(true)?;
            }
        }
        Ok(())
    }

    pub(in crate::batch) fn bytes_written(&self) -> usize {
        self.written + self.stripe_bytes()
    }

    pub(in crate::batch) fn memory(&self) -> usize {
        self.out.len() + self.stripe_bytes()
    }

    pub(in crate::batch) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    pub(in crate::batch) fn finish(mut self) -> Result<Vec<u8>> {
        self.end_stripe()?;
        let metadata = self.metadata()?;
        let content_bytes = self.written - MAGIC.len();
        let footer = self.footer(content_bytes)?;
        let mut postscript = Message::default();
        postscript.number(1, footer.len() as u64);
        postscript.number(
            2,
            match self.codec {
                Codec::None => 0,
                Codec::Zlib => 1,
                Codec::Snappy => 2,
                Codec::Zstd(_) => 5,
            },
        );
        postscript.number(3, CHUNK_BYTES as u64);
        postscript.numbers(4, [0, 12]);
        postscript.number(5, metadata.len() as u64);
        postscript.number(6, WRITER_VERSION);
        postscript.bytes(8000, MAGIC);
        let postscript = postscript.into_bytes();
        self.put(&metadata);
        self.put(&footer);
        self.put(&postscript);
        // It has some thirty bytes.
        self.put(&[postscript.len() as u8]);
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.written += bytes.len();
    }

    fn stripe_bytes(&self) -> usize {
        self.columns.iter().map(Column::bytes).sum()
    }

    fn end_group(&mut self, more: bool) -> Result<()> {
        self.group_rows = 0;
        self.root.end_group(more)?;
        self.columns.iter_mut().try_for_each(|column| column.end_group(more))
    }

    pub(in crate::batch) fn end_stripe(&mut self) -> Result<()> {
        if self.stripe_rows == 0 {
            return Ok(());
        }
        self.end_group(false)?;
        let memory: usize = self.columns.iter().map(Column::memory).sum();
        self.row_bytes = self.row_bytes.max(memory / self.stripe_rows);
        let mut columns = Vec::new();
        self.root.finish(&mut columns)?;
        self.columns.iter_mut().try_for_each(|column| column.finish(&mut columns))?;
        let rows = std::mem::take(&mut self.stripe_rows);
        self.put_stripe(columns, rows)
    }

    fn put_stripe(&mut self, columns: Vec<ColumnStripe>, rows: usize) -> Result<()> {
        let offset = self.written;
        let mut footer = Message::default();
        let (mut encodings, mut data) = (Vec::new(), Vec::new());
        let mut stats = Message::default();
        for (number, column) in columns.into_iter().enumerate() {
            self.put_stream(&mut footer, StreamKind::RowIndex, number, &self.compressed(column.index)?);
            if let Some(bloom) = column.bloom {
                self.put_stream(&mut footer, StreamKind::BloomFilterUtf8, number, &self.compressed(bloom)?);
            }
            let mut encoding = Message::default();
            encoding.number(1, column.encoding.kind);
            column.encoding.dictionary.iter().for_each(|size| encoding.number(2, *size));
            encoding.number(3, 1);
            encodings.push(encoding);
            data.extend(column.streams.into_iter().map(|(kind, bytes)| (kind, number, bytes)));
            stats.message(1, &column.stats);
        }
        let index_bytes = self.written - offset;
        for (kind, number, bytes) in &data {
            self.put_stream(&mut footer, *kind, *number, bytes);
        }
        let data_bytes = self.written - offset - index_bytes;
        for encoding in &encodings {
            footer.message(2, encoding);
        }
        footer.bytes(3, b"UTC");
        let footer = self.compressed(footer)?;
        self.put(&footer);
        let mut stripe = Message::default();
        let numbers = [offset, index_bytes, data_bytes, footer.len(), rows];
        (1..).zip(numbers).for_each(|(field, number)| stripe.number(field, number as u64));
        self.stripes.push(stripe);
        self.stripe_stats.push(stats);
        Ok(())
    }

    fn put_stream(&mut self, footer: &mut Message, kind: StreamKind, column: usize, bytes: &[u8]) {
        let mut stream = Message::default();
        stream.number(1, kind as u64);
        stream.number(2, column as u64);
        stream.number(3, bytes.len() as u64);
        footer.message(1, &stream);
        self.put(bytes);
    }

    fn metadata(&self) -> Result<Vec<u8>> {
        let mut metadata = Message::default();
        self.stripe_stats.iter().for_each(|stats| metadata.message(1, stats));
        self.compressed(metadata)
    }

    fn footer(&self, content_bytes: usize) -> Result<Vec<u8>> {
        let mut footer = Message::default();
        footer.number(1, MAGIC.len() as u64);
        footer.number(2, content_bytes as u64);
        self.stripes.iter().for_each(|stripe| footer.message(3, stripe));
        types_of(&self.schema)?.iter().for_each(|message| footer.message(4, message));
        let mut row_bytes = Message::default();
        row_bytes.bytes(1, ROW_BYTES);
        row_bytes.bytes(2, self.row_bytes.to_string().as_bytes());
        footer.message(5, &row_bytes);
        footer.number(6, self.rows as u64);
        let mut stats = Vec::new();
        self.root.file_stats(&mut stats);
        self.columns.iter().for_each(|column| column.file_stats(&mut stats));
        for stats in &stats {
            footer.message(7, stats);
        }
        footer.number(8, ROW_GROUP_ROWS as u64);
        footer.number(9, WRITER);
        // The calendar: proleptic Gregorian.
        footer.number(11, 2);
        self.compressed(footer)
    }

    fn compressed(&self, message: Message) -> Result<Vec<u8>> {
        let mut stream = Stream::new(self.codec);
        stream.write(&message.into_bytes())?;
        stream.finish()
    }
}

/// Types whose values are hashed in one way by all readers.
const fn has_bloom(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Utf8 | DataType::Date32
    )
}
