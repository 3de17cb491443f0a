//! Copies of tables that are asked for while the stream goes on: by `tidemark backfill`, or by delivery after it has lost
//! records.
//!
//! ```text
//!   asked ─> in the state ─> ends noted ─> point P, lock ─> stream past the lock ─> rows at P - 1 ─> whole ─> cut
//!    (again after a crash)                                    <name>.backfill-<schema>.<table>         └ CutBackfill
//!   stream ──────────── goes on, also for this table: <name>.<schema>.<table> ─────────────────────────────────>
//! ```
//!
//! **Why the rows have a topic of their own.** They are the table as it was at P, and by the time they are written the
//! stream may be hours beyond it. In the table's own topic such a row could follow a newer value of its key, or bring a
//! deleted row back; leaving out the keys that have changed since would leave unchanged TOAST values with nothing to
//! complete them. Making the stream wait until a large table is copied would make the server keep the WAL. So the
//! table's topic stays what it is, each change once and in order, and whoever needs the rows reads them beside it and
//! puts them in their place by position: what commits before P is in the copy, what commits later is not.
//!
//! **Why nothing is lost, doubled or kept too long.** Rows stand at P - 1 with ordinals from 1, below every change after
//! P and above all before (the argument of the first copy, in the module above). The ends of the log partitions are noted
//! before P is taken, with nothing in the batch: changes after P lie at those offsets or later. When the last row is
//! durable, the state says that the copy is whole, and the next cut tells it ([`CutBackfill`]) in the same append that
//! takes it out of the state. Merging then takes the copy's rows *instead of* the day before, with the changes
//! after P: a row which was deleted in between is in neither. A cut before that moment knows nothing of the copy, and
//! its day is made from the day before as ever, so no cut waits.
//!
//! **Why a crash leaves nothing wrong.** What was asked for is in the log's state before it is answered. A copy which
//! did not become whole is begun again at a later point; its rows stay in its topic below the offset from which the next
//! one counts, and no cut names them.
//!
//! **Why the shape fits.** The lock keeps the table as it is until the last row is read. Rows are encoded only once the
//! stream has passed a mark left after the lock, so that nothing older is described afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::change::{BACKFILL_PARTITION, CutBackfill, Ds, LogEnd, Lsn, Position};
use crate::envelope::routing;
use crate::ops::{Ops, TableStats};
use crate::runtime::{Class, Error, Result};

use super::super::CaptureSettings;
use super::super::appender::Appender;
use super::super::publication::Standing;
use super::super::registrar::Registrar;
use super::super::state::{BackfillState, TableCount};
use super::super::tables::{Table, Tables};
use super::super::told::{Grown, Told};
use super::super::{ends_by_topic, write_schema_change};
use super::copying::{Copying, Encoded, Ordinals, begin_anew};
use super::event::{CopyEvent, Go, Ready, ToCopy};
use super::needed::{show, show_trouble};
use super::point::before;
use super::progress::{Began, CopyProgress};
use super::range::Range;
use super::round::Round;

/// A copy that is held up is shown as such.
pub(super) fn show_pause(ops: &Ops, state: &BackfillState) {
    if state.paused {
        ops.table(&state.table).backfill_paused();
    }
}

/// A copy that failed goes on after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What a session knows of copies that were asked for.
pub struct Backfills {
    pub(super) settings: CaptureSettings,
    pub(super) ops: Ops,
    dead_letters: Arc<str>,
    /// By topic of the table.
    pub(super) states: BTreeMap<Arc<str>, BackfillState>,
    /// By topic, the last copy that a cut has told of, and the cut's day.
    told: BTreeMap<Arc<str>, (Ds, CutBackfill)>,
    /// [`Table::total`] up to which counts of copies go; zero when it is not here.
    counted: BTreeMap<Arc<str>, TableCount>,
    running: Option<Running>,
    /// Not before this is the next round begun.
    again_at: Instant,
    /// Nor, with a table that failed, before this.
    held_off: BTreeMap<Arc<str>, Instant>,
    /// Of the first copy, whose rows go to the tables' own topics.
    first: Option<First>,
}

/// The rows of a first copy.
struct First {
    /// Of the rows of all tables.
    ordinals: Ordinals,
    /// The last that was written.
    last: u64,
}

