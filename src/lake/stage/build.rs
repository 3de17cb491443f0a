//! Makes a change file of its parts: one shape, in the order of the key, the same bytes whatever the parts were.
//!
//! ```text
//!   part (version 2) ──(as rows of version 3)──┐
//!   part (version 3) ─────────────────────────┼──> by key, equal ones as in the log ──> batches ──> file
//!   rows in memory (version 3) ───────────────┘
//! ```
//!
//! The file has the newest of its rows' versions. Rows of an older one are read as a merge would read them, by the same
//! [`Shapes`]: what it makes of them later, in a shape that is newer still, is the same with this step on the way as without,
//! since a shape says for each column which one, and through which types, its values came from.
//!
//! Two who make the same file have divided its rows into parts and batches differently. Its bytes follow from the
//! sizes of the batches that are written, so these are measured anew, row by row.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Int32Array, ListArray, RecordBatch};
use arrow_row::{RowConverter, Rows as KeyRows, SortField};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use arrow_select::interleave::interleave_record_batch;
use bytes::Bytes;

use crate::batch::{
    EXACT, FileReader, LIST_ELEMENT, Origin, ReaderOptions, cell_schema, exact_field, join_as_told,
    name_at_rest, partial_schema, split,
};
use crate::change::{SchemaVersion, TableSchema};
use crate::runtime::{Error, Result};

use super::super::layout::ChangeRange;
use super::super::shapes::Shapes;
use super::super::sort::arrow_error;
use super::dead::read_lines;
use super::file::{FORMAT, Rows, Sealed, encode};
use super::rows::{META_COLUMNS, OFFSET_COLUMN, SCHEMA_COLUMN, UNCHANGED_COLUMN, change_schema, stored_name};

/// Rows of a batch that is written.
const CHUNK_ROWS: usize = 4096;
/// Bytes of its values of variable length, beyond which it ends.
const CHUNK_BYTES: usize = 4 << 20;

/// In errors about dead letters.
const PIECE: &str = "what was written of a change file early";

/// What a change file is made of.
pub(super) struct Build {
    pub(super) range: ChangeRange,
    /// Each begins where the one before ends; the first may begin before the range, and the last end behind it.
    pub(super) parts: Vec<Sealed>,
    /// What came behind them.
    pub(super) rows: Rows,
    pub(super) shapes: Shapes,
}

/// A file's bytes.
pub(super) struct Built {
    pub(super) changes: Bytes,
    pub(super) dead_letters: Option<Bytes>,
}

impl Build {
    /// The bytes of both objects. Takes a while: not on an async thread.
    pub(super) fn run(mut self) -> Result<Built> {
        let versions =
            self.parts.iter().map(|part| self.version_in_range(part)).collect::<Result<Vec<_>>>()?;
        let newest = self.rows.version().max(versions.iter().flatten().max().copied());
        let (own, own_dead) = std::mem::take(&mut self.rows).finish()?;
        let dead_letters = self.dead_letters(own_dead)?;
        let Some(newest) = newest else {
            // No row was seen: the file only says that its range holds none.
            return Ok(Built { changes: encode(&change_schema(&[]), &[])?, dead_letters });
        };
        let schema = Arc::clone(self.shapes.version(newest).ok_or_else(|| self.unknown(newest))?);
        let arrow = change_schema(&schema.columns);
        let mut batches = Vec::new();
        // A part of which nothing lies in the range may be of a later version.
        for (part, _) in
            std::mem::take(&mut self.parts).into_iter().zip(versions).filter(|(_, version)| version.is_some())
        {
            self.read(part, &schema, &arrow, &mut batches)?;
        }
        batches.extend(own);
        let batches = in_order(&schema, batches)?;
        let (arrow, batches) = without_empty_exact(arrow, batches)?;
        Ok(Built { changes: encode(&arrow, &batches)?, dead_letters })
    }

    fn unknown(&self, version: SchemaVersion) -> Error {
        let table = &self.shapes.now().name;
        Error::operator(format!(
            "{table}: there are changes of its version {}, which is not known",
            version.0
        ))
        .mend("The topic of schema changes was trimmed or damaged; it must be kept whole.")
    }

    /// The rows of a part that lie in the range, in the file's shape.
    fn read(
        &self,
        part: Sealed,
        schema: &Arc<TableSchema>,
        arrow: &SchemaRef,
        batches: &mut Vec<RecordBatch>,
    ) -> Result<()> {
        // With dead letters alone in the range it may be later than the file.
        let Some(version) = part.version.filter(|version| *version <= schema.version) else { return Ok(()) };
        let origins = if version == schema.version {
            None
        } else {
            Some(self.shapes.at(Arc::clone(schema)).origins(version)?)
        };
        let all = origins.as_deref().map(in_change_file);
        let options = ReaderOptions { origins: all, ..ReaderOptions::default() };
        for batch in FileReader::open(&FORMAT, arrow, part.changes, &options)? {
            let batch = self.in_range(batch?)?;
            batches.push(match &origins {
                Some(origins) => as_later(&batch, origins, schema, arrow)?,
                None => batch,
            });
        }
        Ok(())
    }

