//! Merging a day: yesterday's snapshot and the changes up to the cut, in; parts of today's, out.
//!
//! ```text
//!   change files ──> sort by (key, position) ──> divided by part ──┐
//!       ├─ key changes with values left behind ┤ moves             │        (only when there are any)
//!       └─> division: which parts have changes │                   │
//!   yesterday's parts, sorted by key           │                   │
//!       ├─ with changes ───────────────────────┴───────────────────┴─> join ──> chunks ──> parts ──> put
//!       └─ without ──> copied                                            └──> dead letters
//! ```
//!
//! Why it is exact: a change file's rows carry their position, so each key's changes are applied in commit
//! order whatever the files' division; the base is the state at the cut before, by induction. A new copy of the table
//! stands instead of a base: its rows have positions too, each just below the point at which it was read, so that of
//! each key the newest counts (see [`keyed`] for changes that come ahead of their row). [`division`] argues why a part
//! that is copied has nothing to be changed; the bounds of all parts are compared once more before they are published.
//! Why it can be repeated: output depends on nothing but these inputs and the plan (see `publish`), nor on how many
//! stretches are made at once. Memory: the sort buffer, then for each stretch at work one batch of each run and of the
//! base and a row group being written, and one part on its way into the lake; everything else is on scratch.

mod at_once;
mod base;
pub(super) mod blocking;
mod changes;
mod dead;
mod division;
mod gather;
mod join;
mod key_json;
mod keyed;
mod moves;
mod multiset;
mod order;
mod parts;
mod place;
pub(super) mod premerged;
mod shape;
pub(super) mod tail;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, RecordBatch, UInt8Array, new_null_array};
use arrow_schema::DataType;

use crate::batch::{Format, Origin};
use crate::change::{Ds, Op, Position};
use crate::runtime::{Error, Result};

use super::layout::Layout;
use super::manifest::{Manifest, PartFile, Work};
use super::scratch::{Scratch, is_of_scratch};
use super::shapes::Shapes;
use super::sort::{SortLimits, Sorter, arrow_error, sort_column};
use super::stage::ChangeFile;
use base::{Base, BaseCursor};
use blocking::Blocking;
use changes::{ChangeReader, Found, op_and_unchanged};
use division::{Division, Run, bounds};
use join::{Changes, Join, by_part};
use moves::{Completions, Moves};
use order::{KeyOrder, Seq, same_bytes, same_in_cells, same_order};
use premerged::room::Room;
use premerged::{Premerged, Ready, Taken};
use shape::Shape;
use tail::{Deferral, Tail};

pub(super) use division::bounds as part_bounds;
pub(super) use order::KEY_ORDER;

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
    pub(super) previous: Option<(Arc<Manifest>, Format)>,
    /// Whether its parts without changes may be taken over, but for their shape.
    pub(super) carry: bool,
    /// A new copy of the table is among the files: nothing below the start counts, and changes below the end may come
    /// ahead of the row that they need.
    pub(super) replaced: Option<Range<Position>>,
    /// Rows for which this does not hold were left out of the table's copy.
    pub(super) left_out: Option<String>,
    /// Change files between the two cuts.
    pub(super) files: Vec<MergeFile>,
    /// The historic tail of the day before, where there is one.
    pub(super) tail: Option<Tail>,
    pub(super) format: Format,
    pub(super) part_bytes_max: usize,
    pub(super) row_group_bytes: usize,
    /// Bytes that sorting may take.
    pub(super) sort_bytes_max: usize,
    /// Stretches that are made at once.
    pub(super) threads: usize,
    /// What was made of days before they end.
    pub(super) room: Room,
}

/// A change file, and which of its offsets count.
#[derive(Clone, Debug)]
pub(super) struct MergeFile {
    pub(super) file: ChangeFile,
    pub(super) offsets: Range<u64>,
}

/// What a merge has made.
pub(super) struct Merged {
    pub(super) files: Vec<PartFile>,
    /// Whether the files have the column of texts.
    pub(super) exact: bool,
    pub(super) work: Work,
    /// What was made before the cut.
    pub(super) premerged: Taken,
    /// Records in the change files.
    pub(super) records: u64,
    /// Of them, those which no row could be made of.
    pub(super) dead_letters: u64,
    /// Objects that hold them.
    pub(super) dead_letter_objects: usize,
    /// What was done about the historic tail.
    pub(super) deferral: Deferral,
}

