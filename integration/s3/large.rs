//! Objects that go up in parts.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use tidemark::lake::{Lake, Put, Store};
use tidemark::runtime::Class;

use super::faults::in_bucket;
use crate::lake::tiny;
use crate::support::{Fault, PATIENCE, S3, S3Proxy, wait_until};

fn lake_at(bucket: &str, port: u16, scratch: &std::path::Path) -> Lake {
    let mut options = S3::options(bucket, port);
    options.request_timeout = Duration::from_secs(30);
    Lake::on(Store::s3(options).unwrap(), "shop", tiny(scratch))
}

fn noise(of: u8, length: usize) -> Bytes {
    (0..length).map(|n| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ of).collect::<Vec<_>>().into()
}

fn large(name: &str) -> Path {
    Path::from(format!("snapshots/shop/public.t/ds=2026-11-20/{name}"))
}

/// A part of the requests that end or abort the upload of an object, and of no other.
fn end_of(name: &str) -> String {
    format!("/{name}?uploadId=")
}

/// How many uploads are begun below the lake, and neither completed nor aborted.
fn open_uploads(proxy: &S3Proxy) -> i64 {
    let carried = proxy.carried();
    let count = |method: &str, part: &str| {
        let of = |one: &&crate::support::Carried| {
            one.method == method && one.target.contains(part) && (200..300).contains(&one.status)
        };
        carried.iter().filter(of).count() as i64
    };
    count("POST", "?uploads") - count("POST", "uploadId=") - count("DELETE", "uploadId=")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_goes_up_in_parts_and_replaces_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path());
    let (mine, yours) = (noise(1, 12 << 20), noise(2, 12 << 20));
    let path = large("part-00000.parquet");
    assert_eq!(lake.store().put_once(&path, mine.clone()).await.unwrap(), Put::Created);
    assert_eq!(lake.store().put_once(&path, mine.clone()).await.unwrap(), Put::Same);
    assert_eq!(lake.store().put_once(&path, yours.clone()).await.unwrap(), Put::Differs);
    let parts =
        proxy.carried().iter().filter(|one| one.target.contains("part-00000.parquet?partNumber")).count();
    assert_eq!(parts, 3, "12 MiB in pieces of 5");
    let found = in_bucket(&bucket).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), [path.as_ref()], "nothing is left of the trial");
    assert!(found[path.as_ref()] == mine);
    assert_eq!(open_uploads(&proxy), 0);
}

