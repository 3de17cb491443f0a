//! Reading: a few read-only connections, used on the runtime's blocking threads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, MAIN_DB, OptionalExtension, params};
use tokio::sync::Semaphore;

use super::super::blob::{self, Head};
use crate::log::{Fetched, LogPartition, Offset, OffsetRange, record};
use crate::runtime::{Error, Result, sqlite};

/// Reads at the same time. Each holds one blob and its page cache, some 4 MB.
const READERS: usize = 4;

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// Watches `PRAGMA data_version`, which says whether another connection has committed since the last look.
    watch: Mutex<Option<(Connection, i64)>>,
}

impl Readers {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(READERS)),
            watch: Mutex::new(None),
        }
    }

    /// See [`crate::log::Log::ranges`]. Cancel-safe.
    pub async fn ranges(self: &Arc<Self>) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.with("list the log's partitions", |this, c| {
            let mut select =
                this.sql(c.prepare_cached("SELECT topic, start_offset, end_offset FROM partitions"))?;
            let rows = select.query_map([], |row| {
                let topic: Arc<str> = row.get::<_, String>(0)?.into();
                Ok((
                    LogPartition { topic, partition: 0 },
                    OffsetRange { start: row.get(1)?, end: row.get(2)? },
                ))
            });
            let ranges: rusqlite::Result<_> = this.sql(rows)?.collect();
            this.sql(ranges)
        })
        .await
    }

    /// See [`crate::log::Log::read`]. Cancel-safe.
    pub async fn read(
        self: &Arc<Self>,
        partition: LogPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Fetched> {
        self.with("read the log", move |this, c| this.read_blocking(c, &partition, from, bytes_max)).await
    }

    /// Bytes of the file that are in use. Cancel-safe.
    pub async fn bytes_used(self: &Arc<Self>) -> Result<u64> {
        self.with("look at the log's size", |this, c| {
            let get = |pragma| this.sql(c.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0)));
            Ok(get("page_count")?.saturating_sub(get("freelist_count")?) * get("page_size")?)
        })
        .await
    }

    /// Whether any connection of any process has committed since the last call. Cancel-safe.
    pub async fn has_changed(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.has_changed_blocking().unwrap_or(true)).await.unwrap_or(true)
    }

    fn has_changed_blocking(&self) -> rusqlite::Result<bool> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let (connection, last) = match watch.as_mut() {
            Some(watch) => watch,
            None => watch.insert((sqlite::open_reader(&self.path)?, -1)),
        };
        let version = connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
        Ok(std::mem::replace(last, version) != version)
    }

    async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        doing: &'static str,
        job: impl FnOnce(&Self, &mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gone = |e| Error::operator(format!("cannot {doing}: the reader has stopped")).cause(e);
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| gone(e.to_string()))?;
        let this = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle = this.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => sqlite::open_reader(&this.path).map_err(|e| sqlite::error(&this.path, doing, e))?,
            };
            let outcome = job(&this, &mut connection);
            // One that has failed is not used again.
            if outcome.is_ok() {
                this.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            }
            outcome
        });
        task.await.map_err(|e| gone(e.to_string()))?
    }

    fn read_blocking(
        &self,
        connection: &mut Connection,
        partition: &LogPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Fetched> {
        // One read transaction: range and batches belong together whatever is trimmed meanwhile.
        let transaction = self.sql(connection.transaction())?;
        let range = self.sql(find(&transaction, partition))?;
        let (id, range) = range.unwrap_or((0, OffsetRange { start: 0, end: 0 }));
        self.check(partition, from, range)?;
        let mut fetched = Fetched { next: from, ..Fetched::default() };
        if from == range.end {
            return Ok(fetched);
        }
        let mut select = self.sql(transaction.prepare_cached(
            "SELECT first_offset, count, frames_bytes, codec, crc, stored_bytes, id,
                    CASE WHEN stored_bytes <= ?4 THEN blob END
             FROM batches
             WHERE partition_id = ?1 AND first_offset >=
                 (SELECT max(first_offset) FROM batches WHERE partition_id = ?1 AND first_offset <= ?2)
               AND first_offset < ?3
             ORDER BY first_offset",
        ))?;
        let mut rows = self.sql(select.query(params![id, from, range.end, blob::WHOLE_BYTES_MAX as u64]))?;
        while let Some(row) = self.sql(rows.next())? {
            let (first, head) = self.sql(head(row))?;
            if !fetched.offsets.is_empty() && fetched.frames.len() + head.frames_bytes > bytes_max {
                break;
            }
            let damaged = |why: String| self.damaged(partition, first, &head, &why);
            if first > fetched.next {
                return Err(damaged(format!(
                    "the batch before it, from offset {}, is missing",
                    fetched.next
                )));
            }
            let at = fetched.frames.len();
            let stored_bytes = self.sql(row.get::<_, u64>(5))? as usize;
            let whole = self.sql(row.get_ref(7))?.as_blob_or_null().map_err(|e| damaged(e.to_string()))?;
            let unpacked = if let Some(mut stored) = whole {
                blob::unpack(&mut fetched.frames, &mut stored, stored_bytes, &head)
            } else {
                let row = self.sql(row.get(6))?;
                let mut stored = self.sql(transaction.blob_open(MAIN_DB, c"batches", c"blob", row, true))?;
                blob::unpack(&mut fetched.frames, &mut stored, stored_bytes, &head)
            };
            unpacked.map_err(damaged)?;
            let end = first + u64::from(head.count);
            match take(&mut fetched, at, first, bytes_max) {
                Taken::Full => break,
                Taken::All(reached) if reached == end => {}
                Taken::All(reached) => return Err(damaged(format!("its records reach {reached} only"))),
            }
        }
        if fetched.offsets.is_empty() {
            return Err(Error::operator(format!(
                "the log {} is damaged: {partition} holds no batch at offset {from}, while it should reach {}",
                self.path.display(),
                range.end
            ))
            .mend("Check the disk; restore the file, or take a new backfill"));
        }
        Ok(fetched)
    }

    fn check(&self, partition: &LogPartition, from: Offset, range: OffsetRange) -> Result<()> {
        let file = self.path.display();
        if from < range.start {
            return Err(Error::operator(format!(
                "{partition} no longer holds offsets {from} to {}, which were asked for: it starts at {} ({file})",
                range.start - 1,
                range.start
            ))
            .mend("Take a new backfill of the table, or restore the log"));
        }
        if from > range.end {
            return Err(Error::operator(format!(
                "{partition} ends at offset {}, while offset {from} was asked for: {file} is not the log that was \
                 read before",
                range.end
            ))
            .mend("Restore the log, or take a new backfill"));
        }
        Ok(())
    }

    fn damaged(&self, partition: &LogPartition, first: Offset, head: &Head, why: &str) -> Error {
        let last = first + u64::from(head.count.max(1)) - 1;
        let file = self.path.display();
        Error::operator(format!("the log {file} is damaged: {partition}, offsets {first} to {last}: {why}"))
            .mend("Check the disk; restore the file, or take a new backfill of the table")
    }

    fn sql<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(|e| sqlite::error(&self.path, "read the log", e))
    }
}

