//! The first copy of the tables. Those which are asked for later are in [`asked`].
//!
//! ```text
//!   slot (stays) ───P0─────────P1──────────────P2── stream from P1 ──>
//!   temporary slot             P1 + exported snapshot
//!   COPY under that snapshot      rows at P1 - 1, held ────────────> seen at once, with the state
//!   a table that was rewritten meanwhile       P2 + snapshot: rows at P2 - 1, and its changes below P2 left out
//! ```
//!
//! Why nothing is lost or doubled: the snapshot which a new slot exports at its consistent point P1 shows
//! exactly the transactions whose commit record lies below P1, and the lasting slot, made before, still has
//! every transaction from P1 on. All rows become visible in one atomic step together with the state that says
//! "stream from P1"; before it a reader sees nothing, and a crash leaves nothing: the next start drops the held
//! rows and copies anew under a new snapshot. The temporary slot goes with its connection.
//!
//! A table that was truncated or rewritten between P1 and its copy looks empty to the snapshot. It is found by
//! its storage before its first row is read, and copied alone under a later point P2, the smallest table first,
//! so that one which is truncated all the time has its turn right after its snapshot. What such a table went
//! through between P1 and P2 is in its rows: those changes are passed over ([`Table::since`]), and no day is cut
//! before the last such point ([`Tables::whole_from`]), since only from there on all tables are whole.
//!
//! Source: `src/backend/replication/logical/snapbuild.c` (`SnapBuildXactNeedsSkip`, `SnapBuildExportSnapshot`).
//!
//! [`Table::since`]: super::tables::Table::since

mod asked;
mod copy;
mod copying;
mod needed;
mod point;
mod reader;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::change::TableName;
use crate::log::Visibility;
use crate::ops::Ops;
use crate::postgres::published::{self, Published};
use crate::postgres::slot;
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Error, Result};

use super::appender::{Appender, Progress};
use super::cutter::Cutter;
use super::publication::Standing;
use super::registrar::Registrar;
use super::state::{CutState, StreamState};
use super::tables::Tables;
use super::{CaptureSettings, first_state};
pub use asked::{Backfills, Whole};
use copy::{Copied, Copy};
pub use needed::{Absence, Reason};
use point::{ConsistentPoint, Storage};
pub use reader::CopyEvent;

/// A table that is rewritten faster than it can be copied gets so many snapshots of its own.
const POINTS_MAX: u32 = 100;

