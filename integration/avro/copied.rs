//! A copy that stands between changes of the table's shape: each row is read by its own.

use super::*;
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{PATIENCE, Postgres, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_across_changes_of_shape_makes_the_day_that_postgres_has() {
    let registry = shared().await;
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE shaped (id int PRIMARY KEY, note text, amount int);
             INSERT INTO shaped SELECT i, 'first', i FROM generate_series(1, 3000) i",
        )
        .await
        .unwrap();
    let connector = connector(&server.url(), registry);
    let running = connector.start_ready("run").await;
    // The copy is asked for while a statement is in progress, and is done behind it.
    let other = server.connect().await;
    other
        .batch_execute(
            "BEGIN; ALTER TABLE shaped ADD extra int DEFAULT 5; UPDATE shaped SET extra = id WHERE id <= 10",
        )
        .await
        .unwrap();
    let asked = running.command(&["backfill", "public.shaped"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    other.batch_execute("COMMIT").await.unwrap();
    client.batch_execute("UPDATE shaped SET note = 'while it is copied' WHERE id % 3 = 0").await.unwrap();
    wait_until(PATIENCE, "the copy is whole", async || running.output().contains("the next cut takes it"))
        .await;
    for statement in [
        "ALTER TABLE shaped ADD late text DEFAULT 'late'; UPDATE shaped SET late = 'updated' WHERE id % 5 = 0",
        "ALTER TABLE shaped DROP amount; INSERT INTO shaped VALUES (3001, 'last', 1, 'new')",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let sql = "SELECT id, note, extra, late FROM TABLE ORDER BY id";
    let expected = postgres(&client, &sql.replace("TABLE", "shaped")).await;
    assert_eq!(duckdb(&connector, &ds, &sql.replace("TABLE", "{shaped}")), expected);
    let copied = read_by_fastavro(raw(&connector, &format!("{NAME}.backfill-public.shaped")).await, registry);
    let rows: Vec<_> = copied.iter().map(|record| &record["value"]["after"]).collect();
    assert_eq!(rows.len(), 3000);
    assert!(
        rows.iter().all(|row| row["extra"]
            == if row["id"].as_i64().unwrap() <= 10 { row["id"].clone() } else { json!(5) })
    );
}
