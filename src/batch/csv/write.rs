//! Record batches to gzipped CSV.

use std::io::Write;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::cells::{Cells, write_quoted};
use crate::runtime::{Error, Result};

/// Text handed to the compressor at once.
const BLOCK_BYTES: usize = 64 << 10;

/// What deflate's window and tables take.
const DEFLATE_BYTES: usize = 512 << 10;

/// A CSV file being written into memory.
pub(in crate::batch) struct CsvWriter {
    schema: SchemaRef,
    /// The header says nothing of time, name or system: flate2 leaves them empty.
    gzip: GzEncoder<Vec<u8>>,
    block: Vec<u8>,
    taken: usize,
}

impl CsvWriter {
    pub(in crate::batch) fn new(schema: SchemaRef) -> Self {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        for (index, field) in schema.fields().iter().enumerate() {
            if index > 0 {
                block.push(b',');
            }
            write_quoted(field.name().as_bytes(), &mut block);
        }
        block.push(b'\n');
        Self { schema, gzip: GzEncoder::new(Vec::new(), Compression::default()), block, taken: 0 }
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(in crate::batch) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let cells = |array| {
            Cells::new(array).ok_or_else(|| {
                Error::operator(format!("a CSV file cannot hold a column of type {}", array.data_type()))
            })
        };
        let columns: Vec<_> =
            batch.columns().iter().map(|array| cells(array.as_ref())).collect::<Result<_>>()?;
        for row in 0..batch.num_rows() {
            for (index, cells) in columns.iter().enumerate() {
                if index > 0 {
                    self.block.push(b',');
                }
                cells.write_field(row, &mut self.block);
            }
            self.block.push(b'\n');
            if self.block.len() >= BLOCK_BYTES {
                self.compress()?;
            }
        }
        Ok(())
    }

    fn compress(&mut self) -> Result<()> {
        self.gzip
            .write_all(&self.block)
            .map_err(|error| Error::operator("cannot write gzip").cause(error))?;
        self.block.clear();
        // One long value must not hold its memory until the end of the file.
        self.block.shrink_to(4 * BLOCK_BYTES);
        Ok(())
    }

    pub(in crate::batch) fn bytes_written(&self) -> usize {
        // What waits to be compressed shrinks to about a quarter.
        self.taken + self.gzip.get_ref().len() + self.block.len() / 4
    }

    pub(in crate::batch) fn memory(&self) -> usize {
        self.gzip.get_ref().len() + self.block.capacity() + DEFLATE_BYTES
    }

    pub(in crate::batch) fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(self.gzip.get_mut());
        self.taken += bytes.len();
        bytes
    }

    pub(in crate::batch) fn finish(mut self) -> Result<Vec<u8>> {
        self.compress()?;
        self.gzip.finish().map_err(|error| Error::operator("cannot write gzip").cause(error))
    }
}
