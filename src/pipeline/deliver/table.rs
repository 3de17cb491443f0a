//! One table on its way into the lake.
//!
//! ```text
//!   log partition ── read ─ decode ─> stager ── change files ──┐ all closed at the cut
//!   log partition ── read ─ decode ─> stager ── change files ──┴─> merge with the day before ─> publish ─> trim
//! ```
//!
//! What the log's retention has passed before it was staged is a gap ([`gap`]): days whose changes lie in it are told as
//! missing, until a cut tells of a new copy of the table.
//!
//! Nothing is remembered between processes but what is in the lake: the last manifest says where its day
//! ended, the change files and their sequence say how far staging came. So any process may go on from any place, and two
//! that do the same work make the same objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use crate::change::{Cut, Datum, Ds, Op, SchemaVersion, TableName};
use crate::envelope::{Options, TableDecoder, peek};
use crate::lake::{DeadRecord, Lake, Link, Manifest, Published, Shapes, StagedChange, Stager, TailRule};
use crate::log::{Fetched, Log, LogPartition, Offset, OffsetRange, RecordRef};
use crate::ops::TableStats;
use crate::runtime::{Class, Result};

use super::gap::{Gaps, Needed};
use super::hours::Hours;
use super::journal::Journal;
use super::premerge::{PremergeSettings, Premerging};
use super::share::TableStanding;

/// Bytes read from a log partition before the next table has its turn.
const TURN_BYTES: usize = 8 << 20;

/// A table being delivered.
#[derive(Debug)]
pub struct TableDelivery {
    topic: String,
    name: TableName,
    options: Options,
    watch: Arc<TableStats>,
    published: Option<Manifest>,
    /// The last day of which it is known whether the table is in it.
    decided: Option<Ds>,
    gaps: Gaps,
    /// Days which the table is not in, and why.
    missing: BTreeMap<Ds, String>,
    /// Bytes read of the log since the last day was published.
    read_bytes: u64,
    stagers: BTreeMap<u32, Stager>,
    hours: Hours,
    /// Where the log partitions began when they were found to begin behind what is staged, and it was looked for.
    looked: BTreeMap<u32, Offset>,
    /// The shapes which the stagers know.
    shapes: Option<Shapes>,
    /// Up to where the log was told that it may let go, by log partition.
    trimmed: BTreeMap<u32, Offset>,
    decoders: HashMap<SchemaVersion, TableDecoder>,
    premerging: Premerging,
    tail: Option<TailRule>,
    /// It was told that the table has left the days while changes of its historic tail were deferred.
    told_left: bool,
}

/// What a turn did.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// There is more to read at once.
    pub more: bool,
    /// A day of the table was published.
    pub published: bool,
    /// A day the table is not in.
    pub missed: Option<Ds>,
    /// What only a new copy of the table can mend.
    pub needed: Option<Needed>,
}

/// The log partitions of a table, by number, with their ranges. The topic of its copies is one of them.
pub type Partitions = BTreeMap<u32, (LogPartition, OffsetRange)>;

impl TableDelivery {
    /// Finds out where the lake stands. `day` is the last one that is complete, and so decided for every table; `told` is
    /// what the table's former owner has said.
    pub async fn open(
        lake: &Lake,
        topic: &str,
        name: &TableName,
        (options, premerge, tail): (Options, PremergeSettings, Option<TailRule>),
        watch: Arc<TableStats>,
        day: Option<Ds>,
        told: Option<TableStanding>,
    ) -> Result<Self> {
        let published = lake.latest_manifest(name).await?;
        if let Some(manifest) = &published {
            tell_published(&watch, manifest);
        }
        let mut missing = told.unwrap_or_default().missing;
        missing.retain(|ds, _| Some(*ds) > day);
        let last = published.as_ref().map(|manifest| manifest.ds);
        lake.sweep(name, last).await?;
        let decided = day.max(last);
        let decided = decided.max(missing.keys().next_back().copied());
        Ok(Self {
            topic: topic.to_owned(),
            name: name.clone(),
            options,
            watch,
            published,
            decided,
            gaps: Gaps::default(),
            missing,
            read_bytes: 0,
            stagers: BTreeMap::new(),
            hours: Hours::default(),
            looked: BTreeMap::new(),
            shapes: None,
            trimmed: BTreeMap::new(),
            decoders: HashMap::new(),
            premerging: Premerging::new(premerge),
            tail,
            told_left: false,
        })
    }

