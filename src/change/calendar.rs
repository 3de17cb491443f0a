//! Days, as cuts divide them.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use super::Ds;

/// The rule by which instants belong to days: a time of day in a time zone at which one day ends.
///
/// The day `ds` lasts from its own date at that time up to, and not including, the next date at that time.
/// Where the clocks skip the time, the day ends when they have skipped it; where they show it twice, at the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    at: Time,
    zone: TimeZone,
}

impl Calendar {
    /// A calendar whose days end at `at` in `zone`.
    pub const fn new(at: Time, zone: TimeZone) -> Self {
        Self { at, zone }
    }

    /// IANA name of the time zone.
    pub fn time_zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The instant at which the day ends, which is the first of the next. Saturates at the end of time.
    pub fn end_of(&self, ds: Ds) -> Timestamp {
        let next = ds.tomorrow().unwrap_or(ds);
        self.zone
            .to_ambiguous_zoned(next.to_datetime(self.at))
            .compatible()
            .map_or(Timestamp::MAX, |z| z.timestamp())
    }

    /// The day which holds the instant.
    pub fn day_of(&self, instant: Timestamp) -> Ds {
        // Near a change of the clocks the civil date may be one off: settle it by the instants themselves.
        let mut ds = self.zone.to_datetime(instant).date();
        while self.end_of(ds) <= instant && ds != Ds::MAX {
            ds = ds.saturating_add(1.day());
        }
        while let Ok(before) = ds.yesterday() {
            if instant >= self.end_of(before) {
                break;
            }
            ds = before;
        }
        ds
    }

    /// The day which holds an instant given in microseconds since 1970; clamped to the range of dates.
    pub fn day_of_us(&self, us: i64) -> Ds {
        let since = SignedDuration::from_micros(us);
        let clamped = if us < 0 { Timestamp::MIN } else { Timestamp::MAX };
        self.day_of(Timestamp::from_duration(since).unwrap_or(clamped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(at: &str, zone: &str) -> Calendar {
        Calendar::new(at.parse().unwrap(), TimeZone::get(zone).unwrap())
    }

    fn day(text: &str) -> Ds {
        text.parse().unwrap()
    }

    fn instant(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_ends_at_local_midnight() {
        let dubai = calendar("00:00", "Asia/Dubai");
        assert_eq!(dubai.end_of(day("2026-11-20")), instant("2026-11-20T20:00:00Z"));
        assert_eq!(dubai.day_of(instant("2026-11-20T19:59:59.999999Z")), day("2026-11-20"));
        assert_eq!(dubai.day_of(instant("2026-11-20T20:00:00Z")), day("2026-11-21"));
    }

    #[test]
    fn a_day_may_end_in_the_morning() {
        let early = calendar("06:00", "UTC");
        assert_eq!(early.end_of(day("2026-11-20")), instant("2026-11-21T06:00:00Z"));
        assert_eq!(early.day_of(instant("2026-11-21T05:59:59Z")), day("2026-11-20"));
    }

    #[test]
    fn days_stay_in_order_where_the_clocks_change_at_midnight() {
        // Clocks skip 00:00 to 01:00 on 2018-11-04 in Sao Paulo, and repeat 23:00 on 2018-02-17.
        let paulo = calendar("00:00", "America/Sao_Paulo");
        let mut ends: Vec<_> = ["2018-02-16", "2018-02-17", "2018-11-02", "2018-11-03", "2018-11-04"]
            .map(|d| (paulo.end_of(day(d)), day(d)))
            .into();
        assert!(ends.is_sorted());
        for (end, ds) in ends.drain(..) {
            let last = end - SignedDuration::from_micros(1);
            assert_eq!(paulo.day_of(last), ds, "the last microsecond of {ds}");
            assert_eq!(paulo.day_of(end), ds.tomorrow().unwrap(), "the first of the day after {ds}");
        }
    }
}
