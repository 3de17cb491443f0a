//! A table's counters and state.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering::Relaxed};

use jiff::ToSpan;
use jiff::civil::{Date, date};

use super::{lock, now_ms};
use crate::change::{Ds, Position};
use crate::runtime::Error;

const NONE_MS: i64 = i64::MIN;
const NONE_DAYS: i32 = i32::MIN;
const EPOCH: Date = date(1970, 1, 1);

/// What happens to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Its first copy is being made, or a later one.
    Backfilling,
    /// Its copy is held up; its changes flow.
    Paused,
    /// Its changes flow.
    Streaming,
    /// It is isolated, and the others go on.
    Failed {
        /// Why.
        reason: String,
        /// What to do.
        mend: Option<String>,
    },
}

/// Records of a table which are in neither log nor lake, so that its days cannot be made before it is copied anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What is lost.
    pub reason: String,
    /// Offsets that are lost.
    pub offsets: u64,
    /// This process has asked for the copy; else the operator has to, beside the one that captures.
    pub here: bool,
}

/// A schema change at the source which is not applied, since it would destroy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unapplied {
    /// What it was, and what became of it.
    pub detail: String,
    /// When it was seen, milliseconds since 1970.
    pub at_ms: i64,
}

/// What a table holds at the source and the log does not, so that days lack the table until it is copied anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Why.
    pub reason: String,
    /// A copy is on its way; else it is not in the publication.
    pub copy_asked: bool,
    /// Why the last attempt to copy it failed.
    pub trouble: Option<String>,
}

/// A table's counters. Written by capture (one writer) and deliver, each its own.
#[derive(Debug)]
pub struct TableStats {
    changes: AtomicU64,
    records: AtomicU64,
    dead_letters: AtomicU64,
    commit_ms: AtomicI64,
    position: Mutex<Option<Position>>,
    backfill: BackfillStats,
    end: AtomicU64,
    staged: AtomicU64,
    owned: AtomicBool,
    published: AtomicI32,
    written_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    premerged_bytes: AtomicU64,
    tail: Mutex<Option<(Ds, u64)>>,
    state: Mutex<(TableState, i64)>,
    /// As long as capture refuses the table, it is failed, whatever else happens to it.
    refused: Mutex<Option<(TableState, i64)>>,
    gap: Mutex<Option<Gap>>,
    schema_changes: AtomicU64,
    schema_changes_unapplied: AtomicU64,
    unapplied: Mutex<Option<Unapplied>>,
    lacking: Mutex<Option<Lacking>>,
}

#[derive(Debug, Default)]
struct BackfillStats {
    copying: AtomicBool,
    rows: AtomicU64,
    /// Those that were read before this process, or this round.
    rows_before: AtomicU64,
    bytes: AtomicU64,
    rows_estimated: AtomicU64,
    started_ms: AtomicI64,
    ended_ms: AtomicI64,
}

/// Numbers of a backfill at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backfill {
    /// Its rows come; else it waits for its turn.
    pub copying: bool,
    pub rows: u64,
    /// Those of them that were read before it began to copy this time.
    pub rows_before: u64,
    pub bytes: u64,
    pub rows_estimated: u64,
    /// Zero: never begun.
    pub started_ms: i64,
    /// Zero: not ended.
    pub ended_ms: i64,
}

impl Default for TableStats {
    fn default() -> Self {
        Self {
            changes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            commit_ms: AtomicI64::new(NONE_MS),
            position: Mutex::default(),
            backfill: BackfillStats::default(),
            end: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            owned: AtomicBool::new(false),
            published: AtomicI32::new(NONE_DAYS),
            written_bytes: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            premerged_bytes: AtomicU64::new(0),
            tail: Mutex::default(),
            state: Mutex::new((TableState::Streaming, now_ms())),
            refused: Mutex::default(),
            gap: Mutex::default(),
            schema_changes: AtomicU64::new(0),
            schema_changes_unapplied: AtomicU64::new(0),
            unapplied: Mutex::default(),
            lacking: Mutex::default(),
        }
    }
}

impl TableStats {
    /// Changes were captured and became `records` durable records (tombstones among them); `position` and
    /// `commit_ms` (commit time, milliseconds since 1970) are of the last one. Called once an append.
    pub fn captured(&self, changes: u64, records: u64, position: Position, commit_ms: i64) {
        self.changes.fetch_add(changes, Relaxed);
        self.records.fetch_add(records, Relaxed);
        self.commit_ms.store(commit_ms, Relaxed);
        // A reader copies the position and lets go; the wait is that copy.
        *lock(&self.position) = Some(position);
    }

