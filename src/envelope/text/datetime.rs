//! Dates and times: Postgres's ISO style in, numbers or ISO 8601 out, and ISO 8601 in again.
//!
//! The calendar is the proleptic Gregorian one, as in Postgres (`src/backend/utils/adt/datetime.c`, `EncodeDateTime`
//! for the form, `date2j` for the calendar). Years are astronomical: 1 BC is year 0.

use super::Malformed;
use crate::change::Datum;

const DAY_US: i64 = 86_400_000_000;
const BAD_DATE: Malformed = Malformed("not a date in ISO style");
const BAD_TIME: Malformed = Malformed("not a time of day");
const BAD_TIMESTAMP: Malformed = Malformed("not a timestamp in ISO style");
const BAD_ZONE: Malformed = Malformed("not an offset from UTC");

/// A moment on the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    /// Microseconds since midnight.
    micros: i64,
}

/// A timestamp as printed: infinite, or a moment with the offset (seconds east of UTC) it is printed in.
enum Printed {
    Infinity,
    NegInfinity,
    At(Civil, i64),
}

/// `date` as printed by Postgres: days since 1970-01-01; `i32::MAX` and `i32::MIN` are the infinities.
pub fn date(text: &[u8]) -> Result<i32, Malformed> {
    match text {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(i32::MIN),
        _ => {}
    }
    let mut cursor = Cursor { rest: text };
    let (year, month, day) = cursor.year_month_day().ok_or(BAD_DATE)?;
    let year = cursor.era(year).ok_or(BAD_DATE)?;
    cursor.end(BAD_DATE)?;
    let days = days_since_1970(checked_date(year, month, day).ok_or(BAD_DATE)?);
    i32::try_from(days).ok().filter(|d| *d != i32::MAX && *d != i32::MIN).ok_or(BAD_DATE)
}

/// `time` as printed by Postgres: microseconds since midnight, 24:00 included.
pub fn time(text: &[u8]) -> Result<i64, Malformed> {
    let mut cursor = Cursor { rest: text };
    let micros = cursor.time_of_day().ok_or(BAD_TIME)?;
    cursor.end(BAD_TIME)?;
    Ok(micros)
}

/// `timestamp` as printed by Postgres: microseconds since 1970, or [`Datum::INFINITY`] and its negative.
pub fn timestamp(text: &[u8]) -> Result<i128, Malformed> {
    match printed(text, b' ', false)? {
        Printed::Infinity => Ok(Datum::INFINITY),
        Printed::NegInfinity => Ok(Datum::NEG_INFINITY),
        Printed::At(civil, _) => Ok(micros_since_1970(civil)),
    }
}

/// Writes a `timestamptz` as printed by Postgres, in any offset, as an ISO 8601 instant in UTC.
///
/// The form is Java's `ISO_OFFSET_DATE_TIME`, which Debezium writes, with at least `digits` digits after the seconds:
/// `2026-11-20T10:15:30.123400Z`; with 0, without trailing zeros and without a fraction when it is zero. Years beyond
/// four digits carry a sign (`+12026-…`), years before 1 AD are astronomical and negative (44 BC is `-0043`, 1 BC is
/// `0000`).
pub fn write_instant(digits: u8, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match printed(text, b' ', true)? {
        Printed::Infinity => out.extend_from_slice(b"infinity"),
        Printed::NegInfinity => out.extend_from_slice(b"-infinity"),
        Printed::At(civil, 0) => write_civil(civil, digits, out),
        Printed::At(civil, offset) => {
            let micros = micros_since_1970(civil) - i128::from(offset) * 1_000_000;
            write_civil(civil_at(micros), digits, out);
        }
    }
    Ok(())
}

/// Reads back what [`write_instant`] wrote, and any other ISO 8601 instant with an offset: microseconds
/// since 1970, or [`Datum::INFINITY`] and its negative.
pub fn instant(text: &[u8]) -> Result<i128, Malformed> {
    match printed(text, b'T', true)? {
        Printed::Infinity => Ok(Datum::INFINITY),
        Printed::NegInfinity => Ok(Datum::NEG_INFINITY),
        Printed::At(civil, offset) => Ok(micros_since_1970(civil) - i128::from(offset) * 1_000_000),
    }
}

fn printed(text: &[u8], separator: u8, zoned: bool) -> Result<Printed, Malformed> {
    match text {
        b"infinity" => return Ok(Printed::Infinity),
        b"-infinity" => return Ok(Printed::NegInfinity),
        _ => {}
    }
    let iso = separator == b'T';
    let mut cursor = Cursor { rest: text };
    let sign = if iso { cursor.sign() } else { 0 };
    let (year, month, day) = cursor.year_month_day().ok_or(BAD_TIMESTAMP)?;
    cursor.byte(separator).ok_or(BAD_TIMESTAMP)?;
    let micros = cursor.time_of_day().filter(|m| *m < DAY_US).ok_or(BAD_TIMESTAMP)?;
    let offset = if zoned { cursor.offset().ok_or(BAD_ZONE)? } else { 0 };
    let year = match (iso, sign) {
        (true, -1) => -year,
        (true, _) => year,
        (false, _) => cursor.era(year).ok_or(BAD_TIMESTAMP)?,
    };
    cursor.end(BAD_TIMESTAMP)?;
    let (year, month, day) = checked_date(year, month, day).ok_or(BAD_TIMESTAMP)?;
    Ok(Printed::At(Civil { year, month, day, micros }, offset))
}

fn checked_date(year: i64, month: u8, day: u8) -> Option<(i64, u8, u8)> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    (1..=last).contains(&day).then_some((year, month, day))
}

