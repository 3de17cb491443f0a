//! A Parquet file to record batches of the schema wanted now.
//!
//! Row groups are streamed: what is held is the pages being read and one batch. The file may have been
//! written for an older version of the table; [`Widening`] says what is mended and what is refused.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;

use crate::batch::format::{ReaderOptions, Source};
use crate::batch::widen::Widening;
use crate::runtime::{Error, Result};

/// Batches of a Parquet file.
pub(in crate::batch) struct ParquetReader {
    batches: ParquetRecordBatchReader,
    widening: Widening,
    rows: u64,
}

impl ParquetReader {
    pub(in crate::batch) fn open(
        schema: &SchemaRef,
        source: Source,
        options: &ReaderOptions,
    ) -> Result<Self> {
        match source {
            Source::Bytes(bytes) => Self::over::<Bytes>(schema, bytes, options),
            Source::File(file) => Self::over(schema, file, options),
        }
    }

    fn over<R: ChunkReader + 'static>(
        schema: &SchemaRef,
        reader: R,
        options: &ReaderOptions,
    ) -> Result<Self> {
        let arrow_options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&reader, arrow_options).map_err(failed)?;
        let (widening, columns) = Widening::plan(metadata.schema(), schema, options.wanted(schema)?)?;
        let rows = metadata.metadata().file_metadata().num_rows() as u64;
        let row_bytes = row_bytes(metadata.metadata()) + widening.row_bytes();
        let mask = ProjectionMask::roots(metadata.parquet_schema(), columns);
        let batch_rows = (options.batch_bytes / row_bytes).clamp(1, options.batch_rows.max(1));
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata)
            .with_batch_size(batch_rows)
            .with_projection(mask)
            .build()
            .map_err(failed)?;
        Ok(Self { batches, widening, rows })
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        self.widening.schema()
    }

    /// Rows in the file.
    pub(in crate::batch) fn rows(&self) -> u64 {
        self.rows
    }

    pub(in crate::batch) fn next(&mut self) -> Option<Result<RecordBatch>> {
        let batch = self.batches.next()?;
        Some(
            batch
                .map_err(|error| Error::operator("cannot read Parquet").cause(error))
                .and_then(|batch| self.widening.apply(&batch)),
        )
    }
}

/// The average memory of a row, of that row group where it is largest; at least 1.
fn row_bytes(metadata: &ParquetMetaData) -> usize {
    let column_bytes = |column: &ColumnChunkMetaData| {
        // Dictionaries make repeated text small in the file, but not in memory.
        let text = column.unencoded_byte_array_data_bytes().unwrap_or_default();
        text.max(column.uncompressed_size()) as usize
    };
    let average = |group: &RowGroupMetaData| {
        let bytes: usize = group.columns().iter().map(column_bytes).sum();
        bytes / (group.num_rows() as usize).max(1)
    };
    metadata.row_groups().iter().map(average).max().unwrap_or_default().max(1)
}

fn failed(error: ParquetError) -> Error {
    Error::operator("cannot read Parquet").cause(error)
}
