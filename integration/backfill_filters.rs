//! Tables that are not copied, or of which only rows are copied that meet a condition of their owner. The oracle is Postgres
//! itself: what its tables held by that condition when the connector began, and every row that changed since.

use std::collections::BTreeSet;

use crate::support::lake::duckdb;
use serde_json::Value;

use crate::support::{Connector, PATIENCE, Postgres, Scene, wait_until};

const TABLES: &str = "
    CREATE TABLE recent (id int PRIMARY KEY, at timestamptz NOT NULL, n int, note text);
    ALTER TABLE recent ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE lines (n int, note text);
    ALTER TABLE lines REPLICA IDENTITY FULL;
    CREATE TABLE never (id int PRIMARY KEY, n int);
    CREATE TABLE whole (id int PRIMARY KEY, n int);
    INSERT INTO recent SELECT i, now() - i * interval '1 hour', i, repeat(md5(i::text), 100) FROM generate_series(1, 400) i;
    INSERT INTO lines SELECT i % 10, 'line' FROM generate_series(1, 100) i;
    INSERT INTO never SELECT i, i FROM generate_series(1, 50) i;
    INSERT INTO whole SELECT i, i FROM generate_series(1, 50) i;
    CREATE PUBLICATION tidemark_shop FOR ALL TABLES";

const RECENT: &str = "at > now() - interval '100 hours 30 minutes'";

fn rules(connector: Connector) -> Connector {
    connector
        .set("[table]", "match", "public.recent")
        .set("[table]", "backfill_where", RECENT)
        .set("[ table]", "match", "public.lines")
        .set("[ table]", "backfill_where", "n < 3")
        .set("[table ]", "match", "public.never")
        .set("[table ]", "backfill", false)
        .set("backfill", "chunk_bytes", 65536)
}

