//! The lake itself on a store in trouble, beside the same lake in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use tidemark::lake::{Lake, Store};
use tidemark::runtime::Class;

use crate::lake::history::{Shape, history};
use crate::lake::{deliver, difference, lake as lake_on, objects, tiny};
use crate::support::{Fault, Replay, S3, S3Proxy};

const SHAPE: Shape = Shape {
    seed: 5,
    keyed: true,
    partitions: 2,
    days: 2,
    changes_per_day: 60,
    truncates: false,
    copies: false,
    quiet: false,
    calm: false,
    beyond: false,
    evolve: true,
};

/// Everything in a bucket below the lake's prefix, asked for at the store itself.
pub async fn in_bucket(bucket: &str) -> BTreeMap<String, Bytes> {
    let store = AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{}", S3::shared().port()))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(bucket)
        .with_access_key_id(S3::KEY)
        .with_secret_access_key(S3::SECRET)
        .build()
        .unwrap();
    objects(&PrefixStore::new(store, "team/lake")).await
}

fn seed() -> u64 {
    let seed =
        std::env::var("TIDEMARK_TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed}"));
    seed
}

/// A stalled answer is given up soon; the proxy is on this machine.
const STALLED: Duration = Duration::from_millis(1500);

/// For answers that come in the end: that to the first object of a bucket takes a busy store long.
const CALM: Duration = Duration::from_secs(30);

fn lake_at(bucket: &str, port: u16, scratch: &std::path::Path, request_timeout: Duration) -> Lake {
    let mut options = S3::options(bucket, port);
    options.request_timeout = request_timeout;
    Lake::on(Store::s3(options).unwrap(), "shop", tiny(scratch))
}

/// Objects of days whose manifest is there.
fn published(all: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let mut found = all.clone();
    found.retain(|path, _| {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        path.starts_with("cuts/") || all.contains_key(&format!("{folder}/_manifest.json"))
    });
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_in_a_bucket_are_those_in_memory_whatever_the_store_answers() {
    let seed = seed();
    let scratch = tempfile::tempdir().unwrap();
    let history = history(Shape { seed, ..SHAPE });
    let reference = Arc::new(InMemory::new());
    deliver(&lake_on(Arc::clone(&reference) as _, tiny(scratch.path())), &history).await.unwrap();
    let reference = objects(reference.as_ref()).await;

    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), seed).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path(), STALLED);
    let (mut before, mut tries) = (BTreeMap::new(), 0);
    // At the end it may still be that an answer takes too long, of itself.
    for percent in [40, 20, 10, 5, 5, 5, 0, 0, 0, 0, 0] {
        proxy.disturb(percent);
        tries += 1;
        let delivered = deliver(&lake, &history).await;
        let now = published(&in_bucket(&bucket).await);
        for (path, bytes) in &before {
            assert_eq!(now.get(path), Some(bytes), "{path} was changed");
        }
        before = now;
        match delivered {
            Ok(()) => break,
            Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
        }
    }
    let differ = difference(&reference, &in_bucket(&bucket).await);
    assert!(differ.is_empty(), "{differ:?}");
    proxy.assert_nothing_was_replaced();
    eprintln!("{tries} tries, {:?}", proxy.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_at_once_in_a_bucket_publish_what_one_would() {
    let seed = seed();
    let scratch = tempfile::tempdir().unwrap();
    let history = Arc::new(history(SHAPE));
    let reference = Arc::new(InMemory::new());
    deliver(&lake_on(Arc::clone(&reference) as _, tiny(scratch.path())), &history).await.unwrap();

    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), seed).await;
    proxy.disturb(5);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let lake = lake_at(&bucket, proxy.port(), scratch.path(), STALLED);
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
    let differ = difference(&objects(reference.as_ref()).await, &in_bucket(&bucket).await);
    assert!(differ.is_empty(), "{differ:?}");
    proxy.assert_nothing_was_replaced();
}

/// A success that looks like a failure is refused as existing when it is tried again: by what it made itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_answer_was_lost_is_recognised_as_ones_own() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path(), CALM);
    let hasty = lake_at(&bucket, proxy.port(), scratch.path(), STALLED);
    for (name, fault) in [("cut", Fault::CutAfter), ("error", Fault::ErrorAfter), ("stall", Fault::Stall)] {
        let path = object_store::path::Path::from(format!("cuts/shop/{name}"));
        proxy.always(&format!("PUT /{bucket}/team/lake/cuts/shop/{name}"), fault);
        let met = if fault == Fault::Stall { &hasty } else { &lake };
        let first = met.store().put_same(&path, Bytes::from("mine")).await;
        // Nobody says whether a request that timed out was carried out, so it is not sent again at once.
        assert!(first.is_ok() || first.unwrap_err().class() == Class::Retry, "{name}");
        proxy.calm();
        lake.store().put_same(&path, Bytes::from("mine")).await.unwrap();
        let error = lake.store().put_same(&path, Bytes::from("yours")).await.unwrap_err();
        assert_eq!(error.class(), Class::Operator, "{name}: {error}");
        assert_eq!(lake.store().get(&path).await.unwrap().unwrap(), "mine");
    }
    let statuses: Vec<u16> =
        proxy.carried().into_iter().filter(|one| one.method == "PUT").map(|one| one.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 412).count() >= 6, "{statuses:?}");
}

/// Not every store knows how, and each time it would be asked with all retries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_removes_one_object_at_a_time_is_asked_for_more_once() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path(), CALM);
    proxy.always("POST *delete", Fault::NotImplemented);
    let mut asked = Vec::new();
    for round in 0..3 {
        let paths: Vec<_> =
            (0..4).map(|n| object_store::path::Path::from(format!("cuts/shop/{round}-{n}"))).collect();
        for path in &paths {
            lake.store().put_same(path, Bytes::from("soon gone")).await.unwrap();
        }
        lake.store().delete_all(&paths).await.unwrap();
        assert!(in_bucket(&bucket).await.is_empty(), "round {round}");
        asked.push(proxy.faults().get(&Fault::NotImplemented).copied());
    }
    assert!(asked[0].is_some() && asked.iter().all(|times| *times == asked[0]), "{asked:?}");
}
