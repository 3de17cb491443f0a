//! The one thread that writes: appends, fences, and the steps of a trim, in the order in which they come.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OptionalExtension, params};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{KIND, SqliteLogOptions, retention};
use crate::log::blob::{Blob, Packer, Piece};
use crate::log::{Append, Epoch, Fenced, LogPartition, Offset, Rejected, TopicRecords};
use crate::runtime::{Error, Result, sqlite};

/// Jobs that may wait for the thread. Each append is bounded by its sender.
const QUEUE: usize = 8;

/// Pages written to the WAL between checkpoints: 32 MiB. Fewer make every append pay for writing pages
/// twice in small portions; more make recovery and the file longer.
const CHECKPOINT_BYTES: u32 = 32 << 20;

/// What the WAL's file is cut to when it has grown beyond that.
const WAL_BYTES_KEPT: u32 = 64 << 20;

#[derive(Debug)]
enum Job {
    Fence(oneshot::Sender<Result<Fenced>>),
    Append(Epoch, Append, oneshot::Sender<Result<Append, Rejected>>),
    /// One step; `true`: there is more to do.
    Trim(Arc<str>, Offset, oneshot::Sender<Result<bool>>),
}

/// Handle of the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    pub fn start(options: SqliteLogOptions, connection: Connection, changed: Arc<Notify>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let path = options.path.clone();
        let mut thread = WriterThread {
            options,
            connection: None,
            packer: Packer::default(),
            expected: None,
            commit_in_doubt: false,
            changed,
        };
        thread.configure(&connection).map_err(|e| sqlite::error(&path, "open the log", e))?;
        thread.connection = Some(connection);
        thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || thread.run(queue))
            .map_err(|e| Error::operator("cannot start the log's writer thread").cause(e))?;
        Ok(Self { jobs })
    }

    pub async fn fence(&self) -> Result<Fenced> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Fence(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Not cancel-safe: when dropped, the append may or may not happen.
    pub async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected> {
        let (reply, answer) = oneshot::channel();
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(Job::Append(epoch, append, reply)).await {
            let Job::Append(_, append, _) = job else { unreachable!("the job that was sent comes back") };
            return Err(Rejected { error: ended(), append, in_doubt: false });
        }
        match answer.await {
            Ok(outcome) => outcome,
            // The thread has died with the append: the input is gone with it, and nobody knows its outcome.
            Err(_) => Err(Rejected { error: ended(), append: Append::default(), in_doubt: true }),
        }
    }

    pub async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()> {
        if partition.partition != 0 {
            return Ok(());
        }
        loop {
            let (reply, answer) = oneshot::channel();
            let job = Job::Trim(Arc::clone(&partition.topic), before, reply);
            self.jobs.send(job).await.map_err(|_| ended())?;
            if !answer.await.map_err(|_| ended())?? {
                return Ok(());
            }
        }
    }
}

struct WriterThread {
    options: SqliteLogOptions,
    /// None after an error from which it could not be brought back: opened anew for the next job.
    connection: Option<Connection>,
    packer: Packer,
    /// The epoch handed out by this thread, with the count of appends that it has left.
    expected: Option<(Epoch, u64)>,
    /// The last COMMIT has failed.
    commit_in_doubt: bool,
    changed: Arc<Notify>,
}

