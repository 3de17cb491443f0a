//! The whole path through the real binary: Postgres, and days in a bucket, read by pyarrow.

use std::path::Path;
use std::process::Command;

use object_store::ObjectStoreExt as _;
use serde_json::{Value, json};

use crate::support::days::{days, use_rule};
use crate::support::lake::{Rows, postgres, python};
use crate::support::{Connector, Fault, NAME, PATIENCE, Postgres, Running, S3, S3Proxy, wait_until};

pub const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(12,2), at timestamptz, note text);
    CREATE TABLE \"Odd näme+x=1 %2F?\" (id bigint PRIMARY KEY, a text);
    CREATE TABLE audit (line text);
    ALTER TABLE audit REPLICA IDENTITY FULL;
    INSERT INTO orders SELECT i, md5(i::text), i * 1.25, '2026-11-20 12:00:00Z'::timestamptz + i * interval '1 s',
        CASE WHEN i % 5 > 0 THEN repeat('n', i % 3000) END FROM generate_series(1, 3000) i;
    INSERT INTO \"Odd näme+x=1 %2F?\" VALUES (1, 'one'), (2, NULL);
    INSERT INTO audit SELECT 'line ' || i % 50 FROM generate_series(1, 200) i";

const TABLE_NAMES: [&str; 3] = ["orders", "Odd näme+x=1 %2F?", "audit"];

