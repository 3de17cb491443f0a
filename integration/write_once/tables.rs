//! Every kind of table has its day, and the right one.

use super::{DAYS, World};
use crate::support::{PATIENCE, Running, wait_until};

/// All is well, if need be after another connection: a server whose clock steps by a day takes us for silent.
async fn assert_well(running: &Running) {
    wait_until(PATIENCE, "health is well", async || running.health().1["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_truncated_untouched_keyless_and_append_only_tables_have_their_days() {
    let mut world = World::new(
        "CREATE TABLE empty (id int PRIMARY KEY, a text);
         CREATE TABLE never (id int PRIMARY KEY, a text); INSERT INTO never VALUES (1, 'as it was'), (2, NULL);
         CREATE TABLE cleared (id int PRIMARY KEY); INSERT INTO cleared SELECT generate_series(1, 500);
         CREATE TABLE refilled (id int PRIMARY KEY); INSERT INTO refilled SELECT generate_series(1, 500);
         CREATE TABLE emptied (id int PRIMARY KEY); INSERT INTO emptied SELECT generate_series(1, 500);
         CREATE TABLE nokey (a int, b text); ALTER TABLE nokey REPLICA IDENTITY FULL;
         INSERT INTO nokey VALUES (1, 'x'), (1, 'x'), (1, 'x'), (2, NULL), (2, NULL)",
    )
    .await;
    let running = world.connector.start_ready("run").await;
    world
        .sql(
            "BEGIN; TRUNCATE cleared; TRUNCATE refilled; INSERT INTO refilled VALUES (7), (3); COMMIT;
             DELETE FROM emptied;
             DELETE FROM nokey WHERE ctid = (SELECT min(ctid) FROM nokey WHERE a = 1);
             UPDATE nokey SET b = 'y' WHERE ctid = (SELECT min(ctid) FROM nokey WHERE a = 2);
             INSERT INTO nokey VALUES (3, 'z'), (3, 'z')",
        )
        .await;
    let tables = [
        ("empty", "SELECT id, a FROM TABLE ORDER BY 1"),
        ("never", "SELECT id, a FROM TABLE ORDER BY 1"),
        ("cleared", "SELECT id FROM TABLE"),
        ("refilled", "SELECT id FROM TABLE ORDER BY 1"),
        ("emptied", "SELECT id FROM TABLE"),
        ("nokey", "SELECT a, b, count(*) FROM TABLE GROUP BY 1, 2 ORDER BY 1, 2 NULLS FIRST"),
    ];
    world.end_day(0, &running).await;
    for (table, query) in tables {
        world.assert_same(0, table, query).await;
    }
    world
        .sql("INSERT INTO empty VALUES (1, 'no more'); DELETE FROM nokey WHERE a = 3; TRUNCATE refilled")
        .await;
    world.end_day(1, &running).await;
    for (table, query) in tables {
        world.assert_same(1, table, query).await;
    }
    let day = crate::support::Connector::json(&world.connector.day(DAYS[1]));
    assert_eq!(day["tables"].as_array().unwrap().len(), tables.len());
    assert_well(&running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_key_under_a_publication_of_inserts_only_is_append_only() {
    let mut world = World::new(
        "CREATE TABLE events (moment int, what text); INSERT INTO events VALUES (1, 'a'), (1, 'a');
         CREATE PUBLICATION tidemark_shop FOR TABLE events WITH (publish = 'insert')",
    )
    .await;
    let running = world.connector.start_ready("run").await;
    world.sql("INSERT INTO events VALUES (1, 'a'), (2, 'b')").await;
    let query = "SELECT moment, what, count(*) FROM TABLE GROUP BY 1, 2 ORDER BY 1, 2";
    world.end_day(0, &running).await;
    world.assert_same(0, "events", query).await;
    world.sql("INSERT INTO events VALUES (3, NULL)").await;
    world.end_day(1, &running).await;
    world.assert_same(1, "events", query).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_that_an_update_does_not_touch_stays_also_when_the_key_changes() {
    let mut world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int, wide text, other text);
         ALTER TABLE t ALTER wide SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, 0, repeat(md5(i::text), 200), repeat(md5((-i)::text), 150) FROM generate_series(1, 60) i",
    )
    .await;
    let running = world.connector.start_ready("run").await;
    let query = "SELECT id, n, md5(wide), md5(other) FROM TABLE ORDER BY id";
    // Of values that were backfilled, streamed, and changed on the same day.
    world
        .sql(
            "UPDATE t SET n = 1 WHERE id <= 10;
             INSERT INTO t SELECT i, 0, repeat(md5(i::text), 200), repeat(md5((-i)::text), 150) FROM generate_series(61, 90) i;
             UPDATE t SET n = 2 WHERE id BETWEEN 55 AND 70;
             UPDATE t SET id = id + 1000 WHERE id BETWEEN 5 AND 20;
             UPDATE t SET n = 3 WHERE id BETWEEN 1005 AND 1010;
             UPDATE t SET other = repeat('o', 9000) WHERE id BETWEEN 1008 AND 1012;
             UPDATE t SET id = id + 1000 WHERE id BETWEEN 1009 AND 1011;
             DELETE FROM t WHERE id = 1005; INSERT INTO t VALUES (1005, 9, 'short', NULL)",
        )
        .await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", query).await;
    // And of values that only the day before holds, through two keys.
    world
        .sql(
            "BEGIN; UPDATE t SET id = -id; UPDATE t SET n = n + 10 WHERE id % 2 = 0;
             UPDATE t SET id = id - 5000 WHERE id % 3 = 0; COMMIT",
        )
        .await;
    world.end_day(1, &running).await;
    world.assert_same(1, "t", query).await;
    let records = world.connector.table_records("t").await;
    assert!(
        records.iter().any(|r| r.value["after"].get("wide").is_none() && r.value["op"] == "u"),
        "missing at rest"
    );
    world.sql("UPDATE t SET n = 0").await;
    world.end_day(2, &running).await;
    world.assert_same(2, "t", query).await;
    assert_well(&running).await;
}
