//! The two doors: [`FileWriter`] and [`FileReader`], over any [`Format`].

use std::fs::File;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;

use super::csv::{CsvReader, CsvWriter};
use super::orc::{OrcReader, OrcWriter};
use super::parquet::{ParquetReader, ParquetWriter};
use super::widen::Origin;
use crate::runtime::{Error, Result};

/// A file format with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet {
        /// How pages are compressed.
        compression: Compression,
    },
    /// Apache ORC.
    Orc {
        /// How chunks of streams are compressed.
        compression: OrcCompression,
    },
    /// Comma-separated text, gzipped (its form: see `csv`).
    CsvGzip,
}

/// Compression of Parquet pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// Snappy: fast.
    Snappy,
    /// Zstandard at a level from 1 to 22: small.
    Zstd(i32),
}

/// Compression of ORC's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrcCompression {
    /// None.
    None,
    /// Raw deflate: what every reader of ORC has.
    Zlib,
    /// Snappy: fast.
    Snappy,
    /// Zstandard at a level from 1 to 22: small.
    Zstd(i32),
}

impl Format {
    /// The ending of such a file's name, without the dot.
    pub const fn extension(&self) -> &'static str {
        match self {
            Self::Parquet { .. } => "parquet",
            Self::Orc { .. } => "orc",
            Self::CsvGzip => "csv.gz",
        }
    }
}

/// How a file is written.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Most rows of a row group.
    pub row_group_rows: usize,
    /// Most bytes of a row group, encoded, roughly: bounds the memory that writing takes.
    pub row_group_bytes: usize,
    /// Indexes of the columns by which the rows are sorted, ascending with nulls last; told to readers, and
    /// given bloom filters.
    pub key: Vec<usize>,
    /// Indexes of columns that are written without a dictionary and without statistics
    /// ([`large_columns`](super::large_columns)).
    pub plain: Vec<usize>,
}

impl Default for WriterOptions {
    /// A million rows or 64 MiB a row group, unsorted.
    fn default() -> Self {
        Self { row_group_rows: 1 << 20, row_group_bytes: 64 << 20, key: Vec::new(), plain: Vec::new() }
    }
}

/// A file being written.
///
/// The same schema, options and batches (in the same sizes) give the same bytes.
pub struct FileWriter(Writer);

enum Writer {
    Parquet(Box<ParquetWriter>),
    Orc(Box<OrcWriter>),
    Csv(Box<CsvWriter>),
}

impl FileWriter {
    /// A file without rows.
    ///
    /// # Errors
    /// A zstd level out of range; a schema that the format cannot hold.
    pub fn new(format: &Format, schema: SchemaRef, options: &WriterOptions) -> Result<Self> {
        Ok(Self(match format {
            Format::Parquet { compression } => {
                Writer::Parquet(Box::new(ParquetWriter::new(*compression, schema, options)?))
            }
            Format::Orc { compression } => {
                Writer::Orc(Box::new(OrcWriter::new(*compression, schema, options)?))
            }
            Format::CsvGzip => Writer::Csv(Box::new(CsvWriter::new(schema))),
        }))
    }

    /// Appends a batch of the file's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let schema = match &self.0 {
            Writer::Parquet(writer) => writer.schema(),
            Writer::Orc(writer) => writer.schema(),
            Writer::Csv(writer) => writer.schema(),
        };
        if batch.schema_ref() != schema {
            return Err(Error::operator("a batch has another schema than the file it is written to"));
        }
        match &mut self.0 {
            Writer::Parquet(writer) => writer.write(batch),
            Writer::Orc(writer) => writer.write(batch),
            Writer::Csv(writer) => writer.write(batch),
        }
    }

    /// Ends the row group (in ORC the stripe): rows which follow are in another one. Readers go by the average row of one.
    pub fn end_row_group(&mut self) -> Result<()> {
        match &mut self.0 {
            Writer::Parquet(writer) => writer.end_row_group(),
            Writer::Orc(writer) => writer.end_stripe(),
            Writer::Csv(_) => Ok(()),
        }
    }

    /// Size of the file so far: bytes written, and an estimate for rows that wait for their row group to
    /// fill. The same for the same batches.
    pub fn bytes_written(&self) -> usize {
        match &self.0 {
            Writer::Parquet(writer) => writer.bytes_written(),
            Writer::Orc(writer) => writer.bytes_written(),
            Writer::Csv(writer) => writer.bytes_written(),
        }
    }

    /// Memory held, in bytes: bytes not yet taken and the buffers of the row group in progress.
    pub fn memory(&self) -> usize {
        match &self.0 {
            Writer::Parquet(writer) => writer.memory(),
            Writer::Orc(writer) => writer.memory(),
            Writer::Csv(writer) => writer.memory(),
        }
    }

    /// Hands over the bytes that are ready, so that they need not be held until the end: the file is all
    /// that was taken, in order, followed by what [`Self::finish`] returns.
    pub fn take(&mut self) -> Vec<u8> {
        match &mut self.0 {
            Writer::Parquet(writer) => writer.take(),
            Writer::Orc(writer) => writer.take(),
            Writer::Csv(writer) => writer.take(),
        }
    }

    /// Ends the file and returns its bytes (those not yet taken).
    pub fn finish(self) -> Result<Vec<u8>> {
        match self.0 {
            Writer::Parquet(writer) => writer.finish(),
            Writer::Orc(writer) => writer.finish(),
            Writer::Csv(writer) => writer.finish(),
        }
    }
}