/// Copies every table of the publication; gives also what each was. Cancel-safe: what was appended so far is held, and the next start drops it.
pub async fn run(
    settings: &CaptureSettings,
    sql: &mut Client,
    tables: &mut Tables,
    appender: &mut Appender,
    registrar: &Registrar,
    ops: &Ops,
) -> Result<(StreamState, CutState, BTreeMap<String, Standing>)> {
    let started = Instant::now();
    let mut holder = Client::connect(&settings.connect, Session::Replication).await?;
    let identity = slot::identify_system(&mut holder).await?;
    if slot::slot_state(sql, &settings.slot).await?.is_none() {
        tracing::info!(slot = settings.slot, "creating the replication slot");
        slot::create_slot(&mut holder, &settings.slot, false, false).await?;
        if settings.failover.applies(&mut holder).await? {
            slot::set_failover(&mut holder, &settings.slot).await?;
        }
    }
    tracing::info!("waiting for the transactions that are open now to end: the copy begins after them");
    let mut point = ConsistentPoint::take(settings, holder, identity.timeline).await?;
    let first = point.lsn;
    let mut copy = Copy::new(settings, tables, appender, registrar, ops);
    let mut left = wanted(settings, sql, &point, copy.tables).await?;
    let (names, mut points) = (left.iter().map(|table| table.name.clone()).collect::<Vec<_>>(), 1);
    if left.is_empty() {
        tracing::warn!(
            publication = settings.publication,
            "no table is published and wanted: there is nothing to copy"
        );
    }
    for table in &left {
        ops.table(&table.name).backfill_began(table.rows_estimated);
    }
    copy.commit_us = now_us(sql).await?;
    let mut standings = BTreeMap::new();
    loop {
        standings.extend(left.iter().map(|table| (table.name.clone(), Standing::from(&table.published))));
        left = round(&mut copy, sql, &point, left).await?;
        if left.is_empty() {
            break;
        }
        if points == POINTS_MAX {
            return Err(Error::retry(format!(
                "table {} was truncated or rewritten during each of {POINTS_MAX} attempts to copy it: all is copied anew",
                left[0].name
            )));
        }
        points += 1;
        let listed: Vec<String> = left.iter().map(|table| table.name.to_string()).collect();
        tracing::info!(
            tables = listed.join(", "),
            "rewritten since the snapshot was taken: copied under a new one"
        );
        point = point.next(settings).await?;
        let again = wanted(settings, sql, &point, copy.tables).await?;
        left = again.into_iter().filter(|table| left.iter().any(|gone| gone.oid == table.oid)).collect();
        copy.commit_us = now_us(sql).await?;
    }
    let first_cut = Cutter::first(&settings.calendar, now_us(sql).await?);
    drop(point);

    let rows = copy.rows;
    let progress = Progress {
        position: point::before(identity.timeline, first, rows),
        flush_lsn: first,
        commit_us: 0,
        held: false,
    };
    let state = first_state(settings, identity.system_identifier, progress);
    appender.set(state.entry());
    appender.set(first_cut.entry());
    // Of two tables that would share a topic one is carried.
    let carried = tables.iter().filter_map(|table| Some((table, standings.remove(&table.schema.name)?)));
    let standings: BTreeMap<String, Standing> =
        carried.map(|(table, standing)| (table.topic.to_string(), standing)).collect();
    for (topic, standing) in &standings {
        appender.set(standing.entry(topic));
    }
    for table in tables.iter_mut() {
        table.touched = false;
        appender.set(table.count.entry(&table.topic));
    }
    appender.submit(progress, Visibility::Now).await?;
    appender.settle().await?;
    // Also of a table that is gone by now.
    for name in &names {
        ops.table(name).backfill_ended();
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(tables = names.len(), rows, seconds, at = %first, "backfill done");
    Ok((state, first_cut, standings))
}

/// A table to be copied.
#[derive(Clone, Debug)]
struct Wanted {
    oid: u32,
    name: TableName,
    published: Published,
    storage: Storage,
    rows_estimated: u64,
}

/// The tables which the publication publishes at a point and the configuration wants, the smallest first.
async fn wanted(
    settings: &CaptureSettings,
    sql: &mut Client,
    point: &ConsistentPoint,
    tables: &Tables,
) -> Result<Vec<Wanted>> {
    sql.execute(&point.begin()).await?;
    let mut published = published::all(sql, &settings.publication).await?;
    published.retain(|name, _| tables.wants(name));
    let oids: Vec<u32> = published.values().map(|table| table.oid).collect();
    let mut found = point::facts(sql, &oids).await?;
    sql.execute("COMMIT").await?;
    let mut wanted: Vec<(u64, Wanted)> = published
        .into_iter()
        .filter_map(|(name, published)| {
            let (oid, facts) = (published.oid, found.remove(&published.oid)?);
            let (storage, rows_estimated) = (facts.storage, facts.rows_estimated);
            Some((facts.bytes, Wanted { oid, name, published, storage, rows_estimated }))
        })
        .collect();
    wanted.sort_by(|(a_bytes, a), (b_bytes, b)| (a_bytes, &a.name).cmp(&(b_bytes, &b.name)));
    Ok(wanted.into_iter().map(|(_, table)| table).collect())
}

/// Copies what can be copied under a point; gives what cannot. A transaction for each table: a lock on one is not
/// held while the others are copied.
async fn round(
    copy: &mut Copy<'_>,
    sql: &mut Client,
    point: &ConsistentPoint,
    wanted: Vec<Wanted>,
) -> Result<Vec<Wanted>> {
    let mut left = Vec::new();
    for table in wanted {
        sql.execute(&point.begin()).await?;
        match copy.table(sql, point, &table).await? {
            Copied::Whole | Copied::Refused => sql.execute("COMMIT").await?,
            Copied::Not => {
                sql.execute("ROLLBACK").await?;
                left.push(table);
            }
        }
    }
    Ok(left)
}

/// The server's clock, microseconds since 1970.
pub(super) async fn now_us(sql: &mut Client) -> Result<i64> {
    sql.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?.parse(0)
}
