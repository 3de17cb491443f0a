//! Any row comes back as it was; no bytes make either side panic; only valid JSON is taken.

use std::borrow::Cow;

use proptest::prelude::*;

use super::fixture::*;
use crate::change::{ColumnType, Datum, Op, TextKind, Value};
use crate::envelope::headers;
use crate::envelope::json::{DecimalHandling, Options, TableDecoder};
use crate::log::TopicRecords;

/// A value as Postgres prints it, and the datum it stands for, made from the datum and not by the codec.
type Sample = (String, Datum<'static>);

fn all_types() -> Vec<ColumnType> {
    let mut types = vec![
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::Float32,
        ColumnType::Float64,
        ColumnType::Decimal { precision: 30, scale: 6 },
        ColumnType::Numeric,
        ColumnType::TEXT,
        text(TextKind::Json),
        text(TextKind::Uuid),
        text(TextKind::Other),
        ColumnType::Bytes,
        ColumnType::Bits { length: 1 },
        ColumnType::Bits { length: 19 },
        ColumnType::Date,
        ColumnType::Time { precision: 2 },
        ColumnType::Time { precision: 6 },
        ColumnType::Timestamp { precision: 3 },
        ColumnType::Timestamp { precision: 6 },
        ColumnType::TimestampTz { precision: 0 },
        ColumnType::TimeTz,
        ColumnType::Interval,
    ];
    types.extend(types.clone().into_iter().map(array));
    types
}

fn scaled(unscaled: i128, scale: usize) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn unscaled_bytes(value: i128) -> Vec<u8> {
    let mut bytes = value.to_be_bytes().to_vec();
    while bytes.len() > 1 && ((bytes[0] == 0 && bytes[1] < 128) || (bytes[0] == 255 && bytes[1] >= 128)) {
        bytes.remove(0);
    }
    bytes
}

fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let text = format!(
        "{:02}:{:02}:{:02}.{:06}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        micros % 1_000_000
    );
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A timestamp within jiff's years 1 to 9999, printed by jiff.
fn moment(micros: i64) -> String {
    let at = jiff::Timestamp::from_microsecond(micros).unwrap();
    jiff::tz::Offset::UTC.to_datetime(at).strftime("%Y-%m-%d %H:%M:%S%.f").to_string()
}

fn scalar(column_type: &ColumnType) -> BoxedStrategy<Sample> {
    let micros = -62_135_596_800_000_000_i64..253_402_207_200_000_000;
    match column_type {
        ColumnType::Bool => {
            any::<bool>().prop_map(|v| (if v { "t" } else { "f" }.to_owned(), Datum::Bool(v))).boxed()
        }
        ColumnType::Int16 => any::<i16>().prop_map(|v| (v.to_string(), Datum::Int(v.into()))).boxed(),
        ColumnType::Int32 => any::<i32>().prop_map(|v| (v.to_string(), Datum::Int(v.into()))).boxed(),
        ColumnType::Int64 => any::<i64>().prop_map(|v| (v.to_string(), Datum::Int(v))).boxed(),
        ColumnType::Float32 => {
            proptest::num::f32::NORMAL.prop_map(|v| (format!("{v:e}"), Datum::Float(v.into()))).boxed()
        }
        ColumnType::Float64 => {
            prop_oneof![proptest::num::f64::NORMAL, Just(f64::INFINITY), Just(f64::NEG_INFINITY)]
                .prop_map(|v| {
                    let text = if v.is_finite() {
                        format!("{v:e}")
                    } else {
                        format!("{v}").replace("inf", "Infinity")
                    };
                    (text, Datum::Float(v))
                })
                .boxed()
        }
        ColumnType::Decimal { scale, .. } => {
            let scale = *scale as usize;
            any::<i128>()
                .prop_flat_map(|v| (0..127_u32).prop_map(move |shift| v >> shift))
                .prop_map(move |v| (scaled(v, scale), Datum::Decimal(unscaled_bytes(v).into())))
                .boxed()
        }
        ColumnType::Numeric => "(0|-?[1-9][0-9]{0,60})(\\.[0-9]{0,40}[1-9])?|NaN|Infinity|-Infinity"
            .prop_map(|v| (v.clone(), Datum::Text(v.into())))
            .boxed(),
        ColumnType::Text { .. } => ".*".prop_map(|v| (v.clone(), Datum::Text(v.into()))).boxed(),
        ColumnType::Bits { length } => proptest::string::string_regex(&format!("[01]{{{length}}}"))
            .unwrap()
            .prop_map(|v| (v.clone(), Datum::Text(v.into())))
            .boxed(),
        ColumnType::Bytes => any::<Vec<u8>>().prop_map(|v| (hex(&v), Datum::Bytes(v.into()))).boxed(),
        ColumnType::Date => (-719_162_i32..=2_932_896)
            .prop_map(|days| {
                let date = jiff::civil::date(1970, 1, 1) + jiff::Span::new().days(days);
                (date.to_string(), Datum::Date(days))
            })
            .boxed(),
        ColumnType::Time { precision } => {
            let unit = if *precision <= 3 { 1_000 } else { 1 };
            (0..=86_400_000_000_i64)
                .prop_map(move |v| (clock(v / unit * unit), Datum::Time(v / unit * unit)))
                .boxed()
        }
        ColumnType::Timestamp { precision } => {
            let unit = if *precision <= 3 { 1_000 } else { 1 };
            micros
                .prop_map(move |v| v / unit * unit)
                .prop_map(|v| (moment(v), Datum::Timestamp(v.into())))
                .boxed()
        }
        ColumnType::TimestampTz { .. } => {
            micros.prop_map(|v| (format!("{}+00", moment(v)), Datum::Timestamp(v.into()))).boxed()
        }
        ColumnType::TimeTz => (0..86_400_000_000_i64)
            .prop_map(|v| format!("{}+05:30", clock(v)))
            .prop_map(|v| (v.clone(), Datum::Text(v.into())))
            .boxed(),
        ColumnType::Interval => {
            "P[0-9]Y-?[0-9]MT[0-9]{1,4}H".prop_map(|v| (v.clone(), Datum::Text(v.into()))).boxed()
        }
        ColumnType::Array { element } => {
            proptest::collection::vec(proptest::option::of(scalar(element)), 0..5).prop_map(listed).boxed()
        }
    }
}

/// An array's text, with every element quoted, as `array_in` and `array_out` both have it.
fn listed(items: Vec<Option<Sample>>) -> Sample {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let texts: Vec<_> =
        items.iter().map(|item| item.as_ref().map_or("NULL".to_owned(), |(text, _)| quoted(text))).collect();
    let data = items.into_iter().map(|item| item.map_or(Datum::Null, |(_, datum)| datum)).collect();
    (format!("{{{}}}", texts.join(",")), Datum::List(data))
}

fn any_type() -> impl Strategy<Value = ColumnType> {
    proptest::sample::select(all_types())
}

/// A table of random columns and a row for it.
fn any_row() -> impl Strategy<Value = Vec<(ColumnType, Option<Sample>)>> {
    let cell = any_type().prop_flat_map(|column_type| {
        let value = proptest::option::weighted(0.9, scalar(&column_type));
        (Just(column_type), value)
    });
    proptest::collection::vec(cell, 1..8)
}

fn one_record(value: &[u8]) -> TopicRecords {
    let mut out = records();
    let mut record = out.begin(0);
    record.null();
    record.field(|out| out.extend_from_slice(value));
    record.header(headers::POSITION, |out| out.extend_from_slice(b"1/0/8/1"));
    record.header(headers::SCHEMA, |out| out.extend_from_slice(b"7"));
    record.finish();
    out
}

proptest! {
    #[test]
    fn a_row_of_any_types_comes_back_as_it_was(cells in any_row(), strings in any::<bool>()) {
        let decimal_handling = if strings { DecimalHandling::String } else { DecimalHandling::Precise };
        let options = Options { decimal_handling };
        let name = |index: usize| ["id", "größe", "a\"b", "with space"][index % 4].to_owned() + &index.to_string();
        let columns = cells.iter().enumerate().map(|(i, (t, _))| column(&name(i), t.clone())).collect();
        let schema = table(columns, vec![]);
        let values: Vec<_> = cells
            .iter()
            .map(|(_, cell)| cell.as_ref().map_or(Value::Null, |(text, _)| Value::Text(text.as_bytes())))
            .collect();
        let mut out = records();
        encoder(&schema, options).encode(&change(Op::Update, Some(full(&values)), Some(&values)), &mut out).unwrap();
        let record = out.iter().next().unwrap();
        serde_json::from_slice::<serde_json::Value>(record.value.unwrap()).expect("valid JSON");
        let mut row = Vec::new();
        let decoded = TableDecoder::new(&schema, options).decode(&record, &mut row).unwrap();
        let expected: Vec<_> =
            cells.into_iter().map(|(_, cell)| cell.map_or(Datum::Null, |(_, datum)| datum)).collect();
        prop_assert_eq!(&row, &expected);
        prop_assert_eq!(decoded.before, Some(expected));
    }

    #[test]
    fn no_text_makes_the_encoder_panic_or_write_what_is_not_json(
        column_type in any_type(),
        text in prop_oneof![any::<Vec<u8>>(), "[-+0-9:. TZBCNainfty{}\",\\\\x]{0,40}".prop_map(String::into_bytes)],
    ) {
        if let Ok(out) = insert_one(&column_type, Options::default(), Value::Text(&text)) {
            let record = out.iter().next().unwrap();
            serde_json::from_slice::<serde_json::Value>(record.value.unwrap()).expect("valid JSON");
            // What was taken reads back, but for floats beyond their type, which Postgres never prints.
            let floats = format!("{column_type:?}").contains("Float");
            prop_assert!(floats || round_trip(&column_type, Options::default(), &text).is_ok());
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_be_taken_for_json(
        column_type in any_type(),
        value in prop_oneof![any::<Vec<u8>>(), "[\\[\\]{}:,\"\\\\a-z0-9 .-]{0,60}".prop_map(String::into_bytes)],
    ) {
        let schema = table(vec![column("v", column_type)], vec![0]);
        let decoder = TableDecoder::new(&schema, Options::default());
        let end = br#"},"source":{"ts_us":1},"op":"c"}"#;
        for json in [value.clone(), [br#"{"after":{"v":"#, value.as_slice(), end].concat()] {
            let made = one_record(&json);
            if decoder.decode(&made.iter().next().unwrap(), &mut Vec::new()).is_ok() {
                // Raw, since a number that is out of a double's range is valid.
            serde_json::from_slice::<&serde_json::value::RawValue>(&json).expect("only valid JSON is taken");
            }
        }
        let _ = decoder.decode_key(&value);
    }

    #[test]
    fn damaged_envelopes_never_panic_and_are_never_invalid_json_taken(at in 0..700_usize, byte in any::<u8>(), cut in any::<bool>()) {
        let schema = table(vec![column("id", ColumnType::Int64), column("t", array(ColumnType::TEXT))], vec![0]);
        let values = [Value::Text(b"1"), Value::Text(br#"{"a\"b",c}"#)];
        let mut out = records();
        encoder(&schema, Options::default()).encode(&change(Op::Create, None, Some(&values)), &mut out).unwrap();
        let mut json = out.iter().next().unwrap().value.unwrap().to_vec();
        let at = at % json.len();
        if cut { json.truncate(at) } else { json[at] = byte }
        let damaged = one_record(&json);
        let mut row = Vec::new();
        let decoder = TableDecoder::new(&schema, Options::default());
        if decoder.decode(&damaged.iter().next().unwrap(), &mut row).is_ok() {
            // Not as a value, which has no room for 1e999.
            serde_json::from_slice::<serde::de::IgnoredAny>(&json).expect("only valid JSON is taken");
        }
    }
}

fn decode_text(json: &str) -> Result<Vec<Datum<'static>>, String> {
    let schema = table(vec![column("id", ColumnType::Int64), column("name", ColumnType::TEXT)], vec![0]);
    let made = one_record(json.as_bytes());
    let mut row = Vec::new();
    TableDecoder::new(&schema, Options::default())
        .decode(&made.iter().next().unwrap(), &mut row)
        .map_err(|error| error.to_string())?;
    Ok(row.into_iter().map(Datum::into_owned).collect())
}

#[test]
fn valid_json_is_read_whatever_its_spaces_order_and_escapes() {
    let json = "\n{ \"op\" : \"u\", \"source\" : { \"x\" : [1, {\"y\": null}], \"ts_us\" : 5 }, \"extra\": true,\n\
         \"after\" : { \"n\\u0061me\" : \"\\u00fc\\uD83E\\uDD80\\/\" , \"id\" : 7 } , \"before\" : null } ";
    let expected = [Datum::Int(7), Datum::Text(Cow::Borrowed("ü🦀/"))];
    assert_eq!(decode_text(json).as_deref(), Ok(&expected[..]));
}

#[test]
fn envelopes_that_are_not_of_the_table_are_refused_with_the_reason() {
    let whole = |after: &str| format!(r#"{{"after":{after},"source":{{"ts_us":1}},"op":"c"}}"#);
    for (json, reason) in [
        (whole(r#"{"id":1,"other":2}"#), "field \"other\": the table has no such column"),
        (whole(r#"{"id":1,"id":2}"#), "field \"id\": given twice"),
        (whole(r#"{"id":"1"}"#), "field \"id\": expected a number"),
        (whole(r#"{"name":1}"#), "field \"name\": expected a string"),
        (whole(r#"{"name":"\uD800"}"#), "field \"name\": not valid JSON"),
        (whole("null"), "after is missing"),
        (whole("[]"), "expected a row or null"),
        (r#"{"after":{},"op":"c"}"#.into(), "source.ts_us is missing"),
        (r#"{"after":{},"source":{"ts_us":1}}"#.into(), "op is missing"),
        (r#"{"after":{},"source":{"ts_us":1},"op":"m"}"#.into(), "an unknown operation"),
        (r#"{"before":null,"source":{"ts_us":1},"op":"d"}"#.into(), "before is missing"),
        (format!("{} x", whole("{}")), "not valid JSON"),
        (format!(r#"{{"x":{}1{}}}"#, "[".repeat(500), "]".repeat(500)), "nested too deep"),
    ] {
        let error = decode_text(&json).expect_err(&json);
        assert!(error.contains(reason), "{json}: {error}");
    }
}

#[test]
fn records_without_our_headers_are_refused() {
    let mut out = records();
    let mut record = out.begin(0);
    record.null();
    record.null();
    record.finish();
    let error = crate::envelope::json::peek(&out.iter().next().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "header tidemark.position: missing or malformed");
}

#[test]
fn a_key_holds_all_key_columns_and_no_other() {
    let schema = table(
        vec![column("a", ColumnType::Int32), column("b", ColumnType::TEXT), column("c", ColumnType::Bool)],
        vec![1, 0],
    );
    let decoder = TableDecoder::new(&schema, Options::default());
    assert_eq!(decoder.decode_key(br#"{"b":"x","a":1}"#), Ok(vec![Datum::Text("x".into()), Datum::Int(1)]));
    for bad in [
        r#"{"a":1}"#,
        r#"{"a":1,"b":"x","c":true}"#,
        r#"{"a":null,"b":"x"}"#,
        "{}",
        "1",
        r#"{"a":1,"b":"x"} 2"#,
    ] {
        assert!(decoder.decode_key(bad.as_bytes()).is_err(), "{bad} was taken");
    }
}
