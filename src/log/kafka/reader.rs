//! Reading: the picture of the state topic kept up to date, and a few consumers for the tables' topics.
//!
//! ```text
//!   ranges()  state topic's end? ── new records ──> view ── ends ─┐
//!             first offsets of all partitions (now and then) ─────┴─> ranges
//!   read()    view: from < end? ── cursor at that place, or the one unused longest ──> records below the end
//! ```
//!
//! Everything here blocks, on the runtime's blocking threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::client::Trouble;
use super::cursor::{Cursor, Task};
use super::offsets::Offsets;
use super::options::KafkaLogOptions;
use super::state::View;
use crate::log::{Fetched, LogPartition, Offset, OffsetRange, record};
use crate::runtime::{Error, Result};

/// Reads at the same time, each with a consumer that keeps up to 8 MiB and a connection to each broker.
const READERS: usize = 4;

/// First offsets are asked for this often: they move by the brokers' retention only, and a read that
/// finds itself below one says so.
const STARTS_AGE: Duration = Duration::from_secs(5);

/// Bytes of the state topic in one portion.
const STATE_BYTES: usize = 4 << 20;

/// What readers and the writer of one log share.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: KafkaLogOptions,
    pub trouble: Arc<Trouble>,
    view: Mutex<View>,
    /// The largest record by topic, where it is known.
    limits: Mutex<HashMap<Arc<str>, usize>>,
    refresher: Mutex<Option<Refresher>>,
    starts: Mutex<Option<(Instant, BTreeMap<LogPartition, Offset>)>>,
    cursors: Mutex<Vec<Cursor>>,
    permits: Arc<Semaphore>,
}

/// The clients which keep the view up to date.
#[derive(Debug)]
struct Refresher {
    offsets: Offsets,
    cursor: Cursor,
    /// The state topic is known to be there.
    found: bool,
    /// Its end, as last seen.
    end: Offset,
}

