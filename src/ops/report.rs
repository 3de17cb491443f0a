//! The picture of one instant: what `/api/v1/status` and `/health` say, and what everything else is made from.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::component::{ComponentState, ComponentStatus};
use super::days::{Day, DayTable};
use super::judge::{self, Reason, Status};
use super::notices::{NoticesReport, is_endpoint};
use super::source::SourceThresholds;
use super::table::{TableState, TableStats};
use super::{Inner, lock};
use crate::change::{Ds, Lsn, Position, TableName};

/// One of a few words.
pub type Word = Cow<'static, str>;

/// The picture of one instant. Serialises as the answer of `/api/v1/status`; sizes are in bytes, ages in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The verdict.
    pub status: Status,
    /// The connector.
    pub name: String,
    /// Tidemark's version.
    pub version: Word,
    /// The instant.
    pub time: Timestamp,
    /// Age of the process.
    pub uptime_seconds: u64,
    /// Why the verdict is not "ok": the worst first.
    pub reasons: Vec<Reason>,
    /// The parts of the process.
    pub components: BTreeMap<Word, ComponentReport>,
    /// The replication stream; none in a process that has none.
    pub source: Option<SourceReport>,
    /// Copies of tables on their way; none in a process that makes none.
    #[serde(default)]
    pub copies: Option<CopiesReport>,
    /// Notices on published days, by endpoint.
    #[serde(default)]
    pub notices: BTreeMap<String, NoticesReport>,
    /// The log.
    pub log: LogReport,
    /// Cuts.
    pub cut: CutReport,
    /// The days that are remembered, the latest first.
    pub days: Vec<DayReport>,
    /// The tables, by name.
    pub tables: BTreeMap<String, TableReport>,
}

/// A part of the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComponentReport {
    /// How it is.
    pub state: ComponentState,
    /// When it came into this state.
    pub since: Timestamp,
    /// Why; of one that is well, the trouble before.
    pub reason: Option<String>,
    /// What to do.
    pub mend: Option<String>,
}

/// The replication stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceReport {
    /// Reported to the server as durable.
    pub flush_lsn: Lsn,
    /// End of the last transaction received.
    pub received_lsn: Lsn,
    /// The server's end of WAL, as it last said.
    pub server_wal_end: Lsn,
    /// From `flush_lsn` to `server_wal_end`.
    pub lag_bytes: u64,
    /// How late the log is; zero when nothing is pending.
    pub lag_seconds: f64,
    /// WAL which the slot keeps on the server's disk.
    pub slot_retained_bytes: u64,
    /// Where the server would give the slot up (`max_slot_wal_keep_size`).
    pub slot_limit_bytes: Option<u64>,
    /// What may still be written before it does (`safe_wal_size`).
    #[serde(default)]
    pub slot_safe_wal_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty before the server was asked, and without a slot.
    #[serde(default)]
    pub slot_wal_status: String,
    /// WAL that the slot has not confirmed, whoever streams from it.
    #[serde(default)]
    pub slot_lag_bytes: u64,
    /// For so long at least it has not confirmed WAL that was there.
    #[serde(default)]
    pub slot_lag_seconds: f64,
    /// The transaction for which WAL is kept although all before it is confirmed.
    #[serde(default)]
    pub slot_held_by: Option<String>,
    /// From where on these are told.
    #[serde(default)]
    pub thresholds: SourceThresholds,
    /// Between the socket and the log.
    pub in_flight_bytes: u64,
    /// Bytes of transactions in progress that are kept on disk.
    pub stream_spool_bytes: u64,
}

/// The log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogReport {
    /// Its size.
    pub bytes: u64,
    /// The size at which appends stop.
    pub bytes_max: Option<u64>,
    /// Records that are not staged in the lake yet.
    pub undelivered_records: u64,
    /// Age of the oldest of them.
    pub oldest_undelivered_seconds: Option<f64>,
}

/// Cuts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CutReport {
    /// The last day that was cut.
    pub last_ds: Option<Ds>,
    /// When the next cut is due.
    pub next_due: Option<Timestamp>,
    /// The day that is being cut.
    pub in_progress: Option<Ds>,
    /// The last day that was published.
    pub last_published_ds: Option<Ds>,
}

