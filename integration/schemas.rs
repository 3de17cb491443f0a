//! What the program writes is what `schemas/` says, field by field: validated by Python's jsonschema.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tidemark::batch::EXACT;
use tidemark::change::{
    ActionKind, BACKFILL_PARTITION, Column, ColumnType, Cut, CutBackfill, CutTable, Existing, Holds, LogEnd,
    Lsn, Op, Position, ReplicaIdentity, SchemaAction, SchemaChange, SchemaVersion, TableName, TableSchema,
    TextKind, Value,
};
use tidemark::envelope::avro::SchemaIds;
use tidemark::envelope::json::{OldKind, OldRow, Options, RowChange, SourceInfo, TableEncoder};
use tidemark::envelope::{Boundary, DataCollection, TransactionEncoder, TransactionOrder, TransactionRecord};
use tidemark::lake::{
    AsOf, AsText, ChangeCounts, CopiedFrom, CutPoint, DayManifest, DayTable, DeadLetter, ExactColumn,
    HistoricTail, LogRange, MANIFEST_VERSION, Manifest, MissingTable, NOTICE_VERSION, Notice, NoticeKind,
    PartFile, Payload, TAIL_MANIFEST_VERSION, Tombstone, Work, Written,
};
use tidemark::log::TopicRecords;

const POSITION: Position = Position { timeline: 1, commit_lsn: Lsn(0x16_B374_D848), ordinal: 3 };
const ONE: Value<'static> = Value::Text(b"1");
const TWO: Value<'static> = Value::Text(b"2");
const ANN: Value<'static> = Value::Text(b"Ann");

#[test]
fn envelopes_keys_and_headers_are_as_described() {
    let (full, key) = ([ONE, ANN], [ONE, Value::Null]);
    let full = OldRow { kind: OldKind::Full, values: &full };
    let key = OldRow { kind: OldKind::Key, values: &key };
    let mut documents = Vec::new();
    for (op, old, new) in [
        (Op::Create, None, Some(&[ONE, ANN])),
        (Op::Read, None, Some(&[ONE, Value::Null])),
        (Op::Update, None, Some(&[ONE, Value::Unchanged])),
        (Op::Update, Some(full), Some(&[ONE, ANN])),
        (Op::Update, Some(key), Some(&[TWO, ANN])),
        (Op::Delete, Some(key), None),
        (Op::Delete, Some(full), None),
        (Op::Truncate, None, None),
    ] {
        let order = TransactionOrder { total: 2, data_collection: 1 };
        for transaction in [None, Some(order).filter(|_| op != Op::Read)] {
            for (key, value, headers) in records(op, old, new.map(|new| &new[..]), transaction) {
                documents.extend(key.map(|key| ("key.json", key)));
                documents.extend(value.map(|value| ("envelope.json", value)));
                documents.push(("headers.json", headers));
            }
        }
    }
    assert!(documents.len() > 40);
    all_are_described(&documents);
}

#[test]
fn transactions_are_as_described() {
    let counts = [DataCollection { name: "public.orders".to_owned(), event_count: 2 }];
    let end = |event_count, data_collections| Boundary::End { event_count, data_collections };
    let encoder = TransactionEncoder::new(tidemark::envelope::Options::default(), SchemaIds::default());
    let mut topic = TopicRecords::new(Arc::from("shop.transaction"));
    for boundary in [Boundary::Begin, end(2, Some(&counts)), end(0, Some(&[])), end(9, None)] {
        let record = TransactionRecord {
            xid: 750,
            lsn: POSITION.commit_lsn,
            position: POSITION,
            commit_us: 1,
            boundary,
        };
        encoder.encode(&record, &mut topic);
    }
    let value = |bytes: Option<&[u8]>| serde_json::from_slice::<Json>(bytes.unwrap()).unwrap();
    let documents: Vec<_> = topic
        .iter()
        .flat_map(|record| [("key.json", value(record.key)), ("transaction.json", value(record.value))])
        .collect();
    all_are_described(&documents);
}

#[test]
fn schema_changes_are_as_described() {
    let after = table();
    let before = TableSchema { columns: vec![after.columns[0].clone()], ..after.clone() };
    let topic = "shop.public.orders".to_owned();
    let first = SchemaChange {
        position: POSITION,
        topic,
        statement: None,
        applied: true,
        actions: Vec::new(),
        before: None,
        after,
    };
    let statement = Some("ALTER TABLE orders ADD COLUMN a bool".to_owned());
    let mut grown = first.after.clone();
    let last = grown.columns.last_mut().unwrap();
    let below = SchemaVersion(7);
    last.existing = [Holds::Null, Holds::Value("1".to_owned()), Holds::Column("b".to_owned())]
        .map(|holds| Existing { below, holds })
        .to_vec();
    (last.number, last.not_null, last.comment) = (3, true, Some("for people".to_owned()));
    let actions = vec![SchemaAction {
        kind: ActionKind::DropColumn,
        column: Some("a".to_owned()),
        applied: false,
        detail: "it stays".to_owned(),
    }];
    let next = SchemaChange {
        statement,
        applied: false,
        actions,
        before: Some(before),
        after: grown,
        ..first.clone()
    };
    all_are_described(&[("ddl.json", json!(first)), ("ddl.json", json!(next))]);
}

