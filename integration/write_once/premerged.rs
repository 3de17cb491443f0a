//! Days that are made before they end, as far as they can be.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::{DAYS, World};
use crate::support::{PATIENCE, Running, wait_until};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, a text);
    INSERT INTO t SELECT i, 0, repeat(md5(i::text), 4) FROM generate_series(1, 4000) i";

/// Bytes of files of the next day that are made already.
fn premerged(running: &Running) -> f64 {
    let metrics = running.get("/metrics").map_or_else(String::new, |(_, text)| text);
    let value = metrics.lines().find_map(|line| {
        line.strip_prefix("tidemark_table_premerged_bytes{table=\"public.t\"} ")?.parse().ok()
    });
    value.unwrap_or_default()
}

/// What is in the scratch folder.
fn scratch(world: &World) -> BTreeSet<OsString> {
    let entries =
        std::fs::read_dir(world.connector.state().join("scratch")).expect("the scratch folder is there");
    entries.map(|entry| entry.expect("it can be read").file_name()).collect()
}

/// What is said of the publishing of the second day.
fn told(running: &Running, name: &str) -> u64 {
    let said = running.output();
    let mut lines = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let published = lines.find(|line| line["message"] == "published" && line["ds"] == DAYS[1]);
    published.and_then(|line| line[name].as_u64()).expect("it is told")
}

/// Changes of the lower keys: more than a small change file takes. When files are made of them, the last ones come: two rows
/// change, and the third goes.
async fn change(world: &World, running: &Running, n: i32, last: [i32; 3]) {
    world.sql(&format!("UPDATE t SET n = {n}, a = repeat(md5((id + {n})::text), 4) WHERE id <= 1500")).await;
    wait_until(PATIENCE, "files of the day are made before it ends", async || premerged(running) > 0.0).await;
    let [one, two, three] = last;
    world
        .sql(&format!("UPDATE t SET n = -{n} WHERE id IN ({one}, {two}); DELETE FROM t WHERE id = {three}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_is_made_before_it_ends_is_exact_also_when_what_was_made_is_lost_with_its_process() {
    let mut world = World::new(TABLE).await;
    for (key, value) in [
        ("part_bytes_max", 8 << 10),
        ("stage_bytes_max", 64 << 10),
        ("premerge_interval_ms", 50),
        ("premerge_table_bytes_min", 0),
    ] {
        world.connector.change("lake", key, value);
    }
    let query = "SELECT id, n, a FROM TABLE ORDER BY id";
    let mut running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    // Far from what was made.
    change(&world, &running, 1, [3800, 3900, 3950]).await;
    world.end_day(1, &running).await;
    world.assert_same(1, "t", query).await;
    assert!(told(&running, "premerged_files") > 0, "what was made before the cut was of no use");

    change(&world, &running, 2, [3, 3900, 1002]).await;
    running.kill();
    let left = scratch(&world);
    assert!(!left.is_empty(), "nothing that was made is lost");
    let mut running = world.connector.start_ready("run").await;
    world.end_day(2, &running).await;
    world.assert_same(2, "t", query).await;
    let still: Vec<_> = scratch(&world).intersection(&left).cloned().collect();
    assert!(still.is_empty(), "of the process that was killed, {still:?} are left");
    running.terminate().await;
    assert_eq!(scratch(&world), BTreeSet::new(), "a process has left something");
}

/// Their hour is not over, so no change file holds them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_to_the_cut_are_the_changes_since_the_last_round() {
    let mut world = World::new(TABLE).await;
    for (key, value) in
        [("part_bytes_max", 8 << 10), ("premerge_interval_ms", 200), ("premerge_table_bytes_min", 0)]
    {
        world.connector.change("lake", key, value);
    }
    let query = "SELECT id, n, a FROM TABLE ORDER BY id";
    let mut running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    change(&world, &running, 1, [3, 3900, 1001]).await;
    world.end_day(1, &running).await;
    world.assert_same(1, "t", query).await;
    assert_eq!(told(&running, "changes"), 1503);
    assert!(told(&running, "premerged_changes") >= 1500, "those of the round");
    running.terminate().await;
}
