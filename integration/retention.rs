//! Days that a rule lets go: the right ones, whole or not at all for every reader, whatever is interrupted; told from days
//! that are lost; and what is published afterwards is what would have been.
//!
//! Readers are pyarrow and `DuckDB`, which list a day's folder and are told nothing by anybody.

mod bucket;
mod commands;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::lake::faults::Dying;
use crate::lake::history::{History, Shape, history};
use crate::lake::pauses::Pausing;
use crate::lake::{deliver, deliver_day, difference, objects, table_name, tiny};
use crate::support::lake::python;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use tidemark::change::Ds;
use tidemark::lake::{ExpiredDay, Lake, Retention, Store};

const DAYS: usize = 6;
const SHAPE: Shape = Shape {
    seed: 11,
    keyed: true,
    partitions: 1,
    days: DAYS,
    changes_per_day: 300,
    truncates: false,
    copies: false,
    quiet: false,
    calm: false,
    beyond: false,
    evolve: false,
};

/// Keeps the newest two; the others go, but for what is needed.
const NEWEST_TWO: Retention = Retention { days: 2, month_ends: false };

fn lake_on(store: Arc<dyn ObjectStore>, scratch: &Path) -> Lake {
    Lake::on(Store::new(store, "test:"), "shop", tiny(scratch))
}

async fn expire(lake: &Lake, rule: Retention) -> tidemark::runtime::Result<Vec<ExpiredDay>> {
    let days = lake.expired(&move |_| rule, None).await?;
    for day in &days {
        lake.expire(day).await?;
    }
    Ok(days)
}