#[test]
fn cuts_are_as_described() {
    all_are_described(&[("cut.json", json!(cut("midnight"))), ("cut.json", json!(cut("request")))]);
}

#[test]
fn manifests_are_as_described() {
    let cut = cut("midnight");
    let name = TableName::new("public", "orders");
    let changes = ChangeCounts { taken: 7, applied: 6, dead_letters: 1, ..ChangeCounts::default() };
    let part = |min_key: Option<&str>| PartFile {
        path: "part-00000.parquet".to_owned(),
        rows: 5,
        bytes: 1000,
        bytes_decoded: 2000,
        sha256: "0a".repeat(32),
        min_key: min_key.map(str::to_owned),
        max_key: min_key.map(str::to_owned),
        min_order: min_key.map(|_| "010a".to_owned()),
        max_order: min_key.map(|_| "010aff".to_owned()),
        exact: BTreeMap::new(),
        copied_from: None,
        as_of: None,
    };
    let manifest = Manifest {
        manifest_version: MANIFEST_VERSION,
        name: "shop".to_owned(),
        table: name.clone(),
        ds: cut.ds,
        cut: CutPoint::from(&cut),
        schema: table(),
        as_text: Vec::new(),
        exact: None,
        format: "parquet".to_owned(),
        written: None,
        files: vec![part(Some("[1]")), part(None)],
        historic_tail: None,
        rows: 10,
        work: None,
        changes,
        log: vec![LogRange { topic: "shop.public.orders".to_owned(), partition: 0, from: 3, end: 9 }],
        previous_ds: None,
        backfill: None,
        backfill_where: Some("id > 5".to_owned()),
    };
    let taken_over = PartFile {
        exact: [("price".to_owned(), 3)].into(),
        copied_from: Some(CopiedFrom { ds: cut.ds, path: "part-00003.parquet".to_owned() }),
        ..part(Some("[1]"))
    };
    let next = Manifest {
        previous_ds: Some(cut.ds),
        written: Some(Written {
            compression: Some("zstd(3)".to_owned()),
            part_bytes_max: 64 << 20,
            row_group_bytes: 16 << 20,
            key_order: 1,
        }),
        files: vec![taken_over, part(Some("[2]"))],
        work: Some(Work { files_written: 1, files_copied: 1, ..Work::default() }),
        as_text: vec![AsText {
            column: "total".to_owned(),
            type_name: "numeric".to_owned(),
            reason: "a decimal of a file has one scale for all rows".to_owned(),
        }],
        exact: Some(ExactColumn { column: EXACT.to_owned(), values: [("price".to_owned(), 3)].into() }),
        ..manifest.clone()
    };
    let with_tail = with_tail(&next);
    let copied = Manifest { backfill: cut.tables["shop.public.orders"].backfill.clone(), ..manifest.clone() };
    let day = DayManifest {
        manifest_version: MANIFEST_VERSION,
        name: "shop".to_owned(),
        ds: cut.ds,
        cut,
        tables: vec![DayTable {
            topic: "shop.public.orders".to_owned(),
            table: name.clone(),
            manifest: "snapshots/shop/public.orders/ds=2026-11-20/_manifest.json".to_owned(),
            sha256: "ff".repeat(32),
            rows: 10,
            changes,
            historic_tail: with_tail.historic_tail.as_ref().map(|tail| tail.as_of),
        }],
        missing: Vec::new(),
    };
    let topic = "shop.public.lines".to_owned();
    let lacks = vec![MissingTable { topic, table: name, reason: "offsets 3..9 are gone".to_owned() }];
    let incomplete = DayManifest { missing: lacks, ..day.clone() };
    all_are_described(&[
        ("manifest.json", json!(manifest)),
        ("manifest.json", json!(next)),
        ("manifest.json", json!(with_tail)),
        ("manifest.json", json!(copied)),
        ("day_manifest.json", json!(day)),
        ("day_manifest.json", json!(incomplete)),
    ]);
}

