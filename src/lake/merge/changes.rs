//! Reads change files into the sort: one row a change, in the shape of the cut.
//!
//! ```text
//!   change file ── FileReader (of its version, to the cut's shape) ──> [__sort, __op, __unchanged, table columns…]
//! ```
//!
//! All rows of a change file are of one version of the table (staging sees to it, and it is checked here), so what they
//! hold in columns that came later is the same for all: [`Shapes`] says it once a file. A value that was not sent is
//! missing in every column which takes its values from that one.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, UInt8Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;

use crate::batch::{FileReader, Origin, ReaderOptions, name_at_rest};
use crate::change::{Lsn, Op, Position, SchemaVersion};
use crate::runtime::{Error, Result};

use super::super::shapes::Shapes;
use super::super::sort::{SORT, arrow_error};
use super::super::stage::{FORMAT, META_COLUMNS, SCHEMA_COLUMN, change_schema, in_change_file};
use super::MergeFile;
use super::order::{KeyOrder, Seq};
use super::shape::Shape;
use super::tail::Route;

/// Columns before the table's in a sorted batch: sort bytes, op, unchanged columns.
pub(super) const SKIP: usize = 3;
/// Marks a row whose unchanged values stand in another key's row.
pub(super) const MOVED: u8 = 0x80;

/// What a table's change files hold, besides their rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Records (the two halves of an update count once).
    pub(super) records: u64,
    /// The last truncate: nothing before it counts.
    pub(super) truncated: Option<Position>,
    /// Whether there is a key change with unchanged values.
    pub(super) moves: bool,
    /// Whether there is a value that its column's type cannot hold.
    pub(super) exact: bool,
    /// Of the records, those that are deferred ([`super::tail`]).
    pub(super) deferred: u64,
    /// Records that were deferred before; they are not among [`Self::records`].
    pub(super) late: u64,
    /// Rows that came: above the bound of the historic tail, and below it.
    pub(super) came: (u64, u64),
}

/// Makes sorted-schema batches of change files.
#[derive(Debug)]
pub(super) struct ChangeReader {
    order: Arc<KeyOrder>,
    shapes: Shapes,
    shape: Shape,
    file_schema: SchemaRef,
    /// Schema of the batches.
    pub(super) schema: SchemaRef,
    /// Which rows count.
    pub(super) route: Route,
}

impl ChangeReader {
    pub(super) fn new(shapes: &Shapes, shape: Shape, order: Arc<KeyOrder>, route: Route) -> Self {
        let own = [
            Field::new(SORT, DataType::Binary, false),
            Field::new("__op", DataType::UInt8, false),
            Field::new("__unchanged", DataType::Binary, true),
        ];
        let table = shape.partial_rows();
        let fields = own.into_iter().map(Arc::new).chain(table.fields().iter().cloned());
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let (shapes, file_schema) = (shapes.clone(), change_schema(&shape.table.columns));
        Self { order, shapes, shape, file_schema, schema, route }
    }

    /// Whether its batches have a place for every value.
    pub(super) const fn holds_all(&self) -> bool {
        self.shape.exact
    }

    /// Reads a change file and hands over its batches; adds to `found`. `late`: it is from before yesterday's cut.
    pub(super) fn read(
        &self,
        file: bytes::Bytes,
        of: &MergeFile,
        late: bool,
        found: &mut Found,
        mut take: impl FnMut(RecordBatch, &Found) -> Result<()>,
    ) -> Result<()> {
        let Some(version) = version_of(&self.file_schema, file.clone())? else { return Ok(()) };
        let origins = self.shapes.origins(version)?;
        let options = ReaderOptions { origins: Some(in_change_file(&origins)), ..ReaderOptions::default() };
        let of_version = OfVersion { version, origins: &origins };
        let (mut last_offset, mut told) = (None, self.route.told(&file, of, late)?);
        for batch in FileReader::open(&FORMAT, &self.file_schema, file, &options)? {
            let (rows, first) = self.batch(&batch?, &of_version, (of, late), found, &mut last_offset)?;
            take(self.route.taken(rows, &first, (late, &mut told), found)?, found)?;
        }
        Ok(())
    }

