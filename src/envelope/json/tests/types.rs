//! Each representation, by example: its JSON, and what it reads back as.

use std::borrow::Cow;

use super::fixture::*;
use crate::change::{ColumnType, Datum, TextKind};
use crate::envelope::json::{DecimalHandling, Options};

const STRINGS: Options = Options { decimal_handling: DecimalHandling::String };

/// Checks a value's JSON and its datum.
fn check(column_type: &ColumnType, text: &str, json: &str, datum: &Datum<'_>) {
    assert_eq!(json_of(column_type, text).as_deref(), Ok(json), "{column_type:?} {text}");
    let back = round_trip(column_type, Options::default(), text.as_bytes());
    assert_eq!(back.as_ref(), Ok(datum), "{column_type:?} {text}");
}

fn refused(column_type: &ColumnType, text: &str) {
    let error = json_of(column_type, text).expect_err(text);
    assert!(error.starts_with(r#"column "v" of type its type: "#), "{error}");
}

fn string(text: &str) -> Datum<'_> {
    Datum::Text(Cow::Borrowed(text))
}

fn decimal(bytes: &[u8]) -> Datum<'_> {
    Datum::Decimal(Cow::Borrowed(bytes))
}

#[test]
fn booleans_and_integers_are_themselves_within_their_range() {
    check(&ColumnType::Bool, "t", "true", &Datum::Bool(true));
    check(&ColumnType::Bool, "f", "false", &Datum::Bool(false));
    refused(&ColumnType::Bool, "1");
    check(&ColumnType::Int16, "-32768", "-32768", &Datum::Int(-32_768));
    check(&ColumnType::Int32, "2147483647", "2147483647", &Datum::Int(2_147_483_647));
    check(&ColumnType::Int64, "9223372036854775807", "9223372036854775807", &Datum::Int(i64::MAX));
    check(&ColumnType::Int64, "-9223372036854775808", "-9223372036854775808", &Datum::Int(i64::MIN));
    check(&ColumnType::Int64, "0", "0", &Datum::Int(0));
    refused(&ColumnType::Int16, "32768");
    refused(&ColumnType::Int32, "-2147483649");
    for bad in ["", "-", "+1", "01", "1.0", "1e3", "9223372036854775808", "99999999999999999999", " 1", "0x1"]
    {
        refused(&ColumnType::Int64, bad);
    }
}

