//! Much at once.

use crate::support::lake::{duckdb, value};
use crate::support::{Connector, Postgres, wait_until};
use crate::{MB, TABLE, insert};

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_any_size_passes_in_bounded_memory() {
    const ROWS: u64 = 300_000;
    let server = Postgres::builder().set("logical_decoding_work_mem", "64MB").start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b numeric(12,2), c text)")
        .await
        .unwrap();
    let connector = Connector::new(&server.url());
    let capture = connector.start_ready("capture").await;
    let idle = capture.memory("VmHWM");
    let sql =
        format!("INSERT INTO t SELECT i, i % 7, i / 100.0, md5(i::text) FROM generate_series(1, {ROWS}) i");
    client.batch_execute(&sql).await.unwrap();
    connector.wait_for_records("t", ROWS).await;
    let peak = capture.memory("VmHWM");
    eprintln!("one transaction of {ROWS} rows: peak RSS {} MB, idle {} MB", peak / MB, idle / MB);
    assert!(peak < 150 * MB, "{} MB", peak / MB);
    let records = connector.table_records("t").await;
    assert!(records.iter().map(|r| r.value["after"]["id"].as_u64().unwrap()).eq(1..=ROWS));
    let commits: std::collections::BTreeSet<_> =
        records.iter().map(|r| r.position.rsplit_once('/').unwrap().0.to_owned()).collect();
    assert_eq!(commits.len(), 1, "one transaction, one commit LSN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_50_mb_passes_and_disturbs_nothing() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("CREATE TABLE u (id int PRIMARY KEY)").await.unwrap();
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    insert(&client, 1, 100).await;
    client
        .batch_execute(
            "INSERT INTO t SELECT 101, string_agg(md5(i::text), '') FROM generate_series(1, 50 << 15) i;
             INSERT INTO u VALUES (1)",
        )
        .await
        .unwrap();
    insert(&client, 102, 200).await;
    connector.wait_for_records("t", 200).await;
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    eprintln!("a value of 50 MB: peak RSS {} MB", running.memory("VmHWM") / MB);

    let sql = "SELECT id, length(pad), md5(pad) FROM TABLE ORDER BY id";
    let expected = crate::support::lake::postgres(&client, &sql.replace("TABLE", "t")).await;
    assert_eq!(duckdb(&connector, &ds, &sql.replace("TABLE", "{t}")), expected);
    assert_eq!(duckdb(&connector, &ds, "SELECT id FROM {u}"), [[Some("1".to_owned())]]);
    wait_until(crate::support::PATIENCE, "health is well", async || running.health().1["status"] == "ok")
        .await;
}
