//! The change history as its readers see it, by pyarrow: an hour is one file, in the order of the key, however short memory
//! was in it, whoever was killed, and whatever columns came; and what it comes to is what Postgres has.

use std::path::Path;
use std::process::Command;

use crate::support::clock::Clock;
use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, python, value};
use crate::support::{Connector, NAME, PATIENCE, Postgres, wait_until};
use jiff::{Timestamp, ToSpan};
use serde_json::Value;
use tokio_postgres::Client;

const TABLES: [&str; 8] = ["t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"];

fn read(connector: &Connector, table: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/change_history/read.py");
    let folder = connector.lake().join(format!("changes/{NAME}/public.{table}"));
    let output = Command::new(python()).arg(script).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is written of change files before they end.
fn pieces(connector: &Connector) -> usize {
    let files = |table: &&str| {
        let folder = connector.lake().join(format!("changes/{NAME}/_pieces/public.{table}"));
        std::fs::read_dir(folder).into_iter().flatten().flatten().count()
    };
    TABLES.iter().map(files).sum()
}

async fn run_sql(client: &Client, sql: &str) {
    for table in TABLES {
        client.batch_execute(&sql.replace("{t}", table)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_is_one_file_by_key_however_short_memory_was_and_whatever_columns_came() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    run_sql(&client, "CREATE TABLE {t} (id int PRIMARY KEY, n int, large text)").await;
    let days = days(&client).await;
    // A file of each fits into memory, and all of them together do not.
    let mut connector = Connector::new(&server.url()).set("lake", "memory_bytes_max", 32 << 20).set(
        "lake",
        "part_bytes_max",
        8 << 20,
    );
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    let inserted = "INSERT INTO {t} SELECT i * 7919 % 60, i, repeat(md5(random()::text), 2000) FROM generate_series(0, 59) i;
         UPDATE {t} SET n = -n WHERE id % 5 = 0; DELETE FROM {t} WHERE id % 7 = 0";
    run_sql(&client, inserted).await;
    wait_until(PATIENCE, "something is written early", async || pieces(&connector) > 0).await;

    running.kill();
    run_sql(
        &client,
        "UPDATE {t} SET n = n + 1 WHERE id % 3 = 0; ALTER TABLE {t} ADD COLUMN came text DEFAULT 'then';
         ALTER TABLE {t} ALTER COLUMN n TYPE bigint; UPDATE {t} SET n = 5000000000, came = 'now' WHERE id % 11 = 0;
         INSERT INTO {t} VALUES (1000, 1, 'small', NULL)",
    )
    .await;
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    assert_eq!(pieces(&connector), 0, "they are in change files now");
    for table in TABLES {
        let found = read(&connector, table);
        assert_eq!(found["several"], serde_json::json!({}), "{table}");
        assert_eq!(found["unsorted"], serde_json::json!([]), "{table}");
        let sql = format!("SELECT to_jsonb(t) FROM {table} t ORDER BY id");
        let held: Vec<Value> = postgres(&client, &sql)
            .await
            .iter()
            .map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap())
            .collect();
        let rows = found["rows"].as_array().unwrap();
        assert_eq!(rows.len(), held.len(), "{table}");
        let other = rows.iter().zip(&held).find(|(row, held)| row != held);
        assert!(
            other.is_none(),
            "{table}: {} is {} in Postgres",
            other.unwrap().0["id"],
            other.unwrap().1["id"]
        );
    }
    assert!(running.terminate().await.success(), "{}", running.output());
}

/// A table that is written to no more: its last changes do not wait for the end of the day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_that_is_over_is_a_file_although_no_record_comes() {
    let folder = crate::support::clock_folder();
    // Days that end hours from now by our clock do so by the server's, too; and the log keeps what is younger than a day.
    let start = Timestamp::now() - 23.hours();
    let clock = Clock::new(folder.path(), start, "00:00".parse().unwrap(), "UTC");
    let builder = clock.environment().iter().fold(Postgres::builder(), |b, (name, value)| b.env(name, value));
    let server = builder.start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE quiet (id int PRIMARY KEY, note text)").await.unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url());
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    client
        .batch_execute(
            "INSERT INTO quiet VALUES (1, 'one'), (2, 'two'), (3, 'three'); DELETE FROM quiet WHERE id = 2",
        )
        .await
        .unwrap();
    connector.wait_for_records("quiet", 4).await;
    let covered = || {
        let folder = connector.lake().join(format!("changes/{NAME}/public.quiet"));
        let names = crate::support::lake::hashes(&folder).into_keys();
        let name = |path: String| {
            Some(path.strip_suffix(".parquet")?.rsplit_once('-')?.1.parse::<u64>().unwrap() + 1)
        };
        names.filter_map(name).max()
    };
    wait_until(PATIENCE, "the hour is a file", async || covered() == Some(connector.end("quiet").await))
        .await;
    let found = read(&connector, "quiet");
    let ids: Vec<_> =
        found["rows"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()).collect();
    assert_eq!((ids, &found["several"]), (vec![1, 3], &serde_json::json!({})));

    client.batch_execute("UPDATE quiet SET note = 'late' WHERE id = 3").await.unwrap();
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    let sql = "SELECT string_agg(id || note, ',' ORDER BY id) FROM {quiet}";
    let held = value(&client, &sql.replace("{quiet}", "quiet")).await;
    assert_eq!(duckdb(&connector, &days[0], sql), [[Some(held)]]);
    assert!(running.terminate().await.success(), "{}", running.output());
}
