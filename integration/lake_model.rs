//! The lake against a model: random histories of a table, staged, merged and published with limits so small
//! that sorts spill, merges take several passes, and change files and parts are many. `LAKE_ROUNDS` sets how many
//! seeds are tried; a failure names its seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::lake::faults::Losing;
use crate::lake::history::{Shape, history};
use crate::lake::{Premerging, deliver, deliver_premerged, difference, expected, objects, rows, tiny};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use tidemark::batch::{Format, OrcCompression};
use tidemark::lake::{Lake, Manifest, Work};

const SHAPE: Shape = Shape {
    seed: 0,
    keyed: true,
    partitions: 1,
    days: 5,
    changes_per_day: 700,
    truncates: false,
    evolve: false,
    beyond: false,
    copies: false,
    quiet: false,
    calm: false,
};

async fn check(shape: Shape) -> (Lake, BTreeMap<String, Bytes>) {
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let history = history(shape);
    let mut options = tiny(scratch.path());
    if shape.seed % 2 == 1 {
        options.format = Format::Orc { compression: OrcCompression::Snappy };
    }
    let lake = crate::lake::lake(Arc::clone(&store), options);
    deliver(&lake, &history).await.unwrap_or_else(|error| panic!("{shape:?}: {error}"));
    let objects = objects(store.as_ref()).await;
    for day in history.days.iter().filter(|day| day.is_there()) {
        let ds = day.cut.ds;
        let letters = lake.dead_letters(&crate::lake::table_name(), Some(ds)).await.unwrap();
        assert!(letters.is_empty(), "{shape:?}: {} dead letters, such as {:#?}", letters.len(), letters[0]);
        let (found, expected) = (rows(&lake, &objects, ds, shape.copies).await, expected(day, shape.copies));
        if found != expected {
            let lost: Vec<_> = expected.iter().filter(|row| !found.contains(row)).take(5).collect();
            let made: Vec<_> = found.iter().filter(|row| !expected.contains(row)).take(5).collect();
            panic!(
                "{shape:?} ds={ds}: {} rows, not {}\nlost {lost:#?}\nmade {made:#?}",
                found.len(),
                expected.len()
            );
        }
    }
    for day in lake.days().await.unwrap() {
        for table in lake.verify(day, None).await.unwrap() {
            assert!(table.is_right(), "{table:#?}");
        }
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "scratch files are left");
    (lake, objects)
}

