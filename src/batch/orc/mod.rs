//! Apache ORC, written by our own hand (file version 0.12, the one which Hive, Spark, Trino and the C++ library read).
//!
//! ```text
//!   RecordBatch ──> column.rs: a writer a column ──> ints.rs, bits.rs: runs ──> stream.rs: compressed chunks
//!                      │ stats.rs, bloom.rs: a row group, a stripe, the file
//!                      └──> write.rs: index streams, data streams, stripe footer; metadata, footer, postscript (proto.rs)
//! ```
//!
//! * **Row groups.** Every [`ROW_GROUP_ROWS`] rows all runs are ended, so that a row group begins at the beginning of a
//!   run: the positions in the row index never point into one. Bits that do not fill a byte go on, and are counted.
//! * **Statistics are true or absent.** NaN makes the sum NaN and stays out of minimum and maximum; long texts have
//!   bounds cut at a character; a sum that overflows is left out. A reader that skips row groups by them is right.
//! * **Time.** Timestamps are counted in UTC, and the calendar is the proleptic Gregorian one. Readers subtract a
//!   second from a time before 1970 with more than 999,999 ns, so that the last such second of 1969 cannot be told:
//!   those stand as text ([`super::untold`]). A time of day is text, since ORC has none.
//!
//! Source: the ORC specification, version 1 (`ORCv1`), and `proto/orc_proto.proto`.

mod bits;
mod bloom;
mod cells;
mod column;
mod decode;
mod ints;
mod proto;
mod read;
mod stats;
mod stream;
mod texts;
mod types;
mod values;
mod write;

#[cfg(test)]
mod tests;

pub(super) use read::OrcReader;
pub(super) use write::OrcWriter;

/// Rows of a row group (`rowIndexStride`), the same as other writers have.
const ROW_GROUP_ROWS: usize = 10_000;
