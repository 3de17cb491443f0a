//! One consumer that reads one log partition at a time, from a place up to a known end.
//!
//! Its end is given, and is the offset just past a committed record, so that a read ends with that record and
//! waits for nothing. Only where the last records below the end are gone (compaction has removed them, or, in
//! the state topic, their transaction was aborted) does it take the broker's word that there is nothing left:
//! `PartitionEOF`, which librdkafka gives without an offset, and which may be an old one still in its queue, even
//! after the consumer was placed anew. It counts only from a consumer made after the broker's own end was
//! seen to have come as far as ours: that one has never heard of anything before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::{self, Context, Trouble};
use super::options::KafkaLogOptions;
use crate::log::{Fetched, LogPartition, Offset, TopicRecords};
use crate::runtime::{Error, Result};

/// How long a record that is known to be there is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection without anything to fetch sleeps for a second at a time, also while a log partition is being
/// placed. Any request wakes it, and until the first record has come one is made this often.
const NUDGE_AFTER: Duration = Duration::from_millis(10);

/// How long records are waited for, once the broker's end has come as far as ours, before a new consumer is asked
/// whether there are any.
const DOUBT_AFTER: Duration = Duration::from_millis(300);

/// What to read.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub partition: &'a LogPartition,
    pub from: Offset,
    /// Just past the last record to be read.
    pub end: Offset,
    pub bytes_max: usize,
}

/// The consumer and its place.
pub(super) struct Cursor {
    options: KafkaLogOptions,
    committed: bool,
    consumer: BaseConsumer<Context>,
    trouble: Arc<Trouble>,
    at: Option<(LogPartition, Offset)>,
    /// A record that was taken from the consumer and did not fit any more.
    pending: Option<(Offset, Vec<u8>)>,
}

impl Cursor {
    /// `committed`: of what is committed only, else of everything.
    pub fn new(options: &KafkaLogOptions, trouble: &Arc<Trouble>, committed: bool) -> Result<Self> {
        let consumer = consumer(options, trouble, committed)?;
        let (options, trouble) = (options.clone(), Arc::clone(trouble));
        Ok(Self { options, committed, consumer, trouble, at: None, pending: None })
    }

    /// Whether a read of that place needs no new request.
    pub fn is_at(&self, partition: &LogPartition, from: Offset) -> bool {
        self.at.as_ref().is_some_and(|(p, at)| p == partition && *at == from)
    }

    /// Reads at least one record when there is one below the end. After an error its place is unknown, and
    /// it is placed anew by the next read.
    pub fn read(&mut self, task: &Task<'_>) -> Result<Fetched> {
        let place = self.at.take();
        if place.as_ref().is_none_or(|(p, at)| p != task.partition || *at != task.from) {
            self.pending = None;
            self.place(task.partition, task.from)?;
        }
        let mut reading = Reading::new(task);
        if let Some((offset, frame)) = self.pending.take() {
            reading.take_frame(offset, frame);
        }
        while !reading.full() && reading.next < task.end {
            if !self.step(task, &mut reading)? {
                break;
            }
            if !reading.asks_anew && reading.reached.is_some_and(|at| at.elapsed() > DOUBT_AFTER) {
                self.consumer = consumer(&self.options, &self.trouble, self.committed)?;
                self.place(task.partition, reading.next)?;
                reading.asks_anew = true;
            }
        }
        self.pending = reading.pending.take();
        self.trouble.clear();
        if reading.next < task.end && !reading.place_anew {
            self.at = Some((task.partition.clone(), reading.next));
        } else {
            // Nothing is asked of the brokers while nothing is read.
            self.pending = None;
            let _ = self.consumer.unassign();
        }
        Ok(reading.finish())
    }

    /// Waits for one event; `false`: the end is reached.
    fn step(&self, task: &Task<'_>, reading: &mut Reading<'_>) -> Result<bool> {
        match self.consumer.poll(NUDGE_AFTER) {
            Some(Ok(message)) => {
                reading.came = true;
                reading.reached = None;
                reading.take(&message)?;
                Ok(true)
            }
            Some(Err(KafkaError::PartitionEOF(_))) => self.at_the_brokers_end(task, reading),
            Some(Err(error)) => self.failed(task, reading, &error).map(|()| true),
            None if reading.started.elapsed() < PATIENCE => {
                if !reading.came {
                    // Its outcome does not matter, only that the connection's thread wakes for it.
                    let number = task.partition.partition as i32;
                    let _ = self.consumer.fetch_watermarks(&task.partition.topic, number, PATIENCE);
                }
                Ok(true)
            }
            None => Err(self.missing(task, reading)),
        }
    }

    fn at_the_brokers_end(&self, task: &Task<'_>, reading: &mut Reading<'_>) -> Result<bool> {
        if !reading.offsets.is_empty() {
            // There is not going to be another such sign at this place.
            reading.place_anew = true;
            return Ok(false);
        }
        if reading.asks_anew {
            reading.next = task.end;
            return Ok(false);
        }
        if reading.reached.is_some() {
            return Ok(true);
        }
        let number = task.partition.partition as i32;
        let watermarks = self.consumer.fetch_watermarks(&task.partition.topic, number, PATIENCE);
        if watermarks.is_ok_and(|(_, end)| end >= task.end as i64) {
            reading.reached = Some(Instant::now());
        } else if reading.started.elapsed() > PATIENCE {
            return Err(self.missing(task, reading));
        }
        Ok(true)
    }

