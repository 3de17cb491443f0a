//! Deliver: the log in, published days out.
//!
//! ```text
//!   loop: ranges of the log ─> journal (schemas, cuts) ─> each table's turn (stage, publish) ─> the day's manifest
//! ```
//!
//! Why two at once do no harm: the lease keeps a second process waiting, and where a lease fails (a process
//! paused past its end), every object it may still write has a name that follows from its content and is made
//! by conditional create: it finds its own bytes there already, or is refused.

mod gap;
mod journal;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::change::{BACKFILL_PARTITION, Ds, TableName};
use crate::coord::{Coordinator, Lease};
use crate::envelope::{Options, routing};
use crate::lake::Lake;
use crate::log::{Log, LogPartition, Offset, OffsetRange};
use crate::ops::{BackfillOf, Command, Component, DayTable, Gap, Ops};
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

use gap::Needed;
use journal::Journal;
use table::{Partitions, TableDelivery};

/// A table, or a day's manifest, that failed is tried again after this long.
const FAILED_PAUSE: Duration = Duration::from_secs(10);

/// A new copy of a table is asked for again after this long, if it is still needed: asking twice is one copy.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// While the log is short of room, what tables hold is written early, no more often than this.
const ROOM_PAUSE: Duration = Duration::from_secs(5);

/// An upload in parts that is older is left by a process that died.
const UPLOAD_AGE: Duration = Duration::from_secs(60 * 60);

/// How long a step in progress (a merge, a lake that hangs) may take when the process is to stop. Whatever is
/// dropped then is done again, with the same outcome.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// What deliver has to know.
#[derive(Clone, Debug)]
pub struct DeliverSettings {
    /// The source's name.
    pub name: String,
    /// How values are written in the log.
    pub envelope: Options,
    /// How long a lease lasts without renewal.
    pub lease_ttl: Duration,
    /// Bytes which tables may hold before the fullest gives its up and reads them again.
    pub memory_bytes_max: usize,
}

/// Delivers until the process is to stop. Errors that pass are waited out; a table that fails is isolated.
pub async fn run(
    settings: &DeliverSettings,
    log: &Arc<dyn Log>,
    lake: &Lake,
    coordinator: &Arc<dyn Coordinator>,
    ops: &Ops,
    shutdown: &Shutdown,
) -> Result<()> {
    let component = ops.component("deliver");
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    let lease_name = format!("deliver/{}", settings.name);
    while !shutdown.is_raised() {
        let acquired = match coordinator.acquire(&lease_name, settings.lease_ttl).await {
            Ok(lease) => lease,
            Err(error) if error.class() == Class::Retry => {
                pause(&component, &error, &mut backoff, shutdown).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some(lease) = acquired else {
            let holders = coordinator.leases(&lease_name).await.unwrap_or_default();
            let holder = holders.into_iter().next().map_or_else(String::new, |lease| lease.holder);
            component.standby(format!("another process delivers ({holder}); standing by"));
            tokio::select! {
                () = tokio::time::sleep(settings.lease_ttl / 4) => {}
                () = shutdown.raised() => {}
            }
            continue;
        };
        component.ok();
        let mut delivery = Delivery::new(settings, log, lake, ops);
        // In a task of its own: a turn which computes for long must not hold up the renewal.
        let mut keeper = tokio::task::JoinSet::new();
        keeper.spawn(keep(Arc::clone(coordinator), lease.clone(), settings.lease_ttl));
        let result = tokio::select! {
            result = delivery.run(shutdown) => result,
            Some(lost) = keeper.join_next() => {
                lost.unwrap_or_else(|error| Err(Error::retry("the task that renews the lease died").cause(error)))
            }
            () = overdue(shutdown) => {
                tracing::warn!("delivery did not come to an end in {DRAIN_PATIENCE:?}: what it was doing is done again at the next start");
                Ok(())
            }
        };
        keeper.shutdown().await;
        // What cannot be given back comes to its end by itself.
        if let Err(error) = coordinator.release(&lease).await {
            tracing::warn!(%error, "the lease of delivery could not be given back");
        }
        let Err(error) = result else { return Ok(()) };
        if !matches!(error.class(), Class::Retry | Class::Fenced) {
            return Err(error);
        }
        pause(&component, &error, &mut backoff, shutdown).await;
    }
    Ok(())
}

/// Tells of an error that passes, and waits.
async fn pause(component: &Component, error: &Error, backoff: &mut Backoff, shutdown: &Shutdown) {
    component.failed(error);
    let wait = backoff.next_wait();
    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "delivery was interrupted: trying again");
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = shutdown.raised() => {}
    }
}

