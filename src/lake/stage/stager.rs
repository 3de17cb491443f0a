//! Stages a log partition of a table; [`super`] draws how.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use object_store::path::Path;

use crate::change::{Calendar, TableName, TableSchema};
use crate::runtime::{Error, Result};

use super::super::layout::{Bucket, ChangeRange, Layout};
use super::super::shapes::Shapes;
use super::super::store::Store;
use super::build::Build;
use super::file::{OpenFile, Part, Sealed};
use super::pieces::{self, Piece};
use super::sequence::{Place, Sequence};
use super::{DeadLetter, DeadRecord, Payload, StageLimits, StagedChange};

/// How far back a commit time may step within a file: clocks of concurrent commits differ by milliseconds,
/// and a file for each row around a full hour would help nobody.
const JITTER_US: i64 = 300_000_000;

/// Pieces that are read at once.
const LOADS: usize = 8;

/// Where staging puts what it makes.
#[derive(Clone, Debug)]
pub(in crate::lake) struct Staging {
    pub(in crate::lake) store: Store,
    pub(in crate::lake) layout: Layout,
    pub(in crate::lake) calendar: Calendar,
    pub(in crate::lake) limits: StageLimits,
}

/// Stages one log partition of a table. Costs next to nothing while no file is open.
///
/// No method is cancel-safe: a stager whose future was dropped, or which has returned an error, is dropped
/// too, and the next one starts from [`chain()`](super::chain()).
#[derive(Debug)]
pub struct Stager {
    to: Staging,
    table: TableName,
    partition: u32,
    sequence: Sequence,
    shapes: Shapes,
    /// Where the next file has to end, and its place, when its link was found.
    bound: Option<(u64, Place)>,
    /// First offset that no change file covers.
    first: u64,
    /// First offset that no piece covers either.
    durable: u64,
    /// First offset that was not handed in yet.
    next: u64,
    open: Option<Box<OpenFile>>,
    /// Objects of pieces whose change file is there: somebody who premerges may be reading them.
    made: Vec<Path>,
}

impl Stager {
    /// From `next` on, which is where the change files end that were listed before.
    ///
    /// # Errors
    /// `Fenced`: several have staged what comes; what could be made of it is made, and the caller has to look again.
    pub(in crate::lake) async fn open(
        to: Staging,
        (table, partition): (TableName, u32),
        next: u64,
        shapes: Shapes,
    ) -> Result<Self> {
        let sequence = Sequence::new(to.store.clone(), to.layout.clone(), table.clone(), partition);
        // Pieces go when their change file is there, which is begun before: so what is begun is looked at after them.
        let found = pieces::list((&to.store, &to.layout), (&table, partition)).await?;
        let bound = sequence.link(next).await?.and_then(|link| Some((link.next, link.place?)));
        if let Some((end, Place { ds, hour })) = bound {
            let range = ChangeRange { partition, first: next, last: end - 1 };
            if to.store.get(&to.layout.change_file(&table, ds, hour, range)).await?.is_some() {
                return Err(overtaken(&table, partition, next));
            }
        }
        pieces::remove(&to.store, &found.made(next)).await;
        let found = found.open(&to.calendar, next, bound.map(|(end, _)| end));
        let mut stager = Self {
            to,
            table,
            partition,
            sequence,
            shapes,
            bound,
            first: next,
            durable: next,
            next,
            open: None,
            made: Vec::new(),
        };
        let Some(bucket) = found.bucket else { return Ok(stager) };
        let open = OpenFile::of_pieces(bucket_of(bucket, bound), found.pieces);
        let last = open.last_offset;
        stager.durable = last + 1;
        stager.next = stager.durable;
        stager.open = Some(Box::new(open));
        let end = bound.map_or(last + 1, |(end, _)| end);
        let more = found.more || end <= last;
        // What was begun is made as soon as it can be: pieces are all that there may be of it. And what is behind it belongs
        // to the next file.
        if more || (bound.is_some() && end == stager.next) {
            stager.write(end - 1).await?;
        }
        if more { Err(overtaken(&stager.table, partition, stager.first)) } else { Ok(stager) }
    }