fn find(c: &Connection, partition: &LogPartition) -> rusqlite::Result<Option<(i64, OffsetRange)>> {
    if partition.partition != 0 {
        return Ok(None);
    }
    c.prepare_cached("SELECT id, start_offset, end_offset FROM partitions WHERE topic = ?1")?
        .query_row([&*partition.topic], |row| {
            Ok((row.get(0)?, OffsetRange { start: row.get(1)?, end: row.get(2)? }))
        })
        .optional()
}

fn head(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Offset, Head)> {
    Ok((
        row.get(0)?,
        Head { count: row.get(1)?, frames_bytes: row.get(2)?, codec: row.get(3)?, crc: row.get(4)? },
    ))
}

enum Taken {
    /// There was no room for the rest.
    Full,
    /// All frames; the offset just past the last.
    All(Offset),
}

/// Keeps of the frames unpacked at `at`, the first of which has offset `first`, those from `fetched.next` on
/// that fit into `bytes_max`, at least one in all.
fn take(fetched: &mut Fetched, at: usize, first: Offset, bytes_max: usize) -> Taken {
    let mut offset = first;
    let (mut from, mut to) = (at, at);
    let mut taken = None;
    for length in record::frame_lengths(&fetched.frames[at..]) {
        if offset < fetched.next {
            from += length;
        } else if !fetched.offsets.is_empty() && at + (to - from) + length > bytes_max {
            taken = Some(Taken::Full);
            break;
        } else {
            fetched.offsets.push(offset);
            fetched.next = offset + 1;
        }
        to += length;
        offset += 1;
    }
    fetched.frames.truncate(to);
    fetched.frames.drain(at..from);
    taken.unwrap_or(Taken::All(offset))
}
