//! Each representation: what apache-avro reads of it, and what we do, which is what the JSON envelope gives.

use apache_avro::Decimal;
use apache_avro::types::Value as Avro;
use serde::Deserialize;

use super::fixture::*;
use crate::change::{ColumnType, Datum, TextKind, Value};
use crate::envelope::headers;
use crate::envelope::json::Options;

const PLAIN: Options = Options { decimal_handling: crate::envelope::DecimalHandling::Precise };

/// What apache-avro reads of a value within its row.
fn seen(column_type: &ColumnType, options: Options, written: &str) -> Avro {
    let (schema, out) = insert_one(column_type, options, Value::Text(written.as_bytes()))
        .unwrap_or_else(|error| panic!("{column_type:?} {written}: {error}"));
    let record = out.iter().next().unwrap();
    let mut envelope = read_value(&schema, options, &record);
    fields(envelope.remove("after").unwrap()).remove("v").unwrap()
}

/// Checks that a value comes back as the JSON envelope gives it.
fn comes_back(column_type: &ColumnType, options: Options, written: &[u8]) -> Datum<'static> {
    let (schema, out) = insert_one(column_type, options, Value::Text(written)).unwrap();
    let ours = decode(&schema, options, &out).unwrap().remove(0).1.remove(0).into_owned();
    let new = [Value::Text(written)];
    let json = encode_json(&schema, options, &change(crate::change::Op::Create, None, Some(&new))).unwrap();
    let theirs = decode_json(&schema, options, &json).remove(0).1.remove(0).into_owned();
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{column_type:?} {written:?}");
    ours
}

fn check(column_type: &ColumnType, written: &str, expected: &Avro) {
    assert_eq!(&seen(column_type, PLAIN, written), expected, "{column_type:?} {written}");
    comes_back(column_type, PLAIN, written.as_bytes());
}

/// The header holds it, and the field is null.
fn beyond(column_type: &ColumnType, written: &str, exact: &str) {
    assert_eq!(seen(column_type, PLAIN, written), Avro::Null, "{column_type:?} {written}");
    let (_, out) = insert_one(column_type, PLAIN, Value::Text(written.as_bytes())).unwrap();
    let header = out.iter().next().unwrap().header(headers::EXACT).map(<[u8]>::to_vec);
    assert_eq!(String::from_utf8(header.unwrap()).unwrap(), format!("{{\"v\":{exact}}}"));
    comes_back(column_type, PLAIN, written.as_bytes());
}

fn string(text: &str) -> Avro {
    Avro::String(text.to_owned())
}

#[test]
fn booleans_numbers_and_floats_are_avros_own() {
    check(&ColumnType::Bool, "t", &Avro::Boolean(true));
    check(&ColumnType::Bool, "f", &Avro::Boolean(false));
    check(&ColumnType::Int16, "-32768", &Avro::Int(-32_768));
    check(&ColumnType::Int32, "2147483647", &Avro::Int(i32::MAX));
    check(&ColumnType::Int64, "9223372036854775807", &Avro::Long(i64::MAX));
    check(&ColumnType::Int64, "-9223372036854775808", &Avro::Long(i64::MIN));
    check(&ColumnType::Float32, "0.1", &Avro::Float(0.1));
    check(&ColumnType::Float32, "-Infinity", &Avro::Float(f32::NEG_INFINITY));
    check(&ColumnType::Float64, "1.7976931348623157e+308", &Avro::Double(f64::MAX));
    check(&ColumnType::Float64, "5e-324", &Avro::Double(5e-324));
    let nan = seen(&ColumnType::Float64, PLAIN, "NaN");
    assert!(matches!(nan, Avro::Double(v) if v.is_nan()));
    comes_back(&ColumnType::Float64, PLAIN, b"NaN");
}