    /// A batch's rows, and for each whether it is the first one of its record.
    fn batch(
        &self,
        batch: &RecordBatch,
        of_version: &OfVersion<'_>,
        (of, late): (&MergeFile, bool),
        found: &mut Found,
        last_offset: &mut Option<i64>,
    ) -> Result<(RecordBatch, Vec<bool>)> {
        let (partition, offsets) = (of.file.range.partition, &of.offsets);
        let meta = MetaColumns::of(batch);
        let mut seqs = Vec::with_capacity(batch.num_rows());
        let mut ops = UInt8Builder::with_capacity(batch.num_rows());
        let mut unchanged = BinaryBuilder::new();
        let mut kept = Vec::with_capacity(batch.num_rows());
        let mut firsts = Vec::with_capacity(batch.num_rows());
        let mut bits = vec![0; of_version.origins.len().div_ceil(8)];
        if let Some(other) = meta.schema.iter().find(|version| **version != of_version.version.0 as i32) {
            return Err(Error::operator(format!(
                "a change file has rows of versions {} and {other} of the table; one is expected",
                of_version.version.0
            )));
        }
        for row in 0..batch.num_rows() {
            let offset = meta.offset[row];
            if !offsets.contains(&(offset as u64)) {
                kept.push(false);
                continue;
            }
            let first = last_offset.replace(offset) != Some(offset);
            found.records += u64::from(first && !late);
            let op = meta.op(row)?;
            let seq = meta.seq(row, partition, op);
            kept.push(op != Op::Truncate);
            if op == Op::Truncate {
                found.truncated = found.truncated.max(Some(seq.position));
                continue;
            }
            let lacks = of_version.unchanged(&meta, row, &mut bits);
            let moved = lacks && op == Op::Create && meta.old_key.is_valid(row);
            found.moves |= moved;
            seqs.push(seq);
            firsts.push(first);
            ops.append_value(op.letter() as u8 | if moved { MOVED } else { 0 });
            unchanged.append_option(lacks.then_some(&bits));
        }
        let table = batch.project(&(META_COLUMNS.len()..batch.num_columns()).collect::<Vec<_>>());
        let mut table = table.map_err(arrow_error)?;
        if kept.contains(&false) {
            table = filter_record_batch(&table, &kept.into()).map_err(arrow_error)?;
        }
        found.exact |= self.shape.needs_more(&table, of_version.origins);
        let table = self.shape.read_partial(&table, of_version.origins)?;
        let sort = self.order.sort_column(&table, 0, seqs.iter().copied())?;
        let mut arrays: Vec<ArrayRef> =
            vec![Arc::new(sort), Arc::new(ops.finish()), Arc::new(unchanged.finish())];
        arrays.extend(table.columns().iter().cloned());
        let rows = RecordBatch::try_new(SchemaRef::clone(&self.schema), arrays).map_err(arrow_error)?;
        Ok((rows, firsts))
    }
}

/// The version that all rows of a change file have; none if it has no rows.
fn version_of(schema: &SchemaRef, file: bytes::Bytes) -> Result<Option<SchemaVersion>> {
    let options =
        ReaderOptions { batch_rows: 1, columns: Some(vec![SCHEMA_COLUMN]), ..ReaderOptions::default() };
    let first = FileReader::open(&FORMAT, schema, file, &options)?.next().transpose()?;
    let first = first.filter(|batch| batch.num_rows() > 0);
    Ok(first.map(|batch| SchemaVersion(batch.column(0).as_primitive::<Int32Type>().value(0) as u32)))
}

/// What a change file's rows hold in the table's columns.
struct OfVersion<'a> {
    version: SchemaVersion,
    origins: &'a [Origin],
}

impl OfVersion<'_> {
    /// Sets the bits of the columns whose value was not sent; whether there are any.
    fn unchanged(&self, meta: &MetaColumns<'_>, row: usize, bits: &mut [u8]) -> bool {
        if meta.unchanged.is_null(row) {
            return false;
        }
        bits.fill(0);
        let names = meta.unchanged.value(row);
        for name in names.as_string::<i32>().iter().flatten() {
            for (column, origin) in self.origins.iter().enumerate() {
                if matches!(origin, Origin::Column { name: from, .. } if *from == name_at_rest(name)) {
                    bits[column / 8] |= 1 << (column % 8);
                }
            }
        }
        // None, when what was not sent is a column of the past under another's name.
        bits.iter().any(|byte| *byte != 0)
    }
}

/// Columns of which a bitmap has the bit set.
pub(super) fn columns_in(bits: &[u8]) -> impl Iterator<Item = usize> {
    (0..bits.len() * 8).filter(|column| bits[column / 8] & (1 << (column % 8)) != 0)
}

/// The columns about the change, of a sorted batch.
pub(super) fn op_and_unchanged(batch: &RecordBatch, row: usize) -> (Option<Op>, bool, Option<&[u8]>) {
    let op = batch.column(1).as_primitive::<arrow_array::types::UInt8Type>().value(row);
    let unchanged: &BinaryArray = batch.column(2).as_binary::<i32>();
    let bits = unchanged.is_valid(row).then(|| unchanged.value(row));
    (Op::from_letter(op & !MOVED), op & MOVED != 0, bits)
}

struct MetaColumns<'a> {
    op: &'a arrow_array::StringArray,
    timeline: &'a [i32],
    commit_lsn: &'a [i64],
    ordinal: &'a [i64],
    offset: &'a [i64],
    schema: &'a [i32],
    unchanged: &'a arrow_array::ListArray,
    old_key: &'a dyn Array,
}

impl<'a> MetaColumns<'a> {
    /// In the order of [`META_COLUMNS`].
    fn of(batch: &'a RecordBatch) -> Self {
        let long = |index: usize| batch.column(index).as_primitive::<Int64Type>().values().as_ref();
        Self {
            op: batch.column(0).as_string(),
            timeline: batch.column(1).as_primitive::<Int32Type>().values(),
            commit_lsn: long(2),
            ordinal: long(3),
            offset: long(4),
            schema: batch.column(SCHEMA_COLUMN).as_primitive::<Int32Type>().values(),
            unchanged: batch.column(7).as_list(),
            old_key: batch.column(8).as_ref(),
        }
    }

    fn op(&self, row: usize) -> Result<Op> {
        let letter = self.op.value(row);
        let op = letter.bytes().next().and_then(Op::from_letter);
        op.ok_or_else(|| Error::operator(format!("a change file has the unknown operation {letter:?}")))
    }

    fn seq(&self, row: usize, partition: u32, op: Op) -> Seq {
        Seq {
            position: Position {
                timeline: self.timeline[row] as u32,
                commit_lsn: Lsn(self.commit_lsn[row] as u64),
                ordinal: self.ordinal[row] as u64,
            },
            offset: self.offset[row] as u64,
            partition,
            half: u8::from(op != Op::Delete),
        }
    }
}
