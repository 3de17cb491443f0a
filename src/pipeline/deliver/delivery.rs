//! The loop over the tables that this process has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::change::{BACKFILL_PARTITION, Cut, Ds, TableName};
use crate::envelope::routing;
use crate::lake::Lake;
use crate::log::{Log, LogPartition, Offset, OffsetRange};
use crate::ops::{BackfillOf, Command, DayTable, Gap, Ops, TableState};
use crate::runtime::{Class, Error, Result, Shutdown};

use super::gap::Needed;
use super::journal::Journal;
use super::members::{Membership, Turn};
use super::share::{Share, share_of};
use super::table::{Partitions, TableDelivery};
use super::{DeliverSettings, HistoricTails};

/// A table, or a day's manifest, that failed is tried again after this long; or after so many times as long as its turn took,
/// which kept the others waiting.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
const FAILED_PAUSE_FACTOR: u32 = 2;

/// What might pass is tried again sooner, the first few times.
const TROUBLED_PAUSE: Duration = Duration::from_secs(1);

/// What a table holds is given up for what others have staged, and taken up again from there; after that many times in
/// turn it waits as one that failed.
const OVERTAKEN_MAX: u32 = 5;

/// A new copy of a table is asked for again after this long, if it is still needed: asking twice is one copy.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// While the log is short of room, what tables hold is written early, no more often than this.
const ROOM_PAUSE: Duration = Duration::from_secs(5);

/// An upload in parts that is older is left by a process that died.
const UPLOAD_AGE: Duration = Duration::from_secs(60 * 60);

/// While a day waits for tables of other processes, or for its manifest, it is looked for this often: by whoever makes it,
/// and by the others.
const DAY_LOOK: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// Topics of tables that have met errors which might pass, and how many, since all that they had to do was done. The first
/// one has ended a delivery.
pub(super) type Troubled = HashMap<String, u32>;