impl Shared {
    pub fn new(options: KafkaLogOptions) -> Self {
        Self {
            trouble: Arc::new(Trouble::new(&options)),
            options,
            view: Mutex::default(),
            limits: Mutex::default(),
            refresher: Mutex::default(),
            starts: Mutex::default(),
            cursors: Mutex::default(),
            permits: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// The largest record that a topic takes, as far as it is known.
    pub fn record_bytes_max(&self, topic: &str) -> usize {
        lock(&self.limits).get(topic).copied().unwrap_or_else(|| self.options.record_bytes_max())
    }

    /// What it takes in any case, also while the brokers have not been asked.
    pub fn record_bytes_sure(&self, topic: &str) -> usize {
        lock(&self.limits).get(topic).copied().unwrap_or_else(|| self.options.record_bytes_sure())
    }

    /// Takes down what a topic was found to take.
    pub fn note_limit(&self, topic: &Arc<str>, bytes_max: usize) {
        lock(&self.limits).insert(Arc::clone(topic), bytes_max);
    }

    /// The view as it is known.
    pub fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    pub fn state_partition(&self) -> LogPartition {
        LogPartition { topic: self.options.state_topic(), partition: 0 }
    }

    /// Brings the view up to date; gives the state topic's place after it. Blocks.
    pub fn refresh(&self) -> Result<Offset> {
        let mut refresher = lock(&self.refresher);
        let refresher = match &mut *refresher {
            Some(refresher) => refresher,
            empty => empty.insert(Refresher {
                offsets: Offsets::new(&self.options, &self.trouble, true)?,
                cursor: Cursor::new(&self.options, &self.trouble, true)?,
                found: false,
                end: 0,
            }),
        };
        let partition = self.state_partition();
        if !refresher.found {
            match refresher.offsets.partitions(&partition.topic)? {
                Some(_) => refresher.found = true,
                None => return Ok(0),
            }
        }
        let (low, mut end) = refresher.offsets.watermarks(&partition)?;
        self.trouble.clear();
        if end < refresher.end {
            end = refresher.offsets.end_beyond(&self.options, &partition, refresher.end)?;
        }
        refresher.end = end;
        self.catch_up(&mut refresher.cursor, &partition, low, end)
    }

    /// Applies what the state topic holds below `end`. Each of its transactions ends with a marker, so the
    /// offset below the end holds no record.
    fn catch_up(
        &self,
        cursor: &mut Cursor,
        partition: &LogPartition,
        low: Offset,
        end: Offset,
    ) -> Result<Offset> {
        let last = end.saturating_sub(1);
        loop {
            let from = self.view().place.max(low);
            // The writer of this process knows what it has written before the brokers show it.
            if from >= last {
                return Ok(from);
            }
            let task = Task { partition, from, end: last, bytes_max: STATE_BYTES };
            let fetched = cursor.read(&task)?;
            let mut view = self.view();
            apply(&mut view, &fetched)?;
            view.place = view.place.max(fetched.next);
        }
    }

    /// Reads the whole state from the beginning, for a new writer; `end` is where it must end.
    pub fn read_whole_state(&self, low: Offset, end: Offset) -> Result<View> {
        let partition = self.state_partition();
        let mut cursor = Cursor::new(&self.options, &self.trouble, true)?;
        let mut view = View { place: low, ..View::default() };
        let last = end.saturating_sub(1);
        while view.place < last {
            let task = Task { partition: &partition, from: view.place, end: last, bytes_max: STATE_BYTES };
            let fetched = cursor.read(&task)?;
            apply(&mut view, &fetched)?;
            view.place = view.place.max(fetched.next);
        }
        Ok(view)
    }

    /// Forgets first offsets: they have been moved.
    fn forget_starts(&self) {
        *lock(&self.starts) = None;
    }

    fn starts(&self, view: &View) -> Result<BTreeMap<LogPartition, Offset>> {
        let mut starts = lock(&self.starts);
        if let Some((at, known)) = &*starts
            && at.elapsed() < STARTS_AGE
            && view.ends.keys().all(|partition| known.contains_key(partition))
        {
            return Ok(known.clone());
        }
        let refresher = lock(&self.refresher);
        let Some(refresher) = &*refresher else { return Ok(BTreeMap::new()) };
        let found = refresher.offsets.starts(view.ends.keys().cloned())?;
        *starts = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn ranges_blocking(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.refresh()?;
        let view = self.view().clone();
        let starts = self.starts(&view)?;
        let range = |(partition, end): (&LogPartition, &Offset)| {
            let start = starts.get(partition).copied().unwrap_or(0).min(*end);
            (partition.clone(), OffsetRange { start, end: *end })
        };
        Ok(view.ends.iter().map(range).collect())
    }

    fn read_blocking(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        if from >= self.view().end(partition) {
            self.refresh()?;
        }
        let end = self.view().end(partition);
        if from > end {
            return Err(Error::operator(format!(
                "{partition} ends at offset {end}, while offset {from} was asked for: {} hold not the log that was \
                 read before",
                self.options.brokers()
            ))
            .mend("Restore the log, or take a new backfill"));
        }
        if from == end {
            return Ok(Fetched { next: from, ..Fetched::default() });
        }
        let task = Task { partition, from, end, bytes_max };
        let mut cursor = self.cursor(partition, from)?;
        let outcome = cursor.read(&task);
        lock(&self.cursors).push(cursor);
        outcome.or_else(|error| Err(self.gap(partition, from)?.unwrap_or(error)))
    }

    /// The error of reading below the first offset, if that is what happened.
    fn gap(&self, partition: &LogPartition, from: Offset) -> Result<Option<Error>> {
        let (low, _) = match &*lock(&self.refresher) {
            Some(refresher) => refresher.offsets.watermarks(partition)?,
            None => return Ok(None),
        };
        let start = low.min(self.view().end(partition));
        self.forget_starts();
        Ok((from < start).then(|| {
            Error::operator(format!(
                "{partition} no longer holds offsets {from} to {}, which were asked for: it starts at {start} \
                 ({})",
                start - 1,
                self.options.brokers()
            ))
            .mend("The topic's retention has passed them: take a new backfill of the table, and let the topic keep records for longer (retention.ms, retention.bytes)")
        }))
    }

    /// The cursor at that place, else a new one, else the one that was used longest ago.
    fn cursor(&self, partition: &LogPartition, from: Offset) -> Result<Cursor> {
        let mut cursors = lock(&self.cursors);
        if let Some(at) = cursors.iter().position(|cursor| cursor.is_at(partition, from)) {
            return Ok(cursors.remove(at));
        }
        if cursors.len() < READERS {
            drop(cursors);
            return Cursor::new(&self.options, &self.trouble, true);
        }
        Ok(cursors.remove(0))
    }

    /// Cancel-safe.
    pub async fn ranges(self: &Arc<Self>) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.blocking(Self::ranges_blocking).await
    }

    /// Cancel-safe.
    pub async fn read(
        self: &Arc<Self>,
        partition: &LogPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Fetched> {
        let partition = partition.clone();
        self.blocking(move |this| this.read_blocking(&partition, from, bytes_max)).await
    }

    /// Whether the state topic has grown since `place`; the new place. Cancel-safe.
    pub async fn place(self: &Arc<Self>) -> Result<Offset> {
        self.blocking(Self::refresh).await
    }

    /// Runs a job on the runtime's blocking threads. Cancel-safe: the job then ends by itself.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gone = |e: String| Error::operator("the log's reader has stopped").cause(e);
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| gone(e.to_string()))?;
        let this = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&this)
        });
        task.await.map_err(|e| gone(e.to_string()))?
    }
}

fn apply(view: &mut View, fetched: &Fetched) -> Result<()> {
    for (offset, record) in fetched.offsets.iter().copied().zip(record::frames(&fetched.frames)) {
        let key = std::str::from_utf8(record.key.unwrap_or_default()).unwrap_or_default();
        view.apply(offset, key, record.value)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
