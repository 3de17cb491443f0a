//! Changes to records: keys, envelopes, headers.

use apache_avro::types::Value as Avro;

use super::fixture::*;
use crate::change::{ColumnType, Datum, Op, TableSchema, Value};
use crate::envelope::avro::AvroSchemas;
use crate::envelope::json::Options;
use crate::envelope::{DecimalHandling, RowChange, TransactionOrder, headers};
use crate::log::RecordRef;

const PLAIN: Options = Options { decimal_handling: DecimalHandling::Precise };
const ONE: Value<'static> = Value::Text(b"1");
const TWO: Value<'static> = Value::Text(b"2");
const ANN: Value<'static> = Value::Text(b"Ann");

fn orders() -> TableSchema {
    let columns = vec![
        column("id", ColumnType::Int64),
        column("name", ColumnType::TEXT),
        column("amount", ColumnType::Numeric),
    ];
    table(columns, vec![0])
}

fn header<'a>(record: &RecordRef<'a>, name: &str) -> Option<&'a str> {
    record.header(name).map(|value| std::str::from_utf8(value).unwrap())
}

#[test]
fn an_envelope_is_debeziums_in_every_field() {
    let new = [ONE, ANN, Value::Text(b"1.5")];
    let out = encode(&orders(), PLAIN, &change(Op::Create, None, Some(&new))).unwrap();
    let record = out.iter().next().unwrap();
    let envelope = read_value(&orders(), PLAIN, &record);
    assert_eq!(envelope["before"], Avro::Null);
    let after = fields(envelope["after"].clone());
    assert_eq!((&after["id"], &after["name"]), (&Avro::Long(1), &Avro::String("Ann".into())));
    assert_eq!(envelope["op"], Avro::String("c".into()));
    assert_eq!(envelope["transaction"], Avro::Null);
    assert_eq!(envelope["ts_ms"], Avro::Long(1_795_342_531_000));
    assert_eq!(envelope["ts_us"], Avro::Long(1_795_342_531_000_000));
    assert_eq!(envelope["ts_ns"], Avro::Long(1_795_342_531_000_000_000));
    let source = fields(envelope["source"].clone());
    let string = |text: &str| Avro::String(text.to_owned());
    let expected = [
        ("version", string("0.1.0")),
        ("connector", string("postgresql")),
        ("name", string("shop")),
        ("ts_ms", Avro::Long(1_795_342_530_123)),
        ("snapshot", string("false")),
        ("db", string("shopdb")),
        ("sequence", string("[\"97499938816\",\"97500004352\"]")),
        ("ts_us", Avro::Long(1_795_342_530_123_456)),
        ("ts_ns", Avro::Long(1_795_342_530_123_456_000)),
        ("schema", string("public")),
        ("table", string("orders")),
        ("txId", Avro::Long(750)),
        ("lsn", Avro::Long(97_500_004_352)),
        ("xmin", Avro::Null),
        ("origin", Avro::Null),
        ("origin_lsn", Avro::Null),
    ];
    assert_eq!(source.len(), expected.len());
    for (name, value) in expected {
        assert_eq!(source[name], value, "{name}");
    }
    let schemas = AvroSchemas::new("shop", &orders(), DecimalHandling::Precise);
    let key = fields(read(&schemas.key.unwrap().schema, IDS.key, record.key.unwrap()));
    assert_eq!(key["id"], Avro::Long(1));
    assert_eq!(header(&record, headers::POSITION), Some("1/16/B374D848/3"));
    assert_eq!(header(&record, headers::SCHEMA), Some("7"));
    assert_eq!(header(&record, headers::UNCHANGED), None);
    assert_eq!(header(&record, headers::EXACT), None);
}

