//! Partitions and tables that come and go while a copy is made, in rounds, or waits to be, and nobody looks.

use rustix::process::{Pid, Signal, kill_process};

use super::members::{looked_anew, looker};
use crate::support::{PATIENCE, Postgres, Scene, wait_until};

const TABLES: &str = "
    CREATE TABLE parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10000);
    CREATE TABLE standing (LIKE parts INCLUDING ALL);
    INSERT INTO parts SELECT i, repeat('x', 1000) FROM generate_series(1, 8000) i;
    INSERT INTO standing SELECT i, repeat('y', 1000) FROM generate_series(10000, 18000) i;
    CREATE PUBLICATION tidemark_shop FOR TABLE parts WITH (publish_via_partition_root = true)";
const ATTACH: &str = "ALTER TABLE parts ATTACH PARTITION standing FOR VALUES FROM (10000) TO (20000)";
const DETACH: &str = "ALTER TABLE parts DETACH PARTITION standing";

/// A copy beside the stream that takes about eight rounds, when the first is over.
struct Rounds {
    scene: Scene,
    looker: Pid,
}

impl Rounds {
    async fn begin() -> Self {
        let scene = Scene::on(Postgres::start().await, TABLES, |connector| {
            let connector = connector.set("backfill", "chunk_bytes", 65_536);
            let connector = connector.set("backfill", "snapshot_age_max_ms", 1000);
            connector.set("backfill", "bytes_per_second_max", 1_000_000)
        })
        .await;
        // What the first round of the first copy has left is read beside the stream.
        wait_until(PATIENCE, "the first copy is whole", async || scene.copies("parts") == 1).await;
        looked_anew(&scene).await;
        let looker = looker(&scene).await;
        let rounds = Self { scene, looker };
        let before = rounds.begun();
        rounds.scene.running().asks(&["backfill", "public.parts"]);
        rounds.next(before).await;
        kill_process(looker, Signal::STOP).unwrap();
        rounds
    }

    /// How many rounds after the first of their copy have begun.
    fn begun(&self) -> usize {
        let output = self.scene.output();
        output.lines().filter(|line| line.contains("copying") && line.contains("\"begins\":false")).count()
    }

    async fn next(&self, before: usize) {
        wait_until(PATIENCE, "another round begins", async || self.begun() > before).await;
    }

    async fn end(self) -> Scene {
        kill_process(self.looker, Signal::CONT).unwrap();
        wait_until(PATIENCE, "parts is copied", async || self.scene.copies("parts") >= 2).await;
        self.scene
    }
}

/// Rows of the other table in the topic of copies.
async fn strangers(scene: &Scene) -> usize {
    let rows = scene.connector.records("shop.backfill-public.parts").await;
    rows.iter().filter(|record| record.key["id"].as_i64() >= Some(10_000)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_came_and_went_between_two_rounds_of_a_copy_are_in_no_day() {
    let rounds = Rounds::begin().await;
    rounds.scene.sql(ATTACH).await;
    // The first of the two may have seen the table as it was before.
    let before = rounds.begun();
    rounds.next(before + 1).await;
    rounds.scene.sql(DETACH).await;
    let mut scene = rounds.end().await;
    assert!(strangers(&scene).await > 0, "some of its rows are in the log");
    let ds = scene.cut().await;
    let reason = scene.missing(&ds, "parts").expect("rows that are not the table's are in the log");
    assert!(reason.contains("detached or dropped"), "{reason}");
    scene.copied("parts", 3).await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_came_and_went_within_a_round_of_a_copy_are_in_no_day() {
    let rounds = Rounds::begin().await;
    for _ in 0..3 {
        let before = rounds.begun();
        rounds.next(before).await;
        // It comes under the lock of those who read, and goes when they have read.
        rounds.scene.sql(ATTACH).await;
        rounds.scene.sql(DETACH).await;
    }
    let mut scene = rounds.end().await;
    let ds = scene.cut().await;
    if scene.missing(&ds, "parts").is_some() {
        // It was there between two rounds, too, and the second has read it.
        scene.copied("parts", 3).await;
        let ds = scene.cut().await;
        scene.same(&ds, "parts", "id, note").await;
    } else {
        assert_eq!(strangers(&scene).await, 0);
        scene.same(&ds, "parts", "id, note").await;
        scene.sound(&ds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_made_again_before_its_copy_begins_is_never_left_out_unsaid() {
    let tables = "CREATE TABLE first (id int PRIMARY KEY, note text); INSERT INTO first VALUES (1, 'former');
                  CREATE PUBLICATION tidemark_shop FOR ALL TABLES";
    let mut scene = Scene::of(tables).await;
    let triggers = scene.running().command(&["setup"]);
    assert!(triggers.status.success(), "{}", String::from_utf8_lossy(&triggers.stderr));
    scene.again().await;
    scene.caught_up().await;
    // A copy waits for the transactions that are open.
    let blocker = scene.server.connect().await;
    blocker.batch_execute("BEGIN; SELECT txid_current()").await.unwrap();
    scene.running().asks(&["backfill", "public.first"]);
    looked_anew(&scene).await;
    scene
        .sql(
            "BEGIN; DROP TABLE first; CREATE TABLE first (id int PRIMARY KEY, note text);
             INSERT INTO first VALUES (2, 'anew'); COMMIT",
        )
        .await;
    let ds = scene.cut().await;
    if scene.missing(&ds, "first").is_none() {
        scene.same(&ds, "first", "id, note").await;
    }
    blocker.batch_execute("COMMIT").await.unwrap();
    wait_until(PATIENCE, "nothing is missing", async || {
        scene.copies("first") > 0 && scene.lacking("first").is_null()
    })
    .await;
    let ds = scene.cut().await;
    scene.same(&ds, "first", "id, note").await;
    scene.sound(&ds);
}
