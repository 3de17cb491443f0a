//! The first copy of the tables, at one consistent point.
//!
//! ```text
//!   slot (stays) ────────────P1──────────────P2── stream from P2 ──>
//!   temporary slot                           P2 + exported snapshot
//!   COPY under that snapshot                 rows at P2 - 1, held ──────> seen at once, with the state
//! ```
//!
//! Why nothing is lost or doubled: the snapshot which a new slot exports at its consistent point P2 shows
//! exactly the transactions whose commit record lies below P2, and the lasting slot, made before, still has
//! every transaction from P2 on. All rows become visible in one atomic step together with the state that says
//! "stream from P2"; before it a reader sees nothing, and a crash leaves nothing: the next start drops the held
//! rows and copies anew under a new snapshot. The temporary slot goes with its connection.
//!
//! Source: `src/backend/replication/logical/snapbuild.c` (`SnapBuildXactNeedsSkip`, `SnapBuildExportSnapshot`).

use std::sync::Arc;
use std::time::Instant;

use crate::change::{Lsn, Op, Position, TableSchema, Timeline};
use crate::envelope::json::RowChange;
use crate::envelope::routing;
use crate::log::Visibility;
use crate::ops::{Ops, TableStats};
use crate::postgres::copy::CopyText;
use crate::postgres::wire::{Client, Session, quote_ident, quote_literal};
use crate::postgres::{catalog, slot};
use crate::runtime::{Error, Result};

use super::appender::{Appender, Progress};
use super::cutter::Cutter;
use super::engine::{encode, recycle};
use super::state::{CutState, StreamState};
use super::tables::Tables;
use super::{CaptureSettings, first_state, write_schema_change};

/// Copies every table of the publication. Cancel-safe: what was appended so far is held, and the next start drops it.
pub async fn run(
    settings: &CaptureSettings,
    sql: &mut Client,
    tables: &mut Tables,
    appender: &mut Appender,
    ops: &Ops,
) -> Result<(StreamState, CutState)> {
    let started = Instant::now();
    let mut holder = Client::connect(&settings.connect, Session::Replication).await?;
    let identity = slot::identify_system(&mut holder).await?;
    if slot::slot_state(sql, &settings.slot).await?.is_none() {
        tracing::info!(slot = settings.slot, "creating the replication slot");
        slot::create_slot(&mut holder, &settings.slot, false, false).await?;
    }
    // A name of its own for each attempt: the session of an earlier one may linger.
    let attempt = jiff::Timestamp::now().as_nanosecond() as u64;
    let temporary = format!("{:.40}_copy_{attempt:x}", settings.slot);
    tracing::info!("waiting for the transactions that are open now to end: the copy begins after them");
    let created = slot::create_slot(&mut holder, &temporary, true, true).await?;
    let snapshot = created.snapshot_name.as_deref().unwrap_or_default();
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    sql.execute(&begin).await?;

    let mut copy = Copy {
        timeline: identity.timeline,
        consistent_point: created.consistent_point,
        commit_us: now_us(sql).await?,
        ordinal: 0,
        dead_letters: routing::dead_letters_topic(&settings.name).into(),
        text: CopyText::default(),
        tables,
        appender,
    };
    let schemas = published(settings, sql, copy.tables).await?;
    for schema in &schemas {
        if let Some(change) = copy.tables.evolve(schema.clone(), copy.position())? {
            write_schema_change(copy.appender, &settings.name, &change);
        }
    }
    let mut sources = Vec::with_capacity(schemas.len());
    for schema in &schemas {
        let source = facts(sql, schema.oid).await?;
        ops.table(&schema.name).backfill_began(source.rows_estimated);
        sources.push(source);
    }
    sql.execute("COMMIT").await?;
    // A transaction for each table: a lock on one is not held while the others are copied.
    for (schema, source) in schemas.iter().zip(&sources) {
        sql.execute(&begin).await?;
        copy.table(sql, schema, source, &ops.table(&schema.name)).await?;
        unchanged_storage(sql, schema, source).await?;
        sql.execute("COMMIT").await?;
    }
    let first_cut = Cutter::first(&settings.calendar, now_us(sql).await?);
    drop(holder);

    let (rows, at) = (copy.ordinal, copy.consistent_point);
    let progress = Progress { position: copy.position(), flush_lsn: at, commit_us: 0 };
    let state = first_state(settings, identity.system_identifier, progress);
    appender.set(state.entry());
    appender.set(first_cut.entry());
    for table in tables.iter_mut() {
        table.touched = false;
        appender.set(table.count.entry(&table.topic));
    }
    appender.submit(progress, Visibility::Now).await?;
    appender.settle().await?;
    for schema in &schemas {
        ops.table(&schema.name).backfill_ended();
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(tables = schemas.len(), rows, seconds, %at, "backfill done");
    Ok((state, first_cut))
}

/// The shapes of the tables which the publication publishes and the configuration wants, by name.
async fn published(
    settings: &CaptureSettings,
    sql: &mut Client,
    tables: &Tables,
) -> Result<Vec<TableSchema>> {
    let published = catalog::published_tables(sql, &settings.publication).await?;
    let wanted: Vec<u32> =
        published.iter().filter(|(_, name)| tables.wants(name)).map(|(oid, _)| *oid).collect();
    let mut schemas = catalog::load_tables(sql, &wanted).await?;
    schemas.sort_by(|a, b| a.name.cmp(&b.name));
    if schemas.is_empty() {
        tracing::warn!(
            publication = settings.publication,
            "no table is published and wanted: there is nothing to copy"
        );
    }
    Ok(schemas)
}

struct Copy<'a> {
    tables: &'a mut Tables,
    appender: &'a mut Appender,
    timeline: Timeline,
    consistent_point: Lsn,
    commit_us: i64,
    ordinal: u64,
    dead_letters: Arc<str>,
    text: CopyText,
}