/// Merges. Waits for the store and takes its time: only for a thread of `spawn_blocking`.
pub(super) fn merge(input: &MergeInput, premerged: Option<Premerged>) -> Result<Merged> {
    let exact = input.begins_exact()?;
    let (table, ds) = (&input.shapes.now().name, input.ds);
    let premerged = premerged.filter(|_| input.tail.is_none());
    match premerged.map(|premerged| premerged.ready(input, exact)) {
        Some(Ok(ready)) => match merge_as(input, (exact, false), Some(ready)) {
            Ok(Some(merged)) => return Ok(merged),
            Ok(None) => {
                tracing::info!(%table, %ds, "what was made before the cut has no place for its last changes");
            }
            // Of the lake, the day would meet it again; and nothing was taken from scratch that was not as it was written.
            Err(error) if !is_of_scratch(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%table, %ds, %error, "what was made before the cut is lost: the day is made without");
            }
        },
        Some(Err(Some(reason))) => {
            tracing::info!(%table, %ds, reason, "what was made before the cut is of no use");
        }
        Some(Err(None)) | None => {}
    }
    let merged = merge_all(input, exact);
    match &merged {
        // What other tables have there is worth less than a day.
        Err(error) if is_of_scratch(error) && input.room.give() => {
            tracing::warn!(%table, %ds, %error, "what was made of the next days is given up for room: the day is made again");
            merge_all(input, exact)
        }
        _ => merged,
    }
}

fn merge_all(input: &MergeInput, exact: bool) -> Result<Merged> {
    if input.can_defer(exact)
        && let Some(merged) = merge_as(input, (exact, true), None)?
    {
        return Ok(merged);
    }
    if !exact && let Some(merged) = merge_as(input, (false, false), None)? {
        return Ok(merged);
    }
    // With that column, no value makes it begin anew.
    merge_as(input, (true, false), None)?
        .ok_or_else(|| Error::operator("a merge found no end; please report it"))
}

/// What all steps of a merge go by.
struct Context {
    shape: Shape,
    order: Arc<KeyOrder>,
    reader: ChangeReader,
    limits: SortLimits,
}

impl Context {
    fn new(input: &MergeInput, exact: bool, defers: bool) -> Result<Self> {
        let orc = matches!(input.format, Format::Orc { .. });
        let shape = Shape { table: Arc::clone(input.shapes.now()), exact, orc };
        let order = Arc::new(KeyOrder::new(&shape)?);
        let reader =
            ChangeReader::new(&input.shapes, shape.clone(), Arc::clone(&order), input.route(exact, defers)?);
        Ok(Self { shape, order, reader, limits: SortLimits::new(input.sort_bytes_max) })
    }

    fn sorter(&self, input: &MergeInput) -> Sorter {
        Sorter::new(self.reader.schema.clone(), Arc::clone(&input.scratch), self.limits)
    }
}

/// What the change files hold.
struct Gathered {
    found: Found,
    /// What they touch.
    touched: Division,
    /// What is touched by rows of which values were left behind.
    moved: Division,
    sorter: Sorter,
}

/// Reads of each change file what is `taken` of it; `None` when their rows are of more than so many bytes.
fn gather(
    input: &MergeInput,
    context: &Context,
    mut touched: Division,
    taken: impl Fn(&MergeFile) -> Option<MergeFile>,
    bytes_max: u64,
) -> Result<Option<Gathered>> {
    let mut in_memory = 0;
    let truncated = input.replaced.as_ref().map(|copy| copy.start);
    let mut found = Found { truncated, ..Found::default() };
    let (mut sorter, mut moved) = (context.sorter(input), touched.clone());
    let read = input.each_batch(&context.reader, &mut found, taken, |batch, found| {
        in_memory += batch.get_array_memory_size() as u64;
        if in_memory > bytes_max {
            return Err(Error::retry("there is no room for the changes"));
        }
        for (row, sort) in sort_column(&batch).iter().flatten().enumerate() {
            touched.touch(Seq::split(sort).0);
            if found.moves && op_and_unchanged(&batch, row).1 {
                moved.touch(Seq::split(sort).0);
            }
        }
        sorter.push(batch)
    });
    if in_memory > bytes_max {
        return Ok(None);
    }
    read?;
    Ok(Some(Gathered { found, touched, moved, sorter }))
}

