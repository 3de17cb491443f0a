//! Manifests: what was published, in JSON that comes out the same byte for byte whoever writes it.
//!
//! No wall clock, no host, no random number goes in: everything follows from the cut, the log and the day
//! before. Field order is the structs' own.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::batch::{EXACT, Format, as_text};
use crate::change::{Column, Cut, CutBackfill, Ds, LogEnd, Lsn, Position, TableName, TableSchema, Timeline};
use crate::runtime::{Error, Result};

/// Version of the manifests' layout.
pub const MANIFEST_VERSION: u32 = 1;

/// Version of the manifests with a historic tail: who does not know it would go on from their files as if these were as of
/// the manifest's cut.
pub const TAIL_MANIFEST_VERSION: u32 = 2;

/// A table's day: `_manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`], or [`TAIL_MANIFEST_VERSION`] with a historic tail.
    pub manifest_version: u32,
    /// The connector.
    pub name: String,
    /// The table.
    pub table: TableName,
    /// The day.
    pub ds: Ds,
    /// The cut at which the files hold the table, but for those of a historic tail.
    pub cut: CutPoint,
    /// The shape of the rows.
    pub schema: TableSchema,
    /// Columns which are text in the files since these have no type for their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub as_text: Vec<AsText>,
    /// The column of single values that their column's type lacks; none if the files do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<ExactColumn>,
    /// `parquet` or `csv`.
    pub format: String,
    /// How the parts were written: a later day takes over only such as it would write itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// The parts, in the order of their rows. There is at least one.
    pub files: Vec<PartFile>,
    /// The first of them, where they are as of an earlier cut; none: all are as of the manifest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub historic_tail: Option<HistoricTail>,
    /// Rows of all parts.
    pub rows: u64,
    /// What making the parts took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Where the changes since the day before went.
    pub changes: ChangeCounts,
    /// What was read of the log.
    pub log: Vec<LogRange>,
    /// The day whose snapshot this one continues; none for a table's first, and for one made from a new copy.
    pub previous_ds: Option<Ds>,
    /// The new copy of the table that it was made from, instead of from the day before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<CutBackfill>,
    /// The condition of rows which the table's copy took, where its owner wanted not all of them: the others are not in
    /// the files, unless a change brought them whole. `false`: it was not copied at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill_where: Option<String>,
}

impl Manifest {
    /// First offset of a log partition that the snapshot does not hold; zero for one which it does not know.
    pub fn end_of(&self, partition: u32) -> u64 {
        self.log.iter().find(|range| range.partition == partition).map_or(0, |range| range.end)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Changes of the day which could not be processed.
    pub const fn dead_letters(&self) -> u64 {
        self.changes.dead_letters
    }
}

/// An earlier cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsOf {
    /// The day that it ends.
    pub ds: Ds,
    /// Timeline of `lsn`.
    pub timeline: Timeline,
    /// A position between two transactions.
    pub lsn: Lsn,
}

impl AsOf {
    /// A manifest's own.
    pub(super) const fn of(manifest: &Manifest) -> Self {
        Self { ds: manifest.ds, timeline: manifest.cut.timeline, lsn: manifest.cut.lsn }
    }
}

/// Parts that hold keys up to that of their last row as they were at an earlier cut; changes of these since are deferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoricTail {
    /// The cut.
    pub as_of: AsOf,
    /// So many of the files, from the first on.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// By log partition, the first offset that they do not hold.
    pub log: Vec<LogEnd>,
}

/// A column that is text in the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsText {
    /// The column.
    pub column: String,
    /// Its type in Postgres.
    pub type_name: String,
    /// Why.
    pub reason: String,
}

/// The column of single values that their column's type lacks: they are null there, and JSON here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactColumn {
    /// Its name, [`crate::batch::EXACT`]. It is the last one.
    pub column: String,
    /// How many values stand in it, by the column they are of.
    pub values: BTreeMap<String, u64>,
}

impl ExactColumn {
    /// By the counts of the parts.
    pub(super) fn of(files: &[PartFile]) -> Self {
        let mut values = BTreeMap::new();
        for (column, count) in files.iter().flat_map(|file| &file.exact) {
            *values.entry(column.clone()).or_default() += count;
        }
        Self { column: EXACT.to_owned(), values }
    }
}

/// The columns of a table that are text in files of a format.
pub(super) fn columns_as_text(schema: &TableSchema, format: &Format) -> Vec<AsText> {
    let said = |column: &Column| {
        let reason = as_text(&column.column_type, format)?.to_owned();
        Some(AsText { column: column.name.clone(), type_name: column.type_name.clone(), reason })
    };
    schema.columns.iter().filter_map(said).collect()
}

/// The part of a [`Cut`] that says where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPoint {
    /// Timeline of `lsn`.
    pub timeline: Timeline,
    /// A position between two transactions.
    pub lsn: Lsn,
    /// Position of the last change before the cut.
    pub position: Position,
    /// The instant for which it stands.
    pub at: Timestamp,
    /// IANA name of the time zone in which the day is a day.
    pub time_zone: String,
}

