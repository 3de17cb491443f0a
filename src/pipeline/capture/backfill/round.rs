//! A round: many tables read in pieces, by several sessions, under the snapshot of one consistent point.
//!
//! ```text
//!   temporary slot ─ point P, snapshot ─> keeper (a transaction that holds it; the slot goes) ─┬─> reader 1 ─┐
//!        catalog under it: tables, files, sizes ─> pieces, the smallest table first ──> ───────┼─> reader 2 ─┼─> events
//!                                                                                              └─> …        ─┘
//! ```
//!
//! While the stream goes on beside it, a round first waits until the stream has come as far as the server was, since the rows
//! of a table wait for a mark in the stream while the snapshot ages. It is held for `snapshot_age_max` at most: near its end no further piece is begun, at its end those being
//! read are given up, and both go to the next round. Only a table without a key is read to its end, since its rows can be
//! reconciled with nothing but one snapshot of all of them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::asking::Asking;
use super::copying::RowEncoder;
use super::event::{CopyEvent, ToCopy};
use super::point::{self, ConsistentPoint, Facts};
use super::progress::CopyProgress;
use super::range::Range;
use super::rate::Rate;
use super::{CaptureSettings, Wanted, worker};
use crate::change::{Lsn, TableSchema, Timeline};
use crate::postgres::published::{self, Published};
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Error, Result};

/// Pieces of rows between the readers and those who write, at least.
const PIECES_MIN: usize = 4;
/// However slow the source, a piece has about so many bytes.
const PIECE_BYTES_MIN: u64 = 8192;
/// Bytes of a row where nothing is known of them.
const ROW_BYTES: u64 = 8192;

/// A round on its way. Dropped, it ends at once, with its sessions.
#[derive(Debug)]
pub struct Round {
    /// What its readers tell.
    pub events: mpsc::Receiver<CopyEvent>,
    control: Arc<Control>,
    /// Its readers make records of their rows, on as many cores as there are, and hold nobody up who is not one of them.
    runtime: Option<Runtime>,
}

impl Drop for Round {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nobody: whoever drops it may be about to read the stream.
            runtime.shutdown_background();
        }
    }
}

/// What a round is told.
#[derive(Debug, Default)]
struct Control {
    ends: AtomicBool,
    left_out: std::sync::Mutex<BTreeSet<Arc<str>>>,
}

impl Round {
    /// Begins to read, on threads of its own; where it `waits`, once the stream is as far as the server is now.
    pub fn begin(settings: &CaptureSettings, tables: Vec<ToCopy>, waits: bool) -> Result<Self> {
        // Each session may be encoding one.
        let (sender, events) = mpsc::channel(PIECES_MIN.max(settings.copy.connections as usize));
        let control = Arc::new(Control::default());
        let reading = read(settings.clone(), tables, sender, Arc::clone(&control), waits);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(settings.copy.connections as usize).max(1))
            .thread_name("copy")
            .enable_all()
            .build()
            .map_err(|error| Error::operator("cannot start the threads that copy tables").cause(error))?;
        runtime.spawn(reading);
        Ok(Self { events, control, runtime: Some(runtime) })
    }

    /// Begins no further piece of a table that can be gone on with.
    pub fn end_early(&self) {
        self.control.ends.store(true, Ordering::Relaxed);
    }

    /// Begins no further piece of a table: nobody wants what is told of it.
    pub fn leave_out(&self, topic: &Arc<str>) {
        self.control.left_out().insert(Arc::clone(topic));
    }
}

