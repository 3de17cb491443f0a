//! Collects output rows by reference and copies them column by column, in chunks.
//!
//! Where a chunk ends follows from the rows alone (their number, their bytes), never from how the input was
//! divided into batches or how much memory there was: the writer's pages follow its chunks, and a snapshot
//! made twice must come out the same.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::interleave::interleave;

use super::super::sort::arrow_error;
use crate::runtime::Result;

/// Rows of a chunk.
const CHUNK_ROWS: usize = 8192;
/// Batches referred to before the rows so far are copied, which lets go of them.
const SOURCES_MAX: usize = 48;

/// A row where it stands.
#[derive(Clone, Debug)]
pub(super) struct RowRef {
    /// The batch.
    pub(super) batch: Arc<RecordBatch>,
    /// Index of the table's first column in the batch.
    pub(super) skip: usize,
    /// The row.
    pub(super) row: usize,
}

/// A value where it stands.
#[derive(Clone, Debug)]
pub(super) struct CellRef {
    pub(super) array: ArrayRef,
    pub(super) row: usize,
}

/// A whole row: one row of a batch, but for some columns.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) whole: RowRef,
    /// By column, ascending.
    pub(super) patches: Vec<(usize, CellRef)>,
}

impl Row {
    /// The value of a column.
    pub(super) fn cell(&self, column: usize) -> CellRef {
        let patch = self.patches.iter().find(|(at, _)| *at == column);
        patch.map_or_else(
            || CellRef {
                array: Arc::clone(self.whole.batch.column(self.whole.skip + column)),
                row: self.whole.row,
            },
            |(_, cell)| cell.clone(),
        )
    }
}

/// Where chunks go.
pub(super) trait Sink {
    /// Takes a chunk, with its bytes in memory as the chunk rule counts them.
    fn chunk(&mut self, chunk: RecordBatch, bytes: u64) -> Result<()>;
}

/// Rows on their way out.
#[derive(Debug)]
pub(super) struct Gather<S> {
    sink: S,
    schema: SchemaRef,
    /// Bytes with which a chunk ends.
    chunk_bytes: u64,
    sources: Vec<(Arc<RecordBatch>, usize)>,
    pieces: Vec<Piece>,
    /// By column: output row and value.
    patches: Vec<Vec<(usize, CellRef)>>,
    rows: usize,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    source: usize,
    start: usize,
    rows: usize,
}

impl<S: Sink> Gather<S> {
    pub(super) fn new(schema: SchemaRef, chunk_bytes: u64, sink: S) -> Self {
        let patches = vec![Vec::new(); schema.fields().len()];
        Self {
            sink,
            schema,
            chunk_bytes,
            sources: Vec::new(),
            pieces: Vec::new(),
            patches,
            rows: 0,
            bytes: 0,
        }
    }

    /// Adds rows of a batch that holds the table's columns from `skip` on.
    pub(super) fn slice(
        &mut self,
        batch: &Arc<RecordBatch>,
        skip: usize,
        start: usize,
        rows: usize,
    ) -> Result<()> {
        let (mut start, end) = (start, start + rows);
        while start < end {
            let room = (CHUNK_ROWS - self.rows).min(end - start);
            let columns = &batch.columns()[skip..];
            let (taken, bytes) = fitting(columns, start, room, self.chunk_bytes.saturating_sub(self.bytes));
            let source = self.source(batch, skip);
            match self.pieces.last_mut() {
                Some(last) if last.source == source && last.start + last.rows == start => last.rows += taken,
                _ => self.pieces.push(Piece { source, start, rows: taken }),
            }
            self.added(taken, bytes)?;
            start += taken;
        }
        Ok(())
    }