    /// Records went to the dead letters.
    pub fn dead_lettered(&self, records: u64) {
        self.dead_letters.fetch_add(records, Relaxed);
    }

    /// Sets the number of dead letters that are known from before.
    pub fn set_dead_letters(&self, records: u64) {
        self.dead_letters.store(records, Relaxed);
    }

    /// A copy is asked for, and waits for its turn; so much was read of it before.
    pub fn backfill_waits(&self, rows: u64, bytes: u64) {
        self.backfill_goes_on(0, rows, bytes);
        self.backfill.copying.store(false, Relaxed);
    }

    /// A copy goes on of which so much was read before.
    pub fn backfill_goes_on(&self, rows_estimated: u64, rows: u64, bytes: u64) {
        self.backfill_began(rows_estimated);
        self.backfill.rows_before.store(rows, Relaxed);
        self.backfilled(rows, bytes);
    }

    /// A backfill begins; `rows_estimated` is `pg_class.reltuples` or the like, zero when unknown.
    pub fn backfill_began(&self, rows_estimated: u64) {
        let backfill = &self.backfill;
        backfill.copying.store(true, Relaxed);
        backfill.rows_before.store(0, Relaxed);
        backfill.rows.store(0, Relaxed);
        backfill.bytes.store(0, Relaxed);
        backfill.rows_estimated.store(rows_estimated, Relaxed);
        backfill.started_ms.store(now_ms(), Relaxed);
        backfill.ended_ms.store(0, Relaxed);
        self.set_state(TableState::Backfilling);
    }

    /// Rows were read, and `bytes` of them.
    pub fn backfilled(&self, rows: u64, bytes: u64) {
        self.backfill.rows.fetch_add(rows, Relaxed);
        self.backfill.bytes.fetch_add(bytes, Relaxed);
    }

    /// The copy is held up.
    pub fn backfill_paused(&self) {
        self.set_state(TableState::Paused);
    }

    /// It goes on.
    pub fn backfill_resumed(&self) {
        self.set_state(TableState::Backfilling);
    }

    /// The backfill is complete and durable. A table that failed meanwhile is still shown as failed.
    pub fn backfill_ended(&self) {
        self.backfill.ended_ms.store(now_ms(), Relaxed);
        let mut state = lock(&self.state);
        if matches!(state.0, TableState::Backfilling | TableState::Paused) {
            *state = (TableState::Streaming, now_ms());
        }
    }

    /// This process delivers the table.
    pub fn owned(&self) {
        self.owned.store(true, Relaxed);
    }

    /// Nobody here delivers the table until delivery begins again; what is known of it still stands.
    pub fn interrupted(&self) {
        self.owned.store(false, Relaxed);
    }

    /// Another process delivers the table: what was known of its delivery is that one's to tell.
    pub fn left(&self) {
        self.owned.store(false, Relaxed);
        self.set_end_offset(0);
        self.set_staged_offset(0);
        self.set_gap(None);
    }

    pub(super) fn is_owned(&self) -> bool {
        self.owned.load(Relaxed)
    }

    /// End of the table's log partitions, summed.
    pub fn set_end_offset(&self, end: u64) {
        self.end.store(end, Relaxed);
    }

    /// Offset up to which its records are staged in the lake, summed over its log partitions.
    pub fn set_staged_offset(&self, staged: u64) {
        self.staged.store(staged, Relaxed);
    }

    /// The last day whose snapshot is published.
    pub fn set_published(&self, ds: Ds) {
        let days = EPOCH.until(ds).map_or(NONE_DAYS, |span| span.get_days());
        self.published.fetch_max(days, Relaxed);
    }

    /// Bytes of that snapshot which were written for it, and of those which are the day before's.
    pub fn set_published_bytes(&self, written: u64, copied: u64) {
        self.written_bytes.store(written, Relaxed);
        self.copied_bytes.store(copied, Relaxed);
    }

    /// The day that the historic tail of that snapshot is as of, where it has one, and the changes that are deferred.
    pub fn set_historic_tail(&self, tail: Option<(Ds, u64)>) {
        *lock(&self.tail) = tail;
    }

    /// Bytes of files that are made of the next day already.
    pub fn set_premerged_bytes(&self, bytes: u64) {
        self.premerged_bytes.store(bytes, Relaxed);
    }