#[test]
fn a_row_of_a_backfill_says_so_and_has_no_transaction() {
    let new = [ONE, Value::Null, Value::Null];
    let mut read = change(Op::Read, None, Some(&new));
    (read.snapshot, read.xid, read.last_end_lsn) = (true, None, None);
    let out = encode(&orders(), PLAIN, &read).unwrap();
    let envelope = read_value(&orders(), PLAIN, &out.iter().next().unwrap());
    let source = fields(envelope["source"].clone());
    assert_eq!(source["snapshot"], Avro::String("true".into()));
    assert_eq!(source["txId"], Avro::Null);
    assert_eq!(source["sequence"], Avro::String("[null,\"97500004352\"]".into()));
    assert_eq!(envelope["op"], Avro::String("r".into()));
}

#[test]
fn an_unchanged_value_is_null_and_named_and_comes_back_as_unchanged() {
    let mut schema = orders();
    schema.columns[1].name = "na,\"me".into();
    let new = [ONE, Value::Unchanged, Value::Unchanged];
    let out = encode(&schema, PLAIN, &change(Op::Update, None, Some(&new))).unwrap();
    let record = out.iter().next().unwrap();
    assert_eq!(header(&record, headers::UNCHANGED), Some(r#"["na,\"me","amount"]"#));
    let after = fields(read_value(&schema, PLAIN, &record)["after"].clone());
    assert_eq!(after["na__me"], Avro::Null);
    let (_, row) = decode(&schema, PLAIN, &out).unwrap().remove(0);
    assert_eq!(row, [Datum::Int(1), Datum::Unchanged, Datum::Unchanged]);

    let new = [ONE, Value::Null, Value::Null];
    let out = encode(&schema, PLAIN, &change(Op::Update, None, Some(&new))).unwrap();
    let (_, row) = decode(&schema, PLAIN, &out).unwrap().remove(0);
    assert_eq!(row, [Datum::Int(1), Datum::Null, Datum::Null], "null is null");

    let old = [ONE, ANN, Value::Text(b"NaN")];
    let new = [ONE, Value::Unchanged, Value::Unchanged];
    let out = encode(&schema, PLAIN, &change(Op::Update, Some(full(&old)), Some(&new))).unwrap();
    let record = out.iter().next().unwrap();
    assert_eq!(header(&record, headers::UNCHANGED), None, "completed from the old row");
    assert_eq!(header(&record, headers::EXACT), Some(r#"{"amount":"NaN"}"#));
    assert_eq!(header(&record, headers::EXACT_BEFORE), Some(r#"{"amount":"NaN"}"#));
}

#[test]
fn the_headers_of_one_record_are_not_those_of_the_next() {
    let schema = orders();
    let mut encoder = crate::envelope::avro::TableEncoder::new(
        &source(),
        &schema,
        &[Some(0), Some(1), Some(2)],
        PLAIN,
        IDS,
    );
    let mut out = crate::log::TopicRecords::new(std::sync::Arc::from("t"));
    let special = [ONE, Value::Unchanged, Value::Text(b"NaN")];
    let plain = [ONE, ANN, Value::Text(b"1")];
    let bad = [ONE, Value::Unchanged, Value::Text(b"x")];
    encoder.encode(&change(Op::Update, None, Some(&special)), &mut out).unwrap();
    encoder.encode(&change(Op::Update, None, Some(&bad)), &mut out).unwrap_err();
    encoder.encode(&change(Op::Delete, Some(full(&plain)), None), &mut out).unwrap();
    let names = |record: RecordRef<'_>| record.headers().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    let all: Vec<_> = out.iter().map(names).collect();
    let usual = [headers::POSITION, headers::SCHEMA];
    assert_eq!(all[0], [usual[0], usual[1], headers::UNCHANGED, headers::EXACT]);
    assert_eq!(all[1..], [usual, usual], "neither the delete nor its tombstone");
}

#[test]
fn a_key_change_names_the_other_key_in_json() {
    let old = [ONE, Value::Null, Value::Null];
    let new = [TWO, ANN, Value::Unchanged];
    let out = encode(&orders(), PLAIN, &change(Op::Update, Some(key_only(&old)), Some(&new))).unwrap();
    let records: Vec<_> = out.iter().collect();
    assert_eq!(records.len(), 3);
    assert_eq!(header(&records[0], headers::NEW_KEY), Some(r#"{"id":2}"#));
    assert!(records[1].value.is_none() && records[1].key == records[0].key);
    assert_eq!(header(&records[2], headers::OLD_KEY), Some(r#"{"id":1}"#));
    let decoded = decode(&orders(), PLAIN, &out).unwrap();
    assert_eq!(decoded[0].0.op, Some(Op::Delete));
    assert_eq!(decoded[0].1, [Datum::Int(1), Datum::Null, Datum::Null]);
    assert!(decoded[1].0.is_tombstone());
    assert_eq!(decoded[2].1, [Datum::Int(2), Datum::Text("Ann".into()), Datum::Unchanged]);
    assert_eq!(decoded[2].0.old_key, Some(&br#"{"id":1}"#[..]));
}

#[test]
fn an_update_without_a_key_brings_the_row_it_replaces() {
    let mut schema = orders();
    schema.key = vec![];
    schema.columns[0].nullable = true;
    let (old, new) = ([ONE, ANN, Value::Text(b"Infinity")], [ONE, Value::Null, Value::Null]);
    let out = encode(&schema, PLAIN, &change(Op::Update, Some(full(&old)), Some(&new))).unwrap();
    let record = out.iter().next().unwrap();
    assert!(record.key.is_none());
    let (decoded, row) = decode(&schema, PLAIN, &out).unwrap().remove(0);
    assert_eq!(row, [Datum::Int(1), Datum::Null, Datum::Null]);
    let before = [Datum::Int(1), Datum::Text("Ann".into()), Datum::Text("Infinity".into())];
    assert_eq!(decoded.before.unwrap(), before);
}

#[test]
fn a_truncate_has_neither_key_nor_rows() {
    let out = encode(&orders(), PLAIN, &change(Op::Truncate, None, None)).unwrap();
    let record = out.iter().next().unwrap();
    assert!(record.key.is_none());
    let envelope = read_value(&orders(), PLAIN, &record);
    assert_eq!((&envelope["before"], &envelope["after"]), (&Avro::Null, &Avro::Null));
    let (decoded, row) = decode(&orders(), PLAIN, &out).unwrap().remove(0);
    assert_eq!((decoded.op, row.len()), (Some(Op::Truncate), 0));
}

#[test]
fn what_the_key_cannot_hold_is_refused() {
    let schema = table(vec![column("id", ColumnType::Numeric)], vec![0]);
    let new = [Value::Text(b"NaN")];
    let error = encode(&schema, PLAIN, &change(Op::Create, None, Some(&new))).unwrap_err();
    assert!(error.to_string().contains("its Avro type cannot hold"), "{error}");
    let error =
        encode(&orders(), PLAIN, &change(Op::Create, None, Some(&[Value::Null, ANN, ANN]))).unwrap_err();
    assert!(error.to_string().contains("a null in the key"), "{error}");
}

#[test]
fn each_record_with_a_value_says_which_it_is_of_its_transaction_and_reads_back_the_same() {
    let (old, new) = ([ONE, Value::Null, Value::Null], [TWO, ANN, Value::Null]);
    let moved = change(Op::Update, Some(key_only(&old)), Some(&new));
    let transaction = Some(TransactionOrder { total: 41, data_collection: 6 });
    let plain = encode(&orders(), PLAIN, &moved).unwrap();
    let counted = encode(&orders(), PLAIN, &RowChange { transaction, ..moved }).unwrap();
    assert_eq!(decode(&orders(), PLAIN, &counted).unwrap(), decode(&orders(), PLAIN, &plain).unwrap());
    let blocks: Vec<_> = counted
        .iter()
        .filter(|record| record.value.is_some())
        .map(|record| fields(read_value(&orders(), PLAIN, &record)["transaction"].clone()))
        .collect();
    let id = Avro::String(format!("750:{}", 0x16_B374_0000_u64));
    assert_eq!(blocks.len(), 2);
    for (block, (total, of_table)) in blocks.iter().zip([(41, 6), (42, 7)]) {
        assert_eq!(block["id"], id);
        assert_eq!(block["total_order"], Avro::Long(total));
        assert_eq!(block["data_collection_order"], Avro::Long(of_table));
    }
}
