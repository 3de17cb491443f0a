//! When to cut. Pure: it decides from the stream alone, so that every restart decides the same.
//!
//! ```text
//!   commit ─ commit ─ commit | commit ─ …        cut before the first commit past midnight
//!     …   ─ marker ─ commit ─┘                   or after the marker which `tidemark cut` left in the stream
//! ```
//!
//! Midnight comes out of the stream, too: an idle database has no commit past midnight, so capture makes one,
//! a transactional logical message (it touches no table). Local clocks only decide when that message is sent;
//! where the cut falls, the server's commit times decide, and they are in the WAL for good.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::change::{Calendar, Ds};
use crate::runtime::{Error, Result};

use super::state::CutState;

/// Prefix of the logical messages which ask for a cut.
pub const MARKER_PREFIX: &str = "tidemark.cut";

/// Content of such a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The slot it is meant for; other connectors on the same database leave it alone.
    pub slot: String,
    /// The day to cut, if somebody asked for it; none for a mere sign of life past midnight.
    pub ds: Option<Ds>,
}

/// A cut to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The day.
    pub ds: Ds,
    /// The instant it stands for.
    pub at: Timestamp,
}

/// Decides when to cut.
#[derive(Debug)]
pub struct Cutter {
    calendar: Calendar,
    state: CutState,
}

impl Cutter {
    /// Goes on from a state.
    pub const fn new(calendar: Calendar, state: CutState) -> Self {
        Self { calendar, state }
    }

    /// The first state: the day in which the backfill ends is the first to be cut.
    pub fn first(calendar: &Calendar, now_us: i64) -> CutState {
        CutState { last_ds: None, next_ds: calendar.day_of_us(now_us) }
    }

    /// The rule of days.
    pub const fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// The end of the day that is cut next, in microseconds since 1970.
    pub fn boundary_us(&self) -> i64 {
        self.calendar.end_of(self.state.next_ds).as_microsecond()
    }

    /// The cut that is due before a transaction of this commit time. Call until there is none: after days
    /// without a commit several are due at the same place.
    pub fn due_before(&self, commit_us: i64) -> Option<Due> {
        let at = self.calendar.end_of(self.state.next_ds);
        (commit_us >= at.as_microsecond()).then_some(Due { ds: self.state.next_ds, at })
    }

    /// The cut that is due after a transaction with a marker; none when its day has been cut meanwhile.
    pub fn due_after(&self, marker: &Marker, commit_us: i64) -> Option<Due> {
        let ds =
            marker.ds.filter(|ds| *ds >= self.state.next_ds && *ds <= self.calendar.day_of_us(commit_us))?;
        Some(Due { ds, at: Timestamp::from_microsecond(commit_us).unwrap_or(Timestamp::MAX) })
    }

    /// Checks a request; `now_us` is the server's clock. Gives the day.
    pub fn check_request(&self, ds: Option<Ds>, now_us: i64) -> Result<Ds> {
        let today = self.calendar.day_of_us(now_us);
        let ds = ds.unwrap_or(today);
        if self.state.last_ds.is_some_and(|last| ds <= last) {
            return Err(Error::operator(format!(
                "ds={ds} cannot be cut: the days up to {} have been",
                self.state.next_ds.yesterday().unwrap_or(ds)
            ))
            .mend("A cut is made once and never changes; ask for a later day."));
        }
        if ds < self.state.next_ds {
            return Err(Error::operator(format!(
                "ds={ds} cannot be cut: the first day held is {}",
                self.state.next_ds
            ))
            .mend("Ask for that day or a later one."));
        }
        if ds > today {
            return Err(Error::operator(format!(
                "ds={ds} cannot be cut: it has not begun (today is {today}, {})",
                self.calendar.time_zone()
            ))
            .mend("Ask for today, or wait: at its end a day is cut without being asked for."));
        }
        Ok(ds)
    }

    /// Notes that the cut is made.
    pub fn made(&mut self, ds: Ds) {
        self.state = self.after(ds);
    }

    /// The state after a cut.
    pub fn after(&self, ds: Ds) -> CutState {
        debug_assert!(ds >= self.state.next_ds, "cuts only go forward");
        CutState { last_ds: Some(ds), next_ds: ds.tomorrow().unwrap_or(ds) }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    fn day(text: &str) -> Ds {
        text.parse().unwrap()
    }

    fn cutter() -> Cutter {
        let calendar = Calendar::new("00:00".parse().unwrap(), TimeZone::get("Asia/Dubai").unwrap());
        let state = Cutter::first(&calendar, us("2026-11-20T12:00:00Z"));
        Cutter::new(calendar, state)
    }

    #[test]
    fn the_first_commit_at_or_past_midnight_makes_the_cut_due_before_it() {
        let cutter = cutter();
        assert_eq!(cutter.due_before(us("2026-11-20T19:59:59.999999Z")), None);
        let due = cutter.due_before(us("2026-11-20T20:00:00Z")).unwrap();
        assert_eq!((due.ds, due.at), (day("2026-11-20"), "2026-11-20T20:00:00Z".parse().unwrap()));
    }

    #[test]
    fn after_days_of_silence_each_day_gets_its_cut() {
        let mut cutter = cutter();
        let mut days = Vec::new();
        while let Some(due) = cutter.due_before(us("2026-11-22T20:00:01Z")) {
            days.push(due.ds.to_string());
            cutter.made(due.ds);
        }
        assert_eq!(days, ["2026-11-20", "2026-11-21", "2026-11-22"]);
    }

    #[test]
    fn commit_times_that_step_back_over_midnight_do_not_cut_again() {
        let mut cutter = cutter();
        cutter.made(day("2026-11-20"));
        assert_eq!(cutter.due_before(us("2026-11-20T19:59:00Z")), None);
        assert_eq!(cutter.due_before(us("2026-11-20T20:00:01Z")), None);
    }

    #[test]
    fn a_day_asked_for_is_cut_once_and_only_while_it_lasts() {
        let mut cutter = cutter();
        let noon = us("2026-11-20T12:00:00Z");
        assert_eq!(cutter.check_request(None, noon).unwrap(), day("2026-11-20"));
        assert!(cutter.check_request(Some(day("2026-11-21")), noon).is_err());
        assert!(cutter.check_request(Some(day("2026-11-19")), noon).is_err());
        let marker = Marker { slot: "s".into(), ds: Some(day("2026-11-20")) };
        assert_eq!(cutter.due_after(&marker, noon).unwrap().ds, day("2026-11-20"));
        cutter.made(day("2026-11-20"));
        assert_eq!(cutter.due_after(&marker, noon), None, "a second marker for the day");
        assert!(cutter.check_request(None, noon).is_err());
        assert_eq!(
            cutter.due_before(us("2026-11-20T20:00:00Z")),
            None,
            "midnight of a day that was cut at noon"
        );
    }
}
