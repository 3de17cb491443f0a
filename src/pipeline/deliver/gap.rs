//! What was lost of a table between the log and the lake, and when the table is whole again.
//!
//! ```text
//!   staged ───────> [ gap: the log's retention has passed it ] ─────── cut ──────── copy ─── cut with the copy ──>
//!   days are made                                            the table is missing           days are made again
//! ```
//!
//! A table that lacks changes cannot be made from the day before. It can from a new copy whose changes begin behind the
//! gap ([`CutBackfill::from`](crate::change::CutBackfill::from)), and only from one: so also after a day which the table
//! is not in, whatever is staged since, since a day is checked against the changes counted from one cut to the next.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use crate::change::{BACKFILL_PARTITION, Cut, CutBackfill, Ds, LogEnd};
use crate::log::Offset;

use super::journal::Journal;

/// A table needs a new copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// What is lost.
    pub reason: String,
    /// Offsets that are lost, all log partitions together.
    pub offsets: u64,
    /// By log partition, the first offset that is not lost: a copy that begins there or later will do.
    pub after: Vec<LogEnd>,
}

/// The gaps of one table, by log partition.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    lost: BTreeMap<u32, Range<Offset>>,
}

impl Gaps {
    /// Notes a gap, which joins the one before it in the log partition; whether it is new. Gaps in the copies' topic only
    /// matter to the copy that lies there.
    pub fn note(&mut self, partition: u32, gap: Range<Offset>) -> bool {
        let known = self.lost.entry(partition).or_insert_with(|| gap.start..gap.start);
        let new = gap.end > known.end;
        known.end = known.end.max(gap.end);
        new && partition != BACKFILL_PARTITION
    }

    /// Why the table cannot be made at this cut; none when it can. `held` are its last day published and the last
    /// one decided.
    pub fn lacking(
        &self,
        journal: &Journal,
        topic: &str,
        held: (Option<Ds>, Option<Ds>),
        cut: &Cut,
    ) -> Option<String> {
        let copy = cut.tables.get(topic).and_then(|table| table.backfill.as_ref());
        match copy {
            Some(copy) if self.is_mended_by(copy) => None,
            Some(_) => Some(format!("records that its new copy needs are gone: {}", self.told(topic))),
            None => self.reason(journal, topic, held),
        }
    }

    /// What only a new copy can mend, unless a cut that is still to come has one.
    pub fn needed(
        &self,
        journal: &Journal,
        topic: &str,
        (published, decided): (Option<Ds>, Option<Ds>),
    ) -> Option<Needed> {
        let reason = self.reason(journal, topic, (published, decided))?;
        let mut to_come =
            journal.cuts_after(decided).filter_map(|cut| cut.tables.get(topic)?.backfill.as_ref());
        if to_come.any(|copy| self.is_mended_by(copy)) {
            return None;
        }
        let after = self.of_table().map(|(partition, gap)| LogEnd { partition, end: gap.end });
        let offsets = self.of_table().map(|(_, gap)| gap.end - gap.start).sum();
        Some(Needed { reason, offsets, after: after.collect() })
    }

    fn reason(
        &self,
        journal: &Journal,
        topic: &str,
        (published, decided): (Option<Ds>, Option<Ds>),
    ) -> Option<String> {
        if self.of_table().next().is_some() {
            return Some(format!(
                "the log's retention has passed records before they were staged: {}",
                self.told(topic)
            ));
        }
        let mut cuts = journal.cuts_after(published).take_while(|cut| Some(cut.ds) <= decided);
        let missed = cuts.find(|cut| cut.tables.contains_key(topic))?;
        Some(format!(
            "the table is missing from {}, and what follows cannot be made without a new copy",
            missed.ds
        ))
    }

    fn is_mended_by(&self, copy: &CutBackfill) -> bool {
        self.lost.iter().all(|(partition, gap)| {
            let from = copy.from_of(*partition);
            from >= gap.end || (*partition == BACKFILL_PARTITION && copy.end <= gap.start)
        })
    }

    fn of_table(&self) -> impl Iterator<Item = (u32, &Range<Offset>)> {
        self.lost.iter().map(|(partition, gap)| (*partition, gap)).filter(|(p, _)| *p != BACKFILL_PARTITION)
    }

    fn told(&self, topic: &str) -> String {
        let mut text = String::new();
        for (partition, gap) in &self.lost {
            let joined = if text.is_empty() { "" } else { ", " };
            let shown = if *partition == BACKFILL_PARTITION {
                "its copies".to_owned()
            } else {
                format!("{topic}/{partition}")
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "{joined}offsets {}..{} of {shown}", gap.start, gap.end);
        }
        text
    }
}
