//! Merging a day: yesterday's snapshot and the changes up to the cut, in; parts of today's, out.
//!
//! ```text
//!   change files ──> sort by (key, position) ──┐
//!       └─ key changes with values left behind ┤ moves     (only when there are any)
//!   yesterday's parts, sorted by key ──────────┴─> join ──> chunks ──> parts ──> put
//!                                                    └──> dead letters
//! ```
//!
//! Why it is exact: a change file's rows carry their position, so each key's changes are applied in commit
//! order whatever the files' division; the base is the state at the cut before, by induction. A new copy of the table
//! stands instead of a base: its rows have positions too, each just below the point at which it was read, so that of
//! each key the newest counts (see [`keyed`] for changes that come ahead of their row). Why it can be repeated: output depends on nothing but these inputs and the plan (see `publish`). Memory: the sort
//! buffer, one batch of each run or of the base, one part being written; everything else is on scratch.

mod base;
pub(super) mod blocking;
mod changes;
mod dead;
mod gather;
mod key_json;
mod keyed;
mod moves;
mod multiset;
mod order;
mod parts;
mod shape;

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt8Array, new_null_array};
use arrow_schema::DataType;

use crate::batch::{Format, Origin};
use crate::change::{Ds, Op, Position};
use crate::runtime::{Error, Result};

use super::layout::Layout;
use super::manifest::{Manifest, PartFile};
use super::scratch::Scratch;
use super::shapes::Shapes;
use super::sort::{SortLimits, Sorter, arrow_error};
use super::stage::ChangeFile;
use base::{Base, BaseCursor};
use blocking::Blocking;
use changes::{ChangeReader, Found};
use dead::DeadWriter;
use gather::Gather;
use keyed::KeyedMerge;
use moves::{Completions, Moves};
use multiset::MultisetMerge;
use order::{KeyOrder, Seq, same_order};
use parts::{PartOptions, PartWriter};
use shape::Shape;

/// Bytes of rows handed to the writer at once, unless parts are small.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// What a merge reads, and how it writes.
pub(super) struct MergeInput {
    pub(super) store: Blocking,
    pub(super) layout: Layout,
    pub(super) scratch: Arc<Scratch>,
    /// The table at the cut, with all versions before.
    pub(super) shapes: Shapes,
    pub(super) ds: Ds,
    /// The day before, and its format.
    pub(super) previous: Option<(Manifest, Format)>,
    /// A new copy of the table is among the files: nothing below the start counts, and changes below the end may come
    /// ahead of the row that they need.
    pub(super) replaced: Option<Range<Position>>,
    /// Rows for which this does not hold were left out of the table's copy.
    pub(super) left_out: Option<String>,
    /// Change files between the two cuts.
    pub(super) files: Vec<MergeFile>,
    pub(super) format: Format,
    pub(super) part_bytes_max: usize,
    pub(super) row_group_bytes: usize,
    /// Bytes that sorting may take.
    pub(super) sort_bytes_max: usize,
}

/// A change file, and which of its offsets count.
pub(super) struct MergeFile {
    pub(super) file: ChangeFile,
    pub(super) offsets: Range<u64>,
}

/// What a merge has made.
pub(super) struct Merged {
    pub(super) files: Vec<PartFile>,
    /// By column: how many values stand as text beside their column; none if the files have no column of texts.
    pub(super) exact: Option<Vec<u64>>,
    /// Records in the change files.
    pub(super) records: u64,
    /// Of them, those which no row could be made of.
    pub(super) dead_letters: u64,
    /// Objects that hold them.
    pub(super) dead_letter_objects: usize,
}