/// A day that was cut.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DayReport {
    /// The day.
    pub ds: Ds,
    /// `published`, `publishing` or `failed`.
    pub state: Word,
    /// When it was cut.
    pub cut: Timestamp,
    /// When it was published.
    pub published: Option<Timestamp>,
    /// Tables of the day.
    pub tables: u64,
    /// Tables whose snapshot is there.
    pub tables_published: u64,
    /// Tables whose snapshot could not be made.
    pub tables_failed: u64,
    /// Tables which are not in the day, and never will be.
    #[serde(default)]
    pub tables_missing: u64,
    /// Rows of the snapshots that are there.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableReport {
    /// `backfilling`, `paused`, `streaming` or `failed`.
    pub state: Word,
    /// Since when.
    pub since: Timestamp,
    /// Why it failed.
    pub reason: Option<String>,
    /// What to do.
    pub mend: Option<String>,
    /// Changes captured by this process.
    pub changes: u64,
    /// Records that became of them.
    pub records: u64,
    /// Records that could not be processed.
    pub dead_letters: u64,
    /// Position of the last change.
    pub position: Option<Position>,
    /// Its commit time.
    pub last_commit: Option<Timestamp>,
    /// The backfill that runs or ran in this process.
    pub backfill: Option<BackfillReport>,
    /// Records of it which are in neither log nor lake.
    #[serde(default)]
    pub gap: Option<GapReport>,
    /// Schema changes seen by this process.
    #[serde(default)]
    pub schema_changes: u64,
    /// Those of them which are not applied, or not in all parts.
    #[serde(default)]
    pub schema_changes_unapplied: u64,
    /// The last of these.
    #[serde(default)]
    pub unapplied: Option<UnappliedReport>,
    /// What it holds at the source and the log does not.
    #[serde(default)]
    pub lacking: Option<LackingReport>,
    /// Whether this process delivers it; else offsets and gap are told by the one that does.
    #[serde(default)]
    pub owned: bool,
    /// Records in the log.
    pub end_offset: u64,
    /// Those of them that are staged in the lake.
    pub staged_offset: u64,
    /// The last day that was published.
    pub published_ds: Option<Ds>,
    /// Bytes of its files that were written for it.
    #[serde(default)]
    pub published_bytes_written: u64,
    /// Bytes of its files that are the day before's.
    #[serde(default)]
    pub published_bytes_copied: u64,
    /// Bytes of files that are made of the next day already.
    #[serde(default)]
    pub premerged_bytes: u64,
    /// The day that the historic tail of the last published one is as of; none: all of it is as of its own cut.
    #[serde(default)]
    pub historic_tail_ds: Option<Ds>,
    /// Changes of that tail which wait for the next whole day.
    #[serde(default)]
    pub deferred_changes: u64,
}

/// What is lost of a table, until it is copied anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GapReport {
    /// What is lost.
    pub reason: String,
    /// Offsets of the log that are lost.
    pub offsets: u64,
    /// Whether this process has asked for the new copy.
    pub copy_asked: bool,
}

/// A schema change which is not applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnappliedReport {
    /// What it was, and what became of it.
    pub detail: String,
    /// When it was seen.
    pub at: Timestamp,
}

/// Why days lack a table until it is copied anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LackingReport {
    /// What happened to it.
    pub reason: String,
    /// Whether the copy is on its way.
    pub copy_asked: bool,
    /// Why the last attempt to copy it failed.
    pub trouble: Option<String>,
}

/// What copies take from the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopiesReport {
    /// Age of the snapshot that is held.
    pub snapshot_age_seconds: f64,
    /// Connections that read.
    pub connections: u32,
}

/// A backfill.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackfillReport {
    /// `waiting`, `copying`, `paused`, `failed` or `done`.
    pub state: Word,
    /// Rows read in a second, since it began or went on.
    pub rows_per_second: f64,
    /// How long it takes yet; none where that cannot be said.
    pub seconds_left: Option<f64>,
    /// Rows read.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows that were expected; zero when that is not known.
    pub rows_estimated: u64,
    /// Whether it is complete.
    pub done: bool,
    /// How long it took, or takes until now.
    pub seconds: f64,
}

impl Report {
    /// How late the log is behind the database.
    pub fn lag_seconds(&self) -> f64 {
        self.source.as_ref().map_or(0.0, |source| source.lag_seconds)
    }

    /// Records in the dead letters, of all tables.
    pub fn dead_letters(&self) -> u64 {
        self.tables.values().map(|table| table.dead_letters).sum()
    }

    /// The tables, those in trouble first, and among the others the busiest.
    pub fn tables_by_trouble(&self) -> Vec<(&str, &TableReport)> {
        let published = self.cut.last_published_ds;
        let mut tables: Vec<_> = self.tables.iter().map(|(name, table)| (name.as_str(), table)).collect();
        tables.sort_by_cached_key(|(_, table)| table.trouble(published));
        tables
    }

