//! Cuts, and the days which they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::{lock, now_ms};
use crate::change::{Ds, TableName};
use crate::runtime::Error;

/// Days that are remembered.
const DAYS_MAX: usize = 14;
/// Published days whose tables are remembered one by one.
const DETAILED_MAX: usize = 2;

/// Cuts and published days. Written when something happens to a day, never for each row.
#[derive(Debug, Default)]
pub struct Days {
    held: Mutex<Held>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub last_cut: Option<Ds>,
    pub next_cut_due_ms: Option<i64>,
    pub cut_in_progress: Option<Ds>,
    pub days: BTreeMap<Ds, Day>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Day {
    pub cut_ms: i64,
    pub published_ms: Option<i64>,
    pub tables: u64,
    pub tables_published: u64,
    pub tables_missing: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Empty for a day that was published some time ago.
    pub detail: BTreeMap<TableName, DayTable>,
}

/// A table of a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DayTable {
    /// Its turn has not come.
    Waiting,
    /// Its snapshot is being made.
    Merging,
    /// Its snapshot is there.
    Published {
        /// Rows of the snapshot.
        rows: u64,
        /// Bytes of its files.
        bytes: u64,
    },
    /// It is not in the day, and never will be.
    Missing {
        /// Why.
        reason: String,
    },
    /// Its snapshot could not be made; tried again.
    Failed {
        /// Why.
        reason: String,
        /// What to do.
        mend: Option<String>,
    },
}

impl DayTable {
    /// A failure.
    pub fn failed(error: &Error) -> Self {
        Self::Failed { reason: error.message(), mend: error.mend_text().map(str::to_owned) }
    }
}

impl Days {
    /// When the next cut is due, milliseconds since 1970.
    pub fn cut_due(&self, at_ms: i64) {
        lock(&self.held).next_cut_due_ms = Some(at_ms);
    }

    /// A cut for this day has begun.
    pub fn cut_began(&self, ds: Ds) {
        lock(&self.held).cut_in_progress = Some(ds);
    }

    /// The cut is durable; these are the tables of the day. Known days keep what is known of their tables.
    pub fn cut_made(&self, ds: Ds, cut_ms: i64, tables: impl IntoIterator<Item = TableName>) {
        let tables: BTreeSet<_> = tables.into_iter().collect();
        let mut held = lock(&self.held);
        held.last_cut = held.last_cut.max(Some(ds));
        held.cut_in_progress = held.cut_in_progress.filter(|begun| *begun != ds);
        let day = held.days.entry(ds).or_default();
        day.cut_ms = cut_ms;
        if day.published_ms.is_none() {
            day.tables = tables.len() as u64;
            for table in tables {
                day.detail.entry(table).or_insert(DayTable::Waiting);
            }
        }
        while held.days.len() > DAYS_MAX {
            held.days.pop_first();
        }
    }

    /// What happens to a table of a day that was cut; of other days nothing is remembered.
    pub fn table(&self, ds: Ds, table: &TableName, state: DayTable) {
        let mut held = lock(&self.held);
        let Some(day) = held.days.get_mut(&ds) else { return };
        let missing = matches!(state, DayTable::Missing { .. });
        let before = day.detail.insert(table.clone(), state.clone());
        if missing && !matches!(before, Some(DayTable::Missing { .. })) {
            day.tables_missing += 1;
        }
        day.tables = day.tables.max(day.detail.len() as u64);
        // A table is published once; saying it again changes nothing.
        if let (DayTable::Published { rows, bytes }, false) =
            (state, matches!(before, Some(DayTable::Published { .. })))
        {
            day.tables_published += 1;
            day.rows += rows;
            day.bytes += bytes;
        }
    }

    /// The day's own manifest is there: the day is complete.
    pub fn published(&self, ds: Ds) {
        let mut held = lock(&self.held);
        let Some(day) = held.days.get_mut(&ds) else { return };
        day.published_ms.get_or_insert_with(now_ms);
        let published = held.days.iter_mut().rev().filter(|(_, day)| day.published_ms.is_some());
        for (_, day) in published.skip(DETAILED_MAX) {
            day.detail.clear();
        }
    }

    pub(super) fn held(&self) -> Held {
        lock(&self.held).clone()
    }
}