/// Waits until the process is to stop, and then as long as a step in progress may take.
async fn overdue(shutdown: &Shutdown) {
    shutdown.raised().await;
    tokio::time::sleep(DRAIN_PATIENCE).await;
}

/// Renews the lease until it is lost.
async fn keep(coordinator: Arc<dyn Coordinator>, lease: Lease, ttl: Duration) -> Result<()> {
    loop {
        tokio::time::sleep(ttl / 3).await;
        if coordinator.renew(std::slice::from_ref(&lease), ttl).await?.is_empty() {
            let name = &lease.name;
            return Err(Error::fenced(format!(
                "the lease {name} ran out before it was renewed, or was taken over"
            )));
        }
    }
}

struct Delivery<'a> {
    settings: &'a DeliverSettings,
    log: &'a Arc<dyn Log>,
    lake: &'a Lake,
    ops: &'a Ops,
    journal: Journal,
    tables: HashMap<String, TableDelivery>,
    /// When a new copy of a table was asked for.
    asked: HashMap<String, tokio::time::Instant>,
    /// When a table that failed is tried again.
    failed: HashMap<String, tokio::time::Instant>,
    /// When the manifest of a day is tried again.
    day_failed: Option<tokio::time::Instant>,
    /// Whether the lake is known to be filled from this log.
    bound: bool,
    /// The last day whose own manifest is there.
    day: Option<Ds>,
    /// When room was made in the log.
    room_made: Option<tokio::time::Instant>,
    /// Up to where the log was let go of `<name>.transaction`.
    transactions_trimmed: Offset,
}

impl<'a> Delivery<'a> {
    fn new(settings: &'a DeliverSettings, log: &'a Arc<dyn Log>, lake: &'a Lake, ops: &'a Ops) -> Self {
        let journal = Journal::new(&settings.name);
        let (tables, asked, failed) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self {
            settings,
            log,
            lake,
            ops,
            journal,
            tables,
            asked,
            failed,
            day_failed: None,
            bound: false,
            day: None,
            room_made: None,
            transactions_trimmed: 0,
        }
    }

    async fn run(&mut self, shutdown: &Shutdown) -> Result<()> {
        // They cost money and are in nobody's way: not worth a stop where the right to list them is lacking.
        if let Err(error) = self.lake.abort_uploads(UPLOAD_AGE).await {
            tracing::warn!(%error, "uploads that were broken off are not cleared");
        }
        self.day = self.lake.latest_day().await?;
        while !shutdown.is_raised() {
            let more = self.round(shutdown).await?;
            if !more {
                let again = self.failed.values().chain(&self.day_failed).min().copied();
                tokio::select! {
                    () = self.log.appended() => {}
                    () = until(again) => {}
                    () = shutdown.raised() => {}
                }
            }
        }
        Ok(())
    }

