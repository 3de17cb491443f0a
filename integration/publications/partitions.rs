//! Partitioned tables, as their root and as their leaves.

use rustix::process::Signal;

use super::members::{looked_anew, send};
use crate::support::{PATIENCE, Postgres, Scene, wait_until};

const ROOT: &str = "
    CREATE TABLE parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE standing (note text, gone int, id int PRIMARY KEY);
    ALTER TABLE standing DROP gone;
    INSERT INTO parts SELECT i, 'first' FROM generate_series(1, 199) i;
    INSERT INTO standing SELECT 'stood', i FROM generate_series(200, 260) i;
    CREATE TABLE calm (id int PRIMARY KEY, note text);
    INSERT INTO calm VALUES (1, 'calm');";

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_partitions_without_events_of_rows_is_mended_by_one_copy() {
    let published = format!(
        "{ROOT} CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm WITH (publish_via_partition_root = true)"
    );
    let mut scene = Scene::of(&published).await;
    // A partition which is made as one brings nothing, and neither do an empty one that is attached and a TRUNCATE of
    // the root: no copy is made. Before 15 an empty one that is attached may have changes that are not sent.
    let sixth = if scene.server.major() >= 15 {
        "CREATE TABLE parts_6 (LIKE parts INCLUDING ALL);
         ALTER TABLE parts ATTACH PARTITION parts_6 FOR VALUES FROM (600) TO (700)"
    } else {
        "CREATE TABLE parts_6 PARTITION OF parts FOR VALUES FROM (600) TO (700)"
    };
    scene.sql(sixth).await;
    scene
        .sql(
            "CREATE TABLE parts_5 PARTITION OF parts FOR VALUES FROM (500) TO (600) PARTITION BY LIST (id);
             CREATE TABLE parts_5a PARTITION OF parts_5 DEFAULT;
             TRUNCATE parts;
             INSERT INTO parts SELECT i, 'second' FROM generate_series(1, 199) i;
             INSERT INTO parts VALUES (501, 'sub')",
        )
        .await;
    scene.caught_up().await;
    // A partition with rows is attached, its columns in another order, and the day is cut before they are copied: a copy
    // waits for the transactions that are open.
    let blocker = scene.server.connect().await;
    blocker.batch_execute("BEGIN; SELECT txid_current()").await.unwrap();
    scene.sql("ALTER TABLE parts ATTACH PARTITION standing FOR VALUES FROM (200) TO (300)").await;
    let ds = scene.cut().await;
    let reason = scene.missing(&ds, "parts").expect("the day has no half of the table");
    assert!(reason.contains("attached"), "{reason}");
    scene.same(&ds, "calm", "id, note").await;
    blocker.batch_execute("COMMIT").await.unwrap();
    scene.copied("parts", 1).await;
    scene
        .sql("UPDATE parts SET note = 'changed' WHERE id % 10 = 0; INSERT INTO parts VALUES (601, 'sixth')")
        .await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
    assert!(!scene.output().contains("MadeAgain") && scene.copies("calm") == 0);

    // Rows go with a partition that is detached, and with one that is emptied; one goes and comes back with other rows.
    scene.sql("ALTER TABLE parts DETACH PARTITION parts_1; TRUNCATE parts_2").await;
    scene.copied("parts", 2).await;
    scene
        .sql(
            "ALTER TABLE parts DETACH PARTITION standing; UPDATE standing SET note = 'alone';
             ALTER TABLE parts ATTACH PARTITION standing FOR VALUES FROM (200) TO (300)",
        )
        .await;
    scene.copied("parts", 3).await;
    scene.sql("DELETE FROM parts WHERE id = 210; DROP TABLE parts_5").await;
    scene.copied("parts", 4).await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
}

/// Each of these leaves nothing in the catalog by which it could be told afterwards.
const COME_AND_GO: [&str; 8] = [
    "CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM (700) TO (800)",
    "INSERT INTO parts VALUES (701, 'came and went')",
    "DROP TABLE parts_7",
    "ALTER TABLE parts ATTACH PARTITION standing FOR VALUES FROM (200) TO (300)",
    "UPDATE parts SET note = 'for a while' WHERE id = 210",
    "INSERT INTO parts VALUES (270, 'for a while')",
    "ALTER TABLE parts DETACH PARTITION standing",
    "UPDATE parts SET note = 'stays' WHERE id = 20",
];