impl WriterThread {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            // A receiver that has gone no longer wants to know; the job's outcome stands.
            match job {
                Job::Fence(reply) => drop(reply.send(self.fence())),
                Job::Append(epoch, append, reply) => {
                    let outcome = self.append(epoch, &append);
                    let outcome = match outcome {
                        Ok(()) => Ok(append),
                        Err(error) => Err(Rejected { error, append, in_doubt: false }),
                    };
                    drop(reply.send(outcome));
                }
                Job::Trim(topic, before, reply) => {
                    let step = self.with("trim the log", |c, options| {
                        retention::step(c, options, &topic, before, now_ms())
                    });
                    drop(reply.send(step));
                }
            }
        }
    }

    /// Runs a job on the connection, opening it if need be, and makes sure that no transaction is left open.
    fn with<T>(
        &mut self,
        doing: &str,
        job: impl FnOnce(&mut Connection, &SqliteLogOptions) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = sqlite::open(&self.options.path, &KIND)?;
                self.configure(&connection).map_err(|e| sqlite::error(&self.options.path, doing, e))?;
                connection
            }
        };
        let outcome = job(&mut connection, &self.options);
        if connection.is_autocommit() {
            self.connection = Some(connection);
        }
        outcome.map_err(|e| sqlite::error(&self.options.path, doing, e))
    }

    fn configure(&self, connection: &Connection) -> rusqlite::Result<()> {
        let page_bytes: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_BYTES / page_bytes)?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        // Enough for the pages of one append; blobs are written once and not read by this connection.
        connection.pragma_update(None, "cache_size", -8192)?;
        if let Some(bytes) = self.options.bytes_max {
            connection.pragma_update(None, "max_page_count", (bytes / u64::from(page_bytes)).max(1))?;
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<Fenced> {
        let (epoch, appends, state) = self.with("take over the log", |connection, _| {
            let (epoch, appends) = sqlite::immediate(connection, |c| {
                c.query_row("UPDATE writer SET epoch = epoch + 1 RETURNING epoch, appends", [], |row| {
                    Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?))
                })
            })?;
            let mut select = connection.prepare_cached("SELECT key, value FROM state")?;
            let state =
                select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            Ok((Epoch(epoch), appends, state))
        })?;
        self.expected = Some((epoch, appends));
        self.commit_in_doubt = false;
        Ok(Fenced { epoch, state })
    }

    fn append(&mut self, epoch: Epoch, append: &Append) -> Result<()> {
        self.packer.clear();
        let mut blobs = Vec::new();
        for records in append.records.topics() {
            blobs.push((records, self.packer.pack(records.topic(), records.pieces())?));
        }
        let packer = std::mem::take(&mut self.packer);
        let expected = self.expected.filter(|(e, _)| *e == epoch).map(|(_, appends)| appends);
        let outcome = self.with("append to the log", |connection, _| {
            sqlite::immediate(connection, |c| {
                let appends = count_append(c, epoch, expected)?;
                if appends.is_some() {
                    for (records, range) in &blobs {
                        insert_batches(c, records, range.clone().map(|i| packer.blob(i)), &packer)?;
                    }
                    set_state(c, &append.state)?;
                }
                Ok::<_, rusqlite::Error>(appends)
            })
        });
        let bytes = packer.bytes();
        self.packer = packer;
        match outcome {
            Ok(Some(appends)) => {
                self.expected = Some((epoch, appends));
                self.commit_in_doubt = false;
                self.restrain_wal();
                self.changed.notify_waiters();
                self.changed.notify_one();
                Ok(())
            }
            Ok(None) => Err(self.fenced(epoch)),
            Err(error) => {
                self.commit_in_doubt = true;
                Err(self.name_limit(error, bytes))
            }
        }
    }

    /// While some reader is always at work, the checkpoints after a COMMIT never get to start the WAL afresh.
    /// When it has grown too long, one that waits for them does.
    fn restrain_wal(&self) {
        let mut wal = OsString::from(&self.options.path);
        wal.push("-wal");
        let is_long =
            std::fs::metadata(PathBuf::from(wal)).is_ok_and(|m| m.len() > u64::from(WAL_BYTES_KEPT));
        if let (true, Some(connection)) = (is_long, &self.connection) {
            // The append is done; a checkpoint that fails is tried again after the next one.
            let _ = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        }
    }

    fn fenced(&self, epoch: Epoch) -> Error {
        let file = self.options.path.display();
        let Epoch(epoch) = epoch;
        if self.commit_in_doubt && self.expected.is_some_and(|(e, _)| e.0 == epoch) {
            return Error::fenced(format!(
                "the log {file} holds an append whose commit had failed, or another writer has taken over; \
                 epoch {epoch} cannot append any more"
            ));
        }
        Error::fenced(format!("another writer has taken over the log {file} from epoch {epoch}"))
    }

    /// A file that has come to `bytes_max` and a disk that is full are one error to SQLite.
    fn name_limit(&self, error: Error, bytes: usize) -> Error {
        let (Some(bytes_max), Some(connection)) = (self.options.bytes_max, &self.connection) else {
            return error;
        };
        let is_full = std::error::Error::source(&error)
            .and_then(|e| e.downcast_ref::<rusqlite::Error>())
            .is_some_and(|e| e.sqlite_error_code() == Some(ErrorCode::DiskFull));
        let get =
            |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0)).unwrap_or(0);
        let (pages, free, page_bytes) = (get("page_count"), get("freelist_count"), get("page_size"));
        // Room for the pages of the tables besides the blobs'.
        let wanted = bytes as u64 + 64 * page_bytes;
        if !is_full || pages.saturating_sub(free) * page_bytes + wanted < bytes_max {
            return error;
        }
        let (file, key) = (self.options.path.display(), self.options.bytes_max_key);
        Error::retry(format!(
            "cannot append to the log: {file} has come to its limit, {key} = {bytes_max}; nothing was written"
        ))
        .mend(
            "It goes on by itself as soon as deliver has brought records into the lake. If deliver does not \
             run or is stuck, mend that, or raise bytes_max and start again",
        )
    }
}

