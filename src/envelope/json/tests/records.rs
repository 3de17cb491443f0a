//! Which records a change makes, and what stands in them.

use super::fixture::*;
use crate::change::{ColumnType, Datum, Op, SchemaVersion, Value};
use crate::envelope::headers;
use crate::envelope::json::{DecodeError, EncodeError, Options, TableDecoder, TableEncoder, peek};
use crate::envelope::{RowChange, TransactionOrder};

const ONE: Value<'static> = Value::Text(b"1");
const TWO: Value<'static> = Value::Text(b"2");
const ANN: Value<'static> = Value::Text(b"Ann");
const BOB: Value<'static> = Value::Text(b"Bob");

fn orders() -> crate::change::TableSchema {
    table(vec![column("id", ColumnType::Int64), column("name", ColumnType::TEXT)], vec![0])
}

fn value_of(record: &crate::log::RecordRef<'_>) -> String {
    String::from_utf8(record.value.unwrap().to_vec()).unwrap()
}

#[test]
fn an_insert_is_debeziums_envelope_to_the_letter() {
    let mut out = records();
    let count =
        encoder(&orders(), Options::default()).encode(&change(Op::Create, None, Some(&[ONE, ANN])), &mut out);
    assert_eq!(count, Ok(1));
    let record = out.iter().next().unwrap();
    assert_eq!(record.timestamp_ms, 1_795_342_530_123);
    assert_eq!(record.key, Some(&br#"{"id":1}"#[..]));
    let expected = concat!(
        r#"{"before":null,"after":{"id":1,"name":"Ann"},"source":{"version":"0.1.0","connector":"postgresql","#,
        r#""name":"shop","ts_ms":1795342530123,"snapshot":"false","db":"shopdb","#,
        r#""sequence":"[\"97500004352\",\"97500069888\"]","ts_us":1795342530123456,"#,
        r#""ts_ns":1795342530123456000,"schema":"public","table":"orders","txId":750,"lsn":97500069888,"#,
        r#""xmin":null,"origin":null,"origin_lsn":null},"transaction":null,"op":"c","#,
        r#""ts_ms":1795342531000,"ts_us":1795342531000000,"ts_ns":1795342531000000000}"#,
    )
    .replace("97500004352", &0x16_B373_0000_u64.to_string())
    .replace("97500069888", &0x16_B374_0000_u64.to_string());
    assert_eq!(value_of(&record), expected);
    let headers: Vec<_> = record.headers().collect();
    assert_eq!(headers, [(headers::POSITION, &b"1/16/B374D848/3"[..]), (headers::SCHEMA, b"7")]);
}

#[test]
fn a_backfilled_row_says_so_and_has_neither_transaction_nor_earlier_commit() {
    let mut out = records();
    let mut read = change(Op::Read, None, None);
    let row = [ONE, Value::Null];
    (read.new, read.snapshot, read.xid, read.last_end_lsn) = (Some(&row[..]), true, None, None);
    encoder(&orders(), Options::default()).encode(&read, &mut out).unwrap();
    let value = value_of(&out.iter().next().unwrap());
    for part in
        [r#""snapshot":"true""#, r#""sequence":"[null,\""#, r#""txId":null"#, r#""op":"r""#, r#""name":null"#]
    {
        assert!(value.contains(part), "{part} is missing in {value}");
    }
    let decoded = decode_all(&orders(), &out).unwrap();
    assert_eq!(decoded[0].0.op, Some(Op::Read));
    assert_eq!(decoded[0].1, [Datum::Int(1), Datum::Null]);
}

#[test]
fn the_pieces_kept_for_a_transaction_follow_the_next_one() {
    let mut out = records();
    let mut encoder = encoder(&orders(), Options::default());
    let row = [ONE, ANN];
    let mut create = change(Op::Create, None, Some(&row));
    encoder.encode(&create, &mut out).unwrap();
    create.position.commit_lsn.0 += 8;
    create.position.ordinal = 1;
    create.commit_us = -1;
    create.xid = Some(751);
    encoder.encode(&create, &mut out).unwrap();
    let second = out.iter().nth(1).unwrap();
    assert_eq!(second.timestamp_ms, -1);
    assert_eq!(second.header(headers::POSITION), Some(&b"1/16/B374D850/1"[..]));
    let value: serde_json::Value = serde_json::from_slice(second.value.unwrap()).unwrap();
    assert_eq!(value["source"]["ts_us"], -1);
    assert_eq!(value["source"]["ts_ns"], -1000);
    assert_eq!(value["source"]["txId"], 751);
    assert_eq!(decode_all(&orders(), &out).unwrap()[1].0.commit_us, -1);
}

#[test]
fn an_update_has_the_old_row_only_when_it_was_sent_whole() {
    let mut out = records();
    let mut encoder = encoder(&orders(), Options::default());
    encoder.encode(&change(Op::Update, None, Some(&[ONE, BOB])), &mut out).unwrap();
    encoder.encode(&change(Op::Update, Some(full(&[ONE, ANN])), Some(&[ONE, BOB])), &mut out).unwrap();
    let values: Vec<_> = out.iter().map(|record| value_of(&record)).collect();
    assert!(values[0].starts_with(r#"{"before":null,"after":{"id":1,"name":"Bob"},"#));
    assert!(values[1].starts_with(r#"{"before":{"id":1,"name":"Ann"},"after":{"id":1,"name":"Bob"},"#));
    let decoded = decode_all(&orders(), &out).unwrap();
    for (decoded, row) in decoded {
        assert_eq!((decoded.op, decoded.before), (Some(Op::Update), None));
        assert_eq!(row, [Datum::Int(1), Datum::Text("Bob".into())]);
    }
}

#[test]
fn a_delete_is_an_envelope_and_a_tombstone_of_the_same_key() {
    let mut out = records();
    let count = encoder(&orders(), Options::default())
        .encode(&change(Op::Delete, Some(key_only(&[ONE, Value::Null])), None), &mut out);
    assert_eq!((count, out.count()), (Ok(1), 2));
    let both: Vec<_> = out.iter().collect();
    assert!(value_of(&both[0]).starts_with(r#"{"before":{"id":1,"name":null},"after":null,"#));
    assert_eq!((both[1].key, both[1].value), (both[0].key, None));
    assert_eq!(both[1].header(headers::POSITION), both[0].header(headers::POSITION));
    assert_eq!(both[1].header(headers::SCHEMA), Some(&b"7"[..]));
    let decoded = decode_all(&orders(), &out).unwrap();
    assert_eq!((decoded[0].0.op, &decoded[0].1[..]), (Some(Op::Delete), &[Datum::Int(1), Datum::Null][..]));
    assert!(decoded[1].0.is_tombstone() && decoded[1].1.is_empty());
}

#[test]
fn a_key_change_is_a_delete_a_tombstone_and_a_create_that_name_each_other() {
    for old in [Some(key_only(&[ONE, Value::Null])), Some(full(&[ONE, ANN]))] {
        let mut out = records();
        let count = encoder(&orders(), Options::default())
            .encode(&change(Op::Update, old, Some(&[TWO, ANN])), &mut out);
        assert_eq!((count, out.count()), (Ok(2), 3));
        let [delete, tombstone, create] = out.iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(delete.key, Some(&br#"{"id":1}"#[..]));
        assert_eq!(delete.header(headers::NEW_KEY), Some(&br#"{"id":2}"#[..]));
        assert_eq!((tombstone.key, tombstone.value), (delete.key, None));
        assert_eq!(create.key, Some(&br#"{"id":2}"#[..]));
        assert_eq!(create.header(headers::OLD_KEY), Some(&br#"{"id":1}"#[..]));
        let decoded = decode_all(&orders(), &out).unwrap();
        assert_eq!(decoded[0].0.op, Some(Op::Delete));
        assert_eq!(decoded[0].1[0], Datum::Int(1));
        assert_eq!((decoded[2].0.op, decoded[2].0.old_key), (Some(Op::Create), Some(&br#"{"id":1}"#[..])));
        let decoder = TableDecoder::new(&orders(), Options::default());
        assert_eq!(decoder.decode_key(decoded[2].0.old_key.unwrap()), Ok(vec![Datum::Int(1)]));
        assert_eq!(decoder.decode_key(decoded[0].0.new_key.unwrap()), Ok(vec![Datum::Int(2)]));
    }
}

#[test]
fn an_old_key_equal_to_the_new_one_is_no_key_change() {
    let mut out = records();
    let old = Some(key_only(&[ONE, Value::Null]));
    encoder(&orders(), Options::default())
        .encode(&change(Op::Update, old, Some(&[ONE, BOB])), &mut out)
        .unwrap();
    assert_eq!(out.count(), 1);
    assert!(value_of(&out.iter().next().unwrap()).starts_with(r#"{"before":null,"after":{"id":1,"#));
}

#[test]
fn an_unchanged_value_is_left_out_and_reads_back_as_unchanged() {
    let mut out = records();
    let new = [ONE, Value::Unchanged];
    encoder(&orders(), Options::default()).encode(&change(Op::Update, None, Some(&new)), &mut out).unwrap();
    assert!(value_of(&out.iter().next().unwrap()).contains(r#""after":{"id":1},"source""#));
    assert_eq!(decode_all(&orders(), &out).unwrap()[0].1, [Datum::Int(1), Datum::Unchanged]);
}

#[test]
fn an_unchanged_value_is_completed_from_a_whole_old_row_but_not_from_an_old_key() {
    let mut out = records();
    let mut encoder = encoder(&orders(), Options::default());
    let new = [TWO, Value::Unchanged];
    encoder.encode(&change(Op::Update, Some(full(&[ONE, ANN])), Some(&new)), &mut out).unwrap();
    encoder.encode(&change(Op::Update, Some(key_only(&[ONE, Value::Null])), Some(&new)), &mut out).unwrap();
    let rows: Vec<_> = decode_all(&orders(), &out).unwrap().into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows[2], [Datum::Int(2), Datum::Text("Ann".into())]);
    assert_eq!(rows[5], [Datum::Int(2), Datum::Unchanged]);
}

#[test]
fn an_unchanged_key_is_completed_from_the_old_row_and_refused_without() {
    let schema = table(vec![column("id", ColumnType::TEXT), column("n", ColumnType::Int32)], vec![0]);
    let mut encoder = encoder(&schema, Options::default());
    let new = [Value::Unchanged, TWO];
    for old in [Some(key_only(&[ANN, Value::Null])), Some(full(&[ANN, ONE]))] {
        let mut out = records();
        assert_eq!(encoder.encode(&change(Op::Update, old, Some(&new)), &mut out), Ok(1));
        assert_eq!(out.iter().next().unwrap().key, Some(&br#"{"id":"Ann"}"#[..]));
        assert_eq!(decode_all(&schema, &out).unwrap()[0].1, [Datum::Text("Ann".into()), Datum::Int(2)]);
    }
    let error = encoder.encode(&change(Op::Update, None, Some(&new)), &mut records()).unwrap_err();
    assert!(error.to_string().contains(r#"column "id""#), "{error}");
}

#[test]
fn a_table_without_a_key_has_null_keys_no_tombstones_and_gives_the_replaced_row() {
    let mut schema = orders();
    schema.key.clear();
    let mut out = records();
    let mut encoder = encoder(&schema, Options::default());
    encoder.encode(&change(Op::Create, None, Some(&[ONE, ANN])), &mut out).unwrap();
    encoder
        .encode(&change(Op::Update, Some(full(&[ONE, ANN])), Some(&[TWO, Value::Unchanged])), &mut out)
        .unwrap();
    encoder.encode(&change(Op::Delete, Some(full(&[TWO, ANN])), None), &mut out).unwrap();
    assert_eq!(out.count(), 3);
    assert!(out.iter().all(|record| record.key.is_none()));
    let decoded = decode_all(&schema, &out).unwrap();
    assert_eq!(decoded[1].0.before, Some(vec![Datum::Int(1), Datum::Text("Ann".into())]));
    assert_eq!(decoded[1].1, [Datum::Int(2), Datum::Text("Ann".into())]);
    assert_eq!(decoded[2].1, [Datum::Int(2), Datum::Text("Ann".into())]);
}

#[test]
fn a_truncate_has_neither_key_nor_rows() {
    let mut out = records();
    encoder(&orders(), Options::default()).encode(&change(Op::Truncate, None, None), &mut out).unwrap();
    let record = out.iter().next().unwrap();
    assert_eq!(record.key, None);
    assert!(value_of(&record).starts_with(r#"{"before":null,"after":null,"source":"#));
    let decoded = decode_all(&orders(), &out).unwrap();
    assert_eq!((decoded[0].0.op, decoded[0].1.len()), (Some(Op::Truncate), 0));
}

#[test]
fn columns_follow_the_schema_whatever_their_order_on_the_wire() {
    let schema = table(
        vec![column("a", ColumnType::Int32), column("gone", ColumnType::TEXT), column("b", ColumnType::Bool)],
        vec![2, 0],
    );
    let mut encoder = TableEncoder::new(&source(), &schema, &[Some(1), None, Some(0)], Options::default());
    let mut out = records();
    let wire = [Value::Text(b"t"), Value::Text(b"5")];
    encoder.encode(&change(Op::Create, None, Some(&wire)), &mut out).unwrap();
    let record = out.iter().next().unwrap();
    assert_eq!(record.key, Some(&br#"{"b":true,"a":5}"#[..]));
    assert!(value_of(&record).contains(r#""after":{"a":5,"gone":null,"b":true}"#));
}

#[test]
fn names_are_escaped_wherever_they_stand() {
    let mut schema = table(vec![column("a\"b\\ä", ColumnType::Int32)], vec![0]);
    schema.name = crate::change::TableName::new("s\"1", "t\n2");
    let mut out = records();
    encoder(&schema, Options::default()).encode(&change(Op::Create, None, Some(&[ONE])), &mut out).unwrap();
    let record = out.iter().next().unwrap();
    let value: serde_json::Value = serde_json::from_slice(record.value.unwrap()).unwrap();
    assert_eq!((&value["source"]["schema"], &value["source"]["table"]), (&"s\"1".into(), &"t\n2".into()));
    assert_eq!(value["after"]["a\"b\\ä"], 1);
    assert_eq!(decode_all(&schema, &out).unwrap()[0].1, [Datum::Int(1)]);
}

#[test]
fn a_change_that_fails_leaves_no_record_behind() {
    let mut out = records();
    let mut encoder = encoder(&orders(), Options::default());
    encoder.encode(&change(Op::Create, None, Some(&[ONE, ANN])), &mut out).unwrap();
    let before = (out.count(), out.frames().collect::<Vec<_>>().concat());
    let bad = Value::Text(b"\xFF");
    let moved = [TWO, bad];
    let error =
        encoder.encode(&change(Op::Update, Some(key_only(&[ONE, Value::Null])), Some(&moved)), &mut out);
    let expected = EncodeError::Column {
        column: "name".into(),
        type_name: "its type".into(),
        reason: "not valid UTF-8",
    };
    assert_eq!(error, Err(expected));
    assert_eq!((out.count(), out.frames().collect::<Vec<_>>().concat()), before);
}

#[test]
fn changes_that_lack_something_are_refused() {
    let mut encoder = encoder(&orders(), Options::default());
    let short = [ONE];
    let null_key = [Value::Null, ANN];
    for (case, change) in [
        ("no new row", change(Op::Create, None, None)),
        ("no old row", change(Op::Delete, None, None)),
        ("too few values", change(Op::Create, None, Some(&short))),
        ("a null key", change(Op::Create, None, Some(&null_key))),
        ("an unchanged old value", change(Op::Delete, Some(full(&[ONE, Value::Unchanged])), None)),
    ] {
        let mut out = records();
        assert!(encoder.encode(&change, &mut out).is_err(), "{case}");
        assert_eq!((out.count(), out.bytes()), (0, 0), "{case}");
    }
}

#[test]
fn headers_alone_give_position_version_and_tombstone() {
    let mut out = records();
    let old = Some(key_only(&[ONE, Value::Null]));
    encoder(&orders(), Options::default()).encode(&change(Op::Delete, old, None), &mut out).unwrap();
    let peeked: Vec<_> = out.iter().map(|record| peek(&record).unwrap()).collect();
    assert!(peeked.iter().all(|p| p.position == POSITION && p.schema_version == SchemaVersion(7)));
    assert_eq!(peeked.iter().map(|p| p.is_tombstone).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_record_of_another_version_needs_another_decoder() {
    let mut out = records();
    encoder(&orders(), Options::default())
        .encode(&change(Op::Create, None, Some(&[ONE, ANN])), &mut out)
        .unwrap();
    let mut schema = orders();
    schema.version = SchemaVersion(8);
    let error = decode_all(&schema, &out).unwrap_err();
    assert_eq!(error, DecodeError::Version { expected: SchemaVersion(8), found: SchemaVersion(7) });
}

#[test]
fn each_record_with_a_value_says_which_it_is_of_its_transaction_and_reads_back_the_same() {
    let mut out = records();
    let mut encoder = encoder(&orders(), Options::default());
    let (old, new) = ([ONE, Value::Null], [TWO, ANN]);
    let moved = change(Op::Update, Some(key_only(&old)), Some(&new));
    assert_eq!(encoder.encode(&moved, &mut out), Ok(2));
    let plain: Vec<_> = out.iter().map(|record| record.value.map(<[u8]>::to_vec)).collect();
    let mut counted = records();
    let transaction = Some(TransactionOrder { total: 41, data_collection: 6 });
    assert_eq!(encoder.encode(&RowChange { transaction, ..moved }, &mut counted), Ok(2));
    let block = |total: u32, table: u32| {
        format!(
            r#""transaction":{{"id":"750:{}","total_order":{total},"data_collection_order":{table}}}"#,
            0x16_B374_0000_u64
        )
    };
    let blocks = [Some(block(41, 6)), None, Some(block(42, 7))];
    for ((plain, record), block) in plain.iter().zip(counted.iter()).zip(blocks) {
        let expected = plain.as_ref().map(|plain| {
            let plain = String::from_utf8(plain.clone()).unwrap();
            plain.replace(r#""transaction":null"#, &block.unwrap())
        });
        assert_eq!(record.value.map(|value| String::from_utf8(value.to_vec()).unwrap()), expected);
    }
    assert_eq!(decode_all(&orders(), &counted).unwrap(), decode_all(&orders(), &out).unwrap());
}
