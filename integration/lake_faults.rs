//! Whatever is interrupted is done again with the same objects; whatever is published stays as it is.

use std::sync::Arc;

use crate::lake::faults::{Dying, Pausing};
use crate::lake::history::{Change, History, Logged, Shape, TOPIC, history, table};
use crate::lake::{
    deliver, deliver_day, difference, expected, lake as lake_on, objects, rows, shapes, stage, table_name,
    tiny,
};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use tidemark::change::{Datum, Lsn, Op, Position};
use tidemark::lake::DeadRecord;
use tidemark::runtime::Class;

const SHAPE: Shape = Shape {
    seed: 5,
    keyed: true,
    partitions: 2,
    days: 2,
    changes_per_day: 90,
    truncates: false,
    copies: false,
    quiet: false,
    calm: false,
    beyond: false,
    evolve: true,
};

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_at_any_operation_of_the_store_leaves_no_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let quiet = Shape { quiet: true, evolve: false, partitions: 1, changes_per_day: 160, ..SHAPE };
    for shape in [quiet, SHAPE, Shape { keyed: false, ..SHAPE }] {
        let tiny = |scratch| {
            let mut options = tiny(scratch);
            options.part_bytes_max = if shape.quiet { 1 << 10 } else { options.part_bytes_max };
            options
        };
        let history = history(shape);
        let reference = memory();
        let lake = lake_on(Arc::clone(&reference), tiny(scratch.path()));
        deliver(&lake, &history).await.unwrap();
        if shape.quiet {
            let manifest = lake.latest_manifest(&table_name()).await.unwrap().unwrap();
            let work = manifest.work.unwrap();
            assert!(work.files_copied > 0, "{work:?}");
        }
        let reference = objects(reference.as_ref()).await;
        for after in [false, true] {
            let mut at = 0;
            loop {
                let store = memory();
                let dying = Arc::new(Dying::new(Arc::clone(&store), at, after));
                let first = deliver(&lake_on(Arc::clone(&dying) as _, tiny(scratch.path())), &history).await;
                assert_eq!(first.is_err(), dying.died(), "operation {at}, after: {after}");
                deliver(&lake_on(Arc::clone(&store), tiny(scratch.path())), &history)
                    .await
                    .unwrap_or_else(|error| panic!("operation {at}, after: {after}: {error}"));
                let differ = difference(&reference, &objects(store.as_ref()).await);
                assert!(differ.is_empty(), "operation {at}, after: {after}: {differ:?}");
                if !dying.died() {
                    break;
                }
                at += 1;
            }
            assert!(at > 20, "only {at} operations were tried");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_at_once_publish_what_one_would() {
    let scratch = tempfile::tempdir().unwrap();
    for shape in [SHAPE, Shape { quiet: true, evolve: false, days: 5, changes_per_day: 400, ..SHAPE }] {
        at_once(&scratch, shape).await;
    }
}

async fn at_once(scratch: &tempfile::TempDir, shape: Shape) {
    let folder = tempfile::tempdir().unwrap();
    let history = Arc::new(history(shape));
    let reference = memory();
    let lake = lake_on(Arc::clone(&reference), tiny(scratch.path()));
    deliver(&lake, &history).await.unwrap();
    if shape.quiet {
        let manifest = lake.latest_manifest(&table_name()).await.unwrap().unwrap();
        assert!(manifest.work.unwrap().files_copied > 0, "{manifest:#?}");
    }

    let url = format!("file://{}", folder.path().display());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let lake = tidemark::lake::Lake::open(&url, "shop", tiny(scratch.path())).unwrap();
        let history = Arc::clone(&history);
        tasks.spawn(async move {
            loop {
                match deliver(&lake, &history).await {
                    // One that finds the file which it would have made looks again, as deliver does.
                    Err(error) if matches!(error.class(), Class::Retry | Class::Fenced) => {}
                    done => return done,
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let local = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let differ = difference(&objects(reference.as_ref()).await, &objects(&local).await);
    assert!(differ.is_empty(), "{differ:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_object_never_changes() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let history = history(SHAPE);
    deliver(&lake_on(Arc::clone(&store), tiny(scratch.path())), &history).await.unwrap();
    let before = objects(store.as_ref()).await;
    // Again, and with other settings.
    let mut options = tiny(scratch.path());
    options.part_bytes_max = 1 << 20;
    options.stage_bytes_max = 1 << 20;
    for options in [tiny(scratch.path()), options] {
        deliver(&lake_on(Arc::clone(&store), options), &history).await.unwrap();
        let differ = difference(&before, &objects(store.as_ref()).await);
        assert!(differ.is_empty(), "{differ:?}");
    }
    let mut other = history.days[0].cut.clone();
    other.lsn = Lsn(1);
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let error = lake
        .merge_and_publish(&shapes(&history, &history.days[0]), &other, TOPIC, None, None, None)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    assert!(error.to_string().contains("0/1"), "{error}");
}

/// Paused past its lease, and overtaken by another version, which makes other files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_overtaken_by_another_version_leaves_its_day_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let history = Arc::new(history(SHAPE));
    let pausing = Arc::new(Pausing::new(Arc::clone(&store), "/part-00000.parquet"));
    let overtaken = {
        let (lake, history) =
            (lake_on(Arc::clone(&pausing) as _, tiny(scratch.path())), Arc::clone(&history));
        tokio::spawn(async move { deliver_day(&lake, &history, &history.days[0]).await })
    };
    let _reached = pausing.reached.acquire().await.unwrap();
    let mut options = tiny(scratch.path());
    options.part_bytes_max = 12 << 10;
    let lake = lake_on(Arc::clone(&store), options);
    let ds = history.days[0].cut.ds;
    // As another version does with a plan that it does not know.
    let plan = lake.layout().snapshot_object(&table_name(), ds, "_plan.json");
    lake.store().delete(&plan).await.unwrap();
    deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    let published = objects(store.as_ref()).await;
    pausing.released.add_permits(1);
    let error = overtaken.await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Fenced, "{error}");
    let differ = difference(&published, &objects(store.as_ref()).await);
    assert!(differ.is_empty(), "{differ:?}");
}

/// The same, paused while it removes what is not its own: of another version's attempt, and what its manifest will not name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_overtaken_while_it_removes_parts_removes_none_of_what_is_published() {
    let scratch = tempfile::tempdir().unwrap();
    let history = Arc::new(history(Shape { changes_per_day: 600, ..SHAPE }));
    let ds = history.days[0].cut.ds;
    let options = |part_bytes_max: usize| {
        let mut options = tiny(scratch.path());
        (options.part_bytes_max, options.memory_bytes_max) =
            (part_bytes_max, 4 * part_bytes_max.max(16 << 10));
        options
    };
    for (paused_at, plan_is_held) in [("/_plan.json", true), ("/part-00003.parquet", false)] {
        let store = memory();
        // Few and large parts here, many small ones there: of those, most are beyond what is wanted here.
        let pausing = Arc::new(Pausing::after_delete(Arc::clone(&store), paused_at));
        let lake = lake_on(Arc::clone(&pausing) as _, options(1 << 20));
        let object = |name: &str| lake.layout().snapshot_object(&table_name(), ds, name);
        if plan_is_held {
            let plan = r#"{"writer":"another","format":"parquet","compression":null,"part_bytes_max":1,"row_group_bytes":1}"#;
            lake.store().put_once(&object("_plan.json"), plan).await.unwrap();
        }
        for number in 0..20 {
            lake.store().put_once(&object(&format!("part-{number:05}.parquet")), "left").await.unwrap();
        }
        let (slow, of) = (lake.clone(), Arc::clone(&history));
        let overtaken = tokio::spawn(async move { deliver_day(&slow, &of, &of.days[0]).await });
        let _reached = pausing.reached.acquire().await.unwrap();
        let quick = lake_on(Arc::clone(&store), options(1 << 10));
        // As another version does with a plan that it does not know.
        quick.store().delete(&object("_plan.json")).await.unwrap();
        let manifest = deliver_day(&quick, &history, &history.days[0]).await.unwrap();
        assert!(manifest.files.len() > 6, "{} parts", manifest.files.len());
        let published = objects(store.as_ref()).await;
        pausing.released.add_permits(1);
        let error = overtaken.await.unwrap().unwrap_err();
        assert_eq!(error.class(), Class::Fenced, "{paused_at}: {error}");
        let differ = difference(&published, &objects(store.as_ref()).await);
        assert!(differ.is_empty(), "{paused_at}: {differ:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_another_attempt_are_cleared_before_the_day_is_visible() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let url = format!("file://{}", folder.path().display());
    let lake = tidemark::lake::Lake::open(&url, "shop", tiny(scratch.path())).unwrap();
    let ds = history.days[0].cut.ds;
    let day = folder.path().join(format!("snapshots/shop/public.t/ds={ds}"));
    std::fs::create_dir_all(&day).unwrap();
    for name in ["part-00000.parquet", "part-09999.parquet", "part-00000.parquet#1", "junk"] {
        std::fs::write(day.join(name), "left over").unwrap();
    }
    deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    for table in lake.verify(ds, None).await.unwrap() {
        assert!(table.is_right(), "{table:#?}");
    }
    let mut names: Vec<_> = std::fs::read_dir(&day)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !(name.starts_with("part-000") && name.ends_with(".parquet")));
    names.sort();
    assert_eq!(names, ["_SUCCESS", "_manifest.json", "_plan.json"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_day_has_its_success_marker_though_a_process_died_before_making_it() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let history = history(SHAPE);
    let cut = &history.days[0].cut;
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    stage(&lake, &history, &history.days[0], None).await.unwrap();
    lake.merge_and_publish(&shapes(&history, &history.days[0]), cut, TOPIC, None, None, None).await.unwrap();
    let marker = lake.layout().success(&table_name(), cut.ds);
    lake.store().delete(&marker).await.unwrap();
    lake.publish_day(cut, &std::collections::BTreeMap::new()).await.unwrap().unwrap();
    assert!(lake.store().get(&marker).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_written_change_files_are_cleared_and_whole_ones_stay() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let url = format!("file://{}", folder.path().display());
    let lake = tidemark::lake::Lake::open(&url, "shop", tiny(scratch.path())).unwrap();
    stage(&lake, &history, &history.days[0], None).await.unwrap();
    let changes = lake.store().list(&lake.layout().changes(&table_name())).await.unwrap();
    let whole = folder.path().join(changes[0].location.as_ref());
    let half = folder.path().join(format!("{}#1", changes[0].location));
    for since in [None, Some(history.days[0].cut.ds)] {
        std::fs::write(&half, "half").unwrap();
        lake.sweep(&table_name(), since).await.unwrap();
        assert!(whole.exists() && !half.exists(), "{since:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_a_changed_a_missing_and_a_strange_part() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let history = history(Shape { changes_per_day: 400, evolve: false, ..SHAPE });
    let url = format!("file://{}", folder.path().display());
    let lake = tidemark::lake::Lake::open(&url, "shop", tiny(scratch.path())).unwrap();
    let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    assert!(manifest.files.len() > 1, "{} parts", manifest.files.len());
    let day = folder.path().join(format!("snapshots/shop/public.t/ds={}", manifest.ds));
    let mut bytes = std::fs::read(day.join("part-00000.parquet")).unwrap();
    bytes[10] ^= 1;
    std::fs::write(day.join("part-00000.parquet"), bytes).unwrap();
    std::fs::remove_file(day.join("part-00001.parquet")).unwrap();
    std::fs::write(day.join("more.parquet"), "x").unwrap();
    let found = &lake.verify(manifest.ds, Some(&table_name())).await.unwrap()[0];
    let problems: Vec<_> =
        found.files.iter().filter(|file| file.problem.is_some()).map(|file| &file.path).collect();
    assert_eq!(problems.len(), 3, "{found:#?}");
    // The next day is not built on a damaged one.
    let error = deliver_day(&lake, &history, &history.days[1]).await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    assert!(error.to_string().contains("part-00000.parquet"), "{error}");
}

/// A history of one day with the given changes, one a transaction.
fn day_of(keyed: bool, changes: Vec<(Op, Vec<Datum<'static>>)>) -> History {
    let mut history =
        history(Shape { days: 1, partitions: 1, changes_per_day: 0, evolve: false, keyed, ..SHAPE });
    let schema = Arc::new(table(keyed));
    for (offset, (op, row)) in changes.into_iter().enumerate() {
        let (before, row) = if op == Op::Delete { (Some(row), Vec::new()) } else { (None, row) };
        let change = Change {
            position: Position { timeline: 1, commit_lsn: Lsn(1000 + 8 * offset as u64), ordinal: 1 },
            op,
            commit_us: 1_763_600_000_000_000,
            schema: Arc::clone(&schema),
            old_key: None,
            before,
            row,
        };
        history.partitions[0].push(Logged { offset: offset as u64, change: Some(change) });
    }
    let table = history.days[0].cut.tables.get_mut(TOPIC).unwrap();
    table.changes = history.partitions[0].len() as u64;
    table.ends[0].end = table.changes;
    history
}

fn row(id: i64, note: Datum<'static>) -> Vec<Datum<'static>> {
    let mut row = vec![Datum::Null; 8];
    row[0] = Datum::Int(id);
    row[1] = Datum::Text("c".into());
    row[4] = note;
    row
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_completed_is_a_dead_letter_and_never_a_null() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let history = day_of(
        true,
        vec![
            (Op::Create, row(1, Datum::Text("one".into()))),
            (Op::Update, row(1, Datum::Unchanged)),
            (Op::Update, row(2, Datum::Unchanged)),
            (Op::Update, row(3, Datum::Unchanged)),
            (Op::Update, row(3, Datum::Text("three".into()))),
        ],
    );
    let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    assert_eq!((manifest.rows, manifest.changes.applied, manifest.changes.dead_letters), (2, 3, 2));
    let found = rows(&lake, &objects(store.as_ref()).await, manifest.ds, false).await;
    assert!(found[0].contains("\"one\"") && found[1].contains("\"three\""), "{found:#?}");
    let letters = lake.dead_letters(&table_name(), Some(manifest.ds)).await.unwrap();
    let offsets: Vec<_> = letters.iter().map(|letter| letter.offset).collect();
    assert_eq!(offsets, [2, 3]);
    assert!(letters[0].reason.contains("\"note\""), "{}", letters[0].reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_a_row_that_is_not_held_is_a_dead_letter() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let one = || row(1, Datum::Text("one".into()));
    let changes = vec![(Op::Create, one()), (Op::Delete, one()), (Op::Delete, one()), (Op::Create, one())];
    let history = day_of(false, changes);
    let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    assert_eq!((manifest.rows, manifest.changes.applied, manifest.changes.dead_letters), (1, 3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_files_cannot_hold_is_a_dead_letter_and_the_sums_are_right() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let mut history =
        day_of(true, vec![(Op::Create, row(1, Datum::Null)), (Op::Create, row(1 << 40, Datum::Null))]);
    let table = history.days[0].cut.tables.get_mut(TOPIC).unwrap();
    // A third record, which could not be decoded.
    table.changes = 3;
    table.ends[0].end = 3;
    let shapes = crate::lake::shapes(&history, &history.days[0]);
    let mut stager = lake.stager(&table_name(), 0, 0, &shapes).await.unwrap();
    for record in &history.partitions[0] {
        crate::lake::push(&mut stager, record).await.unwrap();
    }
    let reason = "no JSON";
    let raw = Some(&b"\xFF{"[..]);
    let dead = DeadRecord { offset: 2, position: None, commit_us: 0, reason, raw_key: None, raw_value: raw };
    stager.push_dead(&dead).await.unwrap();
    stager.close(3, history.days[0].cut.at.as_microsecond()).await.unwrap();
    let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    assert_eq!((manifest.rows, manifest.changes.taken, manifest.changes.dead_letters), (1, 3, 2));
    let letters = lake.dead_letters(&table_name(), None).await.unwrap();
    let mut reasons: Vec<_> = letters.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect();
    reasons.sort_unstable();
    assert!(reasons[0].1.contains("\"id\"") && reasons[1] == (2, "no JSON"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_that_do_not_match_are_not_published() {
    let scratch = tempfile::tempdir().unwrap();
    let lake = lake_on(memory(), tiny(scratch.path()));
    let mut history = day_of(true, vec![(Op::Create, row(1, Datum::Null))]);
    history.days[0].cut.tables.get_mut(TOPIC).unwrap().changes = 2;
    let error = deliver_day(&lake, &history, &history.days[0]).await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    assert!(error.to_string().contains("counted 2 changes, but 1 are staged"), "{error}");
    assert_eq!(lake.latest_manifest(&table_name()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_waits_until_its_change_files_are_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let lake = lake_on(memory(), tiny(scratch.path()));
    let history = day_of(true, vec![(Op::Create, row(1, Datum::Null))]);
    let day = &history.days[0];
    let error =
        lake.merge_and_publish(&shapes(&history, day), &day.cut, TOPIC, None, None, None).await.unwrap_err();
    assert!(error.to_string().contains("the cut ends at 1"), "{error}");
    stage(&lake, &history, day, None).await.unwrap();
    lake.merge_and_publish(&shapes(&history, day), &day.cut, TOPIC, None, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_never_written_to_has_its_day() {
    let scratch = tempfile::tempdir().unwrap();
    let store = memory();
    let lake = lake_on(Arc::clone(&store), tiny(scratch.path()));
    let history = day_of(true, Vec::new());
    let manifest = deliver_day(&lake, &history, &history.days[0]).await.unwrap();
    assert_eq!((manifest.rows, manifest.files.len()), (0, 1));
    assert_eq!(
        rows(&lake, &objects(store.as_ref()).await, manifest.ds, false).await,
        expected(&history.days[0], false)
    );
}
