//! The log on Kafka: a topic a table, and `<name>.state` beside them.
//!
//! ```text
//!   append ─> writer thread ── one Kafka transaction ──┬─ records      ─> <name>.<schema>.<table> / partition
//!                                                      └─ state + ends ─> <name>.state (compacted)
//!   read ───> view of <name>.state: how far may be read ── consumers of committed records, up to there
//! ```
//!
//! Why nothing is lost or doubled, and nothing is out of order:
//!
//! * **Records and state are one transaction**, written with acks of all replicas by an idempotent producer. After
//!   any end of a writer, the state read by the next one describes exactly the records that are committed
//!   ([`fence`]). Nothing that matters is on the local disk.
//! * **One writer.** Kafka fences the former producer of the transactional id, whatever that one believes; each
//!   of its later requests is refused by the brokers. Our own epoch, a counter in the state, is for those who
//!   have to tell a successor from a mere timeout.
//! * **An outcome is known or is said not to be.** What fails before the commit was asked for is aborted, by this
//!   producer or by the first step of the next one, and may be tried again. A commit without an answer is asked
//!   for again until Kafka must have decided; if there is no answer even then, the append is `in_doubt`, and
//!   the caller has to fence and to read the state.
//! * **Offsets are foreseen, and checked.** With one writer the offset of each record is known before it is
//!   sent. So the ends of the log partitions can be part of the very transaction that moves them; each delivery
//!   is compared with what was foreseen before the commit. Who else writes to the topics is found out.
//!
//! Why readers see whole appends, although Kafka shows the partitions of a transaction one after the other: they go
//! by the ends in the state topic, which are one partition, and wait for records that they know to be there.
//! This makes two other things simple. Transaction markers are never the end of anything: an end is the
//! offset just past a record. And to list ten thousand log partitions takes one small read.
//!
//! Consumers that are not ours see the same with `isolation.level=read_committed`: each change exactly once, and in
//! order per key.
//!
//! Why transactions for everything, and no scheme of its own on an idempotent producer: deduplication by
//! position would protect our readers only, and the topics are there for others.
//!
//! `trim` does nothing: retention is the topics' own, since others read them, too.

mod append;
mod client;
mod cursor;
mod fence;
mod markers;
mod offsets;
mod options;
mod partitioner;
mod probe;
mod reader;
mod redo;
mod state;
mod step;
mod topics;
mod transaction;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Append, Epoch, Fenced, Fetched, Log, LogPartition, Offset, OffsetRange, Rejected};
use crate::runtime::Result;

pub use options::{KafkaLogOptions, RESERVED};
pub use probe::Probe;

use reader::Shared;
use writer::Writer;

/// How often others' appends are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The log on Kafka; see the module.
#[derive(Debug)]
pub struct KafkaLog {
    shared: Arc<Shared>,
    writer: Writer,
    changed: Arc<Notify>,
    seen: Mutex<Offset>,
}

impl KafkaLog {
    /// Checks the properties; connects with the first call. `Usage`: librdkafka does not know one of them.
    pub fn open(options: KafkaLogOptions) -> Result<Self> {
        options.check()?;
        // librdkafka's threads may be in a handshake when the process ends. Whoever initialises OpenSSL first decides
        // whether it frees at exit what they use; so initialised it does not, and nobody dies of SIGSEGV instead of
        // leaving with an exit code.
        openssl_sys::init();
        let shared = Arc::new(Shared::new(options));
        let changed = Arc::new(Notify::new());
        let writer = Writer::start(Arc::clone(&shared), Arc::clone(&changed))?;
        Ok(Self { shared, writer, changed, seen: Mutex::new(0) })
    }

    /// Tries what could fail later, and changes nothing but topics that are missing. Takes up to half a minute
    /// when brokers do not answer. Cancel-safe.
    pub async fn probe(&self) -> Vec<Probe> {
        let probed = self.shared.blocking(|shared| Ok(probe::probe(shared))).await;
        probed.unwrap_or_else(|error| vec![Probe { subject: "log", outcome: Err(error) }])
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn fence(&self) -> Result<Fenced> {
        self.writer.fence().await
    }

    async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected> {
        self.writer.append(epoch, append).await
    }

    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.shared.ranges().await
    }

    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        self.shared.read(partition, from, bytes_max).await
    }

    async fn trim(&self, _partition: &LogPartition, _before: Offset) -> Result<()> {
        Ok(())
    }

    async fn appended(&self) {
        // Appends of this process wake at once; those of others are found by asking the brokers.
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if timeout(LOOK_EVERY, self.changed.notified()).await.is_ok() {
                return;
            }
            // Brokers out of reach are told by the read that follows.
            let Ok(Ok(place)) = tokio::time::timeout_at(deadline, self.shared.place()).await else {
                continue;
            };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut *seen, place) != place {
                return;
            }
        }
    }

    fn record_bytes_max(&self, topic: &str) -> Option<usize> {
        Some(self.shared.record_bytes_max(topic))
    }

    fn record_bytes_sure(&self, topic: &str) -> Option<usize> {
        Some(self.shared.record_bytes_sure(topic))
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble.lasting()
    }
}
