//! The first copy, while its tables are truncated, rewritten and moved under it. The oracle is Postgres itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use support::lake::{duckdb, postgres, value};
use support::{Connector, PATIENCE, Postgres, Running, wait_until};
use tokio_postgres::Client;

/// Cuts the day and compares tables with what Postgres holds. Nobody writes any more.
async fn assert_equal(connector: &Connector, running: &Running, client: &Client, tables: &[&str]) {
    let ds = value(client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    for table in tables {
        let sql = "SELECT id, note FROM TABLE ORDER BY id";
        let expected = postgres(client, &sql.replace("TABLE", table)).await;
        assert_eq!(
            duckdb(connector, &ds, &sql.replace("TABLE", &format!("{{{table}}}"))),
            expected,
            "{table}"
        );
    }
    let verified = running.command(&["verify", "--ds", &ds]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_before_its_turn_is_copied_alone_under_a_later_snapshot() {
    const TABLES: &[&str] = &["emptied", "refilled", "retyped", "compacted", "parts", "dropped"];
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (1000);",
        )
        .await
        .unwrap();
    for table in TABLES {
        if *table != "parts" {
            client
                .batch_execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY, note text)"))
                .await
                .unwrap();
        }
        client
            .batch_execute(&format!("INSERT INTO {table} SELECT g, 'first' FROM generate_series(1, 300) g"))
            .await
            .unwrap();
    }
    client
        .batch_execute(
            "CREATE PUBLICATION tidemark_shop FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
    // Empty tables are copied first, a thousand of them: time to stop the process before the others' turn.
    client
        .batch_execute(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE empty_%s (id int PRIMARY KEY)', i); END LOOP; END $$",
        )
        .await
        .unwrap();
    let connector = Connector::new(&server.url());
    let mut running = connector.start("run");
    wait_until(PATIENCE, "the copy has its snapshot", async || {
        let sql =
            "SELECT count(*) FROM pg_replication_slots WHERE temporary AND confirmed_flush_lsn IS NOT NULL";
        value(&client, sql).await != "0"
    })
    .await;
    running.signal(Signal::STOP);
    client
        .batch_execute(
            "UPDATE emptied SET note = 'unseen' WHERE id < 10;
             TRUNCATE emptied;
             TRUNCATE refilled;
             INSERT INTO refilled SELECT g, 'again' FROM generate_series(5, 50) g;
             UPDATE refilled SET id = id + 1000 WHERE id < 20;
             ALTER TABLE retyped ALTER id TYPE bigint;
             DELETE FROM retyped WHERE id > 200;
             DELETE FROM compacted WHERE id % 2 = 0;
             TRUNCATE parts_1;
             INSERT INTO parts VALUES (7, 'after'), (700, 'after');
             DROP TABLE dropped;
             CREATE TABLE dropped (id int PRIMARY KEY, note text);
             INSERT INTO dropped VALUES (1, 'made again')",
        )
        .await
        .unwrap();
    client.batch_execute("VACUUM FULL compacted").await.unwrap();
    running.signal(Signal::CONT);
    running.ready().await;
    assert!(running.output().contains("copied under a new one"), "no table was found to be rewritten");
    client
        .batch_execute(
            "UPDATE refilled SET note = 'changed' WHERE id % 3 = 0; INSERT INTO emptied VALUES (1, 'late');
             UPDATE retyped SET note = NULL WHERE id = 1; DELETE FROM parts WHERE id = 7",
        )
        .await
        .unwrap();
    // Of the one that was made meanwhile nobody knows that it was empty when its changes came.
    let copied = || {
        running
            .output()
            .lines()
            .any(|l| l.contains("copied: the next cut") && l.contains("\"public.dropped\""))
    };
    wait_until(PATIENCE, "the new table is copied", async || copied()).await;
    assert_equal(&connector, &running, &client, TABLES).await;
    // What such a table went through before its copy is not told a second time.
    let ops: Vec<_> =
        connector.table_records("refilled").await.iter().map(|r| r.value["op"].clone()).collect();
    assert_eq!(ops.iter().filter(|op| *op == "r").count(), 46);
    assert!(ops.iter().all(|op| op == "r" || op == "u"), "{ops:?}");

    // A restart comes to the same end: what is passed over is passed over again.
    running.kill();
    let again = connector.start_ready("run").await;
    client.batch_execute("UPDATE emptied SET note = 'last'").await.unwrap();
    connector.wait_for_records("emptied", 2).await;
    assert_eq!(again.health().1["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_truncated_all_the_time_does_not_hold_up_the_first_copy() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE staging (id int PRIMARY KEY, note text); CREATE TABLE large (id int PRIMARY KEY, note text);
             INSERT INTO staging SELECT g, 'first' FROM generate_series(1, 1000) g;
             INSERT INTO large SELECT g, repeat('x', 500) FROM generate_series(1, 50000) g",
        )
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, stopped) = (server.connect().await, Arc::clone(&stop));
    let traffic = tokio::spawn(async move {
        let mut turn = 0;
        while !stopped.load(Ordering::Relaxed) {
            turn += 1;
            let sql = format!(
                "BEGIN; TRUNCATE staging; INSERT INTO staging SELECT g, 'turn {turn}' FROM generate_series(1, 200) g; COMMIT;
                 UPDATE large SET note = 'turn {turn}' WHERE id = {turn}"
            );
            writer.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    stop.store(true, Ordering::Relaxed);
    traffic.await.unwrap();
    assert_equal(&connector, &running, &client, &["staging", "large"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tables_with_one_topic_do_not_stop_the_others() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE \"a b\" (id int PRIMARY KEY, note text); CREATE TABLE \"a?b\" (id int PRIMARY KEY, note text);
             CREATE TABLE other (id int PRIMARY KEY, note text); INSERT INTO other VALUES (1, 'one');
             INSERT INTO \"a b\" VALUES (1, 'x'); INSERT INTO \"a?b\" VALUES (1, 'y')",
        )
        .await
        .unwrap();
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    client
        .batch_execute("INSERT INTO \"a?b\" VALUES (2, 'y'); INSERT INTO other VALUES (2, NULL)")
        .await
        .unwrap();
    assert_equal(&connector, &running, &client, &["other"]).await;
    let (code, health) = running.health();
    assert_eq!(code, 503, "{health}");
    let reasons = health["reasons"].to_string();
    assert!(reasons.contains("share the topic shop.public.a_b") && reasons.contains("exclude"), "{reasons}");
    assert_eq!(connector.table_records("a_b").await.len(), 1, "one of them is carried");
}
