//! Rows of a change file in memory: builders for the columns about the change, and for the table's own.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::{
    Int32Builder, Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::batch::{LIST_ELEMENT, RowBuilder, beside, exact_field, partial_schema};
use crate::change::{Column, Datum, Op, TableSchema};
use crate::runtime::{Error, Result};

use super::StagedChange;

/// Rows after which the builders make a batch.
const BATCH_ROWS: usize = 4096;
/// Bytes after which they do.
const BATCH_BYTES: usize = 4 << 20;

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

/// Where some of them stand.
pub(super) const OFFSET_COLUMN: usize = 4;
pub(in crate::lake) const SCHEMA_COLUMN: usize = 6;
pub(super) const UNCHANGED_COLUMN: usize = 7;

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

/// Rows of one version of the table.
pub(super) struct TableRows {
    pub(super) schema: Arc<TableSchema>,
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

impl TableRows {
    pub(super) fn new(schema: &Arc<TableSchema>) -> Self {
        Self {
            arrow: change_schema(&schema.columns),
            rows: RowBuilder::partial(&schema.columns),
            nulls: vec![Datum::Null; schema.columns.len()],
            meta: Meta::default(),
            schema: Arc::clone(schema),
        }
    }

    /// Bytes of the rows that are in no batch yet.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether it is time for a batch.
    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS || self.rows.bytes() >= BATCH_BYTES
    }

    /// Adds one row, or two: an update of a table without a key deletes the old row and creates the new one. An error is
    /// the reason why it is a dead letter.
    pub(super) fn push(&mut self, change: &StagedChange<'_>) -> Result<usize, String> {
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

    /// The rows since the last batch.
    pub(super) fn finish(&mut self) -> Result<RecordBatch> {
        let (mut arrays, rows) = (self.meta.finish(), self.rows.len());
        let (table, exact) = self.rows.finish_arrays();
        arrays.extend(table);
        arrays.push(exact.unwrap_or_else(|| new_null_array(&DataType::Utf8, rows)));
        RecordBatch::try_new(SchemaRef::clone(&self.arrow), arrays)
            .map_err(|error| Error::operator(format!("cannot stage {}", self.schema.name)).cause(error))
    }
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
