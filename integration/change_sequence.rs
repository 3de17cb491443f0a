//! Many who stage the same table at once, each as if it were alone: paused at any step, killed at any step, with other limits
//! each. Whatever they do, the change files hold each offset once, and the days are those of the model.
//! `SEQUENCE_ROUNDS` sets how many seeds are tried; a failure names its seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::lake::history::{History, Shape, TOPIC, history};
use crate::lake::pauses::Pausing;
use crate::lake::{deliver_day, expected, objects, push, rows, shapes, table_name, tiny};
use crate::support::Replay;
use bytes::Bytes;
use futures::future::join_all;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemark::change::{Column, ColumnType, Datum, Lsn, Op, Position, SchemaVersion, TableSchema};
use tidemark::envelope::Options;
use tidemark::lake::{Lake, Shapes, StagedChange};
use tidemark::runtime::{Class, Error, Result};

const WRITERS: u64 = 4;

/// Up to where the log has let go of each log partition: of what somebody says is in the lake, never of more.
#[derive(Default)]
struct Trimmed(Mutex<BTreeMap<u32, u64>>);

impl Trimmed {
    fn at(&self, partition: u32) -> u64 {
        self.0.lock().unwrap().get(&partition).copied().unwrap_or(0)
    }

    fn raise(&self, partition: u32, before: u64) {
        let mut held = self.0.lock().unwrap();
        let at = held.entry(partition).or_default();
        *at = before.max(*at);
    }
}

/// Stages every day, a random number of records at a time, with files written early at random.
async fn stage_all(lake: &Lake, history: &History, trimmed: &Trimmed, random: &mut StdRng) -> Result<()> {
    for day in &history.days {
        for end in &day.cut.tables[TOPIC].ends {
            let held = trimmed.at(end.partition);
            let next = lake.chain(&table_name(), end.partition, (0, None), None).await?.next;
            if next >= end.end {
                continue;
            }
            let mut stager = lake.stager(&table_name(), end.partition, next, &shapes(history, day)).await?;
            assert!(stager.next_offset() >= held, "what the log let go of is not in the lake");
            for record in &history.partitions[end.partition as usize] {
                if record.offset < stager.next_offset() || record.offset >= end.end {
                    continue;
                }
                if record.offset < trimmed.at(end.partition) {
                    // Another process has it, and this one cannot read it any more.
                    stager.flush().await?;
                    return Err(Error::fenced("the log has let go of what comes"));
                }
                push(&mut stager, record).await?;
                if random.random_bool(0.02) {
                    stager.flush().await?;
                }
                trimmed.raise(end.partition, stager.durable());
            }
            stager.close(end.end, day.cut.at.as_microsecond()).await?;
            trimmed.raise(end.partition, stager.durable());
        }
    }
    Ok(())
}

/// Attempts one after the other, some of which die at a random step.
async fn writer(lake: Lake, history: &History, trimmed: &Trimmed, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        let steps = random.random_range(1..1500);
        let dies = async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
        };
        let attempt = async {
            // One that is overtaken begins anew, as the pipeline does.
            while let Err(error) = stage_all(&lake, history, trimmed, &mut random).await {
                assert_eq!(error.class(), Class::Fenced, "{error}");
            }
        };
        tokio::select! { () = attempt => return, () = dies => {} }
    }
}

async fn check(seed: u64) {
    let _replay = Replay::with(format!("SEQUENCE_SEED={seed}"));
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let shape = Shape {
        seed,
        keyed: true,
        partitions: 2,
        days: 3,
        changes_per_day: 200,
        truncates: seed.is_multiple_of(3),
        evolve: seed.is_multiple_of(2),
        beyond: seed.is_multiple_of(4),
        copies: false,
        quiet: false,
        calm: false,
    };
    let history = history(shape);
    let lake_of = |number: u64| {
        let mut options = tiny(scratch.path());
        options.stage_bytes_max = 2 << (10 + number % 3);
        crate::lake::lake(Arc::new(Pausing::new(Arc::clone(&inner), seed * 100 + number)), options)
    };
    let trimmed = Trimmed::default();
    let writers = (0..WRITERS).map(|number| writer(lake_of(number), &history, &trimmed, seed * 100 + number));
    join_all(writers).await;

    // Whoever comes last completes what the others left.
    let last = lake_of(WRITERS);
    let mut random = StdRng::seed_from_u64(seed);
    while let Err(error) = stage_all(&last, &history, &trimmed, &mut random).await {
        assert_eq!(error.class(), Class::Fenced, "seed {seed}: {error}");
    }
    for day in history.days.iter().filter(|day| day.is_there()) {
        deliver_day(&last, &history, day).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let objects = objects(inner.as_ref()).await;
    let mut files: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (_, numbers) in change_files(&objects) {
        files.entry(numbers[0]).or_default().push((numbers[1], numbers[2]));
    }
    for (partition, mut ranges) in files {
        ranges.sort_unstable();
        let mut at = 0;
        for (first, end) in &ranges {
            assert_eq!(*first, at, "seed {seed}, log partition {partition}: each offset once in {ranges:?}");
            at = end + 1;
        }
    }
    for day in history.days.iter().filter(|day| day.is_there()) {
        assert_eq!(rows(&last, &objects, day.cut.ds, false).await, expected(day, false), "seed {seed}");
    }
}

/// Folder, and log partition, first and last offset of each change file.
fn change_files(objects: &BTreeMap<String, Bytes>) -> Vec<(&str, Vec<u64>)> {
    let seen =
        |path: &&String| path.starts_with("changes/") && path.ends_with(".parquet") && !path.contains("/_");
    let parsed = |path: &'_ String| -> Option<(usize, Vec<u64>)> {
        let (folder, name) = path.rsplit_once('/')?;
        let numbers = name.strip_suffix(".parquet")?.split('-').map(|number| number.parse().unwrap());
        Some((folder.len(), numbers.collect()))
    };
    let files = objects.keys().filter(seen);
    files.filter_map(|path| parsed(path).map(|(folder, numbers)| (&path[..folder], numbers))).collect()
}