/// The same in a transaction that is sent in parts, as one of several leaves.
const IN_PARTS: [&str; 3] = [
    "CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM (700) TO (800)",
    "BEGIN; UPDATE parts SET note = repeat('y', 2000) WHERE id < 150;
     INSERT INTO parts SELECT i, repeat('x', 2000) FROM generate_series(700, 799) i; COMMIT",
    "DROP TABLE parts_7",
];

/// A partition that is there, and has lost what the stream has told of it.
const FILLED_AND_EMPTIED: [&str; 4] = [
    "CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM (700) TO (800)",
    "INSERT INTO parts VALUES (701, 'came and went'), (702, 'came and went')",
    "TRUNCATE parts_7",
    "INSERT INTO parts VALUES (703, 'stays'); UPDATE parts SET note = 'stays' WHERE id = 20",
];

async fn comes_and_goes(published: &str, statements: &[&str], asleep: bool) {
    let server = Postgres::builder().set("logical_decoding_work_mem", "64kB").start().await;
    let published = format!("{ROOT} CREATE PUBLICATION tidemark_shop {published}");
    let mut scene = Scene::on(server, &published, |connector| connector).await;
    if asleep {
        // Nobody looks meanwhile, and the stream is read later.
        scene.running().signal(Signal::STOP);
    } else {
        looked_anew(&scene).await;
    }
    for statement in statements {
        scene.sql(statement).await;
    }
    if asleep {
        scene.running().signal(Signal::CONT);
        scene.again().await;
    }
    scene.caught_up().await;
    let ds = scene.cut().await;
    match scene.missing(&ds, "parts") {
        // A look in between may have told another of them.
        Some(reason) => assert!(reason.contains("without a change of rows in the stream"), "{reason}"),
        // The copy was quicker than the cut.
        None => scene.same(&ds, "parts", "id, note").await,
    }
    scene.copied("parts", 1).await;
    scene.sql("UPDATE parts SET note = 'after' WHERE id = 30").await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
    assert_eq!(scene.copies("parts"), 1, "one copy mends all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_came_and_went_while_nobody_looked_are_in_no_day() {
    let published = "FOR TABLE parts, calm WITH (publish_via_partition_root = true)";
    comes_and_goes(published, &COME_AND_GO, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_came_and_went_between_two_looks_are_in_no_day() {
    comes_and_goes("FOR ALL TABLES WITH (publish_via_partition_root = true)", &COME_AND_GO, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_came_in_parts_of_a_partition_that_went_are_in_no_day() {
    let published = "FOR TABLE parts, calm WITH (publish_via_partition_root = true)";
    comes_and_goes(published, &IN_PARTS, false).await;
}

/// The cut comes in one read with the rows.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_came_and_went_are_not_in_the_day_that_ends_right_behind_them() {
    let published = format!(
        "{ROOT} CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm WITH (publish_via_partition_root = true)"
    );
    let mut scene = Scene::of(&published).await;
    scene.sql("SELECT pg_create_logical_replication_slot('seen', 'test_decoding')").await;
    scene.caught_up().await;
    looked_anew(&scene).await;
    send(&scene, Signal::STOP).await;
    for statement in &COME_AND_GO[..3] {
        scene.sql(statement).await;
    }
    let mut asked = scene.asks_for_cut();
    let marker =
        "SELECT FROM pg_logical_slot_peek_changes('seen', NULL, NULL) WHERE data LIKE '%tidemark.cut%'";
    wait_until(PATIENCE, "the cut is in the WAL", async || {
        !scene.client.query(marker, &[]).await.unwrap().is_empty()
    })
    .await;
    send(&scene, Signal::CONT).await;
    let ds = scene.cut_published().await;
    asked.wait().unwrap();
    let reason = scene.missing(&ds, "parts").expect("rows that are not the table's are in the log");
    assert!(reason.contains("without a change of rows in the stream"), "{reason}");
    scene.copied("parts", 1).await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_was_made_filled_and_emptied_while_nobody_looked_are_in_no_day() {
    let published = "FOR TABLE parts, calm WITH (publish_via_partition_root = true)";
    comes_and_goes(published, &FILLED_AND_EMPTIED, true).await;
}

/// The first look that saw everything below a cut saw more: of that the stream tells only later, and then nothing is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_day_lacks_for_what_came_after_its_cut_is_in_the_next_one() {
    let published = format!(
        "{ROOT} CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm WITH (publish_via_partition_root = true)"
    );
    let mut scene = Scene::of(&published).await;
    scene.sql("SELECT pg_create_logical_replication_slot('seen', 'test_decoding')").await;
    scene.caught_up().await;
    send(&scene, Signal::STOP).await;
    // A look between the two would see no TRUNCATE, and rightly: it has just been looked, and the server itself waits.
    looked_anew(&scene).await;
    let mut asked = scene.asks_for_cut();
    scene
        .sql(
            "DO $$ DECLARE began timestamptz := clock_timestamp(); BEGIN
                 WHILE NOT EXISTS (SELECT FROM pg_logical_slot_peek_changes('seen', NULL, NULL)
                                   WHERE data LIKE '%tidemark.cut%') LOOP
                     IF clock_timestamp() > began + interval '3 min' THEN RAISE 'no cut was asked for'; END IF;
                     PERFORM pg_sleep(0.01);
                 END LOOP;
                 TRUNCATE parts; INSERT INTO parts SELECT i, 'second' FROM generate_series(1, 199) i;
             END $$",
        )
        .await;
    looked_anew(&scene).await;
    send(&scene, Signal::CONT).await;
    let ds = scene.cut_published().await;
    // The process ends with the day, perhaps before it has answered.
    asked.wait().unwrap();
    let reason = scene.missing(&ds, "parts").expect("what the look saw may have been before the cut");
    assert!(reason.contains("truncated or rewritten"), "{reason}");
    scene.copied("parts", 1).await;
    // Capture has asked for it by itself: where deliver is another process, nobody else does.
    assert!(scene.output().contains("the table needs a new copy"), "{}", scene.output());
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.same(&ds, "calm", "id, note").await;
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_published_one_by_one_come_and_go_as_tables_of_their_own() {
    let published = format!("{ROOT} CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm");
    let mut scene = Scene::of(&published).await;
    scene
        .sql(
            "UPDATE parts SET note = 'changed' WHERE id % 10 = 0; TRUNCATE parts_2;
             ALTER TABLE parts ATTACH PARTITION standing FOR VALUES FROM (200) TO (300);
             CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (300) TO (400);
             INSERT INTO parts VALUES (150, 'again'), (299, 'in order'), (300, 'third')",
        )
        .await;
    scene.copied("standing", 1).await;
    // A row that moves to another partition is deleted in one table and inserted into the other.
    scene.sql("UPDATE parts SET id = 250 + id WHERE id BETWEEN 20 AND 25; UPDATE parts SET id = 0 WHERE id = 210").await;
    scene.copied("parts_3", 1).await;
    let ds = scene.cut().await;
    for table in ["parts_1", "parts_2", "parts_3", "standing", "calm"] {
        scene.same(&ds, table, "id, note").await;
    }
    assert!(!scene.connector.snapshot("parts", &ds).exists(), "the root itself holds nothing");
    scene.sound(&ds);

    scene.sql("ALTER TABLE parts DETACH PARTITION parts_1; DELETE FROM parts_1 WHERE id < 50; DROP TABLE parts_3").await;
    scene.lacks("parts_1", "not in the publication").await;
    let ds = scene.cut().await;
    assert!(scene.missing(&ds, "parts_1").is_some(), "its changes are not sent any more");
    assert!(!scene.connector.snapshot("parts_3", &ds).exists() && scene.missing(&ds, "parts_3").is_none());
    for table in ["parts_2", "standing", "calm"] {
        scene.same(&ds, table, "id, note").await;
    }
    // The same partitions, published as their root.
    scene.sql("ALTER PUBLICATION tidemark_shop SET (publish_via_partition_root = true)").await;
    scene.copied("parts", 1).await;
    scene.sql("UPDATE parts SET note = 'by root' WHERE id % 7 = 0").await;
    let ds = scene.cut().await;
    for table in ["parts", "calm"] {
        scene.same(&ds, table, "id, note").await;
    }
    assert_eq!(scene.copies("standing"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_whose_rows_are_in_no_wal_are_left_out_until_they_are() {
    const TABLES: &str = "
        CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
        CREATE TABLE mixed (id int, note text) PARTITION BY RANGE (id);
        ALTER TABLE mixed REPLICA IDENTITY FULL;
        CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (100);
        CREATE UNLOGGED TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (100) TO (200);
        CREATE FOREIGN TABLE mixed_3 PARTITION OF mixed FOR VALUES FROM (200) TO (300) SERVER files
            OPTIONS (program 'echo 201,foreign', format 'csv');
        ALTER TABLE mixed_1 REPLICA IDENTITY FULL; ALTER TABLE mixed_2 REPLICA IDENTITY FULL;
        INSERT INTO mixed VALUES (1, 'logged'), (101, 'unlogged');
        CREATE PUBLICATION tidemark_shop FOR TABLE mixed WITH (publish_via_partition_root = true)";
    let mut scene = Scene::of(TABLES).await;
    scene.sql("INSERT INTO mixed VALUES (2, 'logged'), (102, 'unlogged'); UPDATE mixed SET note = 'changed' WHERE id = 1").await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "mixed", "id, note", "id < 100").await;
    scene.sound(&ds);
    scene.sql("ALTER TABLE mixed_2 SET LOGGED").await;
    scene.copied("mixed", 1).await;
    scene.sql("DELETE FROM mixed WHERE id = 101; INSERT INTO mixed VALUES (103, 'logged by now')").await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "mixed", "id, note", "id < 200").await;
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_subtransaction_before_their_table_was_attached_are_not_missed() {
    let published = format!(
        "{ROOT} CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm WITH (publish_via_partition_root = true)"
    );
    let mut scene = Scene::of(&published).await;
    // Made as partitions, on two levels, and filled at once: all is in the stream.
    scene
        .sql(
            "BEGIN; CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM (700) TO (800) PARTITION BY LIST (id);
             CREATE TABLE parts_7a PARTITION OF parts_7 DEFAULT;
             SAVEPOINT s; INSERT INTO parts VALUES (701, 'in the stream'); RELEASE s;
             INSERT INTO parts VALUES (702, 'in the stream'); COMMIT",
        )
        .await;
    scene.sql("INSERT INTO parts VALUES (703, 'in the stream')").await;
    scene.caught_up().await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    assert_eq!(scene.copies("parts"), 0);
    // Rows of a savepoint bear another transaction's id.
    scene
        .sql(
            "BEGIN; CREATE TABLE filled (LIKE parts INCLUDING ALL);
             SAVEPOINT s; INSERT INTO filled VALUES (801, 'before it was attached'); RELEASE s;
             ALTER TABLE parts ATTACH PARTITION filled FOR VALUES FROM (800) TO (900); COMMIT",
        )
        .await;
    scene.copied("parts", 1).await;
    // The same one level up: its leaf was a partition of it before.
    scene
        .sql(
            "BEGIN; CREATE TABLE branch (LIKE parts INCLUDING ALL) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF branch FOR VALUES FROM (900) TO (950);
             SAVEPOINT s; INSERT INTO branch VALUES (901, 'before the branch was attached'); RELEASE s;
             ALTER TABLE parts ATTACH PARTITION branch FOR VALUES FROM (900) TO (1000); COMMIT",
        )
        .await;
    scene.copied("parts", 2).await;
    let ds = scene.cut().await;
    scene.same(&ds, "parts", "id, note").await;
    scene.sound(&ds);
}

/// PostgreSQL 14 goes on to send a partition's changes as what it was when it sent the first of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_remembers_partitions_as_they_were_is_asked_anew_after_each_change_of_them() {
    const FILLED: &str = "INSERT INTO parts VALUES (1, 'streamed'), (101, 'streamed'); INSERT INTO apart VALUES (601, 'alone')";
    for root in [true, false] {
        let published = format!(
            "{ROOT} CREATE TABLE apart (LIKE parts INCLUDING ALL);
             CREATE PUBLICATION tidemark_shop FOR TABLE parts, calm WITH (publish_via_partition_root = {root});
             DELETE FROM parts WHERE id IN (1, 101)"
        );
        let server = Postgres::version(14).start().await;
        let mut scene = Scene::on(server, &published, |connector| connector).await;
        // It has sent changes of each, or has seen that there is nothing to send.
        scene.sql(FILLED).await;
        scene.caught_up().await;
        scene
            .sql(
                "TRUNCATE apart; ALTER TABLE parts ATTACH PARTITION apart FOR VALUES FROM (600) TO (700);
                 ALTER TABLE parts DETACH PARTITION parts_2",
            )
            .await;
        // What is written at once, and what comes later, when the copies are made.
        scene.sql("INSERT INTO apart VALUES (602, 'at once'); INSERT INTO parts_2 VALUES (102, 'x') ON CONFLICT (id) DO UPDATE SET note = 'at once'").await;
        let (copied, copies) = if root { ("parts", 1) } else { ("apart", 1) };
        scene.copied(copied, copies).await;
        scene.sql("INSERT INTO parts VALUES (603, 'later'); UPDATE parts_2 SET note = 'later'; DELETE FROM apart WHERE id = 602").await;
        let ds = scene.cut().await;
        for table in if root { vec!["parts"] } else { vec!["parts_1", "apart"] } {
            scene.same(&ds, table, "id, note").await;
        }
    }
}