    /// Whether all parts have begun their work and none has failed, but for who is told of days.
    pub fn is_ready(&self) -> bool {
        let bad = |state| matches!(state, ComponentState::Starting | ComponentState::Failed);
        let stops = |(name, part): (&Word, &ComponentReport)| bad(part.state) && !is_endpoint(name);
        !self.components.is_empty() && !self.components.iter().any(stops)
    }
}

impl TableReport {
    /// Records in the log that are not staged in the lake.
    pub fn undelivered(&self) -> u64 {
        self.end_offset.saturating_sub(self.staged_offset)
    }

    /// The smaller, the more worth a look.
    fn trouble(&self, last_published: Option<Ds>) -> (u8, Reverse<u64>) {
        let rank = match &*self.state {
            "failed" => 0,
            _ if self.dead_letters > 0 => 1,
            "backfilling" | "paused" => 2,
            _ if self.published_ds.is_some() && self.published_ds < last_published => 3,
            _ => 4,
        };
        (rank, Reverse(self.undelivered().max(self.changes / 1000)))
    }
}

/// The tables of one day, as `/api/v1/days/{ds}` tells them.
#[derive(Debug, Serialize)]
pub(super) struct DayDetail {
    #[serde(flatten)]
    pub day: DayReport,
    /// Empty for days that were published some time ago: their own manifest has them.
    pub table_states: BTreeMap<String, DayTableReport>,
}

/// A table of a day.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum DayTableReport {
    Waiting,
    Merging,
    Published { rows: u64, bytes: u64 },
    Missing { reason: String },
    Failed { reason: String, mend: Option<String> },
}

pub(super) fn build(inner: &Inner, now_ms: i64) -> Report {
    let components: Vec<_> =
        lock(&inner.components).iter().map(|part| (part.name(), part.status())).collect();
    let held = inner.days.held();
    let tables = inner.tables();
    let known = inner.source.is_known() || inner.source.slot().is_some();
    let source = known.then(|| source(inner, now_ms));
    let copies = inner.copies.held().map(|(taken_ms, connections)| CopiesReport {
        snapshot_age_seconds: seconds(now_ms - taken_ms),
        connections,
    });
    let log = LogReport {
        bytes: inner.log.bytes(),
        bytes_max: inner.log.bytes_max(),
        undelivered_records: tables.iter().map(|(_, stats)| stats.undelivered()).sum(),
        oldest_undelivered_seconds: inner.log.oldest_undelivered_ms().map(|ms| seconds(now_ms - ms)),
    };
    let published = held.days.iter().rev().find(|(_, day)| day.published_ms.is_some());
    let cut = CutReport {
        last_ds: held.last_cut,
        next_due: held.next_cut_due_ms.map(timestamp),
        in_progress: held.cut_in_progress,
        last_published_ds: published.map(|(ds, _)| *ds),
    };
    let mut report = Report {
        status: Status::Ok,
        name: inner.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        time: timestamp(now_ms),
        uptime_seconds: inner.started.elapsed().as_secs(),
        reasons: Vec::new(),
        components: components.into_iter().map(|(name, status)| (name.into(), component(status))).collect(),
        source,
        copies,
        notices: super::notices::report(&inner.notices),
        log,
        cut,
        days: held.days.iter().rev().map(|(ds, day)| self::day(*ds, day)).collect(),
        tables: tables.iter().map(|(name, stats)| (name.to_string(), table(stats, now_ms))).collect(),
    };
    report.reasons = judge::reasons(&report, &held);
    report.status = judge::status(&report.reasons);
    report
}

/// The tables of one day; none for a day that is not remembered.
pub(super) fn day_detail(inner: &Inner, ds: Ds) -> Option<DayDetail> {
    let held = inner.days.held();
    let day = held.days.get(&ds)?;
    let state = |(name, state): (&TableName, &DayTable)| {
        let state = match state.clone() {
            DayTable::Waiting => DayTableReport::Waiting,
            DayTable::Merging => DayTableReport::Merging,
            DayTable::Published { rows, bytes } => DayTableReport::Published { rows, bytes },
            DayTable::Missing { reason } => DayTableReport::Missing { reason },
            DayTable::Failed { reason, mend } => DayTableReport::Failed { reason, mend },
        };
        (name.to_string(), state)
    };
    Some(DayDetail { day: self::day(ds, day), table_states: day.detail.iter().map(state).collect() })
}

fn component(status: ComponentStatus) -> ComponentReport {
    ComponentReport {
        state: status.state,
        since: timestamp(status.since_ms),
        reason: status.reason,
        mend: status.mend,
    }
}

