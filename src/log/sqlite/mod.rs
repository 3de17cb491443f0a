//! The embedded log: one SQLite file, `log.db`.
//!
//! ```text
//!   append ─> writer thread ─┬─ cut into 1 MiB blobs, LZ4, CRC          (outside of the transaction)
//!                            └─ BEGIN IMMEDIATE                          one fsync, at COMMIT
//!                                 writer:     epoch still ours? appends + 1
//!                                 batches:    one row a blob
//!                                 partitions: end_offset
//!                                 state:      upsert
//!                               COMMIT ─> wakes readers
//!   read ───> pool of read-only connections: blob by blob from the one that contains `from`
//!   trim ───> writer thread, in short transactions
//!
//!   a log partition:  start_offset <= delivered_offset <= end_offset
//!                     |  kept for replay    |  undelivered  |
//! ```
//!
//! Why nothing is lost or doubled: records and state are written by one transaction in WAL mode with
//! `synchronous = FULL`, so that both are on disk, or neither, when COMMIT returns. The transaction takes the
//! write lock first and then compares the epoch, so a fenced writer never gets past its first statement. A COMMIT
//! which failed with an input/output error may still turn out to be on disk once the file is opened anew; the
//! counter `appends` tells: if it is not what this writer left, the append is refused as fenced, and the
//! next fence hands out the state that belongs to what is there.
//!
//! Why a reader sees whole appends only: each read is one read transaction, and it reads below `end_offset`.
//!
//! Any number of processes may have the file open. SQLite's write lock orders appends, fences and trims;
//! readers wait for nobody.

mod reader;
mod retention;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::blob::{self, Packer};
use super::{Append, Epoch, Fenced, Fetched, Log, LogPartition, Offset, OffsetRange, Rejected, TopicRecords};
use crate::runtime::Result;
use crate::runtime::sqlite::{self, Kind};

use reader::Readers;
use writer::Writer;

const KIND: Kind = Kind {
    name: "log",
    application_id: 0x5469_644c, // "TidL"
    version: 2,
    page_bytes: 16384,
    schema: include_str!("schema.sql"),
};

/// What the embedded log is told.
#[derive(Clone, Debug)]
pub struct SqliteLogOptions {
    /// The file, such as `data/log.db`. SQLite puts `-wal` and `-shm` beside it.
    pub path: PathBuf,
    /// Most bytes of the file, without its `-wal` (which stays below about 100 MB). Appends beyond it are
    /// refused with an error of class `Retry`: once readers let go there is room again.
    pub bytes_max: Option<u64>,
    /// The configuration's name for it, for errors.
    pub bytes_max_key: &'static str,
    /// Most bytes of a record; no more than [`SqliteLogOptions::RECORD_BYTES_MAX`].
    pub record_bytes_max: usize,
    /// How long delivered records are kept for replays, in milliseconds since they were appended.
    pub retention_ms: u64,
    /// Most stored bytes of delivered records to keep, whatever their age, over all log partitions. The
    /// oldest go first. Never more than half of `bytes_max`: replays must not stand in the way of what comes.
    pub retention_bytes: Option<u64>,
    /// Whether the file is for this process alone, and what to do where another one has it.
    pub exclusive: Option<&'static str>,
}

impl SqliteLogOptions {
    /// What a row of SQLite can hold.
    pub const RECORD_BYTES_MAX: usize = blob::STORED_BYTES_MAX - 4096;

    /// Unlimited, and delivered records are kept for a week.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            bytes_max: None,
            bytes_max_key: "[log.embedded] bytes_max",
            record_bytes_max: Self::RECORD_BYTES_MAX,
            retention_ms: 7 * 24 * 3600 * 1000,
            retention_bytes: None,
            exclusive: None,
        }
    }
}

/// The embedded log; see the module. It has one log partition a topic, number 0, and no gaps in its offsets.
#[derive(Debug)]
pub struct SqliteLog {
    writer: Writer,
    readers: Arc<Readers>,
    changed: Arc<Notify>,
    bytes_max: Option<u64>,
    record_bytes_max: usize,
    /// For records that are packed beforehand: as many as that is done at once.
    packers: Mutex<Vec<Packer>>,
    /// Held for as long as the log is open.
    _lock: Option<File>,
}

impl SqliteLog {
    /// Opens the log, creating file and folder when there is none. Blocks for some milliseconds (up to a second
    /// after a crash). `Operator`: the file is not ours, is of a newer version, cannot be written, or is another
    /// process's.
    pub fn open(mut options: SqliteLogOptions) -> Result<Self> {
        let half = options.bytes_max.map(|bytes_max| bytes_max / 2);
        options.retention_bytes = options.retention_bytes.into_iter().chain(half).min();
        let (bytes_max, record_bytes_max) =
            (options.bytes_max, options.record_bytes_max.min(SqliteLogOptions::RECORD_BYTES_MAX));
        let changed = Arc::new(Notify::new());
        let lock = options.exclusive.map(|mend| sqlite::keep(&options.path, mend)).transpose()?;
        let connection = sqlite::open(&options.path, &KIND)?;
        let readers = Arc::new(Readers::new(options.path.clone()));
        let writer = Writer::start(options, connection, Arc::clone(&changed))?;
        Ok(Self {
            writer,
            readers,
            changed,
            bytes_max,
            record_bytes_max,
            packers: Mutex::default(),
            _lock: lock,
        })
    }
}

impl SqliteLog {
    fn packers(&self) -> MutexGuard<'_, Vec<Packer>> {
        // Buffers, which a panic leaves as good as any.
        self.packers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Log for SqliteLog {
    async fn fence(&self) -> Result<Fenced> {
        self.writer.fence().await
    }

    async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected> {
        self.writer.append(epoch, append).await
    }

    fn prepare(&self, records: &mut TopicRecords) -> TopicRecords {
        let mut packer = self.packers().pop().unwrap_or_default();
        let prepared = records.take_packed(|frames, count| packer.pack_piece(frames, count));
        self.packers().push(packer);
        prepared
    }

    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.readers.ranges().await
    }

    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        self.readers.read(partition.clone(), from, bytes_max).await
    }

    async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()> {
        self.writer.trim(partition, before).await
    }

    fn record_bytes_max(&self, _topic: &str) -> Option<usize> {
        Some(self.record_bytes_max)
    }

    async fn is_short_of_room(&self) -> Result<bool> {
        let Some(bytes_max) = self.bytes_max else { return Ok(false) };
        Ok(self.readers.bytes_used().await? > bytes_max / 4 * 3)
    }

    async fn appended(&self) {
        // Appends of this process wake at once; those of others are found by asking the file.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        while tokio::time::Instant::now() < deadline {
            if tokio::time::timeout(Duration::from_millis(100), self.changed.notified()).await.is_ok()
                || self.readers.has_changed().await
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
