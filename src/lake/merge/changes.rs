//! Reads change files into the sort: one row a change, in the shape of the cut.
//!
//! ```text
//!   change file ── FileReader (widens to the cut's shape) ──> [__sort, __op, __unchanged, table columns…]
//! ```

use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, UInt8Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;

use crate::batch::{FileReader, ReaderOptions, partial_schema};
use crate::change::{Lsn, Op, Position, TableSchema};
use crate::runtime::{Error, Result};

use super::super::sort::{SORT, arrow_error};
use super::super::stage::{FORMAT, META_COLUMNS, change_schema};
use super::order::{KeyOrder, Seq};

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
}

/// Makes sorted-schema batches of change files.
#[derive(Debug)]
pub(super) struct ChangeReader {
    order: Arc<KeyOrder>,
    columns: Vec<String>,
    file_schema: SchemaRef,
    /// Schema of the batches.
    pub(super) schema: SchemaRef,
}

impl ChangeReader {
    pub(super) fn new(schema: &TableSchema, order: Arc<KeyOrder>) -> Self {
        let own = [
            Field::new(SORT, DataType::Binary, false),
            Field::new("__op", DataType::UInt8, false),
            Field::new("__unchanged", DataType::Binary, true),
        ];
        let table = partial_schema(&schema.columns);
        let fields = own.into_iter().map(Arc::new).chain(table.fields().iter().cloned());
        Self {
            order,
            columns: schema.columns.iter().map(|c| c.name.clone()).collect(),
            file_schema: change_schema(&schema.columns),
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        }
    }

    /// Reads a change file and hands over its batches; adds to `found`. Only these offsets count.
    pub(super) fn read(
        &self,
        file: bytes::Bytes,
        partition: u32,
        offsets: &Range<u64>,
        found: &mut Found,
        mut take: impl FnMut(RecordBatch, &Found) -> Result<()>,
    ) -> Result<()> {
        let mut last_offset = None;
        for batch in FileReader::open(&FORMAT, &self.file_schema, file, &ReaderOptions::default())? {
            let rows = self.batch(&batch?, (partition, offsets), found, &mut last_offset)?;
            take(rows, found)?;
        }
        Ok(())
    }

    fn batch(
        &self,
        batch: &RecordBatch,
        (partition, offsets): (u32, &Range<u64>),
        found: &mut Found,
        last_offset: &mut Option<i64>,
    ) -> Result<RecordBatch> {
        let meta = MetaColumns::of(batch);
        let mut seqs = Vec::with_capacity(batch.num_rows());
        let mut ops = UInt8Builder::with_capacity(batch.num_rows());
        let mut unchanged = BinaryBuilder::new();
        let mut kept = Vec::with_capacity(batch.num_rows());
        let mut bits = vec![0; self.columns.len().div_ceil(8)];
        for row in 0..batch.num_rows() {
            let offset = meta.offset[row];
            if !offsets.contains(&(offset as u64)) {
                kept.push(false);
                continue;
            }
            if last_offset.replace(offset) != Some(offset) {
                found.records += 1;
            }
            let op = meta.op(row)?;
            let seq = meta.seq(row, partition, op);
            kept.push(op != Op::Truncate);
            if op == Op::Truncate {
                found.truncated = found.truncated.max(Some(seq.position));
                continue;
            }
            let lacks = self.unchanged(&meta, row, &mut bits)?;
            let moved = lacks && op == Op::Create && meta.old_key.is_valid(row);
            found.moves |= moved;
            seqs.push(seq);
            ops.append_value(op.letter() as u8 | if moved { MOVED } else { 0 });
            unchanged.append_option(lacks.then_some(&bits));
        }
        let table = batch.project(&(META_COLUMNS.len()..batch.num_columns()).collect::<Vec<_>>());
        let mut table = table.map_err(arrow_error)?;
        if kept.contains(&false) {
            table = filter_record_batch(&table, &kept.into()).map_err(arrow_error)?;
        }
        let sort = self.order.sort_column(&table, 0, seqs.iter().copied())?;
        let mut arrays: Vec<ArrayRef> =
            vec![Arc::new(sort), Arc::new(ops.finish()), Arc::new(unchanged.finish())];
        arrays.extend(table.columns().iter().cloned());
        RecordBatch::try_new(SchemaRef::clone(&self.schema), arrays).map_err(arrow_error)
    }

    /// Sets the bits of the columns whose value was not sent; whether there are any.
    fn unchanged(&self, meta: &MetaColumns<'_>, row: usize, bits: &mut [u8]) -> Result<bool> {
        if meta.unchanged.is_null(row) {
            return Ok(false);
        }
        bits.fill(0);
        let names = meta.unchanged.value(row);
        for name in names.as_string::<i32>().iter().flatten() {
            let column = self.columns.iter().position(|c| c == name).ok_or_else(|| {
                Error::operator(format!("a change file names column {name:?}, which the table does not have"))
            })?;
            bits[column / 8] |= 1 << (column % 8);
        }
        Ok(true)
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