impl Control {
    fn left_out(&self) -> std::sync::MutexGuard<'_, BTreeSet<Arc<str>>> {
        // Nothing is done under the lock that could panic half way.
        self.left_out.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the readers of a round share.
pub struct Shared {
    pub settings: CaptureSettings,
    /// SQL that begins a transaction under the snapshot.
    pub begin: String,
    pub lsn: Lsn,
    pub timeline: Timeline,
    pub commit_us: i64,
    pub works: Vec<Work>,
    /// The stream goes on beside it: tables wait until it has passed a mark.
    pub waits: bool,
    /// For questions outside the snapshot.
    pub asking: Asking,
    pub rate: Rate,
    pub events: mpsc::Sender<CopyEvent>,
    control: Arc<Control>,
    /// From then on no piece is begun, and none is read.
    last_begin: Instant,
    pub end: Instant,
}

/// A table of a round.
#[derive(Debug)]
pub struct Work {
    pub topic: Arc<str>,
    pub wanted: Wanted,
    /// What an earlier round has left, if that still counts.
    pub resume: Option<CopyProgress>,
    /// What to begin with, and by what, once the shape is known.
    toasted: bool,
    pages: u32,
    pages_a_piece: u32,
    /// As far as can be said before.
    pub pieces: u32,
    rows_a_piece: AtomicU64,
    piece_bytes: u64,
    /// Sessions that have it open.
    pub openers: AtomicU32,
    /// No session need open it in this round.
    pub over: AtomicBool,
    /// No further piece of it is to be begun in this round.
    pub stopped: AtomicBool,
    /// Its rows have no key: they are read in one round, or not at all.
    pub at_once: AtomicBool,
    /// As the first session found it.
    pub opened: Mutex<Option<Opened>>,
    pub pending: Mutex<Pending>,
}

/// A table whose rows may come.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its shape under the lock.
    pub schema: TableSchema,
    /// What makes records of its rows.
    pub encoder: RowEncoder,
}

/// What was not told as read.
#[derive(Debug, Default)]
pub struct Pending {
    pub left: VecDeque<Range>,
    in_flight: Vec<Range>,
}

impl Pending {
    /// A piece was read; gives what is left.
    pub fn read(&mut self, piece: &Range) -> Vec<Range> {
        self.in_flight.retain(|other| other != piece);
        self.in_flight.iter().chain(&self.left).cloned().collect()
    }
}

async fn read(
    settings: CaptureSettings,
    tables: Vec<ToCopy>,
    events: mpsc::Sender<CopyEvent>,
    control: Arc<Control>,
    waits: bool,
) {
    let ended = Box::pin(round(settings, tables, &events, control, waits)).await;
    // Whoever asked may have left.
    let _ = events.send(CopyEvent::End(ended.err())).await;
}

async fn round(
    settings: CaptureSettings,
    tables: Vec<ToCopy>,
    events: &mpsc::Sender<CopyEvent>,
    control: Arc<Control>,
    waits: bool,
) -> Result<()> {
    let asking = Asking::new(settings.connect.clone());
    if waits {
        // A snapshot would be too old before the stream has come to the first mark under its lock.
        let pass = asking.leave_mark("").await?;
        let (go, gone) = oneshot::channel();
        // Whoever asked may have left, which the next one who sends is told.
        drop(events.send(CopyEvent::Near { pass, go }).await);
        drop(gone.await);
    }
    let mut keeper = Client::connect(&settings.connect, Session::Sql).await?;
    let mut holder = Client::connect(&settings.connect, Session::Replication).await?;
    let timeline = settings.timeline(&mut holder).await?;
    let point = ConsistentPoint::take(&settings, holder).await?;
    keeper.execute("SET idle_in_transaction_session_timeout = 0").await?;
    point.begin(&mut keeper, &asking).await?;
    let taken = Instant::now();
    let snapshot = keeper.query_one("SELECT pg_catalog.pg_export_snapshot()").await?;
    let lsn = point.lsn;
    // The keeper has the snapshot: the slot need not keep the server's WAL and catalog.
    drop(point);
    // Whoever asked may have left, which the next one who sends is told.
    drop(events.send(CopyEvent::Point { lsn, timeline }).await);
    let age_max = settings.copy.snapshot_age_max;
    // Whoever asks how large a table is waits for its lock, and the snapshot is held meanwhile.
    let planned = plan(&settings, &mut keeper, tables, events);
    let works = tokio::time::timeout_at(taken + age_max, planned).await.map_err(|_| {
        Error::retry("the tables to copy did not tell their sizes in time: is one of them locked?")
    })??;
    let shared = Arc::new(Shared {
        begin: point::begin_under(snapshot.get(0).unwrap_or_default()),
        lsn,
        timeline,
        commit_us: asking.now_us().await?,
        works,
        waits,
        asking,
        rate: Rate::new(settings.copy.bytes_per_second_max),
        events: events.clone(),
        control,
        last_begin: taken + age_max.mul_f64(0.9),
        end: taken + age_max,
        settings,
    });
    let mut readers = JoinSet::new();
    let pieces: u32 = shared.works.iter().map(|work| work.pieces).sum();
    for _ in 0..shared.settings.copy.connections.min(pieces) {
        readers.spawn(worker::read(Arc::clone(&shared)));
    }
    let mut failed = None;
    while let Some(ended) = readers.join_next().await {
        if let Ok(Err(error)) = ended {
            failed = Some(error);
        }
    }
    // It may have been lost on the way; what was read is nonetheless of the snapshot.
    let _ = keeper.execute("COMMIT").await;
    failed.map_or(Ok(()), Err)
}

