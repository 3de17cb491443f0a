//! How a table's columns stand in memory while a day is merged.
//!
//! As they are at rest, as long as no value of the table has needed more than its column's type can hold. From the day on
//! with the first such value each column that may have one is a cell of its value and its text ([`crate::batch::EXACT`]),
//! so that keys, comparisons and completions take both as one.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef};

use crate::batch::{
    EXACT, Origin, arrow_schema, cell_schema, exact_schema, has_untold, join, may_exceed, partial_schema,
    split,
};
use crate::change::TableSchema;
use crate::runtime::Result;

use super::super::sort::arrow_error;

/// A table's columns at rest and in memory.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) table: Arc<TableSchema>,
    /// Whether files have the column of texts.
    pub(super) exact: bool,
    /// Whether they are ORC, which cannot tell some timestamps.
    pub(super) orc: bool,
}

impl Shape {
    /// Complete rows in memory.
    pub(super) fn rows(&self) -> SchemaRef {
        self.cells(arrow_schema(&self.table.columns))
    }

    /// Rows in memory that may lack values.
    pub(super) fn partial_rows(&self) -> SchemaRef {
        self.cells(partial_schema(&self.table.columns))
    }

    fn cells(&self, schema: SchemaRef) -> SchemaRef {
        if self.exact { cell_schema(&schema, &self.table.columns) } else { schema }
    }

    /// The columns' types in memory.
    pub(super) fn types(&self) -> Vec<DataType> {
        self.rows().fields().iter().map(|field| field.data_type().clone()).collect()
    }

    /// A snapshot's file.
    pub(super) fn file(&self) -> SchemaRef {
        if self.exact { exact_schema(&self.table.columns) } else { arrow_schema(&self.table.columns) }
    }

    /// What a file, as [`Self::file`] has it, holds in each of its columns: `origins` and the column of texts.
    pub(super) fn origins_in_file(&self, origins: &[Origin]) -> Vec<Origin> {
        let texts = self.exact.then(|| Origin::column(EXACT));
        origins.iter().cloned().chain(texts).collect()
    }

    /// Rows of a file, as [`Self::file`] has them, in memory.
    pub(super) fn read(&self, batch: RecordBatch, origins: &[Origin]) -> Result<RecordBatch> {
        if self.exact { join(&batch, &self.rows(), origins) } else { Ok(batch) }
    }

    /// Whether rows of a change file, with the column of texts as their last one, have values that rows in memory lack.
    pub(super) fn needs_more(&self, batch: &RecordBatch, origins: &[Origin]) -> bool {
        let texts = batch.columns().last().is_some_and(|exact| exact.null_count() < exact.len());
        !self.exact && (texts || origins.iter().any(Origin::is_beyond) || (self.orc && has_untold(batch)))
    }

    /// Rows of a change file, with the column of texts as their last one, in memory.
    pub(super) fn read_partial(&self, batch: &RecordBatch, origins: &[Origin]) -> Result<RecordBatch> {
        if self.exact {
            return join(batch, &self.partial_rows(), origins);
        }
        batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>()).map_err(arrow_error)
    }

    /// Complete rows as they go into a file. Adds to `counts` by column how many values stand as text.
    pub(super) fn written(&self, batch: RecordBatch, counts: &mut [u64]) -> Result<RecordBatch> {
        if self.exact { split(&batch, &self.file(), counts) } else { Ok(batch) }
    }

    /// The key by which a file's rows are sorted as the format would have it: none where nulls stand in for texts.
    pub(super) fn sorted_by(&self) -> Vec<usize> {
        let plain = |index: &usize| !may_exceed(&self.table.columns[*index].column_type);
        if self.exact && !self.table.key.iter().all(plain) { Vec::new() } else { self.table.key.clone() }
    }
}
