//! The whole path on Kafka, through the real binary: Postgres -> topics -> published days, killed on its way, and with
//! the broker away. The day is compared with Postgres, and with the one that a connector on the embedded log publishes.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::exactness::content;
use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, published};
use crate::support::{Connector, Kafka, PATIENCE, Postgres, Running, wait_until};
use serde_json::json;

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, customer text NOT NULL, total numeric(12,2), note text);
    CREATE TABLE audit (at timestamptz NOT NULL, line text);
    ALTER TABLE audit REPLICA IDENTITY FULL;
    INSERT INTO orders SELECT i, md5(i::text), i * 1.25, repeat('n', i % 3000) FROM generate_series(1, 4000) i;
    INSERT INTO audit SELECT '2026-11-20 12:00:00Z'::timestamptz + i * interval '1 s', 'line ' || i FROM generate_series(1, 500) i";

const QUERIES: [&str; 3] = [
    "SELECT count(*), sum(total), sum(length(note)), min(id), max(id) FROM",
    "SELECT id, customer, total, md5(note) FROM",
    "SELECT epoch(\"at\")::bigint, line FROM",
];

fn on_kafka(url: &str, kafka: &Kafka) -> Connector {
    Connector::new(url)
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka", "partitions", 3)
        .set("log.kafka.properties", "\"message.max.bytes\"", 4_000_000)
        .set("log.kafka.topic_config", "\"max.message.bytes\"", 4_000_000)
}

/// Changes of all kinds: keys move between partitions, rows come and go, large values stay as they are.
async fn traffic(client: &tokio_postgres::Client, round: i32) {
    let sql = format!(
        "BEGIN;
         UPDATE orders SET total = total + {round} WHERE id % 7 = {round};
         UPDATE orders SET id = id + 100000 WHERE id % 11 = {round} AND id < 100000;
         DELETE FROM orders WHERE id % 13 = {round};
         INSERT INTO orders SELECT {round} * 10000 + i, 'new', i, NULL FROM generate_series(5000, 5300) i;
         INSERT INTO audit SELECT '2026-11-21 00:00:00Z'::timestamptz + i * interval '1 s', 'round {round}' FROM generate_series(1, 50) i;
         COMMIT;
         DELETE FROM audit WHERE line LIKE 'line %{round}'"
    );
    client.batch_execute(&sql).await.unwrap();
}

async fn assert_same(connector: &Connector, client: &tokio_postgres::Client, ds: &str) {
    for (table, query) in [("orders", QUERIES[0]), ("orders", QUERIES[1]), ("audit", QUERIES[2])] {
        let (order, theirs) = match table {
            "orders" => (if query == QUERIES[0] { "" } else { "ORDER BY id" }, query.to_owned()),
            _ => ("ORDER BY 1, 2", query.replace("epoch(\"at\")", "extract(epoch FROM \"at\")")),
        };
        let lake = duckdb(connector, ds, &format!("{query} {{{table}}} {order}"));
        let source = postgres(client, &format!("{theirs} {table} {order}")).await;
        assert_eq!(lake, source, "{query} {table}");
    }
}

