//! One table on its way into the lake.
//!
//! ```text
//!   log partition ── read ─ decode ─> stager ── change files ──┐ all closed at the cut
//!   log partition ── read ─ decode ─> stager ── change files ──┴─> merge with the day before ─> publish ─> trim
//! ```
//!
//! Nothing is remembered between processes but what is in the lake: the last manifest says where its day
//! ended, the change files say how far staging came. So any process may go on from any place, and two that
//! do the same work make the same objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::change::{Cut, Datum, Op, SchemaVersion, TableName};
use crate::envelope::{Options, TableDecoder, peek};
use crate::lake::{DeadRecord, Lake, Manifest, StagedChange, Stager};
use crate::log::{Fetched, Log, LogPartition, Offset, OffsetRange, RecordRef};
use crate::ops::TableStats;
use crate::runtime::{Error, Result};

use super::journal::Journal;

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
    stagers: BTreeMap<u32, Stager>,
    /// Up to where the log was told that it may let go, by log partition.
    trimmed: BTreeMap<u32, Offset>,
    decoders: HashMap<SchemaVersion, TableDecoder>,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// There is more to read at once.
    pub more: bool,
    /// A day of the table was published.
    pub published: bool,
}

impl TableDelivery {
    /// Finds out where the lake stands.
    pub async fn open(
        lake: &Lake,
        topic: &str,
        name: &TableName,
        options: Options,
        watch: Arc<TableStats>,
    ) -> Result<Self> {
        let published = lake.latest_manifest(name).await?;
        if let Some(manifest) = &published {
            watch.set_published(manifest.ds);
        }
        Ok(Self {
            topic: topic.to_owned(),
            name: name.clone(),
            options,
            watch,
            published,
            stagers: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            decoders: HashMap::new(),
        })
    }

    /// The last day published.
    pub fn published(&self) -> Option<crate::change::Ds> {
        self.published.as_ref().map(|manifest| manifest.ds)
    }

    /// The last manifest.
    pub const fn manifest(&self) -> Option<&Manifest> {
        self.published.as_ref()
    }

    /// Bytes held in memory.
    pub fn memory(&self) -> usize {
        self.stagers.values().map(Stager::memory).sum()
    }

    /// Writes what is held in memory.
    pub async fn flush(&mut self) -> Result<()> {
        for stager in self.stagers.values_mut() {
            stager.flush().await?;
        }
        Ok(())
    }

    /// Stages what the log holds, up to the next cut, and publishes the day when the cut is reached.
    ///
    /// `ranges` are those of the table's log partitions, taken before the journal was refreshed. Not
    /// cancel-safe: a delivery whose turn was dropped or failed has to [`Self::forget`] what it holds.
    pub async fn turn(
        &mut self,
        log: &dyn Log,
        lake: &Lake,
        journal: &Journal,
        ranges: &BTreeMap<LogPartition, OffsetRange>,
    ) -> Result<Turn> {
        let cut =
            journal.cuts_after(self.published()).find(|cut| cut.tables.contains_key(&self.topic)).cloned();
        let mut turn = Turn::default();
        let mut complete = true;
        for (partition, range) in ranges {
            let end = cut.as_ref().map(|cut| self.cut_end(cut, partition.partition));
            let target = end.map_or(range.end, |end| end.min(range.end));
            self.stage(log, lake, journal, partition, *range, target).await?;
            let Some(stager) = self.stagers.get_mut(&partition.partition) else { continue };
            turn.more |= stager.next_offset() < target;
            match (&cut, end) {
                (Some(cut), Some(end)) if stager.next_offset() >= end => {
                    stager.close(end, cut.at.as_microsecond()).await?;
                }
                _ => complete = false,
            }
        }
        self.watch.set_end_offset(ranges.values().map(|range| range.end).sum());
        self.watch.set_staged_offset(self.stagers.values().map(Stager::durable).sum());
        if let Some(cut) = cut.filter(|_| complete) {
            self.publish(lake, journal, &cut).await?;
            turn = Turn { more: true, published: true };
        }
        self.trim(log, ranges).await?;
        Ok(turn)
    }

    fn cut_end(&self, cut: &Cut, partition: u32) -> Offset {
        let ends = cut.tables.get(&self.topic).map_or(&[][..], |table| &table.ends);
        ends.iter().find(|end| end.partition == partition).map_or(0, |end| end.end)
    }

    /// Stages one log partition, up to `target` and for one turn.
    async fn stage(
        &mut self,
        log: &dyn Log,
        lake: &Lake,
        journal: &Journal,
        partition: &LogPartition,
        range: OffsetRange,
        target: Offset,
    ) -> Result<()> {
        let number = partition.partition;
        if !self.stagers.contains_key(&number) {
            let from = self.published.as_ref().map_or(0, |manifest| end_of(manifest, number));
            let since = self.published();
            let chain = lake.chain(&self.name, number, (from, None), since).await?;
            if chain.next < range.start && range.start < range.end {
                return Err(Error::operator(format!(
                    "{partition}: offsets {}..{} are not staged and not in the log any more",
                    chain.next, range.start
                ))
                .mend("The log's retention passed them. Move the log and the lake's folders of the table aside and start again: a new backfill is made."));
            }
            self.stagers.insert(number, lake.stager(&self.name, number, chain.next));
        }
        let mut budget = TURN_BYTES;
        while budget > 0 {
            let Some(stager) = self.stagers.get(&number) else { break };
            let from = stager.next_offset();
            if from >= target {
                break;
            }
            let fetched = log.read(partition, from, budget).await?;
            if fetched.next <= from {
                break;
            }
            budget = budget.saturating_sub(fetched.frames.len().max(1));
            self.take(journal, number, &fetched, target).await?;
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
                stager.skip(offset)?;
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
        let schema = journal.shape(&self.topic, table.schema_version)?;
        let from = self.published.as_ref().map_or(SchemaVersion(1), |manifest| manifest.schema.version);
        journal.same_key(&self.topic, from, table.schema_version)?;
        let started = std::time::Instant::now();
        let manifest = lake.merge_and_publish(schema, cut, &self.topic, self.published.as_ref()).await?;
        self.watch.set_published(manifest.ds);
        tracing::info!(
            table = %self.name, ds = %manifest.ds, rows = manifest.rows, changes = table.changes,
            dead_letters = manifest.changes.dead_letters, seconds = started.elapsed().as_secs_f64(), "published"
        );
        self.published = Some(manifest);
        Ok(())
    }

    /// The change files hold everything below their end: the log may let go of it. Also between two cuts, or
    /// a log with a limit would have to hold a whole day.
    async fn trim(&mut self, log: &dyn Log, ranges: &BTreeMap<LogPartition, OffsetRange>) -> Result<()> {
        for partition in ranges.keys() {
            let Some(stager) = self.stagers.get(&partition.partition) else { continue };
            let trimmed = self.trimmed.entry(partition.partition).or_default();
            if stager.durable() > *trimmed {
                log.trim(partition, stager.durable()).await?;
                *trimmed = stager.durable();
            }
        }
        Ok(())
    }
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

/// Where a day ended in a log partition.
fn end_of(manifest: &Manifest, partition: u32) -> Offset {
    manifest.log.iter().find(|range| range.partition == partition).map_or(0, |range| range.end)
}

/// An empty vector of another lifetime in the same buffer.
fn empty<'b>(mut row: Vec<Datum<'_>>) -> Vec<Datum<'b>> {
    row.clear();
    row.into_iter().map(|_| Datum::Null).collect()
}
