//! The one thread that writes: fences and appends, in the order in which they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use tokio::sync::{Notify, mpsc, oneshot};

use super::client::{self, Context, Meaning, meaning};
use super::fence;
use super::offsets::Offsets;
use super::partitioner::partition_of;
use super::reader::Shared;
use super::state::{Entry, LastWriter, end_entry, held_entry, state_entry, topic_entry, writer_entry};
use super::topics::Topics;
use super::transaction::{Failure, Transaction};
use crate::log::{Append, Epoch, Fenced, LogPartition, Offset, RecordBatch, Rejected, Visibility};
use crate::runtime::{Class, Error, Result};

/// Jobs that may wait for the thread. Each append is bounded by its sender.
const QUEUE: usize = 8;

/// How much longer than Kafka keeps a silent transaction a commit is asked for: then it has an outcome.
const COMMIT_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Job {
    Fence(oneshot::Sender<Result<Fenced>>),
    Append(Epoch, Append, oneshot::Sender<Result<Append, Rejected>>),
}

/// Handle of the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    pub fn start(shared: Arc<Shared>, changed: Arc<Notify>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread =
            WriterThread { shared, changed, standing: None, offsets: None, topics: Topics::default() };
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
            Err(_) => Err(Rejected { error: ended(), append: empty(), in_doubt: true }),
        }
    }
}

/// What a fence has left.
pub(super) struct Standing {
    pub epoch: u64,
    /// None after an error which it did not survive: the next append brings it back.
    pub producer: Option<BaseProducer<Context>>,
    /// Appends so far, also those of writers before.
    pub appends: u64,
    /// The next offset of log partitions that were written to or asked for.
    pub next: BTreeMap<LogPartition, Offset>,
    /// Ends of what is held.
    pub held: BTreeMap<LogPartition, Offset>,
}

struct WriterThread {
    shared: Arc<Shared>,
    changed: Arc<Notify>,
    standing: Option<Standing>,
    offsets: Option<Offsets>,
    topics: Topics,
}

/// Why an append did not happen.
struct Refused {
    error: Error,
    in_doubt: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, in_doubt: false }
    }
}

impl WriterThread {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            // A receiver that has gone no longer wants to know; the job's outcome stands.
            match job {
                Job::Fence(reply) => drop(reply.send(self.fence())),
                Job::Append(epoch, append, reply) => drop(reply.send(match self.append(epoch, &append) {
                    Ok(()) => Ok(append),
                    Err(Refused { error, in_doubt }) => Err(Rejected { error, append, in_doubt }),
                })),
            }
        }
    }

    fn fence(&mut self) -> Result<Fenced> {
        // Its own former producer would be fenced, too.
        self.standing = None;
        self.topics.forget();
        let offsets = Self::offsets(&mut self.offsets, &self.shared)?;
        let (standing, state) = fence::take_over(&self.shared, offsets, &mut self.topics)?;
        let epoch = Epoch(standing.epoch);
        self.standing = Some(standing);
        Ok(Fenced { epoch, state })
    }

    fn offsets<'o>(offsets: &'o mut Option<Offsets>, shared: &Shared) -> Result<&'o Offsets> {
        match offsets {
            Some(offsets) => Ok(offsets),
            empty => Ok(empty.insert(Offsets::new(&shared.options, &shared.trouble, true)?)),
        }
    }

    fn append(&mut self, Epoch(epoch): Epoch, append: &Append) -> Result<(), Refused> {
        if append.visibility == Visibility::Held && !append.state.is_empty() {
            return Err(Error::operator(
                "an append that is held cannot set state; this is an error in Tidemark",
            )
            .into());
        }
        let offsets = Self::offsets(&mut self.offsets, &self.shared)?;
        let Some(standing) = self.standing.as_mut().filter(|standing| standing.epoch == epoch) else {
            return Err(self.fenced(epoch).into());
        };
        if standing.producer.is_none() {
            fence::come_back(&self.shared, offsets, standing)?;
        }
        let mut work = Work { shared: &self.shared, offsets, topics: &mut self.topics, standing };
        let new_topics = work.prepare(&append.records)?;
        match work.write(append, &new_topics) {
            Ok(()) => {
                self.shared.trouble.clear();
                self.changed.notify_waiters();
                self.changed.notify_one();
                Ok(())
            }
            Err(failure) => Err(self.refused(epoch, failure)),
        }
    }

    /// What a failed transaction is to its caller.
    fn refused(&self, epoch: u64, failure: Failure) -> Refused {
        let trouble = &self.shared.trouble;
        let (error, partition, in_doubt) = match failure {
            Failure::Disturbed(partition) => {
                let error = Error::retry(format!(
                    "records were not where they had to be in {partition}: somebody else writes to it"
                ))
                .mend("Only one connector may write to its topics: look for another producer.");
                return error.into();
            }
            Failure::NotWritten(error, partition) => (error, partition, false),
            Failure::InDoubt(error) => (error, None, true),
        };
        let told = client::error("append to the log", &error, trouble);
        let told = match partition {
            Some(partition) => told.context(partition),
            None => told,
        };
        if meaning(&error) != Meaning::Fenced {
            let error = if in_doubt && told.class() != Class::Retry { passing(&told) } else { told };
            return Refused { error, in_doubt };
        }
        // Kafka's word for it is the same when another writer has taken over and when the broker has given the
        // transaction up after its timeout. The state knows which.
        match self.shared.refresh() {
            Ok(_) if self.shared.view().writer.as_ref().is_some_and(|writer| writer.epoch != epoch) => {
                self.fenced(epoch).into()
            }
            _ => Refused { error: passing(&told), in_doubt },
        }
    }

    fn fenced(&self, epoch: u64) -> Error {
        Error::fenced(format!(
            "another writer has taken over the log at {} from epoch {epoch}",
            self.shared.options.brokers()
        ))
    }
}