impl Copy<'_> {
    /// The position of the row copied last.
    const fn position(&self) -> Position {
        position(self.timeline, self.consistent_point, self.ordinal)
    }

    /// Copies a table.
    async fn table(
        &mut self,
        sql: &mut Client,
        schema: &TableSchema,
        source: &Facts,
        watch: &TableStats,
    ) -> Result<()> {
        let columns: Vec<String> = schema.columns.iter().map(|column| quote_ident(&column.name)).collect();
        let table = schema.name.quoted();
        // The query form also reads the partitions of a partitioned table; ONLY keeps to the table itself,
        // as replication does, where others inherit from it.
        let only = if source.partitioned { "" } else { "ONLY " };
        let statement = format!("COPY (SELECT {} FROM {only}{table}) TO STDOUT", columns.join(", "));
        let known = self.tables.by_name(&schema.name).ok_or_else(|| {
            Error::operator(format!("table {} was not taken in before its copy", schema.name))
        })?;
        // A table that was altered or dropped since the snapshot: the next attempt sees it as it is then.
        let altered = |error: Error| Error::retry(format!("copying {table}")).cause(error);
        let mut rows = sql.copy_out(&statement).await.map_err(altered)?;
        let (mut count, mut unreported, mut bytes) = (0_u64, 0_u64, 0_u64);
        let mut values = Vec::new();
        while let Some(row) = rows.next().await? {
            self.ordinal += 1;
            count += 1;
            unreported += 1;
            bytes += row.len() as u64;
            self.text.split(row, columns.len()).map_err(|error| {
                Error::operator(format!("row {count} of COPY {table} cannot be read: {error}"))
            })?;
            let mut new = recycle(std::mem::take(&mut values));
            new.extend(self.text.values(row));
            let change = RowChange {
                op: Op::Read,
                position: position(self.timeline, self.consistent_point, self.ordinal),
                lsn: self.consistent_point,
                commit_us: self.commit_us,
                now_ms: self.commit_us / 1000,
                xid: None,
                snapshot: true,
                last_commit_lsn: None,
                old: None,
                new: Some(&new),
            };
            encode(known, &change, self.appender, &self.dead_letters);
            values = recycle(new);
            if self.appender.is_full() {
                watch.backfilled(std::mem::take(&mut unreported), std::mem::take(&mut bytes));
                super::append_held(self.appender).await?;
            }
        }
        watch.backfilled(unreported, bytes);
        Ok(())
    }
}

/// Rows stand one byte before the consistent point (see [`Position`]).
const fn position(timeline: Timeline, consistent_point: Lsn, ordinal: u64) -> Position {
    Position { timeline, commit_lsn: Lsn(consistent_point.0 - 1), ordinal }
}

/// What the catalog says of a table's storage.
struct Facts {
    partitioned: bool,
    /// Which file holds the rows: another one after a rewrite. 0 for a partitioned table.
    file_node: u32,
    rows_estimated: u64,
}

async fn facts(sql: &mut Client, oid: u32) -> Result<Facts> {
    let query = format!(
        "SELECT relkind = 'p', greatest(reltuples, 0)::bigint, relfilenode FROM pg_catalog.pg_class WHERE oid = {oid}"
    );
    let row = sql.query_one(&query).await?;
    Ok(Facts { partitioned: row.is_true(0), rows_estimated: row.parse(1)?, file_node: row.parse(2)? })
}

/// Refuses a copy of a table that was rewritten (ALTER TABLE … TYPE, VACUUM FULL) after the snapshot was taken: a
/// rewritten table looks empty to older snapshots, and no row event tells of it.
async fn unchanged_storage(sql: &mut Client, schema: &TableSchema, source: &Facts) -> Result<()> {
    // This function looks past the snapshot at the table as it is now.
    let query = format!("SELECT coalesce(pg_catalog.pg_relation_filenode({}), 0)", schema.oid);
    let now: u32 = sql.query_one(&query).await?.parse(0)?;
    if source.partitioned || now == source.file_node {
        return Ok(());
    }
    Err(Error::retry(format!(
        "table {} was rewritten while it was being copied: all is copied anew",
        schema.name
    )))
}

/// The server's clock, microseconds since 1970.
pub(super) async fn now_us(sql: &mut Client) -> Result<i64> {
    sql.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?.parse(0)
}