/// However often memory was short, whoever took over, whatever columns came in the hour.
#[tokio::test]
async fn an_hour_is_one_file_with_the_same_bytes_however_often_it_was_written_early() {
    let first = std::env::var("SEQUENCE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut mixed = 0;
    for seed in first..first + 6 {
        let _replay = Replay::with(format!("SEQUENCE_SEED={seed}"));
        let shape = Shape {
            seed,
            keyed: !seed.is_multiple_of(3),
            partitions: 2,
            days: 3,
            changes_per_day: 300,
            truncates: true,
            evolve: true,
            beyond: seed.is_multiple_of(2),
            copies: false,
            quiet: false,
            calm: false,
        };
        let history = history(shape);
        let scratch = tempfile::tempdir().unwrap();
        let (at_once, early): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) =
            (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        for (store, often) in [(&at_once, 0.0), (&early, 0.05)] {
            let mut options = tiny(scratch.path());
            options.stage_bytes_max = 1 << 20;
            let lake = crate::lake::lake(Arc::clone(store), options);
            mixed += stage_alone(&lake, &history, seed, often).await;
        }
        let (at_once, early) = (objects(at_once.as_ref()).await, objects(early.as_ref()).await);
        let names = |objects: &BTreeMap<String, Bytes>| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&at_once), names(&early), "seed {seed}: pieces are gone, and files are the same");
        for (path, bytes) in &at_once {
            assert!(early[path] == *bytes, "seed {seed}: {path} has other bytes");
        }
    }
    assert!(mixed > 0, "no hour had two shapes");
}

/// Stages all days; after what was written early another process may go on. How often rows of another shape came into
/// an hour's file that was open.
async fn stage_alone(lake: &Lake, history: &History, seed: u64, often: f64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut mixed = 0;
    for day in &history.days {
        for end in &day.cut.tables[TOPIC].ends {
            let next = lake.chain(&table_name(), end.partition, (0, None), None).await.unwrap().next;
            let open = async |next| {
                lake.stager(&table_name(), end.partition, next, &shapes(history, day)).await.unwrap()
            };
            let (mut stager, mut version) = (open(next).await, None);
            for record in &history.partitions[end.partition as usize] {
                if record.offset < stager.next_offset() || record.offset >= end.end {
                    continue;
                }
                let before = stager.covered();
                push(&mut stager, record).await.unwrap();
                let came = record.change.as_ref().map(|change| change.schema.version);
                mixed += usize::from(
                    came.is_some() && version.is_some() && came != version && stager.covered() == before,
                );
                version = came.or(version);
                if random.random_bool(often) {
                    stager.flush().await.unwrap();
                    assert_eq!(stager.memory(), 0);
                    if random.random() {
                        let durable = stager.durable();
                        stager = open(stager.covered()).await;
                        assert!(stager.next_offset() == durable && stager.durable() == durable);
                    }
                }
            }
            stager.close(end.end, day.cut.at.as_microsecond()).await.unwrap();
            stager.clear().await;
        }
    }
    mixed
}