    /// The table is isolated.
    pub fn failed(&self, error: &Error) {
        self.set_state(failure(error));
    }

    /// Capture refuses the table for that reason, or, with none, takes it.
    pub fn refused(&self, error: Option<&Error>) {
        *lock(&self.refused) = error.map(|error| (failure(error), now_ms()));
    }

    /// Records of it are lost, or, with none, it is whole again.
    pub fn set_gap(&self, gap: Option<Gap>) {
        *lock(&self.gap) = gap;
    }

    /// The table's shape changed at the source; `unapplied` says what of that is not carried over.
    pub fn schema_changed(&self, unapplied: Option<String>) {
        self.schema_changes.fetch_add(1, Relaxed);
        if let Some(detail) = unapplied {
            self.schema_changes_unapplied.fetch_add(1, Relaxed);
            *lock(&self.unapplied) = Some(Unapplied { detail, at_ms: now_ms() });
        }
    }

    /// All schema changes, and those that are not applied or not in all parts.
    pub(super) fn schema_changes(&self) -> (u64, u64) {
        (self.schema_changes.load(Relaxed), self.schema_changes_unapplied.load(Relaxed))
    }

    pub(super) fn unapplied(&self) -> Option<Unapplied> {
        lock(&self.unapplied).clone()
    }

    /// What is missing of it, or, with none, that it is whole again.
    pub fn set_lacking(&self, lacking: Option<Lacking>) {
        *lock(&self.lacking) = lacking;
    }

    pub(super) fn lacking(&self) -> Option<Lacking> {
        lock(&self.lacking).clone()
    }

    pub(super) fn gap(&self) -> Option<Gap> {
        lock(&self.gap).clone()
    }

    /// What happens to it.
    pub fn set_state(&self, state: TableState) {
        let mut held = lock(&self.state);
        if held.0 != state {
            *held = (state, now_ms());
        }
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub(super) fn records(&self) -> u64 {
        self.records.load(Relaxed)
    }

    pub(super) fn dead_letters(&self) -> u64 {
        self.dead_letters.load(Relaxed)
    }

    pub(super) fn commit_ms(&self) -> Option<i64> {
        Some(self.commit_ms.load(Relaxed)).filter(|ms| *ms != NONE_MS)
    }

    pub(super) fn position(&self) -> Option<Position> {
        *lock(&self.position)
    }

    /// Records in the log that are not staged yet.
    pub(super) fn undelivered(&self) -> u64 {
        self.end.load(Relaxed).saturating_sub(self.staged.load(Relaxed))
    }

    pub(super) fn end_offset(&self) -> u64 {
        self.end.load(Relaxed)
    }

    pub(super) fn staged_offset(&self) -> u64 {
        self.staged.load(Relaxed)
    }

    pub(super) fn published(&self) -> Option<Ds> {
        let days = self.published.load(Relaxed);
        if days == NONE_DAYS { None } else { EPOCH.checked_add(days.days()).ok() }
    }

    /// Bytes of files that are made of the next day already.
    pub(super) fn premerged_bytes(&self) -> u64 {
        self.premerged_bytes.load(Relaxed)
    }

    /// The day that the last published snapshot's historic tail is as of, and the changes that are deferred.
    pub(super) fn historic_tail(&self) -> Option<(Ds, u64)> {
        *lock(&self.tail)
    }

    /// Bytes of the last published snapshot: written, copied.
    pub(super) fn published_bytes(&self) -> (u64, u64) {
        (self.written_bytes.load(Relaxed), self.copied_bytes.load(Relaxed))
    }

    pub(super) fn backfill(&self) -> Backfill {
        Backfill {
            copying: self.backfill.copying.load(Relaxed),
            rows_before: self.backfill.rows_before.load(Relaxed),
            rows: self.backfill.rows.load(Relaxed),
            bytes: self.backfill.bytes.load(Relaxed),
            rows_estimated: self.backfill.rows_estimated.load(Relaxed),
            started_ms: self.backfill.started_ms.load(Relaxed),
            ended_ms: self.backfill.ended_ms.load(Relaxed),
        }
    }

    /// The state and when it began.
    pub(super) fn state(&self) -> (TableState, i64) {
        let refused = lock(&self.refused).clone();
        refused.unwrap_or_else(|| lock(&self.state).clone())
    }
}

fn failure(error: &Error) -> TableState {
    TableState::Failed { reason: error.message(), mend: error.mend_text().map(str::to_owned) }
}
