//! When a change file ends that no further record comes for.
//!
//! A table that is not written to any more has its last changes in an open file until the next record or the cut shows that
//! the hour is over. So the clock of this machine is asked, too: the file ends once its hour has been over for a while, and
//! nothing has come for [`QUIET`]. Without the second, capture that catches up would have a file made of each of its appends,
//! all of hours that are over. Neither is needed for the rows to be right: one that comes later is in another file.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::lake::Stager;
use crate::log::Offset;

/// Nothing has come for so long.
const QUIET: Duration = Duration::from_secs(30);

/// A clock may be set: whether an hour is over is looked at this often.
const LOOK: Duration = Duration::from_secs(60);

/// What has come last, by log partition.
#[derive(Debug, Default)]
pub(super) struct Hours(BTreeMap<u32, (Offset, Instant)>);

impl Hours {
    /// Whether the open file of a log partition, all of which was read, has ended at `now_us`, microseconds since 1970.
    pub(super) fn is_over(&mut self, number: u32, stager: &Stager, now_us: i64) -> bool {
        let next = stager.next_offset();
        let seen = self.0.entry(number).or_insert_with(|| (next, Instant::now()));
        if seen.0 != next {
            *seen = (next, Instant::now());
        }
        stager.ends_us().is_some_and(|ends_us| ends_us <= now_us) && seen.1.elapsed() >= QUIET
    }

    /// When to look again.
    pub(super) fn due<'a>(&self, stagers: impl Iterator<Item = (&'a u32, &'a Stager)>) -> Option<Instant> {
        let now_us = jiff::Timestamp::now().as_microsecond();
        let due = |(number, stager): (&u32, &Stager)| {
            let left = stager.ends_us()?.saturating_sub(now_us).max(0).cast_unsigned();
            let ends = Instant::now() + Duration::from_micros(left).min(LOOK);
            Some(self.0.get(number).map_or(ends, |(_, came)| ends.max(*came + QUIET)))
        };
        // Not at once: what keeps a file open now may do so for a while.
        stagers.filter_map(due).min().map(|due| due.max(Instant::now() + Duration::from_secs(1)))
    }
}
