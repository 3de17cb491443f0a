//! Days and microseconds as text and back, in the proleptic Gregorian calendar, for every year of 32-bit days.
//! Years are astronomical: 0 is 1 BC.

use crate::batch::columns::{DATE_INFINITY, TIME_MAX, TIMESTAMP_INFINITY};
use crate::change::Datum;

const DAY_MICROS: i64 = 86_400_000_000;
/// 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;

/// Year, month and day of a day counted from 1970-01-01. Years begin in March, so that the leap day is
/// their last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, u8, u8) {
    let shifted = days + EPOCH_DAYS;
    let (era, day) = (shifted.div_euclid(ERA_DAYS), shifted.rem_euclid(ERA_DAYS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    (era * 400 + year + i64::from(month <= 2), month as u8, day as u8)
}

/// The reverse of [`civil`]; `None` for a date that does not exist.
fn days(year: i64, month: u8, day: u8) -> Option<i64> {
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let shifted = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let march_month = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + i64::from(day) - 1;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * ERA_DAYS + day_of_era - EPOCH_DAYS;
    (civil(days) == (year, month, day)).then_some(days)
}

pub(super) fn write_date(days: i32, out: &mut Vec<u8>) {
    match days {
        DATE_INFINITY => out.extend_from_slice(b"infinity"),
        days if days == -DATE_INFINITY => out.extend_from_slice(b"-infinity"),
        days => write_day(days.into(), out),
    }
}

fn write_day(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(days);
    if year < 0 {
        out.push(b'-');
    }
    write_number(year.unsigned_abs(), 4, out);
    out.push(b'-');
    write_number(month.into(), 2, out);
    out.push(b'-');
    write_number(day.into(), 2, out);
}

/// A date as a [`Datum`](crate::change::Datum) has it.
pub(in crate::batch) fn write_date_value(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MIN => write_date(-DATE_INFINITY, out),
        days => write_date(days, out),
    }
}

pub(in crate::batch) fn write_time(micros: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = ((micros / 1_000_000) as u64, (micros % 1_000_000) as u64);
    for (number, width, after) in [
        (seconds / 3600, 2, Some(b':')),
        (seconds / 60 % 60, 2, Some(b':')),
        (seconds % 60, 2, Some(b'.')),
        (fraction, 6, None),
    ] {
        write_number(number, width, out);
        out.extend(after);
    }
}

pub(in crate::batch) fn write_timestamp(micros: i64, utc: bool, out: &mut Vec<u8>) {
    match micros {
        TIMESTAMP_INFINITY => out.extend_from_slice(b"infinity"),
        micros if micros == -TIMESTAMP_INFINITY => out.extend_from_slice(b"-infinity"),
        micros => write_instant(micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS), utc, out),
    }
}

/// A timestamp as a [`Datum`](crate::change::Datum) has it: of any year.
pub(in crate::batch) fn write_timestamp_value(micros: i128, utc: bool, out: &mut Vec<u8>) {
    match micros {
        Datum::INFINITY => write_timestamp(TIMESTAMP_INFINITY, utc, out),
        Datum::NEG_INFINITY => write_timestamp(-TIMESTAMP_INFINITY, utc, out),
        micros => {
            let day = i128::from(DAY_MICROS);
            write_instant(micros.div_euclid(day) as i64, micros.rem_euclid(day) as i64, utc, out);
        }
    }
}

fn write_instant(day: i64, time: i64, utc: bool, out: &mut Vec<u8>) {
    write_day(day, out);
    out.push(b' ');
    write_time(time, out);
    if utc {
        out.extend_from_slice(b"+00");
    }
}

fn write_number(number: u64, width: usize, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number).as_bytes();
    out.resize(out.len() + width.saturating_sub(digits.len()), b'0');
    out.extend_from_slice(digits);
}

/// Days at rest of what [`write_date`] wrote.
pub(super) fn parse_date(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => Some(DATE_INFINITY),
        b"-infinity" => Some(-DATE_INFINITY),
        text => i32::try_from(parse_day(text)?).ok(),
    }
}

