//! Tables with a historic tail against the model: weeks of days, of which most leave the tail as it is. `LAKE_ROUNDS` sets
//! how many seeds are tried; a failure names its seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lake::faults::Dying;
use crate::lake::history::{Day, History, Row, Shape, TOPIC, history};
use crate::lake::{deliver_day_with_tail, difference, objects, rows_by_file, shown, table_name, tiny};
use bytes::Bytes;
use jiff::civil::Weekday;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemark::batch::{Format, OrcCompression};
use tidemark::change::{Datum, TableSchema};
use tidemark::lake::{
    HistoricTail, Lake, LakeOptions, MANIFEST_VERSION, Manifest, TAIL_MANIFEST_VERSION, TailRule,
};

const SHAPE: Shape = Shape {
    seed: 0,
    keyed: true,
    partitions: 1,
    days: 16,
    changes_per_day: 120,
    truncates: false,
    evolve: false,
    beyond: false,
    copies: false,
    quiet: false,
    calm: true,
};

fn seeds() -> std::ops::Range<u64> {
    let rounds = std::env::var("LAKE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    1..rounds + 1
}

fn options(scratch: &std::path::Path, seed: u64) -> LakeOptions {
    let mut options = tiny(scratch);
    options.part_bytes_max = 3 << 10;
    if seed % 2 == 1 {
        options.format = Format::Orc { compression: OrcCompression::Snappy };
    }
    options
}

/// A value of a key, ordered as the lake orders rows: a value that stands in the column of texts comes before the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyValue {
    Int(i64),
    Text(String),
    Beside(String),
    List(String),
}

fn key(schema: &TableSchema, row: &Row) -> Vec<KeyValue> {
    let value = |index: &usize| match &row[*index] {
        Datum::Int(value) => KeyValue::Int(*value),
        Datum::Text(text) if text.starts_with('[') => KeyValue::Beside(text.to_string()),
        Datum::Text(text) => KeyValue::Text(text.to_string()),
        Datum::List(items) => KeyValue::List(format!("{items:?}")),
        other => panic!("{other:?} in a key"),
    };
    schema.key.iter().map(value).collect()
}

/// What days came to.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Days that left the tail as it was.
    deferred: usize,
    /// Days that took what was deferred: as it was time, …
    whole: usize,
    /// … or since something forbade to leave it.
    forced: usize,
}

/// The day holds, up to the key at which its tail ends, what the table held at the tail's cut, and above it what it holds
/// at its own.
async fn check(
    lake: &Lake,
    objects: &BTreeMap<String, Bytes>,
    days: &[Day],
    at: usize,
    shape: Shape,
) -> Manifest {
    let day = &days[at];
    let ds = day.cut.ds;
    let manifest = lake.manifest(&table_name(), ds).await.unwrap().unwrap();
    let files = rows_by_file(lake, objects, ds, shape.copies).await;
    let print = |day: &Day, rows: &mut dyn Iterator<Item = &Row>| {
        let mut rows: Vec<_> = rows.map(|row| shown(&day.schema, row, shape.copies)).collect();
        rows.sort();
        rows
    };
    let letters = lake.dead_letters(&table_name(), Some(ds)).await.unwrap();
    assert!(letters.is_empty(), "{shape:?}: {} dead letters, such as {:#?}", letters.len(), letters[0]);
    for table in lake.verify(ds, None).await.unwrap() {
        assert!(table.is_right(), "{shape:?}: {table:#?}");
    }
    let Some(HistoricTail { as_of, files: count, .. }) = manifest.historic_tail.clone() else {
        let mut found = files.concat();
        found.sort();
        assert!(found == print(day, &mut day.rows.iter()), "{shape:?} {ds}: a whole day is not the table");
        assert_eq!((manifest.manifest_version, manifest.changes.deferred), (MANIFEST_VERSION, 0));
        return manifest;
    };
    assert_eq!(manifest.manifest_version, TAIL_MANIFEST_VERSION);
    let (tail, window) = files.split_at(count as usize);
    let mut tail = tail.concat();
    let held = days.iter().find(|day| day.cut.ds == as_of.ds).unwrap();
    assert_eq!((held.cut.lsn, held.schema.version), (as_of.lsn, day.schema.version), "{shape:?} {ds}");
    let last = tail.last().unwrap().clone();
    let bound = held.rows.iter().find(|row| shown(&held.schema, row, shape.copies) == last);
    let bound =
        key(&held.schema, bound.unwrap_or_else(|| panic!("{shape:?} {ds}: {last} is not of {as_of:?}")));
    tail.sort();
    let expected = print(held, &mut held.rows.iter().filter(|row| key(&held.schema, row) <= bound));
    assert!(
        tail == expected,
        "{shape:?} {ds}: the tail is not the table as of {as_of:?}\n{tail:#?}\n{expected:#?}"
    );
    let mut window = window.concat();
    window.sort();
    let expected = print(day, &mut day.rows.iter().filter(|row| key(&day.schema, row) > bound));
    assert!(window == expected, "{shape:?} {ds}: the window is not the table\n{window:#?}\n{expected:#?}");
    manifest
}

