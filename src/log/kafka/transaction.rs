//! One append as one Kafka transaction.
//!
//! ```text
//!   begin ─> send records, then state records ─> drain ─> every offset as foreseen? ─> commit ─> visible?
//!                  queue full: poll, go on          │            no │                      │ no answer │ no
//!                                                   └── error ──> abort: nothing written   └─> in doubt ┘
//! ```
//!
//! The queue in memory is bounded and small; an append larger than it is still one transaction, since records leave the
//! queue for the broker long before the commit. Before commit or abort the queue is drained by polling: the library's
//! own flush polls in long steps, and purging would skip sequence numbers, after which the next transaction fails.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::client::{Context, Deliveries, Meaning, code, meaning};
use super::markers;
use super::offsets::Offsets;
use super::state::Entry;
use crate::log::{LogPartition, Offset, RecordRef};
use crate::runtime::Error;

/// One request for a commit or an abort.
const STEP: Duration = Duration::from_secs(5);

/// How long an abort is tried before the producer is given up, and a new one aborts in its place.
const ABORT_PATIENCE: Duration = Duration::from_secs(15);

/// Why a transaction did not come to its end.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was written. With the log partition, where one is the cause.
    NotWritten(KafkaError, Option<LogPartition>),
    /// An offset was not the one foreseen: somebody else writes to the log partition. Nothing was written.
    Disturbed(LogPartition),
    /// The commit was asked for and nobody knows its outcome.
    InDoubt(KafkaError),
    /// The commit was confirmed, and is not visible.
    Unmarked(Error),
}

impl Failure {
    /// The same with the producer's fatal error as its cause, if it has one.
    pub fn with_fatal(self, producer: &BaseProducer<Context>) -> Self {
        let Some((code, _)) = producer.client().fatal_error() else { return self };
        match self {
            Self::NotWritten(_, partition) => Self::NotWritten(KafkaError::Global(code), partition),
            Self::InDoubt(_) => Self::InDoubt(KafkaError::Global(code)),
            Self::Disturbed(_) => Self::NotWritten(KafkaError::Global(code), None),
            Self::Unmarked(_) => self,
        }
    }
}

/// A transaction under way.
pub(super) struct Transaction<'p> {
    producer: &'p BaseProducer<Context>,
    /// Log partitions by slot, with the offset foreseen for the next record.
    slots: Vec<(LogPartition, Offset)>,
    /// Whether the producer is of use afterwards.
    usable: bool,
}

impl<'p> Transaction<'p> {
    pub fn begin(producer: &'p BaseProducer<Context>) -> Result<Self, Failure> {
        *deliveries(producer) = Deliveries::default();
        producer.begin_transaction().map_err(|error| Failure::NotWritten(error, None))?;
        Ok(Self { producer, slots: Vec::new(), usable: true })
    }

    /// The number under which records are sent to a log partition whose next offset is `next`.
    pub fn slot(&mut self, partition: LogPartition, next: Offset) -> usize {
        self.slots.push((partition, next));
        deliveries(self.producer).last.push(None);
        self.slots.len() - 1
    }

    /// Log partitions with the offsets just past their last record, by slot.
    pub fn slots(&self) -> &[(LogPartition, Offset)] {
        &self.slots
    }

    /// Sends a record.
    pub fn send(&mut self, slot: usize, record: &RecordRef<'_>) -> Result<(), Failure> {
        let mut headers = None::<OwnedHeaders>;
        for (key, value) in record.headers() {
            let all = headers.take().unwrap_or_else(|| OwnedHeaders::new_with_capacity(4));
            headers = Some(all.insert(Header { key, value: Some(value) }));
        }
        self.enqueue(slot, record.key, record.value, Some(record.timestamp_ms), headers)
    }

    /// Sends a record of state.
    pub fn send_state(&mut self, slot: usize, (key, value): &Entry) -> Result<(), Failure> {
        self.enqueue(slot, Some(key.as_bytes()), value.as_deref(), None, None)
    }