/// Merges. Waits for the store and takes its time: only for a thread of `spawn_blocking`.
pub(super) fn merge(input: &MergeInput) -> Result<Merged> {
    // A table whose files had the column of texts keeps it.
    let exact = match &input.previous {
        Some((manifest, format)) => {
            let origins = input.shapes.origins(manifest.schema.version)?;
            let orc = matches!(input.format, Format::Orc { .. });
            // What other formats tell is not looked through for what ORC does not.
            let untold =
                orc && (!matches!(format, Format::Orc { .. }) || origins.iter().any(Origin::is_untold));
            manifest.exact.is_some() || origins.iter().any(Origin::is_beyond) || untold
        }
        None => false,
    };
    if !exact && let Some(merged) = merge_as(input, false)? {
        return Ok(merged);
    }
    // With that column, no value makes it begin anew.
    merge_as(input, true)?.ok_or_else(|| Error::operator("a merge found no end; please report it"))
}

/// Merges into files with or without the column of texts; `None` when they turn out to need it.
fn merge_as(input: &MergeInput, exact: bool) -> Result<Option<Merged>> {
    let schema = input.shapes.now();
    let orc = matches!(input.format, Format::Orc { .. });
    let shape = Shape { table: Arc::clone(schema), exact, orc };
    let order = Arc::new(KeyOrder::new(&shape)?);
    let reader = ChangeReader::new(&input.shapes, shape.clone(), Arc::clone(&order));
    let limits = SortLimits::new(input.sort_bytes_max);
    let mut sorter = Sorter::new(reader.schema.clone(), Arc::clone(&input.scratch), limits);

    let truncated = input.replaced.as_ref().map(|copy| copy.start);
    let mut found = Found { truncated, ..Found::default() };
    let mut moves = None;
    input.each_batch(&reader, &mut found, |batch, found| {
        if found.moves {
            input.moves(&shape, &mut moves)?.note_moved(&batch)?;
        }
        sorter.push(batch)
    })?;
    if found.exact && !exact {
        return Ok(None);
    }

    let completions = match moves {
        Some(moves) => Some(input.resolve(&shape, moves, &reader, &order, &found)?),
        None => None,
    };
    let sorted_alike = found.truncated.is_some() || input.sorted_alike()?;
    let base = if sorted_alike {
        input.base(&shape, &found)?
    } else {
        input.each_base_row(&shape, &found, &order, &reader, |batch| sorter.push(batch))?;
        None
    };
    let base = BaseCursor::new(base, Arc::clone(&order), shape.rows());

    let changes = sorter.finish()?;
    let chunk_bytes = (input.part_bytes_max / 8).clamp(1024, CHUNK_BYTES_MAX) as u64;
    let out = Gather::new(shape.rows(), chunk_bytes, input.parts(shape));
    let scratch = Arc::clone(&input.scratch);
    let dead = DeadWriter::new(input.store.clone(), input.layout.clone(), scratch, input.ds, schema);
    let truncated = found.truncated;
    let (left_out, in_part) = (input.left_out.as_deref(), input.left_out.is_some());
    let (parts, dead) = if schema.key.is_empty() {
        let all_equal = schema.columns.iter().all(|column| !column.dropped);
        MultisetMerge { base, changes, all_equal, truncated, in_part, out, dead }.run()?
    } else {
        let settled = input.replaced.as_ref().map(|copy| copy.end);
        KeyedMerge { schema, base, changes, completions, truncated, settled, left_out, out, dead }.run()?
    };
    let (files, counts) = parts.finish()?;
    let (dead_letters, dead_letter_objects) = dead.finish()?;
    let exact = exact.then_some(counts);
    Ok(Some(Merged { files, exact, records: found.records, dead_letters, dead_letter_objects }))
}

impl MergeInput {
    /// Reads all change files, unless there is a value that the reader's shape cannot hold.
    fn each_batch(
        &self,
        reader: &ChangeReader,
        found: &mut Found,
        mut take: impl FnMut(RecordBatch, &Found) -> Result<()>,
    ) -> Result<()> {
        for MergeFile { file, offsets } in &self.files {
            if found.exact && !reader.holds_all() {
                return Ok(());
            }
            let bytes = self.store.get_existing(&file.path)?;
            reader
                .read(bytes, file.range.partition, offsets, found, &mut take)
                .map_err(|error| error.context(self.store.store().show(&file.path)))?;
        }
        Ok(())
    }

