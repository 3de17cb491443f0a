//! The historic tail: the parts of a big table that are published weekly, while the recent window is published daily.
//!
//! ```text
//!   Sunday       [part 0][part 1][part 2] │ [part 3][part 4]        whole: every part is as of Sunday's cut
//!   Monday       [part 0][part 1][part 2] │ [part 3][part 4'][5]    carried, as of Sunday │ as of Monday's cut
//!   …            changes to keys of parts 0 to 2 are deferred, and counted
//!   next Sunday  whole: what was deferred is applied, and the window begins anew
//! ```
//!
//! The last day of a month is whole, too: it is the one that is kept. The division follows from the day before and the plan: from its manifest if that names a tail, and else the window are
//! its last parts that hold `recent_rows` together. A day on which nothing is outstanding is as of its own cut in
//! all its parts, and says nothing of a tail. Whether a day may leave the tail as it is, is in the plan that everybody
//! follows, so two processes with other configurations make the same day. [`super::merge::tail`] argues what is exact.
//!
//! A day needs the day before, and the change files since the tail's cut; where those begin by log partition goes from
//! manifest to manifest, so that a rule of retention may remove the days in between.

use jiff::ToSpan;
use jiff::civil::Weekday;
use serde::{Deserialize, Serialize};

use crate::change::{BACKFILL_PARTITION, Cut, Ds, LogEnd, TableSchema};
use crate::runtime::{Error, Result};

use super::Lake;
use super::manifest::{AsOf, HistoricTail, LogRange, Manifest, PartFile};
use super::merge::tail::{Deferral, Tail};
use super::merge::{KEY_ORDER, MergeFile, part_bounds};
use super::stage::chain;

/// New rows of the tail that are no sign of anything: some always come late.
const CAME_MIN: u64 = 100;

/// By configuration, of one table: which of its rows are published daily, and when all are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailRule {
    /// The recent window holds at least so many rows.
    pub recent_rows: u64,
    /// Days of this name are whole, and the last ones of months, which a rule of retention keeps.
    pub weekday: Weekday,
}

/// What a plan says of the tail, where the day may leave it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TailPlan {
    recent_rows: u64,
}

impl TailRule {
    /// For a day that continues another one: none on the first day since the tail's cut that has to be whole.
    pub(super) fn plan(self, previous: &Manifest, ds: Ds) -> Option<TailPlan> {
        let since = previous.historic_tail.as_ref().map_or(previous.ds, |tail| tail.as_of.ds);
        (!self.is_due(since, ds)).then_some(TailPlan { recent_rows: self.recent_rows })
    }

    /// Whether a day after another one ends with one that has to be whole, or such a one was passed in between.
    fn is_due(self, since: Ds, ds: Ds) -> bool {
        let back = ds.weekday().since(self.weekday);
        let weekday = ds.saturating_sub(i64::from(back).days());
        let is_month_end = ds == ds.last_of_month();
        let month_end = if is_month_end { ds } else { ds.first_of_month().saturating_sub(1.day()) };
        weekday.max(month_end) > since
    }

    /// Whether a table may have a tail on the day after this one.
    pub fn divides(self, manifest: &Manifest) -> bool {
        manifest.historic_tail.is_some() || before_window(&manifest.files, self.recent_rows) > 0
    }
}

/// How many of a day's parts lie before the window: the last of them that hold so many rows together.
fn before_window(parts: &[PartFile], recent_rows: u64) -> usize {
    let mut rows = 0;
    let window = parts.iter().rev().take_while(|part| {
        let short = rows < recent_rows;
        rows += part.rows;
        short
    });
    parts.len() - window.count()
}

impl Lake {
    /// The tail of the day before, with what was deferred; none if it has none, and may get none.
    pub(super) async fn tail_of(
        &self,
        (schema, cut): (&TableSchema, &Cut),
        plan: Option<&TailPlan>,
        previous: Option<&Manifest>,
    ) -> Result<Option<Tail>> {
        let Some(previous) = previous else { return Ok(None) };
        let held = previous.historic_tail.as_ref();
        let parts = match (held, plan) {
            (Some(held), _) => held.files as usize,
            (None, Some(plan)) => before_window(&previous.files, plan.recent_rows),
            (None, None) => 0,
        };
        let orders = previous.written.as_ref().is_some_and(|written| written.key_order == KEY_ORDER);
        let bounds = if orders { part_bounds(&previous.files)? } else { None };
        let Some((_, bound)) = bounds.and_then(|bounds| bounds.into_iter().nth(parts.checked_sub(1)?)) else {
            return if held.is_none() { Ok(None) } else { Err(unordered(previous)) };
        };
        let mut late = Vec::new();
        for begin in held.map_or(&[][..], |held| &held.log) {
            late.extend(self.deferred_files((schema, cut), previous, begin).await?);
        }
        Ok(Some(Tail { parts, bound, may_defer: plan.is_some(), late, deferred: previous.changes.deferred }))
    }