    /// The last day published.
    fn published(&self) -> Option<Ds> {
        self.published.as_ref().map(|manifest| manifest.ds)
    }

    /// The table.
    pub const fn name(&self) -> &TableName {
        &self.name
    }

    /// How far the table is, for whoever has it next and for the day's manifest. `day` is the last one that is complete.
    pub fn standing(&self, day: Option<Ds>) -> TableStanding {
        let missing = self.missing.iter().filter(|(ds, _)| Some(**ds) > day);
        TableStanding {
            decided: self.decided,
            missing: missing.map(|(ds, reason)| (*ds, reason.clone())).collect(),
            bytes: self.published.as_ref().map_or(0, Manifest::bytes) + self.read_bytes,
        }
    }

    /// Why the table is not in a day.
    pub fn missing(&self, ds: Ds) -> Option<&str> {
        self.missing.get(&ds).map(String::as_str)
    }

    /// The last manifest.
    pub const fn manifest(&self) -> Option<&Manifest> {
        self.published.as_ref()
    }

    /// Bytes held in memory.
    pub fn memory(&self) -> usize {
        self.stagers.values().map(Stager::memory).sum()
    }

    /// Gives back the memory: what is held goes into the lake, where no reader sees it before its hour is over.
    pub async fn flush(&mut self) -> Result<()> {
        for stager in self.stagers.values_mut() {
            stager.flush().await?;
        }
        Ok(())
    }

    /// Stages what the log holds, up to the next cut, and publishes the day when the cut is reached.
    ///
    /// `partitions` have ranges that were taken before the journal was refreshed. While any table's day is to be made, which
    /// `cuts` tells, nothing is made of the next one. Not cancel-safe: a delivery whose turn was dropped or failed has to drop
    /// what it holds.
    pub async fn turn(
        &mut self,
        log: &dyn Log,
        lake: &Lake,
        journal: &Journal,
        partitions: &Partitions,
        cuts: bool,
    ) -> Result<Turn> {
        let cut = self.next_cut(journal).cloned();
        let mut turn = Turn::default();
        // A cut may be newer than the ranges, and name a log partition that they have not.
        let ends =
            cut.as_ref().and_then(|cut| cut.tables.get(&self.topic)).map_or(&[][..], |table| &table.ends);
        let mut complete = ends.iter().all(|end| end.end == 0 || partitions.contains_key(&end.partition));
        let now_us = jiff::Timestamp::now().as_microsecond();
        for (number, (partition, range)) in partitions {
            let end = cut.as_ref().map(|cut| self.cut_end(cut, *number));
            let target = end.map_or(range.end, |end| end.min(range.end));
            self.resume(lake, journal, *number, (*range, target)).await?;
            self.stage(log, journal, *number, (partition, *range), target).await?;
            let Some(stager) = self.stagers.get_mut(number) else { continue };
            let more = stager.next_offset() < target;
            turn.more |= more;
            match (&cut, end) {
                (Some(cut), Some(end)) if stager.next_offset() >= end => {
                    // At it or beyond it, where staging went on before, or the log begins beyond it.
                    if stager.covered() < end {
                        stager.close(end, cut.at.as_microsecond()).await?;
                    }
                }
                _ => {
                    complete = false;
                    if !more && self.hours.is_over(*number, stager, now_us) {
                        stager.end_hour().await?;
                    }
                }
            }
        }
        self.watch.set_end_offset(partitions.values().map(|(_, range)| range.end).sum());
        self.watch.set_staged_offset(self.staged());
        if let Some(held) = &self.published {
            self.premerging.give_way(held, &self.watch);
        }
        if cuts || cut.is_some() {
            self.premerging.rest();
        } else if !turn.more {
            self.premerge(lake, journal).await?;
        }
        if let Some(cut) = cut.filter(|_| complete) {
            turn.more = true;
            match self.lacking(journal, &cut)? {
                Some(reason) => {
                    tracing::error!(table = %self.name, ds = %cut.ds, reason, "the table is missing from the day");
                    self.missing.insert(cut.ds, reason);
                    turn.missed = Some(cut.ds);
                }
                None => {
                    self.publish(lake, journal, &cut).await?;
                    turn.published = true;
                }
            }
            self.decided = Some(cut.ds);
        }
        self.tell_left(journal);
        turn.needed = self.gaps.needed(journal, &self.topic, (self.published(), self.decided));
        self.trim(log, partitions).await?;
        Ok(turn)
    }