/// Delivers a history day by day, with whatever configuration there may be on each day, and compares each day.
async fn weeks(shape: Shape, seen: &mut Seen) {
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let history = history(shape);
    let lake = crate::lake::lake(Arc::clone(&store), options(scratch.path(), shape.seed));
    let mut random = StdRng::seed_from_u64(shape.seed);
    let weekday = Weekday::from_monday_one_offset(random.random_range(1..=7)).unwrap();
    let mut previous: Option<Manifest> = None;
    let mut rule = TailRule { recent_rows: 1, weekday };
    for (at, day) in history.days.iter().enumerate().filter(|(_, day)| day.is_there()) {
        if at == 0 || random.random_ratio(1, 8) {
            rule.recent_rows = random.random_range(1..120);
        }
        let rule = (!random.random_ratio(1, 12)).then_some(rule);
        let made = deliver_day_with_tail(&lake, &history, day, rule).await;
        made.unwrap_or_else(|error| panic!("{shape:?} {}: {error}", day.cut.ds));
        let objects = objects(store.as_ref()).await;
        let manifest = check(&lake, &objects, &history.days, at, shape).await;
        let before = previous.as_ref().filter(|_| manifest.previous_ds.is_some());
        let changes = manifest.changes;
        assert_eq!(changes.deferred_before, before.map_or(0, |held| held.changes.deferred), "{shape:?}");
        let due =
            rule.is_none() || day.cut.ds.weekday() == weekday || day.cut.ds == day.cut.ds.last_of_month();
        assert!(!due || manifest.historic_tail.is_none(), "{shape:?} {}: the day is not whole", day.cut.ds);
        seen.deferred += usize::from(changes.deferred > 0);
        seen.whole += usize::from(due && changes.deferred_before > 0);
        seen.forced += usize::from(!due && changes.deferred_before > 0 && changes.deferred == 0);
        // As a rule of retention would have it: only the day before is needed.
        if let Some(gone) = &previous {
            let folder = Path::from(format!("snapshots/shop/public.t/ds={}", gone.ds));
            for object in objects.keys().filter(|path| path.starts_with(folder.as_ref())) {
                store.delete(&Path::from(object.as_str())).await.unwrap();
            }
        }
        previous = Some(manifest);
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "scratch files are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_is_the_table_as_of_its_cut_and_the_window_as_of_the_days() {
    let mut seen = Seen::default();
    for seed in seeds() {
        weeks(Shape { seed, partitions: 1 + seed as usize % 3, ..SHAPE }, &mut seen).await;
        weeks(Shape { seed, quiet: true, changes_per_day: 400, ..SHAPE }, &mut seen).await;
    }
    assert!(seen.deferred > 5 && seen.whole > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_a_truncate_a_copy_or_another_shape_is_whole() {
    let mut seen = Seen::default();
    for seed in seeds() {
        let shape = Shape { seed, days: 11, changes_per_day: 100, ..SHAPE };
        weeks(Shape { truncates: true, partitions: 2, ..shape }, &mut seen).await;
        weeks(Shape { evolve: true, ..shape }, &mut seen).await;
        weeks(Shape { copies: true, ..shape }, &mut seen).await;
        weeks(Shape { beyond: true, evolve: seed % 2 == 0, ..shape }, &mut seen).await;
    }
    assert!(seen.deferred > 5 && seen.forced > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_is_whole_every_day() {
    let mut seen = Seen::default();
    weeks(Shape { seed: 1, keyed: false, ..SHAPE }, &mut seen).await;
    assert_eq!(seen.deferred, 0);
}

/// The days of a history, each by a rule.
async fn deliver(lake: &Lake, history: &History, rule: impl Fn(usize) -> Option<TailRule>) {
    for (at, day) in history.days.iter().enumerate() {
        deliver_day_with_tail(lake, history, day, rule(at)).await.unwrap();
    }
}

const RULE: TailRule = TailRule { recent_rows: 40, weekday: Weekday::Sunday };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_memory_nor_threads_change_a_byte_of_days_with_a_tail() {
    for seed in seeds() {
        let history = history(Shape { seed, days: 12, ..SHAPE });
        let mut stores = Vec::new();
        for (memory, threads) in [(64 << 10, 1), (16 << 20, 7)] {
            let scratch = tempfile::tempdir().unwrap();
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let mut options = options(scratch.path(), seed);
            (options.memory_bytes_max, options.merge_threads) = (memory, threads);
            deliver(&crate::lake::lake(Arc::clone(&store), options), &history, |_| Some(RULE)).await;
            stores.push(objects(store.as_ref()).await);
        }
        assert_eq!(difference(&stores[0], &stores[1]), Vec::<String>::new(), "seed {seed}");
    }
}

/// Whoever goes on with a day that another process began follows that one's plan, whatever its own configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_begun_with_another_configuration_comes_out_as_it_was_begun() {
    let mut days = 0;
    for (seed, own, other) in [(2, Some(RULE), None), (4, None, Some(RULE)), (6, Some(RULE), None)] {
        let history = history(Shape { seed, days: 6, ..SHAPE });
        let scratch = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let lake = crate::lake::lake(Arc::clone(&store), options(scratch.path(), seed));
        for day in &history.days {
            let made = deliver_day_with_tail(&lake, &history, day, own).await.unwrap();
            days += usize::from(made.historic_tail.is_some());
            let whole = objects(store.as_ref()).await;
            // As if it had died before the manifest, with some of the parts there.
            let folder = format!("snapshots/shop/public.t/ds={}/", day.cut.ds);
            let left = ["_plan.json", "part-00000.parquet", "part-00002.parquet"]
                .map(|name| format!("{folder}{name}"));
            let cuts = format!("cuts/shop/ds={}.json", day.cut.ds);
            for path in whole.keys().filter(|path| path.starts_with(&folder) || **path == cuts) {
                if !left.contains(path) {
                    store.delete(&Path::from(path.as_str())).await.unwrap();
                }
            }
            deliver_day_with_tail(&lake, &history, day, other).await.unwrap();
            let again = objects(store.as_ref()).await;
            assert_eq!(difference(&whole, &again), Vec::<String>::new(), "seed {seed}, {}", day.cut.ds);
        }
    }
    assert!(days > 2, "no day had a tail");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_day_is_refused_when_change_files_of_deferred_changes_are_gone() {
    let history = history(Shape { seed: 8, days: 12, ..SHAPE });
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = crate::lake::lake(Arc::clone(&store), options(scratch.path(), 2));
    let mut gone = None;
    for day in &history.days {
        let made = deliver_day_with_tail(&lake, &history, day, Some(RULE)).await;
        if let Some(gone) = gone {
            let error = made.unwrap_err().to_string();
            assert!(
                error.contains("historic tail") && error.contains("change files reach offset"),
                "{gone}: {error}"
            );
            return;
        }
        if made.unwrap().changes.deferred > 0 {
            let objects = objects(store.as_ref()).await;
            let of_day = format!("changes/shop/public.t/ds={}/", day.cut.ds);
            let path = objects.keys().find(|path| path.starts_with(&of_day)).unwrap();
            store.delete(&Path::from(path.as_str())).await.unwrap();
            gone = Some(path.clone());
        }
    }
    panic!("nothing was deferred");
}

/// As an older version would go on, or a damaged manifest make this one go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_made_without_what_was_deferred_is_found_and_a_later_layout_is_refused() {
    let history = history(Shape { seed: 10, days: 12, ..SHAPE });
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = crate::lake::lake(Arc::clone(&store), options(scratch.path(), 2));
    let mut deferring = None;
    for day in &history.days {
        let Some(mut held) = deferring.take() else {
            let made = deliver_day_with_tail(&lake, &history, day, Some(RULE)).await.unwrap();
            deferring = Some(made).filter(|made: &Manifest| made.changes.deferred > 0);
            continue;
        };
        (held.historic_tail, held.changes.deferred) = (None, 0);
        crate::lake::stage(&lake, &history, day, Some(&held)).await.unwrap();
        let shapes = crate::lake::shapes(&history, day);
        lake.merge_and_publish(&shapes, &day.cut, TOPIC, Some(&held), None, None).await.unwrap();
        let verified = lake.verify(day.cut.ds, Some(&table_name())).await.unwrap();
        let problem = verified[0].problem.as_deref().unwrap_or_default();
        assert!(problem.contains(&format!("{} has left", held.ds)), "{verified:?}");

        let path = lake.layout().manifest(&table_name(), day.cut.ds);
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        manifest["manifest_version"] = 3.into();
        store.put(&path, manifest.to_string().into()).await.unwrap();
        let error = lake.manifest(&table_name(), day.cut.ds).await.unwrap_err().to_string();
        assert!(error.contains("layout of version 3"), "{error}");
        return;
    }
    panic!("nothing was deferred");
}

/// A first day, one that leaves the tail as it is, and one that takes what was deferred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_at_any_operation_of_the_store_leaves_no_trace_in_days_with_a_tail() {
    let scratch = tempfile::tempdir().unwrap();

    let history = history(Shape { seed: 16, days: 3, changes_per_day: 80, ..SHAPE });
    let rule = TailRule { recent_rows: 5, weekday: history.days[2].cut.ds.weekday() };
    let deliver = async |store: Arc<dyn ObjectStore>| {
        let mut options = options(scratch.path(), 2);
        options.part_bytes_max = 1 << 10;
        let lake = crate::lake::lake(store, options);
        for day in &history.days {
            deliver_day_with_tail(&lake, &history, day, Some(rule)).await?;
        }
        lake.latest_manifest(&table_name()).await
    };
    let reference: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let last = deliver(Arc::clone(&reference)).await.unwrap().unwrap();
    assert!(last.changes.deferred_before > 0 && last.historic_tail.is_none(), "{:?}", last.changes);
    let reference = objects(reference.as_ref()).await;
    let mut at = 0;
    loop {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let dying = Arc::new(Dying::new(Arc::clone(&store), at, at % 2 == 1));
        let first = deliver(Arc::clone(&dying) as _).await;
        assert_eq!(first.is_err(), dying.died(), "operation {at}");
        deliver(Arc::clone(&store)).await.unwrap_or_else(|error| panic!("operation {at}: {error}"));
        let differ = difference(&reference, &objects(store.as_ref()).await);
        assert!(differ.is_empty(), "operation {at}: {differ:?}");
        if !dying.died() {
            break;
        }
        at += 1;
    }
    assert!(at > 60, "only {at} operations were tried");
}
