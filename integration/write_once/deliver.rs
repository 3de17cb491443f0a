//! More than one deliver process, and one that knows nothing.

use std::fs;

use super::{DAYS, World};
use crate::support::lake::published;
use crate::support::{PATIENCE, Running, wait_until};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY);
    INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 3000) i; INSERT INTO u VALUES (1), (2)";

fn state(running: &Running) -> String {
    running.health().1["components"]["deliver"]["state"].as_str().unwrap_or_default().to_owned()
}

/// How many tables a process has.
fn tables(running: &Running) -> usize {
    let health = running.health().1;
    health["tables"]
        .as_object()
        .map_or(0, |tables| tables.values().filter(|table| table["owned"] == true).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn deliver_processes_share_the_tables_and_take_over_from_one_that_dies() {
    let mut world = World::new(TABLES).await;
    world.connector.change("coordinator", "lease_ttl_ms", 6000);
    let capture = world.connector.start_ready("capture").await;
    let mut first = world.connector.start_ready("deliver").await;
    wait_until(PATIENCE, "the first delivers", async || state(&first) == "ok").await;
    let second = world.connector.start_ready("deliver").await;
    wait_until(PATIENCE, "the second has a table", async || tables(&second) == 1 && tables(&first) == 1)
        .await;
    let third = world.connector.start_ready("deliver").await;
    wait_until(PATIENCE, "the third stands by", async || state(&third) == "standby").await;
    let (code, health) = third.health();
    assert_eq!(code, 200, "standing by is no trouble");
    assert!(health["components"]["deliver"]["reason"].as_str().unwrap().contains("another process delivers"));

    world.sql("UPDATE t SET a = 'x' WHERE id % 5 = 0").await;
    world.end_day(0, &capture).await;
    let day = published(&world.connector, DAYS[0]);
    assert_eq!(state(&first), "ok");

    first.kill();
    wait_until(PATIENCE, "the third takes over", async || tables(&third) == 1 && state(&third) == "ok").await;
    world.sql("DELETE FROM t WHERE id % 2 = 0").await;
    world.end_day(1, &capture).await;
    assert_eq!(state(&second), "ok");
    world.assert_same(1, "t", "SELECT id, a FROM TABLE ORDER BY id").await;
    world.assert_same(1, "u", "SELECT id FROM TABLE ORDER BY id").await;
    assert_eq!(published(&world.connector, DAYS[0]), day, "published once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_both_believe_to_be_alone_publish_the_same_objects() {
    let mut world = World::new(TABLES).await;
    let capture = world.connector.start_ready("capture").await;
    // Each has a coordinator of its own: no lease keeps them apart.
    let first = world.connector.start_ready("deliver").await;
    let other = world.connector.folder().join("other.db");
    world.connector.change("coordinator", "path", other.to_str().unwrap());
    let scratch = world.connector.folder().join("scratch");
    world.connector.change("lake", "scratch_dir", scratch.to_str().unwrap());
    let second = world.connector.start_ready("deliver").await;
    for (day, ds) in DAYS.iter().enumerate().take(3) {
        world
            .sql("UPDATE t SET a = a || 'x' WHERE id % 5 = 0; INSERT INTO u SELECT max(id) + 1 FROM u")
            .await;
        world.end_day(day, &capture).await;
        world.assert_same(day, "t", "SELECT id, a FROM TABLE ORDER BY id").await;
        world.assert_same(day, "u", "SELECT id FROM TABLE ORDER BY id").await;
        let output = capture.command(&["verify", "--ds", ds]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for running in [&first, &second] {
        wait_until(PATIENCE, "both are well", async || running.health().1["status"] == "ok").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deliver_that_has_lost_its_coordinator_goes_on_with_the_same_objects() {
    let mut world = World::new(TABLES).await;
    let capture = world.connector.start_ready("capture").await;
    let mut deliver = world.connector.start_ready("deliver").await;
    world.sql("UPDATE t SET a = 'x' WHERE id % 5 = 0").await;
    world.end_day(0, &capture).await;
    let day = published(&world.connector, DAYS[0]);
    deliver.kill();
    for file in fs::read_dir(world.connector.state()).unwrap().flatten() {
        if file.file_name().to_str().unwrap().starts_with("coordinator.db") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    // And the database's manifest of the day is to be made again, to the byte.
    fs::remove_file(world.connector.day(DAYS[0])).unwrap();
    let _deliver = world.connector.start_ready("deliver").await;
    world.connector.wait_published(DAYS[0]).await;
    assert_eq!(published(&world.connector, DAYS[0]), day);
    world.sql("DELETE FROM t WHERE id % 3 = 0").await;
    world.end_day(1, &capture).await;
    world.assert_same(1, "t", "SELECT id, a FROM TABLE ORDER BY id").await;
}