#[test]
fn floats_keep_every_bit_and_name_what_json_cannot_write() {
    check(&ColumnType::Float64, "0.1", "0.1", &Datum::Float(0.1));
    check(
        &ColumnType::Float64,
        "1.7976931348623157e+308",
        "1.7976931348623157e+308",
        &Datum::Float(f64::MAX),
    );
    check(&ColumnType::Float64, "5e-324", "5e-324", &Datum::Float(5e-324));
    check(&ColumnType::Float32, "0.1", "0.1", &Datum::Float(f64::from(0.1_f32)));
    check(&ColumnType::Float32, "Infinity", r#""Infinity""#, &Datum::Float(f64::INFINITY));
    check(&ColumnType::Float64, "-Infinity", r#""-Infinity""#, &Datum::Float(f64::NEG_INFINITY));
    let zero = round_trip(&ColumnType::Float64, Options::default(), b"-0");
    assert!(matches!(zero, Ok(Datum::Float(v)) if v == 0.0 && v.is_sign_negative()));
    let nan = round_trip(&ColumnType::Float64, Options::default(), b"NaN");
    assert!(matches!(nan, Ok(Datum::Float(v)) if v.is_nan()));
    for bad in ["", "inf", "nan", ".5", "1.", "1e", "0x1p3", "1 "] {
        refused(&ColumnType::Float64, bad);
    }
}

#[test]
fn decimals_are_unscaled_bytes_as_java_writes_them() {
    let money = ColumnType::Decimal { precision: 12, scale: 2 };
    check(&money, "0.00", r#""AA==""#, &decimal(&[0]));
    check(&money, "1.27", r#""fw==""#, &decimal(&[127]));
    check(&money, "1.28", r#""AIA=""#, &decimal(&[0, 128]));
    check(&money, "-1.28", r#""gA==""#, &decimal(&[128]));
    check(&money, "-0.01", r#""/w==""#, &decimal(&[255]));
    check(&money, "9999999999.99", r#""AOjUpQ//""#, &decimal(&[0, 0xE8, 0xD4, 0xA5, 0x0F, 0xFF]));
    check(&money, "NaN", r#""NaN""#, &string("NaN"));
    check(&money, "5", r#""AfQ=""#, &decimal(&[1, 0xF4]));
    check(&ColumnType::Decimal { precision: 3, scale: -3 }, "123000", r#""ew==""#, &decimal(&[123]));
    refused(&ColumnType::Decimal { precision: 3, scale: -3 }, "123400");
    for bad in ["1.234", "Infinity", "", "-", ".5", "1.", "1e5", "--1", "1.2.3", "nan"] {
        refused(&money, bad);
    }
    let wide = ColumnType::Decimal { precision: 1000, scale: 0 };
    for digits in [18, 19, 38, 39, 57, 1_000] {
        let text = format!("-1{}", "0".repeat(digits - 1));
        let Ok(Datum::Decimal(bytes)) = round_trip(&wide, Options::default(), text.as_bytes()) else {
            panic!("{digits} digits")
        };
        assert_eq!(crate::envelope::text::numeric::to_text(&bytes, 0).as_deref(), Ok(text.as_str()));
    }
}

#[test]
fn numerics_keep_the_scale_they_are_printed_with() {
    let numeric = ColumnType::Numeric;
    check(&numeric, "1.50", r#"{"scale":2,"value":"AJY="}"#, &string("1.50"));
    check(&numeric, "-0.0005", r#"{"scale":4,"value":"+w=="}"#, &string("-0.0005"));
    check(&numeric, "0", r#"{"scale":0,"value":"AA=="}"#, &string("0"));
    check(&numeric, "NaN", r#""NaN""#, &string("NaN"));
    check(&numeric, "-Infinity", r#""-Infinity""#, &string("-Infinity"));
    let long = format!("-{}.{}", "123456789".repeat(1_500), "987654321".repeat(1_500));
    assert_eq!(round_trip(&numeric, Options::default(), long.as_bytes()), Ok(string(&long).into_owned()));
    refused(&numeric, &"1".repeat(131_073));
    refused(&numeric, &format!("0.{}", "1".repeat(16_384)));
}

#[test]
fn numbers_as_strings_read_back_the_same() {
    let money = ColumnType::Decimal { precision: 12, scale: 2 };
    assert_eq!(round_trip(&money, STRINGS, b"-1.28"), Ok(decimal(&[128]).into_owned()));
    assert_eq!(round_trip(&money, STRINGS, b"NaN"), Ok(string("NaN").into_owned()));
    assert_eq!(round_trip(&ColumnType::Numeric, STRINGS, b"1.50"), Ok(string("1.50").into_owned()));
    assert_eq!(round_trip(&ColumnType::Numeric, STRINGS, b"Infinity"), Ok(string("Infinity").into_owned()));
}

#[test]
fn text_of_every_kind_is_a_string() {
    check(&ColumnType::TEXT, "", r#""""#, &string(""));
    check(
        &ColumnType::TEXT,
        "a\"b\\c\n\t\r\u{8}\u{c}\u{1}",
        r#""a\"b\\c\n\t\r\b\f\u0001""#,
        &string("a\"b\\c\n\t\r\u{8}\u{c}\u{1}"),
    );
    check(&ColumnType::TEXT, "Größe 日本 🦀", r#""Größe 日本 🦀""#, &string("Größe 日本 🦀"));
    check(&ColumnType::TEXT, "char(8) ", r#""char(8) ""#, &string("char(8) "));
    check(&text(TextKind::Json), r#"{"a": [1]}"#, r#""{\"a\": [1]}""#, &string(r#"{"a": [1]}"#));
    check(&text(TextKind::Enum(vec!["new".into()])), "later", r#""later""#, &string("later"));
    check(
        &ColumnType::Interval,
        "P1Y2M3DT4H5M6.789S",
        r#""P1Y2M3DT4H5M6.789S""#,
        &string("P1Y2M3DT4H5M6.789S"),
    );
    check(&ColumnType::TimeTz, "10:15:30+05:30", r#""10:15:30+05:30""#, &string("10:15:30+05:30"));
}

#[test]
fn strings_are_escaped_at_every_place_of_a_word() {
    for length in 0..40 {
        for at in 0..length {
            for special in ['"', '\\', '\n', '\u{1f}', '\u{20}', '\u{7f}', 'ß'] {
                let mut chars: Vec<char> = "abcdefgh".chars().cycle().take(length).collect();
                chars[at] = special;
                let plain: String = chars.into_iter().collect();
                let json = json_of(&ColumnType::TEXT, &plain).unwrap();
                assert_eq!(serde_json::from_str::<String>(&json).unwrap(), plain);
                assert_eq!(
                    round_trip(&ColumnType::TEXT, Options::default(), plain.as_bytes()),
                    Ok(string(&plain).into_owned())
                );
            }
        }
    }
}

#[test]
fn bytes_come_from_hex_and_from_the_escape_form() {
    let bytes = |raw: &[u8]| Datum::Bytes(Cow::Owned(raw.to_vec()));
    check(&ColumnType::Bytes, "\\x", r#""""#, &bytes(b""));
    check(&ColumnType::Bytes, "\\x00ff10", r#""AP8Q""#, &bytes(&[0, 255, 16]));
    check(&ColumnType::Bytes, "\\xABcd", r#""q80=""#, &bytes(&[0xAB, 0xCD]));
    check(&ColumnType::Bytes, "a\\\\b\\000\\377", r#""YVxiAP8=""#, &bytes(b"a\\b\0\xFF"));
    for bad in ["\\x0", "\\x0g", "\\9", "\\400", "\\"] {
        refused(&ColumnType::Bytes, bad);
    }
    for length in 0..700_usize {
        let raw: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();

        let escaped = raw.iter().fold(String::new(), |text, byte| text + &format!("\\{byte:03o}"));
        for text in [hex(&raw), escaped] {
            assert_eq!(round_trip(&ColumnType::Bytes, Options::default(), text.as_bytes()), Ok(bytes(&raw)));
        }
    }
}

#[test]
fn dates_reach_from_4714_bc_to_5874897_and_infinity() {
    check(&ColumnType::Date, "1970-01-01", "0", &Datum::Date(0));
    check(&ColumnType::Date, "2026-11-20", "20777", &Datum::Date(20_777));
    check(&ColumnType::Date, "0001-01-01", "-719162", &Datum::Date(-719_162));
    check(&ColumnType::Date, "0001-12-31 BC", "-719163", &Datum::Date(-719_163));
    check(&ColumnType::Date, "4714-11-24 BC", "-2440588", &Datum::Date(-2_440_588));
    check(&ColumnType::Date, "5874897-12-31", "2145042905", &Datum::Date(2_145_042_905));
    check(&ColumnType::Date, "infinity", "2147483647", &Datum::Date(i32::MAX));
    check(&ColumnType::Date, "-infinity", "-2147483648", &Datum::Date(i32::MIN));
    for bad in
        ["", "2026-02-29", "2026-13-01", "2026-00-10", "2026-01-00", "26-01-01", "0000-01-01", "2026-01-01 "]
    {
        refused(&ColumnType::Date, bad);
    }
    check(&ColumnType::Date, "2000-02-29", "11016", &Datum::Date(11_016));
    refused(&ColumnType::Date, "1900-02-29");
}

#[test]
fn times_are_in_the_unit_of_their_precision_and_reach_24_00() {
    let (millis, micros) = (ColumnType::Time { precision: 3 }, ColumnType::Time { precision: 6 });
    check(&millis, "10:15:30.123", "36930123", &Datum::Time(36_930_123_000));
    check(&micros, "10:15:30.123456", "36930123456", &Datum::Time(36_930_123_456));
    check(&micros, "00:00:00.5", "500000", &Datum::Time(500_000));
    check(&millis, "24:00:00", "86400000", &Datum::Time(86_400_000_000));
    check(&micros, "24:00:00", "86400000000", &Datum::Time(86_400_000_000));
    refused(&millis, "10:15:30.1234");
    for bad in ["", "24:00:01", "10:60:00", "10:00:60", "10:00", "1:00:00", "10:00:00.", "10:00:00.1234567"] {
        refused(&micros, bad);
    }
}

#[test]
fn timestamps_reach_beyond_64_bits_and_are_never_taken_for_infinity() {
    let (millis, micros) = (ColumnType::Timestamp { precision: 3 }, ColumnType::Timestamp { precision: 6 });
    check(
        &micros,
        "2026-11-20 10:15:30.123456",
        "1795169730123456",
        &Datum::Timestamp(1_795_169_730_123_456),
    );
    check(&millis, "2026-11-20 10:15:30.12", "1795169730120", &Datum::Timestamp(1_795_169_730_120_000));
    check(&micros, "1969-12-31 23:59:59.999999", "-1", &Datum::Timestamp(-1));
    check(
        &micros,
        "294276-12-31 23:59:59.999999",
        "9224318015999999999",
        &Datum::Timestamp(9_224_318_015_999_999_999),
    );
    check(
        &millis,
        "294276-12-31 23:59:59.999",
        "9224318015999999",
        &Datum::Timestamp(9_224_318_015_999_999_000),
    );
    check(
        &micros,
        "4714-11-24 00:00:00 BC",
        "-210866803200000000",
        &Datum::Timestamp(-210_866_803_200_000_000),
    );
    let like = Datum::Timestamp(9_223_372_036_825_200_000);
    check(&micros, "294247-01-10 04:00:25.2", "9223372036825200000.0", &like);
    check(&millis, "294247-01-10 04:00:25.2", "9223372036825200", &like);
    for unit in [&millis, &micros] {
        check(unit, "infinity", "9223372036825200000", &Datum::Timestamp(Datum::INFINITY));
        check(unit, "-infinity", "-9223372036832400000", &Datum::Timestamp(Datum::NEG_INFINITY));
    }
    for bad in [
        "",
        "2026-11-20",
        "2026-11-20T10:15:30",
        "2026-11-20 24:00:00",
        "2026-11-20 10:15:30+00",
        "+12026-11-20 10:15:30",
    ] {
        refused(&micros, bad);
    }
    refused(&millis, "2026-11-20 10:15:30.1234");
}

#[test]
fn one_bit_is_a_boolean_and_more_are_bytes_the_lowest_first() {
    let bits = |length| ColumnType::Bits { length };
    check(&bits(1), "1", "true", &string("1"));
    check(&bits(1), "0", "false", &string("0"));
    check(&bits(8), "10101010", "\"qg==\"", &string("10101010"));
    check(&bits(12), "000100000010", "\"AgE=\"", &string("000100000010"));
    check(&bits(3), "000", "\"\"", &string("000"));
    for (length, bad) in [(1, ""), (1, "t"), (1, "10"), (3, "10"), (3, "1000"), (3, "12 ")] {
        refused(&bits(length), bad);
    }
}

#[test]
fn instants_are_iso_8601_in_utc_with_expanded_years() {
    let instant = ColumnType::TimestampTz { precision: 0 };
    let at = |micros| Datum::Timestamp(micros);
    check(
        &instant,
        "2026-11-20 10:15:30.123456+00",
        r#""2026-11-20T10:15:30.123456Z""#,
        &at(1_795_169_730_123_456),
    );
    check(&instant, "2026-11-20 10:15:30.12+00", r#""2026-11-20T10:15:30.12Z""#, &at(1_795_169_730_120_000));
    check(&instant, "2026-11-20 00:15:30+05:30", r#""2026-11-19T18:45:30Z""#, &at(1_795_113_930_000_000));
    check(&instant, "1883-11-18 12:03:58-07:52:58", r#""1883-11-18T19:56:56Z""#, &at(-2_717_640_184_000_000));
    check(&instant, "0044-03-15 00:00:00+00 BC", r#""-0043-03-15T00:00:00Z""#, &at(-63_517_824_000_000_000));
    check(&instant, "0001-12-31 23:00:00-02 BC", r#""0001-01-01T01:00:00Z""#, &at(-62_135_593_200_000_000));
    check(&instant, "0001-12-31 23:00:00+00 BC", r#""0000-12-31T23:00:00Z""#, &at(-62_135_600_400_000_000));
    check(
        &instant,
        "294276-12-31 23:59:59.999999+00",
        r#""+294276-12-31T23:59:59.999999Z""#,
        &at(9_224_318_015_999_999_999),
    );
    check(&instant, "9999-12-31 23:59:59-01", r#""+10000-01-01T00:59:59Z""#, &at(253_402_304_399_000_000));
    for (precision, json) in
        [(6, "10:15:30.120000Z"), (3, "10:15:30.120Z"), (2, "10:15:30.12Z"), (1, "10:15:30.12Z")]
    {
        let json = format!("\"2026-11-20T{json}\"");
        check(
            &ColumnType::TimestampTz { precision },
            "2026-11-20 10:15:30.12+00",
            &json,
            &at(1_795_169_730_120_000),
        );
    }
    let whole = ColumnType::TimestampTz { precision: 6 };
    check(&whole, "2026-11-20 10:15:30+00", r#""2026-11-20T10:15:30.000000Z""#, &at(1_795_169_730_000_000));
    check(&whole, "infinity", r#""infinity""#, &at(Datum::INFINITY));
    check(&instant, "infinity", r#""infinity""#, &at(Datum::INFINITY));
    check(&instant, "-infinity", r#""-infinity""#, &at(Datum::NEG_INFINITY));
    for bad in [
        "",
        "2026-11-20 10:15:30",
        "2026-11-20 10:15:30+5",
        "2026-11-20 10:15:30 +05",
        "2026-11-20 10:15:30+05:60",
    ] {
        refused(&instant, bad);
    }
}

#[test]
fn arrays_hold_their_elements_nulls_and_dimensions() {
    let list = |items: &[Datum<'static>]| Datum::List(items.to_vec());
    let numbers = array(ColumnType::Int32);
    check(&numbers, "{}", "[]", &list(&[]));
    check(&numbers, "{1,NULL,-3}", "[1,null,-3]", &list(&[Datum::Int(1), Datum::Null, Datum::Int(-3)]));
    let rows = [list(&[Datum::Int(1), Datum::Int(2)]), list(&[Datum::Int(3), Datum::Null])];
    check(&numbers, "{{1,2},{3,NULL}}", "[[1,2],[3,null]]", &list(&rows));
    let words = array(ColumnType::TEXT);
    let parts = ["a b", "", "q\"b\\s", "NULL", "{,}", "x"].map(|word| string(word).into_owned());
    let json = r#"["a b","","q\"b\\s","NULL","{,}","x"]"#;
    check(&words, r#"{"a b","","q\"b\\s","NULL","{,}",x}"#, json, &list(&parts));
    let money = array(ColumnType::Decimal { precision: 5, scale: 2 });
    check(
        &money,
        "{1.27,NaN}",
        r#"["fw==","NaN"]"#,
        &list(&[Datum::Decimal(vec![127].into()), Datum::Text("NaN".into())]),
    );
    let stamps = array(ColumnType::TimestampTz { precision: 0 });
    check(
        &stamps,
        r#"{"1970-01-01 00:00:01+00",infinity}"#,
        r#"["1970-01-01T00:00:01Z","infinity"]"#,
        &list(&[Datum::Timestamp(1_000_000), Datum::Timestamp(Datum::INFINITY)]),
    );
    let blobs = array(ColumnType::Bytes);
    check(&blobs, r#"{"\\x01"}"#, r#"["AQ=="]"#, &list(&[Datum::Bytes(vec![1].into())]));
    for bad in [
        "",
        "{",
        "}",
        "{1",
        "{1,}",
        "{,1}",
        "{1}2",
        "{1}{2}",
        "{1 2}",
        "{\"1\"2}",
        "{{{{{{{1}}}}}}}",
        "1",
        "{\"",
        "{\"\\",
    ] {
        refused(&numbers, bad);
    }
}

#[test]
fn an_array_with_another_lower_bound_is_the_text_that_says_so() {
    let words = array(ColumnType::TEXT);
    for (text, json) in [
        ("[2:4]={1,2,3}", r#""[2:4]={1,2,3}""#),
        ("[-1:0][5:6]={{a,b},{\"c \\\"\",NULL}}", r#""[-1:0][5:6]={{a,b},{\"c \\\"\",NULL}}""#),
    ] {
        check(&words, text, json, &Datum::Text(text.into()));
    }
    refused(&words, "2:4]={1,2,3}");
}
