//! One append: prepared, sent as a transaction, and noted.
//!
//! ```text
//!   prepare   topics there and unchanged? every record small enough? next offsets known?    nothing written yet
//!   write     records by partition, then what the state learns; commit, or abort
//!   noted     next offsets, and the view that this process's readers share
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::offsets::Offsets;
use super::partitioner::partition_of;
use super::reader::Shared;
use super::state::{Entry, LastWriter, end_entry, state_entry, topic_entry, writer_entry};
use super::topics::Topics;
use super::transaction::{Failure, Transaction};
use super::writer::{Refused, Standing};
use crate::log::{Append, LogPartition, Offset, RecordBatch, RecordRef};
use crate::runtime::{Error, Result};

/// How much longer than Kafka keeps a silent transaction a commit is asked for: then it has an outcome.
const COMMIT_GRACE: Duration = Duration::from_secs(10);

/// One append under way.
pub(super) struct Work<'w> {
    pub shared: &'w Shared,
    pub offsets: &'w Offsets,
    pub topics: &'w mut Topics,
    pub standing: &'w mut Standing,
}

impl Work<'_> {
    /// Makes sure that topics are there, that every record fits, and that the next offsets are known. Gives the
    /// topics that the state does not know yet.
    pub fn prepare(&mut self, records: &RecordBatch) -> Result<Vec<Entry>, Refused> {
        let mut new = Vec::new();
        let mut unknown = Vec::new();
        let state = self.shared.state_partition();
        if !self.standing.next.contains_key(&state) {
            unknown.push(state);
        }
        for records in records.topics() {
            let topic = records.topic();
            let known = self.topics.ensure(self.shared, self.offsets, topic)?;
            self.shared.note_limit(topic, known.record_bytes_max);
            if records.largest() > known.record_bytes_max {
                for record in records.iter() {
                    fits(topic, &record, known.record_bytes_max)?;
                }
            }
            if !self.shared.view().topics.contains_key(topic) {
                new.push(topic_entry(topic, known.partitions));
            }
            let all =
                (0..known.partitions).map(|partition| LogPartition { topic: Arc::clone(topic), partition });
            unknown.extend(all.filter(|partition| !self.standing.next.contains_key(partition)));
        }
        let mut found = self.offsets.ends(unknown.into_iter())?;
        for (partition, end) in &mut found {
            // An end below what was committed would have records written in the place of lost ones.
            let known = self.shared.view().end(partition);
            if *end < known {
                *end = self.offsets.end_beyond(&self.shared.options, partition, known)?;
            }
        }
        self.standing.next.extend(found);
        Ok(new)
    }

    /// Writes it. Blocks until it is committed, aborted or in doubt.
    pub fn write(&mut self, append: &Append, new_topics: &[Entry]) -> Result<(), Failure> {
        let Some(producer) = self.standing.producer.take() else { unreachable!("prepared with a producer") };
        let mut transaction = match Transaction::begin(&producer) {
            Ok(transaction) => transaction,
            Err(failure) => {
                // Whatever has kept the producer from beginning, a new one will do.
                return Err(failure.with_fatal(&producer));
            }
        };
        let written = self.fill(&mut transaction, append, new_topics);
        let patience = self.shared.options.transaction_timeout() + COMMIT_GRACE;
        let written =
            written.and_then(|entries| transaction.commit(self.offsets, patience).map(|()| entries));
        match written {
            Ok(entries) => {
                let slots = transaction.slots().to_vec();
                self.standing.producer = Some(producer);
                self.committed(&slots, &entries);
                Ok(())
            }
            Err(failure) => {
                // Records that a fatal error has thrown out of the queue only say that they were thrown out.
                let failure = failure.with_fatal(&producer);
                let usable = transaction.abort(&failure);
                // Wherever an aborted record stands, the offsets foreseen are wrong now.
                self.standing.next.clear();
                self.standing.producer = usable.then_some(producer);
                Err(failure)
            }
        }
    }

    /// Sends everything; gives the records of state.
    fn fill(
        &self,
        transaction: &mut Transaction<'_>,
        append: &Append,
        new_topics: &[Entry],
    ) -> Result<Vec<Entry>, Failure> {
        let next = |partition: &LogPartition| self.standing.next.get(partition).copied().unwrap_or(0);
        for records in append.records.topics() {
            let topic = records.topic();
            let partitions = self.topics.get(topic).map_or(1, |topic| topic.partitions).max(1);
            let mut slots: Vec<Option<usize>> = vec![None; partitions as usize];
            for record in records.iter() {
                let partition = partition_of(record.key, partitions);
                let slot = match slots[partition as usize] {
                    Some(slot) => slot,
                    None => {
                        let place = LogPartition { topic: Arc::clone(topic), partition };
                        let first = next(&place);
                        *slots[partition as usize].insert(transaction.slot(place, first))
                    }
                };
                transaction.send(slot, &record)?;
            }
        }
        let entries = self.entries(append, transaction.slots(), new_topics);
        let state = self.shared.state_partition();
        let first = next(&state);
        let slot = transaction.slot(state, first);
        for entry in &entries {
            transaction.send_state(slot, entry)?;
        }
        Ok(entries)
    }

    /// What the state learns from this append.
    fn entries(&self, append: &Append, slots: &[(LogPartition, Offset)], new_topics: &[Entry]) -> Vec<Entry> {
        let standing = &self.standing;
        let mut entries = new_topics.to_vec();
        entries.extend(slots.iter().map(|(partition, end)| end_entry(partition, *end)));
        entries.extend(append.state.iter().map(|(key, value)| state_entry(key, value)));
        entries.push(writer_entry(&LastWriter {
            epoch: standing.epoch,
            appends: standing.appends + 1,
            transactional_id: self.shared.options.transactional_id.clone(),
        }));
        entries
    }

    /// Takes down what is true now.
    fn committed(&mut self, slots: &[(LogPartition, Offset)], entries: &[Entry]) {
        self.standing.appends += 1;
        let state = self.shared.state_partition();
        let first = self.standing.next.get(&state).copied().unwrap_or(0);
        for (partition, end) in slots {
            // The marker of the commit takes one offset.
            self.standing.next.insert(partition.clone(), end + 1);
        }
        let mut view = self.shared.view();
        for (at, (key, value)) in entries.iter().enumerate() {
            if let Err(error) = view.apply(first + at as u64, key, value.as_deref()) {
                tracing::warn!(%error, "the state just written cannot be read");
            }
        }
    }
}

/// Refuses a record that is too large, before anything is written. The limit was not known when it was made, and is
/// now: whoever fences and makes it again can make it fit.
fn fits(topic: &str, record: &RecordRef<'_>, bytes_max: usize) -> Result<(), Refused> {
    let bytes = record.bytes();
    if bytes <= bytes_max {
        return Ok(());
    }
    let position = record.header("tidemark.position").map(String::from_utf8_lossy).unwrap_or_default();
    let error = Error::retry(format!(
        "a record of topic {topic} (position {position}) has {bytes} bytes, and at most {bytes_max} fit"
    ))
    .mend(
        "Raise max.message.bytes of the topic, \"message.max.bytes\" under [log.kafka.properties], and \
         message.max.bytes and replica.fetch.max.bytes of the brokers.",
    );
    Err(Refused { error, in_doubt: true })
}