/// Merges into files with or without the column of texts, and with the historic tail left as it is or not; `None` when the
/// one turns out to be needed or the other cannot be, or when what was made `ready` before is of no use.
fn merge_as(
    input: &MergeInput,
    (exact, defers): (bool, bool),
    mut ready: Option<Ready>,
) -> Result<Option<Merged>> {
    // Of an attempt before this one.
    input.scratch.empty()?;
    let context = Context::new(input, exact, defers)?;
    let Context { shape, order, reader, .. } = &context;
    let mut division = match &ready {
        Some(ready) => ready.division.clone(),
        None => input.division(exact)?,
    };
    if defers {
        division.keep(input.tail.as_ref().map_or(0, |tail| tail.parts));
    }
    let new = |file: &MergeFile| match &ready {
        Some(ready) => ready.read.rest_of(file),
        None => Some(file.clone()),
    };
    let Some(Gathered { mut found, touched, mut sorter, .. }) =
        gather(input, &context, division.untouched(), new, u64::MAX)?
    else {
        return Ok(None);
    };
    if defers && !input.can_defer_all(&found, exact) {
        return Ok(None);
    }
    if (found.exact && !exact) || (ready.is_some() && found.truncated.is_some()) {
        return Ok(None);
    }
    let deferral = input.deferral(&found, defers)?;
    found.moves |= ready.as_ref().is_some_and(|ready| ready.moves);
    division.touch_all(&touched);
    if found.truncated.is_some() {
        division = Division::whole(&[]);
    }
    let runs = division.runs();

    let completions = if found.moves {
        Some(Mutex::new(input.resolve(shape, (reader, order), (&found, &runs))?))
    } else {
        None
    };
    let sorted_alike = found.truncated.is_some() || input.sorted_alike(exact)?;
    if !sorted_alike {
        input.each_base_row(shape, &found, order, reader, |batch| sorter.push(batch))?;
    }
    let changes = sorter.finish(|| input.store.check())?;
    let mut made = BTreeMap::new();
    let changes = if let Some(ready) = &mut ready {
        found.records += ready.records;
        let last = by_part(changes, &division, (input, reader), u64::MAX)?.unwrap_or_default();
        made = ready.made(&touched, &runs);
        Changes::Rounds(ready.rounds(last))
    } else if runs.iter().filter(|run| matches!(run, Run::Rewritten(_))).count() > 1 {
        Changes::Rounds(by_part(changes, &division, (input, reader), u64::MAX)?.into_iter().collect())
    } else {
        Changes::Whole(changes)
    };
    let premerged = Taken {
        changes: ready.as_ref().map_or(0, |ready| ready.records),
        files: made.values().flatten().count() as u64,
        bytes: made.values().flatten().map(|part| part.file.bytes).sum(),
    };
    let join = Join { input, shape, order, found: &found, division: &division, completions, sorted_alike };
    let joined = join.run(&runs, changes, made)?;
    if !shape.table.key.is_empty() {
        bounds(&joined.files)?;
    }
    let bytes = input.each_file(&reader.route).map(|(file, _)| file.file.bytes).sum();
    let work = input.work(&joined.files, bytes, &runs);
    Ok(Some(Merged {
        files: joined.files,
        exact,
        work,
        premerged,
        records: found.records,
        dead_letters: joined.dead_letters,
        dead_letter_objects: joined.dead_letter_objects,
        deferral,
    }))
}

impl MergeInput {
    /// Whether files have the column of texts from the beginning: a table whose files had it keeps it.
    pub(super) fn begins_exact(&self) -> Result<bool> {
        let Some((manifest, format)) = &self.previous else { return Ok(false) };
        let origins = self.shapes.origins(manifest.schema.version)?;
        let orc = matches!(self.format, Format::Orc { .. });
        // What other formats tell is not looked through for what ORC does not.
        let untold = orc && (!matches!(format, Format::Orc { .. }) || origins.iter().any(Origin::is_untold));
        Ok(manifest.exact.is_some() || origins.iter().any(Origin::is_beyond) || untold)
    }

    /// Yesterday's parts, of which those may be taken over that are as today's would be.
    fn division(&self, exact: bool) -> Result<Division> {
        let Some((manifest, _)) = &self.previous else { return Ok(Division::whole(&[])) };
        let now = self.shapes.now();
        if manifest.exact.is_some() != exact {
            return Ok(Division::whole(&manifest.files));
        }
        if self.carry && manifest.schema == **now {
            return Division::new(&manifest.files, !now.key.is_empty(), self.part_bytes_max);
        }
        let by_these_bytes = manifest.written.as_ref().is_some_and(|written| written.key_order == KEY_ORDER);
        let origins = self.shapes.origins(manifest.schema.version)?;
        if by_these_bytes && same_bytes(now, &origins) && same_order(&manifest.schema, now, &origins) {
            return Division::all(&manifest.files, self.part_bytes_max);
        }
        Ok(Division::whole(&manifest.files))
    }

    /// How many parts yesterday has.
    fn files_before(&self) -> usize {
        self.previous.as_ref().map_or(0, |(manifest, _)| manifest.files.len())
    }

    /// Some of yesterday's parts.
    fn files(&self, parts: &Range<usize>) -> &[PartFile] {
        let files = self.previous.as_ref().map(|(manifest, _)| manifest.files.as_slice());
        files.and_then(|files| files.get(parts.clone())).unwrap_or_default()
    }

