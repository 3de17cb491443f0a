//! Objects keep their bytes.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::{DAYS, World};
use crate::support::lake::{hashes, published};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, n numeric(10,2));
    INSERT INTO t SELECT i, md5(i::text), i / 100.0 FROM generate_series(1, 5000) i";
const ROWS: &str = "SELECT id, a, n FROM TABLE ORDER BY id";

/// Everything that is there still has the bytes it had before.
fn assert_unchanged(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (name, hash) in before {
        assert_eq!(after.get(name), Some(hash), "{name} was changed or removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_day_keeps_its_bytes_over_restarts_later_days_and_kills_while_publishing() {
    let mut world = World::new(TABLE).await;
    let mut running = world.connector.start_ready("run").await;
    world.sql("UPDATE t SET a = 'x' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0").await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", ROWS).await;
    let first = published(&world.connector, DAYS[0]);
    assert!(first.len() >= 4, "{first:?}");

    assert!(running.terminate().await.success());
    let mut running = world.connector.start_ready("run").await;
    world.sql("INSERT INTO t SELECT i, 'second day', 1 FROM generate_series(6001, 7000) i").await;
    world.end_day(1, &running).await;
    assert_unchanged(&first, &published(&world.connector, DAYS[0]));
    let mut all = published(&world.connector, "2036");

    for (day, after_ms) in [(2, 3), (3, 25)] {
        world.sql("UPDATE t SET n = n + 1 WHERE id % 3 = 0").await;
        world.cut_day(day, &running);
        // Somewhere between the cut and the published day; where exactly is the machine's choice.
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        running.kill();
        running = world.connector.start_ready("run").await;
        world.connector.wait_published(DAYS[day]).await;
        world.assert_same(day, "t", ROWS).await;
        let now = published(&world.connector, "2036");
        assert_unchanged(&all, &now);
        all = now;
    }
    for day in &DAYS[..4] {
        let output = running.command(&["verify", "--ds", day]);
        assert!(output.status.success(), "verify {day}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_whose_manifest_is_gone_is_made_again_with_the_same_bytes_and_leftovers_go() {
    let mut world = World::new(TABLE).await;
    let mut running = world.connector.start_ready("run").await;
    world.sql("UPDATE t SET a = 'x' WHERE id % 7 = 0").await;
    world.end_day(0, &running).await;
    let all = hashes(&world.connector.lake());
    assert!(running.terminate().await.success());

    // An attempt that got as far as its parts, beside what a put that was cut off leaves.
    let folder = world.connector.snapshot("t", DAYS[0]);
    fs::remove_file(folder.join("_manifest.json")).unwrap();
    fs::remove_file(folder.join("_SUCCESS")).unwrap();
    fs::remove_file(world.connector.day(DAYS[0])).unwrap();
    fs::write(folder.join("part-00007.parquet"), "left by an attempt").unwrap();
    fs::write(folder.join("part-00000.parquet#1"), "half a file").unwrap();
    let running = world.connector.start_ready("run").await;
    world.connector.wait_published(DAYS[0]).await;
    assert_eq!(hashes(&world.connector.lake()), all);
    world.assert_same(0, "t", ROWS).await;
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_is_written_and_read_back_by_duckdb_and_pandas() {
    let mut world = World::new(TABLE).await;
    world.sql("INSERT INTO t VALUES (0, E'a \"quoted\", text\\nof two lines', NULL), (-1, '', -0.01), (-2, NULL, 0)").await;
    world.connector.change("lake", "format", "csv");
    let running = world.connector.start_ready("run").await;
    world.sql("UPDATE t SET a = 'x' WHERE id % 7 = 1; DELETE FROM t WHERE id = 12").await;
    world.end_day(0, &running).await;
    world.assert_same(0, "t", "SELECT id::int AS id, nullif(a, '') AS a, n FROM TABLE ORDER BY 1").await;

    let folder = world.connector.snapshot("t", DAYS[0]);
    let script = "import glob, sys, pandas
frame = pandas.concat(pandas.read_csv(file) for file in sorted(glob.glob(sys.argv[1] + '/*.csv.gz')))
print(len(frame), round(frame.n.sum(), 2), int(frame.n.isna().sum()), repr(frame.a[frame.id == 0].iloc[0]))";
    let output = std::process::Command::new(crate::support::lake::python())
        .args(["-c", script])
        .arg(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sums = "SELECT count(*) || ' ' || sum(n) || ' ' || count(*) FILTER (WHERE n IS NULL) FROM t";
    let expected = crate::support::lake::value(&world.client, sums).await;
    let seen = String::from_utf8(output.stdout).unwrap();
    assert_eq!(seen.trim(), format!("{expected} 'a \"quoted\", text\\nof two lines'"));
}