fn ds_of(history: &History) -> Vec<Ds> {
    history.days.iter().map(|day| day.cut.ds).collect()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// What the readers find in lakes, by day.
fn read(roots: &[&Path]) -> Vec<BTreeMap<String, Value>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/retention/read.py");
    let output = Command::new(python()).arg(script).args(roots).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_at_any_operation_leaves_each_day_whole_or_refused_or_gone() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let history = history(SHAPE);
    let root = folder.path().join("whole");
    std::fs::create_dir(&root).unwrap();
    let open =
        |root: &Path| Arc::new(LocalFileSystem::new_with_prefix(root).unwrap()) as Arc<dyn ObjectStore>;
    deliver(&lake_on(open(&root), scratch.path()), &history).await.unwrap();
    let whole = objects(open(&root).as_ref()).await;
    let days = ds_of(&history);
    let parts = |ds: Ds| whole.keys().filter(|path| path.contains(&format!("ds={ds}/part-"))).count();
    assert!(days.iter().all(|ds| parts(*ds) > 1), "days of several parts");

    let mut states = Vec::new();
    for after in [false, true] {
        for at in 0.. {
            let state = folder.path().join(format!("{at}-{after}"));
            copy(&root, &state);
            let dying = Arc::new(Dying::new(open(&state), at, after));
            let first = expire(&lake_on(Arc::clone(&dying) as _, scratch.path()), NEWEST_TWO).await;
            assert_eq!(first.is_err(), dying.died(), "operation {at}, after: {after}");
            if !dying.died() {
                break;
            }
            states.push(state);
        }
    }
    assert!(states.len() > 60, "only {} operations were tried", states.len());

    let sizes: BTreeMap<String, usize> =
        history.days.iter().map(|day| (day.cut.ds.to_string(), day.rows.len())).collect();
    let found = read(&states.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    let mut refused = 0;
    for (state, found) in states.iter().zip(found) {
        for (ds, answers) in &found {
            let there = |name: &str| state.join(format!("snapshots/shop/public.t/ds={ds}/{name}")).exists();
            for answer in answers.as_array().unwrap() {
                let is_whole = answer.as_u64() == Some(sizes[ds] as u64);
                assert!(
                    is_whole || answer == 0 || answer.is_string(),
                    "{state:?}, {ds}: {answer}, not {}",
                    sizes[ds]
                );
                assert!(
                    is_whole || !(there("_manifest.json") || there("_SUCCESS")),
                    "{state:?}, {ds}: {answer}"
                );
                refused += usize::from(answer.is_string());
            }
        }
    }
    assert!(refused > 0, "no death fell between parts");

    // And each goes on to the same end, in which nothing else has changed.
    let reference = folder.path().join("reference");
    copy(&root, &reference);
    let gone = expire(&lake_on(open(&reference), scratch.path()), NEWEST_TWO).await.unwrap();
    assert_eq!(gone.iter().map(|day| day.ds).collect::<Vec<_>>(), days[..DAYS - 2]);
    let reference = objects(open(&reference).as_ref()).await;
    for state in &states {
        expire(&lake_on(open(state), scratch.path()), NEWEST_TWO).await.unwrap();
        let differ = difference(&reference, &objects(open(state).as_ref()).await);
        assert!(differ.is_empty(), "{state:?}: {differ:?}");
    }
    for path in difference(&whole, &reference) {
        let goes = days[..DAYS - 2].iter().any(|ds| path.contains(&format!("/ds={ds}/")));
        let is_its = path.starts_with("snapshots/") || path.starts_with("expired/");
        assert!(goes && is_its, "{path}");
    }
}

/// A lease spares the work of two, and may be lost.
#[tokio::test]
async fn two_that_remove_days_at_once_end_where_one_would() {
    let scratch = tempfile::tempdir().unwrap();
    let whole: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let history = history(SHAPE);
    deliver(&lake_on(Arc::clone(&whole), scratch.path()), &history).await.unwrap();
    let whole = objects(whole.as_ref()).await;
    let copied = || async {
        let copied: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for (path, bytes) in &whole {
            copied.put(&path.as_str().into(), bytes.clone().into()).await.unwrap();
        }
        copied
    };
    let reference = copied().await;
    expire(&lake_on(Arc::clone(&reference), scratch.path()), NEWEST_TWO).await.unwrap();
    let reference = objects(reference.as_ref()).await;
    for seed in 0..60 {
        let store = copied().await;
        let [one, two] = [1, 2]
            .map(|n| lake_on(Arc::new(Pausing::new(Arc::clone(&store), seed * 10 + n)), scratch.path()));
        let (one, two) = futures::join!(expire(&one, NEWEST_TWO), expire(&two, NEWEST_TWO));
        for done in [one, two] {
            done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let differ = difference(&reference, &objects(store.as_ref()).await);
        assert!(differ.is_empty(), "seed {seed}: {differ:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_days_went_is_what_would_have_been() {
    let scratch = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let reference: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    deliver(&lake_on(Arc::clone(&reference), scratch.path()), &history).await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = lake_on(Arc::clone(&store), scratch.path());
    for day in &history.days {
        deliver_day(&lake, &history, day).await.unwrap();
        // Keeps fewer than are needed: the newest, and the one that it was made from, stay all the same.
        expire(&lake, Retention { days: 1, month_ends: false }).await.unwrap();
        assert!(
            lake.latest_manifest(&table_name()).await.unwrap().is_some_and(|found| found.ds == day.cut.ds)
        );
    }
    let found = objects(store.as_ref()).await;
    let days = ds_of(&history);
    for path in difference(&objects(reference.as_ref()).await, &found) {
        assert!(days[..DAYS - 2].iter().any(|ds| path.contains(&format!("/ds={ds}/"))), "{path}");
    }
    for ds in &days[DAYS - 2..] {
        assert!(lake.verify(*ds, None).await.unwrap().iter().all(tidemark::lake::VerifiedTable::is_right));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_goes_only_if_a_rule_names_it_and_nothing_needs_it() {
    let scratch = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = lake_on(Arc::clone(&store), scratch.path());
    deliver(&lake, &history).await.unwrap();
    let days = ds_of(&history);
    let before = objects(store.as_ref()).await;
    let named = async |rule: Retention| -> Vec<Ds> {
        lake.expired(&move |_| rule, None).await.unwrap().iter().map(|day| day.ds).collect()
    };
    assert_eq!(named(Retention::default()).await, []);
    assert_eq!(named(NEWEST_TWO).await, days[..DAYS - 2]);
    assert_eq!(named(Retention { days: 1, month_ends: false }).await, days[..DAYS - 2]);
    // A day that is not complete is not touched: its table's manifest is still to be named by the database's.
    store.delete(&lake.layout().day_manifest(days[1])).await.unwrap();
    assert_eq!(named(NEWEST_TWO).await, [days[0], days[2], days[3]]);
    lake.publish_day(&history.days[1].cut, &BTreeMap::new()).await.unwrap().unwrap();
    assert_eq!(
        difference(&before, &objects(store.as_ref()).await),
        Vec::<String>::new(),
        "nothing was changed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_tells_a_day_that_a_rule_removed_from_one_that_is_lost() {
    let scratch = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = lake_on(Arc::clone(&store), scratch.path());
    deliver(&lake, &history).await.unwrap();
    expire(&lake, NEWEST_TWO).await.unwrap();
    let days = ds_of(&history);
    let verified = async |ds: Ds, table| lake.verify(ds, table).await.unwrap().remove(0);
    let gone = verified(days[0], None).await;
    let rows = history.days[0].rows.len();
    assert!(gone.is_right() && gone.expired.unwrap().contains(&format!("it had {rows} rows")));
    let table = table_name();
    assert!(verified(days[0], Some(&table)).await.is_right());
    // An object that comes back, as from a process that slept for days.
    let stray = lake.layout().snapshot_object(&table_name(), days[0], "part-00000.parquet");
    store.put(&stray, "x".into()).await.unwrap();
    let problem = verified(days[0], None).await.problem.unwrap();
    assert!(problem.contains("interrupted"), "{problem}");
    expire(&lake, Retention::default()).await.unwrap();
    assert!(verified(days[0], None).await.is_right());
    // Without the tombstone it is lost.
    store.delete(&lake.layout().tombstone(&table_name(), days[0])).await.unwrap();
    let problem = verified(days[0], None).await.problem.unwrap();
    assert!(problem.contains("the day is lost"), "{problem}");
    store.delete(&lake.layout().manifest(&table_name(), days[5])).await.unwrap();
    let problem = verified(days[5], None).await.problem.unwrap();
    assert!(problem.contains("the day is lost"), "{problem}");
}
