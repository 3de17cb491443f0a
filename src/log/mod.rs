//! The log: a durable, ordered sequence of records per log partition, and the state that moves with it.
//!
//! ```text
//!   capture ── append(batch, state) ──> [ topic/0: r r r r | topic2/0: r r ]  ── read(offset) ──> deliver
//!                 one atomic step        state: position, backfill, cut …
//! ```
//!
//! Why progress is safe: records and the writer's state (its checkpoint) become durable in the same atomic
//! step, so that whoever takes over finds a state which describes exactly the records that are there. The
//! step carries the writer's epoch; [`Log::fence`] hands out the next one, and from then on an append with
//! an older epoch is refused by the log itself, whatever its sender believes about any lock.
//!
//! To add a log, implement [`Log`] and run [`conformance`] on it.

mod blob;
pub mod conformance;
mod kafka;
mod record;
mod spill;
mod sqlite;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::runtime::{Error, Result};

pub use kafka::{KafkaLog, KafkaLogOptions, Probe, RESERVED};
pub use record::{Mark, RecordBatch, RecordRef, RecordWriter, TopicRecords};
pub use spill::{Passed, STATE as SPILL_STATE, SpillLog};
pub use sqlite::{SqliteLog, SqliteLogOptions};

/// Place of a record in its log partition, from 0. Offsets only grow; a log may leave gaps.
pub type Offset = u64;

/// Number of a writer: the higher fences the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A shard of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPartition {
    /// Topic.
    pub topic: Arc<str>,
    /// Number within the topic, from 0.
    pub partition: u32,
}

impl fmt::Display for LogPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// The offsets which a log partition holds: `start <= offset < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// First offset still held.
    pub start: Offset,
    /// Offset just past the last record that readers may see.
    pub end: Offset,
}

/// What the new writer finds: its epoch, and the state left by the last successful append.
#[derive(Debug)]
pub struct Fenced {
    /// The caller's epoch.
    pub epoch: Epoch,
    /// State by key, as the appends put it.
    pub state: BTreeMap<String, Vec<u8>>,
}

/// One append.
#[derive(Debug, Default)]
pub struct Append {
    /// The records. May be empty when only the state moves.
    pub records: RecordBatch,
    /// State to set, by key; other keys stay. An empty value removes its key.
    pub state: Vec<(String, Vec<u8>)>,
}

/// An append that did not happen, with its input. On an error of class `Retry` it may be tried again as it is,
/// unless it is in doubt.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub error: Error,
    /// The input.
    pub append: Append,
    /// Nobody knows whether it happened: it must not be tried again as it is. Fence, and see what the state says.
    pub in_doubt: bool,
}

/// Records read from one log partition.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Frames, as [`RecordBatch`] writes them, one after the other.
    pub frames: Vec<u8>,
    /// Offset of each frame, ascending, one a frame.
    pub offsets: Vec<Offset>,
    /// Where to read next. Beyond the last offset also when nothing was found but gaps were passed.
    pub next: Offset,
}

impl Fetched {
    /// The records with their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, RecordRef<'_>)> {
        self.offsets.iter().copied().zip(record::frames(&self.frames))
    }
}

/// A durable ordered log with one writer. All methods are cancel-safe but [`Log::append`], whose outcome is
/// unknown when it is dropped: fence again before the next append.
#[async_trait]
pub trait Log: Send + Sync + fmt::Debug + 'static {
    /// Makes the caller the one writer, and fences all earlier ones.
    async fn fence(&self) -> Result<Fenced>;

    /// Appends records and sets state in one durable, atomic step, and hands the input back, emptied of
    /// nothing, for its buffers to be used again. The records of a topic keep their order. A topic seen for
    /// the first time is created.
    ///
    /// An error of class `Fenced`: another writer has taken over; never try again. `Retry`: nothing was
    /// written, unless it is `in_doubt`; time can help (a log at its limit, once readers let go). `Operator`:
    /// nothing was written, and a person has to act (a full disk).
    async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected>;

    /// Takes out records to be appended later, with as much done to them as needs no order, such as compressing them: by
    /// whoever makes records beside others. Blocks for as long as that takes. What is given can be appended to this log,
    /// and to no other; `records` keep their buffer.
    fn prepare(&self, records: &mut TopicRecords) -> TopicRecords {
        records.take()
    }

    /// Every log partition with the offsets that it holds.
    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>>;

    /// Reads records from `from` on: at least one when there is one, else about `bytes_max` bytes of frames
    /// at most. An empty answer means that the end is reached. Reading below `start`, or beyond `end`, is an
    /// error of class `Operator` which names the gap. A log partition that is not there yet ends at 0.
    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched>;

    /// Lets go of records below `before`, as far as the log's own retention agrees. Never of later ones.
    async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()>;

    /// Whether the log is near its limit: who reads it should finish what keeps it from letting go of records.
    /// Cheap. A log without a limit of its own is never short.
    async fn is_short_of_room(&self) -> Result<bool> {
        Ok(false)
    }

    /// Waits until something may have been appended since the last call: at most a second. With several callers
    /// at once, only those who are waiting are sure to wake before that second is over.
    async fn appended(&self);

    /// The largest record that a topic takes, in bytes of key, value and headers, as far as it is known; none: any.
    /// An append with a larger one is rejected as in doubt: from the next fence on the limit is known, and the
    /// record has to become something smaller.
    fn record_bytes_max(&self, _topic: &str) -> Option<usize> {
        None
    }

    /// The same, at the least: what an append finds later is not less, as far as that can be told.
    fn record_bytes_sure(&self, topic: &str) -> Option<usize> {
        self.record_bytes_max(topic)
    }

    /// What keeps the log from working at this moment, as far as it knows without being asked for anything; also
    /// while appends succeed, since they are kept elsewhere.
    fn trouble(&self) -> Option<String> {
        None
    }
}
