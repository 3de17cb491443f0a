//! A change file being filled: builders for the columns about the change, and for the table's own.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::{
    Int32Builder, Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;

use crate::batch::{
    Compression, FileWriter, Format, LIST_ELEMENT, RowBuilder, WriterOptions, beside, exact_field,
    large_columns, partial_schema,
};
use crate::change::{Column, Datum, Op, TableSchema};
use crate::runtime::{Error, Result};

use super::super::layout::Bucket;
use super::super::sort::arrow_error;
use super::{DeadLetter, StageLimits, StagedChange};

/// Rows after which the builders make a batch.
const BATCH_ROWS: usize = 4096;
/// Bytes after which they do.
const BATCH_BYTES: usize = 4 << 20;

/// How change files are stored, whatever the snapshots' format.
pub(in crate::lake) const FORMAT: Format = Format::Parquet { compression: Compression::Zstd(1) };

/// The columns about the change, before the table's own.
pub const META_COLUMNS: [&str; 9] = [
    "__op",
    "__timeline",
    "__commit_lsn",
    "__ordinal",
    "__offset",
    "__commit_ts",
    "__schema",
    "__unchanged",
    "__old_key",
];

/// The name that a table's column, by its name in other files, has in change files.
pub fn stored_name(name: &str) -> Cow<'_, str> {
    beside(name, &META_COLUMNS)
}

/// The schema of a change file for a table's columns, which are all nullable, and [`EXACT`](crate::batch::EXACT) behind them. A file none of
/// whose rows needs that column does not have it.
pub fn change_schema(columns: &[Column]) -> SchemaRef {
    let element = Arc::new(Field::new(LIST_ELEMENT, DataType::Utf8, true));
    let types = [
        (DataType::Utf8, false),
        (DataType::Int32, false),
        (DataType::Int64, false),
        (DataType::Int64, false),
        (DataType::Int64, false),
        (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        (DataType::Int32, false),
        (DataType::List(element), true),
        (DataType::Utf8, true),
    ];
    let meta =
        META_COLUMNS.iter().zip(types).map(|(name, (kind, null))| Arc::new(Field::new(*name, kind, null)));
    let table = partial_schema(columns);
    let named = |field: &Arc<Field>| match stored_name(field.name()) {
        Cow::Borrowed(_) => Arc::clone(field),
        Cow::Owned(name) => Arc::new(field.as_ref().clone().with_name(name)),
    };
    let fields = meta.chain(table.fields().iter().map(named)).chain([Arc::new(exact_field())]);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A file's bytes.
pub(super) struct Encoded {
    pub(super) changes: Bytes,
    pub(super) dead_letters: Option<Bytes>,
}

/// A change file that takes rows.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) bucket: Bucket,
    /// The last offset handed in.
    pub(super) last_offset: u64,
    table: Option<TableRows>,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    dead: Vec<DeadLetter>,
    dead_bytes: usize,
}

struct TableRows {
    schema: Arc<TableSchema>,
    arrow: SchemaRef,
    meta: Meta,
    rows: RowBuilder,
    nulls: Vec<Datum<'static>>,
}

impl std::fmt::Debug for TableRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableRows").field("version", &self.schema.version).finish_non_exhaustive()
    }
}

