//! Virtual-hosted style: the bucket stands in the host's name.
//!
//! Few resolvers know `bucket.localhost`, so that requests go by a proxy, as they do where `HTTP_PROXY` is set: the one of the
//! tests takes every host for the store's.

use std::collections::BTreeMap;

use super::binary::{TABLES, assert_same_by, end_day};
use crate::support::days::{days, use_rule};
use crate::support::{Carried, Connector, Postgres, S3, S3Proxy};

/// A connector whose bucket stands in the host's name.
fn hosted(server: &Postgres, bucket: &str, proxy: &S3Proxy) -> Connector {
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, bucket, proxy.port());
    connector.change("lake.s3", "endpoint_url", endpoint());
    connector.change("lake.s3", "force_path_style", false);
    connector.environment(&by(proxy));
    connector
}

fn endpoint() -> String {
    format!("http://localhost:{}/", S3::shared().port())
}

/// The environment of a process that reaches the store by the proxy.
fn by(proxy: &S3Proxy) -> [(&'static str, String); 2] {
    [("http_proxy", format!("http://127.0.0.1:{}", proxy.port())), ("no_proxy", String::new())]
}

/// What was asked of the bucket, all of it in its host's name: how often, by kind.
fn kinds(bucket: &str, carried: &[Carried]) -> BTreeMap<String, u32> {
    let host = format!("{bucket}.localhost:{}", S3::shared().port());
    let mut kinds = BTreeMap::new();
    for request in carried {
        let asked = request.target.strip_prefix(&format!("http://{host}/"));
        let asked = asked.unwrap_or_else(|| panic!("not of {host}: {}", request.target));
        assert!(!asked.starts_with(bucket), "the bucket is in the path as well: {}", request.target);
        assert!(request.head.contains(&format!("\r\nhost: {host}\r\n")), "{}", request.head);
        let copied = request.head.contains("\r\nx-amz-copy-source: ");
        let query = asked.split_once('?').map_or("", |(_, query)| query);
        let of = |part: &str| query.split('&').any(|one| one.split('=').next() == Some(part));
        let kind = ["uploads", "partNumber", "uploadId", "list-type"].into_iter().find(|part| of(part));
        let kind = if copied { "copied" } else { kind.unwrap_or_default() };
        *kinds.entry(format!("{} {kind}", request.method).trim().to_owned()).or_default() += 1;
    }
    kinds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_published_and_read_with_the_bucket_in_the_hosts_name() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let mut connector = hosted(&server, &bucket, &proxy);
    connector.change("lake", "part_bytes_max", 16_384);
    let (days, of_readers) = (days(&client).await, S3Proxy::start(store.port(), 1).await);
    for (round, ds) in days.iter().take(2).enumerate() {
        use_rule(&mut connector, round);
        let mut running = connector.start_ready("run").await;
        client.batch_execute("UPDATE orders SET total = total + 1 WHERE id <= 10").await.unwrap();
        end_day(&running, &bucket, ds).await;
        assert_same_by(Some(&by(&of_readers)[0].1), &bucket, &client, ds).await;
        assert!(running.terminate().await.success(), "{}", running.output());
        let output = connector.command(&["verify", "--ds", ds]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("3 ok"), "{said}");
    }
    proxy.assert_nothing_was_replaced();
    let read = of_readers.carried();
    assert!(read.iter().any(|one| one.target.contains(".parquet") && one.status < 300), "{read:?}");
    let kinds = kinds(&bucket, &proxy.carried());
    for kind in
        ["PUT", "GET", "HEAD", "GET list-type", "GET uploads", "POST uploads", "PUT copied", "POST uploadId"]
    {
        assert!(kinds.contains_key(kind), "{kind} is missing in {kinds:?}");
    }
}

/// Keys and endpoint may come from the environment, in which the endpoint has no bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_stands_in_the_hosts_name_of_an_endpoint_of_the_environment_as_well() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    for (name, value) in [("AWS_ENDPOINT_URL_S3", endpoint()), ("AWS_ENDPOINT_URL", endpoint())] {
        let proxy = S3Proxy::start(store.port(), 1).await;
        let mut connector = hosted(&server, &bucket, &proxy);
        for key in ["access_key_id", "secret_access_key", "endpoint_url"] {
            connector.remove("lake.s3", key);
        }
        let keys = [("AWS_ACCESS_KEY_ID", S3::KEY), ("AWS_SECRET_ACCESS_KEY", S3::SECRET)];
        let keys = keys.map(|(name, value)| (name, value.to_owned()));
        connector.environment(&[&by(&proxy)[..], &keys, &[(name, value)]].concat());
        let output = connector.command(&["check"]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("virtual-hosted style"), "{name}: {told}");
        assert!(
            told.lines().any(|line| line.starts_with("ok") && line.contains("lake delete")),
            "{name}: {told}"
        );
        assert!(kinds(&bucket, &proxy.carried()).contains_key("PUT"));
    }
}

/// What the file says counts, whatever the environment has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_the_file_stands_above_those_of_the_environment() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let mut connector = hosted(&server, &bucket, &proxy);
    for key in ["access_key_id", "secret_access_key"] {
        connector.remove("lake.s3", key);
    }
    let elsewhere = format!("http://127.0.0.1:{}", crate::support::free_port());
    let environment = [
        ("AWS_ACCESS_KEY_ID", S3::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", S3::SECRET.to_owned()),
        ("AWS_ENDPOINT_URL_S3", elsewhere.clone()),
        ("AWS_ENDPOINT_URL", elsewhere),
    ];
    connector.environment(&[&by(&proxy)[..], &environment].concat());
    let output = connector.command(&["check"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.lines().any(|line| line.starts_with("ok") && line.contains("lake delete")), "{told}");
    assert!(kinds(&bucket, &proxy.carried()).contains_key("PUT"));
}
