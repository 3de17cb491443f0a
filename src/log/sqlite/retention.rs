//! Deleting what has been delivered, in short transactions, and giving the space back.
//!
//! A batch goes when every record of it is delivered and it is either older than `retention_ms`, or the
//! oldest while delivered batches take more than `retention_bytes`. An undelivered record never goes. A
//! clock that steps back only keeps batches longer.

use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteLogOptions;
use crate::log::Offset;
use crate::runtime::sqlite::immediate;

/// Batches deleted, or counted as delivered, in one transaction: the write lock is held for some milliseconds.
const STEP_BATCHES: usize = 64;

/// Bytes moved by one step of giving space back.
const STEP_VACUUM_BYTES: u64 = 4 << 20;

/// Free space that is kept in the file for the next appends, unless it is more than a quarter of it.
const FREE_BYTES_KEPT: u64 = 32 << 20;

/// One step; `true`: there is more to do.
pub(super) fn step(
    connection: &mut Connection,
    options: &SqliteLogOptions,
    topic: &str,
    before: Offset,
    now_ms: u64,
) -> rusqlite::Result<bool> {
    let busy = immediate(connection, |c| {
        let Some(partition) = find(c, topic)? else { return Ok(false) };
        let more_delivered = advance(c, &partition, before)?;
        let more_old = delete_old(c, partition.id, now_ms.saturating_sub(options.retention_ms))?;
        let more_excess = match options.retention_bytes {
            Some(bytes) => delete_excess(c, bytes)?,
            None => false,
        };
        Ok::<_, rusqlite::Error>(more_delivered || more_old || more_excess)
    })?;
    Ok(busy || give_back(connection)?)
}

struct Partition {
    id: i64,
    delivered: Offset,
    end: Offset,
}

fn find(c: &Connection, topic: &str) -> rusqlite::Result<Option<Partition>> {
    c.prepare_cached("SELECT id, delivered_offset, end_offset FROM partitions WHERE topic = ?1")?
        .query_row([topic], |row| Ok(Partition { id: row.get(0)?, delivered: row.get(1)?, end: row.get(2)? }))
        .optional()
}

/// Moves `delivered_offset` forward over some batches, or to `before` when no whole batch lies in between.
fn advance(c: &Connection, partition: &Partition, before: Offset) -> rusqlite::Result<bool> {
    let before = before.min(partition.end);
    if before <= partition.delivered {
        return Ok(false);
    }
    let mut select = c.prepare_cached(
        "SELECT first_offset + count, stored_bytes FROM batches
         WHERE partition_id = ?1 AND first_offset >= coalesce(
             (SELECT max(first_offset) FROM batches WHERE partition_id = ?1 AND first_offset <= ?2), 0)
         ORDER BY first_offset LIMIT ?3",
    )?;
    let mut rows = select.query(params![partition.id, partition.delivered, STEP_BATCHES])?;
    let (mut delivered, mut bytes, mut more) = (before, 0u64, false);
    let mut seen = 0;
    while let Some(row) = rows.next()? {
        let (end, stored): (u64, u64) = (row.get(0)?, row.get(1)?);
        if end > before {
            break;
        }
        if end > partition.delivered {
            bytes += stored;
        }
        seen += 1;
        if seen == STEP_BATCHES {
            (delivered, more) = (end, end < before);
        }
    }
    c.prepare_cached(
        "UPDATE partitions SET delivered_offset = ?2, delivered_bytes = delivered_bytes + ?3 WHERE id = ?1",
    )?
    .execute(params![partition.id, delivered, bytes])?;
    Ok(more)
}

/// Deletes delivered batches of a log partition appended at `old_ms` or earlier.
fn delete_old(c: &Connection, partition: i64, old_ms: u64) -> rusqlite::Result<bool> {
    for _ in 0..STEP_BATCHES {
        let first = c
            .prepare_cached(
                "SELECT b.id, b.appended_ms FROM partitions p JOIN batches b
                     ON b.partition_id = p.id AND b.first_offset = p.start_offset
                 WHERE p.id = ?1 AND b.first_offset + b.count <= p.delivered_offset",
            )?
            .query_row([partition], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u64>(1)?)))
            .optional()?;
        match first {
            Some((id, appended_ms)) if appended_ms <= old_ms => delete(c, id)?,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Deletes the oldest delivered batches of all log partitions while they take more than `bytes_max`.
fn delete_excess(c: &Connection, bytes_max: u64) -> rusqlite::Result<bool> {
    for _ in 0..STEP_BATCHES {
        let total: u64 = c
            .prepare_cached("SELECT coalesce(sum(delivered_bytes), 0) FROM partitions")?
            .query_row([], |row| row.get(0))?;
        if total <= bytes_max {
            return Ok(false);
        }
        let oldest = c
            .prepare_cached(
                "SELECT b.id FROM partitions p JOIN batches b
                     ON b.partition_id = p.id AND b.first_offset = p.start_offset
                 WHERE p.delivered_bytes > 0 ORDER BY b.id LIMIT 1",
            )?
            .query_row([], |row| row.get(0))
            .optional()?;
        match oldest {
            Some(id) => delete(c, id)?,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Deletes the first batch of its log partition, which is delivered.
fn delete(c: &Connection, id: i64) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE partitions SET start_offset = b.first_offset + b.count,
                               delivered_bytes = delivered_bytes - b.stored_bytes
         FROM (SELECT partition_id, first_offset, count, stored_bytes FROM batches WHERE id = ?1) b
         WHERE partitions.id = b.partition_id",
    )?
    .execute([id])?;
    c.prepare_cached("DELETE FROM batches WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Gives some free pages back to the file system if there are many; `true`: there are still too many.
fn give_back(connection: &mut Connection) -> rusqlite::Result<bool> {
    let get = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0));
    let (pages, free, page_bytes) = (get("page_count")?, get("freelist_count")?, get("page_size")?);
    if free <= pages / 4 || free * page_bytes <= FREE_BYTES_KEPT {
        return Ok(false);
    }
    let mut vacuum =
        connection.prepare(&format!("PRAGMA incremental_vacuum({})", STEP_VACUUM_BYTES / page_bytes))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(get("freelist_count")? < free)
}
