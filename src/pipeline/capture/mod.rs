//! Capture: one replication slot in, one ordered log out.
//!
//! ```text
//!   start: slot free? ─> fence the log ─> read its state ─> check that source and slot still fit it
//!             │ no state                                   │ state
//!             v                                            v
//!          first copy at a consistent point ────────> stream from flush_lsn ──> …  (session)
//!             as far as one snapshot goes                  └─ broken: wait, and start again from the fence
//! ```
//!
//! Why it is exact: every start, after a crash or a mere broken connection, takes the same path, and knows
//! nothing but what the log holds. Records and state are one atomic step ([`crate::log`]); the stream is
//! resumed by [`Position`](crate::change::Position), never by a bare LSN ([`crate::postgres::assemble`]); the
//! server is told of a position only after it is durable ([`session`]).

mod accept;
mod appender;
mod backfill;
mod begin;
mod cutter;
mod ddl;
mod dead_letter;
mod described;
mod engine;
mod gap;
mod occupied;
mod open;
mod polled;
mod promoted;
mod publication;
mod registrar;
mod session;
mod shapes;
mod source;
mod state;
mod tables;
mod told;
mod transactions;
mod unsendable;
mod verify;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::change::{Calendar, Cut, LogEnd, Lsn, SchemaAction, SchemaChange, Timeline};
use crate::envelope::{Options, headers, routing};
use crate::log::Log;
use crate::ops::{Command, Ops};
use crate::postgres::ddl::TriggerUse;
use crate::postgres::slot::{self, Failover};
use crate::postgres::wire::{Client, ConnectOptions, Streaming, answered, is_not_let_in};
use crate::registry::Registry;
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

pub use accept::{Accepted, accept_gap};
use appender::{Appender, Progress};
pub use backfill::CopyLimits;
use publication::Routes;
use session::Ended;
use state::StreamState;
pub use state::has_passed;
pub use tables::{RowFilter, TableFilter};
pub use verify::preflight_settings;

/// What capture has to know.
#[derive(Clone)]
pub struct CaptureSettings {
    /// The source's name: the first part of every topic.
    pub name: String,
    /// How to connect.
    pub connect: ConnectOptions,
    /// The server that is streamed from, once one is: copies beside the stream have to come from there.
    pub origin: Option<Origin>,
    /// Slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Whether a source that is new to the log is copied first; otherwise the stream begins at its slot.
    pub backfill: bool,
    /// How often a heartbeat is left in the WAL; none without.
    pub heartbeat_interval: Option<Duration>,
    /// How often the catalog is asked for changes of schemas.
    pub schema_poll_interval: Duration,
    /// Whether DDL is to be told by event triggers.
    pub ddl_trigger: TriggerUse,
    /// Whether the slot is synchronised to standbys.
    pub failover: Failover,
    /// Whether transactions in progress are taken.
    pub streaming: Streaming,
    /// The folder in which they are kept, and how many bytes of them.
    pub spool: (PathBuf, u64),
    /// Which tables.
    pub filter: TableFilter,
    /// Which rows of them copies take.
    pub copied_where: RowFilter,
    /// How values are written.
    pub envelope: Options,
    /// Whether records say which they are of their transaction, and `<name>.transaction` is written.
    pub transaction_metadata: bool,
    /// Where schemas are registered, if they are.
    pub registry: Option<Registry>,
    /// Where a day ends.
    pub calendar: Calendar,
    /// What copies of tables may take.
    pub copy: CopyLimits,
    /// A batch of this many bytes is submitted at once.
    pub append_bytes_max: usize,
    /// A smaller one when it is this old.
    pub linger: Duration,
}

/// A server and its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    system_id: String,
    server_timeline: Timeline,
    /// Of positions.
    timeline: Timeline,
}

impl Origin {
    fn of(state: &StreamState) -> Self {
        let (system_id, server_timeline) = (state.system_id.clone(), state.server_timeline());
        Self { system_id, server_timeline, timeline: state.timeline }
    }
}

