//! One connection's worth of streaming: reads, lets the engine encode, submits, acknowledges, cuts.
//!
//! ```text
//!            ┌─ socket ── fill ──> engine ──> appender ──> log
//!   select ──┼─ replay of a transaction that was in progress ──> engine (nothing is read meanwhile)
//!            ├─ append settled ──> feedback (flush_lsn) ──> walsender, from a task of its own
//!            ├─ linger over ──> submit
//!            ├─ command (cut) ──> marker into the stream
//!            └─ tick ──> marker at midnight, progress of an idle database, gauges
//! ```
//!
//! Why the source is safe: the loop may wait for the log as long as it likes, since the status updates that
//! keep the walsender alive come from the feedback task, not from here; while the loop waits it reads
//! nothing, so what it holds is two batches and the socket's buffer. The server learns only of positions that
//! an append has made durable, together with the state that a restart would find.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::change::{BACKFILL_PARTITION, Cut, CutTable, Ds, LogEnd, Lsn};
use crate::envelope::routing;
use crate::ops::{Accepted, BackfillOf, Command, Ops};
use crate::postgres::wire::{Feedback, ReplicationMessage, ReplicationStream, ServerError, server_error};
use crate::runtime::{Class, Error, Result, Shutdown};

use super::appender::Progress;
use super::backfill::{Absence, Backfills, CopyEvent, Reason, Whole};
use super::cutter::{Due, Marker};
use super::engine::{Engine, Step};
use super::gap::Expected;
use super::polled::Polled;
use super::promoted::Standby;
use super::publication::{Publication, Routes};
use super::registrar::Registrar;
use super::source::{self, Source};
use super::state::{StreamState, TableCount};
use super::tables::Table;
use super::unsendable;

/// An idle database's progress is made durable after this many bytes of WAL …
const IDLE_PROGRESS_BYTES: u64 = 1 << 20;
/// … or this long.
const IDLE_PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How long a marker may take to come back before another is sent.
const MARKER_PATIENCE: Duration = Duration::from_secs(10);

/// So many messages of a replay are taken before everything else has its turn.
const REPLAY_STRETCH: usize = 1000;

/// How long the last append may take when the process is to stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// Streams until the connection breaks, the process is to stop, or a person is needed.
pub struct Session<'a> {
    /// Where changes come from.
    pub stream: ReplicationStream,
    /// What makes records of them.
    pub engine: Engine,
    /// The state which goes with every append.
    pub state: StreamState,
    /// For the catalog and for markers.
    pub source: Source,
    /// The server that is streamed from, while it is a standby.
    pub standby: Option<Standby>,
    /// For the schemas of tables.
    pub registrar: Registrar,
    /// Copies that were asked for.
    pub backfills: Backfills,
    /// Looks at the catalog.
    pub polled: Polled,
    /// What it publishes, as it was seen.
    pub published: Publication,
    /// The server's clock.
    pub clock: Clock,
    /// How often a heartbeat is left in the WAL.
    pub heartbeat_interval: Option<Duration>,
    /// Requests.
    pub commands: &'a mut mpsc::Receiver<Command>,
    /// For people to watch.
    pub ops: Ops,
    /// The source's name.
    pub name: String,
    /// The publication.
    pub publication: String,
    /// When to leave.
    pub shutdown: Shutdown,
    /// Whether transactions in progress are sent.
    pub in_parts: bool,
    /// Why the stream has to be taken up again.
    pub again: Option<Again>,
}

/// Why a stream is taken up again on another connection.
#[derive(Debug)]
pub enum Again {
    /// Without transactions in progress, for this reason.
    Whole(String),
    /// The server remembers other partitions than these.
    Routes(Routes),
}

/// Why a session ended without an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process is to stop.
    Stopped,
    /// Transactions in progress cannot be kept: the server has to keep them.
    StreamWhole {
        /// Why.
        reason: String,
        /// How far the stream had been read.
        at: Lsn,
    },
    /// The server remembers other partitions than these: another connection does not.
    Rerouted(Routes),
}

type Waiting = Vec<(Ds, oneshot::Sender<Result<Ds>>)>;

