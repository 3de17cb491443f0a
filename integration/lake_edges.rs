//! What is rare in the lake: keys, names, sizes and clocks at their edges; and days and replays that go on from elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lake::history::{Change, Day, History, Logged, Row, Shape, TOPIC, history};
use crate::lake::{
    deliver, deliver_day, lake as lake_on, objects, push, rows, shapes, shown, stage, table_name, tiny,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tidemark::batch::{FileReader, Format, OrcCompression, ReaderOptions, arrow_schema};
use tidemark::change::{
    Column, ColumnType, Datum, Ds, Lsn, Op, Position, ReplicaIdentity, SchemaVersion, TableSchema,
};
use tidemark::lake::Lake;
use tidemark::runtime::Class;

/// 2026-11-20 00:00 in Dubai, in microseconds since 1970.
const MIDNIGHT_US: i64 = 1_795_118_400_000_000;
const HOUR_US: i64 = 3_600_000_000;

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn column(name: &str, column_type: ColumnType, nullable: bool, number: i16) -> Column {
    let mut column = Column::new(name, column_type, "", nullable);
    column.number = number;
    column
}

fn schema(columns: Vec<Column>, key: Vec<usize>) -> TableSchema {
    let identity = if key.is_empty() { ReplicaIdentity::Full } else { ReplicaIdentity::Default };
    TableSchema {
        name: table_name(),
        oid: 1,
        version: SchemaVersion(1),
        columns,
        key,
        identity,
        comment: None,
        dropped: false,
    }
}

type Changes = Vec<(Op, Row)>;

/// Days from 2026-11-20 on with the given changes, one a transaction; a row of a delete is the old one. `held` are the rows
/// at each cut.
fn days_of(schema: TableSchema, days: Vec<(Changes, Vec<Row>)>) -> History {
    let schema = Arc::new(schema);
    let empty = Shape {
        seed: 1,
        keyed: true,
        partitions: 1,
        days: days.len(),
        changes_per_day: 0,
        truncates: false,
        evolve: false,
        beyond: false,
        copies: false,
        quiet: false,
        calm: false,
    };
    let mut history = history(empty);
    history.versions = vec![Arc::clone(&schema)];
    for ((number, day), (changes, held)) in history.days.iter_mut().enumerate().zip(days) {
        let (table, count) = (day.cut.tables.get_mut(TOPIC).unwrap(), changes.len() as u64);
        for (op, row) in changes {
            let (before, row) = if op == Op::Delete { (Some(row), Vec::new()) } else { (None, row) };
            let offset = history.partitions[0].len() as u64;
            let change = Change {
                position: Position { timeline: 1, commit_lsn: Lsn(1000 + 8 * offset), ordinal: 1 },
                op,
                commit_us: MIDNIGHT_US + 24 * HOUR_US * number as i64 + offset as i64,
                schema: Arc::clone(&schema),
                old_key: None,
                before,
                row,
            };
            history.partitions[0].push(Logged { offset, change: Some(change) });
        }
        let end = history.partitions[0].len() as u64;
        (table.changes, table.ends[0].end) = (count, end);
        day.cut.position = Position { timeline: 1, commit_lsn: Lsn(1000 + 8 * end), ordinal: 0 };
        (day.schema, day.rows) = (Arc::clone(&schema), held);
    }
    history
}

async fn holds(lake: &Lake, store: &dyn ObjectStore, day: &Day) {
    let mut expected: Vec<_> = day.rows.iter().map(|row| shown(&day.schema, row, false)).collect();
    expected.sort();
    assert_eq!(rows(lake, &objects(store).await, day.cut.ds, false).await, expected, "{}", day.cut.ds);
}

/// The last millisecond before 1970 is a text from the day on with the first value of the table that its column's type lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_just_before_1970_is_found_on_the_day_when_a_table_gets_its_column_of_texts() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |micros: i128| Datum::Timestamp(micros);
    let [early, late, after] = [-631_152_000_000_000, -1_000, 315_532_800_000_000];
    let amount = ColumnType::Decimal { precision: 12, scale: 2 };
    let columns = || {
        let since = column("since", ColumnType::Timestamp { precision: 6 }, false, 1);
        vec![since, column("amount", amount.clone(), true, 2), column("note", ColumnType::TEXT, true, 3)]
    };
    let row =
        |key, amount: Datum<'static>, note: &'static str| vec![at(key), amount, Datum::Text(note.into())];
    let plain = |key, note| row(key, Datum::Null, note);
    for keyed in [true, false] {
        let first = [early, late, after].map(|key| plain(key, "first"));
        let create = |row: &Row| (Op::Create, row.clone());
        let nan = row(0, Datum::Text("NaN".into()), "nan");
        let changed = plain(early, "second");
        let mut second = vec![(Op::Create, nan.clone())];
        if keyed {
            second.push((Op::Update, changed.clone()));
        } else {
            second.extend([(Op::Delete, first[0].clone()), (Op::Create, changed.clone())]);
        }
        let deleted = if keyed { vec![at(late), Datum::Null, Datum::Null] } else { first[1].clone() };
        let days = vec![
            (first.iter().map(create).collect(), first.to_vec()),
            (second, vec![changed.clone(), first[1].clone(), first[2].clone(), nan.clone()]),
            (vec![(Op::Delete, deleted)], vec![changed, first[2].clone(), nan]),
        ];
        let history = days_of(schema(columns(), if keyed { vec![0] } else { Vec::new() }), days);
        let store = memory();
        let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
        for day in &history.days {
            let manifest = deliver_day(&lake, &history, day).await.unwrap();
            assert_eq!(manifest.rows, day.rows.len() as u64, "{}, keyed: {keyed}: {manifest:#?}", day.cut.ds);
            assert_eq!(manifest.changes.dead_letters, 0, "{}, keyed: {keyed}", day.cut.ds);
        }
        let objects = objects(store.as_ref()).await;
        let last = rows(&lake, &objects, history.days[2].cut.ds, false).await;
        assert!(last.len() == 3 && !last.iter().any(|row| row.contains("1969-12-31")), "{last:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_the_names_that_files_need_have_an_underscore_more() {
    let scratch = tempfile::tempdir().unwrap();
    let amount = ColumnType::Decimal { precision: 12, scale: 2 };
    let columns = || {
        vec![
            column("__exact", ColumnType::Int32, false, 1),
            column("___exact", amount.clone(), true, 2),
            column("__op", ColumnType::TEXT, true, 3),
        ]
    };
    let text = |text: &'static str| Datum::Text(text.into());
    let row = |key, amount: Datum<'static>, note: Datum<'static>| vec![Datum::Int(key), amount, note];
    let (one, two) = (row(1, Datum::Null, text("one")), row(2, Datum::Null, text("two")));
    let (nan, patched) = (row(1, text("NaN"), text("one")), row(2, Datum::Null, text("more")));
    let days = vec![
        (vec![(Op::Create, one.clone()), (Op::Create, two.clone())], vec![one, two]),
        (
            vec![
                (Op::Update, row(1, text("NaN"), Datum::Unchanged)),
                (Op::Update, row(2, Datum::Unchanged, text("more"))),
            ],
            vec![nan, patched],
        ),
    ];
    for format in
        [tiny(scratch.path()).format, Format::Orc { compression: OrcCompression::None }, Format::CsvGzip]
    {
        let history = days_of(schema(columns(), vec![0]), days.clone());
        let store = memory();
        let mut options = tiny(scratch.path());
        options.format = format;
        let lake = lake_on(Arc::clone(&store), options);
        deliver(&lake, &history).await.unwrap();
        let last = history.days.last().unwrap();
        let manifest = lake.manifest(&table_name(), last.cut.ds).await.unwrap().unwrap();
        assert_eq!((manifest.rows, manifest.changes.dead_letters), (2, 0));
        assert_eq!(manifest.exact.unwrap().values, BTreeMap::from([("___exact".to_owned(), 1)]));
        let names = |columns: &[Column]| -> Vec<String> {
            arrow_schema(columns).fields().iter().map(|field| field.name().clone()).collect()
        };
        assert_eq!(names(&last.schema.columns), ["___exact", "____exact", "__op"]);
        let first = &history.days[0];
        holds(&lake, store.as_ref(), first).await;
        for table in lake.verify(last.cut.ds, None).await.unwrap() {
            assert!(table.is_right(), "{table:#?}");
        }
    }
}

/// Its primary's clock went wrong by days, back and forth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_files_of_a_clock_that_stood_wrong_are_found_and_none_of_them_is_lost() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let created: Vec<Row> = (0..30).map(|id| vec![Datum::Int(id)]).collect();
    let changes = created.iter().map(|row| (Op::Create, row.clone())).collect();
    let columns = vec![column("id", ColumnType::Int32, false, 1)];
    let mut history = days_of(schema(columns, vec![0]), vec![(changes, created)]);
    for record in &mut history.partitions[0] {
        let days = if (10..20).contains(&record.offset) { -4 } else { 1 };
        record.change.as_mut().unwrap().commit_us += days * 24 * HOUR_US;
    }
    let mut stager = lake.stager(&table_name(), 0, 0, &shapes(&history, &history.days[0])).await.unwrap();
    for record in &history.partitions[0] {
        push(&mut stager, record).await.unwrap();
    }
    stager.finish().await.unwrap();
    let since: Ds = "2026-11-20".parse().unwrap();
    let found = lake.chain(&table_name(), 0, (0, None), Some(since)).await.unwrap();
    assert_eq!((found.files.len(), found.next), (3, 30), "{found:#?}");
    // What somebody has only begun is no file, wherever it was to be.
    lake.store().delete(&found.files[1].path).await.unwrap();
    let found = lake.chain(&table_name(), 0, (0, None), Some(since)).await.unwrap();
    assert_eq!((found.files.len(), found.next), (1, 10), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_megabytes_are_not_read_several_at_once_because_small_ones_lie_before_them() {
    const BIG: usize = 9 << 20;
    let scratch = tempfile::tempdir().unwrap();
    let columns = vec![column("id", ColumnType::Int32, false, 1), column("note", ColumnType::TEXT, true, 2)];
    let small = |id| vec![Datum::Int(id), Datum::Text("small".into())];
    let big = |id| vec![Datum::Int(id), Datum::Text("large and all the same ".repeat(BIG / 23 + 1).into())];
    let created: Vec<Row> = (0..5000).map(small).chain((5000..5008).map(big)).collect();
    let changes: Changes = created.iter().map(|row| (Op::Create, row.clone())).collect();
    let history = days_of(schema(columns, vec![0]), vec![(changes, created)]);
    for format in [tiny(scratch.path()).format, Format::Orc { compression: OrcCompression::Zlib }] {
        let store = memory();
        let mut options = tiny(scratch.path());
        options.format = format;
        (options.part_bytes_max, options.memory_bytes_max) = (64 << 20, 512 << 20);
        let lake = lake_on(Arc::clone(&store), options);
        let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
        let objects = objects(store.as_ref()).await;
        let mut found = 0;
        for file in &manifest.files {
            let path = lake.layout().snapshot_object(&table_name(), manifest.ds, &file.path).to_string();
            let schema = arrow_schema(&manifest.schema.columns);
            let bytes = objects[&path].clone();
            for batch in FileReader::open(&format, &schema, bytes, &ReaderOptions::default()).unwrap() {
                let batch = batch.unwrap();
                found += batch.num_rows();
                let memory: usize = batch
                    .columns()
                    .iter()
                    .map(|column| column.to_data().get_slice_memory_size().unwrap())
                    .sum();
                assert!(
                    memory < 2 * BIG + (1 << 20),
                    "{format:?}: {memory} bytes in {} rows",
                    batch.num_rows()
                );
            }
        }
        assert_eq!(found, 5008);
    }
}

/// Of the days before, nothing but the lake is known: what was told to the coordinator is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_which_a_table_has_passed_by_is_complete_without_it_though_nobody_knows_why() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let row = |id| vec![Datum::Int(id)];
    let columns = vec![column("id", ColumnType::Int32, false, 1)];
    let one = |id| vec![(Op::Create, row(id))];
    let days = vec![(one(1), vec![row(1)]), (one(2), Vec::new()), (one(3), vec![row(1), row(2), row(3)])];
    let mut history = days_of(schema(columns, vec![0]), days);
    // The table is not in the second day: the third one's changes are those since the first.
    history.days[2].cut.tables.get_mut(TOPIC).unwrap().changes = 2;
    deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    let (passed, none) = (&history.days[1].cut, BTreeMap::new());
    assert_eq!(lake.publish_day(passed, &none).await.unwrap(), None, "it may come yet");
    let manifest = deliver_day(&lake, &history, &history.days[2]).await.unwrap();
    assert_eq!(manifest.rows, 3);
    let day = lake.publish_day(passed, &none).await.unwrap().expect("the day is complete");
    assert_eq!((day.tables.len(), day.missing.len()), (0, 1));
    assert_eq!(day.missing[0].topic, TOPIC);
    assert!(day.missing[0].reason.contains("2026-11-22"), "{}", day.missing[0].reason);
    // One who still knows why comes too late, and is told what stands.
    let known = BTreeMap::from([(TOPIC.to_owned(), "a gap".to_owned())]);
    assert_eq!(lake.publish_day(passed, &known).await.unwrap(), Some(day));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_is_complete_stands_for_whoever_does_not_know_why_a_table_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let lake = lake_on(memory(), tiny(scratch.path()));
    let columns = vec![column("id", ColumnType::Int32, false, 1)];
    let history = days_of(schema(columns, vec![0]), vec![(Vec::new(), Vec::new())]);
    let cut = &history.days[0].cut;
    let known = BTreeMap::from([(TOPIC.to_owned(), "a gap".to_owned())]);
    let day = lake.publish_day(cut, &known).await.unwrap();
    assert_eq!(day.as_ref().map(|day| day.missing.len()), Some(1));
    assert_eq!(lake.publish_day(cut, &BTreeMap::new()).await.unwrap(), day);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_only_from_where_it_began_and_in_no_lake_of_deliver() {
    let scratch = tempfile::tempdir().unwrap();
    let lake = lake_on(memory(), tiny(scratch.path()));
    let begins = |first| BTreeMap::from([(0, first), (1, 7)]);
    lake.begin_replay(&table_name(), &begins(550)).await.unwrap();
    lake.begin_replay(&table_name(), &begins(550)).await.unwrap();
    for other in [300, 700] {
        let error = lake.begin_replay(&table_name(), &begins(other)).await.unwrap_err();
        assert_eq!(error.class(), Class::Operator);
        assert!(error.to_string().contains("begin at offset 550"), "{error}");
    }
    // A log partition that came later has its own beginning.
    lake.begin_replay(&table_name(), &BTreeMap::from([(0, 550), (2, 0)])).await.unwrap();

    let columns = vec![column("id", ColumnType::Int32, false, 1)];
    let row = vec![Datum::Int(1)];
    let history = days_of(schema(columns, vec![0]), vec![(vec![(Op::Create, row.clone())], vec![row])]);
    let delivered = lake_on(memory(), tiny(scratch.path()));
    stage(&delivered, &history, &history.days[0], None).await.unwrap();
    let error = delivered.begin_replay(&table_name(), &BTreeMap::from([(0, 0)])).await.unwrap_err();
    assert!(error.to_string().contains("were not made by a replay"), "{error}");
    let files = delivered.chain(&table_name(), 0, (0, None), None).await.unwrap().files;
    assert_eq!(files.len(), 1);
    delivered.begin_replay(&table_name(), &BTreeMap::from([(1, 0)])).await.unwrap();
    deliver_day(&delivered, &history, &history.days[0]).await.unwrap();
}