    fn work(&self, files: &[PartFile], bytes_changes: u64, runs: &[Run]) -> Work {
        let mut work = Work { bytes_read: bytes_changes, ..Work::default() };
        for run in runs {
            if let Run::Rewritten(parts) = run {
                work.bytes_read += self.files(parts).iter().map(|file| file.bytes).sum::<u64>();
            }
        }
        for file in files {
            let (files, bytes) = match file.copied_from {
                Some(_) => (&mut work.files_copied, &mut work.bytes_copied),
                None => (&mut work.files_written, &mut work.bytes_written),
            };
            *files += 1;
            *bytes += file.bytes;
        }
        work
    }

    /// Reads of each change file what is `taken` of it, unless there is a value that the reader's shape cannot hold.
    fn each_batch(
        &self,
        reader: &ChangeReader,
        found: &mut Found,
        taken: impl Fn(&MergeFile) -> Option<MergeFile>,
        mut take: impl FnMut(RecordBatch, &Found) -> Result<()>,
    ) -> Result<()> {
        for (of, late) in self.each_file(&reader.route) {
            let Some(of) = taken(of) else { continue };
            if found.exact && !reader.holds_all() {
                return Ok(());
            }
            let path = &of.file.path;
            let bytes = self.store.get_existing(path)?;
            reader
                .read(bytes, &of, late, found, &mut take)
                .map_err(|error| error.context(self.store.store().show(path)))?;
        }
        Ok(())
    }

    fn resolve(
        &self,
        shape: &Shape,
        (reader, order): (&ChangeReader, &Arc<KeyOrder>),
        (found, runs): (&Found, &[Run]),
    ) -> Result<Completions> {
        let mut moves = Moves::new(&self.scratch.path("moves"), shape.types())?;
        let whole = |file: &MergeFile| Some(file.clone());
        // Each reading finds the same things; they are counted once.
        self.each_batch(reader, &mut Found::default(), whole, |batch, _| moves.note_moved(&batch))?;
        self.each_batch(reader, &mut Found::default(), whole, |batch, _| moves.note_old_keys(&batch))?;
        if self.sorted_alike(shape.exact)? {
            // A key that was left is one that changed: its row is in none of the others.
            let rewritten = |run: &Run| match run {
                Run::Rewritten(parts) => parts.clone(),
                Run::Carried(_) => 0..0,
            };
            let base = self.base(shape, found, runs.iter().flat_map(rewritten))?;
            moves.load_base(&mut BaseCursor::new(base, Arc::clone(order), shape.rows()))?;
        } else {
            self.each_base_row(shape, found, order, reader, |batch| moves.note_changes(&batch, None))?;
        }
        let truncated = found.truncated;
        self.each_batch(reader, &mut Found::default(), whole, |batch, _| {
            moves.note_changes(&batch, truncated)
        })?;
        moves.replay()
    }

    /// The rows of some of yesterday's parts; none when a truncate has emptied the table since.
    fn base(
        &self,
        shape: &Shape,
        found: &Found,
        parts: impl IntoIterator<Item = usize>,
    ) -> Result<Option<Base>> {
        let Some(previous) = self.previous.clone().filter(|_| found.truncated.is_none()) else {
            return Ok(None);
        };
        let Self { store, layout, scratch, shapes, .. } = self;
        let shapes = (shapes, shape.clone());
        Base::new(store.clone(), layout.clone(), Arc::clone(scratch), shapes, previous, parts).map(Some)
    }

    /// Whether yesterday's rows are in the order of today's, in files with or without the column of texts.
    fn sorted_alike(&self, exact: bool) -> Result<bool> {
        let Some((manifest, _)) = &self.previous else { return Ok(true) };
        let origins = self.shapes.origins(manifest.schema.version)?;
        if manifest.exact.is_some() != exact && !same_in_cells(self.shapes.now()) {
            return Ok(false);
        }
        Ok(same_order(&manifest.schema, self.shapes.now(), &origins))
    }

    /// Yesterday's rows as the oldest changes: for when the key, its type or how its values stand in memory is another
    /// one now, and their order no longer that of today's rows.
    fn each_base_row(
        &self,
        shape: &Shape,
        found: &Found,
        order: &KeyOrder,
        reader: &ChangeReader,
        mut take: impl FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let Some((manifest, _)) = &self.previous else { return Ok(()) };
        let Some(mut base) = self.base(shape, found, 0..manifest.files.len())? else { return Ok(()) };
        let mut row = 0;
        while let Some(batch) = base.next()? {
            take(base_rows(&batch, row, order, reader)?)?;
            row += batch.num_rows() as u64;
        }
        Ok(())
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