impl CaptureSettings {
    /// The timeline of positions on the server of a replication session.
    ///
    /// # Errors
    /// That it is another server than the one which is streamed from, after a failover: the stream has to follow first.
    async fn timeline(&self, replication: &mut Client) -> Result<Timeline> {
        let identity = slot::identify_system(replication).await?;
        let Some(origin) = &self.origin else { return Ok(identity.timeline) };
        if identity.system_identifier.to_string() == origin.system_id
            && identity.timeline == origin.server_timeline
        {
            return Ok(origin.timeline);
        }
        Err(Error::retry(format!(
            "{} is not the server that is streamed from, or is on timeline {} by now, not {}: tables are copied once the \
             stream has gone over to it",
            replication.address(),
            identity.timeline,
            origin.server_timeline
        )))
    }
}

/// How far this process has come with its source: what may be waited for depends on it.
#[derive(Clone, Debug, Default)]
struct Contact {
    /// The source has taken a session.
    connected: bool,
    /// The slot was streamed from.
    streamed: bool,
    /// The server's process for the last stream: the server may believe in it for a while after it broke.
    walsender: Option<i32>,
    /// Sessions in a row that another process has fenced, without ever finding it on the slot.
    fenced: u32,
    /// Below it is a transaction that cannot be kept while it is in progress.
    whole_below: Option<Lsn>,
    /// What held rows of which table when the stream was last taken up for that reason.
    routes: Option<Routes>,
}

/// A server that answers, but takes no sessions yet, has this long to begin with.
const STARTING_PATIENCE: Duration = Duration::from_secs(60);

/// Fenced so often in a row by nobody who is on the slot: another process writes to this log from elsewhere.
const FENCED_MAX: u32 = 5;

/// Captures until the process is to stop, or a person is needed. Connections that break and servers that are
/// away are waited for, once there has been a connection: a server that was never reached is more likely a
/// wrong address, which is told at once. So is who is not let in; who was, waits: a password or a database is
/// being changed, and comes back or is told by health for as long as it does not.
pub async fn run(
    settings: &CaptureSettings,
    log: Arc<dyn Log>,
    ops: &Ops,
    mut commands: mpsc::Receiver<Command>,
    shutdown: &Shutdown,
) -> Result<()> {
    let component = ops.component("source");
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    let began = std::time::Instant::now();
    let mut contact = Contact::default();
    while !shutdown.is_raised() {
        let started = std::time::Instant::now();
        let streamed = Box::pin(stream(settings, &log, ops, &mut commands, shutdown, &mut contact)).await;
        let error = match streamed {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::StreamWhole { reason, at }) => match stream_whole(settings, reason, at, &mut contact) {
                Ok(()) => continue,
                Err(error) => error,
            },
            Ok(Ended::Rerouted(routes)) => {
                tracing::info!(
                    "partitions have changed, and servers before PostgreSQL 15 may go on to send their changes as before: \
                     the stream is taken up again"
                );
                contact.routes = Some(routes);
                continue;
            }
            Err(error) => error,
        };
        if started.elapsed() > Duration::from_secs(60) {
            contact.fenced = 0;
            backoff.reset();
        }
        let error = match error.class() {
            Class::Fenced => fenced(error, &mut contact)?,
            Class::Operator if contact.connected && is_not_let_in(&error) => {
                error.mend_text().into_iter().fold(Error::retry(error.message()), Error::mend)
            }
            _ => error,
        };
        component.failed(&error);
        if error.class() != Class::Retry {
            return Err(error);
        }
        if shutdown.is_raised() {
            return Ok(());
        }
        // A server that answers is there: it starts up, has no session to spare, or is a standby yet.
        let patience = if answered(&error) { STARTING_PATIENCE } else { Duration::ZERO };
        if !contact.connected && began.elapsed() >= patience {
            return Err(error);
        }
        let wait = backoff.next_wait();
        tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "capture was interrupted: trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.raised() => {}
        }
    }
    Ok(())
}

/// Another process has taken over, and this one goes back to standing by for it. One which writes to the log but has not
/// the slot is no successor: it is another connector on the same log.
fn fenced(error: Error, contact: &mut Contact) -> Result<Error> {
    contact.fenced += 1;
    if contact.fenced > FENCED_MAX {
        return Err(error.mend(
            "Another process writes to the same log and does not stream from this slot. Give each connector a log of its \
             own: [log.embedded] path, or [log.kafka] transactional_id and a [source] name of its own.",
        ));
    }
    tracing::warn!(%error, "another process has taken over: this one stands by");
    Ok(Error::retry(error.message()))
}

