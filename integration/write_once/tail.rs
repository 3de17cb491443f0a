//! Tables whose recent window is published daily, and what is before it weekly.

use std::time::Duration;

use super::{DAYS, World};
use crate::support::lake::{Rows, duckdb, postgres, published};
use crate::support::{Connector, PATIENCE, Running, wait_until};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n int, a text);
    ALTER TABLE t ALTER a SET STORAGE EXTERNAL;
    INSERT INTO t SELECT i, 0, repeat(md5(i::text), CASE WHEN i % 50 = 0 THEN 100 ELSE 3 END) FROM generate_series(1, 4000) i";
const ROWS: &str = "SELECT id, n, a FROM TABLE ORDER BY id";

fn rule(connector: &mut Connector, weekday: Option<&str>) {
    connector.change("[table]", "match", "public.*");
    match weekday {
        Some(weekday) => {
            connector.change("[table]", "historic_tail_weekday", weekday);
            connector.change("[table]", "historic_tail_recent_rows", 700);
        }
        None => {
            connector.remove("[table]", "historic_tail_weekday");
            connector.remove("[table]", "historic_tail_recent_rows");
        }
    }
}

async fn held(world: &World) -> Rows {
    postgres(&world.client, &ROWS.replace("TABLE", "t")).await
}

fn id(row: &[Option<String>]) -> i64 {
    row[0].as_deref().unwrap().parse().unwrap()
}

/// Some of everything, in the tail and in the window; and a row that moves from the one into the other.
async fn change(world: &World, day: i64) {
    world
        .sql(&format!(
            "INSERT INTO t SELECT 10000 * ({day} + 1) + i, {day}, md5(i::text) FROM generate_series(1, 300) i;
            UPDATE t SET n = {day} WHERE id % 50 IN (0, {day}); DELETE FROM t WHERE id % 97 = {day};
            UPDATE t SET id = 500000 + {day}, a = 'moved' WHERE id = 20 + {day}"
        ))
        .await;
}

/// What a day's manifest says of the tail: the day that it is as of, and its last key.
fn tail_of(connector: &Connector, day: usize) -> Option<(String, i64)> {
    let manifest = Connector::json(&connector.snapshot("t", DAYS[day]).join("_manifest.json"));
    let tail = manifest.get("historic_tail")?;
    let files = tail["files"].as_u64().unwrap() as usize;
    for (at, file) in manifest["files"].as_array().unwrap().iter().enumerate() {
        let as_of = file.get("as_of").map(|as_of| as_of["ds"].as_str().unwrap());
        assert_eq!(as_of, (at < files).then(|| tail["as_of"]["ds"].as_str().unwrap()), "{file}");
    }
    let last: Vec<i64> =
        serde_json::from_str(manifest["files"][files - 1]["max_key"].as_str().unwrap()).unwrap();
    Some((tail["as_of"]["ds"].as_str().unwrap().to_owned(), last[0]))
}

/// The day is the table at its cut above the tail's last key, and up to that the table at the tail's cut.
fn assert_day(world: &World, day: usize, tail: &Rows, now: &Rows) {
    let (as_of, bound) = tail_of(&world.connector, day).expect("the day has a tail");
    assert_eq!(as_of, DAYS[0]);
    let before = tail.iter().filter(|row| id(row) <= bound);
    let expected: Rows = before.chain(now.iter().filter(|row| id(row) > bound)).cloned().collect();
    assert!((3000..4000).contains(&bound), "{bound}");
    let found = duckdb(&world.connector, DAYS[day], &ROWS.replace("TABLE", "{t}"));
    assert!(found == expected, "{} is not what its manifest says", DAYS[day]);
}

