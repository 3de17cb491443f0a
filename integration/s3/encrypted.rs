//! Encryption by the store: what is asked of it, and what it says of every object and has on its disks.
//!
//! `SeaweedFS` encrypts by a key of its own (`AES256`) and by one of a KMS (`aws:kms`). It does not copy a part of what is
//! encrypted by a KMS (501), so that such parts go through the connector: encrypted as well, and the same to a reader.

use bytes::Bytes;
use object_store::path::Path;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tidemark::lake::{Encryption, Lake, Put, Store};

use super::binary::{TABLES, assert_same, assert_unchanged, command, end_day, published};
use super::faults::in_bucket;
use crate::lake::tiny;
use crate::support::days::{days, use_rule};
use crate::support::{Carried, Connector, Postgres, S3, S3Proxy};

const HEADER: &str = "x-amz-server-side-encryption";

fn kms() -> Encryption {
    Encryption::Kms { key_id: Some(S3::KMS_KEY.to_owned()), bucket_key: true }
}

fn lake_at(bucket: &str, port: u16, scratch: &std::path::Path, encryption: Option<Encryption>) -> Lake {
    let mut options = S3::options(bucket, port);
    options.request_timeout = std::time::Duration::from_secs(30);
    options.server_side_encryption = encryption;
    Lake::on(Store::s3(options).unwrap(), "shop", tiny(scratch))
}