fn verify(running: &Running, ds: &str) {
    let output = running.command(&["verify", "--ds", ds]);
    assert!(output.status.success(), "verify: {}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_on_kafka_are_those_of_the_embedded_log_also_when_killed_and_without_brokers_for_a_while() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let mut kafka = Kafka::start();
    let mut kafka_connector = on_kafka(&server.url(), &kafka);
    let mut embedded_connector = Connector::new(&server.url()).set("source", "slot", "embedded").set(
        "source",
        "publication",
        "embedded",
    );
    for connector in [&mut kafka_connector, &mut embedded_connector] {
        use_rule(connector, 0);
    }
    let checked = kafka_connector.start("check");
    let mut running = kafka_connector.start_ready("run").await;
    check_told(checked).await;
    let embedded = embedded_connector.start_ready("run").await;

    for round in 1..6 {
        traffic(&client, round).await;
        if round % 2 == 0 {
            running.kill();
            running = kafka_connector.start("run");
        }
    }
    running.ready().await;
    broker_away(&mut kafka, &mut running, &client).await;
    slot_has_passed(&client).await;
    assert_each_change_once(&kafka, &client).await;

    let ds = &days[0];
    running.cut(ds);
    embedded.cut(ds);
    kafka_connector.wait_published(ds).await;
    embedded_connector.wait_published(ds).await;
    for connector in [&kafka_connector, &embedded_connector] {
        assert_same(connector, &client, ds).await;
    }
    verify(&running, ds);
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
}

async fn check_told(mut checked: Running) {
    checked.ended().await;
    let told = checked.output();
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    for found in ["ok kafka brokers", "ok kafka topics", "ok kafka transactions"] {
        let is_there = told.lines().any(|line| squeezed(line).starts_with(found));
        assert!(is_there, "{found} is missing:\n{told}");
    }
}

/// Consumers see the rows that are there now as the last value of their keys, each change once, and the order of each
/// key: as soon as what was kept on the local disk is in the topic.
async fn assert_each_change_once(kafka: &Kafka, client: &tokio_postgres::Client) {
    let rows = postgres(client, "SELECT id FROM orders ORDER BY id").await;
    let rows: Vec<String> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
    let began = Instant::now();
    loop {
        let there = last_of_each_key(kafka);
        if there == rows {
            return;
        }
        let late = began.elapsed() > PATIENCE;
        assert!(!late, "the keys of the topic's last records: {there:?}; the table's: {rows:?}");
    }
}

/// The ids whose last record is a row; no record comes twice.
fn last_of_each_key(kafka: &Kafka) -> Vec<String> {
    let lines = kafka.committed("shop.public.orders", 1);
    let mut last = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in lines.iter().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let row = if value["after"].is_null() { &value["before"] } else { &value["after"] };
        assert!(seen.insert(line.clone()) || value["op"] == "d", "seen twice: {line}");
        last.insert(row["id"].as_i64().unwrap(), !value["after"].is_null());
    }
    last.iter().filter(|(_, there)| **there).map(|(id, _)| id.to_string()).collect()
}

/// The broker dies under load: the process lives, says so, and goes on when the broker is back.
async fn broker_away(kafka: &mut Kafka, running: &mut Running, client: &tokio_postgres::Client) {
    kafka.kill();
    traffic(client, 6).await;
    let log = |running: &Running| running.health().1["components"]["log"].clone();
    wait_until(PATIENCE, "/health tells that the brokers are away", async || {
        log(running)["state"] == "waiting"
    })
    .await;
    let told = log(running);
    assert!(told["since"].is_string() || told["since_ms"].is_number(), "{told}");
    assert!(running.is_running(), "{}", running.output());
    kafka.start_again();
    let started = Instant::now();
    wait_until(PATIENCE, "the log is well again", async || log(running)["state"] == "ok").await;
    eprintln!("well again {:?} after the broker", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_brokers_are_away_changes_are_kept_on_the_local_disk_and_survive_a_kill() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("CREATE TABLE big (id int PRIMARY KEY, note text)").await.unwrap();
    let days = days(&client).await;
    let mut kafka = Kafka::start();
    // An append is given up, and kept, after so long.
    let mut connector =
        on_kafka(&server.url(), &kafka).set("log.kafka.properties", "\"transaction.timeout.ms\"", 5_000);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    traffic(&client, 1).await;
    slot_has_passed(&client).await;

    kafka.kill();
    for round in 2..4 {
        traffic(&client, round).await;
    }
    // The slot moves on although no broker has any of it.
    slot_has_passed(&client).await;
    wait_until(PATIENCE, "/health tells what is kept", async || {
        running.health().1["components"]["log"].to_string().contains("kept on the local disk")
    })
    .await;
    running.kill();
    kafka.start_again();
    let mut running = connector.start_ready("run").await;
    traffic(&client, 4).await;

    // A record that no broker takes is a dead letter, and neither stops its table nor the others.
    client
        .batch_execute(
            "INSERT INTO big VALUES (1, 'small'), (2, repeat('x', 5000000)), (3, repeat('y', 3000000)), (4, 'last')",
        )
        .await
        .unwrap();
    slot_has_passed(&client).await;
    let ds = &days[0];
    running.cut(ds);
    connector.wait_published(ds).await;
    assert_same(&connector, &client, ds).await;
    verify(&running, ds);
    assert_each_change_once(&kafka, &client).await;
    let held = duckdb(&connector, ds, "SELECT id, length(note) FROM {big} ORDER BY id");
    let rows = postgres(&client, "SELECT id, length(note) FROM big WHERE id <> 2 ORDER BY id").await;
    assert_eq!(held, rows, "all but the one that is too large");
    let letters = kafka.console_consumer("shop.dead-letters", 1);
    let letter: serde_json::Value = serde_json::from_str(&letters[0]).unwrap();
    assert_eq!((&letter["table"], &letter["new"]["id"]), (&"big".into(), &"2".into()), "{letter}");
    assert_eq!(letter["new"]["note"]["bytes"], 5_000_000);
    assert!(letter["reason"].as_str().unwrap().contains("at most"), "{letter}");
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
}

/// Waits until the server may forget everything that has been written.
async fn slot_has_passed(client: &tokio_postgres::Client) {
    let written = &postgres(client, "SELECT pg_current_wal_lsn()").await[0][0].clone().unwrap();
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'"
    );
    wait_until(PATIENCE, "the slot has passed what was written", async || {
        postgres(client, &sql).await[0][0].as_deref() == Some("t")
    })
    .await;
}

