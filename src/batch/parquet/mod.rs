//! Parquet, as every reader named in `schema.rs` takes it: see `write` for what is in a file and why.

mod read;
mod write;

pub(super) use read::ParquetReader;
pub(super) use write::ParquetWriter;
