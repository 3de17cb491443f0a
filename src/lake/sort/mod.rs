//! External sort of record batches by one binary column, in bounded memory.
//!
//! ```text
//!   push(batch) ──> buffer ──(full)──> sorted run on disk ─┐
//!                     │                sorted run on disk ─┼─(too many)─> one longer run
//!                     └──(end)─> sorted in memory ─────────┴──> k-way merge ──> (batch, row) in order
//! ```
//!
//! The column [`SORT`] decides alone, bytewise. Callers make it unique (a key, then a position), so that the
//! order does not depend on how memory happened to divide the input.

mod merge;
mod run;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BinaryArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::interleave::interleave_record_batch;

use super::scratch::Scratch;
use crate::runtime::{Error, Result};

pub use merge::Sorted;
pub use run::Run;

/// Name of the first column of every batch: `Binary`, without nulls.
pub const SORT: &str = "__sort";

/// Rows a sorted batch has at most.
const BATCH_ROWS_MAX: usize = 4096;

/// What a sort may use.
#[derive(Clone, Copy, Debug)]
pub struct SortLimits {
    /// Bytes of rows held in memory, while filling and while merging.
    pub bytes_max: usize,
    /// Bytes of one batch of a run.
    pub batch_bytes: usize,
}

impl SortLimits {
    /// Limits for about `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, batch_bytes: (bytes_max / 64).clamp(1024, 512 * 1024) }
    }

    /// Runs merged at once.
    fn fan_in(&self) -> usize {
        (self.bytes_max / self.batch_bytes).clamp(2, 64)
    }
}

/// Takes batches in any order.
#[derive(Debug)]
pub struct Sorter {
    schema: SchemaRef,
    scratch: Arc<Scratch>,
    limits: SortLimits,
    buffered: Vec<RecordBatch>,
    buffered_bytes: usize,
    runs: Vec<Run>,
}

impl Sorter {
    /// A sort of batches of that schema, whose first column is [`SORT`].
    pub fn new(schema: SchemaRef, scratch: Arc<Scratch>, limits: SortLimits) -> Self {
        Self { schema, scratch, limits, buffered: Vec::new(), buffered_bytes: 0, runs: Vec::new() }
    }

    /// Adds rows.
    pub fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        // Each row also costs its place in the order.
        self.buffered_bytes += batch.get_array_memory_size() + batch.num_rows() * 8;
        self.buffered.push(batch);
        // Sorting makes a copy batch by batch; half the limit is left for it.
        if self.buffered_bytes >= self.limits.bytes_max / 2 { self.spill() } else { Ok(()) }
    }

    /// The rows in order, as long as `check` lets it.
    pub fn finish(mut self, check: impl Fn() -> Result<()>) -> Result<Sorted> {
        let fan_in = self.limits.fan_in();
        if self.runs.is_empty() {
            let rest = std::mem::take(&mut self.buffered);
            return Sorted::new(vec![Box::new(sorted_batches(rest, self.limits.batch_bytes).into_iter())]);
        }
        self.spill()?;
        while self.runs.len() > fan_in {
            let several: Vec<_> = self.runs.drain(..fan_in).collect();
            let mut merged = Sorted::of_runs(&several)?;
            self.runs.push(merged.run(
                &self.schema,
                &self.scratch,
                self.limits,
                (|_: &[u8]| true, &check),
            )?);
        }
        Sorted::of_runs(&self.runs)
    }

    fn spill(&mut self) -> Result<()> {
        if self.buffered.is_empty() {
            return Ok(());
        }
        let mut run = Run::create(&self.schema, &self.scratch)?;
        let batches = std::mem::take(&mut self.buffered);
        self.buffered_bytes = 0;
        for batch in sorted_batches(batches, self.limits.batch_bytes) {
            run.write(&batch?)?;
        }
        self.runs.push(run.finish()?);
        Ok(())
    }
}