/// The objects of a published day, as [`content`] has them.
fn contents(connector: &Connector, ds: &str) -> BTreeMap<String, String> {
    let named = |name: String| {
        let held = content(&connector.lake().join(&name));
        (name, held)
    };
    published(connector, ds).into_keys().map(named).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_local_disk_every_position_is_read_by_the_shape_that_was_valid_there() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE shaped (id int PRIMARY KEY, a int, gone text); INSERT INTO shaped VALUES (1, 1, 'g')")
        .await
        .unwrap();
    let days = days(&client).await;
    let kafka = Kafka::start();
    let mut connector = on_kafka(&server.url(), &kafka);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    for statement in [
        "INSERT INTO shaped VALUES (2, 2, 'g')",
        "ALTER TABLE shaped ADD b text DEFAULT 'b'",
        "INSERT INTO shaped VALUES (3, 3, 'g', 'other'); UPDATE shaped SET a = 10 WHERE id = 1",
        "ALTER TABLE shaped ALTER a TYPE bigint; ALTER TABLE shaped DROP gone",
        "INSERT INTO shaped VALUES (4, 5000000000, 'b')",
        "ALTER TABLE shaped RENAME b TO c; ALTER TABLE shaped ADD d numeric(6,2) DEFAULT 1.25",
        "INSERT INTO shaped VALUES (5, 5, 'c', 2.50); DELETE FROM shaped WHERE id = 2",
    ] {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    slot_has_passed(&client).await;
    // The table was written anew by its type, and copied again.
    let copied = || running.health().1["tables"]["public.shaped"]["lacking"].is_null();
    wait_until(PATIENCE, "nothing is missing of the table", async || copied()).await;
    let ds = &days[0];
    running.cut(ds);
    connector.wait_published(ds).await;
    let sql = "SELECT id, a, c, d FROM TABLE ORDER BY id";
    let expected = postgres(&client, &sql.replace("TABLE", "shaped")).await;
    assert_eq!(duckdb(&connector, ds, &sql.replace("TABLE", "{shaped}")), expected);
    let made = contents(&connector, ds);
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());

    // All that is left is in the topics.
    std::fs::remove_dir_all(connector.state()).unwrap();
    std::fs::remove_dir_all(connector.lake()).unwrap();
    client.batch_execute("INSERT INTO shaped VALUES (6, 6, 'after', 3)").await.unwrap();
    let mut running = connector.start_ready("run").await;
    connector.wait_published(ds).await;
    assert_eq!(contents(&connector, ds), made, "the same objects");
    assert_eq!(duckdb(&connector, ds, &sql.replace("TABLE", "{shaped}")), expected);
    verify(&running, ds);
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
}
