//! The first copy, while its tables are truncated, rewritten and moved under it. The oracle is Postgres itself.

mod anew;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Running, open_log, wait_until};
use tidemark::change::Position;
use tidemark::log::{Log, LogPartition};
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

async fn wait_copied(running: &Running, tables: &[&str]) {
    wait_until(PATIENCE, "the copies are whole", async || {
        let health = running.health().1;
        tables.iter().all(|name| health["tables"][format!("public.{name}")]["backfill"]["done"] == true)
    })
    .await;
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
    // Small tables are copied first: while this one stands at the gate, the copy has its snapshot, and it is not the
    // others' turn.
    client
        .batch_execute("CREATE TABLE gated (id int PRIMARY KEY); INSERT INTO gated VALUES (1)")
        .await
        .unwrap();
    let keeper = anew::shut(&server).await;
    let connector = anew::gated(&server.url());
    let mut running = connector.start("run");
    anew::at_the_gate(&client).await;
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
    drop(keeper);
    running.ready().await;
    client
        .batch_execute(
            "UPDATE refilled SET note = 'changed' WHERE id % 3 = 0; INSERT INTO emptied VALUES (1, 'late');
             UPDATE retyped SET note = NULL WHERE id = 1; DELETE FROM parts WHERE id = 7",
        )
        .await
        .unwrap();
    // They go on beside the stream, each with a snapshot of its own.
    wait_copied(&running, TABLES).await;
    assert_equal(&connector, &running, &client, TABLES).await;
    let again = |table: &str| {
        let line = format!("\"table\":\"public.{table}\"");
        running.output().lines().any(|l| l.contains("copied: the next cut") && l.contains(&line))
    };
    for table in ["emptied", "refilled", "retyped", "compacted", "parts", "dropped"] {
        assert!(again(table), "{table} was rewritten before its turn");
    }
    // In its own topic is what happened since the first snapshot, and no row of a later one.
    let ops: Vec<_> =
        connector.table_records("refilled").await.iter().map(|r| r.value["op"].clone()).collect();
    assert_eq!(ops.iter().filter(|op| *op == "r").count(), 0, "{ops:?}");
    assert_eq!(ops.iter().filter(|op| *op == "t").count(), 1, "{ops:?}");
    assert_eq!(connector.records("shop.backfill-public.refilled").await.len(), 46);

    // A restart comes to the same end: what is passed over is passed over again.
    running.kill();
    let again = connector.start_ready("run").await;
    client.batch_execute("UPDATE emptied SET note = 'last'").await.unwrap();
    connector.wait_for_records("emptied", 2).await;
    wait_until(PATIENCE, "all is well", async || again.health().1["status"] == "ok").await;
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
    wait_copied(&running, &["staging", "large"]).await;
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

/// Waits until a topic has more rows than that; gives how many.
async fn wait_rows(connector: &Connector, topic: &str, beyond: u64) -> u64 {
    let log = open_log(connector.state().join("log.db"));
    let rows = LogPartition { topic: topic.into(), partition: 0 };
    let end = async || log.ranges().await.unwrap().get(&rows).map_or(0, |range| range.end);
    wait_until(PATIENCE, "rows of the copy are in the log", async || end().await > beyond).await;
    end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_that_is_killed_goes_on_beside_the_stream_and_can_be_held_up() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE big (id int PRIMARY KEY, note text); CREATE TABLE small (id int PRIMARY KEY, note text);
             INSERT INTO big SELECT g, repeat(md5(g::text), 3) FROM generate_series(1, 30000) g;
             INSERT INTO small SELECT g, 'small' FROM generate_series(1, 100) g;
             CREATE PUBLICATION tidemark_shop FOR TABLE big, small",
        )
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url())
        .set("log", "append_bytes_max", 65536)
        .set("backfill", "chunk_bytes", 131_072)
        .set("backfill", "connections", 2)
        .set("backfill", "bytes_per_second_max", 500_000);
    use_rule(&mut connector, 0);
    let mut running = connector.start("run");
    let copied = wait_rows(&connector, "shop.public.big", 6000).await;
    running.kill();
    // Slow enough to be held up before it is whole.
    connector.change("backfill", "bytes_per_second_max", 100_000);
    running = connector.start_ready("run").await;
    let paused = running.command(&["pause", "public.b*"]);
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    let again = running.command(&["pause", "--json", "public.big"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("already"), "{again:?}");
    let unknown = running.command(&["pause", "public.small"]);
    assert!(!unknown.status.success(), "its copy is whole");
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("no copy is on its way of public.small"),
        "{unknown:?}"
    );
    client
        .batch_execute(
            "UPDATE big SET note = 'changed' WHERE id % 100 = 0; DELETE FROM big WHERE id % 101 = 0;
             INSERT INTO big VALUES (-1, 'new'); UPDATE big SET id = -id WHERE id % 103 = 0;
             UPDATE small SET note = 'changed' WHERE id = 1",
        )
        .await
        .unwrap();
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    let day = Connector::json(&connector.day(&days[0]));
    assert_eq!(day["missing"].as_array().map(Vec::len), Some(1), "{day}");
    assert_eq!(day["missing"][0]["table"]["table"], "big", "a table is whole in a day, or named: {day}");
    assert!(connector.snapshot("small", &days[0]).join("_manifest.json").exists(), "the others go on");
    assert_eq!(running.health().1["tables"]["public.big"]["state"], "paused");
    running.kill();

    // It is held up also after a restart.
    use_rule(&mut connector, 1);
    connector.change("backfill", "bytes_per_second_max", 500_000);
    running = connector.start_ready("run").await;
    assert_eq!(running.health().1["tables"]["public.big"]["state"], "paused");
    let resumed = running.command(&["resume", "public.big"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    wait_copied(&running, &["big"]).await;
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    for table in ["big", "small"] {
        let sql = "SELECT id, note FROM TABLE ORDER BY id";
        let expected = postgres(&client, &sql.replace("TABLE", table)).await;
        assert_eq!(
            duckdb(&connector, &days[1], &sql.replace("TABLE", &format!("{{{table}}}"))),
            expected,
            "{table}"
        );
    }
    let verified = running.command(&["verify", "--ds", &days[1]]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let rest = connector.records("shop.backfill-public.big").await.len() as u64;
    assert!(
        rest < 30_000 - copied + 4 * 1000,
        "only pieces that were being read are read again: {rest} of {copied}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_held_up_when_its_last_row_is_read_ends_once_it_may_go_on() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
                 CREATE PUBLICATION tidemark_shop FOR TABLE t";
    client.batch_execute(setup).await.unwrap();
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    wait_copied(&running, &["t"]).await;
    let told = |what: &str| running.output().matches(what).count();
    for round in 1..=12 {
        let copying = told("\"copying\"");
        running.asks(&["backfill", "public.t"]);
        wait_until(PATIENCE, "the copy is made", async || told("\"copying\"") > copying).await;
        // Its rows are read by then or soon, and whether it is whole is looked at now and then: any of these moments.
        if running.command(&["pause", "public.t"]).status.success() {
            assert!(running.command(&["resume", "public.t"]).status.success());
        }
        wait_until(PATIENCE, "the copy is whole", async || told("copied: the next cut takes it") == round)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_copy_that_is_broken_off_count_also_when_the_stream_breaks_off_after_it() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE big (id int PRIMARY KEY, note text);
             ALTER TABLE big ALTER note SET STORAGE EXTERNAL;
             INSERT INTO big SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 3000) g;
             CREATE PUBLICATION tidemark_shop FOR TABLE big",
        )
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url())
        // Rows that were read stay so long in the batch, beside what the state says of them.
        .set("log", "linger_ms", 2000)
        .set("backfill", "chunk_bytes", 16 << 20);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    wait_copied(&running, &["big"]).await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    assert!(running.terminate().await.success());
    // Rows of a piece are told in many parts, and the connection does not hold all of it.
    connector.change("backfill", "bytes_per_second_max", 8_000_000);
    use_rule(&mut connector, 1);
    let running = connector.start_ready("run").await;
    running.asks(&["backfill", "public.big"]);
    let read = || running.health().1["tables"]["public.big"]["backfill"]["rows"].as_u64().unwrap_or(0);
    wait_until(PATIENCE, "rows are read", async || read() > 0).await;
    let end = |backends: &str| {
        format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {backends}")
    };
    client.execute(&end("query LIKE 'COPY (SELECT%'"), &[]).await.unwrap();
    wait_until(PATIENCE, "the copy is broken off", async || {
        running.output().contains("interrupted: it goes on in")
    })
    .await;
    // Then the batch is appended, and before the copy goes on the stream is taken up anew.
    wait_rows(&connector, "shop.backfill-public.big", read() - 1).await;
    client.execute(&end("backend_type = 'walsender'"), &[]).await.unwrap();
    wait_until(PATIENCE, "the copy is whole", async || {
        running.output().contains("copied: the next cut takes it")
    })
    .await;
    running.asks(&["cut", "--ds", &days[1]]);
    connector.wait_published(&days[1]).await;
    let sql = "SELECT id, note FROM TABLE ORDER BY id";
    assert_eq!(
        duckdb(&connector, &days[1], &sql.replace("TABLE", "{big}")),
        postgres(&client, &sql.replace("TABLE", "big")).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_several_sessions_read_are_in_the_log_once_and_in_the_order_of_their_positions() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE big (id int PRIMARY KEY, note text);
             INSERT INTO big SELECT g, repeat(md5(g::text), 1 + g % 7) FROM generate_series(1, 60000) g;
             CREATE PUBLICATION tidemark_shop FOR TABLE big",
        )
        .await
        .unwrap();
    let connector = Connector::new(&server.url()).set("backfill", "chunk_bytes", 131_072).set(
        "backfill",
        "connections",
        4,
    );
    let _running = connector.start_ready("capture").await;
    let records = connector.table_records("big").await;
    let positions: Vec<Position> = records.iter().map(|record| record.position.parse().unwrap()).collect();
    assert!(positions.iter().map(|position| position.ordinal).eq(1..=60_000), "numbered in their order");
    assert!(positions.is_sorted(), "none goes back");
    let mut found: Vec<(i64, String)> = records
        .iter()
        .map(|record| &record.value["after"])
        .map(|row| (row["id"].as_i64().unwrap(), row["note"].as_str().unwrap().to_owned()))
        .collect();
    found.sort_unstable();
    let rows = client.query("SELECT id::bigint, note FROM big ORDER BY id", &[]).await.unwrap();
    let expected: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(found == expected, "each row once, as Postgres has it");
}
