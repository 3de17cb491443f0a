//! The one thread that writes: fences and appends, in the order in which they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use tokio::sync::{Notify, mpsc, oneshot};

use super::append::Work;
use super::client::{self, Context, Meaning, meaning};
use super::fence;
use super::offsets::Offsets;
use super::reader::Shared;
use super::topics::Topics;
use super::transaction::Failure;
use crate::log::{Append, Epoch, Fenced, LogPartition, Offset, Rejected};
use crate::runtime::{Class, Error, Result};

/// Jobs that may wait for the thread. Each append is bounded by its sender.
const QUEUE: usize = 8;

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
            Err(_) => Err(Rejected { error: ended(), append: Append::default(), in_doubt: true }),
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
}

struct WriterThread {
    shared: Arc<Shared>,
    changed: Arc<Notify>,
    standing: Option<Standing>,
    offsets: Option<Offsets>,
    topics: Topics,
}

/// Why an append did not happen.
pub(super) struct Refused {
    pub error: Error,
    pub in_doubt: bool,
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
        let offsets = Self::offsets(&mut self.offsets, &self.shared)?;
        let Some(standing) = self.standing.as_mut().filter(|standing| standing.epoch == epoch) else {
            return Err(self.fenced(epoch).into());
        };
        if standing.producer.is_none() {
            fence::come_back(&self.shared, standing)?;
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
                    "records were not where they had to be in {partition}: a connection broke, or somebody else writes to it"
                ))
                .mend("If it goes on, look for another producer: only one connector may write to its topics.");
                return error.into();
            }
            Failure::NotWritten(error, partition) => (error, partition, false),
            Failure::InDoubt(error) => (error, None, true),
            Failure::Unmarked(error) => return Refused { error: passing(&error), in_doubt: true },
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

fn ended() -> Error {
    Error::operator("the log's writer thread has ended")
        .mend("Restart Tidemark, and report the panic in its log")
}

/// The error of a transaction other than an append's.
pub(super) fn failed(doing: &str, failure: &Failure, shared: &Shared) -> Error {
    match failure {
        Failure::NotWritten(error, Some(partition)) => {
            client::error(doing, error, &shared.trouble).context(partition)
        }
        Failure::NotWritten(error, None) | Failure::InDoubt(error) => {
            client::error(doing, error, &shared.trouble)
        }
        Failure::Unmarked(error) => Error::retry(format!("cannot {doing}: {}", error.message())),
        Failure::Disturbed(partition) => {
            Error::retry(format!("cannot {doing}: somebody else writes to {partition}"))
        }
    }
}

/// An error of librdkafka that is not a transaction's.
pub(super) fn kafka_error(doing: &str, error: &KafkaError, shared: &Shared) -> Error {
    client::error(doing, error, &shared.trouble)
}