    /// The next day of the table that is to be made.
    pub fn next_cut<'a>(&self, journal: &'a Journal) -> Option<&'a Arc<Cut>> {
        journal.cuts_after(self.decided).find(|cut| cut.tables.contains_key(&self.topic))
    }

    /// A table that was dropped, renamed or excluded is in no later cut: what its last day has deferred comes with none.
    fn tell_left(&mut self, journal: &Journal) {
        let Some(held) = self.published.as_ref().filter(|_| !self.told_left) else { return };
        let Some(tail) = &held.historic_tail else { return };
        let left = journal.cuts_after(Some(held.ds)).find(|cut| !cut.tables.contains_key(&self.topic));
        if let Some(cut) = left {
            tracing::warn!(
                table = %self.name, ds = %cut.ds, last = %held.ds, tail_as_of = %tail.as_of.ds, deferred = held.changes.deferred,
                "the table is in no day any more, and changes of its historic tail were deferred: its last day stays without them; \
                 the change files hold them"
            );
            self.told_left = true;
        }
    }

    /// Makes what can be made of the next day.
    async fn premerge(&mut self, lake: &Lake, journal: &Journal) -> Result<()> {
        let Some((held, newest)) = self.published.as_ref().zip(journal.newest(&self.topic)) else {
            return Ok(());
        };
        // What belongs to which day of such a table is seen when the day is merged.
        if held.historic_tail.is_some() || self.tail.is_some_and(|rule| rule.divides(held)) {
            return Ok(());
        }
        let handed = self.handed();
        if self.premerging.begins(held, handed, &self.watch) {
            // What is open is written early, where the round finds it. A store that takes it not costs no delivery.
            if self.premerging.wants_what_is_open() {
                for stager in self.stagers.values_mut() {
                    stager.seal().await?;
                    match stager.put_sealed().await {
                        Err(error) if error.class() != Class::Fenced => {
                            self.premerging.put_off(held, &error);
                            return Ok(());
                        }
                        done => done?,
                    }
                }
            }
            let shapes = journal.shapes(&self.topic, newest, self.options)?;
            self.premerging.begin(lake, held, handed, shapes);
        }
        Ok(())
    }

    /// Up to where changes were handed in, of all log partitions.
    fn handed(&self) -> Offset {
        self.stagers.values().map(Stager::next_offset).sum()
    }

    /// Up to where changes are in change files, of all log partitions.
    fn staged(&self) -> Offset {
        self.stagers.values().map(Stager::covered).sum()
    }

    /// When the table has something to do again, without anything that happens.
    pub fn due(&self) -> Option<Instant> {
        let ends = self.hours.due(self.stagers.iter());
        self.premerging.due().into_iter().chain(ends).min()
    }

    /// Why the table cannot be made at this cut, now or later; none when it can.
    fn lacking(&self, journal: &Journal, cut: &Cut) -> Result<Option<String>> {
        let held = (self.published(), self.decided);
        let Some(table) = cut.tables.get(&self.topic) else { return Ok(None) };
        if let Some(reason) = &table.lacking {
            return Ok(Some(reason.clone()));
        }
        if let Some(reason) = self.gaps.lacking(journal, &self.topic, held, cut) {
            return Ok(Some(reason));
        }
        let first = self.published.as_ref().map_or(SchemaVersion(1), |manifest| manifest.schema.version);
        let from = table.backfill.as_ref().map_or(first, |copy| copy.schema_version);
        let shapes = journal.shapes(&self.topic, table.schema_version, self.options)?;
        Ok(shapes.readable_since(from).err().map(|error| error.to_string()))
    }

    fn cut_end(&self, cut: &Cut, partition: u32) -> Offset {
        let ends = cut.tables.get(&self.topic).map_or(&[][..], |table| &table.ends);
        ends.iter().find(|end| end.partition == partition).map_or(0, |end| end.end)
    }

    /// Makes ready to stage a log partition from where that was left off, or from behind what is lost.
    async fn resume(
        &mut self,
        lake: &Lake,
        journal: &Journal,
        number: u32,
        (range, target): (OffsetRange, Offset),
    ) -> Result<()> {
        self.learn(journal)?;
        if !self.stagers.contains_key(&number) {
            let from = self.published.as_ref().map_or(0, |manifest| manifest.end_of(number));
            self.open_stager(lake, number, from).await?;
        }
        while let Some(stager) = self.stagers.get_mut(&number)
            && stager.next_offset() < range.start.min(target)
        {
            // What another process has written early may be all that there is of it, and it was there before the log let go.
            let held = range.start.min(target);
            if self.looked.insert(number, held).is_none_or(|looked| looked < held) {
                stager.flush().await?;
                let from = stager.covered();
                self.open_stager(lake, number, from).await?;
                continue;
            }
            if !is_lost(stager.next_offset(), range, target) {
                break;
            }
            stager.finish().await?;
            // The file that was begun there cannot be made any more, by nobody who does not have it already.
            let owed = stager.owes();
            let from = if owed.is_some() { stager.covered() } else { stager.next_offset() };
            let beyond = owed.unwrap_or(range.start.min(target));
            if owed.is_some() || lake.give_up(&self.name, number, from, beyond).await? {
                self.lost(number, from..beyond);
                self.open_stager(lake, number, beyond).await?;
            } else {
                self.open_stager(lake, number, from).await?;
            }
        }
        Ok(())
    }

    /// Has the stagers know the shapes which the journal knows.
    fn learn(&mut self, journal: &Journal) -> Result<()> {
        let Some(newest) = journal.newest(&self.topic) else { return Ok(()) };
        if self.shapes.as_ref().is_some_and(|shapes| shapes.now().version == newest) {
            return Ok(());
        }
        let shapes = journal.shapes(&self.topic, newest, self.options)?;
        for stager in self.stagers.values_mut() {
            stager.know(shapes.clone());
        }
        self.shapes = Some(shapes);
        Ok(())
    }

    /// A stager behind the change files that follow from an offset on, and behind what is known to be lost there.
    async fn open_stager(&mut self, lake: &Lake, number: u32, mut from: Offset) -> Result<()> {
        let since = self.published();
        loop {
            from = lake.chain(&self.name, number, (from, None), since).await?.next;
            match lake.link(&self.name, number, from).await? {
                Some(Link { next, place: None }) => {
                    self.lost(number, from..next);
                    from = next;
                }
                _ => break,
            }
        }
        let Some(shapes) = &self.shapes else { return Ok(()) };
        self.stagers.insert(number, lake.stager(&self.name, number, from, shapes).await?);
        Ok(())
    }

    /// Stages a log partition again from an offset on, divided at cuts, up to its end; see [`super::replay`].
    pub async fn stage_again(
        &mut self,
        log: &dyn Log,
        lake: &Lake,
        journal: &Journal,
        number: u32,
        of: (&LogPartition, OffsetRange),
        (from, cuts): (Offset, &[Arc<Cut>]),
    ) -> Result<()> {
        self.learn(journal)?;
        self.open_stager(lake, number, from).await?;
        for cut in cuts {
            let end = self.cut_end(cut, number);
            if end <= from || end > of.1.end {
                continue;
            }
            self.stage_up_to(log, journal, number, of, end).await?;
            if let Some(stager) = self.stagers.get_mut(&number).filter(|stager| stager.covered() < end) {
                stager.close(end, cut.at.as_microsecond()).await?;
            }
        }
        self.stage_up_to(log, journal, number, of, of.1.end).await?;
        match self.stagers.get_mut(&number) {
            Some(stager) => stager.finish().await,
            None => Ok(()),
        }
    }

    async fn stage_up_to(
        &mut self,
        log: &dyn Log,
        journal: &Journal,
        number: u32,
        of: (&LogPartition, OffsetRange),
        target: Offset,
    ) -> Result<()> {
        let next = |of: &Self| of.stagers.get(&number).map_or(target, Stager::next_offset);
        loop {
            let before = next(self);
            if before >= target {
                return Ok(());
            }
            self.stage(log, journal, number, of, target).await?;
            // Nothing but markers of transactions is left.
            if next(self) == before {
                return Ok(());
            }
        }
    }

    fn lost(&mut self, number: u32, gap: std::ops::Range<Offset>) {
        let (from, to) = (gap.start, gap.end);
        if self.gaps.note(number, gap) {
            tracing::error!(
                table = %self.name, log_partition = number, from, to,
                "records are not in the log any more and were not staged: its retention has passed them, or what was written of \
                 them early (changes/…/_pieces) was cleared by somebody"
            );
        }
    }

    /// Stages one log partition, up to `target` and for one turn.
    async fn stage(
        &mut self,
        log: &dyn Log,
        journal: &Journal,
        number: u32,
        (partition, range): (&LogPartition, OffsetRange),
        target: Offset,
    ) -> Result<()> {
        let mut budget = TURN_BYTES;
        while let Some(stager) = self.stagers.get(&number) {
            // A file that is owed cannot be written early, and is not held from one turn to the next.
            if budget == 0 && stager.owes().is_none() {
                break;
            }
            let bytes_max = if budget == 0 { TURN_BYTES } else { budget };
            let from = stager.next_offset().max(range.start);
            if from >= target {
                break;
            }
            let fetched = log.read(partition, from, bytes_max).await?;
            if fetched.next <= from {
                break;
            }
            self.read_bytes += fetched.frames.len() as u64;
            budget = budget.saturating_sub(fetched.frames.len().max(1));
            self.take(journal, number, &fetched, target).await?;
            // A large record is not held while its file is written.
            drop(fetched);
            if let Some(stager) = self.stagers.get_mut(&number) {
                stager.settle().await?;
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        journal: &Journal,
        partition: u32,
        fetched: &Fetched,
        target: Offset,
    ) -> Result<()> {
        let mut row = Vec::new();
        for (offset, record) in fetched.iter().take_while(|(offset, _)| *offset < target) {
            let Some(stager) = self.stagers.get_mut(&partition) else { return Ok(()) };
            if offset < stager.next_offset() {
                continue;
            }
            if record.value.is_none() {
                stager.skip(offset).await?;
                continue;
            }
            let decoder = match peek(&record) {
                Ok(peeked) => {
                    decoder(&mut self.decoders, journal, &self.topic, peeked.schema_version, self.options)?
                }
                Err(error) => {
                    stager.push_dead(&dead(offset, &record, &error.to_string())).await?;
                    continue;
                }
            };
            row = empty(row);
            match decoder.decode(&record, &mut row) {
                Err(error) => stager.push_dead(&dead(offset, &record, &error.to_string())).await?,
                Ok(decoded) => {
                    let op = decoded.op.unwrap_or(Op::Truncate);
                    let deleted = op == Op::Delete;
                    let change = StagedChange {
                        offset,
                        position: decoded.position,
                        op,
                        commit_us: decoded.commit_us,
                        schema: journal.shape(&self.topic, decoded.schema_version)?,
                        old_key: decoded.old_key.and_then(|key| std::str::from_utf8(key).ok()),
                        before: if deleted { Some(&row[..]) } else { decoded.before.as_deref() },
                        row: if deleted || op == Op::Truncate { &[][..] } else { &row[..] },
                        raw_key: record.key,
                        raw_value: record.value,
                    };
                    stager.push(&change).await?;
                }
            }
        }
        Ok(())
    }

    async fn publish(&mut self, lake: &Lake, journal: &Journal, cut: &Cut) -> Result<()> {
        let Some(table) = cut.tables.get(&self.topic) else { return Ok(()) };
        let shapes = journal.shapes(&self.topic, table.schema_version, self.options)?;
        let started = std::time::Instant::now();
        let premerged = self.premerging.take(&self.name, self.handed()).await;
        self.watch.set_premerged_bytes(0);
        for stager in self.stagers.values_mut() {
            stager.clear().await;
        }
        let previous = self.published.as_ref();
        let published =
            lake.merge_and_publish(&shapes, cut, &self.topic, previous, premerged, self.tail).await?;
        let Published { manifest, premerged } = published;
        tell_published(&self.watch, &manifest);
        let work = manifest.work.unwrap_or_default();
        tracing::info!(
            table = %self.name, ds = %manifest.ds, rows = manifest.rows, changes = table.changes,
            dead_letters = manifest.changes.dead_letters, deferred = manifest.changes.deferred,
            tail_as_of = manifest.historic_tail.as_ref().map(|tail| tail.as_of.ds.to_string()), files_written = work.files_written,
            files_copied = work.files_copied, bytes_read = work.bytes_read, bytes_written = work.bytes_written,
            bytes_copied = work.bytes_copied, share_written = work.share_written(),
            premerged_changes = premerged.changes, premerged_files = premerged.files, premerged_bytes = premerged.bytes,
            seconds = started.elapsed().as_secs_f64(), "published"
        );
        self.published = Some(manifest);
        self.read_bytes = 0;
        if table.backfill.is_some() {
            self.gaps = Gaps::default();
        }
        Ok(())
    }

    /// Change files, and pieces of the next one, hold everything below their end: the log may let go of it. Also between two
    /// cuts, or a log with a limit would have to hold a whole day.
    async fn trim(&mut self, log: &dyn Log, partitions: &Partitions) -> Result<()> {
        for (number, (partition, _)) in partitions {
            let Some(stager) = self.stagers.get(number) else { continue };
            let trimmed = self.trimmed.entry(*number).or_default();
            if stager.durable() > *trimmed {
                log.trim(partition, stager.durable()).await?;
                *trimmed = stager.durable();
            }
        }
        Ok(())
    }
}

impl Drop for TableDelivery {
    /// Whoever has the table next tells of it.
    fn drop(&mut self) {
        self.watch.set_premerged_bytes(0);
    }
}

fn tell_published(watch: &TableStats, manifest: &Manifest) {
    watch.set_published(manifest.ds);
    if let Some(work) = manifest.work {
        watch.set_published_bytes(work.bytes_written, work.bytes_copied);
    }
    watch.set_historic_tail(
        manifest.historic_tail.as_ref().map(|tail| (tail.as_of.ds, manifest.changes.deferred)),
    );
}

fn decoder<'d>(
    decoders: &'d mut HashMap<SchemaVersion, TableDecoder>,
    journal: &Journal,
    topic: &str,
    version: SchemaVersion,
    options: Options,
) -> Result<&'d TableDecoder> {
    use std::collections::hash_map::Entry;
    match decoders.entry(version) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(new) => Ok(new.insert(TableDecoder::new(journal.shape(topic, version)?, options))),
    }
}

