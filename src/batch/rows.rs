//! Rows in, record batches out.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, SchemaRef};

use super::columns::{ColumnBuilder, Refusal};
use super::exact::{Beyond, with_exact};
use super::schema::{arrow_schema, partial_schema};
use crate::change::{Column, ColumnType, Datum};

/// Why a row cannot be held in a file. It never shows the value's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError {
    /// The column's name.
    pub column: String,
    /// What is wrong with its value.
    pub reason: String,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {:?}: {}", self.column, self.reason)
    }
}

impl std::error::Error for ValueError {}

/// Collects rows of a table in columns.
///
/// A batch has to stay below 2 GiB, since offsets of text have 31 bits: whoever pushes finishes the batch
/// when [`Self::bytes`] has reached its limit, at the latest [`Self::BYTES_MAX`]. A row from Postgres is
/// below 1 GiB, so the next one always fits then.
pub struct RowBuilder {
    schema: SchemaRef,
    types: Vec<ColumnType>,
    columns: Vec<ColumnBuilder>,
    beyond: Beyond,
    /// Null and `Unchanged` are taken in every column.
    partial: bool,
    rows: usize,
    bytes: usize,
}

impl RowBuilder {
    /// The size at which a batch has to be finished.
    pub const BYTES_MAX: usize = 512 << 20;

    /// For complete rows, of the schema [`arrow_schema`]: a null in a column that is not nullable, and an
    /// unchanged TOAST value, are refused.
    pub fn new(columns: &[Column]) -> Self {
        Self::with(columns, arrow_schema(columns), false)
    }

    /// For rows which may lack values, of the schema [`partial_schema`]: nulls are taken in every column,
    /// and an unchanged TOAST value becomes null (the caller notes which columns those are).
    pub fn partial(columns: &[Column]) -> Self {
        Self::with(columns, partial_schema(columns), true)
    }

    fn with(columns: &[Column], schema: SchemaRef, partial: bool) -> Self {
        let types: Vec<_> = columns.iter().map(|column| column.column_type.clone()).collect();
        let columns = types.iter().map(ColumnBuilder::new).collect();
        Self { schema, types, columns, beyond: Beyond::default(), partial, rows: 0, bytes: 0 }
    }

    /// The schema of the batches, but for [`EXACT`](super::EXACT).
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Appends a row: a value for each column, in order. On an error the builder is as it was before.
    ///
    /// # Errors
    /// A [`ValueError`] names the first column whose value is none of its type: of another kind, a decimal with too many
    /// digits, an integer out of range, and what [`Self::new`] refuses.
    pub fn push(&mut self, row: &[Datum<'_>]) -> Result<(), ValueError> {
        match self.append(row) {
            Ok(bytes) => {
                self.rows += 1;
                self.bytes += bytes;
                Ok(())
            }
            Err((index, reason)) => {
                self.columns.iter_mut().for_each(|column| column.truncate(self.rows));
                self.beyond.truncate(self.rows);
                let field = self.schema.fields().get(index);
                let column = field.map_or_else(|| "(row)".to_owned(), |field| field.name().clone());
                Err(ValueError { column, reason })
            }
        }
    }

    fn append(&mut self, row: &[Datum<'_>]) -> Result<usize, (usize, String)> {
        if row.len() != self.columns.len() {
            let reason = format!("{} values for {} columns", row.len(), self.columns.len());
            return Err((self.columns.len(), reason));
        }
        let mut bytes = 0;
        for (index, (column, datum)) in self.columns.iter_mut().zip(row).enumerate() {
            if !self.partial {
                complete(self.schema.field(index), datum).map_err(|reason| (index, reason.to_owned()))?;
            }
            bytes += match column.append(datum) {
                Ok(bytes) => bytes,
                Err(Refusal::Wrong(reason)) => return Err((index, reason)),
                Err(Refusal::Beyond) => {
                    column.truncate(self.rows);
                    let null = column.append(&Datum::Null).map_err(|refusal| (index, refusal.to_string()))?;
                    null + self.beyond.push(self.rows, index, datum, &self.types[index])
                }
            };
        }
        Ok(bytes)
    }

    /// Rows pushed since the last batch.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The memory they take, roughly (validity and spare capacity are not counted). The same for the same
    /// rows, so a batch may be ended by it where files have to come out the same.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows as arrays, a column each, for whoever adds columns of his own, and [`EXACT`](super::EXACT) if it is
    /// needed; the builder is empty afterwards.
    pub fn finish_arrays(&mut self) -> (Vec<ArrayRef>, Option<ArrayRef>) {
        let exact = self.beyond.finish(self.rows, &self.schema);
        self.rows = 0;
        self.bytes = 0;
        (self.columns.iter_mut().map(ColumnBuilder::finish).collect(), exact)
    }

    /// The rows as a batch of [`Self::schema`], or of the [`exact_schema`](super::exact_schema) if a value needs it; the
    /// builder is empty afterwards.
    #[expect(
        clippy::missing_panics_doc,
        clippy::expect_used,
        reason = "the columns were made from the schema, and nulls are checked in push"
    )]
    pub fn finish(&mut self) -> RecordBatch {
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        let (mut arrays, exact) = self.finish_arrays();
        let schema = match exact {
            None => Arc::clone(&self.schema),
            Some(exact) => {
                arrays.push(exact);
                with_exact(&self.schema, self.types.iter())
            }
        };
        RecordBatch::try_new_with_options(schema, arrays, &options)
            .expect("columns are of the schema's types and of one length")
    }
}

/// Whether a complete row may hold the value, as far as missing ones go.
fn complete(field: &Field, datum: &Datum<'_>) -> Result<(), &'static str> {
    match datum {
        Datum::Unchanged => Err("an unchanged TOAST value that was not completed"),
        Datum::Null if !field.is_nullable() => Err("null, but the column is not nullable"),
        _ => Ok(()),
    }
}
