//! The first copy of the tables: the first round, before the stream begins.
//!
//! ```text
//!   slot (stays) ──── P1 ─── rows of the first round, at P1 - 1, in the tables' own topics ─┬─ stream from P1 ──>
//!                      └ state: "stream from P1", and how far each table is                 └─ tables that are not whole
//!                        with the first append, and with every one that follows                go on as later copies
//! ```
//!
//! Why nothing is lost or doubled: the lasting slot is made before P1 is taken, so that it has every transaction from P1
//! on, and the snapshot of P1 has all others. The state says "stream from P1" before the first row is there; whenever the
//! process dies, the next start begins the stream at P1, and rows come no more into the tables' own topics: what is there
//! stands at P1 - 1, below every change, each row once. A table that is whole stays so. Of one that is not, the pieces
//! that were not read are read by later rounds, beside its topic ([`super::asked`]); until that is done, days lack it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::change::{BACKFILL_PARTITION, LogEnd, Lsn, Position, TableName, Timeline};
use crate::envelope::routing;
use crate::ops::{Ops, TableStats};
use crate::postgres::wire::{Client, Session};
use crate::postgres::{catalog, published, slot};
use crate::runtime::{Error, Result};

use super::super::appender::{Appender, Progress};
use super::super::cutter::Cutter;
use super::super::publication::Standing;
use super::super::registrar::Registrar;
use super::super::session::until;
use super::super::state::{BackfillState, CutState, StreamState};
use super::super::tables::Tables;
use super::super::told::Told;
use super::super::{CaptureSettings, ends_by_topic, first_state, write_schema_change};
use super::asked::{Backfills, Whole};
use super::event::CopyEvent;
use super::now_us;
use super::point::before;
use super::progress::CopyProgress;

/// Why days lack a table whose first copy goes on.
const LACKING: &str = "its first copy is not whole yet";

/// What the first copy leaves to the stream.
pub struct Copied {
    /// Where it begins.
    pub stream: StreamState,
    /// Which day is cut first.
    pub cut: CutState,
    /// What the tables were that are whole, by topic.
    pub standings: BTreeMap<String, Standing>,
    /// Copies that are not, by topic.
    pub backfills: BTreeMap<String, BackfillState>,
}

/// Copies the tables of the publication, as far as one snapshot may be held. Cancel-safe: what was appended so far is there
/// with its state, and the next start begins the stream.
pub async fn run(
    settings: &CaptureSettings,
    sql: &mut Client,
    tables: &mut Tables,
    appender: &mut Appender,
    registrar: &Registrar,
    ops: &Ops,
) -> Result<Copied> {
    let started = Instant::now();
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    let system_identifier = slot::identify_system(&mut replication).await?.system_identifier;
    if slot::slot_state(sql, &settings.slot).await?.is_none() {
        tracing::info!(slot = settings.slot, "creating the replication slot");
        slot::create_slot(&mut replication, &settings.slot, false, false).await?;
        if settings.failover.applies(&mut replication).await? {
            slot::set_failover(&mut replication, &settings.slot).await?;
        }
    }
    drop(replication);
    let states = wanted(settings, sql, tables, appender, ops).await?;
    let names: Vec<_> = states.values().map(|state| state.table.clone()).collect();
    if names.is_empty() {
        tracing::warn!(
            publication = settings.publication,
            "no table is published and wanted: there is nothing to copy"
        );
    }
    tracing::info!("waiting for the transactions that are open now to end: the copy begins after them");
    let mut backfills = Backfills::first(settings, states, tables, ops)?;
    let (lsn, timeline) = point(&mut backfills).await?;
    let cut = Cutter::first(&settings.calendar, now_us(sql).await?);
    let at = move |rows| Progress {
        position: before(timeline, lsn, rows),
        flush_lsn: lsn,
        commit_us: 0,
        held: false,
    };
    let (whole, submitted) = (Vec::new(), Vec::new());
    let stream = first_state(settings, system_identifier, at(0));
    let mut first = First { stream, standings: BTreeMap::new(), whole, submitted };
    appender.set(cut.entry());
    for (topic, state) in &backfills.states {
        appender.set(state.entry(topic));
    }
    first.submit(at(0), &mut backfills, tables, appender).await?;
    appender.settle().await?;
    let interrupted = loop {
        let due = appender.due();
        let event = tokio::select! {
            event = backfills.event() => event,
            settled = appender.settled() => {
                settled?;
                continue;
            }
            () = until(due) => {
                first.submit(at(backfills.rows()), &mut backfills, tables, appender).await?;
                continue;
            }
        };
        let ended = if let CopyEvent::End(error) = &event { Some(error.is_some()) } else { None };
        backfills.take(event, tables, appender);
        while let Some(ready) = backfills.passed(Lsn(u64::MAX)) {
            let position = at(backfills.rows()).position;
            backfills.describe(ready, position, tables, appender, registrar).await?;
        }
        if backfills.has_ended() {
            first.whole(&mut backfills, tables, appender).await?;
        }
        if appender.is_full() {
            first.submit(at(backfills.rows()), &mut backfills, tables, appender).await?;
        }
        if let Some(interrupted) = ended {
            break interrupted;
        }
    };
    first.submit(at(backfills.rows()), &mut backfills, tables, appender).await?;
    appender.settle().await?;
    first.settled();
    let (rows, seconds) = (backfills.rows(), started.elapsed().as_secs_f64());
    let left = backfills.into_states();
    if left.is_empty() {
        tracing::info!(tables = names.len(), rows, seconds, at = %lsn, "backfill done");
    } else {
        tracing::info!(tables = names.len() - left.len(), left = left.len(), rows, seconds, at = %lsn, interrupted,
            "the stream begins, and the first copies that are not whole go on beside it");
    }
    Ok(Copied { stream: first.stream, cut, standings: first.standings, backfills: left })
}