/// The same, to be tried again.
fn passing(error: &Error) -> Error {
    Error::retry(error.message())
}

/// One append under way.
struct Work<'w> {
    shared: &'w Shared,
    offsets: &'w Offsets,
    topics: &'w mut Topics,
    standing: &'w mut Standing,
}

impl Work<'_> {
    /// Makes sure that topics are there, that every record fits, and that the next offsets are known. Gives the
    /// topics that the state does not know yet.
    fn prepare(&mut self, records: &RecordBatch) -> Result<Vec<Entry>> {
        let mut new = Vec::new();
        let mut unknown = Vec::new();
        let state = self.shared.state_partition();
        if !self.standing.next.contains_key(&state) {
            unknown.push(state);
        }
        for records in records.topics() {
            let topic = records.topic();
            let known = self.topics.ensure(self.shared, self.offsets, topic)?;
            for record in records.iter() {
                fits(topic, &record, known.record_bytes_max)?;
            }
            if !self.shared.view().topics.contains_key(topic) {
                new.push(topic_entry(topic, known.partitions));
            }
            let all =
                (0..known.partitions).map(|partition| LogPartition { topic: Arc::clone(topic), partition });
            unknown.extend(all.filter(|partition| !self.standing.next.contains_key(partition)));
        }
        let found = self.offsets.ends(unknown.into_iter())?;
        for (partition, end) in &found {
            // An end below what was committed would have records written in the place of lost ones.
            let known = self.shared.view().end(partition);
            if *end < known {
                return Err(Error::operator(format!(
                    "{partition} ends at offset {end}, while records up to {} were committed to it",
                    known - 1
                ))
                .mend("The topic was made anew, or the brokers have lost records: begin anew with another [source] name, which takes a new backfill."));
            }
        }
        self.standing.next.extend(found);
        Ok(new)
    }

    fn write(&mut self, append: &Append, new_topics: &[Entry]) -> Result<(), Failure> {
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
        let written = written.and_then(|entries| transaction.commit(patience).map(|()| entries));
        match written {
            Ok(entries) => {
                let slots = transaction.slots().to_vec();
                self.standing.producer = Some(producer);
                self.committed(append.visibility, &slots, &entries);
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
        if append.visibility == Visibility::Held {
            if standing.held.is_empty() {
                entries.push(held_entry(true));
            }
        } else {
            let mut ends = standing.held.clone();
            if !ends.is_empty() {
                entries.push(held_entry(false));
            }
            ends.extend(slots.iter().cloned());
            entries.extend(ends.iter().map(|(partition, end)| end_entry(partition, *end)));
            entries.extend(append.state.iter().map(|(key, value)| state_entry(key, value)));
        }
        entries.push(writer_entry(&LastWriter {
            epoch: standing.epoch,
            appends: standing.appends + 1,
            transactional_id: self.shared.options.transactional_id.clone(),
        }));
        entries
    }

    /// Takes down what is true now.
    fn committed(&mut self, visibility: Visibility, slots: &[(LogPartition, Offset)], entries: &[Entry]) {
        self.standing.appends += 1;
        let state = self.shared.state_partition();
        let first = self.standing.next.get(&state).copied().unwrap_or(0);
        for (partition, end) in slots {
            // The marker of the commit takes one offset.
            self.standing.next.insert(partition.clone(), end + 1);
        }
        match visibility {
            Visibility::Now => self.standing.held.clear(),
            Visibility::Held => {
                self.standing.held.extend(slots.iter().filter(|(p, _)| *p != state).cloned());
            }
        }
        let mut view = self.shared.view();
        for (at, (key, value)) in entries.iter().enumerate() {
            if let Err(error) = view.apply(first + at as u64, key, value.as_deref()) {
                tracing::warn!(%error, "the state just written cannot be read");
            }
        }
    }
}

/// Refuses a record that is too large, before anything is written.
fn fits(topic: &str, record: &crate::log::RecordRef<'_>, bytes_max: usize) -> Result<()> {
    let bytes = record.bytes();
    if bytes <= bytes_max {
        return Ok(());
    }
    let position = record.header("tidemark.position").map(String::from_utf8_lossy).unwrap_or_default();
    Err(Error::operator(format!(
        "a record of topic {topic} (position {position}) has {bytes} bytes, and at most {bytes_max} fit"
    ))
    .mend(
        "Raise max.message.bytes of the topic, \"message.max.bytes\" under [log.kafka.properties], and \
         message.max.bytes and replica.fetch.max.bytes of the brokers.",
    ))
}

fn ended() -> Error {
    Error::operator("the log's writer thread has ended")
        .mend("Restart Tidemark, and report the panic in its log")
}

fn empty() -> Append {
    Append { records: RecordBatch::default(), state: Vec::new(), visibility: Visibility::Now }
}

/// The error of a transaction other than an append's.
pub(super) fn failed(doing: &str, failure: &Failure, shared: &Shared) -> Error {
    match failure {
        Failure::NotWritten(error, _) | Failure::InDoubt(error) => {
            client::error(doing, error, &shared.trouble)
        }
        Failure::Disturbed(partition) => {
            Error::retry(format!("cannot {doing}: somebody else writes to {partition}"))
        }
    }
}

/// An error of librdkafka that is not a transaction's.
pub(super) fn kafka_error(doing: &str, error: &KafkaError, shared: &Shared) -> Error {
    client::error(doing, error, &shared.trouble)
}