/// Two that began before either was done: the end decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_ends_second_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let (mine, yours) = (noise(1, 6 << 20), noise(2, 6 << 20));
    let path = large("part-00001.parquet");
    let first = lake_at(&bucket, proxy.port(), scratch.path());
    // Its own trial is done.
    first.store().put_once(&large("part-00000.parquet"), mine.clone()).await.unwrap();
    proxy.always(&end_of("part-00001.parquet"), Fault::SlowDown);
    let waiting = {
        let (first, path, yours) = (first.clone(), path.clone(), yours.clone());
        tokio::spawn(async move { first.store().put_once(&path, yours).await })
    };
    wait_until(PATIENCE, "the first one comes to its end", async || {
        proxy.faults().get(&Fault::SlowDown).is_some_and(|count| *count > 0)
    })
    .await;
    let second = lake_at(&bucket, store.port(), scratch.path());
    assert_eq!(second.store().put_once(&path, mine.clone()).await.unwrap(), Put::Created);
    proxy.calm();
    match waiting.await.unwrap() {
        Ok(put) => assert_eq!(put, Put::Differs),
        // It was given up before the store answered again.
        Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
    }
    assert!(in_bucket(&bucket).await[path.as_ref()] == mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_whose_end_was_not_heard_of_is_recognised_as_ones_own() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path());
    let mine = noise(1, 6 << 20);
    lake.store().put_once(&large("first"), mine.clone()).await.unwrap();
    for (name, fault) in [("cut", Fault::CutAfter), ("error", Fault::ErrorAfter), ("half", Fault::HalfAnswer)]
    {
        proxy.always(&end_of(name), fault);
        let first = lake.store().put_once(&large(name), mine.clone()).await;
        assert!(first.as_ref().is_ok_and(|put| *put == Put::Same) || first.is_err(), "{name}: {first:?}");
        proxy.calm();
        assert_eq!(lake.store().put_once(&large(name), mine.clone()).await.unwrap(), Put::Same, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_were_broken_off_are_aborted_and_those_of_others_are_not() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path());
    let mine = noise(1, 6 << 20);
    lake.store().put_once(&large("first"), mine.clone()).await.unwrap();
    // A process dies within an upload; another connector, whose name begins with ours, is within one.
    let others = Path::from("snapshots/shop-2/public.t/ds=2026-11-20/part-00000.parquet");
    for path in [large("broken"), others.clone()] {
        proxy.always(&format!("{}?partNumber=2", path.filename().unwrap()), Fault::Stall);
        let stalled = || proxy.faults().get(&Fault::Stall).copied().unwrap_or(0);
        let before = stalled();
        let (lake, mine, to) = (lake.clone(), mine.clone(), path.clone());
        let put = tokio::spawn(async move { lake.store().put_once(&to, mine).await });
        wait_until(PATIENCE, "its second part is stalled", async || stalled() > before).await;
        wait_until(PATIENCE, "its first part is there", async || {
            let part = format!("{}?partNumber=1", path.filename().unwrap());
            proxy.carried().iter().any(|one| one.target.contains(&part) && (200..300).contains(&one.status))
        })
        .await;
        assert!(!put.is_finished(), "{path} went up");
        put.abort();
        assert!(put.await.unwrap_err().is_cancelled());
    }
    proxy.calm();
    assert_eq!(open_uploads(&proxy), 2);
    lake.abort_uploads(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(open_uploads(&proxy), 2, "young ones may be at work");
    lake.abort_uploads(Duration::ZERO).await.unwrap();
    assert_eq!(open_uploads(&proxy), 1);
    let aborted: Vec<_> = proxy.carried().into_iter().filter(|one| one.method == "DELETE").collect();
    assert!(aborted.iter().all(|one| !one.target.contains("shop-2")), "{aborted:?}");
    // Their step is done again.
    assert_eq!(lake.store().put_once(&large("broken"), mine).await.unwrap(), Put::Created);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_copied_within_the_store_and_replaces_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path());
    // One that goes up at once, and one in parts, in a folder whose name needs care.
    for (name, length) in [("small", 70_000), ("large", 12 << 20)] {
        let (mine, yours) = (noise(1, length), noise(2, length));
        let sha256 = tidemark::lake::sha256(&mine);
        let content = (length as u64, sha256.as_str());
        let from = Path::parse(format!("snapshots/shop/public.Odd n%C3%A4me+x=1&%3F/{name}")).unwrap();
        let to = Path::parse(format!("snapshots/shop/public.Odd n%C3%A4me+x=1&%3F/to-{name}")).unwrap();
        lake.store().put_same(&from, mine.clone()).await.unwrap();
        let sent = proxy.carried().len();
        assert_eq!(lake.store().copy_once(&from, &to, content).await.unwrap(), Put::Created);
        for request in &proxy.carried()[sent..] {
            let probe = request.target.contains("_probe-");
            assert!(probe || request.method != "GET", "{request:?}");
        }
        assert_eq!(lake.store().copy_once(&from, &to, content).await.unwrap(), Put::Same);
        let taken = large(name);
        lake.store().put_same(&taken, yours.clone()).await.unwrap();
        assert_eq!(lake.store().copy_once(&from, &taken, content).await.unwrap(), Put::Differs);
        let found = in_bucket(&bucket).await;
        assert!(found[to.as_ref()] == mine && found[taken.as_ref()] == yours, "{name}");
        let missing = large("missing");
        let error = lake.store().copy_once(&missing, &large("more"), content).await.unwrap_err();
        assert_eq!(error.class(), Class::Operator, "{error}");
        assert!(error.to_string().contains(missing.as_ref()), "{error}");
    }
    assert_eq!(open_uploads(&proxy), 0);
    proxy.assert_nothing_was_replaced();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_end_was_not_heard_of_is_recognised_as_ones_own() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let lake = lake_at(&bucket, proxy.port(), scratch.path());
    let mine = noise(1, 1 << 20);
    let sha256 = tidemark::lake::sha256(&mine);
    let content = (mine.len() as u64, sha256.as_str());
    let from = large("first");
    lake.store().put_once(&from, mine.clone()).await.unwrap();
    lake.store().copy_once(&from, &large("second"), content).await.unwrap();
    for (name, fault) in [("cut", Fault::CutAfter), ("error", Fault::ErrorAfter), ("half", Fault::HalfAnswer)]
    {
        proxy.always(&end_of(name), fault);
        let first = lake.store().copy_once(&from, &large(name), content).await;
        assert!(first.as_ref().is_ok_and(|put| *put == Put::Same) || first.is_err(), "{name}: {first:?}");
        proxy.calm();
        assert_eq!(lake.store().copy_once(&from, &large(name), content).await.unwrap(), Put::Same, "{name}");
        assert!(in_bucket(&bucket).await[large(name).as_ref()] == mine, "{name}");
    }
}