    fn moves<'a>(&self, shape: &Shape, moves: &'a mut Option<Moves>) -> Result<&'a mut Moves> {
        let made = match moves.take() {
            Some(moves) => moves,
            None => Moves::new(
                &self.scratch.path(if shape.exact { "moves-exact" } else { "moves" }),
                shape.types(),
            )?,
        };
        Ok(moves.insert(made))
    }

    fn resolve(
        &self,
        shape: &Shape,
        mut moves: Moves,
        reader: &ChangeReader,
        order: &Arc<KeyOrder>,
        found: &Found,
    ) -> Result<Completions> {
        // Each reading finds the same things; they are counted once.
        self.each_batch(reader, &mut Found::default(), |batch, _| moves.note_old_keys(&batch))?;
        if self.sorted_alike()? {
            let base = self.base(shape, found)?;
            moves.load_base(&mut BaseCursor::new(base, Arc::clone(order), shape.rows()))?;
        } else {
            self.each_base_row(shape, found, order, reader, |batch| moves.note_changes(&batch, None))?;
        }
        let truncated = found.truncated;
        self.each_batch(reader, &mut Found::default(), |batch, _| moves.note_changes(&batch, truncated))?;
        moves.replay()
    }

    /// Yesterday's rows; none when a truncate has emptied the table since.
    fn base(&self, shape: &Shape, found: &Found) -> Result<Option<Base>> {
        let Some(previous) = self.previous.clone().filter(|_| found.truncated.is_none()) else {
            return Ok(None);
        };
        let Self { store, layout, scratch, shapes, .. } = self;
        let shapes = (shapes, shape.clone());
        Base::new(store.clone(), layout.clone(), Arc::clone(scratch), shapes, previous).map(Some)
    }

    /// Whether yesterday's rows are in the order of today's.
    fn sorted_alike(&self) -> Result<bool> {
        let Some((manifest, _)) = &self.previous else { return Ok(true) };
        let origins = self.shapes.origins(manifest.schema.version)?;
        Ok(same_order(&manifest.schema, self.shapes.now(), &origins))
    }

    /// Yesterday's rows as the oldest changes: for when the key or its type is another one now, and their
    /// order no longer that of today's rows.
    fn each_base_row(
        &self,
        shape: &Shape,
        found: &Found,
        order: &KeyOrder,
        reader: &ChangeReader,
        mut take: impl FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let Some(mut base) = self.base(shape, found)? else { return Ok(()) };
        let mut row = 0;
        while let Some(batch) = base.next()? {
            take(base_rows(&batch, row, order, reader)?)?;
            row += batch.num_rows() as u64;
        }
        Ok(())
    }

    fn parts(&self, shape: Shape) -> PartWriter {
        let options = PartOptions {
            layout: self.layout.clone(),
            ds: self.ds,
            format: self.format,
            part_bytes_max: self.part_bytes_max,
            row_group_bytes: self.row_group_bytes,
        };
        PartWriter::new(self.store.clone(), options, shape)
    }
}

/// Rows of a snapshot as the oldest changes; `first` is the number of the first of them.
fn base_rows(
    batch: &RecordBatch,
    first: u64,
    order: &KeyOrder,
    reader: &ChangeReader,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    // Position zero comes before every change; the row's number keeps the order the same each time.
    let seqs = (0..rows as u64).map(|row| Seq { offset: first + row, ..Seq::default() });
    let seqs: Vec<_> = seqs.collect();
    let sort = order.sort_column(batch, 0, seqs.into_iter())?;
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(sort),
        Arc::new(UInt8Array::from(vec![Op::Read.letter() as u8; rows])),
        new_null_array(&DataType::Binary, rows),
    ];
    arrays.extend(batch.columns().iter().cloned());
    RecordBatch::try_new(reader.schema.clone(), arrays).map_err(arrow_error)
}
