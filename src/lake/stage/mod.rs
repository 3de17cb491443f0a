//! Staging: records of one log partition of a table, in, and change files, out.
//!
//! ```text
//!   log ── push / push_dead / skip ──> open file (builders) ──(hour, day, schema, limit, cut)──> put_once
//!                                                                 1. the range's link in the sequence
//!                                                                 2. dead letters of the range
//!                                                                 3. the change file of the range
//! ```
//!
//! Why a crash loses and doubles nothing: the change files *are* the progress. Their names say which offsets
//! they cover; whoever starts lists them ([`chain()`]) and reads the log from the first offset that none
//! covers. Of many who stage at once, all write the same files: see [`sequence`].

mod chain;
mod dead;
mod file;
pub(in crate::lake) mod sequence;

use std::sync::Arc;

use crate::change::{Calendar, Datum, Op, Position, TableName, TableSchema};
use crate::runtime::{Error, Result};

use super::layout::{Bucket, ChangeRange, Layout};
use super::store::Store;
use sequence::{Link, Place, Sequence};

pub use chain::{Chain, ChangeFile, chain, covering, recent};
pub(super) use dead::read_lines;
pub use dead::{DeadLetter, Payload};
pub(super) use file::FORMAT;
use file::OpenFile;
pub use file::{META_COLUMNS, change_schema, stored_name};

/// How far back a commit time may step within a file: clocks of concurrent commits differ by milliseconds,
/// and a file for each row around a full hour would help nobody.
const JITTER_US: i64 = 300_000_000;

/// Where a change file ends, besides its hour, day, schema and the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageLimits {
    /// Rows of a change file.
    pub rows_max: usize,
    /// Bytes of its decoded rows, as `batch::RowBuilder` counts them, and of its dead letters.
    pub bytes_max: usize,
}

/// One record, decoded.
#[derive(Clone, Copy, Debug)]
pub struct StagedChange<'a> {
    /// Its offset in the log partition.
    pub offset: u64,
    /// Its place among all changes.
    pub position: Position,
    /// What happened.
    pub op: Op,
    /// Commit time, microseconds since 1970.
    pub commit_us: i64,
    /// The shape of `before` and `row`.
    pub schema: &'a Arc<TableSchema>,
    /// The old key as it stands in the record's header, when this is the `c` half of a key change.
    pub old_key: Option<&'a str>,
    /// The old row, where the server logged it (a delete: at least its key).
    pub before: Option<&'a [Datum<'a>]>,
    /// The new row; empty for deletes and truncates.
    pub row: &'a [Datum<'a>],
    /// The record's key, for the dead letters.
    pub raw_key: Option<&'a [u8]>,
    /// The record's value, for the dead letters.
    pub raw_value: Option<&'a [u8]>,
}

/// A record that could not be decoded.
#[derive(Clone, Copy, Debug)]
pub struct DeadRecord<'a> {
    /// Its offset in the log partition.
    pub offset: u64,
    /// Its place among all changes, if its header could be read.
    pub position: Option<Position>,
    /// The record's time, microseconds since 1970.
    pub commit_us: i64,
    /// What is wrong with it.
    pub reason: &'a str,
    /// The record's key.
    pub raw_key: Option<&'a [u8]>,
    /// The record's value.
    pub raw_value: Option<&'a [u8]>,
}

/// Stages one log partition of a table. Costs next to nothing while no file is open.
///
/// No method is cancel-safe: a stager whose future was dropped, or which has returned an error, is dropped
/// too, and the next one starts from [`chain()`].
#[derive(Debug)]
pub struct Stager {
    store: Store,
    layout: Layout,
    calendar: Calendar,
    limits: StageLimits,
    table: TableName,
    partition: u32,
    sequence: Sequence,
    /// Where the next file has to end, and its place, when its link was found.
    bound: Option<(u64, Place)>,
    /// First offset that no file covers.
    first: u64,
    /// First offset that was not handed in yet.
    next: u64,
    open: Option<Box<OpenFile>>,
}