/// What each table holds, as the keeper's snapshot sees it; the smallest first.
async fn plan(
    settings: &CaptureSettings,
    keeper: &mut Client,
    tables: Vec<ToCopy>,
    events: &mpsc::Sender<CopyEvent>,
) -> Result<Vec<Work>> {
    let mut published = published::all(keeper, &settings.publication).await?;
    let mut found = Vec::new();
    for table in tables {
        match published.remove(&table.name) {
            Some(now) => found.push((table, now)),
            // Whoever asked may have left, which the next one who sends is told.
            None => drop(events.send(CopyEvent::Gone(table.topic)).await),
        }
    }
    let oids: Vec<u32> = found.iter().map(|(_, now)| now.oid).collect();
    let mut facts: HashMap<u32, Facts> = point::facts(keeper, &oids).await?;
    let mut works = Vec::new();
    for (table, published) in found {
        let Some(facts) = facts.remove(&published.oid) else { continue };
        let (name, oid, rows_estimated) = (table.name, published.oid, facts.rows_estimated);
        let published = Published { copied_where: (settings.copied_where)(&name), ..published };
        let bytes = facts.bytes;
        let wanted = Wanted { oid, name, published, storage: facts.storage.clone(), rows_estimated };
        works.push((bytes, Work::new(settings, table.topic, wanted, table.resume, &facts)));
    }
    works.sort_by(|(a_bytes, a), (b_bytes, b)| (a_bytes, &a.wanted.name).cmp(&(b_bytes, &b.wanted.name)));
    Ok(works.into_iter().map(|(_, work)| work).collect())
}

impl Work {
    fn new(
        settings: &CaptureSettings,
        topic: Arc<str>,
        wanted: Wanted,
        resume: Option<CopyProgress>,
        facts: &Facts,
    ) -> Self {
        let late = resume.as_ref().map_or(0, |resume| resume.late);
        let piece_bytes = settings.copy.chunk_bytes.checked_shr(late).unwrap_or(0).max(PIECE_BYTES_MIN);
        let page = facts.bytes.checked_div(u64::from(facts.pages)).unwrap_or(8192).max(8192);
        let pages_a_piece = u32::try_from(piece_bytes / page).unwrap_or(u32::MAX).max(1);
        // Without an estimate the first pieces are small, and tell more.
        let row = facts.bytes.checked_div(facts.rows_estimated).unwrap_or(ROW_BYTES).max(1);
        let condition = wanted.published.condition();
        let resume = resume.filter(|resume| {
            resume.began.as_ref().is_some_and(|began| {
                !resume.moved.is_lost()
                    && !began.key.is_empty()
                    && facts.storage.extends(&began.storage)
                    && began.standing.lost(&wanted.published, &[]).is_none()
                    && began.condition == condition
            })
        });
        Self {
            topic,
            wanted,
            resume,
            toasted: facts.toasted,
            pages: facts.pages,
            pages_a_piece,
            pieces: u32::try_from(facts.bytes / piece_bytes.max(1)).unwrap_or(u32::MAX).saturating_add(1),
            rows_a_piece: AtomicU64::new((piece_bytes / row).max(1)),
            piece_bytes,
            openers: AtomicU32::new(0),
            over: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
            opened: Mutex::new(None),
            pending: Mutex::default(),
        }
    }

    /// Whether all of the table has to be read in one round: nothing tells its rows apart, or it would have to be read by
    /// keys that SQL may compare otherwise than the index does.
    pub fn is_at_once(&self, key: &[String], by_key: bool) -> bool {
        key.is_empty() || (self.toasted && self.pieces > 1 && !by_key)
    }