/// A copy that is whole.
pub struct Whole {
    /// Of the table.
    pub topic: Arc<str>,
    /// What the table was.
    pub standing: Standing,
    /// Its first point.
    pub point: Lsn,
    /// To be told once that is durable.
    pub watch: Arc<TableStats>,
}

/// A round on its way.
#[derive(Debug)]
struct Running {
    round: Round,
    /// Tables of it, by topic; with what writes their rows, once they may come.
    tables: BTreeMap<Arc<str>, Option<Copying>>,
    /// It begins once the stream has passed there.
    near: Option<(Lsn, oneshot::Sender<()>)>,
    /// Locked; the stream has not come as far yet.
    waiting: Vec<Ready>,
    /// All their rows were handed to the appender.
    read: Vec<Arc<str>>,
    /// Rows being encoded.
    coming: Option<(Arc<str>, oneshot::Receiver<Box<Encoded>>)>,
    /// Nothing more is told.
    ended: bool,
}

impl Running {
    fn new(settings: &CaptureSettings, to_copy: Vec<ToCopy>, waits: bool) -> Result<Self> {
        let tables = to_copy.iter().map(|table| (Arc::clone(&table.topic), None)).collect();
        let round = Round::begin(settings, to_copy, waits)?;
        Ok(Self {
            round,
            tables,
            near: None,
            waiting: Vec::new(),
            read: Vec::new(),
            coming: None,
            ended: false,
        })
    }
}

impl Running {
    /// What is told next. Cancel-safe.
    async fn event(&mut self) -> CopyEvent {
        loop {
            if let Some((topic, rows)) = &mut self.coming {
                let (topic, rows) = (Arc::clone(topic), rows.await);
                self.coming = None;
                // A reader that fails before they are there tells why.
                if let Ok(rows) = rows {
                    return CopyEvent::Rows(topic, rows);
                }
            }
            match self.round.events.recv().await {
                Some(CopyEvent::Coming(topic, rows)) => self.coming = Some((topic, rows)),
                Some(event) => return event,
                None => return CopyEvent::End(Some(Error::retry("the task that copies tables died"))),
            }
        }
    }
}

impl Backfills {
    /// Goes on from the state that a fence found: what was asked for is asked for.
    pub fn new(
        settings: &CaptureSettings,
        states: BTreeMap<String, BackfillState>,
        tables: &mut Tables,
        ops: &Ops,
    ) -> Self {
        ops.copies().ended();
        let mut states: BTreeMap<Arc<str>, BackfillState> =
            states.into_iter().map(|(topic, state)| (Arc::from(topic), state)).collect();
        // Rows that were read on a former timeline may never have been on this one.
        let is_former = |progress: &mut CopyProgress| {
            let positions =
                progress.began.as_ref().map(|began| began.position).into_iter().chain(progress.last);
            let origin = settings.origin.as_ref().map(|origin| origin.timeline);
            origin.is_some_and(|now| positions.into_iter().any(|position| position.timeline != now))
        };
        for state in states.values_mut() {
            state.progress.take_if(is_former);
        }
        for (topic, state) in &states {
            show(ops, state);
            if state.wanted {
                let watch = ops.table(&state.table);
                let progress = state.progress.as_ref();
                watch.backfill_waits(progress.map_or(0, |p| p.read), progress.map_or(0, |p| p.bytes));
            }
            show_pause(ops, state);
            if state.progress.is_some() {
                tables.watch_moves(topic);
            }
        }
        Self {
            settings: settings.clone(),
            ops: ops.clone(),
            dead_letters: routing::dead_letters_topic(&settings.name).into(),
            states,
            // What the first copy has counted in this process is in the states.
            told: BTreeMap::new(),
            counted: tables.iter().map(|table| (Arc::clone(&table.topic), table.total)).collect(),
            running: None,
            again_at: Instant::now(),
            held_off: BTreeMap::new(),
            first: None,
        }
    }