fn deferred(running: &Running) -> Option<f64> {
    let (_, metrics) = running.get("/metrics")?;
    let value =
        |line: &str| line.strip_prefix("tidemark_table_deferred_changes{table=\"public.t\"} ")?.parse().ok();
    metrics.lines().find_map(value)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_stays_as_of_its_cut_until_its_weekday_also_over_kills_and_then_the_day_is_the_table() {
    let mut world = World::new(TABLE).await;
    world.connector.change("lake", "part_bytes_max", 16 << 10);
    rule(&mut world.connector, Some("wednesday"));
    let mut running = world.connector.start_ready("run").await;
    change(&world, 0).await;
    let first = held(&world).await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", ROWS).await;
    assert_eq!(tail_of(&world.connector, 0), None);

    change(&world, 1).await;
    let now = held(&world).await;
    world.end_day(1, &running).await;
    assert_day(&world, 1, &first, &now);
    assert!(deferred(&running).unwrap() > 50.0);
    let status = String::from_utf8(running.command(&["status"]).stdout).unwrap();
    assert!(status.contains(&format!("tail of {}", DAYS[0])), "{status}");

    let mut all = published(&world.connector, "2036");
    for (day, after_ms) in [(2, 5), (3, 40)] {
        change(&world, day as i64).await;
        let now = held(&world).await;
        world.cut_day(day, &running);
        // Somewhere between the cut and the published day; where exactly is the machine's choice.
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        running.kill();
        running = world.connector.start_ready("run").await;
        world.connector.wait_published(DAYS[day]).await;
        assert_day(&world, day, &first, &now);
        let after = published(&world.connector, "2036");
        for (name, hash) in &all {
            assert_eq!(after.get(name), Some(hash), "{name} was changed or removed");
        }
        all = after;
    }

    change(&world, 4).await;
    world.end_day(4, &running).await;
    world.assert_same(4, "t", ROWS).await;
    assert_eq!(tail_of(&world.connector, 4), None);
    let manifest = Connector::json(&world.connector.snapshot("t", DAYS[4]).join("_manifest.json"));
    assert!(manifest["changes"]["deferred_before"].as_u64().unwrap() > 150, "{}", manifest["changes"]);
    for day in DAYS {
        let output = running.command(&["verify", "--ds", day]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "verify {day}: {told}");
        let has_tail = DAYS[1..4].contains(&day);
        assert_eq!(
            told.contains(&format!("its historic tail is as of {}", DAYS[0])),
            has_tail,
            "{day}: {told}"
        );
        let whole = Connector::json(&world.connector.day(day));
        let as_of = whole["tables"][0].get("historic_tail").and_then(|as_of| as_of["ds"].as_str());
        assert_eq!(as_of, has_tail.then_some(DAYS[0]), "{whole}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_has_deferred_when_it_is_dropped_is_told() {
    let mut world = World::new(&format!("{TABLE}; CREATE TABLE other (id int PRIMARY KEY)")).await;
    world.connector.change("lake", "part_bytes_max", 16 << 10);
    rule(&mut world.connector, Some("friday"));
    let running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    change(&world, 1).await;
    world.end_day(1, &running).await;
    assert!(tail_of(&world.connector, 1).is_some());
    world.sql("DROP TABLE t").await;
    world.end_day(2, &running).await;
    wait_until(PATIENCE, "it is told what was deferred", async || {
        running.output().contains("changes of its historic tail were deferred")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_is_switched_off_or_met_by_a_truncate_is_taken_with_the_next_day() {
    let mut world = World::new(TABLE).await;
    world.connector.change("lake", "part_bytes_max", 16 << 10);
    rule(&mut world.connector, Some("friday"));
    let mut running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    change(&world, 1).await;
    world.end_day(1, &running).await;
    assert!(tail_of(&world.connector, 1).is_some());

    assert!(running.terminate().await.success());
    rule(&mut world.connector, None);
    let mut running = world.connector.start_ready("run").await;
    change(&world, 2).await;
    world.end_day(2, &running).await;
    world.assert_same(2, "t", ROWS).await;

    assert!(running.terminate().await.success());
    rule(&mut world.connector, Some("friday"));
    let running = world.connector.start_ready("run").await;
    change(&world, 3).await;
    world.end_day(3, &running).await;
    assert!(tail_of(&world.connector, 3).is_some());
    world.sql("TRUNCATE t; INSERT INTO t VALUES (1, 1, 'new'), (70000, 2, 'new')").await;
    world.end_day(4, &running).await;
    world.assert_same(4, "t", ROWS).await;
    assert_eq!(tail_of(&world.connector, 4), None);
}
