//! Many who stage the same table at once, each as if it were alone: paused at any step, killed at any step, with other limits
//! each. Whatever they do, the change files hold each offset once, and the days are those of the model.
//! `SEQUENCE_ROUNDS` sets how many seeds are tried; a failure names its seed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod lake;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use lake::history::{History, Shape, TOPIC, history};
use lake::pauses::Pausing;
use lake::{deliver_day, expected, objects, push, rows, table_name, tiny};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemark::lake::Lake;
use tidemark::runtime::{Class, Result};

const WRITERS: u64 = 4;

/// Stages every day, a random number of records at a time, with files written early at random.
async fn stage_all(lake: &Lake, history: &History, random: &mut StdRng) -> Result<()> {
    for day in &history.days {
        for end in &day.cut.tables[TOPIC].ends {
            let next = lake.chain(&table_name(), end.partition, (0, None), None).await?.next;
            if next >= end.end {
                continue;
            }
            let mut stager = lake.stager(&table_name(), end.partition, next).await?;
            for record in &history.partitions[end.partition as usize] {
                if record.offset >= stager.next_offset() && record.offset < end.end {
                    push(&mut stager, record).await?;
                    if random.random_bool(0.02) {
                        stager.flush().await?;
                    }
                }
            }
            stager.close(end.end, day.cut.at.as_microsecond()).await?;
        }
    }
    Ok(())
}

/// Attempts one after the other, some of which die at a random step.
async fn writer(lake: Lake, history: &History, seed: u64) {
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
            while let Err(error) = stage_all(&lake, history, &mut random).await {
                assert_eq!(error.class(), Class::Fenced, "{error}");
            }
        };
        tokio::select! { () = attempt => return, () = dies => {} }
    }
}

async fn check(seed: u64) {
    println!("SEQUENCE_SEED={seed}");
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let shape = Shape {
        seed,
        keyed: true,
        partitions: 2,
        days: 3,
        changes_per_day: 200,
        truncates: false,
        evolve: seed.is_multiple_of(2),
        beyond: false,
        copies: false,
        quiet: false,
        calm: false,
    };
    let history = history(shape);
    let lake_of = |number: u64| {
        let mut options = tiny(scratch.path());
        options.stage_bytes_max = 2 << (10 + number % 3);
        lake::lake(Arc::new(Pausing::new(Arc::clone(&inner), seed * 100 + number)), options)
    };
    let writers = (0..WRITERS).map(|number| writer(lake_of(number), &history, seed * 100 + number));
    join_all(writers).await;

    // Whoever comes last completes what the others left.
    let last = lake_of(WRITERS);
    for day in history.days.iter().filter(|day| day.is_there()) {
        deliver_day(&last, &history, day).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let objects = objects(inner.as_ref()).await;
    let mut files: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for path in objects.keys().filter(|path| path.starts_with("changes/") && path.ends_with(".parquet")) {
        let name = path.rsplit('/').next().unwrap().strip_suffix(".parquet").unwrap();
        let numbers: Vec<u64> = name.split('-').map(|number| number.parse().unwrap()).collect();
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

#[tokio::test]
async fn change_files_hold_each_offset_once_whoever_is_paused_or_killed() {
    let rounds = std::env::var("SEQUENCE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let first = std::env::var("SEQUENCE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + rounds {
        check(seed).await;
    }
}

#[tokio::test]
async fn what_is_lost_is_decided_once_and_told_to_whoever_comes_later() {
    let scratch = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = lake::lake(inner, tiny(scratch.path()));
    assert!(lake.give_up(&table_name(), 0, 10, 50).await.unwrap());
    assert!(lake.give_up(&table_name(), 0, 10, 50).await.unwrap(), "the same again is the same");
    assert!(!lake.give_up(&table_name(), 0, 10, 60).await.unwrap(), "another end is too late");
    let link = lake.link(&table_name(), 0, 10).await.unwrap().unwrap();
    assert_eq!((link.next, link.place), (50, None));
    assert_eq!(lake.link(&table_name(), 1, 10).await.unwrap(), None, "each log partition has its own");
}