/// Bytes that cannot be compressed, so that they are on a disk as they are.
fn noise(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

fn path(name: &str) -> Path {
    Path::from(format!("snapshots/shop/public.t/ds=2026-11-20/{name}"))
}

/// What the store says of an object of the lake: how it is encrypted.
async fn encryption_of(bucket: &str, path: &str) -> Option<String> {
    S3::head(bucket, &Path::parse(format!("team/lake/{path}")).unwrap()).await.remove(HEADER)
}

/// The headers of a request that are about encryption, by name.
fn asked(request: &Carried) -> Vec<(String, String)> {
    let headers = request.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let mut asked: Vec<_> = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .filter(|(name, _)| name.starts_with(HEADER))
        .collect();
    asked.sort();
    asked
}

/// What creates an object asks for the encryption, and nothing else does.
///
/// AWS wants it so: `UploadPart` ("you only need to specify the server-side encryption parameters in the initial Initiate
/// Multipart request"), `GetObject` and `HeadObject` ("Encryption request headers … should not be sent", else 400 Bad
/// Request); `UploadPartCopy`, `CompleteMultipartUpload` and `AbortMultipartUpload` have no such headers at all but for keys
/// of the customer (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html> and its neighbours).
fn assert_asked(carried: &[Carried], wanted: &[(&str, &str)]) {
    let wanted: Vec<_> =
        wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    for request in carried {
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let creates = match request.method.as_str() {
            "PUT" => query.is_empty(),
            "POST" => query.starts_with("uploads"),
            _ => false,
        };
        let expected = if creates { wanted.as_slice() } else { &[] };
        assert_eq!(asked(request), expected, "{} {}", request.method, request.target);
    }
}

/// How many requests of a kind were carried out.
fn count(carried: &[Carried], method: &str, part: &str, status: u16) -> usize {
    let of = |one: &&Carried| one.method == method && one.target.contains(part) && one.status == status;
    carried.iter().filter(of).count()
}

/// Requests that have the store take a part of an upload from another object, by its answer.
fn copies(carried: &[Carried], status: u16) -> usize {
    let of = |one: &&Carried| {
        one.status == status && one.head.to_ascii_lowercase().contains("\r\nx-amz-copy-source: ")
    };
    carried.iter().filter(of).count()
}

/// Puts an object at once, one in parts, and has both copied; all of them are encrypted, and so is the copy of one that was
/// not.
async fn assert_objects_are_encrypted(encryption: Encryption, wanted: &[(&str, &str)]) -> Vec<Carried> {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let plain = lake_at(&bucket, store.port(), scratch.path(), None);
    let lake = lake_at(&bucket, proxy.port(), scratch.path(), Some(encryption));
    let before = noise(0, 70_000);
    plain.store().put_same(&path("before"), before.clone()).await.unwrap();
    assert_eq!(encryption_of(&bucket, path("before").as_ref()).await, None);
    assert!(store.holds_at_rest(&bucket, &before[100..200]), "what is not encrypted is found");
    for (name, length) in [("small", 70_000), ("large", 12 << 20)] {
        let content = noise(length as u64, length);
        let sha256 = tidemark::lake::sha256(&content);
        assert_eq!(lake.store().put_once(&path(name), content.clone()).await.unwrap(), Put::Created);
        assert_eq!(lake.store().put_once(&path(name), content.clone()).await.unwrap(), Put::Same);
        let (copy, of) = (path(&format!("copy-of-{name}")), (length as u64, sha256.as_str()));
        assert_eq!(lake.store().copy_once(&path(name), &copy, of).await.unwrap(), Put::Created);
        assert_eq!(lake.store().copy_once(&path(name), &copy, of).await.unwrap(), Put::Same);
        let found = in_bucket(&bucket).await;
        for path in [path(name), copy] {
            assert!(found[path.as_ref()] == content, "{path}");
            assert_eq!(encryption_of(&bucket, path.as_ref()).await.as_deref(), Some(wanted[0].1), "{path}");
        }
        for at in [100, length / 2, length - 200] {
            assert!(!store.holds_at_rest(&bucket, &content[at..at + 100]), "{name} is on disk as it is");
        }
    }
    let sha256 = tidemark::lake::sha256(&before);
    let (copy, of) = (path("copy-of-before"), (before.len() as u64, sha256.as_str()));
    lake.store().copy_same(&path("before"), &copy, of).await.unwrap();
    assert_eq!(encryption_of(&bucket, copy.as_ref()).await.as_deref(), Some(wanted[0].1));
    assert!(in_bucket(&bucket).await[copy.as_ref()] == before);
    let carried = proxy.carried();
    assert_asked(&carried, wanted);
    assert!(count(&carried, "PUT", "partNumber=3", 200) > 0, "12 MiB go up in pieces of 5");
    proxy.assert_nothing_was_replaced();
    carried
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_encrypted_by_the_stores_own_key_and_so_are_copies() {
    let carried = assert_objects_are_encrypted(Encryption::Aes256, &[(HEADER, "AES256")]).await;
    assert_eq!(copies(&carried, 200), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_encrypted_by_a_key_of_kms_and_so_is_what_the_store_cannot_copy() {
    let wanted = [
        (HEADER, "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", S3::KMS_KEY),
        ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
    ];
    let carried = assert_objects_are_encrypted(kms(), &wanted).await;
    assert_eq!((copies(&carried, 200), copies(&carried, 501)), (0, 1), "it is asked once");
}

/// Days whose tables share most of their files with the day before, read by pyarrow, are those of Postgres, and every
/// object of the bucket is encrypted.
async fn assert_days_are_encrypted(settings: &[(&str, &str)], wanted: &[(&str, &str)]) -> Vec<Carried> {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, &bucket, proxy.port());
    for (key, value) in settings {
        connector.change("lake.s3", key, *value);
    }
    connector.change("lake", "part_bytes_max", 16_384);
    let days = days(&client).await;
    let mut before = serde_json::json!({});
    for (round, ds) in days.iter().take(2).enumerate() {
        use_rule(&mut connector, round);
        let mut running = connector.start_ready("run").await;
        client.batch_execute("UPDATE orders SET total = total + 1 WHERE id <= 10").await.unwrap();
        end_day(&running, &bucket, ds).await;
        assert_same(&bucket, &client, ds).await;
        let now = published(&bucket);
        assert_unchanged(&before, &now);
        before = now;
        let said = command(&running, &["verify", "--ds", ds]);
        assert!(said.contains("3 ok"), "{said}");
        assert!(running.terminate().await.success(), "{}", running.output());
    }
    let found = in_bucket(&bucket).await;
    assert!(found.len() > 20, "{:?}", found.keys());
    for path in found.keys() {
        assert_eq!(encryption_of(&bucket, path).await.as_deref(), Some(wanted[0].1), "{path}");
    }
    assert_asked(&proxy.carried(), wanted);
    proxy.assert_nothing_was_replaced();
    proxy.carried()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_encrypted_by_the_stores_own_key_with_what_they_share_with_the_day_before() {
    let settings = [("server_side_encryption", "AES256")];
    let carried = assert_days_are_encrypted(&settings, &[(HEADER, "AES256")]).await;
    assert!(copies(&carried, 200) > 5, "the second day is mostly the first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_encrypted_by_a_key_of_kms_with_what_they_share_with_the_day_before() {
    let settings = [("server_side_encryption", "aws:kms"), ("sse_kms_key_id", S3::KMS_KEY)];
    let wanted = [(HEADER, "aws:kms"), ("x-amz-server-side-encryption-aws-kms-key-id", S3::KMS_KEY)];
    let carried = assert_days_are_encrypted(&settings, &wanted).await;
    assert!(copies(&carried, 501) > 0, "the second day is mostly the first");
}

/// The store answers 500 to a key that it does not have; AWS says `KMS.NotFoundException`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_there_creates_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let missing = Encryption::Kms { key_id: Some("alias/missing".to_owned()), bucket_key: false };
    let lake = lake_at(&bucket, store.port(), scratch.path(), Some(missing));
    lake.store().put_once(&path("small"), noise(1, 100)).await.unwrap_err();
    assert!(in_bucket(&bucket).await.is_empty());
}
