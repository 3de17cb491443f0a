//! The k-way merge: a heap of cursors, the smallest first.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::{Array, BinaryArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::interleave::interleave_record_batch;

use super::super::scratch::Scratch;
use super::run::Run;
use super::{BATCH_ROWS_MAX, SortLimits, arrow_error, sort_column};
use crate::runtime::Result;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// A row of a batch.
pub struct Cursor {
    source: Batches,
    batch: Arc<RecordBatch>,
    sort: BinaryArray,
    row: usize,
}

impl Cursor {
    fn open(mut source: Batches) -> Result<Option<Self>> {
        Ok(next_batch(&mut source)?.map(|batch| Self {
            source,
            sort: sort_column(&batch),
            batch: Arc::new(batch),
            row: 0,
        }))
    }

    /// The batch which holds the row.
    pub fn batch(&self) -> &Arc<RecordBatch> {
        &self.batch
    }

    /// The row's place in it.
    pub fn row(&self) -> usize {
        self.row
    }

    /// The row's sort bytes.
    pub fn sort(&self) -> &[u8] {
        self.sort.value(self.row)
    }

    /// Moves on; `false` at the end.
    fn advance(&mut self) -> Result<bool> {
        self.row += 1;
        if self.row == self.sort.len() {
            match next_batch(&mut self.source)? {
                Some(batch) => {
                    self.sort = sort_column(&batch);
                    self.batch = Arc::new(batch);
                    self.row = 0;
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("row", &self.row).field("of", &self.sort.len()).finish_non_exhaustive()
    }
}

fn next_batch(source: &mut Batches) -> Result<Option<RecordBatch>> {
    source.find(|batch| batch.as_ref().map_or(true, |b| b.num_rows() > 0)).transpose()
}

/// Rows in order. Holds one batch of each run.
#[derive(Debug)]
pub struct Sorted {
    /// A binary heap with the smallest cursor at the front.
    heap: Vec<Cursor>,
}

impl Sorted {
    pub(super) fn new(sources: Vec<impl IntoBatches>) -> Result<Self> {
        let mut heap = Vec::with_capacity(sources.len());
        for source in sources {
            heap.extend(Cursor::open(source.into_batches())?);
        }
        let mut sorted = Self { heap };
        for at in (0..sorted.heap.len() / 2).rev() {
            sorted.sift_down(at);
        }
        Ok(sorted)
    }

    pub(super) fn of_runs(runs: &[Run]) -> Result<Self> {
        let readers: Result<Vec<_>> = runs.iter().map(|run| run.read(false, &|| Ok(()))).collect();
        Self::new(readers?)
    }

    /// The rows of several series of runs. Those of a series follow each other; each is opened when its turn comes, and
    /// removed then unless they are to `stay`; those that were kept are read through before, as long as `check` lets it.
    pub fn of_series(
        series: Vec<Vec<Run>>,
        stay: bool,
        check: impl Fn() -> Result<()> + Clone + Send + 'static,
    ) -> Result<Self> {
        let chained = |runs: Vec<Run>| {
            let check = check.clone();
            runs.into_iter().flat_map(move |run| -> Batches {
                match run.read(stay, &check) {
                    Ok(batches) => Box::new(batches),
                    Err(error) => Box::new(std::iter::once(Err(error))),
                }
            })
        };
        Self::new(series.into_iter().map(chained).collect())
    }

    /// Writes the next rows as a run, as long as their sort bytes are `within`, and as `check` lets it.
    pub fn run(
        &mut self,
        schema: &SchemaRef,
        scratch: &Scratch,
        limits: SortLimits,
        (within, check): (impl Fn(&[u8]) -> bool, impl Fn() -> Result<()>),
    ) -> Result<Run> {
        let mut run = Run::create(schema, scratch)?;
        while let Some(batch) = self.next_batch(limits.batch_bytes, BATCH_ROWS_MAX, &within)? {
            check()?;
            run.write(&batch)?;
        }
        run.finish()
    }

    /// The smallest row, if there is one left.
    pub fn peek(&self) -> Option<&Cursor> {
        self.heap.first()
    }

    /// Steps over the smallest row.
    pub fn advance(&mut self) -> Result<()> {
        if let Some(first) = self.heap.first_mut() {
            if !first.advance()? {
                self.heap.swap_remove(0);
            }
            self.sift_down(0);
        }
        Ok(())
    }

    /// The next rows as a batch of about `bytes` bytes and at most `rows_max` rows, as long as their sort bytes are
    /// `within`.
    pub(super) fn next_batch(
        &mut self,
        bytes: usize,
        rows_max: usize,
        within: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<RecordBatch>> {
        let mut sources: Vec<Arc<RecordBatch>> = Vec::new();
        let mut places = Vec::new();
        let mut taken = 0;
        while let Some(cursor) = self.peek()
            && taken < bytes
            && places.len() < rows_max
            && within(cursor.sort())
        {
            let known = sources.iter().rposition(|s| Arc::ptr_eq(s, cursor.batch()));
            let source = known.unwrap_or_else(|| {
                sources.push(Arc::clone(cursor.batch()));
                sources.len() - 1
            });
            places.push((source, cursor.row()));
            taken += cursor.batch().get_array_memory_size() / cursor.batch().num_rows().max(1);
            self.advance()?;
        }
        if places.is_empty() {
            return Ok(None);
        }
        let sources: Vec<_> = sources.iter().map(AsRef::as_ref).collect();
        interleave_record_batch(&sources, &places).map(Some).map_err(arrow_error)
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.order(child, least) == Ordering::Less {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        self.heap[a].sort().cmp(self.heap[b].sort())
    }
}

/// Anything that yields batches.
pub(super) trait IntoBatches {
    fn into_batches(self) -> Batches;
}

impl<T: Iterator<Item = Result<RecordBatch>> + Send + 'static> IntoBatches for T {
    fn into_batches(self) -> Batches {
        Box::new(self)
    }
}