fn source(inner: &Inner, now_ms: i64) -> SourceReport {
    let source = &inner.source;
    let slot = source.slot().unwrap_or_default();
    // Before this process has streamed, only the slot can tell.
    let streams = source.is_known();
    SourceReport {
        flush_lsn: if streams { source.flush_lsn() } else { slot.confirmed },
        received_lsn: source.received_lsn(),
        server_wal_end: if streams { source.server_wal_end() } else { slot.wal_end },
        lag_bytes: source.lag_bytes(),
        lag_seconds: seconds(source.lag_ms(now_ms)),
        slot_retained_bytes: slot.retained_bytes,
        slot_limit_bytes: slot.limit_bytes,
        slot_safe_wal_bytes: slot.safe_wal_bytes,
        slot_lag_bytes: slot.wal_end.bytes_since(slot.confirmed),
        slot_lag_seconds: slot.lag_seconds,
        slot_wal_status: slot.wal_status,
        slot_held_by: slot.held_by,
        thresholds: source.thresholds(),
        in_flight_bytes: source.in_flight_bytes(),
        stream_spool_bytes: source.spooled_bytes(),
    }
}

fn day(ds: Ds, day: &Day) -> DayReport {
    let failed = day.detail.values().filter(|table| matches!(table, DayTable::Failed { .. })).count() as u64;
    let state = match (day.published_ms, failed) {
        (Some(_), _) => "published",
        (None, 0) => "publishing",
        (None, _) => "failed",
    };
    DayReport {
        ds,
        state: state.into(),
        cut: timestamp(day.cut_ms),
        published: day.published_ms.map(timestamp),
        tables: day.tables,
        tables_published: day.tables_published,
        tables_failed: failed,
        tables_missing: day.tables_missing,
        rows: day.rows,
        bytes: day.bytes,
    }
}

fn table(stats: &TableStats, now_ms: i64) -> TableReport {
    let (state, since_ms) = stats.state();
    let (state, reason, mend) = match state {
        TableState::Backfilling => ("backfilling", None, None),
        TableState::Paused => ("paused", None, None),
        TableState::Streaming => ("streaming", None, None),
        TableState::Failed { reason, mend } => ("failed", Some(reason), mend),
    };
    let (schema_changes, schema_changes_unapplied) = stats.schema_changes();
    let backfill = stats.backfill();
    let ended_ms = if backfill.ended_ms == 0 { now_ms } else { backfill.ended_ms };
    let copied = seconds(ended_ms - backfill.started_ms);
    let rows_per_second = match backfill.rows - backfill.rows_before.min(backfill.rows) {
        0 => 0.0,
        rows => rows as f64 / copied.max(0.001),
    };
    let left = backfill.rows_estimated.saturating_sub(backfill.rows);
    let (published_bytes_written, published_bytes_copied) = stats.published_bytes();
    let historic_tail = stats.historic_tail();
    TableReport {
        state: state.into(),
        since: timestamp(since_ms),
        reason,
        mend,
        changes: stats.changes(),
        records: stats.records(),
        dead_letters: stats.dead_letters(),
        position: stats.position(),
        last_commit: stats.commit_ms().map(timestamp),
        backfill: (backfill.started_ms != 0).then(|| BackfillReport {
            state: match state {
                _ if backfill.ended_ms != 0 => "done",
                "paused" | "failed" => state,
                _ if backfill.copying => "copying",
                _ => "waiting",
            }
            .into(),
            rows_per_second,
            seconds_left: (backfill.ended_ms == 0 && left > 0 && rows_per_second > 0.0)
                .then(|| left as f64 / rows_per_second),
            rows: backfill.rows,
            bytes: backfill.bytes,
            rows_estimated: backfill.rows_estimated,
            done: backfill.ended_ms != 0,
            seconds: copied,
        }),
        gap: stats.gap().map(|gap| GapReport {
            reason: gap.reason,
            offsets: gap.offsets,
            copy_asked: gap.here,
        }),
        schema_changes,
        schema_changes_unapplied,
        unapplied: stats
            .unapplied()
            .map(|unapplied| UnappliedReport { detail: unapplied.detail, at: timestamp(unapplied.at_ms) }),
        lacking: stats.lacking().map(|lacking| LackingReport {
            reason: lacking.reason,
            copy_asked: lacking.copy_asked,
            trouble: lacking.trouble,
        }),
        owned: stats.is_owned(),
        end_offset: stats.end_offset(),
        staged_offset: stats.staged_offset(),
        published_ds: stats.published(),
        published_bytes_written,
        published_bytes_copied,
        premerged_bytes: stats.premerged_bytes(),
        historic_tail_ds: historic_tail.map(|(ds, _)| ds),
        deferred_changes: historic_tail.map_or(0, |(_, changes)| changes),
    }
}

fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1000.0
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}