/// The server is to keep transactions until they commit, from now on and until the stream is past `at`. Fails when it does
/// so already.
fn stream_whole(settings: &CaptureSettings, reason: String, at: Lsn, contact: &mut Contact) -> Result<()> {
    if settings.streaming == Streaming::Off || contact.whole_below.is_some() {
        return Err(Error::retry(reason).mend(
            "Make room at [state] dir. A slot without two_phase would leave prepared transactions with the server until \
             they commit.",
        ));
    }
    tracing::warn!(reason, %at, "transactions in progress are left with the server until they commit: the stream is \
        taken up again without them, for this connection");
    // Where it stands already, it has to go on at least.
    contact.whole_below = Some(Lsn(at.0.saturating_add(1)));
    Ok(())
}

/// One start, and what it leads to. While it is on its way a wish to stop ends it at once: nothing has been
/// taken from the stream yet.
async fn stream(
    settings: &CaptureSettings,
    log: &Arc<dyn Log>,
    ops: &Ops,
    commands: &mut mpsc::Receiver<Command>,
    shutdown: &Shutdown,
    contact: &mut Contact,
) -> Result<Ended> {
    let session = tokio::select! {
        session = open::open(settings, log, ops, commands, shutdown, contact) => session?,
        () = shutdown.raised() => return Ok(Ended::Stopped),
    };
    Box::pin(session.run()).await
}

/// Adds the record of a schema change, to be seen before the rows that follow it.
fn write_schema_change(appender: &mut Appender, name: &str, change: &SchemaChange) {
    let topic: Arc<str> = routing::ddl_topic(name).into();
    let value = serde_json::to_vec(change).unwrap_or_default();
    let mut record = appender.batch.topic(&topic).begin(jiff::Timestamp::now().as_millisecond());
    record.field(|buffer| buffer.extend_from_slice(change.topic.as_bytes()));
    record.field(|buffer| buffer.extend_from_slice(&value));
    record
        .header(headers::POSITION, |buffer| buffer.extend_from_slice(change.position.to_string().as_bytes()));
    record.finish();
    appender.added();
    let (table, version) = (&change.after.name, change.after.version.0);
    for SchemaAction { kind, column, applied, detail } in &change.actions {
        tracing::info!(%table, version, action = ?kind, column, applied, detail, "schema");
    }
}

/// Adds the record of a cut.
fn write_cut(appender: &mut Appender, name: &str, cut: &Cut) -> Result<()> {
    let topic: Arc<str> = routing::cuts_topic(name).into();
    let value = serde_json::to_vec(cut).map_err(|error| {
        Error::operator(format!("the cut of ds={} cannot be written", cut.ds)).cause(error)
    })?;
    let mut record = appender.batch.topic(&topic).begin(cut.at.as_millisecond());
    record.field(|buffer| buffer.extend_from_slice(cut.ds.to_string().as_bytes()));
    record.field(|buffer| buffer.extend_from_slice(&value));
    record.header(headers::POSITION, |buffer| buffer.extend_from_slice(cut.position.to_string().as_bytes()));
    record.finish();
    appender.added();
    Ok(())
}

/// The ends of the log, by topic.
async fn ends_by_topic(log: &dyn Log) -> Result<HashMap<String, Vec<LogEnd>>> {
    let mut ends: HashMap<String, Vec<LogEnd>> = HashMap::new();
    for (partition, range) in log.ranges().await? {
        let end = LogEnd { partition: partition.partition, end: range.end };
        ends.entry(partition.topic.to_string()).or_default().push(end);
    }
    Ok(ends)
}

/// The state of a stream that begins.
fn first_state(settings: &CaptureSettings, system_identifier: u64, progress: Progress) -> StreamState {
    StreamState {
        system_id: system_identifier.to_string(),
        database: settings.connect.database.clone(),
        slot: settings.slot.clone(),
        timeline: progress.position.timeline,
        position: progress.position,
        flush_lsn: progress.flush_lsn,
        last_end_lsn: None,
        lift: 0,
        given_up: None,
        set_back: None,
        witness: None,
        publication: None,
        resumed_at: None,
    }
}
