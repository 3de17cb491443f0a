//! Reads one table for a later copy, on connections of its own, while the stream goes on.
//!
//! Everything goes through a channel of a few pieces: a session that is busy makes the server wait, and nothing is
//! held but those pieces.

use tokio::sync::mpsc;

use crate::change::{Lsn, TableName, TableSchema, Timeline};
use crate::postgres::wire::{Client, Session, quote_literal};
use crate::postgres::{catalog, published};
use crate::runtime::{Error, Result};

use super::super::publication::Standing;
use super::copy::{copy_out, lock_as_it_was};
use super::point::{self, ConsistentPoint};
use super::{CaptureSettings, POINTS_MAX, Wanted, now_us};

/// Prefix of the logical message which shows that the stream has come as far as the copy's lock.
const PASS_PREFIX: &str = "tidemark.backfill";

/// Bytes of rows in one piece, about.
const PIECE_BYTES: usize = 256 << 10;

/// What a reader tells, in this order: `Ready`, any number of `Rows`, `End`; `Gone` or `Failed` at any time ends it.
#[derive(Debug)]
pub enum CopyEvent {
    /// The table is locked, and its rows follow.
    Ready(Box<Ready>),
    /// Some rows.
    Rows(Rows),
    /// That was all.
    End,
    /// There is no such table in the publication any more.
    Gone,
    /// It has to be begun again.
    Failed(Error),
}

/// A table about to be copied. It keeps this shape until the last row was read.
#[derive(Debug)]
pub struct Ready {
    /// The consistent point.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// The server's time at the point, microseconds since 1970.
    pub commit_us: i64,
    /// The table's shape; rows come in the order of its columns.
    pub schema: TableSchema,
    /// What the table is.
    pub standing: Standing,
    /// Once the stream has passed it, everything that was described by it is older than the lock.
    pub pass: Lsn,
    /// How many rows the server expects; zero when it does not know.
    pub rows_estimated: u64,
}

/// Rows of a COPY, one after the other.
#[derive(Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    fn push(&mut self, row: &[u8]) {
        self.bytes.extend_from_slice(row);
        self.ends.push(self.bytes.len());
    }

    /// Each row.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

/// Reads a table. Ends early when nobody listens any more. Cancel-safe: all it leaves behind are connections that
/// close, with the temporary slot and the lock.
pub async fn read(settings: CaptureSettings, table: TableName, events: mpsc::Sender<CopyEvent>) {
    let event = match read_table(&settings, &table, &events).await {
        Ok(event) => event,
        Err(error) => CopyEvent::Failed(error),
    };
    // Whoever asked may have left.
    let _ = events.send(event).await;
}

async fn read_table(
    settings: &CaptureSettings,
    table: &TableName,
    events: &mpsc::Sender<CopyEvent>,
) -> Result<CopyEvent> {
    let mut sql = Client::connect(&settings.connect, Session::Sql).await?;
    let mut asking = Client::connect(&settings.connect, Session::Sql).await?;
    for _ in 0..POINTS_MAX {
        let mut holder = Client::connect(&settings.connect, Session::Replication).await?;
        let timeline = settings.timeline(&mut holder).await?;
        let point = ConsistentPoint::take(settings, holder, timeline).await?;
        let lsn = point.lsn;
        sql.execute(&point.begin()).await?;
        // The transaction has its snapshot: the slot need not keep the server's WAL and catalog for the copy.
        drop(point);
        let Some(published) = published::table(&mut sql, &settings.publication, table).await? else {
            return Ok(CopyEvent::Gone);
        };
        let (oid, standing) = (published.oid, Standing::from(&published));
        let Some(facts) = point::facts(&mut sql, &[oid]).await?.remove(&oid) else {
            return Ok(CopyEvent::Gone);
        };
        let rows_estimated = facts.rows_estimated;
        let wanted = Wanted { oid, name: table.clone(), published, storage: facts.storage, rows_estimated };
        let commit_us = now_us(&mut asking).await?;
        if lock_as_it_was(&mut sql, &wanted).await?
            && let Some(whole) = catalog::load_whole_table(&mut asking, oid).await?
        {
            let pass = leave_mark(&mut asking, table).await?;
            let schema = wanted.published.shape(whole);
            let ready = Ready { lsn, timeline, commit_us, schema, standing, pass, rows_estimated };
            if copy(&mut sql, &wanted, ready, events).await? {
                return Ok(CopyEvent::End);
            }
        }
        sql.execute("ROLLBACK").await?;
    }
    Err(Error::retry(format!(
        "table {table} was truncated or rewritten during each of {POINTS_MAX} attempts to copy it"
    )))
}

/// A transaction of its own in the stream; it touches no table. Gives its place.
async fn leave_mark(asking: &mut Client, table: &TableName) -> Result<Lsn> {
    let (prefix, content) = (quote_literal(PASS_PREFIX), quote_literal(&table.to_string()));
    let statement = format!("SELECT pg_catalog.pg_logical_emit_message(true, {prefix}, {content})");
    asking.query_one(&statement).await?.parse(0)
}

/// Whether it was copied; not, when its columns are others by now.
async fn copy(
    sql: &mut Client,
    wanted: &Wanted,
    ready: Ready,
    events: &mpsc::Sender<CopyEvent>,
) -> Result<bool> {
    let Some(mut rows) = copy_out(sql, wanted, &ready.schema).await? else { return Ok(false) };
    let left = |_| Error::retry("nobody waits for the copy any more");
    events.send(CopyEvent::Ready(Box::new(ready))).await.map_err(left)?;
    let mut piece = Rows::default();
    while let Some(row) = rows.next().await? {
        piece.push(row);
        if piece.bytes.len() >= PIECE_BYTES {
            events.send(CopyEvent::Rows(std::mem::take(&mut piece))).await.map_err(left)?;
        }
    }
    events.send(CopyEvent::Rows(piece)).await.map_err(left)?;
    sql.execute("COMMIT").await?;
    Ok(true)
}
