//! Shapes that change while the process runs.

use serde_json::Value;

use super::{DAYS, World};
use crate::support::lake::duckdb;
use crate::support::{PATIENCE, wait_until};

fn columns(version: &Value) -> Vec<(&str, bool)> {
    let columns = version["after"]["columns"].as_array().unwrap();
    columns.iter().map(|c| (c["name"].as_str().unwrap(), c["dropped"].as_bool().unwrap_or(false))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_column_a_dropped_one_and_a_renamed_one_flow_in_order() {
    let mut world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, a text, old text);
         INSERT INTO t SELECT i, 'a' || i, 'o' || i FROM generate_series(1, 10) i",
    )
    .await;
    let running = world.connector.start_ready("run").await;

    world
        .sql(
            "UPDATE t SET a = 'before' WHERE id = 1; ALTER TABLE t ADD COLUMN n numeric(8,2);
             UPDATE t SET a = 'after', n = 1.50 WHERE id = 2; INSERT INTO t VALUES (11, 'new', 'o11', -7)",
        )
        .await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", "SELECT id, a, old, n FROM TABLE ORDER BY id").await;

    // A dropped column stays, and is null in rows that are written from then on.
    world
        .sql(
            "ALTER TABLE t DROP COLUMN old; UPDATE t SET a = 'later' WHERE id IN (1, 11);
             INSERT INTO t VALUES (12, 'newer', 3)",
        )
        .await;
    world.end_day(1, &running).await;
    world.assert_same(1, "t", "SELECT id, a, n FROM TABLE ORDER BY id").await;
    let old =
        duckdb(&world.connector, DAYS[1], "SELECT id, old FROM {t} WHERE id IN (1, 2, 11, 12) ORDER BY id");
    let old: Vec<_> = old.iter().map(|row| row[1].as_deref()).collect();
    assert_eq!(old, [None, Some("o2"), None, None]);

    // A renamed one is a new one beside it, which has in older rows what they had in the old one.
    world.sql("ALTER TABLE t RENAME a TO b; UPDATE t SET b = 'renamed' WHERE id = 3; INSERT INTO t VALUES (13, 'b13', 0)").await;
    world.end_day(2, &running).await;
    let rows =
        duckdb(&world.connector, DAYS[2], "SELECT id, a, b FROM {t} WHERE id IN (3, 4, 13) ORDER BY id");
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            [text("3"), None, text("renamed")],
            [text("4"), text("a4"), text("a4")],
            [text("13"), None, text("b13")]
        ]
    );

    let versions: Vec<_> = world.connector.records("shop.ddl").await.into_iter().map(|r| r.value).collect();
    let shapes: Vec<_> = versions.iter().map(columns).collect();
    assert_eq!(
        shapes,
        [
            vec![("id", false), ("a", false), ("old", false)],
            vec![("id", false), ("a", false), ("old", false), ("n", false)],
            vec![("id", false), ("a", false), ("old", true), ("n", false)],
            vec![("id", false), ("a", true), ("old", true), ("n", false), ("b", false)],
        ]
    );
    let versions: Vec<_> = versions.iter().map(|v| v["after"]["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_on_one_day_and_made_again_on_another_is_in_the_days_that_had_it() {
    let mut world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i;
         CREATE TABLE u (id int PRIMARY KEY)",
    )
    .await;
    let running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", "SELECT id, a FROM TABLE ORDER BY id").await;

    world.sql("UPDATE t SET a = 'last' WHERE id < 4; INSERT INTO t VALUES (11, 'last'); DROP TABLE t").await;
    world.end_day(1, &running).await;
    assert!(!world.connector.snapshot("t", DAYS[1]).exists(), "it was not there at this day's cut");
    assert!(world.connector.snapshot("u", DAYS[1]).exists());

    world
        .sql(
            "CREATE TABLE t (id int PRIMARY KEY, a text, b int); INSERT INTO t VALUES (1, 'new', 1), (2, 'new', 2);
             ALTER PUBLICATION tidemark_shop ADD TABLE t; INSERT INTO t VALUES (3, 'new', 3)",
        )
        .await;
    wait_until(PATIENCE, "the table is copied anew", async || {
        running.output().contains("copied: the next cut takes it")
    })
    .await;
    world.end_day(2, &running).await;
    world.assert_same(2, "t", "SELECT id, a, b FROM TABLE ORDER BY id").await;
}