    /// The version of a part's changes that lie in the range; dead letters which were read are of theirs.
    fn version_in_range(&self, part: &Sealed) -> Result<Option<SchemaVersion>> {
        let inside = |offset: u64| (self.range.first..=self.range.last).contains(&offset);
        let Some(version) = part.version.filter(|_| !(inside(part.offsets.0) && inside(part.offsets.1)))
        else {
            return Ok(part.version);
        };
        let schema = self.shapes.version(version).ok_or_else(|| self.unknown(version))?;
        let options = ReaderOptions { columns: Some(vec![OFFSET_COLUMN]), ..ReaderOptions::default() };
        for batch in
            FileReader::open(&FORMAT, &change_schema(&schema.columns), part.changes.clone(), &options)?
        {
            let batch = batch?;
            let offsets = batch.column(0).as_primitive::<Int64Type>().values();
            if offsets.iter().any(|offset| inside(*offset as u64)) {
                return Ok(Some(version));
            }
        }
        let letters =
            part.dead_letters.as_ref().map_or(Ok(Vec::new()), |object| read_lines(object, PIECE))?;
        let letters = letters.iter().filter(|letter| inside(letter.offset));
        Ok(letters.filter_map(|letter| letter.schema_version).max())
    }

    fn in_range(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let offsets = batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>().values();
        let inside = |offset: &i64| (self.range.first..=self.range.last).contains(&(*offset as u64));
        if offsets.iter().all(inside) {
            return Ok(batch);
        }
        let kept: BooleanArray = offsets.iter().map(|offset| Some(inside(offset))).collect();
        filter_record_batch(&batch, &kept).map_err(arrow_error)
    }

    /// The lines of the range's dead letters; none if there are none.
    fn dead_letters(&self, own: Option<Vec<u8>>) -> Result<Option<Bytes>> {
        let mut lines = Vec::new();
        for object in self.parts.iter().filter_map(|part| part.dead_letters.as_ref()) {
            let letters = read_lines(object, PIECE)?;
            let inside = |offset: u64| (self.range.first..=self.range.last).contains(&offset);
            for letter in letters.iter().filter(|letter| inside(letter.offset)) {
                letter.write_line(&mut lines);
            }
        }
        lines.extend(own.unwrap_or_default());
        Ok((!lines.is_empty()).then(|| lines.into()))
    }
}

/// What a change file holds in each column of one in a later shape, where `origins` say it of the table's columns.
pub(in crate::lake) fn in_change_file(origins: &[Origin]) -> Vec<Origin> {
    let own = META_COLUMNS.iter().map(|name| Origin::column(*name));
    let stored = origins.iter().cloned().map(|origin| match origin {
        Origin::Column { name, types } => Origin::Column { name: stored_name(&name).into_owned(), types },
        other => other,
    });
    own.chain(stored).chain([Origin::column(EXACT)]).collect()
}

/// Rows of an earlier version, read into the columns of `schema`, as rows of that.
fn as_later(
    batch: &RecordBatch,
    origins: &[Origin],
    schema: &TableSchema,
    arrow: &SchemaRef,
) -> Result<RecordBatch> {
    let (rows, meta) = (batch.num_rows(), META_COLUMNS.len());
    let mut arrays: Vec<ArrayRef> = batch.columns()[..meta].to_vec();
    arrays[SCHEMA_COLUMN] = Arc::new(Int32Array::from(vec![schema.version.0 as i32; rows]));
    arrays[UNCHANGED_COLUMN] = Arc::new(renamed(batch.column(UNCHANGED_COLUMN).as_list(), origins, schema));
    let table = batch.project(&(meta..batch.num_columns()).collect::<Vec<_>>()).map_err(arrow_error)?;
    let exact = &table.columns()[table.num_columns() - 1];
    if exact.null_count() < rows || origins.iter().any(Origin::is_beyond) {
        // What stands as text does so under the columns' names of then.
        let partial = partial_schema(&schema.columns);
        let cells = join_as_told(&table, &cell_schema(&partial, &schema.columns), origins)?;
        let fields = partial.fields().iter().cloned().chain([Arc::new(exact_field())]);
        let partial = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let table = split(&cells, &partial, &mut vec![0; schema.columns.len()])?;
        arrays.extend(table.columns().iter().cloned());
    } else {
        arrays.extend(table.columns().iter().cloned());
    }
    RecordBatch::try_new(SchemaRef::clone(arrow), arrays).map_err(arrow_error)
}