    /// Begins the first copy of these tables: rows go to the tables' own topics, where nothing else comes until the round
    /// is over.
    pub fn first(
        settings: &CaptureSettings,
        states: BTreeMap<String, BackfillState>,
        tables: &mut Tables,
        ops: &Ops,
    ) -> Result<Self> {
        let mut backfills = Self::new(settings, BTreeMap::new(), tables, ops);
        backfills.states = states.into_iter().map(|(topic, state)| (Arc::from(topic), state)).collect();
        let to_copy = backfills.states.iter().map(|(topic, state)| ToCopy {
            topic: Arc::clone(topic),
            name: state.table.clone(),
            resume: None,
        });
        backfills.running = Some(Running::new(settings, to_copy.collect(), false)?);
        backfills.first = Some(First { ordinals: Ordinals::after(0), last: 0 });
        Ok(backfills)
    }

    /// Rows of the first copy so far.
    pub fn rows(&self) -> u64 {
        self.first.as_ref().map_or(0, |first| first.last)
    }

    /// What goes on as later copies.
    pub fn into_states(self) -> BTreeMap<String, BackfillState> {
        let states = self.states.into_iter().filter(|(_, state)| !state.is_over());
        states.map(|(topic, state)| (topic.to_string(), state)).collect()
    }

    /// Begins the next round. The batch must be empty, and everything before it durable: the ends of the log are taken
    /// down. Sets state with the next append.
    pub async fn begin(&mut self, tables: &mut Tables, appender: &mut Appender) -> Result<()> {
        let due: Vec<Arc<str>> = self.due().cloned().collect();
        if due.is_empty() || self.running.is_some() {
            return Ok(());
        }
        let mut ends = ends_by_topic(appender.log().as_ref()).await?;
        let mut to_copy = Vec::new();
        for topic in &due {
            let total = tables.of_topic(topic).map_or_else(TableCount::default, |table| table.total);
            // What is whole, and in no cut yet, counts from before.
            self.count(topic, total);
            let Some(state) = self.states.get_mut(topic) else { continue };
            let name = state.table.clone();
            if state.progress.is_none() {
                let mut from = ends.remove(&**topic).unwrap_or_default();
                let rows_topic = routing::backfill_topic(&self.settings.name, &name);
                from.push(LogEnd { partition: BACKFILL_PARTITION, end: end_of(ends.get(&*rows_topic)) });
                state.progress = Some(CopyProgress::new(from));
                self.counted.insert(Arc::clone(topic), total);
                tables.watch_moves(topic);
                appender.set(state.entry(topic));
                if let Some(known) = tables.by_name(&name) {
                    known.watch.backfill_waits(0, 0);
                }
            }
            let resume = state.progress.clone();
            let goes_on = resume.as_ref().is_some_and(|progress| progress.began.is_some());
            tracing::info!(table = %name, goes_on, "a copy of the table begins");
            to_copy.push(ToCopy { topic: Arc::clone(topic), name, resume });
        }
        tracing::info!(
            tables = to_copy.len(),
            "waiting for the transactions that are open now to end: a round of copies begins after them"
        );
        self.running = Some(Running::new(&self.settings, to_copy, true)?);
        Ok(())
    }

    /// Whether [`Backfills::begin`] has something to begin. A round that goes on is told to make room for tables that are
    /// not in it.
    pub fn is_due(&self) -> bool {
        let Some(running) = &self.running else {
            return Instant::now() >= self.again_at && self.due().next().is_some();
        };
        if self.due().any(|topic| !running.tables.contains_key(topic)) {
            running.round.end_early();
        }
        false
    }

    /// Tables that wait for a round.
    fn due(&self) -> impl Iterator<Item = &Arc<str>> {
        let now = Instant::now();
        let goes_on = |state: &BackfillState| state.wanted && !state.paused;
        let wanted = self.states.iter().filter(move |(_, state)| goes_on(state)).map(|(topic, _)| topic);
        wanted.filter(move |topic| self.held_off.get(*topic).is_none_or(|until| *until <= now))
    }

    /// Nothing that was read of a table's copy counts; sets state only with what the caller sets.
    pub(super) fn leave(&mut self, topic: &Arc<str>) {
        if let Some(state) = self.states.get_mut(topic) {
            state.progress = None;
        }
        self.leave_out(topic);
    }