#[test]
fn decimals_are_unscaled_bytes_and_what_is_no_number_stands_in_a_header() {
    let money = ColumnType::Decimal { precision: 12, scale: 2 };
    let decimal = |bytes: &[u8]| Avro::Decimal(Decimal::from(bytes));
    check(&money, "1.28", &decimal(&[0, 128]));
    check(&money, "-0.01", &decimal(&[255]));
    check(&money, "9999999999.99", &decimal(&[0, 0xE8, 0xD4, 0xA5, 0x0F, 0xFF]));
    check(&ColumnType::Decimal { precision: 3, scale: -3 }, "123000", &Avro::Bytes(vec![123]));
    check(&ColumnType::Decimal { precision: 2, scale: 5 }, "0.00012", &Avro::Bytes(vec![12]));
    beyond(&money, "NaN", "\"NaN\"");
    let numeric = |scale: i32, bytes: &[u8]| {
        let value = Avro::Bytes(bytes.to_vec());
        Avro::Record(vec![("scale".into(), Avro::Int(scale)), ("value".into(), value)])
    };
    check(&ColumnType::Numeric, "1.50", &numeric(2, &[0, 150]));
    check(&ColumnType::Numeric, "-0.0005", &numeric(4, &[251]));
    beyond(&ColumnType::Numeric, "NaN", "\"NaN\"");
    beyond(&ColumnType::Numeric, "-Infinity", "\"-Infinity\"");
    comes_back(
        &ColumnType::Numeric,
        PLAIN,
        format!("-{}.{}", "1".repeat(20_000), "9".repeat(16_000)).as_bytes(),
    );
    for written in ["1.28", "NaN"] {
        assert_eq!(seen(&money, STRINGS, written), string(written));
        comes_back(&money, STRINGS, written.as_bytes());
    }
    assert_eq!(seen(&ColumnType::Numeric, STRINGS, "Infinity"), string("Infinity"));
    comes_back(&ColumnType::Numeric, STRINGS, b"Infinity");
}

#[test]
fn texts_of_every_kind_are_strings_and_bytes_are_bytes() {
    for kind in [TextKind::Plain, TextKind::Uuid, TextKind::Json, TextKind::Other] {
        check(&text(kind), "a\"b\\c\n\u{1} Größe 日本 🦀", &string("a\"b\\c\n\u{1} Größe 日本 🦀"));
    }
    check(&text(TextKind::Enum(vec!["new".into()])), "later", &string("later"));
    check(&ColumnType::TEXT, "", &string(""));
    check(&ColumnType::Interval, "P1Y2M3DT4H5M6.789S", &string("P1Y2M3DT4H5M6.789S"));
    check(&ColumnType::TimeTz, "10:15:30+05:30", &string("10:15:30+05:30"));
    check(&ColumnType::Bytes, "\\x", &Avro::Bytes(vec![]));
    check(&ColumnType::Bytes, "\\x00ff10", &Avro::Bytes(vec![0, 255, 16]));
    check(&ColumnType::Bytes, "a\\\\b\\000\\377", &Avro::Bytes(b"a\\b\0\xFF".to_vec()));
    check(&ColumnType::Bits { length: 1 }, "1", &Avro::Boolean(true));
    check(&ColumnType::Bits { length: 12 }, "000100000010", &Avro::Bytes(vec![2, 1]));
    let long = "ab".repeat(1_000);
    check(&ColumnType::Bytes, &format!("\\x{long}"), &Avro::Bytes(vec![0xAB; 1_000]));
}

#[test]
fn dates_and_times_have_their_extremes() {
    check(&ColumnType::Date, "2026-11-20", &Avro::Int(20_777));
    check(&ColumnType::Date, "4714-11-24 BC", &Avro::Int(-2_440_588));
    check(&ColumnType::Date, "infinity", &Avro::Int(i32::MAX));
    check(&ColumnType::Date, "-infinity", &Avro::Int(i32::MIN));
    check(&ColumnType::Time { precision: 3 }, "24:00:00", &Avro::Int(86_400_000));
    check(&ColumnType::Time { precision: 6 }, "10:15:30.123456", &Avro::Long(36_930_123_456));
    let (millis, micros) = (ColumnType::Timestamp { precision: 3 }, ColumnType::Timestamp { precision: 6 });
    check(&micros, "2026-11-20 10:15:30.123456", &Avro::Long(1_795_169_730_123_456));
    check(&micros, "4714-11-24 00:00:00 BC", &Avro::Long(-210_866_803_200_000_000));
    check(&millis, "294276-12-31 23:59:59.999", &Avro::Long(9_224_318_015_999_999));
    for unit in [&millis, &micros] {
        check(unit, "infinity", &Avro::Long(9_223_372_036_825_200_000));
        check(unit, "-infinity", &Avro::Long(-9_223_372_036_832_400_000));
    }
    beyond(&micros, "294276-12-31 23:59:59.999999", "9224318015999999999");
    beyond(&micros, "294247-01-10 04:00:25.2", "9223372036825200000.0");
    check(
        &ColumnType::TimestampTz { precision: 0 },
        "2026-11-20 10:15:30.12+00",
        &string("2026-11-20T10:15:30.12Z"),
    );
    check(
        &ColumnType::TimestampTz { precision: 0 },
        "0044-03-15 00:00:00+00 BC",
        &string("-0043-03-15T00:00:00Z"),
    );
    check(
        &ColumnType::TimestampTz { precision: 0 },
        "294276-12-31 23:59:59.999999+00",
        &string("+294276-12-31T23:59:59.999999Z"),
    );
    check(&ColumnType::TimestampTz { precision: 0 }, "infinity", &string("infinity"));
}