    /// Adds a row.
    pub(super) fn row(&mut self, row: &Row) -> Result<()> {
        if row.patches.is_empty() {
            return self.slice(&row.whole.batch, row.whole.skip, row.whole.row, 1);
        }
        let mut bytes = 0;
        for column in 0..self.schema.fields().len() {
            let cell = row.cell(column);
            bytes += range_bytes(cell.array.as_ref(), cell.row, 1);
        }
        let source = self.source(&row.whole.batch, row.whole.skip);
        for (column, cell) in &row.patches {
            self.patches[*column].push((self.rows, cell.clone()));
        }
        self.pieces.push(Piece { source, start: row.whole.row, rows: 1 });
        self.added(1, bytes)
    }

    /// Hands over what is left and gives the sink back.
    pub(super) fn finish(mut self) -> Result<S> {
        self.flush()?;
        Ok(self.sink)
    }

    fn added(&mut self, rows: usize, bytes: u64) -> Result<()> {
        self.rows += rows;
        self.bytes += bytes;
        if self.rows >= CHUNK_ROWS || self.bytes >= self.chunk_bytes {
            self.flush()
        } else if self.sources.len() >= SOURCES_MAX {
            self.compact()
        } else {
            Ok(())
        }
    }

    fn source(&mut self, batch: &Arc<RecordBatch>, skip: usize) -> usize {
        if let Some(known) = self.sources.iter().rposition(|(source, _)| Arc::ptr_eq(source, batch)) {
            return known;
        }
        self.sources.push((Arc::clone(batch), skip));
        self.sources.len() - 1
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows > 0 {
            let chunk = self.copy()?;
            let bytes = std::mem::take(&mut self.bytes);
            self.rows = 0;
            self.sink.chunk(chunk, bytes)?;
        }
        Ok(())
    }

    /// Copies the rows so far, so that the batches they stand in can go. The chunk goes on.
    fn compact(&mut self) -> Result<()> {
        let copied = Arc::new(self.copy()?);
        self.pieces.push(Piece { source: 0, start: 0, rows: self.rows });
        self.sources.push((copied, 0));
        Ok(())
    }

    /// The rows so far as one batch; nothing refers to them afterwards.
    fn copy(&mut self) -> Result<RecordBatch> {
        let pieces = std::mem::take(&mut self.pieces);
        let sources = std::mem::take(&mut self.sources);
        let patched = self.patches.iter().any(|p| !p.is_empty());
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        if let ([piece], false) = (pieces.as_slice(), patched) {
            let (batch, skip) = &sources[piece.source];
            columns.extend(batch.columns()[*skip..].iter().map(|c| c.slice(piece.start, piece.rows)));
        } else {
            let mut places = Vec::with_capacity(self.rows);
            for piece in &pieces {
                places.extend((piece.start..piece.start + piece.rows).map(|row| (piece.source, row)));
            }
            for column in 0..self.schema.fields().len() {
                let arrays: Vec<&dyn Array> =
                    sources.iter().map(|(batch, skip)| batch.column(skip + column).as_ref()).collect();
                let patches = std::mem::take(&mut self.patches[column]);
                columns.push(interleaved(arrays, &places, &patches)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), columns, &options)
            .map_err(arrow_error)
    }
}

fn interleaved<'a>(
    mut arrays: Vec<&'a dyn Array>,
    places: &[(usize, usize)],
    patches: &'a [(usize, CellRef)],
) -> Result<ArrayRef> {
    if patches.is_empty() {
        return interleave(&arrays, places).map_err(arrow_error);
    }
    let mut places = places.to_vec();
    let first = arrays.len();
    for (row, cell) in patches {
        let held = cell.array.as_ref();
        let same = |array: &&dyn Array| std::ptr::addr_eq(*array, held);
        let source = arrays[first..].iter().position(same).map_or_else(
            || {
                arrays.push(held);
                arrays.len() - 1
            },
            |at| first + at,
        );
        places[*row] = (source, cell.row);
    }
    interleave(&arrays, &places).map_err(arrow_error)
}

