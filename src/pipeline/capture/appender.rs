//! One batch being filled, and at most one append on its way: all the memory that capture holds.
//!
//! ```text
//!   change ──> batch (≤ append_bytes_max) ──submit──> append in flight ──> durable Progress ──> feedback
//!                    fills while the other is on its way: under load batches grow by themselves
//! ```
//!
//! Why progress is safe: a batch carries the [`Progress`] that is true once it is durable, and only the
//! progress of a finished append is handed out. Appends are strictly one after the other, so what is handed
//! out is always a prefix of the stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::change::{Lsn, Position};
use crate::log::{Append, Epoch, Log, RecordBatch, Rejected, TopicRecords};
use crate::ops::Component;
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

/// What is true once a batch is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last change appended.
    pub position: Position,
    /// The end of the last transaction that is wholly appended.
    pub flush_lsn: Lsn,
    /// Commit time of that transaction, microseconds since 1970; 0 when none was seen yet.
    pub commit_us: i64,
    /// Whether a transaction before `flush_lsn` is prepared and not in the log: the server must not be told of it.
    pub held: bool,
}

/// Limits of an [`Appender`].
#[derive(Clone, Copy, Debug)]
pub struct AppendLimits {
    /// A batch of this many bytes is submitted before anything more is read.
    pub bytes_max: usize,
    /// A smaller batch is submitted when its oldest record is this old.
    pub linger: Duration,
}

/// An append that takes longer is told to those who watch.
const SLOW_APPEND: Duration = Duration::from_secs(5);

type State = HashMap<String, Vec<u8>>;

/// Fills batches and appends them, one at a time. See the module's head.
#[derive(Debug)]
pub struct Appender {
    log: Arc<dyn Log>,
    epoch: Epoch,
    limits: AppendLimits,
    component: Component,
    shutdown: Shutdown,
    /// The batch being filled.
    pub batch: RecordBatch,
    state: State,
    oldest: Option<Instant>,
    spare: Option<RecordBatch>,
    in_flight: Option<(JoinHandle<Result<Append>>, Progress)>,
    durable: Progress,
}

impl Appender {
    /// Appends as the writer of `epoch`, from what is durable already. `component` tells how the log does.
    pub fn new(
        log: Arc<dyn Log>,
        epoch: Epoch,
        limits: AppendLimits,
        durable: Progress,
        component: Component,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            log,
            epoch,
            limits,
            component,
            shutdown,
            batch: RecordBatch::default(),
            state: State::new(),
            oldest: None,
            spare: None,
            in_flight: None,
            durable,
        }
    }

    /// What is durable.
    pub const fn durable(&self) -> Progress {
        self.durable
    }

    /// The log.
    pub const fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Whether nothing is being filled or on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.batch.is_empty()
    }

    /// Bytes being filled.
    pub fn pending_bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Sets state with the next append; the last value of a key counts.
    pub fn set(&mut self, (key, value): (String, Vec<u8>)) {
        self.state.insert(key, value);
    }

    /// Adds records that were encoded elsewhere.
    pub fn take_in(&mut self, records: TopicRecords) {
        if records.count() > 0 {
            self.batch.topic(records.topic()).take_in(records);
            self.added();
        }
    }

    /// Notes that a record was added to `batch`.
    pub fn added(&mut self) {
        if self.oldest.is_none() {
            self.oldest = Some(Instant::now());
        }
    }

    /// Whether the batch is full: call [`Appender::submit`] before adding more.
    pub fn is_full(&self) -> bool {
        self.batch.bytes() >= self.limits.bytes_max
    }

    /// When a batch that is not full is to be submitted, if nothing is on its way.
    pub fn due(&self) -> Option<Instant> {
        if self.in_flight.is_some() { None } else { self.oldest.map(|oldest| oldest + self.limits.linger) }
    }

    /// Sends the batch and the state on their way, after whatever is on its way has arrived. `progress` is
    /// what will be true then. Not cancel-safe.
    pub async fn submit(&mut self, progress: Progress) -> Result<()> {
        self.settle().await?;
        let records = std::mem::replace(&mut self.batch, self.spare.take().unwrap_or_default());
        let append = Append { records, state: self.state.drain().collect() };
        self.oldest = None;
        let (log, epoch) = (Arc::clone(&self.log), self.epoch);
        let (component, shutdown) = (self.component.clone(), self.shutdown.clone());
        let append = tokio::spawn(append_until_done(log, epoch, append, component, shutdown));
        self.in_flight = Some((append, progress));
        Ok(())
    }

    /// Waits for the append on its way, if there is one, and gives what is durable then. Cancel-safe.
    pub async fn settle(&mut self) -> Result<Progress> {
        let Some((handle, progress)) = &mut self.in_flight else { return Ok(self.durable) };
        let result = handle.await;
        let progress = *progress;
        self.in_flight = None;
        let mut append =
            result.map_err(|error| Error::retry("the task that appends to the log died").cause(error))??;
        debug_assert!(
            progress.position >= self.durable.position && progress.flush_lsn >= self.durable.flush_lsn
        );
        self.durable = progress;
        append.records.clear(2 * self.limits.bytes_max);
        self.spare = Some(append.records);
        Ok(self.durable)
    }

    /// Waits for the append on its way; for ever when there is none. For use in `select!`. Cancel-safe.
    pub async fn settled(&mut self) -> Result<Progress> {
        if self.in_flight.is_none() {
            return std::future::pending().await;
        }
        self.settle().await
    }
}

/// Tries an append until it is done, a person is needed, or the process is to stop.
async fn append_until_done(
    log: Arc<dyn Log>,
    epoch: Epoch,
    mut append: Append,
    component: Component,
    shutdown: Shutdown,
) -> Result<Append> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
    loop {
        let Rejected { error, append: again, in_doubt } =
            match watched(log.append(epoch, append), &component).await {
                Ok(done) => {
                    match log.trouble() {
                        Some(trouble) => component.waiting(trouble),
                        None => component.ok(),
                    }
                    return Ok(done);
                }
                Err(rejected) => rejected,
            };
        // The log does its work, for another process.
        if error.class() != Class::Fenced {
            component.failed(&error);
        }
        // In doubt: the stream is taken up again from what a fence then finds.
        if error.class() != Class::Retry || in_doubt || shutdown.is_raised() {
            return Err(error);
        }
        append = again;
        let wait = backoff.next_wait();
        tracing::warn!(error = %error, wait_ms = wait.as_millis() as u64, "the log did not take a batch: trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.raised() => return Err(error),
        }
    }
}

/// Waits for an append, and tells when it takes long: a disk that hangs gives no error.
async fn watched<T>(append: impl Future<Output = T>, component: &Component) -> T {
    let started = Instant::now();
    let mut append = std::pin::pin!(append);
    loop {
        match tokio::time::timeout(SLOW_APPEND, &mut append).await {
            Ok(outcome) => return outcome,
            Err(_) => component.waiting(format!(
                "an append to the log has been taking {} s; capture waits for it",
                started.elapsed().as_secs()
            )),
        }
    }
}
