//! A registry that is away, refuses a table, or refuses us.

use std::time::Duration;

use serde_json::json;

use super::{connector, fold, raw, records, shared};
use crate::support::lake::value;
use crate::support::registry::Registry;
use crate::support::{Network, PATIENCE, Postgres, Proxy, wait_until};

/// An envelope that no table of ours has: `op` is a number.
const OTHER: &str = r#"{"type":"record","name":"Envelope","namespace":"shop.public.broken",
    "fields":[{"name":"op","type":"int"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for_and_nothing_is_lost() {
    let registry = shared().await;
    let network = Proxy::start(registry.port()).await;
    let server = Postgres::builder().set("wal_sender_timeout", "20s").start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE patient (id int PRIMARY KEY); INSERT INTO patient VALUES (1)")
        .await
        .unwrap();
    let connector = connector(&server.url(), registry)
        .set("envelope.registry", "url", Registry::url_at(network.port()))
        .set("envelope.registry", "timeout_ms", 500);
    let running = connector.start_ready("capture").await;
    client.batch_execute("INSERT INTO patient VALUES (2)").await.unwrap();
    connector.wait_for_records("patient", 2).await;

    let interrupted = || running.output().matches("capture was interrupted").count();
    let before = interrupted();
    network.set(Network::Cut);
    client.batch_execute("INSERT INTO patient VALUES (3)").await.unwrap();
    connector.wait_for_records("patient", 3).await;
    client
        .batch_execute(
            "ALTER TABLE patient ADD COLUMN a int; INSERT INTO patient SELECT g, g FROM generate_series(4, 500) g",
        )
        .await
        .unwrap();
    let state = || running.health().1["components"]["registry"]["state"].clone();
    wait_until(PATIENCE, "health says so", async || state() == "waiting").await;
    // Together longer than the server waits for an answer to its keepalives.
    tokio::time::sleep(Duration::from_secs(12)).await;
    network.set(Network::Stalled);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(state(), "waiting");
    let active =
        value(&client, "SELECT active FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'").await;
    assert_eq!(active, "t", "the stream is still there");
    assert_eq!(interrupted(), before, "{}", running.output());
    network.set(Network::Up);
    connector.wait_for_records("patient", 500).await;
    wait_until(PATIENCE, "all is well", async || state() == "ok").await;
    let rows = fold(&records(&connector, registry, "patient").await);
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), (1..=500).collect::<Vec<i64>>());
    assert_eq!(rows[&500], json!({"id": 500, "a": 500}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_refused_isolates_its_table_until_the_registry_takes_it() {
    let registry = shared().await;
    let (status, answer) =
        registry.post("/subjects/shop.public.broken-value/versions", &json!({ "schema": OTHER }));
    assert_eq!(status, 200, "{answer}");
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE broken (id int PRIMARY KEY); INSERT INTO broken VALUES (1), (2);
             CREATE TABLE fine (id int PRIMARY KEY); INSERT INTO fine VALUES (1), (2)",
        )
        .await
        .unwrap();
    let connector = connector(&server.url(), registry);
    let mut running = connector.start_ready("capture").await;
    client.batch_execute("INSERT INTO broken VALUES (3); INSERT INTO fine VALUES (3)").await.unwrap();
    connector.wait_for_records("fine", 3).await;
    assert!(raw(&connector, "shop.public.broken").await.is_empty());
    let letters = connector.records("shop.dead-letters").await;
    assert_eq!(letters.len(), 3);
    for letter in &letters {
        let reason = letter.value["reason"].as_str().unwrap();
        assert!(reason.contains("subject shop.public.broken-value, since it is not compatible"), "{reason}");
    }
    assert_eq!(letters[2].value["new"], json!({"id": "3"}));
    let (_, health) = running.health();
    let table = &health["tables"]["public.broken"];
    assert_eq!((&table["state"], &table["dead_letters"]), (&json!("failed"), &json!(3)), "{health:#}");
    assert!(table["mend"].as_str().unwrap().contains("/config/shop.public.broken-value"), "{table}");
    assert_eq!(health["tables"]["public.fine"]["state"], "streaming");
    assert_eq!(
        running.output().matches("the table is isolated").count(),
        2,
        "once for the copy, once for the stream"
    );

    running.terminate().await;
    registry.delete("/subjects/shop.public.broken-value");
    registry.delete("/subjects/shop.public.broken-value?permanent=true");
    let running = connector.start_ready("capture").await;
    client.batch_execute("INSERT INTO broken VALUES (4)").await.unwrap();
    connector.wait_for_records("broken", 1).await;
    let rows = fold(&records(&connector, registry, "broken").await);
    assert_eq!(rows[&4], json!({"id": 4}));
    assert_eq!(running.health().1["tables"]["public.broken"]["state"], "streaming");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_the_registry() {
    let registry = shared().await;
    let server = Postgres::start().await;
    server.connect().await.batch_execute("CREATE TABLE any_table (id int PRIMARY KEY)").await.unwrap();
    let mut connector = connector(&server.url(), registry);
    let running = connector.start_ready("capture").await;
    let said = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let checked = said(running.command(&["check"]));
    assert!(checked.contains("registry") && checked.contains("answers; it has"), "{checked}");
    connector.change("envelope.registry", "url", "http://127.0.0.1:9");
    let running = connector.start("deliver");
    let checked = running.command(&["check"]);
    assert_eq!(checked.status.code(), Some(1));
    let checked = said(checked);
    assert!(checked.contains("the schema registry at http://127.0.0.1:9 is out of reach"), "{checked}");
}