/// Days from 1970-01-01 to a date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn days_since_1970((year, month, day): (i64, u8, u8)) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn micros_since_1970(civil: Civil) -> i128 {
    let days = days_since_1970((civil.year, civil.month, civil.day));
    i128::from(days) * i128::from(DAY_US) + i128::from(civil.micros)
}

/// The calendar date of an instant: `civil_from_days` of the same paper.
fn civil_at(micros: i128) -> Civil {
    let days = micros.div_euclid(i128::from(DAY_US)) as i64;
    let micros = micros.rem_euclid(i128::from(DAY_US)) as i64;
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8;
    let month = (if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 }) as u8;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil { year, month, day, micros }
}

fn write_civil(civil: Civil, digits: u8, out: &mut Vec<u8>) {
    let year = civil.year.unsigned_abs();
    if civil.year < 0 {
        out.push(b'-');
    } else if year > 9_999 {
        out.push(b'+');
    }
    let seconds = civil.micros / 1_000_000;
    let [hour, minute, second] = [seconds / 3_600, seconds / 60 % 60, seconds % 60].map(pair);
    let [month, day] = [civil.month, civil.day].map(|n| pair(i64::from(n)));
    if year > 9_999 {
        out.extend_from_slice(itoa::Buffer::new().format(year).as_bytes());
    } else {
        let [century, rest] = [year / 100, year % 100].map(|n| pair(n as i64));
        out.extend_from_slice(&[century[0], century[1], rest[0], rest[1]]);
    }
    out.extend_from_slice(&[b'-', month[0], month[1], b'-', day[0], day[1], b'T']);
    out.extend_from_slice(&[hour[0], hour[1], b':', minute[0], minute[1], b':', second[0], second[1]]);
    write_fraction(civil.micros % 1_000_000, digits, out);
    out.push(b'Z');
}

fn write_fraction(micros: i64, digits_min: u8, out: &mut Vec<u8>) {
    if micros == 0 && digits_min == 0 {
        return;
    }
    let [a, b, c] = [micros / 10_000, micros / 100 % 100, micros % 100].map(pair);
    let digits = [b'.', a[0], a[1], b[0], b[1], c[0], c[1]];
    let zeros = digits.iter().rev().take_while(|d| **d == b'0').count();
    let length = (7 - zeros).max(1 + usize::from(digits_min.min(6)));
    out.extend_from_slice(&digits[..length]);
}

const fn pair(number: i64) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

/// Reads from the front of a text. A method that gives `None` leaves the text to be refused as a whole.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn byte(&mut self, expected: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        (*first == expected).then(|| self.rest = rest)
    }

    fn end(&self, error: Malformed) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(error) }
    }

    /// -1 or 1 for a sign, 0 where there is none.
    fn sign(&mut self) -> i64 {
        let sign = match self.rest.first() {
            Some(b'-') => -1,
            Some(b'+') => 1,
            _ => return 0,
        };
        self.rest = &self.rest[1..];
        sign
    }

    /// Two digits.
    fn two(&mut self) -> Option<u8> {
        let (digits, rest) = self.rest.split_first_chunk::<2>()?;
        let [tens, ones] = digits.map(|d| d.wrapping_sub(b'0'));
        self.rest = rest;
        (tens < 10 && ones < 10).then(|| tens * 10 + ones)
    }

    /// A year of four to seven digits, a month and a day, not yet checked against the calendar.
    fn year_month_day(&mut self) -> Option<(i64, u8, u8)> {
        let mut year = i64::from(self.two()?) * 100 + i64::from(self.two()?);
        for _ in 0..3 {
            match self.rest.first() {
                Some(digit @ b'0'..=b'9') => year = year * 10 + i64::from(digit - b'0'),
                _ => break,
            }
            self.rest = &self.rest[1..];
        }
        self.byte(b'-')?;
        let month = self.two()?;
        self.byte(b'-')?;
        Some((year, month, self.two()?))
    }

    /// The astronomical year of one that may be followed by ` BC`. Postgres has no year 0.
    fn era(&mut self, year: i64) -> Option<i64> {
        let before_christ = self.rest.strip_prefix(b" BC");
        self.rest = before_christ.unwrap_or(self.rest);
        (year != 0).then_some(if before_christ.is_some() { 1 - year } else { year })
    }

    /// `HH:MM:SS` with up to six digits of fraction, at most 24:00: microseconds since midnight.
    fn time_of_day(&mut self) -> Option<i64> {
        let hour = i64::from(self.two()?);
        self.byte(b':')?;
        let minute = i64::from(self.two()?);
        self.byte(b':')?;
        let second = i64::from(self.two()?);
        let mut fraction = 0;
        if self.byte(b'.').is_some() {
            let mut unit = 100_000;
            while let Some(digit @ b'0'..=b'9') = self.rest.first() {
                if unit == 0 {
                    return None;
                }
                fraction += i64::from(digit - b'0') * unit;
                unit /= 10;
                self.rest = &self.rest[1..];
            }
            if unit == 100_000 {
                return None;
            }
        }
        let micros = ((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction;
        (minute < 60 && second < 60 && micros <= DAY_US).then_some(micros)
    }

    /// `Z`, `+05`, `+05:30` or `-07:52:58`: seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        if self.byte(b'Z').is_some() {
            return Some(0);
        }
        let sign = self.sign();
        let mut seconds = i64::from(self.two()?) * 3_600;
        for unit in [60, 1] {
            if self.byte(b':').is_none() {
                break;
            }
            seconds += i64::from(self.two().filter(|n| *n < 60)?) * unit;
        }
        (sign != 0).then_some(sign * seconds)
    }
}