    /// A turn for every table that has something to do; whether there is more at once.
    async fn round(&mut self, shutdown: &Shutdown) -> Result<bool> {
        let mut ranges = by_topic(self.log.ranges().await?);
        self.journal.refresh(self.log.as_ref()).await?;
        if let (false, Some(beginning)) = (self.bound, self.journal.beginning()) {
            self.lake.bind(beginning).await?;
            self.bound = true;
        }
        let tables: Vec<(String, TableName)> =
            self.journal.tables().map(|(topic, name)| (topic.to_owned(), name.clone())).collect();
        let mut more = false;
        for (topic, name) in tables {
            if shutdown.is_raised() {
                return Ok(false);
            }
            if self.failed.get(&topic).is_some_and(|until| tokio::time::Instant::now() < *until) {
                continue;
            }
            let copies = routing::backfill_topic(&self.settings.name, &name);
            let mut partitions = ranges.remove(&topic).unwrap_or_default();
            if let Some((_, copies)) = ranges.remove(&copies).and_then(|mut copies| copies.pop_first()) {
                partitions.insert(BACKFILL_PARTITION, copies);
            }
            match self.turn(&topic, &name, &partitions).await {
                Ok(again) => more |= again,
                Err(error) if error.class() == Class::Operator => self.isolate(topic, &name, &error),
                Err(error) => return Err(error),
            }
            self.bound_memory().await?;
        }
        self.trim_transactions(&ranges).await?;
        more |= self.make_room().await?;
        if self.day_failed.is_some_and(|until| tokio::time::Instant::now() < until) {
            return Ok(more);
        }
        match self.publish_days().await {
            Ok(published) => {
                if self.day_failed.take().is_some() {
                    self.ops.component("lake").ok();
                }
                more |= published;
            }
            Err(error) if error.class() == Class::Operator => {
                tracing::error!(%error, "the day's manifest cannot be made: it is tried again in {FAILED_PAUSE:?}");
                self.ops.component("lake").failed(&error);
                self.day_failed = Some(tokio::time::Instant::now() + FAILED_PAUSE);
            }
            Err(error) => return Err(error),
        }
        Ok(more)
    }

    async fn turn(&mut self, topic: &str, name: &TableName, partitions: &Partitions) -> Result<bool> {
        if !self.tables.contains_key(topic) {
            let (watch, options) = (self.ops.table(name), self.settings.envelope);
            let table = TableDelivery::open(self.lake, topic, name, options, watch, self.day).await?;
            self.tables.insert(topic.to_owned(), table);
        }
        let Some(table) = self.tables.get_mut(topic) else { return Ok(false) };
        let turn = table.turn(self.log.as_ref(), self.lake, &self.journal, partitions).await?;
        if let Some(manifest) = turn.published.then(|| table.manifest()).flatten() {
            let state = DayTable::Published {
                rows: manifest.rows,
                bytes: manifest.files.iter().map(|file| file.bytes).sum(),
            };
            self.ops.days().table(manifest.ds, name, state);
        }
        if let Some((ds, reason)) = turn.missed.and_then(|ds| Some((ds, table.missing(ds)?))) {
            self.ops.days().table(ds, name, DayTable::Missing { reason: reason.to_owned() });
        }
        if self.failed.remove(topic).is_some() {
            self.ops.table(name).set_state(crate::ops::TableState::Streaming);
        }
        self.repair(topic, name, turn.needed);
        Ok(turn.more)
    }