    /// What is to be read of a table of that key, and whether its copy begins with that.
    pub fn begin(&self, key: &[String]) -> (bool, Vec<Range>) {
        if self.at_once.load(Ordering::Relaxed) {
            return (true, vec![Range::ALL_PAGES]);
        }
        // Where no piece was read, all of it is of one round yet.
        let all = |left: &[Range]| matches!(left, [Range::ALL_PAGES | Range::ALL_KEYS]);
        let goes_on = |resume: &&CopyProgress| {
            !all(&resume.left) && resume.began.as_ref().is_some_and(|began| began.key == key)
        };
        match self.resume.as_ref().filter(goes_on) {
            Some(resume) => (false, resume.left.clone()),
            // One round reads it all the same, wherever its values lie.
            None if self.toasted && self.pieces > 1 => (true, vec![Range::ALL_KEYS]),
            None => (true, vec![Range::ALL_PAGES]),
        }
    }

    /// The next piece, if there is one. Asks `sql`, which has the table open, where keys end it.
    pub async fn next(&self, sql: &mut Client, key: &[String]) -> Result<Option<Range>> {
        let mut pending = self.pending.lock().await;
        let Some(mut rest) = pending.left.pop_front() else { return Ok(None) };
        let first = match &rest {
            Range::Pages { .. } => rest.take_pages(self.pages_a_piece, self.pages),
            Range::Keys { .. } => match self.last_key(sql, key, &rest).await {
                Ok(last) => last.and_then(|last| rest.take_keys(last)),
                Err(error) => {
                    pending.left.push_front(rest);
                    return Err(error);
                }
            },
            Range::Rows { .. } => None,
        };
        let piece = match first {
            Some(first) => {
                pending.left.push_front(rest);
                first
            }
            None => rest,
        };
        pending.in_flight.push(piece.clone());
        Ok(Some(piece))
    }

    /// The key with which a piece ends; none: it is no longer than one.
    async fn last_key(&self, sql: &mut Client, key: &[String], range: &Range) -> Result<Option<Vec<String>>> {
        let (table, only) = (self.wanted.name.quoted(), self.wanted.only());
        let columns: Vec<String> = key.iter().map(|name| crate::postgres::wire::quote_ident(name)).collect();
        let columns = columns.join(", ");
        let condition =
            range.condition(key).map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        let skip = self.rows_a_piece.load(Ordering::Relaxed).saturating_sub(1);
        let statement = format!(
            "SELECT {columns} FROM {only}{table}{condition} ORDER BY {columns} OFFSET {skip} LIMIT 1"
        );
        let rows = sql.query(&statement).await?;
        let value = |row: &crate::postgres::wire::Row| {
            (0..key.len()).map(|column| row.get(column).map(str::to_owned)).collect::<Option<Vec<String>>>()
        };
        Ok(rows.first().and_then(value))
    }

    /// A piece had so many rows and bytes: the next ones go by that.
    pub fn measured(&self, rows: u64, bytes: u64) {
        if let Some(row) = bytes.checked_div(rows) {
            self.rows_a_piece.store((self.piece_bytes / row.max(1)).max(1), Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// The next table with something left, for a session that has none open.
    pub fn open_next(&self) -> Option<&Work> {
        self.works.iter().find(|work| {
            !work.over.load(Ordering::Relaxed)
                && !self.has_stopped(work)
                && (self.goes_on() || work.at_once.load(Ordering::Relaxed))
                && work.openers.load(Ordering::Relaxed) < work.pieces
        })
    }

    /// Whether no further piece of a table is to be begun.
    pub fn has_stopped(&self, work: &Work) -> bool {
        work.stopped.load(Ordering::Relaxed) || self.control.left_out().contains(&work.topic)
    }

    /// Whether further pieces are begun.
    pub fn goes_on(&self) -> bool {
        !self.control.ends.load(Ordering::Relaxed) && Instant::now() < self.last_begin
    }
}

/// What a copy may take.
#[derive(Clone, Copy, Debug)]
pub struct CopyLimits {
    /// Sessions that read at once; two more ask.
    pub connections: u32,
    /// Bytes of a piece, as the source stores them, about.
    pub chunk_bytes: u64,
    /// A snapshot is held no longer.
    pub snapshot_age_max: Duration,
    /// Bytes read in a second, by all sessions together; none: as many as there are.
    pub bytes_per_second_max: Option<u64>,
}
