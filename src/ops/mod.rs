//! Watching and steering: health, metrics, status page, logging.
//!
//! ```text
//!   capture ──┐                                  ┌── /health, /metrics, /, /api/v1   (http)
//!   deliver ──┼── handles ──> Ops ── Report ─────┼── backfill progress on a terminal
//!   lake …  ──┘   (atomics)            at "now"  └── tidemark status
//!        ^
//!        └────── Command ── channel ── POST /api/v1/cut, /api/v1/backfill
//! ```
//!
//! The pipeline writes through handles which it keeps: counters and gauges are atomics, and a lock is only taken
//! where a state changes (a component fails, a day is published). Readers build a [`Report`] of one instant and
//! judge it there; nothing that is shown is decided by the pipeline, so that `/health`, the metrics and the page
//! cannot disagree. A reader never holds a lock while it formats, so that a slow reader delays nobody.

mod component;
mod copies;
mod days;
mod http;
pub mod human;
mod judge;
mod logging;
mod metrics;
mod notices;
mod page;
mod progress;
mod report;
mod source;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::change::{Ds, LogEnd, TableName};
use crate::runtime::Result;

pub use component::{Component, ComponentState};
pub use copies::Copies;
pub use days::{DayTable, Days};
pub use http::Server;
pub use judge::{Reason, Severity, Status};
pub use logging::{Terminal, init as init_logging};
pub use notices::{NoticeStats, NoticesReport};
pub use progress::show_backfill;
pub use report::{Report, TableReport};
pub use source::{LogStats, SlotLook, SourceStats, SourceThresholds};
pub use table::{Gap, Lacking, TableState, TableStats};

/// What the outside asks of the pipeline.
#[derive(Debug)]
pub enum Command {
    /// A cut now, as the day `ds` (none: today in the cut's time zone).
    Cut {
        /// The day.
        ds: Option<Ds>,
        /// The day that was cut, or why not.
        reply: oneshot::Sender<Result<Ds>>,
    },
    /// Copies that are not whole are held up, or go on.
    Hold {
        /// Patterns on `schema.table`; each has to match one.
        tables: Vec<String>,
        /// Held up; else they go on.
        pause: bool,
        /// What comes of it, once that is durable, or why nothing does.
        reply: oneshot::Sender<Result<Accepted>>,
    },
    /// New copies of tables.
    Backfill {
        /// Which.
        of: BackfillOf,
        /// What comes of it, once that is durable, or why nothing does.
        reply: oneshot::Sender<Result<Accepted>>,
    },
}

/// Tables that are to be copied again.
#[derive(Clone, Debug)]
pub enum BackfillOf {
    /// All that match these patterns on `schema.table`; each has to match one.
    Matching(Vec<String>),
    /// One whose records are gone from the log below these offsets: a copy that began after them will do.
    Table {
        /// The table.
        table: TableName,
        /// By log partition, the first offset that is not lost.
        after: Vec<LogEnd>,
        /// The last cut that delivery knew: a copy that a later one tells of will do, too.
        known: Option<Ds>,
    },
}

impl BackfillOf {
    /// Offsets below which records are lost; none when a person asks.
    pub fn after(&self) -> &[LogEnd] {
        match self {
            Self::Matching(_) => &[],
            Self::Table { after, .. } => after,
        }
    }
}

/// What became of a request about copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// Asked for, held up or let go on now.
    pub asked: Vec<TableName>,
    /// It was so before.
    pub already: Vec<TableName>,
}

/// Commands that may wait for the pipeline.
const COMMANDS_MAX: usize = 8;

/// The shared picture of a running process. Clones share it.
#[derive(Clone, Debug)]
pub struct Ops {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    started: Instant,
    components: Mutex<Vec<Component>>,
    tables: RwLock<BTreeMap<TableName, Arc<TableStats>>>,
    source: SourceStats,
    log: LogStats,
    days: Days,
    copies: Copies,
    notices: notices::Endpoints,
    commands: mpsc::Sender<Command>,
}

impl Ops {
    /// An empty picture of the connector `name`, and where its commands arrive. A process that takes no
    /// commands drops the receiver.
    pub fn new(name: impl Into<String>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let inner = Inner {
            name: name.into(),
            started: Instant::now(),
            components: Mutex::default(),
            tables: RwLock::default(),
            copies: Copies::default(),
            notices: notices::Endpoints::default(),
            source: SourceStats::default(),
            log: LogStats::default(),
            days: Days::default(),
            commands,
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// The handle of a component (`source`, `log`, `deliver`, `lake`, `coordinator` …), which is "starting"
    /// until it says otherwise. The same name gives the same component.
    pub fn component(&self, name: &'static str) -> Component {
        let mut components = lock(&self.inner.components);
        if let Some(known) = components.iter().find(|component| component.name() == name) {
            return known.clone();
        }
        let component = Component::new(name, now_ms());
        components.push(component.clone());
        component
    }

    /// The counters of a table, made at the first call. To be kept by the caller.
    pub fn table(&self, name: &TableName) -> Arc<TableStats> {
        let tables = self.inner.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tables.get(name) {
            return Arc::clone(known);
        }
        drop(tables);
        let mut tables = self.inner.tables.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tables.entry(name.clone()).or_default())
    }

    /// What copies take from the source.
    pub fn copies(&self) -> &Copies {
        &self.inner.copies
    }

    /// The counters of an endpoint of notices. To be kept by the caller.
    pub fn notices(&self, endpoint: &'static str) -> Arc<NoticeStats> {
        Arc::clone(lock(&self.inner.notices).entry(endpoint).or_default())
    }

    /// The replication stream's gauges.
    pub fn source(&self) -> &SourceStats {
        &self.inner.source
    }

    /// The log's gauges.
    pub fn log(&self) -> &LogStats {
        &self.inner.log
    }

    /// Cuts and published days.
    pub fn days(&self) -> &Days {
        &self.inner.days
    }

    /// Asks this process for something, without waiting for it. False: too much is waiting. None: it takes no
    /// commands, another process does.
    pub fn ask(&self, command: Command) -> Option<bool> {
        match self.inner.commands.try_send(command) {
            Ok(()) => Some(true),
            Err(mpsc::error::TrySendError::Full(_)) => Some(false),
            Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }

    /// The picture now.
    pub fn report(&self) -> Report {
        report::build(&self.inner, now_ms())
    }

    fn tables(&self) -> Vec<(TableName, Arc<TableStats>)> {
        self.inner.tables()
    }
}

impl Inner {
    fn tables(&self) -> Vec<(TableName, Arc<TableStats>)> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.iter().map(|(name, stats)| (name.clone(), Arc::clone(stats))).collect()
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// What is guarded here is whole after each statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