    /// The change files of a log partition since the tail's cut, up to the cut of the day before.
    async fn deferred_files(
        &self,
        (schema, cut): (&TableSchema, &Cut),
        previous: &Manifest,
        begin: &LogEnd,
    ) -> Result<Vec<MergeFile>> {
        let (from, end) = (begin.end, previous.end_of(begin.partition));
        let since = previous.historic_tail.as_ref().map(|tail| tail.as_of.ds);
        let range = (from, Some(end));
        let found = chain(&self.store, &self.layout, &schema.name, begin.partition, range, since).await?;
        if found.next != end {
            return Err(Error::operator(format!(
                "{} for {}: changes of its historic tail are deferred since offset {from} of log partition {}, and change \
                 files reach offset {}; the day before ends at {end}",
                schema.name, cut.ds, begin.partition, found.next
            ))
            .mend("Change files are needed for as long as the tail is as of an earlier day. If they were removed, bring them back, or copy the table again with `tidemark backfill`."));
        }
        Ok(found.files.into_iter().map(|file| MergeFile { file, offsets: 0..u64::MAX }).collect())
    }
}

fn unordered(previous: &Manifest) -> Error {
    Error::operator(format!(
        "{} of {} has a historic tail whose bounds this version does not read",
        previous.table, previous.ds
    ))
    .mend("Have the version that made it make a whole day ([[table]] historic_tail_weekday), or copy the table again with `tidemark backfill`.")
}

/// Says in a day's parts and beside them what is as of an earlier cut; none where nothing is.
pub(super) fn told(
    files: &mut [PartFile],
    deferral: Deferral,
    previous: Option<&Manifest>,
    log: &[LogRange],
) -> Option<HistoricTail> {
    let previous = previous.filter(|_| deferral.parts > 0)?;
    let (as_of, mut since) = match &previous.historic_tail {
        Some(held) => (held.as_of, held.log.clone()),
        None => {
            let ends = previous.log.iter().map(|range| LogEnd { partition: range.partition, end: range.end });
            (AsOf::of(previous), ends.filter(|end| end.partition != BACKFILL_PARTITION).collect())
        }
    };
    for range in log.iter().filter(|range| range.partition != BACKFILL_PARTITION) {
        if !since.iter().any(|end| end.partition == range.partition) {
            since.push(LogEnd { partition: range.partition, end: range.from });
        }
    }
    let (window, tail) = deferral.came;
    if tail > window.max(CAME_MIN) {
        tracing::warn!(
            table = %previous.table, to_the_tail = tail, to_the_window = window,
            "more new rows belong to the table's historic tail, where they wait, than to its recent window: its keys do not grow \
             with time in the order of its files. Take [[table]] historic_tail_weekday away from it"
        );
    }
    let tail = &mut files[..deferral.parts];
    for file in &mut *tail {
        file.as_of = Some(as_of);
    }
    let rows = tail.iter().map(|file| file.rows).sum();
    Some(HistoricTail { as_of, files: deferral.parts as u64, rows, log: since })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_day_is_whole_when_it_is_the_first_since_the_tails_cut_by_its_weekday_or_a_month_has_ended() {
        // 2026-11-15 and 2026-11-22 are Sundays.
        let rule = TailRule { recent_rows: 1, weekday: Weekday::Sunday };
        for (since, ds, whole) in [
            ("2026-11-15", "2026-11-16", false),
            ("2026-11-15", "2026-11-21", false),
            ("2026-11-15", "2026-11-22", true),
            ("2026-11-15", "2026-11-23", true),
            ("2026-11-16", "2026-11-17", false),
            ("2026-11-29", "2026-11-30", true),
            ("2026-11-29", "2026-12-01", true),
            ("2026-11-30", "2026-12-01", false),
            ("2026-11-15", "2027-11-16", true),
        ] {
            let (since, ds) = (since.parse().unwrap(), ds.parse().unwrap());
            assert_eq!(rule.is_due(since, ds), whole, "{since} {ds}");
        }
    }

    #[test]
    fn the_window_are_the_last_parts_that_hold_so_many_rows() {
        let part = |rows| PartFile {
            path: String::new(),
            rows,
            bytes: 0,
            bytes_decoded: 0,
            sha256: String::new(),
            min_key: None,
            max_key: None,
            min_order: None,
            max_order: None,
            exact: BTreeMap::new(),
            copied_from: None,
            as_of: None,
        };
        let parts = [part(5), part(10), part(20), part(1)];
        let wanted = [(1, 3), (2, 2), (21, 2), (22, 1), (31, 1), (32, 0), (1000, 0)];
        for (recent_rows, tail) in wanted {
            assert_eq!(before_window(&parts, recent_rows), tail, "{recent_rows}");
        }
        assert_eq!(before_window(&[], 1), 0);
    }
}
