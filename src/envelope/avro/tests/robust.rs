//! Any row comes back as from JSON, and no bytes make the reader panic.

use std::sync::Arc;

use proptest::prelude::*;

use super::fixture::*;
use crate::change::{ColumnType, Op, TableSchema, Value};
use crate::envelope::avro::TableDecoder;
use crate::envelope::json::Options;
use crate::envelope::{DecimalHandling, headers};
use crate::log::TopicRecords;

const PLAIN: Options = Options { decimal_handling: DecimalHandling::Precise };

/// A value as text, or none for null, or nothing at all.
fn cell(text: impl Strategy<Value = String> + 'static) -> BoxedStrategy<Option<Option<String>>> {
    prop_oneof![8 => text.prop_map(|text| Some(Some(text))), 1 => Just(Some(None)), 1 => Just(None)].boxed()
}

fn wide() -> TableSchema {
    let columns = vec![
        column("id", ColumnType::Int32),
        column("text", ColumnType::TEXT),
        column("number", ColumnType::Numeric),
        column("at", ColumnType::Timestamp { precision: 6 }),
        column("list", array(ColumnType::TEXT)),
        column("blob", ColumnType::Bytes),
        column("float", ColumnType::Float32),
    ];
    table(columns, vec![0])
}

fn rows() -> impl Strategy<Value = Vec<Option<Option<String>>>> {
    let number = prop_oneof![
        "-?(0|[1-9][0-9]{0,60})(\\.[0-9]{1,40})?",
        Just("NaN".to_owned()),
        Just("-Infinity".to_owned())
    ];
    let at = prop_oneof![
        (1_u32..=294_276, 1_u32..=12, 1_u32..=28, 0_u32..1_000_000)
            .prop_map(|(y, m, d, f)| format!("{y:04}-{m:02}-{d:02} 23:59:59.{f:06}")),
        Just("infinity".to_owned())
    ];
    let list = proptest::collection::vec("[a-zA-Zß ,{}]{0,6}", 0..4).prop_map(|words| {
        let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
        format!("{{{}}}", quoted.join(","))
    });
    let list = prop_oneof![4 => list, 1 => Just("{{a,b},{c,NULL}}".to_owned())];
    let blob = proptest::collection::vec(any::<u8>(), 0..300)
        .prop_map(|raw| raw.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")));
    let id = any::<i32>().prop_map(|id| Some(Some(id.to_string())));
    let float = any::<f32>().prop_filter("finite", |v| v.is_finite()).prop_map(|v| format!("{v:e}"));
    (id, cell("\\PC{0,40}"), cell(number), cell(at), cell(list), cell(blob), cell(float))
        .prop_map(|(a, b, c, d, e, f, g)| vec![a, b, c, d, e, f, g])
}

fn values(row: &[Option<Option<String>>]) -> Vec<Value<'_>> {
    row.iter()
        .map(|cell| match cell {
            None => Value::Unchanged,
            Some(None) => Value::Null,
            Some(Some(text)) => Value::Text(text.as_bytes()),
        })
        .collect()
}

/// The record with another value and other headers.
fn record(value: &[u8], unchanged: &[u8], exact: &[u8]) -> TopicRecords {
    let mut out = TopicRecords::new(Arc::from("t"));
    let mut record = out.begin(0);
    record.null();
    record.field(|out| out.extend_from_slice(value));
    record.header(headers::POSITION, |out| out.extend_from_slice(POSITION.to_string().as_bytes()));
    record.header(headers::SCHEMA, |out| out.extend_from_slice(b"7"));
    record.header(headers::UNCHANGED, |out| out.extend_from_slice(unchanged));
    record.header(headers::EXACT, |out| out.extend_from_slice(exact));
    record.finish();
    out
}

/// Decodes whatever it is: an error is right, a panic is not.
fn survives(out: &TopicRecords) {
    let decoder = TableDecoder::new(&wide(), PLAIN);
    for record in out.iter() {
        let _ = decoder.decode(&record, &mut Vec::new());
    }
}

proptest! {
    #[test]
    fn any_row_comes_back_as_from_json_and_apache_avro_can_read_it(row in rows()) {
        let (schema, new) = (wide(), values(&row));
        let change = change(Op::Update, None, Some(&new));
        let out = encode(&schema, PLAIN, &change).unwrap();
        let json = encode_json(&schema, PLAIN, &change).unwrap();
        let (ours, theirs) = (decode(&schema, PLAIN, &out).unwrap(), decode_json(&schema, PLAIN, &json));
        prop_assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        read_value(&schema, PLAIN, &out.iter().next().unwrap());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut whole = vec![0, 0, 0, 0, 1];
        whole.extend_from_slice(&bytes);
        survives(&record(&whole, b"[]", b"{}"));
        survives(&record(&bytes, &bytes, &bytes));
    }

    #[test]
    fn a_spoilt_record_is_an_error_or_a_row(row in rows(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (schema, new) = (wide(), values(&row));
        let out = encode(&schema, PLAIN, &change(Op::Update, None, Some(&new))).unwrap();
        let mut bytes = out.iter().next().unwrap().value.unwrap().to_vec();
        let index = at.index(bytes.len());
        survives(&record(&bytes[..index], b"[]", b"{}"));
        bytes[index] = byte;
        survives(&record(&bytes, b"[\"text\"]", b"{\"number\":\"NaN\"}"));
        bytes.push(byte);
        survives(&record(&bytes, b"[", b"{\"number\":1"));
    }
}

#[test]
fn leftover_bytes_and_records_cut_short_are_refused() {
    let schema = table(vec![column("v", ColumnType::Int32)], vec![]);
    let new = [Value::Text(b"1")];
    let out = encode(&schema, PLAIN, &change(Op::Create, None, Some(&new))).unwrap();
    let bytes = out.iter().next().unwrap().value.unwrap().to_vec();
    let decoder = TableDecoder::new(&schema, PLAIN);
    let error = |bytes: &[u8], unchanged: &[u8], exact: &[u8]| {
        let out = record(bytes, unchanged, exact);
        let result = decoder.decode(&out.iter().next().unwrap(), &mut Vec::new());
        result.err().map(|error| error.to_string())
    };
    assert_eq!(error(&bytes, b"[]", b"{}"), None);
    for length in 0..bytes.len() {
        assert!(error(&bytes[..length], b"[]", b"{}").is_some(), "{length} bytes of {}", bytes.len());
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(error(&longer, b"[]", b"{}").unwrap().contains("left over"));
    assert!(error(&bytes, b"[\"v\"]", b"{}").unwrap().contains("not null in the record"));
    assert!(error(&bytes, b"[\"w\"]", b"{}").unwrap().contains("no such column"));
    assert!(error(&bytes, b"[]", b"{\"v\":2}").unwrap().contains("not null in the record"));
}