/// What a file is read from.
pub enum Source {
    /// The whole file in memory.
    Bytes(Bytes),
    /// An open file; it is read where needed, from any position.
    File(File),
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<File> for Source {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

/// How a file is read.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// Most rows of a batch.
    pub batch_rows: usize,
    /// Most memory of a batch, in bytes, roughly (a row that is larger is a batch of its own). In Parquet,
    /// where rows are counted before they are read, it is kept on the average of the largest row group.
    pub batch_bytes: usize,
    /// Indexes, in the schema wanted, of the columns to read, in the order wanted; all by default.
    pub columns: Option<Vec<usize>>,
    /// What the file's rows hold in each column of the schema wanted (one for each field, before `columns` chooses);
    /// by default what stands under its name.
    pub origins: Option<Vec<Origin>>,
}

impl Default for ReaderOptions {
    /// Batches of 8192 rows and 16 MiB, with all columns.
    fn default() -> Self {
        Self { batch_rows: 8192, batch_bytes: 16 << 20, columns: None, origins: None }
    }
}

impl ReaderOptions {
    /// The schema of the columns to read, and their origins.
    pub(super) fn wanted(&self, schema: &SchemaRef) -> Result<(SchemaRef, Vec<Origin>)> {
        let origins = match &self.origins {
            Some(origins) if origins.len() == schema.fields().len() => origins.clone(),
            Some(origins) => {
                return Err(Error::operator(format!(
                    "{} origins for the {} columns of a schema",
                    origins.len(),
                    schema.fields().len()
                )));
            }
            None => schema.fields().iter().map(|field| Origin::column(field.name())).collect(),
        };
        let Some(columns) = &self.columns else { return Ok((SchemaRef::clone(schema), origins)) };
        let wanted = schema.project(columns).map_err(|error| {
            Error::operator("columns that the schema does not have were asked for").cause(error)
        })?;
        Ok((wanted.into(), columns.iter().map(|index| origins[*index].clone()).collect()))
    }
}

/// A file being read: an iterator over its batches.
///
/// The file may be of an older version of the schema wanted: [`ReaderOptions::origins`] says what its rows hold in a
/// column that came later (by default: null, if the file lacks it), and types are widened (integers, `float4` to
/// `float8`, decimals to larger ones, integers and decimals to plain digits). A column of any other type, one which
/// the schema does not know, and a lacking one which may not be null are errors that name it.
pub struct FileReader(Reader);

enum Reader {
    Parquet(Box<ParquetReader>),
    Orc(Box<OrcReader>),
    Csv(Box<CsvReader>),
}

impl FileReader {
    /// Opens a file and compares its schema with the one wanted.
    pub fn open(
        format: &Format,
        schema: &SchemaRef,
        source: impl Into<Source>,
        options: &ReaderOptions,
    ) -> Result<Self> {
        Ok(Self(match format {
            Format::Parquet { .. } => {
                Reader::Parquet(Box::new(ParquetReader::open(schema, source.into(), options)?))
            }
            Format::Orc { .. } => Reader::Orc(Box::new(OrcReader::open(schema, source.into(), options)?)),
            Format::CsvGzip => Reader::Csv(Box::new(CsvReader::open(schema, source.into(), options)?)),
        }))
    }

    /// The schema of the batches: the one wanted, or those of its columns that were asked for.
    pub fn schema(&self) -> &SchemaRef {
        match &self.0 {
            Reader::Parquet(reader) => reader.schema(),
            Reader::Orc(reader) => reader.schema(),
            Reader::Csv(reader) => reader.schema(),
        }
    }

    /// Rows in the file, where the format says so up front.
    pub fn rows(&self) -> Option<u64> {
        match &self.0 {
            Reader::Parquet(reader) => Some(reader.rows()),
            Reader::Orc(reader) => Some(reader.rows()),
            Reader::Csv(_) => None,
        }
    }
}

impl Iterator for FileReader {
    type Item = Result<RecordBatch>;

    /// The next batch; after an error, nothing more should be read.
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Reader::Parquet(reader) => reader.next(),
            Reader::Orc(reader) => reader.next(),
            Reader::Csv(reader) => reader.next(),
        }
    }
}