impl From<&Cut> for CutPoint {
    fn from(cut: &Cut) -> Self {
        Self {
            timeline: cut.timeline,
            lsn: cut.lsn,
            position: cut.position,
            at: cut.at,
            time_zone: cut.time_zone.clone(),
        }
    }
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFile {
    /// Name within the day's folder.
    pub path: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of the object.
    pub bytes: u64,
    /// Bytes of its rows in memory, about; tells a reader how many rows fit.
    pub bytes_decoded: u64,
    /// SHA-256 of the object, hexadecimal.
    pub sha256: String,
    /// The first row's key as a JSON array; none without a key or without rows.
    pub min_key: Option<String>,
    /// The last row's key as a JSON array.
    pub max_key: Option<String>,
    /// The first row's key as the bytes by which rows are ordered ([`Written::key_order`]), whole, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_order: Option<String>,
    /// The last row's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_order: Option<String>,
    /// How many of its values stand in the column of single values ([`Manifest::exact`]), by the column they are of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exact: BTreeMap<String, u64>,
    /// The part of the day before that this one is byte for byte; none: it was written for this day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<CopiedFrom>,
    /// The cut at which it holds its rows; none: the manifest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<AsOf>,
}

/// A part of an earlier day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFrom {
    /// The day.
    pub ds: Ds,
    /// Name within its folder.
    pub path: String,
}

/// How parts are written, besides their format and the shape of their rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The format's compression; none where it has but one.
    pub compression: Option<String>,
    /// About how many bytes a part has.
    pub part_bytes_max: usize,
    /// Most bytes of a row group or stripe.
    pub row_group_bytes: usize,
    /// Version of the bytes by which rows are ordered.
    pub key_order: u32,
}

/// What making a day's parts took. Follows from the day's inputs, like everything here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Parts that were written.
    pub files_written: u64,
    /// Parts that are those of the day before.
    pub files_copied: u64,
    /// Bytes of change files and of parts of the day before that were read.
    pub bytes_read: u64,
    /// Bytes of the parts written.
    pub bytes_written: u64,
    /// Bytes of the parts copied.
    pub bytes_copied: u64,
}

impl Work {
    /// The share of the snapshot's bytes that were written, 0 to 1.
    pub fn share_written(&self) -> f64 {
        let all = self.bytes_written + self.bytes_copied;
        if all == 0 { 0.0 } else { self.bytes_written as f64 / all as f64 }
    }
}

/// Changes in + deferred by the day before = changes applied + dead letters + deferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// Changes between the two cuts, as capture counted them; of a day made from a new copy, its rows and the changes
    /// since it began.
    #[serde(rename = "in")]
    pub taken: u64,
    /// Those which the files reflect.
    pub applied: u64,
    /// Those which could not be processed, by capture, while staging or while merging.
    pub dead_letters: u64,
    /// Those which the day before has left to a later one ([`HistoricTail`]); none of a day made from a new copy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deferred_before: u64,
    /// Those which this day leaves to a later one, all together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deferred: u64,
}

impl ChangeCounts {
    /// Whether they add up.
    pub const fn add_up(&self) -> bool {
        self.taken + self.deferred_before == self.applied + self.dead_letters + self.deferred
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Offsets of one log partition: `from <= offset < end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    /// Topic.
    pub topic: String,
    /// Log partition.
    pub partition: u32,
    /// First offset.
    pub from: u64,
    /// First offset after.
    pub end: u64,
}

/// The database's own manifest of a day: `cuts/<name>/ds=D.json`. When it exists, the day is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayManifest {
    /// [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// The connector.
    pub name: String,
    /// The day.
    pub ds: Ds,
    /// The cut, as capture picked it.
    pub cut: Cut,
    /// The tables, by topic.
    pub tables: Vec<DayTable>,
    /// Tables which are not there, and never will be for this day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingTable>,
}

/// A table of a [`DayManifest`] whose snapshot could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingTable {
    /// The table's topic.
    pub topic: String,
    /// The table.
    pub table: TableName,
    /// Why.
    pub reason: String,
}

/// A table of a [`DayManifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTable {
    /// The table's topic.
    pub topic: String,
    /// The table.
    pub table: TableName,
    /// Its manifest, from the lake's root.
    pub manifest: String,
    /// SHA-256 of the manifest, hexadecimal.
    pub sha256: String,
    /// Rows.
    pub rows: u64,
    /// Where the changes since the day before went.
    pub changes: ChangeCounts,
    /// The cut that its historic tail is as of; none: all of it is as of the day's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub historic_tail: Option<AsOf>,
}

/// The one way a manifest is written.
pub fn to_bytes(manifest: &impl Serialize) -> Result<Bytes> {
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Error::operator("a manifest cannot be written as JSON").cause(error))?;
    text.push(b'\n');
    Ok(text.into())
}

/// Reads a manifest; `shown` names it in errors.
pub fn from_bytes<T: for<'de> Deserialize<'de>>(bytes: &[u8], shown: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Versioned {
        manifest_version: Option<u32>,
    }
    let unread = || {
        Error::operator(format!("{shown} is not a manifest that this version reads"))
            .mend("Was it written by a newer tidemark, or damaged? `tidemark verify` compares checksums.")
    };
    let Versioned { manifest_version } =
        serde_json::from_slice(bytes).map_err(|error| unread().cause(error))?;
    if let Some(version) = manifest_version.filter(|version| *version > TAIL_MANIFEST_VERSION) {
        return Err(Error::operator(format!(
            "{shown} has the layout of version {version}, and this version reads up to {TAIL_MANIFEST_VERSION}"
        ))
        .mend("It was written by a newer tidemark: use that one."));
    }
    serde_json::from_slice(bytes).map_err(|error| unread().cause(error))
}