fn dead<'a>(offset: Offset, record: &RecordRef<'a>, reason: &'a str) -> DeadRecord<'a> {
    DeadRecord {
        offset,
        position: peek(record).ok().map(|peeked| peeked.position),
        commit_us: record.timestamp_ms.saturating_mul(1000),
        reason,
        raw_key: record.key,
        raw_value: record.value,
    }
}

/// Whether the log does not hold any more what comes next. One offset alone may be a transaction's marker, unless it is
/// the last before `target`, which is just past a record: then the sum at the cut tells whether a record was there.
pub(super) fn is_lost(next: Offset, range: OffsetRange, target: Offset) -> bool {
    let held = range.start.min(target);
    next < held && (held == target || next + 1 < held)
}

/// An empty vector of another lifetime in the same buffer.
fn empty<'b>(mut row: Vec<Datum<'_>>) -> Vec<Datum<'b>> {
    row.clear();
    row.into_iter().map(|_| Datum::Null).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_at_the_end_of_what_was_staged_is_no_loss() {
        let range = |start, end| OffsetRange { start, end };
        for (next, start, end, target, lost) in [
            (10, 0, 20, 20, false),
            (10, 10, 20, 20, false),
            (10, 11, 20, 20, false),
            (10, 12, 20, 20, true),
            (10, 11, 11, 11, true),
            (10, 30, 40, 11, true),
            (10, 30, 40, 10, false),
            (10, 10, 10, 10, false),
        ] {
            assert_eq!(is_lost(next, range(start, end), target), lost, "{next} {start} {end} {target}");
        }
    }
}