    /// The round goes on without a table.
    pub(super) fn leave_out(&mut self, topic: &Arc<str>) {
        let Some(running) = &mut self.running else { return };
        running.tables.remove(topic);
        running.waiting.retain(|ready| ready.topic != *topic);
        running.read.retain(|read| read != topic);
        running.round.leave_out(topic);
        // One that has ended stays only for what it has read, and tells nothing more.
        self.running.take_if(|running| running.ended && running.read.is_empty());
    }

    /// Whether a table is in the round that goes on, and its point not known yet.
    pub(super) fn may_have_a_point(&self, topic: &Arc<str>) -> bool {
        self.running.as_ref().is_some_and(|running| matches!(running.tables.get(topic), Some(None)))
    }

    /// What the readers tell next; for ever when none runs. Cancel-safe.
    pub async fn event(&mut self) -> CopyEvent {
        match &mut self.running {
            Some(running) if !running.ended => running.event().await,
            _ => std::future::pending().await,
        }
    }

    /// Takes what a reader told.
    pub fn take(&mut self, event: CopyEvent, tables: &mut Tables, appender: &mut Appender) {
        let Some(running) = &mut self.running else { return };
        match event {
            CopyEvent::Near { pass, go } => running.near = Some((pass, go)),
            CopyEvent::Point { .. } => self.ops.copies().began(self.settings.copy.connections),
            CopyEvent::Ready(ready) if running.tables.contains_key(&ready.topic) => {
                running.waiting.push(*ready);
            }
            // Of rows that are coming only the rows themselves are given out.
            CopyEvent::Ready(_) | CopyEvent::Coming(..) => {}
            CopyEvent::Rows(topic, rows) => self.write(&topic, *rows, tables, appender),
            CopyEvent::Read(topic, left) => self.read(&topic, left, appender),
            CopyEvent::Late(topic) => self.late(&topic, appender),
            CopyEvent::Gone(topic) => self.gone(&topic, tables, appender),
            CopyEvent::Failed(topic, error) => self.failed(&topic, &error, tables, appender),
            CopyEvent::End(error) => self.end(error, appender),
        }
    }

    /// Nothing more is told of the round.
    fn end(&mut self, error: Option<Error>, appender: &mut Appender) {
        self.submitting_rows(appender);
        let Some(running) = &mut self.running else { return };
        let again_at = Instant::now() + AGAIN_AFTER;
        if let Some(error) = error {
            tracing::warn!(%error, "the copies were interrupted: they go on in {AGAIN_AFTER:?}");
            for state in running.tables.keys().filter_map(|topic| self.states.get(topic)) {
                show_trouble(&self.ops, state, &error);
            }
            self.again_at = again_at;
        } else {
            // What could not be opened may be so the next time as well.
            let unopened = running.tables.iter().filter(|(_, copying)| copying.is_none());
            self.held_off.extend(unopened.map(|(topic, _)| (Arc::clone(topic), again_at)));
        }
        running.tables.retain(|topic, _| running.read.contains(topic));
        running.waiting.clear();
        running.ended = true;
        self.ops.copies().ended();
        self.running.take_if(|running| running.read.is_empty());
    }

    fn write(&mut self, topic: &Arc<str>, rows: Encoded, tables: &mut Tables, appender: &mut Appender) {
        let copying = self.running.as_mut().and_then(|running| running.tables.get_mut(topic)?.as_mut());
        let progress = self.states.get_mut(topic).and_then(|state| state.progress.as_mut());
        let (Some(copying), Some(progress)) = (copying, progress) else { return };
        let (records, dead_letters) = (rows.records.count(), rows.dead_letters.count());
        progress.read += rows.rows;
        progress.bytes += rows.bytes;
        copying.touched = true;
        let table = tables.by_name(&copying.schema.name);
        if let Some(first) = &mut self.first {
            first.last = rows.last;
        } else {
            progress.rows += u64::from(records);
            progress.dead_letters += u64::from(dead_letters);
        }
        if let Some(table) = table {
            if self.first.is_some() {
                table.counted(records, copying.at(rows.last), copying.commit_us);
                table.dead_lettered(dead_letters);
            }
            table.watch.backfilled(rows.rows, rows.bytes);
        }
        for records in [rows.records, rows.dead_letters] {
            appender.take_in(records);
        }
    }