/// See the module.
pub(super) struct Delivery<'a> {
    settings: &'a DeliverSettings,
    log: &'a Arc<dyn Log>,
    lake: &'a Lake,
    ops: &'a Ops,
    member: &'a Membership,
    journal: Journal,
    /// With the epoch of the share's lease under which each was opened.
    tables: HashMap<String, (u64, TableDelivery)>,
    /// When a new copy of a table was asked for.
    asked: HashMap<String, Instant>,
    /// When a table that failed is tried again.
    failed: HashMap<String, Instant>,
    /// Kept from one delivery to the next.
    troubled: &'a mut Troubled,
    /// How many times in turn another process had staged what a table held.
    overtaken: HashMap<String, u32>,
    /// When the manifest of a day is tried again.
    day_failed: Option<Instant>,
    /// Whether the lake is known to be filled from this log.
    bound: bool,
    /// The last day whose own manifest is there.
    day: Option<Ds>,
    /// The same, for those who tell of it.
    complete: watch::Sender<Option<Ds>>,
    /// When room was made in the log.
    room_made: Option<Instant>,
    /// Up to where the log was let go of `<name>.transaction`.
    transactions_trimmed: Offset,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        settings: &'a DeliverSettings,
        log: &'a Arc<dyn Log>,
        lake: &'a Lake,
        ops: &'a Ops,
        member: &'a Membership,
        troubled: &'a mut Troubled,
    ) -> Self {
        let journal = Journal::new(&settings.name);
        let (tables, asked, failed) = (HashMap::new(), HashMap::new(), HashMap::new());
        let overtaken = HashMap::new();
        Self {
            settings,
            log,
            lake,
            ops,
            member,
            journal,
            tables,
            asked,
            failed,
            troubled,
            overtaken,
            day_failed: None,
            bound: false,
            day: None,
            complete: watch::Sender::new(None),
            room_made: None,
            transactions_trimmed: 0,
        }
    }

    /// The last complete day, as it changes.
    pub(super) fn complete(&self) -> watch::Receiver<Option<Ds>> {
        self.complete.subscribe()
    }

    pub(super) async fn run(&mut self, shutdown: &Shutdown) -> Result<()> {
        // They cost money and are in nobody's way: not worth a stop where the right to list them is lacking.
        if let Err(error) = self.lake.abort_uploads(UPLOAD_AGE).await {
            tracing::warn!(%error, "uploads that were broken off are not cleared");
        }
        if let Err(error) = self.lake.sweep_scratch() {
            tracing::warn!(%error, "what merges that died have left is not cleared");
        }
        // Before anything is published: what is complete from here on is told, whoever dies meanwhile.
        for endpoint in &self.settings.endpoints {
            self.lake.begin_notices(endpoint.name()).await?;
        }
        self.day = self.lake.latest_day().await?;
        self.complete.send_replace(self.day);
        while !shutdown.is_raised() {
            let more = self.round(shutdown).await?;
            if !more {
                let open = self.journal.cuts_after(self.day).next().is_some();
                let look = open.then(|| Instant::now() + DAY_LOOK[usize::from(!self.member.leads())]);
                let again = self.failed.values().chain(&self.day_failed).chain(&look).copied();
                let again = again.chain(self.tables.values().filter_map(|(_, table)| table.due())).min();
                tokio::select! {
                    () = self.log.appended() => {}
                    () = self.member.moved() => {}
                    () = until(again) => {}
                    () = shutdown.raised() => {}
                }
            }
        }
        Ok(())
    }

    /// A turn for every table of this process that has something to do; whether there is more at once.
    async fn round(&mut self, shutdown: &Shutdown) -> Result<bool> {
        let mut ranges = by_topic(self.log.ranges().await?);
        self.journal.refresh(self.log.as_ref()).await?;
        if let (false, Some(beginning)) = (self.bound, self.journal.beginning()) {
            self.lake.bind(beginning).await?;
            self.bound = true;
        }
        let tables: Vec<(String, TableName)> =
            self.journal.tables().map(|(topic, name)| (topic.to_owned(), name.clone())).collect();
        let mut shares: BTreeMap<Share, usize> = BTreeMap::new();
        for (topic, _) in &tables {
            *shares.entry(share_of(topic)).or_default() += 1;
        }
        self.member.know(shares);
        let cuts = self.tables.values().any(|(_, table)| table.next_cut(&self.journal).is_some());
        let mut more = false;
        for (topic, name) in tables {
            if shutdown.is_raised() {
                return Ok(false);
            }
            let Some(share) = self.member.begin(share_of(&topic)) else {
                self.leave(&topic, &name);
                continue;
            };
            if self.failed.get(&topic).is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            let copies = routing::backfill_topic(&self.settings.name, &name);
            let mut partitions = ranges.remove(&topic).unwrap_or_default();
            if let Some((_, copies)) = ranges.remove(&copies).and_then(|mut copies| copies.pop_first()) {
                partitions.insert(BACKFILL_PARTITION, copies);
            }
            let began = Instant::now();
            let turned = self.turn(&share, (&topic, &name), &partitions, cuts).await;
            drop(share);
            more |= self.settled(&topic, &name, turned, began)?;
            self.bound_memory().await?;
        }
        self.show_standing();
        if self.member.leads() {
            self.trim_transactions(&ranges).await?;
        }
        more |= self.make_room().await?;
        if self.day_failed.is_some_and(|until| Instant::now() < until) {
            return Ok(more);
        }
        match self.days().await {
            Ok(published) => {
                if self.day_failed.take().is_some() {
                    self.ops.component("lake").ok();
                }
                more |= published;
            }
            Err(error) if error.class() == Class::Operator => {
                tracing::error!(%error, "the day's manifest cannot be made: it is tried again in {FAILED_PAUSE:?}");
                self.ops.component("lake").failed(&error);
                self.day_failed = Some(Instant::now() + FAILED_PAUSE);
            }
            Err(error) => return Err(error),
        }
        Ok(more)
    }

    /// What becomes of a table after its turn, or another step of it; whether there is more at once.
    ///
    /// An error that might pass may be of the store or the log as a whole, and interrupts the delivery: the next one begins
    /// with both. If it gets past that, and the same table fails again, the error is of the table: it waits, and the others go on.
    fn settled(
        &mut self,
        topic: &str,
        name: &TableName,
        turned: Result<bool>,
        began: Instant,
    ) -> Result<bool> {
        let Err(error) = turned else {
            self.overtaken.remove(topic);
            return turned;
        };
        let count = |of: &mut HashMap<String, u32>| {
            let times = of.entry(topic.to_owned()).or_default();
            *times += 1;
            *times
        };
        let pause = match error.class() {
            Class::Operator => FAILED_PAUSE,
            Class::Retry => match count(self.troubled) {
                1 => return Err(error),
                times => (TROUBLED_PAUSE * 2_u32.pow(times.min(10) - 2)).min(FAILED_PAUSE),
            },
            Class::Fenced => {
                if count(&mut self.overtaken) <= OVERTAKEN_MAX {
                    tracing::info!(table = %name, %error, "the table is taken up again from what is in the lake");
                    self.tables.remove(topic);
                    return Ok(true);
                }
                FAILED_PAUSE
            }
            Class::Usage => return Err(error),
        };
        let pause = pause.max(began.elapsed() * FAILED_PAUSE_FACTOR);
        self.isolate(topic.to_owned(), name, &error, pause);
        Ok(false)
    }

    /// Another process has the table: nothing of it is held here, nor told.
    fn leave(&mut self, topic: &str, name: &TableName) {
        self.asked.remove(topic);
        self.tables.remove(topic);
        self.overtaken.remove(topic);
        if self.failed.remove(topic).is_some() {
            self.ops.table(name).set_state(TableState::Streaming);
        }
        // Also of what a delivery told that was interrupted.
        self.ops.table(name).left();
    }

    /// Delivery is interrupted, or at its end: the leases are given back.
    pub fn interrupt(self) {
        for (_, name) in self.journal.tables() {
            self.ops.table(name).interrupted();
        }
    }

    /// Tells how this process stands among others.
    fn show_standing(&self) {
        let (component, standing) = (self.ops.component("deliver"), self.member.standing());
        if standing.shares > 0 || standing.known == 0 || standing.members == 0 {
            component.ok();
        } else {
            component.standby(
                "another process delivers, or several, and no table is left for this one; standing by",
            );
        }
    }

    async fn turn(
        &mut self,
        share: &Turn<'_>,
        (topic, name): (&str, &TableName),
        partitions: &Partitions,
        cuts: bool,
    ) -> Result<bool> {
        if self.tables.get(topic).is_none_or(|(epoch, _)| *epoch != share.epoch) {
            let HistoricTails(tail) = &self.settings.historic_tails;
            let options = (self.settings.envelope, self.settings.premerge, tail(name));
            let watch = self.ops.table(name);
            let told = share.told(topic);
            let table = TableDelivery::open(self.lake, topic, name, options, watch, self.day, told).await?;
            self.tables.insert(topic.to_owned(), (share.epoch, table));
            self.ops.table(name).owned();
        }
        let Some((_, table)) = self.tables.get_mut(topic) else { return Ok(false) };
        let turn = table.turn(self.log.as_ref(), self.lake, &self.journal, partitions, cuts).await?;
        if !turn.more && table.next_cut(&self.journal).is_none() {
            self.troubled.remove(topic);
        }
        let standing = table.standing(self.day);
        if standing.is_news(share.told(topic).as_ref()) {
            share.tell(topic, standing).await?;
        }
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
            self.ops.table(name).set_state(TableState::Streaming);
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
        let first = self.asked.insert(topic.to_owned(), Instant::now()).is_none();
        let (reply, answer) = oneshot::channel();
        let of =
            BackfillOf::Table { table: name.clone(), after: needed.after, known: self.journal.last_cut() };
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
    fn isolate(&mut self, topic: String, name: &TableName, error: &Error, pause: Duration) {
        tracing::error!(table = %name, %error, "the table cannot be delivered: it is tried again in {pause:?}");
        self.ops.table(name).failed(error);
        self.tables.remove(&topic);
        self.failed.insert(topic, Instant::now() + pause);
    }

    /// Writes what the fullest tables hold early, as pieces, while all together hold too much.
    async fn bound_memory(&mut self) -> Result<()> {
        while self.tables.values().map(|(_, table)| table.memory()).sum::<usize>()
            > self.settings.memory_bytes_max
        {
            let fullest = self.tables.iter().max_by_key(|(_, (_, table))| table.memory());
            let Some(topic) = fullest.map(|(topic, _)| topic.clone()) else { break };
            self.flush(&topic).await?;
        }
        Ok(())
    }

    /// Writes what a table holds early.
    async fn flush(&mut self, topic: &str) -> Result<()> {
        let Some((_, table)) = self.tables.get_mut(topic) else { return Ok(()) };
        let began = Instant::now();
        let (name, flushed) = (table.name().clone(), table.flush().await);
        self.settled(topic, &name, flushed.map(|()| false), began).map(|_| ())
    }

    /// Writes what every table holds early, as pieces, when the log is near its limit, so that their next turn lets it go of what
    /// they hold: a log which is full stops capture, and then neither a new hour nor a cut would close them.
    async fn make_room(&mut self) -> Result<bool> {
        let holding = self.tables.values().any(|(_, table)| table.memory() > 0);
        let pausing = self.room_made.is_some_and(|at| at.elapsed() < ROOM_PAUSE);
        if !holding || pausing || !self.log.is_short_of_room().await? {
            return Ok(false);
        }
        self.room_made = Some(Instant::now());
        let topics: Vec<_> = self.tables.keys().cloned().collect();
        for topic in topics {
            self.flush(&topic).await?;
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

    /// The days that are open: whoever leads makes their manifests, the others see when they are there.
    async fn days(&mut self) -> Result<bool> {
        let open: Vec<_> = self.journal.cuts_after(self.day).cloned().collect();
        if open.is_empty() {
            return Ok(false);
        }
        let mut published = false;
        for cut in open {
            let there = if self.member.leads() {
                self.publish_day(&cut).await?
            } else {
                self.lake.day(cut.ds).await?.is_some()
            };
            if !there {
                break;
            }
            self.ops.days().published(cut.ds);
            self.day = Some(cut.ds);
            self.complete.send_replace(self.day);
            published = true;
        }
        Ok(published)
    }

    /// A day is complete when all its tables are: then its own manifest is made, from what their owners have told.
    async fn publish_day(&self, cut: &Cut) -> Result<bool> {
        let standings = self.member.standings().await?;
        let mut missing = BTreeMap::new();
        for topic in cut.tables.keys() {
            let told = standings.get(&share_of(topic)).and_then(|state| state.tables.get(topic));
            let Some(table) = told.filter(|table| table.decided.is_some_and(|ds| ds >= cut.ds)) else {
                return Ok(false);
            };
            if let Some(reason) = table.missing.get(&cut.ds) {
                missing.insert(topic.clone(), reason.clone());
            }
        }
        let Some(day) = self.lake.publish_day(cut, &missing).await? else { return Ok(false) };
        let (tables, missing) = (day.tables.len(), day.missing.len());
        tracing::info!(ds = %cut.ds, tables, missing, lsn = %cut.lsn, "the day is complete");
        Ok(true)
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Ranges of log partitions, by topic.
pub(super) fn by_topic(ranges: BTreeMap<LogPartition, OffsetRange>) -> HashMap<String, Partitions> {
    let mut topics: HashMap<String, Partitions> = HashMap::new();
    for (partition, range) in ranges {
        let of_topic = topics.entry(partition.topic.to_string()).or_default();
        of_topic.insert(partition.partition, (partition, range));
    }
    topics
}
