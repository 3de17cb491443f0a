//! Rows to file bytes and back: Parquet, ORC and gzipped CSV. Pure: bytes in, bytes out; no paths, no network.
//!
//! ```text
//!   &[Datum] ──> RowBuilder ──> RecordBatch ──> FileWriter ──> bytes   (parquet, orc, csv: write)
//!                    │  columns.rs: one buffer a column       │
//!   Datum <── datum()┴──────── RecordBatch <── FileReader <───┘        (parquet, orc, csv: read; widen)
//! ```
//!
//! * **One place to add a type**: [`data_type`] says which Arrow type stands for a
//!   [`ColumnType`](crate::change::ColumnType); a new Arrow type then needs a line in `columns` (rows in),
//!   [`datum`] (rows out) and the two CSV codecs, which the compiler or a test names.
//! * **A value is itself.** One that its column's type cannot hold stands as text in one more column ([`EXACT`]); what
//!   is none of the column's type becomes a [`ValueError`] for that row, and the builder is as it was before. Nothing is
//!   rounded, clipped or replaced.
//! * **The same batches give the same bytes.** Files hold no clock, no random id and no version of the
//!   program: repeating a step after a crash makes the same object (see [`FileWriter`]).
//! * **Memory is bounded** by the row group being written, and by one batch when reading.

mod buffers;
mod columns;
mod csv;
mod datum;
mod decimal;
mod exact;
mod format;
mod large;
mod orc;
mod parquet;
mod rows;
mod schema;
mod untold;
mod widen;

#[cfg(test)]
mod exact_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use datum::datum;
pub use exact::{EXACT, cell_schema, exact_field, exact_schema, join, join_as_told, may_exceed, split};
pub use format::{
    Compression, FileReader, FileWriter, Format, OrcCompression, ReaderOptions, Source, WriterOptions,
};
pub use large::large_columns;
pub use rows::{RowBuilder, ValueError};
pub use schema::{LIST_ELEMENT, arrow_schema, as_text, beside, data_type, name_at_rest, partial_schema};
pub use untold::has_untold;
pub use widen::Origin;