    /// Errors that librdkafka goes on to mend are waited for.
    fn failed(&self, task: &Task<'_>, reading: &Reading<'_>, error: &KafkaError) -> Result<()> {
        let told = || client::error(&format!("read {}", task.partition), error, &self.trouble);
        match client::code(error) {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => Err(Error::operator(format!(
                "{} no longer holds offset {}, which was asked for",
                task.partition, reading.next
            ))),
            Some(Code::TopicAuthorizationFailed) => Err(told()),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
                if reading.started.elapsed() > PATIENCE / 2 =>
            {
                Err(Error::operator(format!("{} is not there any more", task.partition))
                    .mend("The topic was deleted: take a new backfill of the table."))
            }
            _ if reading.started.elapsed() > PATIENCE => Err(told()),
            _ => Ok(()),
        }
    }

    fn missing(&self, task: &Task<'_>, reading: &Reading<'_>) -> Error {
        let (partition, next, end) = (task.partition, reading.next, task.end);
        if let Some(text) = self.trouble.last() {
            return Error::retry(format!("nothing came from {partition} at offset {next}: {text}"))
                .mend("Check [log.kafka] brokers, and the brokers themselves.");
        }
        let number = partition.partition as i32;
        match self.consumer.fetch_watermarks(&partition.topic, number, PATIENCE) {
            Ok((_, broker)) if broker < end as i64 => Error::operator(format!(
                "{partition} ends at offset {broker}, while records up to {} were committed to it",
                end - 1
            ))
            .mend("The topic was made anew, or the brokers have lost records: take a new backfill."),
            Ok(_) => Error::retry(format!("nothing came from {partition} at offset {next}")),
            Err(error) => client::error(&format!("read {partition}"), &error, &self.trouble),
        }
    }

    fn place(&self, partition: &LogPartition, from: Offset) -> Result<()> {
        let failed =
            |e: KafkaError| client::error(&format!("read {partition} from {from}"), &e, &self.trouble);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(
                &partition.topic,
                partition.partition as i32,
                KafkaOffset::Offset(from as i64),
            )
            .map_err(failed)?;
        // Two assignments of one partition that follow each other would only be compared.
        self.consumer.unassign().map_err(failed)?;
        self.consumer.assign(&assignment).map_err(failed)
    }
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("at", &self.at).finish_non_exhaustive()
    }
}

fn consumer(
    options: &KafkaLogOptions,
    trouble: &Arc<Trouble>,
    committed: bool,
) -> Result<BaseConsumer<Context>> {
    options
        .consumer(committed)
        .create_with_context(Context::new(trouble))
        .map_err(|e| client::error("make a Kafka consumer", &e, trouble))
}

/// One read under way.
struct Reading<'a> {
    task: &'a Task<'a>,
    records: TopicRecords,
    offsets: Vec<Offset>,
    next: Offset,
    pending: Option<(Offset, Vec<u8>)>,
    started: Instant,
    /// Something came.
    came: bool,
    /// When the broker's end was seen to have come as far as ours, with no record of it yet.
    reached: Option<Instant>,
    /// By a consumer made after that.
    asks_anew: bool,
    place_anew: bool,
}

impl<'a> Reading<'a> {
    fn new(task: &'a Task<'a>) -> Self {
        Self {
            task,
            records: TopicRecords::new(Arc::clone(&task.partition.topic)),
            offsets: Vec::new(),
            next: task.from,
            pending: None,
            started: Instant::now(),
            came: false,
            reached: None,
            asks_anew: false,
            place_anew: false,
        }
    }

    fn full(&self) -> bool {
        self.pending.is_some() || (!self.offsets.is_empty() && self.records.bytes() >= self.task.bytes_max)
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<()> {
        let offset = message.offset().max(0) as Offset;
        if offset < self.next {
            return Ok(());
        }
        let mark = self.records.mark();
        write(&mut self.records, message)?;
        let fits = self.offsets.is_empty() || self.records.bytes() <= self.task.bytes_max;
        if fits && offset < self.task.end {
            self.took(offset);
        } else {
            self.pending = Some((offset, self.records.since(mark).to_vec()));
            self.records.rewind(mark);
            if offset >= self.task.end {
                self.next = self.task.end;
            }
        }
        Ok(())
    }

    /// A record that was left over by the read before.
    fn take_frame(&mut self, offset: Offset, frame: Vec<u8>) {
        if offset < self.task.end {
            self.records.push_frame(&frame);
            self.took(offset);
        } else {
            self.next = self.task.end;
            self.pending = Some((offset, frame));
        }
    }

    fn took(&mut self, offset: Offset) {
        self.offsets.push(offset);
        self.next = offset + 1;
    }

    fn finish(self) -> Fetched {
        Fetched { frames: self.records.into_frames(), offsets: self.offsets, next: self.next }
    }
}

/// A message in our own layout.
fn write(records: &mut TopicRecords, message: &BorrowedMessage<'_>) -> Result<()> {
    let mut record = records.begin(message.timestamp().to_millis().unwrap_or(0));
    for field in [message.key(), message.payload()] {
        match field {
            Some(bytes) => record.field(|buffer| buffer.extend_from_slice(bytes)),
            None => record.null(),
        }
    }
    if let Some(headers) = message.headers() {
        if headers.count() > 255 || headers.iter().any(|header| header.key.len() > 255) {
            return Err(Error::operator(format!(
                "record {} of {}/{} has more than 255 headers, or one with a name of more than 255 bytes",
                message.offset(),
                message.topic(),
                message.partition()
            ))
            .mend("It was not written by Tidemark: keep others from writing to its topics."));
        }
        for header in headers.iter() {
            record.header(header.key, |buffer| buffer.extend_from_slice(header.value.unwrap_or_default()));
        }
    }
    record.finish();
    Ok(())
}