/// The sort column of a batch.
pub fn sort_column(batch: &RecordBatch) -> BinaryArray {
    batch.column(0).as_binary::<i32>().clone()
}

/// Rows of a batch that make about `batch_bytes`.
fn rows_per_batch(rows: usize, bytes: usize, batch_bytes: usize) -> usize {
    (batch_bytes / (bytes / rows.max(1)).max(1)).clamp(1, BATCH_ROWS_MAX)
}

/// The rows of all batches in order, as small batches made one at a time.
fn sorted_batches(
    batches: Vec<RecordBatch>,
    batch_bytes: usize,
) -> impl IntoIterator<Item = Result<RecordBatch>, IntoIter: Send> {
    let columns: Vec<_> = batches.iter().map(sort_column).collect();
    let mut order: Vec<(u32, u32)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (index, batch) in batches.iter().enumerate() {
        order.extend((0..batch.num_rows()).map(|row| (index as u32, row as u32)));
    }
    let key = |place: &(u32, u32)| columns[place.0 as usize].value(place.1 as usize);
    order.sort_unstable_by(|a, b| key(a).cmp(key(b)).then(a.cmp(b)));
    let bytes = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let size = rows_per_batch(order.len(), bytes, batch_bytes);
    let mut at = 0;
    std::iter::from_fn(move || {
        let part = &order[at..order.len().min(at + size)];
        at += part.len();
        let places: Vec<_> = part.iter().map(|(batch, row)| (*batch as usize, *row as usize)).collect();
        let sources: Vec<_> = batches.iter().collect();
        (!part.is_empty()).then(|| interleave_record_batch(&sources, &places).map_err(arrow_error))
    })
}

/// An error of Arrow's kernels: a limit of a format that our own limits keep far away, or a damaged file.
pub fn arrow_error(error: arrow_schema::ArrowError) -> Error {
    Error::operator("rows could not be rearranged in memory")
        .cause(error)
        .mend("Please report it; the log still holds every change.")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::UInt64Type;
    use arrow_array::{ArrayRef, UInt64Array};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn batch(keys: &[u64]) -> RecordBatch {
        let sort: BinaryArray = keys.iter().map(|k| Some(k.to_be_bytes())).collect();
        let columns: [(&str, ArrayRef); 2] =
            [(SORT, Arc::new(sort)), ("n", Arc::new(UInt64Array::from(keys.to_vec())))];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn sorted(seed: u64, rows: usize, bytes_max: usize) -> (Vec<u64>, Vec<u64>) {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::new(folder.path()).unwrap());
        let limits = SortLimits { bytes_max, batch_bytes: 256 };
        let mut sorter = Sorter::new(batch(&[]).schema(), scratch, limits);
        let mut all = Vec::new();
        while all.len() < rows {
            let keys: Vec<u64> = (0..random.random_range(1..60)).map(|_| random.random()).collect();
            all.extend_from_slice(&keys);
            sorter.push(batch(&keys)).unwrap();
        }
        all.sort_unstable();
        let mut sorted = sorter.finish(|| Ok(())).unwrap();
        let mut out = Vec::new();
        while let Some(cursor) = sorted.peek() {
            out.push(cursor.batch().column(1).as_primitive::<UInt64Type>().value(cursor.row()));
            sorted.advance().unwrap();
        }
        (out, all)
    }

    #[test]
    fn rows_come_out_in_order_from_memory_from_runs_and_over_several_passes() {
        for (rows, bytes_max) in [(0, 1 << 20), (500, 1 << 20), (3000, 16 << 10), (5000, 2 << 10)] {
            let (out, expected) = sorted(7, rows, bytes_max);
            assert_eq!(out, expected, "seed 7, {rows} rows in {bytes_max} bytes");
        }
    }

    #[test]
    fn scratch_files_are_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path()).unwrap();
        scratch.create("run").unwrap();
        drop(scratch);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