fn seeds() -> std::ops::Range<u64> {
    let rounds = std::env::var("LAKE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    1..rounds + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_with_a_key_are_those_of_the_model() {
    for seed in seeds() {
        check(Shape { seed, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncates_empty_the_table_also_across_log_partitions() {
    for seed in seeds() {
        check(Shape { seed, truncates: true, partitions: 3, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_come_go_and_widen_are_carried() {
    for seed in seeds() {
        check(Shape { seed, evolve: true, changes_per_day: 250, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_rows_without_a_key_are_carried_too() {
    for seed in seeds() {
        check(Shape { seed, keyed: false, evolve: true, changes_per_day: 250, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_a_multiset() {
    for seed in seeds() {
        check(Shape { seed, keyed: false, truncates: seed % 2 == 0, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_their_types_lack_are_carried_beside_them() {
    for seed in seeds() {
        for keyed in [true, false] {
            check(Shape {
                seed,
                keyed,
                beyond: true,
                evolve: seed % 2 == 0,
                truncates: seed % 3 == 0,
                ..SHAPE
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_read_at_several_points_are_the_table_whatever_happens_between_them() {
    for seed in seeds() {
        check(Shape { seed, copies: true, changes_per_day: 350, ..SHAPE }).await;
        let truncates = seed % 2 == 0;
        let shape = Shape { seed, copies: true, truncates, partitions: 3, beyond: !truncates, ..SHAPE };
        check(Shape { changes_per_day: 350, ..shape }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_come_and_go_between_the_points_of_a_copy_are_carried() {
    for seed in seeds() {
        check(Shape { seed, copies: true, evolve: true, changes_per_day: 200, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_rows_without_a_key_are_the_table() {
    for seed in seeds() {
        check(Shape { seed, copies: true, keyed: false, truncates: seed % 2 == 0, ..SHAPE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_without_changes_are_those_of_the_day_before() {
    let mut work = Work::default();
    for seed in seeds() {
        let quiet = Shape { seed, quiet: true, days: 10, changes_per_day: 500, ..SHAPE };
        let (lake, objects) =
            check(Shape { beyond: seed % 2 == 0, partitions: 1 + seed as usize % 3, ..quiet }).await;
        for ds in lake.days().await.unwrap() {
            let manifest = lake.manifest(&crate::lake::table_name(), ds).await.unwrap().unwrap();
            copies_are_alike(&lake, &objects, &manifest);
            if let Some(today) = manifest.work.filter(|_| manifest.previous_ds.is_some()) {
                work.files_written += today.files_written;
                work.files_copied += today.files_copied;
            }
        }
        check(Shape { truncates: true, evolve: seed % 2 == 0, changes_per_day: 200, ..quiet }).await;
    }
    assert!(work.files_copied > work.files_written, "{work:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_is_that_of_the_day_before_when_nothing_has_changed() {
    for seed in seeds() {
        let shape = Shape { seed, keyed: false, ..SHAPE };
        let (lake, objects) = check(shape).await;
        for ds in lake.days().await.unwrap() {
            let manifest = lake.manifest(&crate::lake::table_name(), ds).await.unwrap().unwrap();
            copies_are_alike(&lake, &objects, &manifest);
            let work = manifest.work.unwrap();
            assert_eq!(work.files_written == 0, manifest.changes.taken == 0, "{shape:?} {ds}: {work:?}");
        }
    }
}

/// Each part that the manifest calls one of an earlier day is that, byte for byte.
fn copies_are_alike(lake: &Lake, objects: &BTreeMap<String, Bytes>, manifest: &Manifest) {
    let object = |ds, name: &str| &objects[lake.layout().snapshot_object(&manifest.table, ds, name).as_ref()];
    for part in &manifest.files {
        if let Some(from) = &part.copied_from {
            assert_eq!(Some(from.ds), manifest.previous_ds);
            assert!(object(from.ds, &from.path) == object(manifest.ds, &part.path), "{part:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_memory_nor_threads_change_a_byte() {
    for (seed, keyed, beyond) in [(21, true, false), (22, false, false), (23, true, true), (24, false, true)]
    {
        let history = history(Shape { seed, keyed, beyond, ..SHAPE });
        let mut stores = Vec::new();
        for (memory, threads) in [(64 << 10, 1), (16 << 20, 1), (16 << 20, 7)] {
            let scratch = tempfile::tempdir().unwrap();
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let mut options = tiny(scratch.path());
            options.memory_bytes_max = memory;
            options.merge_threads = threads;
            deliver(&crate::lake::lake(Arc::clone(&store), options), &history).await.unwrap();
            stores.push(objects(store.as_ref()).await);
        }
        assert_eq!(difference(&stores[0], &stores[1]), Vec::<String>::new(), "seed {seed}");
        assert_eq!(difference(&stores[0], &stores[2]), Vec::<String>::new(), "seed {seed}, several threads");
    }
}

/// In Parquet and ORC, with and without a column of texts, with moves, truncates, new shapes and copies, and tables without a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_made_before_they_end_are_the_same_byte_for_byte() {
    let mut made = 0;
    for seed in seeds() {
        let quiet = Shape { seed, quiet: true, days: 6, changes_per_day: 300, ..SHAPE };
        let shapes = [
            Shape { quiet: false, days: 2, ..quiet },
            quiet,
            Shape { partitions: 3, beyond: true, ..quiet },
            Shape { truncates: true, partitions: 2, ..quiet },
            Shape { evolve: true, changes_per_day: 250, ..quiet },
            Shape { copies: true, changes_per_day: 250, ..quiet },
            Shape { keyed: false, ..quiet },
        ];
        for shape in shapes {
            made += same_with_premerging(shape, 6).await;
        }
    }
    assert!(made > 0, "nothing of what was made was of use");
    // Changes of many rounds, which are put together.
    let shape = Shape { seed: 1, days: 2, changes_per_day: 1500, ..SHAPE };
    same_with_premerging(shape, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_made_without_what_was_lost_or_altered_of_it_in_the_scratch_folder() {
    let shape = Shape { seed: 5, quiet: true, days: 4, changes_per_day: 400, ..SHAPE };
    let (whole, _) = delivered(shape, (4, None), &|_| {}).await;
    let check = async |name: &str, how: &str, spoil: &(dyn Fn(&Path) + Sync)| {
        let spoiled = AtomicUsize::new(0);
        let before_cut = |scratch: &Path| {
            let files = scratch_files(scratch, name);
            spoiled.fetch_add(files.len(), Relaxed);
            for path in &files {
                spoil(path);
            }
        };
        let (objects, _) = delivered(shape, (4, Some(u64::MAX)), &before_cut).await;
        assert_eq!(difference(&whole, &objects), Vec::<String>::new(), "{name}: {how}");
        assert!(spoiled.into_inner() > 0, "no {name} was there");
    };
    for name in ["", "run", "part"] {
        check(name, "removed", &|path| std::fs::remove_file(path).unwrap()).await;
    }
    // Lengths and offsets of the streams' own, at their beginning; then values; and what ends them.
    let places: [fn(usize) -> usize; 7] =
        [|_| 1, |_| 4, |_| 9, |_| 40, |bytes| bytes / 3, |bytes| bytes / 2, |bytes| bytes - 7];
    for (number, place) in places.iter().enumerate() {
        let altered = |path: &Path, alter: fn(&mut Vec<u8>, usize)| {
            let mut bytes = std::fs::read(path).unwrap();
            let at = place(bytes.len());
            alter(&mut bytes, at);
            std::fs::write(path, bytes).unwrap();
        };
        for name in ["run", "part"] {
            check(name, &format!("a bit, {number}"), &|path| altered(path, |bytes, at| bytes[at] ^= 64))
                .await;
        }
        check("run", &format!("zeros, {number}"), &|path| altered(path, |bytes, at| bytes[at..].fill(0)))
            .await;
        check("run", &format!("cut off, {number}"), &|path| altered(path, Vec::truncate)).await;
    }
}

/// The files of the scratch folder whose names begin so.
fn scratch_files(scratch: &Path, name: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(scratch).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.filter(|path| path.is_dir()).flat_map(|path| std::fs::read_dir(path).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_another_process_has_planned_otherwise_comes_out_by_its_plan() {
    let history = history(Shape { seed: 6, quiet: true, days: 8, changes_per_day: 300, ..SHAPE });
    let ds = history.days[4].cut.ds;
    let mut plan = None;
    let mut stores: Vec<(BTreeMap<String, Bytes>, u64)> = Vec::new();
    for merges in [false, false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let lake = crate::lake::lake(Arc::clone(&store), tiny(scratch.path()));
        let path = lake.layout().snapshot_object(&crate::lake::table_name(), ds, "_plan.json");
        if let Some(plan) = &plan {
            store.put(&path, Bytes::clone(plan).into()).await.unwrap();
        }
        let premerging = Premerging { rounds: 6, merges, by: None, before_cut: &|| {} };
        let made = deliver_premerged(&lake, &history, premerging).await.unwrap();
        let objects = objects(store.as_ref()).await;
        if plan.is_none() {
            let mut other: serde_json::Value = serde_json::from_slice(&objects[path.as_ref()]).unwrap();
            other["part_bytes_max"] = 3000.into();
            plan = Some(Bytes::from(serde_json::to_vec(&other).unwrap()));
        }
        stores.push((objects, made));
    }
    assert!(!difference(&stores[0].0, &stores[1].0).is_empty(), "the plan says nothing");
    assert_eq!(difference(&stores[1].0, &stores[2].0), Vec::<String>::new());
    assert!(stores[2].1 > 0, "nothing of what was made was of use on the other days");
}

/// They are listed, and have gone into their change file by the time that they would be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_early_and_is_gone_before_it_is_read_costs_its_own_rows_alone() {
    let shape = Shape { seed: 8, quiet: true, days: 6, changes_per_day: 400, ..SHAPE };
    let history = history(shape);
    let (whole, _) = delivered(shape, (7, None), &|_| {}).await;
    for seed in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let lake = crate::lake::lake(Arc::clone(&store), tiny(scratch.path()));
        let losing = Arc::new(Losing::new(Arc::clone(&store), "/_pieces/", seed));
        let late = crate::lake::lake(Arc::clone(&losing) as _, tiny(scratch.path()));
        let premerging = Premerging { rounds: 7, merges: true, by: Some(&late), before_cut: &|| {} };
        let made = deliver_premerged(&lake, &history, premerging).await.unwrap();
        let differ = difference(&whole, &objects(store.as_ref()).await);
        assert_eq!(differ, Vec::<String>::new(), "seed {seed}");
        assert!(losing.lost() > 0 && made > 0, "seed {seed}: {} were gone, {made} bytes made", losing.lost());
    }
}

/// Compares every object of a lake whose days are made before they end with those of one where they are not; how many bytes
/// of parts were made so.
async fn same_with_premerging(shape: Shape, rounds: u64) -> u64 {
    let (whole, _) = delivered(shape, (rounds, None), &|_| {}).await;
    let (premerged, made) = delivered(shape, (rounds, Some(u64::MAX)), &|_| {}).await;
    assert_eq!(difference(&whole, &premerged), Vec::<String>::new(), "{shape:?}");
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_before_a_day_ends_takes_no_more_room_than_it_has() {
    let shape = Shape { seed: 7, quiet: true, days: 4, changes_per_day: 600, ..SHAPE };
    let (whole, _) = delivered(shape, (20, None), &|_| {}).await;
    let mut made = Vec::new();
    for bytes_max in [0, 20 << 10, 100 << 10, 400 << 10] {
        let most = AtomicUsize::new(0);
        let note = |scratch: &Path| {
            let files = scratch_files(scratch, "");
            let bytes: u64 = files.iter().map(|path| path.metadata().unwrap().len()).sum();
            most.fetch_max(bytes as usize, Relaxed);
        };
        let (premerged, bytes) = delivered(shape, (20, Some(bytes_max)), &note).await;
        assert_eq!(difference(&whole, &premerged), Vec::<String>::new(), "{bytes_max}");
        assert!(most.into_inner() as u64 <= bytes_max, "more than {bytes_max} bytes");
        made.push(bytes);
    }
    assert!(made[0] == 0 && made[3] > 0, "{made:?}");
}

/// The objects of a lake, and how many bytes of parts were made before their days ended, where they may be. What happens before the cut is told
/// of the scratch folder.
async fn delivered(
    shape: Shape,
    (rounds, bytes_max): (u64, Option<u64>),
    before_cut: &(dyn Fn(&Path) + Sync),
) -> (BTreeMap<String, Bytes>, u64) {
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut options = tiny(scratch.path());
    if shape.seed % 2 == 1 {
        options.format = Format::Orc { compression: OrcCompression::Snappy };
    }
    options.premerge_bytes_max = bytes_max.unwrap_or_default();
    let lake = crate::lake::lake(Arc::clone(&store), options);
    let before_cut = || before_cut(scratch.path());
    let merges = bytes_max.is_some();
    let premerging = Premerging { rounds, merges, by: None, before_cut: &before_cut };
    let made = deliver_premerged(&lake, &history(shape), premerging).await;
    let made = made.unwrap_or_else(|error| panic!("{shape:?}, {rounds} rounds: {error}"));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "scratch files are left");
    (objects(store.as_ref()).await, made)
}