fn manifest(connector: &Connector, table: &str, ds: &str) -> Value {
    let path = connector.snapshot(table, ds).join("_manifest.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_that_are_left_out_come_with_their_first_whole_change_and_the_manifest_says_so() {
    let mut scene = Scene::on(Postgres::start().await, TABLES, rules).await;
    // Whole rows; one whose long value is not sent; deletes of rows that were left out.
    scene
        .sql("UPDATE recent SET note = 'new', n = -1 WHERE id IN (50, 350); UPDATE recent SET n = -2 WHERE id IN (60, 360);
              DELETE FROM recent WHERE id IN (70, 370); UPDATE recent SET id = 1000 WHERE id = 20;
              UPDATE lines SET note = 'new' WHERE n IN (2, 5); DELETE FROM lines WHERE n IN (1, 6);
              UPDATE never SET n = -1 WHERE id = 7; INSERT INTO never VALUES (51, 51); DELETE FROM never WHERE id = 8")
        .await;
    let ds = scene.cut().await;
    let connector = &scene.connector;
    let expected = (1..=100)
        .filter(|id| ![20, 50, 60, 70].contains(id))
        .map(|id| (id, id, 3200))
        .chain([(50, -1, 3), (60, -2, 3200), (350, -1, 3), (1000, 20, 3200)])
        .map(|(id, n, length)| format!("{id} {n} {length}"));
    let recent = rows(connector, &ds, "SELECT id, n, length(note) FROM {recent}");
    assert_eq!(recent, expected.collect::<BTreeSet<_>>(), "recent");
    let lines = rows(connector, &ds, "SELECT n, note, count(*) FROM {lines} GROUP BY n, note");
    assert_eq!(lines, ["0 line 10", "2 new 10", "5 new 10"].map(String::from).into(), "lines");
    let never = rows(connector, &ds, "SELECT id, n FROM {never}");
    assert_eq!(never, ["7 -1", "51 51"].map(String::from).into(), "never");

    let told = |table: &str| manifest(connector, table, &ds)["backfill_where"].clone();
    assert_eq!(
        [told("recent"), told("lines"), told("never"), told("whole")],
        [RECENT.into(), "n < 3".into(), "false".into(), Value::Null],
        "what the manifests say"
    );
    let letters = |table: &str| manifest(connector, table, &ds)["changes"]["dead_letters"].as_u64();
    assert_eq!(
        ["recent", "lines", "never", "whole"].map(letters),
        [1, 0, 0, 0].map(Some),
        "only a row that nobody can know is a dead letter"
    );

    // The days that follow say it, too, without a new copy.
    let next = scene.cut().await;
    assert_eq!(manifest(&scene.connector, "recent", &next)["backfill_where"], RECENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_table_that_is_never_copied_is_missing_when_it_would_need_one_until_its_owner_begins_it_anew() {
    const SQL: &str = "
        CREATE TABLE never (id int PRIMARY KEY, n int);
        INSERT INTO never SELECT i, i FROM generate_series(1, 50) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE never";
    let mut scene = Scene::on(Postgres::start().await, SQL, |connector| {
        connector.set("[table]", "match", "public.never").set("[table]", "backfill", false)
    })
    .await;
    scene.sql("UPDATE never SET n = -n WHERE id < 4").await;
    scene.caught_up().await;
    scene.sql("ALTER PUBLICATION tidemark_shop SET TABLE never WHERE (id < 40)").await;
    scene.lacks("never", "it is not copied ([[table]] backfill = false)").await;
    let ds = scene.cut().await;
    let reason = scene.missing(&ds, "never").expect("better missing than empty");
    assert!(
        reason.contains("publication") && reason.contains("`tidemark backfill public.never`"),
        "{reason}"
    );
    // Delivery asks for what a day lacks; that is not its owner's word.
    wait_until(PATIENCE, "delivery has asked", async || {
        scene.running().health().1["tables"]["public.never"]["gap"].is_object()
    })
    .await;
    scene.sql("UPDATE never SET n = 1 WHERE id = 9").await;
    let ds = scene.cut().await;
    assert!(scene.missing(&ds, "never").is_some(), "nobody has begun it anew");
    assert_eq!(scene.copies("never"), 0);
    let by_glob = scene.running().command(&["backfill", "public.*"]);
    assert!(!by_glob.status.success(), "it takes its name: {by_glob:?}");
    let asked = scene.running().command(&["backfill", "public.never"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    scene.copied("never", 1).await;
    // Delivery asks again: no cut has told it yet.
    scene.again().await;
    wait_until(PATIENCE, "delivery has asked", async || {
        scene.running().health().1["tables"]["public.never"]["gap"].is_object()
    })
    .await;
    scene.sql("UPDATE never SET n = 0 WHERE id IN (2, 7)").await;
    let ds = scene.cut().await;
    assert_eq!(
        rows(&scene.connector, &ds, "SELECT id, n FROM {never}"),
        ["2 0", "7 0"].map(String::from).into()
    );
    assert_eq!(manifest(&scene.connector, "never", &ds)["backfill_where"], "false");
    let again = scene.running().command(&["backfill", "public.never"]);
    assert!(!again.status.success(), "nothing is missing: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_table_that_is_never_copied_is_named_by_the_days_after_it_was_left_out_for_a_while() {
    const SQL: &str = "
        CREATE TABLE never (id int PRIMARY KEY, n int); CREATE TABLE other (id int PRIMARY KEY);
        INSERT INTO never SELECT i, i FROM generate_series(1, 50) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE never, other";
    let mut scene = Scene::on(Postgres::start().await, SQL, |connector| {
        connector.set("[table]", "match", "public.never").set("[table]", "backfill", false)
    })
    .await;
    scene.sql("UPDATE never SET n = -n WHERE id < 4").await;
    scene.caught_up().await;
    scene.connector.change("[table]", "exclude", true);
    scene.again().await;
    wait_until(PATIENCE, "the table is left out", async || {
        scene.output().contains("excluded by the configuration")
    })
    .await;
    scene.sql("UPDATE never SET n = 100 WHERE id = 3").await;
    scene.caught_up().await;
    scene.connector.change("[table]", "exclude", false);
    scene.again().await;
    scene.lacks("never", "it is not copied ([[table]] backfill = false)").await;
    let ds = scene.cut().await;
    let reason = scene.missing(&ds, "never").expect("it lacks a change, and is named");
    assert!(reason.contains("`tidemark backfill public.never`"), "{reason}");
    scene.running().asks(&["backfill", "public.never"]);
    scene.copied("never", 1).await;
    scene.sql("UPDATE never SET n = 0 WHERE id = 2").await;
    let ds = scene.cut().await;
    assert_eq!(rows(&scene.connector, &ds, "SELECT id, n FROM {never}"), [String::from("2 0")].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_whose_condition_names_a_column_that_is_gone_tells_so_and_goes_on_when_it_is_back() {
    const SQL: &str = "
        CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE t";
    let scene = Scene::on(Postgres::start().await, SQL, |connector| {
        connector.set("[table]", "match", "public.t").set("[table]", "backfill_where", "n > 10")
    })
    .await;
    scene.sql("ALTER TABLE t RENAME n TO m").await;
    scene.running().asks(&["backfill", "public.t"]);
    wait_until(PATIENCE, "what is wrong is told", async || {
        scene.output().contains("column \\\"n\\\" does not exist")
    })
    .await;
    scene.sql("ALTER TABLE t RENAME m TO n").await;
    scene.copied("t", 1).await;
}

/// Rows of a day, each as one text.
fn rows(connector: &Connector, ds: &str, sql: &str) -> BTreeSet<String> {
    let line = |row: Vec<Option<String>>| {
        row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join(" ")
    };
    duckdb(connector, ds, sql).into_iter().map(line).collect()
}
