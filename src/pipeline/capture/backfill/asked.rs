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

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::change::{BACKFILL_PARTITION, CutBackfill, LogEnd, Lsn, Position, TableName};
use crate::config::TableGlob;
use crate::envelope::routing;
use crate::ops::{Accepted, BackfillOf, Ops, TableStats};
use crate::postgres::catalog;
use crate::postgres::wire::Client;
use crate::runtime::{Class, Error, Result};

use super::super::CaptureSettings;
use super::super::appender::Appender;
use super::super::publication::Standing;
use super::super::registrar::Registrar;
use super::super::state::{BackfillState, TableCount};
use super::super::tables::{Table, Tables};
use super::super::told::{Grown, Told};
use super::super::{ends_by_topic, write_schema_change};
use super::copying::{Copying, begin_anew};
use super::needed::{show, show_trouble};
use super::point::before;
use super::reader::{self, CopyEvent, Ready, Rows};

/// A copy that failed is begun again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Pieces of rows between the reader and the session.
const PIECES: usize = 2;

/// What a session knows of copies that were asked for.
pub struct Backfills {
    pub(super) settings: CaptureSettings,
    pub(super) ops: Ops,
    dead_letters: Arc<str>,
    /// By topic of the table.
    pub(super) states: BTreeMap<Arc<str>, BackfillState>,
    /// [`Table::total`] up to which a whole copy's own counts go; zero when it is not here.
    counted: BTreeMap<Arc<str>, TableCount>,
    pub(super) running: Option<Running>,
    /// Not before this is the next one begun, and with a topic behind that of the one that failed, if there is one.
    again_at: Instant,
    failed: Option<Arc<str>>,
}

/// A copy that is whole.
pub struct Whole {
    /// Of the table.
    pub topic: Arc<str>,
    /// What the table was.
    pub standing: Option<Standing>,
    /// To be told once that is durable.
    pub watch: Arc<TableStats>,
}