    /// Asks for a new copy of a table which cannot be made otherwise: this process, if it captures, or the operator.
    fn repair(&mut self, topic: &str, name: &TableName, needed: Option<Needed>) {
        let Some(needed) = needed else {
            if self.asked.remove(topic).is_some() {
                self.ops.table(name).set_gap(None);
            }
            return;
        };
        if self.asked.get(topic).is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return;
        }
        let first = self.asked.insert(topic.to_owned(), tokio::time::Instant::now()).is_none();
        let (reply, answer) = oneshot::channel();
        let of = BackfillOf::Table { table: name.clone(), after: needed.after };
        let here = self.ops.ask(Command::Backfill { of, reply }).is_some();
        self.ops.table(name).set_gap(Some(Gap { reason: needed.reason, offsets: needed.offsets, here }));
        if here {
            let name = name.clone();
            tokio::spawn(async move {
                if let Ok(Err(error)) = answer.await {
                    tracing::error!(table = %name, %error, "the new copy that the table needs is refused");
                }
            });
        } else if first {
            tracing::error!(table = %name, "run `tidemark backfill {name}` beside the process that captures: days are made of \
                the table again from the first cut after its copy is whole");
        }
    }

    /// The table waits, the others go on; it is tried again after a while.
    fn isolate(&mut self, topic: String, name: &TableName, error: &Error) {
        tracing::error!(table = %name, %error, "the table cannot be delivered: it is tried again in {FAILED_PAUSE:?}");
        self.ops.table(name).failed(error);
        self.tables.remove(&topic);
        self.failed.insert(topic, tokio::time::Instant::now() + FAILED_PAUSE);
    }

    /// Writes the fullest tables' files early while all together hold too much.
    async fn bound_memory(&mut self) -> Result<()> {
        while self.tables.values().map(TableDelivery::memory).sum::<usize>() > self.settings.memory_bytes_max
        {
            let Some(fullest) = self.tables.values_mut().max_by_key(|table| table.memory()) else { break };
            fullest.flush().await?;
        }
        Ok(())
    }

    /// Writes every table's files early when the log is near its limit, so that their next turn lets it go of what
    /// they hold: a log which is full stops capture, and then neither a new hour nor a cut would close them.
    async fn make_room(&mut self) -> Result<bool> {
        let holding = self.tables.values().any(|table| table.memory() > 0);
        let pausing = self.room_made.is_some_and(|at| at.elapsed() < ROOM_PAUSE);
        if !holding || pausing || !self.log.is_short_of_room().await? {
            return Ok(false);
        }
        self.room_made = Some(tokio::time::Instant::now());
        for table in self.tables.values_mut() {
            table.flush().await?;
        }
        Ok(true)
    }

    /// `<name>.transaction` is for others to read, and nothing of it goes into the lake: the log keeps it as long as it
    /// keeps what is in the lake, and lets go of it then.
    async fn trim_transactions(&mut self, ranges: &HashMap<String, Partitions>) -> Result<()> {
        let topic = routing::transaction_topic(&self.settings.name);
        for (partition, range) in ranges.get(&topic).into_iter().flat_map(BTreeMap::values) {
            if range.end > self.transactions_trimmed {
                self.log.trim(partition, range.end).await?;
                self.transactions_trimmed = range.end;
            }
        }
        Ok(())
    }

    /// A day is complete when all its tables are: then its own manifest is made.
    async fn publish_days(&mut self) -> Result<bool> {
        let mut published = false;
        let open: Vec<_> = self.journal.cuts_after(self.day).cloned().collect();
        for cut in open {
            let done = |topic: &String| {
                self.tables.get(topic).and_then(TableDelivery::decided).is_some_and(|ds| ds >= cut.ds)
            };
            if !cut.tables.keys().all(done) {
                break;
            }
            let missing =
                |topic: &String| Some((topic.clone(), self.tables.get(topic)?.missing(cut.ds)?.to_owned()));
            let missing: BTreeMap<_, _> = cut.tables.keys().filter_map(missing).collect();
            let Some(day) = self.lake.publish_day(&cut, &missing).await? else { break };
            self.ops.days().published(cut.ds);
            let (tables, missing) = (day.tables.len(), day.missing.len());
            tracing::info!(ds = %cut.ds, tables, missing, lsn = %cut.lsn, "the day is complete");
            self.day = Some(cut.ds);
            published = true;
        }
        Ok(published)
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn by_topic(ranges: BTreeMap<LogPartition, OffsetRange>) -> HashMap<String, Partitions> {
    let mut topics: HashMap<String, Partitions> = HashMap::new();
    for (partition, range) in ranges {
        let of_topic = topics.entry(partition.topic.to_string()).or_default();
        of_topic.insert(partition.partition, (partition, range));
    }
    topics
}
