//! A first copy that was killed before it had written a row: it begins anew, in the tables' own topics.
//!
//! The copy stands at a gate: a condition of rows that waits for an advisory lock, which the test has.

use std::collections::BTreeMap;

use serde_json::json;
use tidemark::log::{KafkaLog, KafkaLogOptions, Log, SqliteLog, SqliteLogOptions};
use tokio_postgres::Client;

use super::{assert_equal, wait_copied};
use crate::support::{Connector, Kafka, NAME, PATIENCE, Postgres, Running, wait_until};

const GATE: i64 = 7_001;

/// A connector whose copies of `gated` wait at the gate.
pub(super) fn gated(url: &str) -> Connector {
    let gate = format!("pg_advisory_lock_shared({GATE}) IS NOT NULL");
    Connector::new(url)
        .set("[table]", "match", "public.gated")
        .set("[table]", "backfill_where", gate)
        // The other table, being larger, is not looked at before.
        .set("backfill", "connections", 1)
}

async fn prepare(server: &Postgres) -> (Client, Client) {
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE gated (id int PRIMARY KEY, note text); CREATE TABLE gone (id int PRIMARY KEY, note text);
             INSERT INTO gated SELECT g, 'first' FROM generate_series(1, 300) g;
             INSERT INTO gone SELECT g, 'first' FROM generate_series(1, 3000) g;
             CREATE PUBLICATION tidemark_shop FOR TABLE gated, gone",
        )
        .await
        .unwrap();
    (client, shut(server).await)
}

/// Shuts the gate for as long as the session is there.
pub(super) async fn shut(server: &Postgres) -> Client {
    let keeper = server.connect().await;
    keeper.batch_execute(&format!("SELECT pg_advisory_lock({GATE})")).await.unwrap();
    keeper
}

/// Waits until a copy stands at the gate: what it was to begin with is in the log's state.
pub(super) async fn at_the_gate(client: &Client) {
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'";
    wait_until(PATIENCE, "the copy stands at the gate", async || {
        !client.query(waits, &[]).await.unwrap().is_empty()
    })
    .await;
}

/// Kills it there; no session of it is left.
async fn killed_at_the_gate(connector: &Connector, client: &Client) {
    let mut running = connector.start("run");
    at_the_gate(client).await;
    running.kill();
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    client.query(sql, &[]).await.unwrap();
}

/// How many records each topic holds.
async fn records(log: &dyn Log) -> BTreeMap<String, usize> {
    let mut records = BTreeMap::new();
    for (partition, range) in log.ranges().await.unwrap() {
        let mut next = range.start;
        while next < range.end {
            let fetched = log.read(&partition, next, 1 << 20).await.unwrap();
            *records.entry(partition.topic.to_string()).or_default() += fetched.offsets.len();
            next = fetched.next;
        }
    }
    records
}

/// What is written between the kill and the next start, and what is in the log in the end.
async fn begins_anew(
    server: &Postgres,
    connector: &Connector,
    between: &[&str],
    log: impl Fn() -> Box<dyn Log>,
) {
    let (client, keeper) = prepare(server).await;
    killed_at_the_gate(connector, &client).await;
    let state = records(&*log()).await;
    assert!(!state.contains_key(&format!("{NAME}.public.gated")), "no row was written: {state:?}");
    for statement in between {
        client.batch_execute(statement).await.unwrap();
    }
    drop(keeper);
    let running = connector.start_ready("run").await;
    client
        .batch_execute("UPDATE gated SET note = 'streamed' WHERE id = 3; DELETE FROM gated WHERE id = 4")
        .await
        .unwrap();
    wait_copied(&running, &["gated"]).await;
    assert_equal(connector, &running, &client, &["gated"]).await;
    drop(running);
    let found = records(&*log()).await;
    // 300 rows and the one from in between; an update; a delete and its tombstone.
    assert_eq!(found[&format!("{NAME}.public.gated")], 304, "{found:?}");
    assert!(!found.keys().any(|topic| topic.contains("backfill-")), "{found:?}");
    let state = log().fence().await.unwrap().state;
    assert!(
        !state.keys().any(|key| key.starts_with("backfill/")),
        "no copy is left over: {:?}",
        state.keys()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_without_a_row_begins_anew_in_the_own_topics_whatever_became_of_slot_and_tables() {
    let server = Postgres::start().await;
    let connector = gated(&server.url());
    let path = connector.state().join("log.db");
    let between = [
        "INSERT INTO gated VALUES (301, 'between'); DROP TABLE gone; CREATE TABLE late (id int PRIMARY KEY)",
        "SELECT pg_drop_replication_slot('tidemark_shop')",
        "INSERT INTO late VALUES (1)",
        "SELECT pg_create_logical_replication_slot('tidemark_shop', 'pgoutput')",
    ];
    begins_anew(&server, &connector, &between, || {
        Box::new(SqliteLog::open(SqliteLogOptions::new(&path)).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_without_a_row_begins_anew_on_kafka_too() {
    let server = Postgres::start().await;
    let kafka = Kafka::start();
    let connector = gated(&server.url())
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka", "partitions", 1);
    let between = ["INSERT INTO gated VALUES (301, 'between')"];
    let options = KafkaLogOptions::new(NAME, kafka.address());
    begins_anew(&server, &connector, &between, || Box::new(KafkaLog::open(options.clone()).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_without_a_row_does_not_go_over_to_another_system() {
    let (server, other) = (Postgres::start().await, Postgres::builder().own_initdb().start().await);
    let mut connector = gated(&server.url());
    let (client, _keeper) = prepare(&server).await;
    let (_, _keeper_of_other) = prepare(&other).await;
    killed_at_the_gate(&connector, &client).await;
    connector.change("source", "url", other.url());
    let mut running: Running = connector.start("run");
    assert_eq!(running.ended().await.code(), Some(1), "{}", running.output());
    assert!(running.output().contains("the source is another database system"), "{}", running.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_without_a_row_goes_on_where_none_is_wanted_any_more() {
    let server = Postgres::start().await;
    let mut connector = gated(&server.url());
    let (client, keeper) = prepare(&server).await;
    killed_at_the_gate(&connector, &client).await;
    client.batch_execute("INSERT INTO gated VALUES (301, 'between')").await.unwrap();
    drop(keeper);
    connector.change("source", "backfill", "none");
    let running = connector.start_ready("capture").await;
    wait_copied(&running, &["gated"]).await;
    assert_eq!(connector.records("shop.backfill-public.gated").await.len(), 301, "as later copies do");
    let changes = connector.table_records("gated").await;
    assert_eq!(changes.len(), 1, "the stream began where the first copy had its point: {changes:?}");
}