/// `None`: fenced.
fn count_append(c: &Connection, epoch: Epoch, expected: Option<u64>) -> rusqlite::Result<Option<u64>> {
    let sql = "UPDATE writer SET appends = appends + 1
               WHERE epoch = ?1 AND appends = coalesce(?2, appends) RETURNING appends";
    c.prepare_cached(sql)?.query_row(params![epoch.0, expected], |row| row.get(0)).optional()
}

fn insert_batches(
    c: &Connection,
    records: &TopicRecords,
    blobs: impl Iterator<Item = Blob>,
    packer: &Packer,
) -> rusqlite::Result<()> {
    let topic = &**records.topic();
    c.prepare_cached("INSERT INTO partitions (topic) VALUES (?1) ON CONFLICT DO NOTHING")?
        .execute([topic])?;
    let (partition, mut offset): (i64, u64) = c
        .prepare_cached("SELECT id, end_offset FROM partitions WHERE topic = ?1")?
        .query_row([topic], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut insert = c.prepare_cached(
        "INSERT INTO batches (partition_id, first_offset, count, appended_ms, stored_bytes, frames_bytes, codec,
                              crc, blob) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    let appended_ms = now_ms();
    for (blob, piece) in blobs.zip(records.pieces()) {
        let stored = match piece {
            Piece::Packed(packed) => Some(&packed.stored[..]),
            Piece::Frames(..) => packer.stored(&blob),
        };
        let stored = match stored {
            Some(stored) => ToSqlOutput::from(stored),
            None => ToSqlOutput::ZeroBlob(blob.bytes as u64),
        };
        let later = matches!(stored, ToSqlOutput::ZeroBlob(_));
        insert.execute(params![
            partition,
            offset,
            blob.count,
            appended_ms,
            blob.bytes as u64,
            blob.frames_bytes as u64,
            blob.codec as i64,
            blob.crc,
            stored
        ])?;
        if let (true, Piece::Frames(frames, _)) = (later, piece) {
            let mut out = c.blob_open(MAIN_DB, c"batches", c"blob", c.last_insert_rowid(), false)?;
            Packer::write(&blob, frames, &mut out).map_err(of_blob)?;
        }
        offset += u64::from(blob.count);
    }
    c.prepare_cached("UPDATE partitions SET end_offset = ?2 WHERE id = ?1")?
        .execute(params![partition, offset])?;
    Ok(())
}

/// Writing into a blob fails as SQLite does.
fn of_blob(error: std::io::Error) -> rusqlite::Error {
    error.downcast().unwrap_or_else(|error| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
        rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
    })
}

fn set_state(c: &Connection, state: &[(String, Vec<u8>)]) -> rusqlite::Result<()> {
    for (key, value) in state {
        if value.is_empty() {
            c.prepare_cached("DELETE FROM state WHERE key = ?1")?.execute([key])?;
        } else {
            c.prepare_cached("INSERT INTO state VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
                .execute(params![key, value])?;
        }
    }
    Ok(())
}

/// Milliseconds since 1970, by the wall clock.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn ended() -> Error {
    Error::operator("the log's writer thread has ended")
        .mend("Restart Tidemark, and report the panic in its log")
}