/// Names of columns that were not sent, by row: all that take their values from these.
fn renamed(unchanged: &ListArray, origins: &[Origin], schema: &TableSchema) -> ListArray {
    let element = Arc::new(Field::new(LIST_ELEMENT, DataType::Utf8, true));
    let mut out = ListBuilder::new(StringBuilder::new()).with_field(element);
    for row in 0..unchanged.len() {
        if unchanged.is_null(row) {
            out.append(false);
            continue;
        }
        let names = unchanged.value(row);
        let names: Vec<_> = names.as_string::<i32>().iter().flatten().map(name_at_rest).collect();
        let taken = |origin: &Origin| matches!(origin, Origin::Column { name, .. } if names.contains(&name.as_str().into()));
        let mut any = false;
        for (column, _) in schema.columns.iter().zip(origins).filter(|(_, origin)| taken(origin)) {
            out.values().append_value(&column.name);
            any = true;
        }
        out.append(any);
    }
    out.finish()
}

/// The rows by key, those of one key as they are, in batches whose sizes follow from the rows alone.
fn in_order(schema: &TableSchema, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let batches: Vec<RecordBatch> = batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    let mut order: Vec<(u32, u32)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (index, batch) in batches.iter().enumerate() {
        order.extend((0..batch.num_rows()).map(|row| (index as u32, row as u32)));
    }
    if !schema.key.is_empty() {
        let keys = keys(schema, &batches)?;
        let key = |place: &(u32, u32)| keys[place.0 as usize].row(place.1 as usize);
        order.sort_by(|a, b| key(a).cmp(&key(b)));
    }
    let bytes: Vec<Vec<usize>> = batches.iter().map(row_bytes).collect();
    let (mut chunks, mut rest) = (Vec::new(), order.as_slice());
    while !rest.is_empty() {
        let mut taken = 0;
        let ends = |(batch, row): &(u32, u32)| {
            taken += bytes[*batch as usize][*row as usize];
            taken > CHUNK_BYTES
        };
        let size = rest.iter().take(CHUNK_ROWS).position(ends).unwrap_or_else(|| rest.len().min(CHUNK_ROWS));
        let (chunk, others) = rest.split_at(size.max(1));
        chunks.push(gathered(&batches, chunk)?);
        rest = others;
    }
    Ok(chunks)
}

/// Those rows; without copying them where they stand side by side.
fn gathered(batches: &[RecordBatch], chunk: &[(u32, u32)]) -> Result<RecordBatch> {
    let (batch, first) = chunk[0];
    if chunk.iter().zip(first..).all(|(place, row)| *place == (batch, row)) {
        return Ok(batches[batch as usize].slice(first as usize, chunk.len()));
    }
    let places: Vec<_> = chunk.iter().map(|(batch, row)| (*batch as usize, *row as usize)).collect();
    let sources: Vec<_> = batches.iter().collect();
    interleave_record_batch(&sources, &places).map_err(arrow_error)
}

/// The bytes of the rows' keys, by which merges order them, too: nulls (of a truncate, and values beyond their type) first.
fn keys(schema: &TableSchema, batches: &[RecordBatch]) -> Result<Vec<KeyRows>> {
    let columns = || schema.key.iter().map(|index| META_COLUMNS.len() + index);
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let fields = columns().map(|column| SortField::new(first.column(column).data_type().clone())).collect();
    let converter = RowConverter::new(fields).map_err(arrow_error)?;
    let of = |batch: &RecordBatch| {
        let columns: Vec<ArrayRef> = columns().map(|column| Arc::clone(batch.column(column))).collect();
        converter.convert_columns(&columns).map_err(arrow_error)
    };
    batches.iter().map(of).collect()
}

/// By row, the bytes of its values of variable length.
fn row_bytes(batch: &RecordBatch) -> Vec<usize> {
    let mut bytes = vec![0; batch.num_rows()];
    for column in batch.columns() {
        add_bytes(column.as_ref(), &mut bytes);
    }
    bytes
}

fn add_bytes(array: &dyn Array, bytes: &mut [usize]) {
    let mut add = |offsets: &[i32]| {
        for (bytes, ends) in bytes.iter_mut().zip(offsets.windows(2)) {
            *bytes += (ends[1] - ends[0]) as usize;
        }
    };
    match array.data_type() {
        DataType::Utf8 => add(array.as_string::<i32>().value_offsets()),
        DataType::Binary => add(array.as_binary::<i32>().value_offsets()),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let mut elements = vec![8; list.values().len()];
            add_bytes(list.values().as_ref(), &mut elements);
            for (bytes, ends) in bytes.iter_mut().zip(list.value_offsets().windows(2)) {
                *bytes += elements[ends[0] as usize..ends[1] as usize].iter().sum::<usize>();
            }
        }
        _ => {}
    }
}

/// Schema and batches of a file without [`EXACT`](crate::batch::EXACT), where no batch has a value in it.
fn without_empty_exact(
    schema: SchemaRef,
    mut batches: Vec<RecordBatch>,
) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let last = schema.fields().len() - 1;
    if batches.iter().any(|batch| batch.column(last).null_count() < batch.num_rows()) {
        return Ok((schema, batches));
    }
    let kept: Vec<_> = (0..last).collect();
    for batch in &mut batches {
        *batch = batch.project(&kept).map_err(arrow_error)?;
    }
    Ok((schema.project(&kept).map_err(arrow_error)?.into(), batches))
}