impl Stager {
    pub(super) fn new(
        (store, layout): (Store, Layout),
        calendar: Calendar,
        limits: StageLimits,
        (table, partition): (TableName, u32),
        next: u64,
        link: Option<Link>,
    ) -> Self {
        let sequence = Sequence::new(store.clone(), layout.clone(), table.clone(), partition);
        let bound = link.and_then(|link| Some((link.next, link.place?)));
        Self {
            store,
            layout,
            calendar,
            limits,
            table,
            partition,
            sequence,
            bound,
            first: next,
            next,
            open: None,
        }
    }

    /// First offset beyond a file which somebody has begun, and which has to be made as it was begun; none when
    /// nobody has.
    pub fn owes(&self) -> Option<u64> {
        self.bound.map(|(next, _)| next)
    }

    /// First offset that no change file covers: from here the log is read again after a crash, and from here
    /// on it must be kept.
    pub const fn durable(&self) -> u64 {
        self.first
    }

    /// First offset that was not handed in yet.
    pub const fn next_offset(&self) -> u64 {
        self.next
    }

    /// Bytes held in memory which [`Self::flush`] frees.
    pub fn memory(&self) -> usize {
        self.open.as_ref().filter(|_| self.bound.is_none()).map_or(0, |open| open.memory())
    }

    /// Writes what is open as a file of its own and so gives its memory back; but not a part of a file which is owed.
    pub async fn flush(&mut self) -> Result<()> {
        match self.open.as_ref().filter(|_| self.bound.is_none()) {
            Some(open) => {
                let last = open.last_offset;
                self.write(last).await
            }
            None => Ok(()),
        }
    }

    /// Writes the open file if it is full: to be called when what was handed in has been let go of, since it may be large.
    /// Else the next record does it.
    pub async fn settle(&mut self) -> Result<()> {
        if self.bound.is_some() {
            return self.pay(self.next).await;
        }
        match self.open.as_ref().filter(|open| open.is_full(self.limits)).map(|open| open.last_offset) {
            Some(last) => self.write(last).await,
            None => Ok(()),
        }
    }

    /// Takes a change. One which the file's types cannot hold goes to the dead letters.
    pub async fn push(&mut self, change: &StagedChange<'_>) -> Result<()> {
        self.step(change.offset).await?;
        self.rotate(change.commit_us, Some(change.schema)).await?;
        let open = self.file(change.commit_us, Some(change.schema));
        if let Err(error) = open.push(change) {
            open.push_dead(&DeadLetter {
                partition: 0,
                offset: change.offset,
                position: Some(change.position),
                reason: error,
                schema_version: Some(change.schema.version),
                key: change.raw_key.map(Payload::new),
                value: change.raw_value.map(Payload::new),
            });
        }
        self.took();
        Ok(())
    }

    /// Takes a record which could not be decoded: it goes to the dead letters.
    pub async fn push_dead(&mut self, record: &DeadRecord<'_>) -> Result<()> {
        self.step(record.offset).await?;
        self.rotate(record.commit_us, None).await?;
        self.file(record.commit_us, None).push_dead(&DeadLetter {
            partition: 0,
            offset: record.offset,
            position: record.position,
            reason: record.reason.to_owned(),
            schema_version: None,
            key: record.raw_key.map(Payload::new),
            value: record.raw_value.map(Payload::new),
        });
        self.took();
        Ok(())
    }

    /// Passes a record without a value: no row, but the range covers it.
    pub async fn skip(&mut self, offset: u64) -> Result<()> {
        self.step(offset).await
    }

