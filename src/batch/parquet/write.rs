//! Record batches to a Parquet file.
//!
//! * Format version 1 with data pages v1: what Hive and Redshift read. Types are carried by Parquet's own
//!   logical types; there is no embedded Arrow schema, so no reader sees another type than the others.
//! * Statistics and page indexes on; dictionaries, which fall back to plain pages when they grow too large. Neither for
//!   columns with values of many megabytes ([`super::super::large_columns`]).
//! * Bloom filters for the columns of the key but floats, at 5 % of false answers (6 to 12 bits a value): the order helps with the first
//!   of them alone.
//! * `created_by` is a constant of this layout, not the program's version: during a rolling upgrade two
//!   versions must make the same object.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression as Codec, Type as Physical, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::SchemaDescriptor;

use crate::batch::format::{Compression, WriterOptions};
use crate::runtime::{Error, Result};

/// Written into every file; to be changed when, and only when, the same rows come out as other bytes.
const CREATED_BY: &str = "tidemark version 1.2.0";

/// The share of values that a bloom filter does not tell from those that are there.
const BLOOM_FALSE: f64 = 0.05;

/// A Parquet file being written into memory.
pub(in crate::batch) struct ParquetWriter {
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
}

impl ParquetWriter {
    pub(in crate::batch) fn new(
        compression: Compression,
        schema: SchemaRef,
        options: &WriterOptions,
    ) -> Result<Self> {
        let parquet_schema = parquet::arrow::ArrowSchemaConverter::new().convert(&schema).map_err(failed)?;
        let properties = properties(compression, &parquet_schema, options)?;
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), SchemaRef::clone(&schema), options)
            .map_err(failed)?;
        Ok(Self { writer, schema })
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(in crate::batch) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(failed)
    }

    pub(in crate::batch) fn end_row_group(&mut self) -> Result<()> {
        self.writer.flush().map_err(failed)
    }

    pub(in crate::batch) fn bytes_written(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    pub(in crate::batch) fn memory(&self) -> usize {
        self.writer.memory_size() + self.writer.inner().len()
    }

    pub(in crate::batch) fn take(&mut self) -> Vec<u8> {
        // The writer counts what it wrote by itself and never looks back at it.
        std::mem::take(self.writer.inner_mut())
    }

    pub(in crate::batch) fn finish(self) -> Result<Vec<u8>> {
        self.writer.into_inner().map_err(failed)
    }
}

fn properties(
    compression: Compression,
    schema: &SchemaDescriptor,
    options: &WriterOptions,
) -> Result<WriterProperties> {
    let codec = match compression {
        Compression::None => Codec::UNCOMPRESSED,
        Compression::Snappy => Codec::SNAPPY,
        Compression::Zstd(level) => Codec::ZSTD(ZstdLevel::try_new(level).map_err(|error| {
            Error::usage(format!("zstd level {level} is not one of 1 to 22")).cause(error)
        })?),
    };
    let builder = WriterProperties::builder()
        .set_compression(codec)
        .set_created_by(CREATED_BY.to_owned())
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(true)
        .set_max_row_group_row_count(Some(options.row_group_rows.max(1)))
        .set_max_row_group_bytes(Some(options.row_group_bytes.max(1)))
        .set_sorting_columns(sorting_columns(schema, &options.key));
    let plain =
        (0..schema.num_columns()).filter(|leaf| options.plain.contains(&schema.get_column_root_idx(*leaf)));
    let builder = plain.fold(builder, |builder, leaf| {
        let path = schema.column(leaf).path().clone();
        builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None)
    });
    let blooms = (0..schema.num_columns()).filter(|leaf| has_bloom(schema, *leaf, options));
    let builder = blooms.fold(builder, |builder, leaf| {
        // Made for as many values as a row group may have, and folded to what it has.
        builder.set_column_bloom_filter_fpp(schema.column(leaf).path().clone(), BLOOM_FALSE)
    });
    Ok(builder.build())
}

/// Parquet has none for booleans. Those of floats are of the bits: a reader that looks for 0 would pass over -0, which is equal
/// to it.
fn has_bloom(schema: &SchemaDescriptor, leaf: usize, options: &WriterOptions) -> bool {
    let column = schema.get_column_root_idx(leaf);
    let is_key = options.key.contains(&column) && !options.plain.contains(&column);
    is_key
        && schema.column(leaf).max_rep_level() == 0
        && !matches!(
            schema.column(leaf).physical_type(),
            Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE
        )
}

/// The key as Parquet has it: numbers of leaf columns. A key with a list in it is left out, since the
/// order of its leaf is not the order of the lists.
fn sorting_columns(schema: &SchemaDescriptor, key: &[usize]) -> Option<Vec<SortingColumn>> {
    let leaf = |column: &usize| {
        let mut leaves =
            (0..schema.num_columns()).filter(|leaf| schema.get_column_root_idx(*leaf) == *column);
        let leaf = leaves.next()?;
        let plain = schema.column(leaf).max_rep_level() == 0;
        plain.then_some(SortingColumn { column_idx: leaf as i32, descending: false, nulls_first: false })
    };
    let columns: Option<Vec<_>> = key.iter().map(leaf).collect();
    columns.filter(|columns| !columns.is_empty())
}

fn failed(error: ParquetError) -> Error {
    Error::operator("cannot write Parquet").cause(error)
}