impl OpenFile {
    pub(super) const fn new(bucket: Bucket) -> Self {
        Self {
            bucket,
            last_offset: 0,
            table: None,
            batches: Vec::new(),
            rows: 0,
            bytes: 0,
            dead: Vec::new(),
            dead_bytes: 0,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes + self.dead_bytes
    }

    /// Whether rows of that shape may go into the file: it has none yet, or they are of the same version.
    pub(super) fn has_schema(&self, schema: &Arc<TableSchema>) -> bool {
        self.table
            .as_ref()
            .is_none_or(|t| Arc::ptr_eq(&t.schema, schema) || t.schema.version == schema.version)
    }

    /// Sets the shape of the rows, once.
    pub(super) fn set_schema(&mut self, schema: &Arc<TableSchema>) {
        if self.table.is_some() {
            return;
        }
        self.table = Some(TableRows {
            arrow: change_schema(&schema.columns),
            rows: RowBuilder::partial(&schema.columns),
            nulls: vec![Datum::Null; schema.columns.len()],
            meta: Meta::default(),
            schema: Arc::clone(schema),
        });
    }

    pub(super) fn is_full(&self, limits: StageLimits) -> bool {
        self.rows >= limits.rows_max || self.memory() >= limits.bytes_max
    }

    /// Adds the rows of a change; an error is the reason why it is a dead letter.
    pub(super) fn push(&mut self, change: &StagedChange<'_>) -> Result<(), String> {
        let Some(table) = &mut self.table else { return Err("the table's shape is not known".to_owned()) };
        let before = table.rows.bytes();
        self.rows += table.push(change)?;
        // About what the columns of `Meta` take.
        self.bytes += table.rows.bytes() - before + 64;
        if table.rows.len() >= BATCH_ROWS || table.rows.bytes() >= BATCH_BYTES {
            self.batches.push(table.finish().map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    pub(super) fn push_dead(&mut self, letter: &DeadLetter) {
        let payload = |p: &Option<super::Payload>| {
            p.as_ref().map_or(0, |p| match p {
                super::Payload::Text(text) => text.len(),
                super::Payload::Binary { base64 } => base64.len(),
            })
        };
        self.dead_bytes += 128 + letter.reason.len() + payload(&letter.key) + payload(&letter.value);
        self.dead.push(letter.clone());
    }

    /// The bytes of both objects. Takes a while: not on an async thread.
    pub(super) fn encode(mut self: Box<Self>, partition: u32) -> Result<Encoded> {
        let schema = match &mut self.table {
            Some(table) => {
                if !table.rows.is_empty() {
                    self.batches.push(table.finish()?);
                }
                SchemaRef::clone(&table.arrow)
            }
            // No row was seen: the file only says that its range holds none.
            None => change_schema(&[]),
        };
        let (schema, batches) = without_empty_exact(schema, std::mem::take(&mut self.batches))?;
        let mut plain: Vec<usize> = batches.iter().flat_map(large_columns).collect();
        plain.sort_unstable();
        plain.dedup();
        let mut writer =
            FileWriter::new(&FORMAT, schema, &WriterOptions { plain, ..WriterOptions::default() })?;
        for batch in batches {
            writer.write(&batch)?;
        }
        let mut dead = Vec::new();
        for letter in &mut self.dead {
            letter.partition = partition;
            letter.write_line(&mut dead);
        }
        let dead_letters = (!dead.is_empty()).then(|| dead.into());
        Ok(Encoded { changes: writer.finish()?.into(), dead_letters })
    }
}

impl TableRows {
    /// Adds one row, or two: an update of a table without a key deletes the old row and creates the new one.
    fn push(&mut self, change: &StagedChange<'_>) -> Result<usize, String> {
        let keyless = self.schema.key.is_empty();
        match change.op {
            Op::Truncate => self.row(change, Op::Truncate, None),
            Op::Delete => {
                let old = change.before.unwrap_or(change.row);
                self.row(change, Op::Delete, Some(old))
            }
            Op::Update if keyless => {
                let Some(before) = change.before else {
                    return Err("an update of a table without a key, without its old row".to_owned());
                };
                let row = completed(change.row, Some(before));
                if let Some(index) = row.iter().position(|d| matches!(d, Datum::Unchanged)) {
                    return Err(format!("column {:?} was not sent", self.schema.columns[index].name));
                }
                // Both or none: the new row is tried first, where a refusal leaves nothing behind.
                let mut trial = RowBuilder::partial(&self.schema.columns);
                trial.push(&row).map_err(|error| error.to_string())?;
                let deleted = self.row(change, Op::Delete, Some(before))?;
                Ok(deleted + self.row(change, Op::Create, Some(&row))?)
            }
            Op::Create | Op::Read | Op::Update => {
                let row = completed(change.row, change.before);
                self.row(change, change.op, Some(&row))
            }
        }
    }

    fn row(&mut self, change: &StagedChange<'_>, op: Op, row: Option<&[Datum<'_>]>) -> Result<usize, String> {
        let row = row.unwrap_or(&self.nulls);
        self.rows.push(row).map_err(|error| error.to_string())?;
        let unchanged = row.iter().zip(&self.schema.columns).filter(|(d, _)| matches!(d, Datum::Unchanged));
        self.meta.push(change, op, unchanged.map(|(_, column)| column.name.as_str()));
        Ok(1)
    }

    fn finish(&mut self) -> Result<RecordBatch> {
        let (mut arrays, rows) = (self.meta.finish(), self.rows.len());
        let (table, exact) = self.rows.finish_arrays();
        arrays.extend(table);
        arrays.push(exact.unwrap_or_else(|| new_null_array(&DataType::Utf8, rows)));
        RecordBatch::try_new(SchemaRef::clone(&self.arrow), arrays)
            .map_err(|error| Error::operator(format!("cannot stage {}", self.schema.name)).cause(error))
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

/// The row with values that were not sent taken from the old row, where the server logged it.
fn completed<'a>(row: &'a [Datum<'a>], before: Option<&'a [Datum<'a>]>) -> Cow<'a, [Datum<'a>]> {
    let Some(before) = before else { return Cow::Borrowed(row) };
    if !row.iter().any(|datum| matches!(datum, Datum::Unchanged)) {
        return Cow::Borrowed(row);
    }
    let fill = |(datum, old): (&Datum<'a>, &Datum<'a>)| match (datum, old) {
        // Under an identity that logs only the key, a null of the old row says nothing.
        (Datum::Unchanged, Datum::Null) => Datum::Unchanged,
        (Datum::Unchanged, old) => old.clone(),
        (datum, _) => datum.clone(),
    };
    Cow::Owned(row.iter().zip(before).map(fill).collect())
}

/// Builders of the columns about the change.
struct Meta {
    op: StringBuilder,
    timeline: Int32Builder,
    commit_lsn: Int64Builder,
    ordinal: Int64Builder,
    offset: Int64Builder,
    commit_ts: TimestampMicrosecondBuilder,
    schema: Int32Builder,
    unchanged: ListBuilder<StringBuilder>,
    old_key: StringBuilder,
}

impl Default for Meta {
    fn default() -> Self {
        let element = Arc::new(Field::new(LIST_ELEMENT, DataType::Utf8, true));
        Self {
            op: StringBuilder::new(),
            timeline: Int32Builder::new(),
            commit_lsn: Int64Builder::new(),
            ordinal: Int64Builder::new(),
            offset: Int64Builder::new(),
            commit_ts: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            schema: Int32Builder::new(),
            unchanged: ListBuilder::new(StringBuilder::new()).with_field(element),
            old_key: StringBuilder::new(),
        }
    }
}

impl Meta {
    fn push<'a>(&mut self, change: &StagedChange<'_>, op: Op, unchanged: impl Iterator<Item = &'a str>) {
        let mut letter = [0; 4];
        self.op.append_value(op.letter().encode_utf8(&mut letter));
        self.timeline.append_value(change.position.timeline as i32);
        self.commit_lsn.append_value(change.position.commit_lsn.0 as i64);
        self.ordinal.append_value(change.position.ordinal as i64);
        self.offset.append_value(change.offset as i64);
        self.commit_ts.append_value(change.commit_us);
        self.schema.append_value(change.schema.version.0 as i32);
        let mut any = false;
        for name in unchanged {
            self.unchanged.values().append_value(name);
            any = true;
        }
        self.unchanged.append(any);
        self.old_key.append_option(change.old_key);
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.op.finish()),
            Arc::new(self.timeline.finish()),
            Arc::new(self.commit_lsn.finish()),
            Arc::new(self.ordinal.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.commit_ts.finish()),
            Arc::new(self.schema.finish()),
            Arc::new(self.unchanged.finish()),
            Arc::new(self.old_key.finish()),
        ]
    }
}