    /// Ends at a cut: afterwards every offset below `end` is covered. `cut_us` is the cut's instant and
    /// places a range without any row.
    pub async fn close(&mut self, end: u64, cut_us: i64) -> Result<()> {
        if self.next > end {
            return Err(Error::operator(format!(
                "{} log partition {}: the cut ends at offset {end}, but changes up to {} are staged already",
                self.table,
                self.partition,
                self.next - 1
            )));
        }
        if let Some(owed) = self.owes().filter(|owed| *owed > end) {
            return Err(Error::operator(format!(
                "{} log partition {}: the cut ends at offset {end}, but a change file was begun that goes up to {}",
                self.table,
                self.partition,
                owed - 1
            )));
        }
        self.pay(end).await?;
        self.next = end;
        if self.first == end {
            return Ok(());
        }
        self.file(cut_us.saturating_sub(1), None);
        self.write(end - 1).await
    }

    async fn step(&mut self, offset: u64) -> Result<()> {
        self.pay(offset).await?;
        if offset < self.next {
            return Err(Error::operator(format!(
                "{} log partition {}: offset {offset} came after offset {}",
                self.table,
                self.partition,
                self.next.saturating_sub(1)
            )));
        }
        self.next = offset + 1;
        Ok(())
    }

    /// Writes the file that is owed when all below `reached` was handed in.
    async fn pay(&mut self, reached: u64) -> Result<()> {
        let Some((next, place)) = self.bound.filter(|(next, _)| reached >= *next) else { return Ok(()) };
        self.next = self.next.max(next);
        self.open.get_or_insert_with(|| Box::new(OpenFile::new(Bucket::at(place.ds, place.hour))));
        self.write(next - 1).await
    }

    /// Ends the open file before a record that belongs to another one.
    async fn rotate(&mut self, commit_us: i64, schema: Option<&Arc<TableSchema>>) -> Result<()> {
        if self.bound.is_some() {
            let same = self.open.as_ref().zip(schema).is_none_or(|(open, schema)| open.has_schema(schema));
            return if same { Ok(()) } else { Err(self.mixed()) };
        }
        self.settle().await?;
        let Some(open) = &self.open else { return Ok(()) };
        let stays =
            commit_us < open.bucket.end_us && commit_us >= open.bucket.start_us.saturating_sub(JITTER_US);
        if stays && schema.is_none_or(|schema| open.has_schema(schema)) {
            return Ok(());
        }
        let last = open.last_offset;
        self.write(last).await
    }

    fn mixed(&self) -> Error {
        Error::operator(format!(
            "{} log partition {}: the change file from offset {} on was begun with one shape of the table, and there are two",
            self.table, self.partition, self.first
        ))
        .mend("This is a defect; please report it.")
    }

    fn took(&mut self) {
        if let Some(open) = &mut self.open {
            open.last_offset = self.next - 1;
        }
    }

    fn file(&mut self, commit_us: i64, schema: Option<&Arc<TableSchema>>) -> &mut OpenFile {
        let (calendar, bound) = (&self.calendar, self.bound);
        let open = self.open.get_or_insert_with(|| {
            Box::new(OpenFile::new(match bound {
                Some((_, place)) => Bucket::at(place.ds, place.hour),
                None => Bucket::of(calendar, commit_us),
            }))
        });
        if let Some(schema) = schema {
            open.set_schema(schema);
        }
        open
    }

    /// Writes the open file as the range up to `last`.
    async fn write(&mut self, last: u64) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let range = ChangeRange { partition: self.partition, first: self.first, last };
        let Bucket { ds, hour, .. } = open.bucket;
        if self.bound.is_none() {
            self.sequence.claim(range, Place { ds, hour }).await?;
        }
        let encoded = tokio::task::spawn_blocking(move || open.encode(range.partition))
            .await
            .map_err(|error| Error::retry("encoding a change file was interrupted").cause(error))??;
        if let Some(dead) = encoded.dead_letters {
            let path = self.layout.staged_dead_letters(&self.table, ds, range);
            self.store.put_same(&path, dead).await?;
        }
        let path = self.layout.change_file(&self.table, ds, hour, range);
        self.store.put_same(&path, encoded.changes).await?;
        self.first = last + 1;
        self.bound = None;
        Ok(())
    }
}