#[test]
fn arrays_are_lists_of_unions_and_those_of_more_dimensions_stand_in_a_header() {
    let list = |items: Vec<Option<Avro>>| {
        let item = |item: Option<Avro>| match item {
            Some(item) => Avro::Union(1, Box::new(item)),
            None => Avro::Union(0, Box::new(Avro::Null)),
        };
        Avro::Array(items.into_iter().map(item).collect())
    };
    let numbers = array(ColumnType::Int32);
    check(&numbers, "{}", &list(vec![]));
    check(&numbers, "{1,NULL,-3}", &list(vec![Some(Avro::Int(1)), None, Some(Avro::Int(-3))]));
    let words = ["a b", "", "q\"b\\s", "NULL", "{,}", "x"].map(|word| Some(string(word)));
    check(&array(ColumnType::TEXT), r#"{"a b","","q\"b\\s","NULL","{,}",x}"#, &list(words.to_vec()));
    check(&array(ColumnType::Bytes), r#"{"\\x01"}"#, &list(vec![Some(Avro::Bytes(vec![1]))]));
    let many: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    check(
        &numbers,
        &format!("{{{}}}", many.join(",")),
        &list((0..1_000).map(|n| Some(Avro::Int(n))).collect()),
    );
    beyond(&numbers, "{{1,2},{3,NULL}}", "[[1,2],[3,null]]");
    beyond(&array(ColumnType::Numeric), "{1.5,NaN}", r#"[{"scale":1,"value":"Dw=="},"NaN"]"#);
    beyond(&numbers, "[2:4]={1,2,3}", r#""[2:4]={1,2,3}""#);
}

#[test]
fn what_is_not_of_its_type_is_refused() {
    for (column_type, bad) in [
        (ColumnType::Bool, "1"),
        (ColumnType::Int16, "32768"),
        (ColumnType::Int64, "1e3"),
        (ColumnType::Float64, "inf"),
        (ColumnType::Float64, "0x1p3"),
        (ColumnType::Decimal { precision: 12, scale: 2 }, "1.234"),
        (ColumnType::Decimal { precision: 12, scale: 2 }, "Infinity"),
        (ColumnType::Numeric, "1e5"),
        (ColumnType::Bytes, "\\x0"),
        (ColumnType::Date, "2026-02-29"),
        (ColumnType::Time { precision: 3 }, "10:15:30.1234"),
        (ColumnType::Timestamp { precision: 6 }, "2026-11-20"),
        (ColumnType::TimestampTz { precision: 0 }, "2026-11-20 10:15:30"),
        (array(ColumnType::Int32), "{1,}"),
    ] {
        let error = insert_one(&column_type, PLAIN, Value::Text(bad.as_bytes())).expect_err(bad).to_string();
        assert!(error.starts_with(r#"column "v" of type its type: "#), "{error}");
    }
    insert_one(&ColumnType::TEXT, PLAIN, Value::Text(b"\xFF")).unwrap_err();
}

#[derive(Deserialize)]
struct Case {
    #[serde(rename = "type")]
    column_type: ColumnType,
    text: String,
}

#[test]
fn values_of_a_real_postgres_come_back_as_from_json() {
    for line in include_str!("../../json/tests/oracle/cases.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        comes_back(&case.column_type, PLAIN, case.text.as_bytes());
        if case.column_type.is_array() || case.text.contains(['"', '\\']) {
            continue;
        }
        comes_back(&array(case.column_type), PLAIN, format!("{{\"{}\",NULL}}", case.text).as_bytes());
    }
}