/// The tables that are published and wanted, none of them read yet.
async fn wanted(
    settings: &CaptureSettings,
    sql: &mut Client,
    tables: &Tables,
    appender: &Appender,
    ops: &Ops,
) -> Result<BTreeMap<String, BackfillState>> {
    let ends = ends_by_topic(appender.log().as_ref()).await?;
    let mut states = BTreeMap::new();
    for (name, _) in published::all(sql, &settings.publication).await? {
        if !tables.wants(&name) {
            continue;
        }
        ops.table(&name).backfill_waits(0, 0);
        let topic = routing::topic_name(&settings.name, &name);
        let end = |ends: Option<&Vec<LogEnd>>| ends.and_then(|ends| ends.first()).map_or(0, |end| end.end);
        let mut from = ends.get(&topic).cloned().unwrap_or_default();
        let rows = end(ends.get(&routing::backfill_topic(&settings.name, &name)));
        from.push(LogEnd { partition: BACKFILL_PARTITION, end: rows });
        // Of two tables that would share a topic one is carried.
        states.entry(topic).or_insert_with(|| BackfillState {
            wanted: true,
            lacking: Some(LACKING.to_owned()),
            progress: Some(CopyProgress::new(from)),
            ..BackfillState::new(name)
        });
    }
    Ok(states)
}

/// Takes in the shapes of tables whose copies go on and of which no row was read yet: the days that are cut meanwhile
/// name them.
pub async fn describe_unknown(
    settings: &CaptureSettings,
    sql: &mut Client,
    backfills: &Backfills,
    position: Position,
    (tables, registrar): (&mut Tables, &Registrar),
    appender: &mut Appender,
) -> Result<()> {
    let unknown =
        |(topic, state): &(&Arc<str>, &BackfillState)| state.wanted && tables.of_topic(topic).is_none();
    let names: Vec<TableName> =
        backfills.states.iter().filter(unknown).map(|(_, state)| state.table.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let mut published = published::all(sql, &settings.publication).await?;
    for name in names {
        let Some(published) = published.remove(&name) else { continue };
        let Some(whole) = catalog::load_whole_table(sql, published.oid).await? else { continue };
        match tables.evolve(published.shape(whole), position, Told::default()) {
            Ok(grown) => {
                registrar.register(tables, &name).await?;
                if let Some(grown) = grown {
                    write_schema_change(appender, &settings.name, &grown.change);
                }
            }
            Err(error) => tables.isolate(&name, &error),
        }
    }
    Ok(())
}

/// The round's point.
async fn point(backfills: &mut Backfills) -> Result<(Lsn, Timeline)> {
    match backfills.event().await {
        CopyEvent::Point { lsn, timeline } => {
            backfills.ops.copies().began(backfills.settings.copy.connections);
            Ok((lsn, timeline))
        }
        CopyEvent::End(Some(error)) => Err(error),
        _ => Err(Error::retry("the first copy ended before it began")),
    }
}

/// The first copy on its way.
struct First {
    stream: StreamState,
    standings: BTreeMap<String, Standing>,
    /// Tables that are whole once the batch is durable, and once the append on its way is.
    whole: Vec<Arc<TableStats>>,
    submitted: Vec<Arc<TableStats>>,
}

impl First {
    /// Submits the batch with the state that belongs to it.
    async fn submit(
        &mut self,
        progress: Progress,
        backfills: &mut Backfills,
        tables: &mut Tables,
        appender: &mut Appender,
    ) -> Result<()> {
        self.stream.position = progress.position;
        appender.set(self.stream.entry());
        for table in tables.iter_mut().filter(|table| table.touched) {
            table.touched = false;
            appender.set(table.count.entry(&table.topic));
            backfills.submitting(table, appender);
        }
        backfills.submitting_rows(appender);
        appender.submit(progress).await?;
        self.settled();
        self.submitted = std::mem::take(&mut self.whole);
        Ok(())
    }

    /// The append that was on its way is durable.
    fn settled(&mut self) {
        self.submitted.drain(..).for_each(|watch| watch.backfill_ended());
    }

    /// All rows of tables were handed to the appender.
    async fn whole(
        &mut self,
        backfills: &mut Backfills,
        tables: &mut Tables,
        appender: &mut Appender,
    ) -> Result<()> {
        for Whole { topic, standing, watch, .. } in backfills.finish(tables, appender).await? {
            appender.set(standing.entry(&topic));
            self.standings.insert(topic.to_string(), standing);
            self.whole.push(watch);
        }
        Ok(())
    }
}
