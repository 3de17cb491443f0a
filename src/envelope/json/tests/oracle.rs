//! Values as a real Postgres printed them, against what Postgres and Python computed of them
//! (`oracle/generate.py`), and dates against jiff.

use jiff::civil::DateTime;
use jiff::{Span, Timestamp};
use proptest::prelude::*;
use serde::Deserialize;

use super::fixture::{json_of, round_trip};
use crate::change::{ColumnType, Datum};
use crate::envelope::json::Options;

const CASES: &str = include_str!("oracle/cases.jsonl");

#[derive(Deserialize)]
struct Case {
    #[serde(rename = "type")]
    column_type: ColumnType,
    text: String,
    /// Null where Postgres has no function for the form: then only `micros` counts.
    json: serde_json::Value,
    micros: Option<String>,
}

#[test]
fn values_of_a_real_postgres_come_out_as_it_computes_them() {
    let mut count = 0;
    for line in CASES.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let json = json_of(&case.column_type, &case.text).unwrap_or_else(|error| panic!("{line}: {error}"));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        if !case.json.is_null() {
            assert_eq!(json, case.json, "{line}");
        }
        let datum = round_trip(&case.column_type, Options::default(), case.text.as_bytes());
        match (datum, case.micros) {
            (Ok(Datum::Timestamp(micros)), Some(expected)) => {
                assert_eq!(micros.to_string(), expected, "{line}");
            }
            (Ok(Datum::Timestamp(micros)), None) => {
                let unit =
                    if case.column_type == (ColumnType::Timestamp { precision: 3 }) { 1_000 } else { 1 };
                assert_eq!((micros / unit).to_string(), case.json.to_string(), "{line}");
            }
            (Ok(Datum::Date(days)), _) => assert_eq!(days, case.json, "{line}"),
            (Ok(Datum::Text(text)), _) => assert_eq!(text, case.text, "{line}"),
            (Ok(_), _) => {}
            (Err(error), _) => panic!("{line}: {error}"),
        }
        count += 1;
    }
    assert!(count > 1_000, "only {count} cases");
}

proptest! {
    #[test]
    fn timestamps_agree_with_jiff(seconds in -377_705_023_201_i64..=253_402_207_200, micros in 0_i64..1_000_000) {
        let at = Timestamp::new(seconds, 0).unwrap() + Span::new().microseconds(micros);
        let moment = jiff::tz::TimeZone::UTC.to_datetime(at);
        prop_assume!(moment.year() >= 1);
        let printed = moment.strftime("%Y-%m-%d %H:%M:%S%.f").to_string();
        let micros = i128::from(at.as_microsecond());
        let plain = ColumnType::Timestamp { precision: 6 };
        prop_assert_eq!(round_trip(&plain, Options::default(), printed.as_bytes()), Ok(Datum::Timestamp(micros)));
        let zoned = format!("{printed}+00");
        let json = json_of(&ColumnType::TimestampTz { precision: 0 }, &zoned).unwrap();
        prop_assert_eq!(json.trim_matches('"').parse::<Timestamp>().unwrap(), at);
        let back = round_trip(&ColumnType::TimestampTz { precision: 0 }, Options::default(), zoned.as_bytes());
        prop_assert_eq!(back, Ok(Datum::Timestamp(micros)));
    }

    #[test]
    fn any_offset_shifts_to_the_instant_that_jiff_says(
        seconds in -60_000_000_000_i64..=250_000_000_000,
        offset in -57_599_i32..=57_599,
    ) {
        let at = Timestamp::new(seconds, 0).unwrap();
        let shifted = jiff::tz::Offset::from_seconds(offset).unwrap();
        let local: DateTime = shifted.to_datetime(at);
        prop_assume!(local.year() >= 1 && jiff::tz::Offset::UTC.to_datetime(at).year() >= 1);
        let (sign, size) = (if offset < 0 { '-' } else { '+' }, offset.abs());
        let zone = format!("{sign}{:02}:{:02}:{:02}", size / 3_600, size / 60 % 60, size % 60);
        let text = format!("{}{zone}", local.strftime("%Y-%m-%d %H:%M:%S"));
        let json = json_of(&ColumnType::TimestampTz { precision: 0 }, &text).unwrap();
        prop_assert_eq!(json.trim_matches('"').parse::<Timestamp>().unwrap(), at);
    }

    #[test]
    fn dates_agree_with_jiff(days in -719_162_i32..=2_932_896) {
        let date = jiff::civil::date(1970, 1, 1) + Span::new().days(days);
        let back = round_trip(&ColumnType::Date, Options::default(), date.to_string().as_bytes());
        prop_assert_eq!(back, Ok(Datum::Date(days)));
    }
}