impl Session<'_> {
    /// Streams. On return everything submitted is settled or lost with its error.
    ///
    /// A server that fails within itself while it sends transactions in progress is asked for whole ones: of what was
    /// rolled back meanwhile it may no longer find in its catalog what it looks for (PostgreSQL 15: "could not map
    /// filenode … to relation OID", after ALTER TABLE in a subtransaction that aborted), or a row is too large for it
    /// that may never be committed. A transaction that is sent after its commit has no such parts.
    pub async fn run(self) -> Result<Ended> {
        let (feedback, in_parts) = (self.stream.feedback(), self.in_parts);
        let begun = self.state.flush_lsn;
        match Box::pin(self.stream_on(&feedback)).await {
            Err(error) if in_parts && server_error(&error).is_some_and(ServerError::is_of_its_own) => {
                Ok(Ended::StreamWhole { reason: error.to_string(), at: feedback.received().max(begun) })
            }
            ended => ended,
        }
    }

    /// The loop.
    async fn stream_on(mut self, feedback: &Feedback) -> Result<Ended> {
        let mut waiting: Waiting = Vec::new();
        // Where the stream begins before that, the server sends again what lies between.
        let begun = self.state.flush_lsn;
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut done = Housekeeping { saved: Instant::now(), marker: None, heartbeat: Instant::now() };
        // What came in one read with the answer to START_REPLICATION is in the buffer already; it may be all
        // that comes, such as an error.
        self.engine.set_now(jiff::Timestamp::now().as_millisecond());
        self.drain(feedback, &mut waiting).await?;
        while self.again.is_none() {
            // What is copied of a server that was set back would be of another history.
            let fits = self.engine.expected.is_none();
            let due = self.engine.appender.due();
            tokio::select! {
                () = self.shutdown.raised() => break,
                settled = self.engine.appender.settled() => self.acknowledge(feedback, settled?),
                () = until(due) => self.submit().await?,
                Some(command) = self.commands.recv() => self.command(command, &mut done, &mut waiting).await?,
                event = self.backfills.event(), if fits => self.copied(event).await?,
                sight = self.published.seen() => self.published.take(sight),
                _ = tick.tick() => self.housekeep(&mut done, &waiting).await?,
                () = std::future::ready(()), if self.engine.is_replaying() => {
                    self.replay(feedback, &mut waiting).await?;
                }
                filled = self.stream.fill(), if !self.engine.is_replaying() => {
                    filled?;
                    self.engine.set_now(jiff::Timestamp::now().as_millisecond());
                    self.drain(feedback, &mut waiting).await?;
                }
            }
            if fits {
                self.describe_copies().await?;
            }
        }
        let Some(again) = self.again.take() else {
            return self.leave(feedback).await.map(|()| Ended::Stopped);
        };
        match (self.leave(feedback).await, again) {
            (Err(error), _) if error.class() != Class::Retry => Err(error),
            (_, Again::Whole(reason)) => {
                Ok(Ended::StreamWhole { reason, at: feedback.received().max(begun) })
            }
            (_, Again::Routes(routes)) => Ok(Ended::Rerouted(routes)),
        }
    }

    /// Takes every message that has been read.
    async fn drain(&mut self, feedback: &Feedback, waiting: &mut Waiting) -> Result<()> {
        let (mut last, mut wanted) = (None, false);
        let commit_before_us = self.engine.progress().commit_us;
        while !self.engine.is_replaying() && self.again.is_none() {
            let message = match self.stream.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return Err(unsendable::told(error, feedback.received(), &self.engine)),
            };
            let step = match message {
                ReplicationMessage::XLogData { wal_start, wal_end, server_time_us, data } => {
                    last = Some((wal_end, server_time_us));
                    self.engine.accept(data, wal_start)?
                }
                ReplicationMessage::Keepalive { wal_end, server_time_us, reply_requested } => {
                    last = Some((wal_end, server_time_us));
                    wanted |= reply_requested;
                    self.engine.keepalive(wal_end)
                }
            };
            if !matches!(step, Step::Next) {
                self.step(step, waiting).await?;
            }
            if self.engine.appender.is_full() {
                self.submit().await?;
                self.acknowledge(feedback, self.engine.appender.durable());
            }
        }
        if let Some((wal_end, server_us)) = last {
            self.clock.seen(server_us);
            self.ops.source().heard(wal_end);
            self.received(commit_before_us);
        }
        // A server that is being stopped waits for us, and asks: what an idle stream has passed is told at once.
        if wanted && self.engine.is_idle() && self.engine.progress() != self.engine.appender.durable() {
            self.submit().await?;
            let progress = self.engine.appender.settle().await?;
            self.acknowledge(feedback, progress);
            feedback.send_now();
        }
        Ok(())
    }

    /// Takes a stretch of the transaction that is replayed; after its end, what has been read meanwhile.
    async fn replay(&mut self, feedback: &Feedback, waiting: &mut Waiting) -> Result<()> {
        let commit_before_us = self.engine.progress().commit_us;
        for _ in 0..REPLAY_STRETCH {
            if !self.engine.is_replaying() {
                break;
            }
            let step = self.engine.replay()?;
            if !matches!(step, Step::Next) {
                self.step(step, waiting).await?;
            }
            if self.again.is_some() {
                return Ok(());
            }
            if self.engine.appender.is_full() {
                self.submit().await?;
                self.acknowledge(feedback, self.engine.appender.durable());
            }
        }
        self.received(commit_before_us);
        if !self.engine.is_replaying() {
            self.drain(feedback, waiting).await?;
        }
        // Status updates and the append have the same thread.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Tells of the last commit, if one has come. A keepalive moves the position, too, but nothing is late by it.
    fn received(&self, commit_before_us: i64) {
        let progress = self.engine.progress();
        if progress.commit_us != commit_before_us {
            self.ops.source().received(progress.flush_lsn, progress.commit_us / 1000);
        }
    }

    async fn step(&mut self, mut step: Step, waiting: &mut Waiting) -> Result<()> {
        loop {
            step = match step {
                Step::Next => return Ok(()),
                Step::Describe(relation) => {
                    self.describe(relation).await?;
                    self.engine.resume()?
                }
                Step::Ddl { content, position } => {
                    self.ddl(&content, position).await?;
                    Step::Next
                }
                Step::Cut { due, lsn, reason } => {
                    self.cut(due, lsn, reason).await?;
                    answer(waiting, due.ds);
                    // Several days may end at one place; a request has only one.
                    self.engine.cut_before()
                }
                Step::Flush => self.engine.flush().await.map_or_else(Step::StreamWhole, |()| Step::Next),
                Step::Fill => self.engine.fill().await.map_or_else(Step::StreamWhole, |()| Step::Next),
                Step::StreamWhole(reason) => {
                    self.again = Some(Again::Whole(reason));
                    Step::Next
                }
                Step::SetBack(expected) => return Err(self.set_back(expected).await?),
            };
        }
    }

    /// Asks for copies of tables that have a row in the batch of which the stream has only a part.
    fn copy_partial(&mut self) {
        let Engine { tables, appender, .. } = &mut self.engine;
        for table in tables.iter_mut().filter(|table| table.touched) {
            if let Some(at) = table.partial_at.take() {
                self.backfills.needed(&Reason::Partial, &table.schema.name, at, appender);
            }
        }
    }

    /// Notes the leaves of which rows are in the batch.
    fn note_leaves(&mut self) {
        for streamed in self.engine.streamed() {
            let Some(root) = self.engine.tables.of_oid(streamed.root) else { continue };
            let (topic, copied) = (Arc::clone(&root.topic), self.backfills.is_wanted(&root.topic));
            if let Some(entry) = self.published.streamed(&topic, streamed, copied) {
                self.engine.appender.set(entry);
            }
        }
    }

    /// Submits the batch with the state that belongs to it.
    pub(super) async fn submit(&mut self) -> Result<()> {
        self.copy_partial();
        let progress = self.engine.progress();
        self.state.position = progress.position;
        self.state.flush_lsn = progress.flush_lsn;
        self.state.last_end_lsn = self.engine.last_end_lsn;
        self.state.witness = self.engine.witness;
        self.engine.appender.set(self.state.entry());
        self.note_leaves();
        for table in self.engine.tables.iter_mut().filter(|table| table.touched) {
            table.touched = false;
            table.report();
            self.engine.appender.set(table.count.entry(&table.topic));
            self.backfills.submitting(table, &mut self.engine.appender);
        }
        self.backfills.submitting_rows(&mut self.engine.appender);
        self.engine.appender.submit(progress).await
    }

    /// The source was set back: that is remembered, since its slot may be moved on by somebody else.
    async fn set_back(&mut self, expected: Expected) -> Result<Error> {
        let gap = expected.missed(&self.state);
        let progress = self.engine.appender.settle().await?;
        // What was described meanwhile is of that server.
        self.engine.appender.batch.clear(0);
        self.state.set_back = gap.set_back;
        self.engine.appender.set(self.state.entry());
        self.engine.appender.submit(progress).await?;
        self.engine.appender.settle().await?;
        Ok(Error::operator(gap.what.clone()).mend(gap.mend()))
    }

    fn acknowledge(&self, feedback: &Feedback, Progress { flush_lsn, commit_us, held, .. }: Progress) {
        if self.engine.expected.is_some() {
            return;
        }
        feedback.hold(held);
        feedback.set_flushed(flush_lsn);
        self.ops.source().durable(flush_lsn, (commit_us > 0).then_some(commit_us / 1000));
    }

    /// Makes a cut: everything before it is made durable, then the ends of the log are taken down. Nothing
    /// else is appended between the two, since there is one writer. Died in between, the restart reads the
    /// same transaction again and cuts in the same place.
    async fn cut(&mut self, due: Due, lsn: Lsn, reason: &str) -> Result<()> {
        // Before the cut is told what it lacks.
        self.copy_partial();
        self.note_leaves();
        let open = self.engine.xid();
        let Engine { tables, appender, .. } = &mut self.engine;
        let (backfills, source) = (&mut self.backfills, &mut self.source);
        let lacking = self.published.at_cut(lsn, open, tables, backfills, source, appender).await?;
        self.submit().await?;
        self.engine.appender.settle().await?;
        // Only now may the transaction of a request be passed: until the cut is there, it has to come again.
        self.engine.pass_marker();
        let mut ends = super::ends_by_topic(self.engine.appender.log().as_ref()).await?;
        // A table that is gone is in no later day; should it come back, the first cut that has it counts on from here.
        let in_days = |table: &&Table| {
            !table.schema.dropped
                && self.engine.tables.wants(&table.schema.name)
                && self.backfills.absence(&table.topic).is_none_or(Absence::is_in_days)
        };
        let tables = self.engine.tables.iter().filter(in_days).map(|table| {
            let cut = CutTable {
                name: table.schema.name.clone(),
                schema_version: table.schema.version,
                changes: table.count.changes,
                dead_letters: table.count.dead_letters,
                ends: ends_of(
                    &mut ends,
                    &table.topic,
                    &routing::backfill_topic(&self.name, &table.schema.name),
                ),
                backfill: self.backfills.told_by_cut(&table.topic).cloned(),
                lacking: lacking.get(&table.topic).cloned(),
                backfill_where: self.published.copied_where(&table.topic).map(str::to_owned),
            };
            (table.topic.to_string(), cut)
        });
        let cut = Cut {
            ds: due.ds,
            timeline: self.state.timeline,
            lsn,
            position: self.engine.progress().position,
            reason: reason.to_owned(),
            at: due.at,
            time_zone: self.engine.cutter.calendar().time_zone().to_owned(),
            tables: tables.collect(),
        };
        super::write_cut(&mut self.engine.appender, &self.name, &cut)?;
        self.engine.appender.set(self.engine.cutter.after(due.ds).entry());
        self.backfills.cut(due.ds, &mut self.engine.appender);
        for table in self.engine.tables.iter_mut().filter(|table| !table.schema.dropped) {
            if table.count != TableCount::default() {
                table.count = TableCount::default();
                table.touched = true;
            }
        }
        self.submit().await?;
        self.engine.appender.settle().await?;
        self.engine.cutter.made(due.ds);
        let names = cut.tables.values().map(|table| table.name.clone());
        self.ops.days().cut_made(due.ds, due.at.as_millisecond(), names);
        self.ops.days().cut_due(self.engine.cutter.boundary_us() / 1000);
        tracing::info!(ds = %due.ds, %lsn, reason, tables = cut.tables.len(), "cut");
        Ok(())
    }

    async fn command(
        &mut self,
        command: Command,
        done: &mut Housekeeping,
        waiting: &mut Waiting,
    ) -> Result<()> {
        let (ds, reply) = match command {
            Command::Cut { ds, reply } => (ds, reply),
            Command::Hold { tables, pause, reply } => {
                let held = self.backfills.hold(&tables, pause, &mut self.engine.appender);
                if held.is_ok() {
                    self.submit().await?;
                    self.engine.appender.settle().await?;
                }
                // Whoever asked may have left.
                let _ = reply.send(held);
                return Ok(());
            }
            Command::Backfill { of, reply } => {
                let asked = self.ask_for_copies(&of).await;
                if asked.is_ok() {
                    self.submit().await?;
                    self.engine.appender.settle().await?;
                }
                // Whoever asked may have left.
                let _ = reply.send(asked);
                return Ok(());
            }
        };
        match self.engine.cutter.check_request(ds, self.clock.now_us()) {
            Ok(ds) => {
                self.source.send_marker(&Marker { slot: self.state.slot.clone(), ds: Some(ds) });
                done.marker = Some(Instant::now());
                waiting.push((ds, reply));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
        Ok(())
    }

    async fn ask_for_copies(&mut self, of: &BackfillOf) -> Result<Accepted> {
        let (tables, appender) = (&mut self.engine.tables, &mut self.engine.appender);
        let asking = async { self.backfills.ask(of, self.source.client().await?, tables, appender).await };
        let asked = tokio::time::timeout(source::PATIENCE, asking).await.unwrap_or_else(|_| {
            Err(Error::retry("the source did not answer which tables it publishes").mend("Ask again."))
        });
        if asked.is_err() {
            self.source.disconnect();
        }
        asked
    }

    /// Takes a piece of a copy; one that fills the batch is written at once.
    async fn copied(&mut self, event: CopyEvent) -> Result<()> {
        let (tables, appender) = (&mut self.engine.tables, &mut self.engine.appender);
        self.backfills.take(event, tables, appender);
        if self.engine.appender.is_full() { self.submit().await } else { Ok(()) }
    }

    /// Lets the rows of tables come whose marks the stream has passed.
    async fn describe_copies(&mut self) -> Result<()> {
        while let Some(ready) = self.backfills.passed(self.engine.progress().flush_lsn) {
            let position = self.engine.progress().position;
            let (tables, appender) = (&mut self.engine.tables, &mut self.engine.appender);
            if ready.begins {
                // A sight from before it was there does not tell that it has gone.
                self.published.copied(&ready.topic, ready.lsn);
            }
            let joined = self.backfills.joined(&ready);
            if let Some(entry) = self.published.read(&ready.topic, &joined, ready.lsn) {
                appender.set(entry);
            }
            self.backfills.describe(ready, position, tables, appender, &self.registrar).await?;
        }
        Ok(())
    }

    /// Moves copies on that wait for the log.
    async fn advance_copies(&mut self) -> Result<()> {
        let (ended, due) = (self.backfills.has_ended(), self.backfills.is_due());
        // The ends of a log that is out of reach are not known, and the stream does not wait for them.
        if !(ended || due) || self.engine.appender.log().trouble().is_some() {
            return Ok(());
        }
        self.submit().await?;
        self.engine.appender.settle().await?;
        if ended {
            let whole = self.backfills.finish(&mut self.engine.tables, &mut self.engine.appender).await?;
            for Whole { topic, standing, point, .. } in &whole {
                let noted = self.published.note(topic, standing.clone());
                let accounted = self.published.accounted(topic, *point);
                self.published.copied(topic, *point);
                noted.into_iter().chain(accounted).for_each(|entry| self.engine.appender.set(entry));
            }
            self.published.look_again();
            self.submit().await?;
            self.engine.appender.settle().await?;
            for whole in whole {
                whole.watch.backfill_ended();
                whole.watch.set_lacking(None);
            }
            return Ok(());
        }
        self.backfills.begin(&mut self.engine.tables, &mut self.engine.appender).await
    }

    /// Goes over to the timeline of a standby that was promoted under the stream.
    async fn follow_promotion(&mut self) -> Result<()> {
        let Some(standby) = &mut self.standby else { return Ok(()) };
        let Some(timeline) = standby.promoted().await? else { return Ok(()) };
        self.submit().await?;
        let mut progress = self.engine.appender.settle().await?;
        self.state.timeline = timeline + self.state.lift;
        progress.position.timeline = self.state.timeline;
        self.state.position = progress.position;
        self.engine.appender.set(self.state.entry());
        self.engine.appender.submit(progress).await?;
        self.engine.appender.settle().await?;
        Err(Error::retry(format!(
            "the standby was promoted, and is on timeline {timeline}: nothing is missing, and the stream is taken up again there"
        )))
    }

    /// Compares the tables with what the source publishes, where the stream has come as far.
    async fn look(&mut self) -> Result<()> {
        let Some(sight) = self.published.pass(self.engine.progress().flush_lsn) else { return Ok(()) };
        let version = self.source.client().await?.server_version();
        if let Some(routes) = self.published.stale_routes(&sight, version) {
            self.again = Some(Again::Routes(routes));
            return Ok(());
        }
        let (tables, appender) = (&mut self.engine.tables, &mut self.engine.appender);
        let (backfills, source) = (&mut self.backfills, &mut self.source);
        if self.published.compare(&sight, tables, backfills, source, appender).await? {
            self.submit().await?;
        }
        Ok(())
    }

    async fn housekeep(&mut self, done: &mut Housekeeping, waiting: &Waiting) -> Result<()> {
        let (progress, durable) = (self.engine.progress(), self.engine.appender.durable());
        let ahead = progress.flush_lsn.bytes_since(durable.flush_lsn);
        let stale = done.saved.elapsed() >= IDLE_PROGRESS_EVERY;
        if ahead > 0 && self.engine.appender.is_idle() && (ahead >= IDLE_PROGRESS_BYTES || stale) {
            done.saved = Instant::now();
            self.submit().await?;
        }
        self.follow_promotion().await?;
        if self.engine.expected.is_none() {
            self.look().await?;
            self.advance_copies().await?;
            self.poll().await?;
        }
        let past_midnight = self.clock.now_us() >= self.engine.cutter.boundary_us();
        let asked = waiting.first().map(|(ds, _)| *ds);
        if (past_midnight || asked.is_some())
            && done.marker.is_none_or(|sent| sent.elapsed() >= MARKER_PATIENCE)
        {
            done.marker = Some(Instant::now());
            self.source.send_marker(&Marker { slot: self.state.slot.clone(), ds: asked });
        }
        if self.heartbeat_interval.is_some_and(|interval| done.heartbeat.elapsed() >= interval) {
            done.heartbeat = Instant::now();
            self.source.send_heartbeat();
        }
        self.ops.source().set_in_flight(self.engine.appender.pending_bytes() as u64);
        self.ops.source().set_spooled(self.engine.spooled_bytes());
        Ok(())
    }

    /// Drains: what has been read is made durable and acknowledged, then the slot is given back. A log that
    /// does not answer is not waited for: what is not durable is not acknowledged, and comes again.
    async fn leave(mut self, feedback: &Feedback) -> Result<()> {
        let drained = async {
            if !self.engine.appender.batch.is_empty()
                || self.engine.progress() != self.engine.appender.durable()
            {
                self.submit().await?;
            }
            self.engine.appender.settle().await
        };
        match tokio::time::timeout(DRAIN_PATIENCE, drained).await {
            Ok(progress) => {
                let progress = progress?;
                self.acknowledge(feedback, progress);
                tracing::info!(flush_lsn = %progress.flush_lsn, position = %progress.position, "capture drained and acknowledged");
            }
            Err(_) => tracing::warn!(
                "the log did not take the last batch in {DRAIN_PATIENCE:?}: it is read again at the next start"
            ),
        }
        self.stream.stop().await
    }
}

/// When things which are done from time to time were done last.
struct Housekeeping {
    saved: Instant,
    marker: Option<Instant>,
    heartbeat: Instant,
}

/// The server's clock, as the server tells it: days are its days, whatever our own clock says.
pub struct Clock {
    server_us: i64,
    read_at: Instant,
}

impl Clock {
    /// The server has just said that it is `server_us`, microseconds since 1970.
    pub fn new(server_us: i64) -> Self {
        Self { server_us, read_at: Instant::now() }
    }

    fn seen(&mut self, server_us: i64) {
        *self = Self::new(server_us);
    }

    /// What it shows now, while nothing has been heard since.
    fn now_us(&self) -> i64 {
        self.server_us + self.read_at.elapsed().as_micros() as i64
    }
}

fn answer(waiting: &mut Waiting, ds: Ds) {
    for (_, reply) in waiting.extract_if(.., |(wanted, _)| *wanted <= ds) {
        // Whoever asked may have left.
        let _ = reply.send(Ok(ds));
    }
}

/// Ends of a table's log partitions, with that of its copies.
fn ends_of(ends: &mut HashMap<String, Vec<LogEnd>>, topic: &str, copies: &str) -> Vec<LogEnd> {
    let mut of_table = ends.remove(topic).unwrap_or_default();
    let copied = ends.remove(copies).unwrap_or_default();
    of_table.extend(copied.iter().map(|end| LogEnd { partition: BACKFILL_PARTITION, ..*end }));
    of_table
}

pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