/// What pyarrow's own S3 client finds: a script's answer. By a proxy, if there is one, it names buckets in the host's name.
fn pyarrow(by: Option<&str>, bucket: &str, arguments: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/s3/read.py");
    let host = if by.is_some() { "localhost" } else { "127.0.0.1" };
    let endpoint = format!("{host}:{}", S3::shared().port());
    let mut command = Command::new(python());
    command
        .arg(script)
        .args([&endpoint, S3::KEY, S3::SECRET, &format!("{bucket}/team/lake")])
        .args(arguments)
        .envs(by.map(|proxy| ("S3_BUCKET_HOSTS_AT", proxy)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Hashes of all objects of published days.
pub fn published(bucket: &str) -> Value {
    pyarrow(None, bucket, &["published", NAME])
}

async fn is_published(bucket: &str, ds: &str) -> bool {
    let day = object_store::path::Path::from(format!("team/lake/cuts/{NAME}/ds={ds}.json"));
    S3::client(bucket).head(&day).await.is_ok()
}

/// A day's tables, read by pyarrow, are what Postgres has now.
pub async fn assert_same(bucket: &str, client: &tokio_postgres::Client, ds: &str) {
    assert_same_by(None, bucket, client, ds).await;
}

/// The same, where pyarrow reads as [`pyarrow`] says.
pub async fn assert_same_by(by: Option<&str>, bucket: &str, client: &tokio_postgres::Client, ds: &str) {
    for table in TABLE_NAMES {
        let columns = match table {
            "orders" => {
                "id::text, customer, total::text, (extract(epoch FROM at) * 1000000)::bigint::text, note"
            }
            "audit" => "line",
            _ => "id::text, a",
        };
        let mut expected = postgres(client, &format!("SELECT {columns} FROM \"{table}\"")).await;
        let told = pyarrow(by, bucket, &["rows", NAME, &format!("public.{table}"), ds]);
        let mut found: Rows = serde_json::from_value(told).unwrap();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{table} on ds={ds}");
    }
}

/// Nothing that was published before is different or gone.
pub fn assert_unchanged(before: &Value, now: &Value) {
    for (path, hash) in before.as_object().unwrap() {
        assert_eq!(&now[path], hash, "{path}");
    }
}

async fn traffic(client: &tokio_postgres::Client, round: i32) {
    let sql = format!(
        "UPDATE orders SET total = total + {round} WHERE id % 7 = {round};
         UPDATE orders SET id = id + 100000 WHERE id % 11 = {round} AND id < 100000;
         DELETE FROM orders WHERE id % 13 = {round};
         INSERT INTO \"Odd näme+x=1 %2F?\" VALUES ({round} + 10, 'round {round}');
         DELETE FROM audit WHERE ctid IN (SELECT min(ctid) FROM audit GROUP BY line);
         INSERT INTO audit VALUES ('round {round}'), ('round {round}')"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Ends a day, and waits until it is published.
pub async fn end_day(running: &Running, bucket: &str, ds: &str) {
    running.cut(ds);
    wait_until(PATIENCE * 2, &format!("ds={ds} is published"), async || is_published(bucket, ds).await).await;
}

/// Runs a command, which has to succeed: what it says.
pub fn command(running: &Running, arguments: &[&str]) -> String {
    let output = running.command(arguments);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_in_a_bucket_are_postgres_at_their_cuts_also_when_killed_and_when_the_store_is_in_trouble() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 7).await;
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, &bucket, proxy.port());
    connector.change("lake.s3", "request_timeout_ms", 1500);
    connector.change("lake", "stage_bytes_max", 65_536);
    let days = days(&client).await;

    proxy.disturb(8);
    let mut before = json!({});
    for (round, ds) in days.iter().take(2).enumerate() {
        use_rule(&mut connector, round);
        let mut running = connector.start_ready("run").await;
        traffic(&client, round as i32 + 1).await;
        running.kill();
        running = connector.start_ready("run").await;
        end_day(&running, &bucket, ds).await;
        assert_same(&bucket, &client, ds).await;
        let now = published(&bucket);
        assert_unchanged(&before, &now);
        before = now;
        proxy.calm();
        let said = command(&running, &["verify", "--ds", ds]);
        assert!(said.contains("3 ok"), "{said}");
        command(&running, &["wait", "--ds", ds, "--timeout", "3m"]);
        assert!(command(&running, &["status"]).contains(ds));
        assert!(running.terminate().await.success(), "{}", running.output());
        proxy.disturb(8);
    }
    proxy.assert_nothing_was_replaced();
    let met: u32 =
        proxy.faults().iter().filter(|(fault, _)| **fault != Fault::None).map(|(_, count)| count).sum();
    assert!(met > 5, "{:?}", proxy.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_goes_on_while_the_store_is_away_and_the_day_comes_when_it_is_back() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 7).await;
    proxy.always("", Fault::CutBefore);
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, &bucket, proxy.port());
    connector.change("lake.s3", "max_retries", 1);
    let days = days(&client).await;
    use_rule(&mut connector, 0);
    let mut running = connector.start("run");
    let orders = 3000;
    connector.wait_for_records("orders", orders).await;
    wait_until(PATIENCE, "/health tells of the lake", async || {
        running.health().1["components"]["lake"]["state"] == "waiting"
    })
    .await;
    assert!(running.is_running());
    proxy.calm();
    running.ready().await;
    end_day(&running, &bucket, &days[0]).await;
    // Away again, in the middle.
    proxy.always("", Fault::SlowDown);
    traffic(&client, 1).await;
    connector.wait_for_records("orders", orders + 1).await;
    running.kill();
    use_rule(&mut connector, 1);
    // Now it takes requests, and never answers.
    proxy.calm();
    proxy.always("", Fault::Stall);
    connector.change("lake.s3", "request_timeout_ms", 600_000);
    let mut running = connector.start("run");
    traffic(&client, 2).await;
    wait_until(PATIENCE, "capture has begun without the lake", async || {
        let audit = connector.table_records("audit").await;
        audit.iter().any(|record| record.value["after"]["line"] == "round 2")
    })
    .await;
    proxy.calm();
    running.ready().await;
    end_day(&running, &bucket, &days[1]).await;
    assert_same(&bucket, &client, &days[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_what_is_written_early_puts_off_what_is_made_before_the_day_ends_and_nothing_else()
 {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 7).await;
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, &bucket, proxy.port());
    connector.change("lake.s3", "max_retries", 0);
    connector.change("lake", "premerge_interval_ms", 200);
    connector.change("lake", "premerge_table_bytes_min", 0);
    let days = days(&client).await;
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    end_day(&running, &bucket, &days[0]).await;
    assert!(running.terminate().await.success(), "{}", running.output());

    use_rule(&mut connector, 1);
    proxy.always("PUT */_pieces/", Fault::SlowDown);
    let mut running = connector.start_ready("run").await;
    traffic(&client, 1).await;
    let put_off = "the next day is not made any further for now";
    wait_until(PATIENCE, "a round is put off, and another", async || {
        running.output().matches(put_off).count() > 1
    })
    .await;
    let delivers = &running.health().1["components"]["deliver"]["state"];
    assert_eq!(delivers, "ok", "what could be made early is no part of it");
    proxy.calm();
    wait_until(PATIENCE, "the day is made early after all", async || {
        running.get("/metrics").is_some_and(|(_, metrics)| {
            let made = "tidemark_table_premerged_bytes{table=\"public.orders\"} ";
            metrics.lines().filter_map(|line| line.strip_prefix(made)).any(|bytes| bytes != "0")
        })
    })
    .await;
    end_day(&running, &bucket, &days[1]).await;
    assert_same(&bucket, &client, &days[1]).await;
    proxy.assert_nothing_was_replaced();
    assert!(running.terminate().await.success(), "{}", running.output());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_objects_the_store_does_not_give_out_waits_and_the_others_go_on() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 7).await;
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, &bucket, proxy.port());
    // Without one, what a busy store fails at by itself would interrupt delivery, too.
    connector.change("lake.s3", "max_retries", 1);
    let days = days(&client).await;
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    end_day(&running, &bucket, &days[0]).await;
    assert!(running.terminate().await.success(), "{}", running.output());

    use_rule(&mut connector, 1);
    proxy.always("GET *snapshots*public.orders/ds", Fault::SlowDown);
    let mut running = connector.start_ready("run").await;
    traffic(&client, 1).await;
    running.cut(&days[1]);
    let told = |what: &str| running.output().matches(what).count();
    wait_until(PATIENCE, "the table was tried again and again", async || {
        told("the table cannot be delivered: it is tried again") > 3
    })
    .await;
    let audit = object_store::path::Path::from(format!(
        "team/lake/snapshots/{NAME}/public.audit/ds={}/_manifest.json",
        days[1]
    ));
    wait_until(PATIENCE, "the others are made", async || S3::client(&bucket).head(&audit).await.is_ok())
        .await;
    assert_eq!(told("delivery was interrupted"), 1, "after that it is known for an error of the table");
    let health = running.health().1;
    assert_eq!(health["tables"]["public.orders"]["state"], "failed", "{health}");
    assert_eq!(health["components"]["deliver"]["state"], "ok", "{health}");
    proxy.calm();
    wait_until(PATIENCE, "the day is published", async || is_published(&bucket, &days[1]).await).await;
    assert_same(&bucket, &client, &days[1]).await;
    proxy.assert_nothing_was_replaced();
    assert!(running.terminate().await.success(), "{}", running.output());
}