/// The same with its first file as of an earlier cut.
fn with_tail(next: &Manifest) -> Manifest {
    let as_of = AsOf { ds: next.ds, timeline: next.cut.timeline, lsn: next.cut.lsn };
    let mut files = next.files.clone();
    files[0].as_of = Some(as_of);
    Manifest {
        manifest_version: TAIL_MANIFEST_VERSION,
        files,
        historic_tail: Some(HistoricTail {
            as_of,
            files: 1,
            rows: 5,
            log: vec![LogEnd { partition: 0, end: 7 }],
        }),
        changes: ChangeCounts { applied: 4, deferred_before: 3, deferred: 5, ..next.changes },
        ..next.clone()
    }
}

#[test]
fn notices_and_tombstones_are_as_described() {
    let cut = cut("midnight");
    let table = TableName::new("public", "orders");
    let notice = Notice {
        notice_version: NOTICE_VERSION,
        id: "shop/public.orders/ds=2026-11-20/ffffffffffffffff".to_owned(),
        kind: NoticeKind::Table,
        name: "shop".to_owned(),
        database: "shop".to_owned(),
        table: Some(table.clone()),
        ds: cut.ds,
        location: "s3://lake/snapshots/shop/public.orders/ds=2026-11-20".to_owned(),
        manifest: "s3://lake/snapshots/shop/public.orders/ds=2026-11-20/_manifest.json".to_owned(),
        manifest_sha256: "ff".repeat(32),
        rows: 7,
        historic_tail: None,
        missing: Vec::new(),
    };
    let as_of = AsOf { ds: cut.ds, timeline: cut.timeline, lsn: cut.lsn };
    let with_tail = Notice { historic_tail: Some(as_of), ..notice.clone() };
    assert_eq!(validate(&[("notice.json", json!(with_tail))]), [Vec::<String>::new()]);
    let day = Notice { kind: NoticeKind::Day, table: None, missing: vec![table.clone()], ..notice.clone() };
    let tombstone = Tombstone {
        manifest_version: MANIFEST_VERSION,
        name: "shop".to_owned(),
        table,
        ds: cut.ds,
        reason: "not among the last 30 days".to_owned(),
        rows: 7,
        bytes: 900,
        manifest_sha256: "ff".repeat(32),
    };
    all_are_described(&[
        ("notice.json", json!(notice)),
        ("notice.json", json!(day)),
        ("tombstone.json", json!(tombstone)),
    ]);
}

#[test]
fn dead_letters_are_as_described() {
    let known = DeadLetter {
        partition: 0,
        offset: 12,
        position: Some(POSITION),
        reason: "column \"id\": not an integer of the column's size".to_owned(),
        schema_version: Some(SchemaVersion(7)),
        key: Some(Payload::new(b"{\"id\":1}")),
        value: Some(Payload::new(b"\xFF")),
    };
    let unknown =
        DeadLetter { position: None, schema_version: None, key: None, value: None, ..known.clone() };
    all_are_described(&[("dead_letter.json", json!(known)), ("dead_letter.json", json!(unknown))]);
}

/// One record: key, value, headers.
type Parsed = (Option<Json>, Option<Json>, Json);

/// The records of a change of a table with the columns `id` and `name`.
fn records(
    op: Op,
    old: Option<OldRow<'_>>,
    new: Option<&[Value<'_>]>,
    transaction: Option<TransactionOrder>,
) -> Vec<Parsed> {
    let mut schema = table();
    schema.columns = vec![column("id", ColumnType::Int64), column("name", ColumnType::TEXT)];
    let source = SourceInfo { name: "shop".into(), database: "shopdb".into(), version: "0.1.0".into() };
    let mut encoder = TableEncoder::new(&source, &schema, &[Some(0), Some(1)], Options::default());
    let backfill = op == Op::Read;
    let change = RowChange {
        op,
        position: POSITION,
        lsn: Lsn(0x16_B374_0000),
        commit_us: 1_795_342_530_123_456,
        now_ms: 1_795_342_531_000,
        xid: (!backfill).then_some(750),
        snapshot: backfill,
        last_end_lsn: (!backfill).then_some(Lsn(0x16_B373_0000)),
        transaction,
        old,
        new,
    };
    let mut topic = TopicRecords::new(Arc::from("shop.public.orders"));
    encoder.encode(&change, &mut topic).unwrap();
    let parsed = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap();
    let text = |bytes: &[u8]| Json::from(std::str::from_utf8(bytes).unwrap());
    topic
        .iter()
        .map(|record| {
            let headers = record.headers().map(|(name, value)| (name.to_owned(), text(value))).collect();
            (record.key.map(parsed), record.value.map(parsed), Json::Object(headers))
        })
        .collect()
}

fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "its type", true)
}

