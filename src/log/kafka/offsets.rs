//! Asking brokers for offsets and topics: many log partitions in one request a broker.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::{self, Context, Trouble};
use super::options::KafkaLogOptions;
use crate::log::{LogPartition, Offset};
use crate::runtime::{Error, Result};

/// How long a request may take before it is an error that passes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a first request may take before it is looked at why.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
const LATER_PATIENCE: Duration = Duration::from_secs(7);

const LISTING: &str = "ask for the offsets of log partitions";

/// A client that only asks.
pub(super) struct Offsets {
    consumer: BaseConsumer<Context>,
    trouble: Arc<Trouble>,
}

impl Offsets {
    /// `committed`: ends are last stable offsets, else high watermarks.
    pub fn new(options: &KafkaLogOptions, trouble: &Arc<Trouble>, committed: bool) -> Result<Self> {
        let consumer = options
            .consumer(committed)
            .create_with_context(Context::new(trouble))
            .map_err(|e| client::error("make a Kafka client", &e, trouble))?;
        Ok(Self { consumer, trouble: Arc::clone(trouble) })
    }

    /// Number of partitions of a topic; none when there is no such topic.
    pub fn partitions(&self, topic: &str) -> Result<Option<u32>> {
        let doing = || format!("ask the brokers for topic {topic}");
        let metadata = self.metadata(topic).map_err(|e| self.failed(&doing(), &e))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(Code::from) {
            None => Ok(Some(found.partitions().len() as u32)),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
            Some(code) => Err(self.failed(&doing(), &KafkaError::MetadataFetch(code))),
        }
    }

    /// The topics that are there, of those given.
    pub fn existing(&self, wanted: BTreeSet<Arc<str>>) -> Result<BTreeSet<Arc<str>>> {
        let metadata = self
            .consumer
            .fetch_metadata(None, PATIENCE)
            .map_err(|e| self.failed("ask the brokers for their topics", &e))?;
        let found: HashSet<&str> = metadata.topics().iter().map(MetadataTopic::name).collect();
        Ok(wanted.into_iter().filter(|topic| found.contains(&**topic)).collect())
    }

    /// Number of brokers that can be seen; metadata of one topic has them all.
    pub fn brokers(&self, topic: &str) -> Result<usize> {
        let metadata = self.metadata(topic).map_err(|e| self.failed("reach the brokers", &e))?;
        Ok(metadata.brokers().len())
    }

    /// Asks for a topic, which is the first that is asked of brokers: whoever is not let in need not wait, nor go on
    /// knocking.
    fn metadata(&self, topic: &str) -> Result<Metadata, KafkaError> {
        let first = self.consumer.fetch_metadata(Some(topic), FIRST_PATIENCE);
        self.listen();
        let found = match first {
            Err(_) if !self.trouble.is_refused() => self.consumer.fetch_metadata(Some(topic), LATER_PATIENCE),
            first => first,
        }?;
        self.trouble.let_in();
        Ok(found)
    }

    /// First offset and end of one log partition.
    pub fn watermarks(&self, partition: &LogPartition) -> Result<(Offset, Offset)> {
        let number = partition.partition as i32;
        let (low, high) = self
            .consumer
            .fetch_watermarks(&partition.topic, number, PATIENCE)
            .map_err(|e| self.failed(&format!("ask for the end of {partition}"), &e))?;
        self.listen();
        Ok((low.max(0) as Offset, high.max(0) as Offset))
    }

    /// Ends of many log partitions.
    pub fn ends(
        &self,
        partitions: impl Iterator<Item = LogPartition>,
    ) -> Result<BTreeMap<LogPartition, Offset>> {
        self.list(partitions, KafkaOffset::End)
    }

    /// First offsets of many log partitions.
    pub fn starts(
        &self,
        partitions: impl Iterator<Item = LogPartition>,
    ) -> Result<BTreeMap<LogPartition, Offset>> {
        self.list(partitions, KafkaOffset::Beginning)
    }

    /// The end of a log partition that is known to have reached `known`. After a broker has died, ends stand further
    /// back for a while: until it has led again, and until the markers of transactions whose commit was
    /// confirmed are written. An end that stays below, with nothing beyond it, is of a topic that lost records.
    pub fn end_beyond(
        &self,
        options: &KafkaLogOptions,
        partition: &LogPartition,
        known: Offset,
    ) -> Result<Offset> {
        let started = Instant::now();
        let end = loop {
            let (_, end) = self.watermarks(partition)?;
            if end >= known {
                return Ok(end);
            }
            if started.elapsed() > PATIENCE {
                break end;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let (_, written) = Self::new(options, &self.trouble, false)?.watermarks(partition)?;
        if written >= known {
            return Err(Error::retry(format!(
                "{partition} ends at offset {end} for readers of what is committed, while records up to {} are: the \
                 brokers have not ended a transaction yet",
                known - 1
            )));
        }
        Err(Error::operator(format!(
            "{partition} ends at offset {end}, while records up to {} were committed to it",
            known - 1
        ))
        .mend(
            "The topic was made anew, or the brokers have lost records. Restore it, or begin anew with another \
             [source] name, which takes a new backfill.",
        ))
    }

    /// Takes up what librdkafka has to tell, which waits in a queue until somebody asks.
    fn listen(&self) {
        // Lines for the log and errors are one event each, and the former are not told from none at all.
        const EVENTS: usize = 100;
        for _ in 0..EVENTS {
            drop(self.consumer.poll(Duration::ZERO));
        }
    }

    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        self.listen();
        client::error(doing, error, &self.trouble)
    }

    /// Kafka's `ListOffsets`, which takes the two ends in the place of a time. Who leads a log partition is known
    /// from before, and asked anew when it is not true any more.
    fn list(
        &self,
        partitions: impl Iterator<Item = LogPartition>,
        which: KafkaOffset,
    ) -> Result<BTreeMap<LogPartition, Offset>> {
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked
                .add_partition_offset(&partition.topic, partition.partition as i32, which)
                .map_err(|e| self.failed(LISTING, &e))?;
        }
        if asked.count() == 0 {
            return Ok(BTreeMap::new());
        }
        let started = Instant::now();
        loop {
            let answer = self.consumer.offsets_for_times(asked.clone(), PATIENCE).and_then(|answer| {
                let failed = answer.elements().iter().find_map(|element| element.error().err());
                failed.map_or(Ok(answer), Err)
            });
            match answer {
                Ok(answer) => return offsets(&answer),
                Err(error) if is_stale(&error) && started.elapsed() < PATIENCE / 2 => {
                    let _ = self.consumer.fetch_metadata(None, PATIENCE);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(self.failed(LISTING, &error)),
            }
        }
    }
}

fn offsets(answer: &TopicPartitionList) -> Result<BTreeMap<LogPartition, Offset>> {
    let mut found = BTreeMap::new();
    for element in answer.elements() {
        let partition = LogPartition { topic: element.topic().into(), partition: element.partition() as u32 };
        let KafkaOffset::Offset(offset) = element.offset() else {
            return Err(Error::retry(format!("the brokers gave no offset of {partition}")));
        };
        found.insert(partition, offset.max(0) as Offset);
    }
    Ok(found)
}

/// Whether the broker that was asked does not lead a log partition, or no longer as it did.
fn is_stale(error: &KafkaError) -> bool {
    matches!(
        client::code(error),
        Some(
            Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::ReplicaNotAvailable
        )
    )
}

impl std::fmt::Debug for Offsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offsets").finish_non_exhaustive()
    }
}
