//! `tidemark replay`: the change history made again from the log, in a lake of its own.
//!
//! ```text
//!   log, from a day or a position on ── each table: stage, divided at the cuts ──> change files of another lake
//! ```
//!
//! It reads what deliver reads and stages by the same code, so a day's change files hold the same rows; where a file ends
//! may differ, since that follows from size and memory. No day is published: that takes the day before. The log and the
//! connector's own lake are only read, so it may run beside everything. What was interrupted goes on when it is run again:
//! the other lake's change files are one sequence, too, and from another place it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::Partitions;
use super::delivery::by_topic;
use super::journal::Journal;
use super::premerge::PremergeSettings;
use super::table::{TableDelivery, is_lost};
use crate::change::{BACKFILL_PARTITION, Cut, Ds, Position, TableName};
use crate::envelope::{Options, peek, routing};
use crate::lake::Lake;
use crate::log::{Log, LogPartition, Offset, OffsetRange};
use crate::ops::Ops;
use crate::runtime::{Error, Result};

/// Bytes that are read at once while a position is looked for.
const LOOK_BYTES: usize = 8 << 20;

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With a day's first change.
    Day(Ds),
    /// With the first change at or after a position.
    Position(Position),
}

/// A log partition that was staged again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// The table.
    pub table: TableName,
    /// Log partition of its topic.
    pub partition: u32,
    /// First offset.
    pub from: Offset,
    /// First offset after.
    pub end: Offset,
}

/// Stages the log again into `lake`, of all tables or of one, up to where it ends now.
///
/// # Errors
/// `Operator`: the log does not reach back so far, or does not know the table, or the other lake holds change files of it that
/// begin elsewhere; nothing of that table is written then.
/// Not cancel-safe in that it leaves what was written; the next call goes on there.
pub async fn replay(
    (name, options): (&str, Options),
    log: &dyn Log,
    lake: &Lake,
    from: From,
    only: Option<&TableName>,
) -> Result<Vec<Replayed>> {
    let mut ranges = by_topic(log.ranges().await?);
    let mut journal = Journal::new(name);
    journal.refresh(log).await?;
    let (ops, _) = Ops::new(name);
    let tables: BTreeMap<TableName, String> = journal
        .tables()
        .filter(|(_, table)| only.is_none_or(|only| only == *table))
        .map(|(topic, table)| (table.clone(), topic.to_owned()))
        .collect();
    if let Some(only) = only.filter(|_| tables.is_empty()) {
        return Err(Error::operator(format!("the log knows no table {only}"))
            .mend("`tidemark status` lists the tables."));
    }
    if let Some(beginning) = journal.beginning() {
        lake.bind(beginning).await?;
    }
    let mut replayed = Vec::new();
    let never = PremergeSettings { interval: None, table_bytes_min: 0 };
    for (table, topic) in tables {
        let mut partitions = ranges.remove(&topic).unwrap_or_default();
        let copies = ranges.remove(&routing::backfill_topic(name, &table));
        if let Some((_, copies)) = copies.and_then(|mut copies| copies.pop_first()) {
            partitions.insert(BACKFILL_PARTITION, copies);
        }
        let begins = begins(log, &journal, &topic, &partitions, from).await?;
        // Where there is nothing to stage yet, nothing is begun.
        let staged = |(number, begin): (&u32, &Offset)| {
            partitions.get(number).is_some_and(|(_, range)| *begin < range.end).then_some((*number, *begin))
        };
        lake.begin_replay(&table, &begins.iter().filter_map(staged).collect()).await?;
        let mut delivery =
            TableDelivery::open(lake, &topic, &table, (options, never, None), ops.table(&table), None, None)
                .await?;
        for (number, (partition, range)) in &partitions {
            let (begin, cuts) = (begins[number], cuts_behind(&journal, &topic, from));
            delivery.stage_again(log, lake, &journal, *number, (partition, *range), (begin, &cuts)).await?;
            replayed.push(Replayed { table: table.clone(), partition: *number, from: begin, end: range.end });
        }
    }
    Ok(replayed)
}

/// The last cut before the beginning, and those behind it.
fn around<'j>(journal: &'j Journal, topic: &str, from: From) -> (Option<&'j Arc<Cut>>, Vec<&'j Arc<Cut>>) {
    let before = |cut: &Cut| match from {
        From::Day(ds) => cut.ds < ds,
        From::Position(position) => cut.position < position,
    };
    let of_topic = journal.cuts_after(None).filter(|cut| cut.tables.contains_key(topic));
    let (earlier, later): (Vec<_>, Vec<_>) = of_topic.partition(|cut| before(cut));
    (earlier.last().copied(), later)
}

fn cuts_behind(journal: &Journal, topic: &str, from: From) -> Vec<Arc<Cut>> {
    around(journal, topic, from).1.into_iter().map(Arc::clone).collect()
}

/// Where each log partition begins, or why it cannot.
async fn begins(
    log: &dyn Log,
    journal: &Journal,
    topic: &str,
    partitions: &Partitions,
    from: From,
) -> Result<BTreeMap<u32, Offset>> {
    let (cut, _) = around(journal, topic, from);
    let ends = cut.and_then(|cut| cut.tables.get(topic)).map_or(&[][..], |table| &table.ends);
    let mut begins = BTreeMap::new();
    for (number, (partition, range)) in partitions {
        let end = ends.iter().find(|end| end.partition == *number).map_or(0, |end| end.end);
        let lost = is_lost(end, *range, range.end);
        let begin = match from {
            From::Day(_) if lost => None,
            From::Day(_) => Some(end.max(range.start).min(range.end)),
            From::Position(position) => {
                first_at(log, (partition, *range), end.max(range.start), position, lost).await?
            }
        };
        let begin = begin.ok_or_else(|| {
            Error::operator(format!(
                "the log does not reach back so far: log partition {topic}/{number} begins at offset {}, and what is asked for \
                 begins at offset {end} or behind it",
                range.start
            ))
            .mend("Ask for a later day. How long the log keeps what is delivered is [log.embedded] retention_ms and \
                   retention_bytes, or Kafka's own retention; the change files of the connector's lake hold it as well.")
        })?;
        begins.insert(*number, begin);
    }
    Ok(begins)
}

/// The first offset of a change at or after a position; none where the log may have lost one (`lost`: it has lost some,
/// and begins behind the position).
async fn first_at(
    log: &dyn Log,
    (partition, range): (&LogPartition, OffsetRange),
    mut at: Offset,
    position: Position,
    lost: bool,
) -> Result<Option<Offset>> {
    let mut earlier = !lost;
    while at < range.end {
        let fetched = log.read(partition, at, LOOK_BYTES).await?;
        for (offset, record) in fetched.iter() {
            match peek(&record) {
                Ok(peeked) if peeked.position >= position => return Ok(earlier.then_some(offset)),
                Ok(_) => earlier = true,
                Err(_) => {}
            }
        }
        if fetched.next <= at {
            break;
        }
        at = fetched.next;
    }
    Ok(earlier.then_some(range.end))
}