/// How many of up to `room` rows are taken until their bytes reach `limit`, at least one, and their bytes.
fn fitting(columns: &[ArrayRef], start: usize, room: usize, limit: u64) -> (usize, u64) {
    let bytes = |rows| columns.iter().map(|c| range_bytes(c.as_ref(), start, rows)).sum::<u64>();
    let all = bytes(room);
    if all < limit || room <= 1 {
        return (room, all);
    }
    // The first number of rows that reaches the limit; bytes only grow with rows.
    let (mut low, mut high) = (1, room);
    while low < high {
        let middle = usize::midpoint(low, high);
        if bytes(middle) >= limit { high = middle } else { low = middle + 1 }
    }
    (low, bytes(low))
}

/// Bytes of some rows of a column: additive, so that it does not matter how rows come together.
fn range_bytes(array: &dyn Array, start: usize, rows: usize) -> u64 {
    let width = match array.data_type() {
        DataType::Utf8 => {
            let offsets = array.as_string::<i32>().value_offsets();
            return text_bytes(offsets, start, rows);
        }
        DataType::Binary => {
            let offsets = array.as_binary::<i32>().value_offsets();
            return text_bytes(offsets, start, rows);
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (from, to) = (list.value_offsets()[start], list.value_offsets()[start + rows]);
            return 4 * rows as u64
                + range_bytes(list.values().as_ref(), from as usize, (to - from) as usize);
        }
        DataType::Struct(_) => {
            let cells = array.as_struct().columns().iter();
            return cells.map(|cells| range_bytes(cells.as_ref(), start, rows)).sum();
        }
        other => other.primitive_width().unwrap_or(1),
    };
    (width * rows) as u64
}

fn text_bytes(offsets: &[i32], start: usize, rows: usize) -> u64 {
    4 * rows as u64 + (offsets[start + rows] - offsets[start]) as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::StringArray;
    use arrow_schema::{Field, Schema};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[derive(Default)]
    struct Chunks(Vec<RecordBatch>);

    impl Sink for Chunks {
        fn chunk(&mut self, chunk: RecordBatch, _: u64) -> Result<()> {
            self.0.push(chunk);
            Ok(())
        }
    }

    /// The texts as chunks, handed in through batches of random sizes, by slices and by rows.
    fn chunks(texts: &[String], seed: u64) -> Vec<Vec<String>> {
        let mut random = StdRng::seed_from_u64(seed);
        let schema = Arc::new(Schema::new(vec![Field::new("t", DataType::Utf8, false)]));
        let mut gather = Gather::new(Arc::clone(&schema), 1 << 20, Chunks::default());
        let mut at = 0;
        while at < texts.len() {
            let rows = random.random_range(1..=(texts.len() - at).min(5000));
            let column: ArrayRef = Arc::new(StringArray::from(texts[at..at + rows].to_vec()));
            let batch =
                Arc::new(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::clone(&column)]).unwrap());
            let split = random.random_range(0..=rows);
            gather.slice(&batch, 0, 0, split).unwrap();
            for row in split..rows {
                let patches = if random.random() {
                    vec![(0, CellRef { array: Arc::clone(&column), row })]
                } else {
                    Vec::new()
                };
                let whole = RowRef {
                    batch: Arc::clone(&batch),
                    skip: 0,
                    row: if patches.is_empty() { row } else { 0 },
                };
                gather.row(&Row { whole, patches }).unwrap();
            }
            at += rows;
        }
        let chunks = gather.finish().unwrap().0;
        let texts =
            |c: &RecordBatch| c.column(0).as_string::<i32>().iter().map(|t| t.unwrap().to_owned()).collect();
        chunks.iter().map(texts).collect()
    }

    #[test]
    fn chunks_end_in_the_same_places_however_rows_come_in() {
        let mut random = StdRng::seed_from_u64(1);
        let texts: Vec<String> = (0..20_000)
            .map(|i| "x".repeat(if i % 1000 == 0 { 500_000 } else { random.random_range(0..300) }))
            .collect();
        let first = chunks(&texts, 2);
        assert!(first.concat() == texts, "rows were lost or changed places");
        assert!(first.len() > 2, "{} chunks", first.len());
        for seed in 3..6 {
            let other = chunks(&texts, seed);
            assert!(first == other, "seed {seed}");
        }
    }
}