    /// A piece was read: the state says so with the append of its last rows, or a later one.
    fn read(&mut self, topic: &Arc<str>, left: Vec<Range>, appender: &mut Appender) {
        let Some(running) = &mut self.running else { return };
        let Some(Some(_)) = running.tables.get(topic) else { return };
        let Some(state) = self.states.get_mut(topic) else { return };
        let Some(progress) = &mut state.progress else { return };
        progress.left = left;
        if progress.left.is_empty() {
            running.read.push(Arc::clone(topic));
        }
        appender.set(state.entry(topic));
    }

    /// A piece took too long: smaller ones will not.
    fn late(&mut self, topic: &Arc<str>, appender: &mut Appender) {
        let Some(state) = self.states.get_mut(topic) else { return };
        let Some(progress) = &mut state.progress else { return };
        progress.late += 1;
        tracing::warn!(table = %state.table,
            "a piece of the copy was not read before its snapshot was too old: it is read again, in smaller pieces \
             ([backfill] chunk_bytes, snapshot_age_max_ms)");
        appender.set(state.entry(topic));
    }

    fn gone(&mut self, topic: &Arc<str>, tables: &mut Tables, appender: &mut Appender) {
        self.leave(topic);
        let Some(state) = self.states.get_mut(topic) else { return };
        let table = state.table.clone();
        tracing::error!(%table, "the table is not in the publication any more: it is not copied again");
        // One that days lack is told as absent by the next sight; one that was never in a day lacks nothing.
        (state.wanted, state.paused) = (false, false);
        state.lacking.take_if(|_| tables.by_name(&table).is_none());
        appender.set(state.entry(topic));
        show(&self.ops, state);
        if let Some(known) = tables.by_name(&table) {
            known.watch.backfill_ended();
        }
    }

    fn failed(&mut self, topic: &Arc<str>, error: &Error, tables: &mut Tables, appender: &mut Appender) {
        // Rows that were read of it may be in the batch, and count.
        self.submitting_rows(appender);
        self.leave_out(topic);
        self.held_off.insert(Arc::clone(topic), Instant::now() + AGAIN_AFTER);
        let Some(state) = self.states.get(topic) else { return };
        tracing::warn!(table = %state.table, %error, "the copy was interrupted: it goes on in {AGAIN_AFTER:?}");
        // What passes is not a failure of the table.
        if let Some(known) = tables.by_name(&state.table).filter(|_| error.class() != Class::Retry) {
            known.watch.failed(error);
        }
        show_trouble(&self.ops, state, error);
    }

    /// A table that waits for the stream to pass its mark, if it has come to `flush_lsn` now. Lets a round begin that waits
    /// for the stream.
    pub fn passed(&mut self, flush_lsn: Lsn) -> Option<Ready> {
        let running = self.running.as_mut()?;
        if let Some((_, go)) = running.near.take_if(|(pass, _)| *pass <= flush_lsn) {
            // A round that has ended tells so itself.
            let _ = go.send(());
        }
        let waiting = &mut running.waiting;
        let at = waiting.iter().position(|ready| ready.pass <= flush_lsn)?;
        Some(waiting.remove(at))
    }

    /// Partitions that a table to be read has beside those with which its copy began.
    pub fn joined(&self, ready: &Ready) -> Vec<u32> {
        let progress = self.states.get(&ready.topic).and_then(|state| state.progress.as_ref());
        let began = progress.and_then(|progress| progress.began.as_ref()).filter(|_| !ready.begins);
        began.map(|began| ready.standing.parts_beyond(&began.standing)).unwrap_or_default()
    }