fn parse_day(text: &[u8]) -> Option<i64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let [year @ .., b'-', m1, m2, b'-', d1, d2] = text else { return None };
    if year.len() < 4 {
        return None;
    }
    let year = number(year)?;
    days(if negative { -year } else { year }, number(&[*m1, *m2])? as u8, number(&[*d1, *d2])? as u8)
}

/// Microseconds of what [`write_time`] wrote; the fraction may have fewer digits, or none.
pub(in crate::batch) fn parse_time(text: &[u8]) -> Option<i64> {
    let (clock, fraction) = text.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = clock else { return None };
    let (hours, minutes, seconds) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?);
    let fraction = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) => {
            number(digits)? * 10_i64.pow(6 - digits.len() as u32)
        }
        _ => return None,
    };
    let micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction;
    (minutes < 60 && seconds < 60 && micros <= TIME_MAX).then_some(micros)
}

/// Microseconds at rest of what [`write_timestamp`] wrote.
pub(in crate::batch) fn parse_timestamp(text: &[u8], utc: bool) -> Option<i64> {
    match text {
        b"infinity" => return Some(TIMESTAMP_INFINITY),
        b"-infinity" => return Some(-TIMESTAMP_INFINITY),
        _ => {}
    }
    let text = if utc { text.strip_suffix(b"+00")? } else { text };
    let space = text.iter().position(|b| *b == b' ')?;
    let (day, time) = (parse_day(&text[..space])?, parse_time(&text[space + 1..])?);
    // The first day that 64 bits hold begins before them: the sum alone is within.
    let micros = i128::from(day) * i128::from(DAY_MICROS) + i128::from(time);
    i64::try_from(micros).ok().filter(|at| at.unsigned_abs() < TIMESTAMP_INFINITY.unsigned_abs())
}

fn number(digits: &[u8]) -> Option<i64> {
    let fits = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    fits.then(|| digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(days: i32) -> String {
        let mut out = Vec::new();
        write_date(days, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn days_agree_with_another_calendar_and_round_trip() {
        let epoch = jiff::civil::date(1970, 1, 1);
        for days in (-4_000_000..2_900_000).step_by(997) {
            let expected = epoch.checked_add(jiff::Span::new().days(days)).unwrap();
            let text = date(days);
            let year = i64::from(expected.year());
            let sign = if year < 0 { "-" } else { "" };
            let (month, day) = (expected.month(), expected.day());
            assert_eq!(text, format!("{sign}{:04}-{month:02}-{day:02}", year.abs()));
            assert_eq!(parse_date(text.as_bytes()), Some(days));
        }
        for days in [i32::MIN + 2, -2_440_588, 2_145_042_905, i32::MAX - 1, i32::MAX, -i32::MAX] {
            assert_eq!(parse_date(date(days).as_bytes()), Some(days));
        }
        assert_eq!(date(-719_528 - 365), "-0001-01-01", "2 BC");
    }

    #[test]
    fn timestamps_reach_the_ends_of_64_bits() {
        for micros in [i64::MIN + 2, -1, 0, 1, i64::MAX - 1, i64::MAX, -i64::MAX] {
            for utc in [false, true] {
                let mut out = Vec::new();
                write_timestamp(micros, utc, &mut out);
                assert_eq!(parse_timestamp(&out, utc), Some(micros));
            }
        }
    }

    #[test]
    fn what_is_no_date_or_time_is_refused() {
        for bad in ["", "2026-02-29", "2026-13-01", "2026-00-01", "2026-01-00", "26-01-01", "2026-1-1", "x"] {
            assert_eq!(parse_date(bad.as_bytes()), None, "{bad:?} was taken");
        }
        for bad in ["", "24:00:01", "10:60:00", "10:00:60", "10:00:00.", "10:00:00.1234567", "1:00:00"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad:?} was taken");
        }
        assert_eq!(parse_timestamp(b"2026-01-01 10:00:00", true), None, "an instant has an offset");
    }
}