/// A table with a column of each representation.
fn table() -> TableSchema {
    let text = |text| ColumnType::Text { text };
    let types = [
        ColumnType::Int64,
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Float32,
        ColumnType::Float64,
        ColumnType::Decimal { precision: 12, scale: -2 },
        ColumnType::Numeric,
        text(TextKind::Plain),
        text(TextKind::Uuid),
        text(TextKind::Json),
        text(TextKind::Enum(vec!["placed".into(), "paid".into()])),
        text(TextKind::Other),
        ColumnType::Bytes,
        ColumnType::Date,
        ColumnType::Time { precision: 6 },
        ColumnType::Timestamp { precision: 3 },
        ColumnType::TimestampTz { precision: 0 },
        ColumnType::TimeTz,
        ColumnType::Interval,
        ColumnType::Array { element: Box::new(ColumnType::Decimal { precision: 3, scale: 1 }) },
    ];
    let mut columns: Vec<_> =
        types.into_iter().enumerate().map(|(index, kind)| column(&format!("c{index}"), kind)).collect();
    columns[1].dropped = true;
    TableSchema {
        name: TableName::new("public", "orders"),
        oid: 16_400,
        version: SchemaVersion(7),
        columns,
        key: vec![0],
        identity: ReplicaIdentity::Default,
        comment: None,
        dropped: false,
    }
}

fn cut(reason: &str) -> Cut {
    let orders = CutTable {
        name: TableName::new("public", "orders"),
        schema_version: SchemaVersion(7),
        changes: 12,
        dead_letters: 1,
        ends: vec![LogEnd { partition: 0, end: 9 }],
        backfill: Some(CutBackfill {
            position: POSITION,
            last: Some(POSITION),
            schema_version: SchemaVersion(7),
            from: vec![LogEnd { partition: 0, end: 3 }, LogEnd { partition: BACKFILL_PARTITION, end: 0 }],
            end: 10,
            rows: 10,
            changes: 5,
            dead_letters: 0,
        }),
        lacking: Some("it was added to the publication".to_owned()),
        backfill_where: Some("id > 5".to_owned()),
    };
    Cut {
        ds: "2026-11-20".parse().unwrap(),
        timeline: 1,
        lsn: Lsn(0x16_B374_D880),
        position: POSITION,
        reason: reason.to_owned(),
        at: "2026-11-20T20:00:00Z".parse().unwrap(),
        time_zone: "Asia/Dubai".to_owned(),
        tables: BTreeMap::from([("shop.public.orders".to_owned(), orders)]),
    }
}

/// Each document is valid, and no longer is when a field is taken away or one is added.
fn all_are_described(documents: &[(&str, Json)]) {
    for ((schema, document), wrong) in documents.iter().zip(validate(documents)) {
        assert!(wrong.is_empty(), "{schema}: {wrong:?}\n{document:#}");
    }
    let spoilt: Vec<_> = documents.iter().flat_map(|(schema, document)| spoil(schema, document)).collect();
    for ((schema, document), wrong) in spoilt.iter().zip(validate(&spoilt)) {
        assert!(!wrong.is_empty(), "{schema} takes this:\n{document:#}");
    }
}

/// The document without each of its fields in turn, and with one that nobody knows.
fn spoil<'a>(schema: &'a str, document: &Json) -> Vec<(&'a str, Json)> {
    // A key may have any columns; the headers that name another key are there in key changes only, and what tells of
    // copies, gaps, texts and work where there were any.
    let fields = document.as_object().unwrap();
    let optional = |name: &str| {
        name.starts_with("__debezium")
            || ["backfill", "backfill_where", "missing", "as_text", "exact", "written", "work"]
                .contains(&name)
    };
    let needed = fields.keys().filter(|name| schema != "key.json" && !optional(name));
    let mut spoilt: Vec<_> = needed
        .map(|name| {
            let mut less = fields.clone();
            less.remove(name);
            (schema, Json::Object(less))
        })
        .collect();
    if schema != "key.json" {
        let mut more = fields.clone();
        more.insert("unheard_of".into(), Json::Null);
        spoilt.push((schema, Json::Object(more)));
    }
    spoilt
}

/// What is wrong with each document, in jsonschema's words.
fn validate(documents: &[(&str, Json)]) -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("TIDEMARK_TEST_PYTHON").map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing: run `make venv`", python.display());
    let line = |(schema, document): &(&str, Json)| {
        let mut line = json!({ "schema": schema, "document": document }).to_string();
        line.push('\n');
        line
    };
    let lines = documents.iter().map(line).collect::<Vec<_>>().concat();
    let mut process = Command::new(python)
        .arg(root.join("integration/schemas/validate.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Written from a thread of its own: the answers may fill their pipe before the last question is asked.
    let mut stdin = process.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "validate.py failed");
    let answers: Vec<Vec<String>> =
        output.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(answers.len(), documents.len());
    answers
}