    /// Makes ready to write the rows: the table's shape is taken in as it is under the lock. Sets state with the next
    /// append.
    pub async fn describe(
        &mut self,
        ready: Ready,
        progress: Position,
        tables: &mut Tables,
        appender: &mut Appender,
        registrar: &Registrar,
    ) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let Ready { topic, lsn, timeline, commit_us, schema, begins, rows_estimated, go, .. } = ready;
        let Some(state) = self.states.get_mut(&topic) else { return Ok(()) };
        let Some(done) = &mut state.progress else { return Ok(()) };
        let name = state.table.clone();
        if let Err(error) = tables.own_topic(&name) {
            // It would be refused again.
            tables.isolate(&name, &error);
            (state.wanted, state.lacking, state.progress) = (false, None, None);
            appender.set(state.entry(&topic));
            return Ok(());
        }
        let columns: Vec<String> = schema.columns.iter().map(|column| column.name.clone()).collect();
        let grown = tables.evolve(schema, progress, Told::default())?;
        registrar.register(tables, &name).await?;
        let mut recreated = false;
        if let Some(Grown { change, .. }) = grown {
            write_schema_change(appender, &self.settings.name, &change);
            recreated = change.before.is_some_and(|before| before.oid != change.after.oid);
        }
        let unknown = || Error::operator(format!("table {name} was not taken in before its copy"));
        let encoder = tables.encoder_of(&name, &columns).ok_or_else(unknown)?;
        let moved = tables.take_moves(&topic);
        let table = tables.by_name(&name).ok_or_else(unknown)?;
        let position = before(timeline, lsn, 0);
        done.moved.add(moved);
        // A piece that was not read to its end never counted.
        let counted =
            done.began.is_some() && !matches!(done.left.as_slice(), [Range::ALL_PAGES | Range::ALL_KEYS]);
        done.left = ready.left;
        let mut keys = Vec::new();
        if begins {
            if counted {
                tracing::warn!(table = %name, rows_read = done.read,
                    "the copy begins anew, since what was read before does not count any more: the table was truncated or \
                     rewritten, has lost a partition, has another key or condition, or too many of its rows moved");
            }
            let (standing, storage) = (ready.standing, ready.storage);
            let (condition, key, schema_version) = (ready.condition, ready.key, table.schema.version);
            done.began = Some(Began { position, schema_version, standing, storage, condition, key });
            done.moved.begin_at(lsn);
            done.last = None;
        } else {
            // Without them the copy would have a hole: the next round begins anew.
            let Some(moved) = done.moved.take(lsn) else { return Ok(()) };
            keys = moved;
            done.last = Some(position);
            done.left.extend((!keys.is_empty()).then(|| Range::Rows { keys: keys.clone() }));
        }
        table.watch.backfill_goes_on(rows_estimated, done.read, done.bytes);
        tracing::info!(table = %name, at = %lsn, begins, "copying");
        if recreated {
            begin_anew(table, position, commit_us, appender, &self.dead_letters);
        }
        let rows_topic = match self.first {
            Some(_) => Arc::clone(&topic),
            None => routing::backfill_topic(&self.settings.name, &name).into(),
        };
        let copying = Copying::new(position, commit_us, table.schema.clone());
        let ordinals = match &self.first {
            Some(first) => first.ordinals.clone(),
            None => Ordinals::after(done.read),
        };
        let (dead_letters, log) = (Arc::clone(&self.dead_letters), Arc::clone(appender.log()));
        let encoder = copying.rows(columns.len(), encoder, rows_topic, dead_letters, log, ordinals);
        appender.set(state.entry(&topic));
        running.tables.insert(topic, Some(copying));
        // The reader may have gone, which its next event tells.
        let _ = go.send(Go { keys, encoder });
        Ok(())
    }

    /// Whether all rows of copies were handed to the appender: once they are durable they can be
    /// [`Backfills::finish`]ed.
    pub fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.read.is_empty())
    }

    /// Copies are whole. Everything appended must be durable; sets state with the next append, and only after that it
    /// may be told that the copies of the tables have ended.
    pub async fn finish(&mut self, tables: &mut Tables, appender: &mut Appender) -> Result<Vec<Whole>> {
        let Some(running) = &mut self.running else { return Ok(Vec::new()) };
        let read = std::mem::take(&mut running.read);
        for topic in &read {
            running.tables.remove(topic);
        }
        self.running.take_if(|running| running.ended);
        let mut whole = Vec::new();
        let ends = ends_by_topic(appender.log().as_ref()).await?;
        for topic in read {
            let Some(table) = tables.of_topic(&topic) else { continue };
            let watch = Arc::clone(&table.watch);
            self.count(&topic, table.total);
            let Some(state) = self.states.get(&topic) else { continue };
            let Some(progress) = &state.progress else { continue };
            let Some(began) = &progress.began else { continue };
            let (name, standing) = (state.table.clone(), began.standing.clone());
            let point = Lsn(began.position.commit_lsn.0 + 1);
            if self.first.is_some() {
                // Its rows are where its changes will be: no cut need tell of them.
                let over = BackfillState::new(name);
                appender.set(over.entry(&topic));
                self.states.remove(&topic);
                tables.forget_moves(&topic);
                whole.push(Whole { topic, standing, point, watch });
                continue;
            }
            let rows_topic = routing::backfill_topic(&self.settings.name, &name);
            let done = CutBackfill {
                position: began.position,
                last: progress.last,
                schema_version: began.schema_version,
                from: progress.from.clone(),
                end: end_of(ends.get(&*rows_topic)),
                rows: progress.rows,
                changes: progress.changes,
                dead_letters: progress.dead_letters,
            };
            tracing::info!(table = %name, rows = done.rows, at = %done.position, "copied: the next cut takes it");
            let state = BackfillState { done: Some(done), ..BackfillState::new(name) };
            appender.set(state.entry(&topic));
            self.states.insert(Arc::clone(&topic), state);
            tables.forget_moves(&topic);
            whole.push(Whole { topic, standing, point, watch });
        }
        Ok(whole)
    }

    /// Brings the counts of copies up to those of a table.
    fn count(&mut self, topic: &Arc<str>, total: TableCount) -> bool {
        let Some(state) = self.states.get_mut(topic) else { return false };
        if state.done.is_none() && state.progress.is_none() {
            return false;
        }
        let since = since(total, self.counted.insert(Arc::clone(topic), total).unwrap_or_default());
        if let Some(done) = &mut state.done {
            done.changes += since.changes;
            done.dead_letters += since.dead_letters;
        }
        if let Some(progress) = &mut state.progress {
            progress.changes += since.changes;
            progress.dead_letters += since.dead_letters;
        }
        true
    }

    /// Puts into the next append what has become of a table's copy with what is in it.
    pub fn submitting(&mut self, table: &mut Table, appender: &mut Appender) {
        if !self.count(&table.topic, table.total) {
            return;
        }
        let Some(state) = self.states.get_mut(&table.topic) else { return };
        if let (Some(progress), Some(moves)) = (&mut state.progress, &mut table.moves) {
            progress.moved.add(std::mem::take(moves));
        }
        appender.set(state.entry(&table.topic));
    }

    /// The same for tables of which rows were copied.
    pub fn submitting_rows(&mut self, appender: &mut Appender) {
        let Some(running) = &mut self.running else { return };
        for (topic, copying) in &mut running.tables {
            let touched = copying.as_mut().is_some_and(|copying| std::mem::take(&mut copying.touched));
            if let Some(state) = self.states.get(topic).filter(|_| touched) {
                appender.set(state.entry(topic));
            }
        }
    }

    /// The copy of a table that a cut has to tell. Counts must have been brought up to date.
    pub fn told_by_cut(&self, topic: &str) -> Option<&CutBackfill> {
        self.states.get(topic)?.done.as_ref()
    }

    /// The table's last copy that is whole, unless the cut of `known`, or one before it, has told of it.
    pub(super) fn copied_since(&self, topic: &str, known: Option<Ds>) -> Option<&CutBackfill> {
        let told = self.told.get(topic).filter(|(ds, _)| Some(*ds) > known).map(|(_, copy)| copy);
        self.told_by_cut(topic).or(told)
    }

    /// A day's cut tells of every copy that is whole: with its append they leave the state.
    pub fn cut(&mut self, ds: Ds, appender: &mut Appender) {
        for (topic, state) in &mut self.states {
            if let Some(done) = state.done.take() {
                self.told.insert(Arc::clone(topic), (ds, done));
                appender.set(state.entry(topic));
            }
        }
        self.states.retain(|_, state| !state.is_over());
    }
}

fn end_of(ends: Option<&Vec<LogEnd>>) -> u64 {
    ends.and_then(|ends| ends.first().map(|end| end.end)).unwrap_or(0)
}

fn since(now: TableCount, before: TableCount) -> TableCount {
    TableCount {
        changes: now.changes - before.changes,
        dead_letters: now.dead_letters - before.dead_letters,
        transaction: None,
    }
}