    fn enqueue(
        &mut self,
        slot: usize,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: Option<i64>,
        headers: Option<OwnedHeaders>,
    ) -> Result<(), Failure> {
        let (partition, next) = &mut self.slots[slot];
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&partition.topic, slot)
            .partition(partition.partition as i32);
        (record.key, record.payload, record.timestamp, record.headers) = (key, value, timestamp_ms, headers);
        let mut pace = Pace::new();
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((error @ KafkaError::MessageProduction(Code::QueueFull), again)) => {
                    if self.producer.in_flight_count() == 0 {
                        // The queue was made smaller than this record.
                        return Err(Failure::NotWritten(error, Some(partition.clone())));
                    }
                    record = again;
                    pace.serve(self.producer);
                    let failed = deliveries(self.producer).failed.take();
                    if let Some((slot, error)) = failed {
                        return Err(Failure::NotWritten(self.cause(error), Some(self.slots[slot].0.clone())));
                    }
                }
                Err((error, _)) => {
                    let partition = Some(partition.clone());
                    let refused = code(&error) == Some(Code::State);
                    return Err(Failure::NotWritten(
                        if refused { self.cause(error) } else { error },
                        partition,
                    ));
                }
            }
        }
        *next += 1;
        Ok(())
    }

    /// Commits, and waits until readers see it. Nothing else may be called after it, and after an error
    /// [`Self::abort`] only.
    pub fn commit(&mut self, offsets: &Offsets, patience: Duration) -> Result<(), Failure> {
        self.sent()?;
        self.verify()?;
        let started = Instant::now();
        loop {
            let Err(error) = self.producer.commit_transaction(STEP) else { break };
            let KafkaError::Transaction(told) = &error else {
                // Flushing has failed: the commit was not asked for.
                return Err(Failure::NotWritten(error, None));
            };
            if told.txn_requires_abort() {
                return Err(Failure::NotWritten(error, None));
            }
            let again = told.is_retriable() || told.code() == Code::OperationTimedOut;
            if !again || started.elapsed() > patience {
                self.usable = false;
                return Err(Failure::InDoubt(error));
            }
            tracing::debug!(%error, "the commit has no answer yet");
        }
        markers::wait_for(offsets, &self.slots, patience).map_err(|error| {
            self.usable = false;
            Failure::Unmarked(error)
        })
    }

    /// Waits until every record has its answer; librdkafka gives one to each within the transaction's timeout.
    pub fn sent(&self) -> Result<(), Failure> {
        let mut pace = Pace::new();
        while self.producer.in_flight_count() > 0 {
            pace.serve(self.producer);
        }
        let failed = deliveries(self.producer).failed.take();
        match failed {
            Some((slot, error)) => {
                Err(Failure::NotWritten(self.cause(error), Some(self.slots[slot].0.clone())))
            }
            None => Ok(()),
        }
    }

    /// Whether all records stand where they were foreseen.
    fn verify(&self) -> Result<(), Failure> {
        let found = deliveries(self.producer);
        for ((partition, next), last) in self.slots.iter().zip(&found.last) {
            if last.is_none_or(|last| last + 1 != *next) {
                return Err(Failure::Disturbed(partition.clone()));
            }
        }
        Ok(())
    }

    /// What has made the transaction fail, of which a record's error is only what follows: a right that is missing shows
    /// when a log partition is added to the transaction, and its records come back as sent in a wrong state. librdkafka
    /// tells it when it is asked to commit. Only for a transaction that it will not commit: one of its records has
    /// failed, or was refused for the transaction's state.
    fn cause(&self, error: KafkaError) -> KafkaError {
        match self.producer.commit_transaction(STEP) {
            Err(KafkaError::Transaction(told))
                if told.txn_requires_abort() && told.code() != Code::Inconsistent =>
            {
                KafkaError::Transaction(told)
            }
            _ => error,
        }
    }

    /// Aborts after an error; `false`: the producer is of no use any more, and its successor's first step
    /// aborts what it has left.
    pub fn abort(self, failure: &Failure) -> bool {
        let fenced = match failure {
            Failure::NotWritten(error, _) | Failure::InDoubt(error) => {
                meaning(error) == Meaning::Fenced || code(error) == Some(Code::Fatal)
            }
            Failure::Disturbed(_) | Failure::Unmarked(_) => false,
        };
        !fenced && self.roll_back()
    }

    /// Aborts; `false` as above.
    pub fn roll_back(self) -> bool {
        if !self.usable || self.producer.client().fatal_error().is_some() {
            return false;
        }
        let started = Instant::now();
        while started.elapsed() < ABORT_PATIENCE {
            let mut pace = Pace::new();
            while self.producer.in_flight_count() > 0 && started.elapsed() < ABORT_PATIENCE {
                pace.serve(self.producer);
            }
            match self.producer.abort_transaction(STEP) {
                Ok(()) => return true,
                Err(KafkaError::Transaction(told)) if told.is_retriable() => {
                    tracing::debug!(error = %told, "the abort has no answer yet");
                }
                Err(_) => return false,
            }
        }
        false
    }
}

/// Serves the producer's events: at once while some come, else after a sleep that grows while brokers are away.
///
/// A poll of rdkafka with a timeout would spend the last millisecond of it awake, since it asks librdkafka for what is
/// left in whole milliseconds, and that is a third of all time at full rate.
struct Pace(u32);

impl Pace {
    const fn new() -> Self {
        Self(0)
    }

    fn serve(&mut self, producer: &BaseProducer<Context>) {
        let before = producer.in_flight_count();
        producer.poll(Duration::ZERO);
        if producer.in_flight_count() != before {
            self.0 = 0;
            return;
        }
        // 50 microseconds, doubled with every eighth sleep, up to 13 milliseconds.
        std::thread::sleep(Duration::from_micros(50 << (self.0 / 8)));
        self.0 = (self.0 + 1).min(64);
    }
}

fn deliveries(producer: &BaseProducer<Context>) -> MutexGuard<'_, Deliveries> {
    // The type of the guard's owner is an `Arc` that lives as long as the producer.
    producer.client().context().deliveries.lock().unwrap_or_else(PoisonError::into_inner)
}