/// A copy on its way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) topic: Arc<str>,
    table: TableName,
    rows_topic: Arc<str>,
    /// Ends when it began, and the table's changes then.
    from: Vec<LogEnd>,
    total: TableCount,
    events: mpsc::Receiver<CopyEvent>,
    reader: AbortHandle,
    /// The consistent point, once it is taken.
    pub(super) point: Option<Lsn>,
    /// What the table was there.
    standing: Option<Standing>,
    /// Locked; the stream has not come as far yet.
    ready: Option<Ready>,
    /// Its rows are being written.
    copying: Option<Copying>,
    /// All were.
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Backfills {
    /// Goes on from the state that a fence found: what was asked for is asked for.
    pub fn new(settings: &CaptureSettings, states: BTreeMap<String, BackfillState>, ops: &Ops) -> Self {
        let states: BTreeMap<Arc<str>, BackfillState> =
            states.into_iter().map(|(topic, state)| (Arc::from(topic), state)).collect();
        for state in states.values() {
            show(ops, state);
        }
        Self {
            settings: settings.clone(),
            ops: ops.clone(),
            dead_letters: routing::dead_letters_topic(&settings.name).into(),
            states,
            counted: BTreeMap::new(),
            running: None,
            again_at: Instant::now(),
            failed: None,
        }
    }

    /// Takes a request in: sets state with the next append, after which it may be answered. Errors name every table
    /// that cannot be copied, and then nothing is asked for.
    pub async fn ask(
        &mut self,
        of: &BackfillOf,
        sql: &mut Client,
        tables: &mut Tables,
        appender: &mut Appender,
    ) -> Result<Accepted> {
        let mut accepted = Accepted::default();
        for table in self.chosen(of, sql, tables).await? {
            let topic: Arc<str> = routing::topic_name(&self.settings.name, &table).into();
            let after = of.after();
            let running = self.running.as_ref().filter(|running| running.topic == topic);
            let covered = |from: &[LogEnd]| after.iter().all(|lost| covers(from, *lost));
            let done = self.states.get(&topic).and_then(|state| state.done.as_ref());
            let known = self.states.get(&topic).is_some_and(|state| state.wanted)
                && running.is_none_or(|running| covered(&running.from));
            // Delivery does not know yet of a copy that no cut has told.
            let by_delivery = matches!(of, BackfillOf::Table { .. });
            if known || (by_delivery && done.is_some_and(|done| covered(&done.from))) {
                accepted.already.push(table);
                continue;
            }
            if running.is_some() {
                // Its changes begin among what is lost.
                self.running = None;
            }
            let state =
                self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
            state.wanted = true;
            appender.set(state.entry(&topic));
            tracing::info!(%table, "a new copy of the table is asked for");
            if let Some(known) = tables.by_name(&table) {
                known.watch.backfill_began(0);
            }
            accepted.asked.push(table);
        }
        Ok(accepted)
    }

    /// The tables that are meant.
    async fn chosen(&self, of: &BackfillOf, sql: &mut Client, tables: &Tables) -> Result<Vec<TableName>> {
        let published = catalog::published_tables(sql, &self.settings.publication).await?;
        let mut published: Vec<TableName> = published.into_iter().map(|(_, name)| name).collect();
        published.retain(|name| tables.wants(name));
        let mut chosen = Vec::new();
        let mut problems = Vec::new();
        match of {
            BackfillOf::Table { table, .. } if published.contains(table) => chosen.push(table.clone()),
            BackfillOf::Table { table, .. } => {
                problems.push(self.why_not(&table.to_string(), sql, tables).await?);
            }
            BackfillOf::Matching(patterns) => {
                for pattern in patterns {
                    let glob = TableGlob::parse(pattern)
                        .map_err(|expected| Error::usage(format!("{pattern:?}: expected {expected}")))?;
                    let found: Vec<_> =
                        published.iter().filter(|name| glob.is_match(name)).cloned().collect();
                    if found.is_empty() {
                        problems.push(self.why_not(pattern, sql, tables).await?);
                    }
                    chosen.extend(found);
                }
            }
        }
        chosen.sort();
        chosen.dedup();
        chosen.iter().try_for_each(|table| tables.own_topic(table).map(drop))?;
        if problems.is_empty() {
            return Ok(chosen);
        }
        Err(Error::operator(problems.join("; ")).mend(
            "Nothing was asked for. `tidemark status` lists the tables; one that is to be captured has to be in the \
             publication and among [source] tables.",
        ))
    }

    async fn why_not(&self, pattern: &str, sql: &mut Client, tables: &Tables) -> Result<String> {
        let rows = sql
            .query(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p')",
            )
            .await?;
        let exists = |glob: &TableGlob| {
            let name = |row: &crate::postgres::wire::Row| {
                TableName::new(row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default())
            };
            rows.iter().map(name).find(|name| glob.is_match(name))
        };
        let (publication, database) = (&self.settings.publication, &self.settings.connect.database);
        Ok(match TableGlob::parse(pattern).ok().and_then(|glob| exists(&glob)) {
            None => format!("no table {pattern} in database {database}"),
            Some(table) if !tables.wants(&table) => {
                format!("table {table} is left out by [source] tables, exclude or a [[table]]")
            }
            Some(table) => format!("table {table} is not in the publication {publication}"),
        })
    }

    /// Begins the next copy if one is wanted and none is on its way. The batch must be empty, and everything before it
    /// durable: the ends of the log are taken down.
    pub async fn begin(&mut self, tables: &mut Tables, appender: &Appender) -> Result<()> {
        let Some((topic, table)) = self.next() else { return Ok(()) };
        let mut ends = ends_by_topic(appender.log().as_ref()).await?;
        let rows_topic: Arc<str> = routing::backfill_topic(&self.settings.name, &table).into();
        let mut from = ends.remove(&*topic).unwrap_or_default();
        from.push(LogEnd { partition: BACKFILL_PARTITION, end: end_of(ends.remove(&*rows_topic)) });
        let mut total = TableCount::default();
        if let Some(known) = tables.by_name(&table) {
            known.watch.backfill_began(0);
            total = known.total;
        }
        let (sender, events) = mpsc::channel(PIECES);
        let reader = tokio::spawn(reader::read(self.settings.clone(), table.clone(), sender)).abort_handle();
        tracing::info!(%table, "a new copy begins: waiting for the transactions that are open now to end");
        self.running = Some(Running {
            topic,
            table,
            rows_topic,
            from,
            total,
            events,
            reader,
            point: None,
            standing: None,
            ready: None,
            copying: None,
            ended: false,
        });
        Ok(())
    }

    /// Whether [`Backfills::begin`] has something to begin.
    pub fn is_due(&self) -> bool {
        self.next().is_some()
    }

    fn next(&self) -> Option<(Arc<str>, TableName)> {
        if self.running.is_some() || Instant::now() < self.again_at {
            return None;
        }
        let mut wanted = self.states.iter().filter(|(_, state)| state.wanted);
        let behind =
            wanted.clone().find(|(topic, _)| self.failed.as_ref().is_some_and(|failed| *topic > failed));
        let (topic, state) = behind.or_else(|| wanted.next())?;
        Some((Arc::clone(topic), state.table.clone()))
    }

    /// What the reader tells next; for ever when none runs, or the stream has to come further first. Cancel-safe.
    pub async fn event(&mut self) -> CopyEvent {
        match &mut self.running {
            Some(running) if running.ready.is_none() && !running.ended => running
                .events
                .recv()
                .await
                .unwrap_or_else(|| CopyEvent::Failed(Error::retry("the task that copies a table died"))),
            _ => std::future::pending().await,
        }
    }

    /// Takes what the reader told.
    pub fn take(&mut self, event: CopyEvent, tables: &mut Tables, appender: &mut Appender) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match event {
            CopyEvent::Ready(ready) => {
                running.point = Some(ready.lsn);
                running.ready = Some(*ready);
            }
            CopyEvent::Rows(rows) => running.write(&rows, tables, appender, &self.dead_letters)?,
            CopyEvent::End => running.ended = true,
            CopyEvent::Gone => {
                let (topic, table) = (Arc::clone(&running.topic), running.table.clone());
                tracing::error!(%table, "the table is not in the publication any more: it is not copied again");
                self.running = None;
                // One that days lack is told as absent by the next sight; one that was never in a day lacks nothing.
                if let Some(state) = self.states.get_mut(&topic) {
                    state.wanted = false;
                    state.lacking.take_if(|_| tables.by_name(&table).is_none());
                    appender.set(state.entry(&topic));
                    show(&self.ops, state);
                }
                if let Some(known) = tables.by_name(&table) {
                    known.watch.backfill_ended();
                }
            }
            CopyEvent::Failed(error) => {
                tracing::warn!(table = %running.table, %error, "the copy was interrupted: it is begun again in {AGAIN_AFTER:?}");
                // What passes is not a failure of the table.
                if let Some(known) = tables.by_name(&running.table).filter(|_| error.class() != Class::Retry)
                {
                    known.watch.failed(&error);
                }
                if let Some(state) = self.states.get(&running.topic) {
                    show_trouble(&self.ops, state, &error);
                }
                self.failed = Some(Arc::clone(&running.topic));
                self.running = None;
                self.again_at = Instant::now() + AGAIN_AFTER;
            }
        }
        Ok(())
    }

    /// The copy that waits for the stream to pass its mark, if it has come to `flush_lsn` now.
    pub fn passed(&mut self, flush_lsn: Lsn) -> Option<Ready> {
        self.running.as_mut()?.ready.take_if(|ready| ready.pass <= flush_lsn)
    }

    /// Makes ready to write the rows: the table's shape is taken in as it is under the lock.
    pub async fn describe(
        &mut self,
        ready: Ready,
        progress: Position,
        tables: &mut Tables,
        appender: &mut Appender,
        registrar: &Registrar,
    ) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let Ready { lsn, timeline, commit_us, schema, standing, rows_estimated, .. } = ready;
        let name = running.table.clone();
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
        let table = tables.by_name(&name).ok_or_else(unknown)?;
        table.watch.backfill_began(rows_estimated);
        tracing::info!(table = %name, at = %lsn, "copying");
        let position = before(timeline, lsn, 0);
        if recreated {
            begin_anew(table, position, commit_us, appender, &self.dead_letters);
        }
        running.standing = Some(standing);
        running.copying =
            Some(Copying::new(position, commit_us, table.schema.clone(), columns.len(), encoder));
        Ok(())
    }

    /// Whether all rows of a copy were handed to the appender: once they are durable it can be [`Backfills::finish`]ed.
    pub fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ended)
    }

    /// The copy is whole. Everything appended must be durable; sets state with the next append, and only after that it
    /// may be told that the copy of the table has ended.
    pub async fn finish(&mut self, tables: &mut Tables, appender: &mut Appender) -> Result<Option<Whole>> {
        let Some(mut running) = self.running.take_if(|running| running.ended) else { return Ok(None) };
        let Some(copied) = &running.copying else { return Ok(None) };
        let mut ends = ends_by_topic(appender.log().as_ref()).await?;
        let Some(table) = tables.by_name(&running.table) else { return Ok(None) };
        let since = since(table.total, running.total);
        let done = CutBackfill {
            position: copied.position,
            last: None,
            schema_version: copied.schema.version,
            from: running.from.clone(),
            end: end_of(ends.remove(&*running.rows_topic)),
            rows: copied.rows,
            changes: since.changes,
            dead_letters: since.dead_letters + copied.dead_letters,
        };
        let (name, rows) = (&running.table, copied.rows);
        tracing::info!(table = %name, rows, at = %done.position, "copied: the next cut takes it");
        let watch = Arc::clone(&table.watch);
        let topic = Arc::clone(&running.topic);
        self.counted.insert(Arc::clone(&topic), table.total);
        let state = BackfillState { done: Some(done), ..BackfillState::new(name.clone()) };
        appender.set(state.entry(&topic));
        self.states.insert(Arc::clone(&topic), state);
        Ok(Some(Whole { topic, standing: running.standing.take(), watch }))
    }

    /// Brings a whole copy's counts up to those of its table, and puts them into the next append.
    pub fn count(&mut self, table: &Table, appender: &mut Appender) {
        let Some(state) = self.states.get_mut(&table.topic) else { return };
        let Some(done) = &mut state.done else { return };
        let counted = self.counted.entry(Arc::clone(&table.topic)).or_default();
        let since = since(table.total, std::mem::replace(counted, table.total));
        done.changes += since.changes;
        done.dead_letters += since.dead_letters;
        appender.set(state.entry(&table.topic));
    }

    /// The copy of a table that a cut has to tell. Counts must have been brought up to date.
    pub fn told_by_cut(&self, topic: &str) -> Option<&CutBackfill> {
        self.states.get(topic)?.done.as_ref()
    }

    /// A cut tells of every copy that is whole: with its append they leave the state.
    pub fn cut(&mut self, appender: &mut Appender) {
        for (topic, state) in &mut self.states {
            if state.done.take().is_some() {
                appender.set(state.entry(topic));
            }
        }
        self.states.retain(|_, state| !state.is_over());
    }
}

impl Running {
    fn write(
        &mut self,
        rows: &Rows,
        tables: &mut Tables,
        appender: &mut Appender,
        dead_letters: &Arc<str>,
    ) -> Result<()> {
        let Some(copying) = &mut self.copying else { return Ok(()) };
        let (mut bytes, mut count) = (0, 0);
        for row in rows.iter() {
            count += 1;
            bytes += row.len() as u64;
            copying.write(row, &self.rows_topic, appender, dead_letters)?;
        }
        if let Some(table) = tables.by_name(&self.table) {
            table.watch.backfilled(count, bytes);
        }
        Ok(())
    }
}

fn covers(from: &[LogEnd], lost: LogEnd) -> bool {
    from.iter().any(|known| known.partition == lost.partition && known.end >= lost.end)
}

fn end_of(ends: Option<Vec<LogEnd>>) -> u64 {
    ends.and_then(|ends| ends.first().map(|end| end.end)).unwrap_or(0)
}

fn since(now: TableCount, before: TableCount) -> TableCount {
    TableCount {
        changes: now.changes - before.changes,
        dead_letters: now.dead_letters - before.dead_letters,
        transaction: None,
    }
}