#[tokio::test]
async fn change_files_hold_each_offset_once_whoever_is_paused_or_killed() {
    let rounds = std::env::var("SEQUENCE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let first = std::env::var("SEQUENCE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + rounds {
        check(seed).await;
    }
}

/// The log may have let go of what is in pieces: nobody else can make the file that was begun.
#[tokio::test]
async fn a_file_that_was_begun_is_made_of_its_pieces_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let shape = Shape {
        seed: 7,
        keyed: true,
        partitions: 1,
        days: 1,
        changes_per_day: 60,
        truncates: false,
        evolve: false,
        beyond: false,
        copies: false,
        quiet: false,
        calm: false,
    };
    let history = history(shape);
    let day = &history.days[0];
    let mut options = tiny(scratch.path());
    options.stage_bytes_max = 1 << 20;
    let lake = crate::lake::lake(Arc::clone(&inner), options);
    let open = async |next| lake.stager(&table_name(), 0, next, &shapes(&history, day)).await;
    let mut stager = open(0).await.unwrap();
    for record in history.partitions[0].iter().take(30) {
        push(&mut stager, record).await.unwrap();
        if record.offset % 7 == 0 {
            stager.flush().await.unwrap();
        }
    }
    stager.flush().await.unwrap();
    let held = stager.durable();
    drop(stager);

    // One who died between the link and the file; another has gone on behind its end.
    let end = held - 3;
    let link = serde_json::json!({"next": end, "ds": day.cut.ds.to_string(), "hour": 20});
    let path = lake.layout().link(&table_name(), 0, 0);
    lake.store().put_once(&path, Bytes::from(format!("{link}\n"))).await.unwrap();
    assert_eq!(open(0).await.unwrap_err().class(), Class::Fenced, "what comes behind it is another file's");
    assert_eq!(lake.chain(&table_name(), 0, (0, None), None).await.unwrap().next, end);
    let stager = open(end).await.unwrap();
    assert_eq!((stager.covered(), stager.durable()), (end, held), "the rest of the last piece is kept");
    drop(stager);
    let path = lake.layout().link(&table_name(), 0, end);
    let link = serde_json::json!({"next": held, "ds": day.cut.ds.to_string(), "hour": 20});
    lake.store().put_once(&path, Bytes::from(format!("{link}\n"))).await.unwrap();
    let mut stager = open(end).await.unwrap();
    assert_eq!((stager.covered(), stager.owes()), (held, None), "it is made at once");
    stager.clear().await;
    let objects = objects(inner.as_ref()).await;
    assert!(!objects.keys().any(|path| path.contains("/_pieces/")), "{:?}", objects.keys());
    deliver_day(&lake, &history, day).await.unwrap();
    let objects = crate::lake::objects(inner.as_ref()).await;
    assert_eq!(rows(&lake, &objects, day.cut.ds, false).await, expected(day, false));
}

/// What lies behind a file that was begun may be of a later shape, in a piece that begins with an offset without a record.
#[tokio::test]
async fn a_file_that_was_begun_is_made_though_the_next_ones_shape_is_a_later_one() {
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = crate::lake::lake(Arc::clone(&inner), tiny(scratch.path()));
    let first = Arc::new(crate::lake::history::table(true));
    let mut second = TableSchema { version: SchemaVersion(2), ..TableSchema::clone(&first) };
    let mut came = Column::new("came", ColumnType::Int32, "", true);
    came.number = 100;
    second.columns.push(came);
    let second = Arc::new(second);
    let read = |column_type: &ColumnType, text: &str| Options::default().datum(column_type, text);
    let shapes = Shapes::new(Arc::clone(&second), [Arc::clone(&first), Arc::clone(&second)], Arc::new(read));
    let open = async |next| lake.stager(&table_name(), 0, next, &shapes).await;
    let mut stager = open(0).await.unwrap();
    for offset in (0..10).filter(|offset| *offset != 5) {
        let schema = if offset < 5 { &first } else { &second };
        let mut row = vec![Datum::Null; schema.columns.len()];
        (row[0], row[1]) = (Datum::Int(offset as i64), Datum::Text("key".into()));
        let change = StagedChange {
            offset,
            position: Position { timeline: 1, commit_lsn: Lsn(100), ordinal: offset },
            op: Op::Create,
            commit_us: 1_763_640_000_000_000,
            schema,
            old_key: None,
            before: None,
            row: &row,
            raw_key: None,
            raw_value: None,
        };
        stager.push(&change).await.unwrap();
    }
    stager.flush().await.unwrap();
    drop(stager);
    let link = serde_json::json!({"next": 6, "ds": "2025-11-20", "hour": 12});
    let path = lake.layout().link(&table_name(), 0, 0);
    lake.store().put_once(&path, Bytes::from(format!("{link}\n"))).await.unwrap();
    assert_eq!(open(0).await.unwrap_err().class(), Class::Fenced);
    assert_eq!(lake.chain(&table_name(), 0, (0, None), None).await.unwrap().next, 6);
    let mut stager = open(6).await.unwrap();
    stager.close(10, 1_763_650_000_000_000).await.unwrap();
    assert_eq!(lake.chain(&table_name(), 0, (0, None), None).await.unwrap().next, 10);
}

#[tokio::test]
async fn what_is_lost_is_decided_once_and_told_to_whoever_comes_later() {
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = crate::lake::lake(inner, tiny(scratch.path()));
    assert!(lake.give_up(&table_name(), 0, 10, 50).await.unwrap());
    assert!(lake.give_up(&table_name(), 0, 10, 50).await.unwrap(), "the same again is the same");
    assert!(!lake.give_up(&table_name(), 0, 10, 60).await.unwrap(), "another end is too late");
    let link = lake.link(&table_name(), 0, 10).await.unwrap().unwrap();
    assert_eq!((link.next, link.place), (50, None));
    assert_eq!(lake.link(&table_name(), 1, 10).await.unwrap(), None, "each log partition has its own");
}