    /// First offset beyond a file which somebody has begun, and which has to be made as it was begun; none when
    /// nobody has.
    pub fn owes(&self) -> Option<u64> {
        self.bound.map(|(next, _)| next)
    }

    /// First offset that no change file covers.
    pub const fn covered(&self) -> u64 {
        self.first
    }

    /// First offset that is not in the lake: from here the log is read again after a crash, and from here on it must be
    /// kept.
    pub const fn durable(&self) -> u64 {
        self.durable
    }

    /// First offset that was not handed in yet.
    pub const fn next_offset(&self) -> u64 {
        self.next
    }

    /// Bytes held in memory which [`Self::flush`] frees.
    pub fn memory(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.memory())
    }

    /// When the file that is open ends if no record comes: a while after its hour, microseconds since 1970.
    pub fn ends_us(&self) -> Option<i64> {
        let open = self.open.as_ref().filter(|_| self.bound.is_none())?;
        Some(open.bucket.end_us.saturating_add(JITTER_US))
    }

    /// Tells it of newer shapes of the table. Those which come with changes it learns by itself.
    pub fn know(&mut self, shapes: Shapes) {
        self.shapes = shapes;
    }

    /// Gives back the memory of what is open, which is written as a piece; no reader sees it.
    pub async fn flush(&mut self) -> Result<()> {
        self.seal().await?;
        self.put_sealed().await
    }

    /// Writes as pieces what was sealed of the file that is open. What the store has refused stays in memory: unless the error
    /// is `Fenced`, the stager may go on.
    pub async fn put_sealed(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let bucket = open.bucket;
        for part in open.parts_mut() {
            if let Part::Memory(sealed) = part {
                let to = (&self.to.store, &self.to.layout);
                *part = Part::Piece(pieces::put(to, (&self.table, self.partition), &bucket, sealed).await?);
            }
        }
        self.durable = self.durable.max(open.after_parts().unwrap_or(0));
        Ok(())
    }

    /// Writes what is open as a change file, though more may come for it; but not a part of a file which is owed.
    pub async fn finish(&mut self) -> Result<()> {
        match self.open.as_ref().filter(|_| self.bound.is_none()) {
            Some(open) => {
                let last = open.last_offset;
                self.write(last).await
            }
            None => Ok(()),
        }
    }

    /// Writes the file that is open, since its hour is over ([`Self::ends_us`]); all that was handed in is covered then.
    pub async fn end_hour(&mut self) -> Result<()> {
        if self.ends_us().is_none() {
            return Ok(());
        }
        self.write(self.next - 1).await
    }

    /// Writes the open file if it is full: to be called when what was handed in has been let go of, since it may be large.
    /// Else the next record does it.
    pub async fn settle(&mut self) -> Result<()> {
        if self.bound.is_some() {
            return self.pay(self.next).await;
        }
        let full = self.open.as_ref().filter(|open| open.is_full(self.to.limits));
        match full.map(|open| open.last_offset) {
            Some(last) => self.write(last).await,
            None => Ok(()),
        }
    }

    /// Takes a change. One which the file's types cannot hold goes to the dead letters.
    pub async fn push(&mut self, change: &StagedChange<'_>) -> Result<()> {
        self.step(change.offset).await?;
        self.rotate(change.commit_us, Some(change.schema)).await?;
        let partition = self.partition;
        let open = self.file(change.commit_us);
        if let Err(error) = open.push(change) {
            open.push_dead(DeadLetter {
                partition,
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
        let letter = DeadLetter {
            partition: self.partition,
            offset: record.offset,
            position: record.position,
            reason: record.reason.to_owned(),
            schema_version: None,
            key: record.raw_key.map(Payload::new),
            value: record.raw_value.map(Payload::new),
        };
        self.file(record.commit_us).push_dead(letter);
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
        self.file(cut_us.saturating_sub(1));
        self.write(end - 1).await
    }

    /// Removes what was written early of files that are there: nobody premerges. Else the next file's end does it.
    pub async fn clear(&mut self) {
        pieces::remove(&self.to.store, &std::mem::take(&mut self.made)).await;
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
        if self.bound.is_none() {
            self.settle().await?;
        }
        let held = self.open.as_ref().and_then(|open| open.version());
        let news = schema.filter(|schema| held != Some(schema.version));
        if let Some(schema) = news {
            self.shapes.know(schema);
        }
        let Some(open) = &self.open else { return Ok(()) };
        let (bucket, last) = (open.bucket, open.last_offset);
        let stays = commit_us < bucket.end_us && commit_us >= bucket.start_us.saturating_sub(JITTER_US);
        let alike = held.zip(news).is_none_or(|(held, schema)| self.shapes.carries(held, schema));
        if self.bound.is_some() && !alike {
            return Err(self.mixed());
        }
        if !(stays && alike) {
            return self.write(last).await;
        }
        if news.is_some_and(|schema| !open.takes(schema.version)) {
            self.seal().await?;
        }
        Ok(())
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

    fn file(&mut self, commit_us: i64) -> &mut OpenFile {
        let (calendar, bound) = (&self.to.calendar, self.bound);
        let bucket = || bucket_of(Bucket::of(calendar, commit_us), bound);
        self.open.get_or_insert_with(|| Box::new(OpenFile::new(bucket())))
    }

    /// Makes a part of the open file's rows in memory.
    pub async fn seal(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let (rows, offsets) =
            (open.take_rows(), (open.after_parts().unwrap_or(self.first), open.last_offset));
        if rows.is_empty() {
            return Ok(());
        }
        let sealed = blocking(move || rows.seal(offsets)).await?;
        open.seal(sealed);
        Ok(())
    }

    /// Writes the open file as the range up to `last`.
    async fn write(&mut self, last: u64) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let range = ChangeRange { partition: self.partition, first: self.first, last };
        let Bucket { ds, hour, .. } = open.bucket;
        let (rows, shapes) = (open.take_rows(), self.shapes.clone());
        // Before it is begun: what is gone then is made of the log, where that has it, and divided as it comes.
        let (parts, written) = self.load(open.into_parts()).await?;
        if self.bound.is_none() {
            self.sequence.claim(range, Place { ds, hour }).await?;
        }
        let built = blocking(move || Build { range, parts, rows, shapes }.run()).await?;
        let Staging { store, layout, .. } = &self.to;
        if let Some(dead) = built.dead_letters {
            store.put_same(&layout.staged_dead_letters(&self.table, ds, range), dead).await?;
        }
        store.put_same(&layout.change_file(&self.table, ds, hour, range), built.changes).await?;
        let done = written.iter().filter(|piece| piece.range.last <= last);
        pieces::remove(store, &std::mem::replace(&mut self.made, pieces::objects(done))).await;
        self.first = last + 1;
        self.durable = self.durable.max(self.first);
        self.bound = None;
        Ok(())
    }

    /// The parts in memory, and which of them are pieces.
    async fn load(&self, parts: Vec<Part>) -> Result<(Vec<Sealed>, Vec<Piece>)> {
        let written: Vec<Piece> = parts.iter().filter_map(Part::piece).cloned().collect();
        let store = &self.to.store;
        let load = async |part| match part {
            Part::Memory(sealed) => Ok(sealed),
            Part::Piece(piece) => pieces::load(store, &piece).await,
        };
        let loaded = stream::iter(parts).map(load).buffered(LOADS).try_collect().await?;
        Ok((loaded, written))
    }
}

/// The bucket of a file, which would be `bucket` if nobody had begun it.
fn bucket_of(bucket: Bucket, bound: Option<(u64, Place)>) -> Bucket {
    bound.map_or(bucket, |(_, place)| Bucket::at(place.ds, place.hour))
}

fn overtaken(table: &TableName, partition: u32, first: u64) -> Error {
    Error::fenced(format!(
        "{table} log partition {partition}: another process has staged the changes from offset {first} on"
    ))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::retry("encoding a change file was interrupted").cause(error))?
}
