//! WAL that the slot keeps at the source: told early, to whom it belongs, and given up where that was asked for.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use super::{MB, TABLE, assert_each_row_once, insert, settle_wal, wal_kept};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Running, wait_until};

/// The watch looks every ten seconds while all is well.
const LOOKS: Duration = Duration::from_secs(120);

/// Another database, which writes `megabytes` of WAL that nobody here waits for.
async fn noise(server: &Postgres, megabytes: u64) {
    let client = server.connect().await;
    if postgres(&client, "SELECT FROM pg_database WHERE datname = 'busy'").await.is_empty() {
        client.batch_execute("CREATE DATABASE busy").await.unwrap();
    }
    let busy = server.connect_to("busy").await;
    busy.batch_execute("CREATE TABLE IF NOT EXISTS noise (pad text)").await.unwrap();
    let before = value(&client, "SELECT pg_current_wal_lsn()").await;
    let written = format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')::bigint");
    let rows = "INSERT INTO noise SELECT repeat(md5(i::text), 60) FROM generate_series(1, 2000) i";
    while value(&client, &written).await.parse::<u64>().unwrap() < megabytes * MB {
        busy.batch_execute(rows).await.unwrap();
    }
}

fn source_reasons(process: &Running) -> Vec<Value> {
    let reasons = process.health().1["reasons"].as_array().unwrap().clone();
    reasons.into_iter().filter(|reason| reason["subject"] == "source").collect()
}

fn says(process: &Running, text: &str) -> bool {
    source_reasons(process).iter().any(|reason| reason["message"].as_str().unwrap().contains(text))
}

/// A writer of our own holds the log's file: a log that is dead, and neither away nor full.
fn hold_log(connector: &Connector) -> rusqlite::Connection {
    let lock = rusqlite::Connection::open(connector.state().join("log.db")).unwrap();
    lock.busy_timeout(Duration::from_secs(10)).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    lock
}

async fn slots(client: &Client) -> u64 {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    value(client, sql).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_kept_for_a_dead_log_is_told_early_by_the_standby_too_and_kept_where_nothing_else_was_asked_for()
{
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url()).set("source", "retained_wal_bytes_max", 100 * MB).set(
        "source",
        "retained_wal_percent_warn",
        40,
    );
    let running = connector.start_ready("capture").await;
    let standby = connector.start_ready("capture").await;
    let lock = hold_log(&connector);
    insert(&client, 11, 20).await;
    noise(&server, 45).await;
    for process in [&running, &standby] {
        wait_until(LOOKS, "it is told at 40 %", async || {
            says(process, "% of [source] retained_wal_bytes_max")
        })
        .await;
    }
    let early = source_reasons(&standby);
    assert_eq!((early[0]["severity"].as_str(), standby.health().0), (Some("watch"), 200), "{early:?}");
    noise(&server, 70).await;
    for process in [&running, &standby] {
        wait_until(LOOKS, "a person must look beyond the limit", async || {
            let (status, health) = process.health();
            let retained = health["source"]["slot_retained_bytes"].as_u64();
            // It is told before, too.
            status == 503 && retained >= Some(100 * MB) && says(process, "it is kept beyond that, too")
        })
        .await;
    }
    let (_, health) = standby.health();
    let source = &health["source"];
    assert!(source["slot_retained_bytes"].as_u64().unwrap() >= 100 * MB, "{source}");
    assert!(source["slot_lag_bytes"].as_u64().unwrap() >= 100 * MB, "{source}");
    assert_eq!(source["thresholds"]["retained_bytes_max"], 100 * MB, "{source}");
    let metrics = running.get("/metrics").unwrap().1;
    for name in [
        "slot_lag_bytes",
        "slot_lag_seconds",
        "retained_wal_limit_bytes",
        "slot_wal_status{status=\"extended\"}",
    ] {
        assert!(metrics.contains(&format!("tidemark_source_{name}")), "{name} is no metric");
    }
    assert_eq!(slots(&client).await, 1);

    lock.execute_batch("ROLLBACK").unwrap();
    assert_each_row_once(&connector, 20).await;
    settle_wal(&client, 8 * MB).await;
    for process in [&running, &standby] {
        wait_until(LOOKS, "all is well again", async || process.health().1["status"] == "ok").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_keeps_too_much_is_dropped_where_that_was_asked_for_and_the_range_is_named() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url()).set("source", "retained_wal_bytes_max", 50 * MB).set(
        "source",
        "retained_wal_action",
        "drop_slot",
    );
    let mut running = connector.start_ready("capture").await;
    connector.wait_for_records("t", 10).await;
    let lock = hold_log(&connector);
    insert(&client, 11, 20).await;
    noise(&server, 60).await;
    wait_until(LOOKS, "the slot is dropped", async || slots(&client).await == 0).await;
    wait_until(LOOKS, "health says so", async || {
        let (code, health) = running.health();
        code == 503 && health["components"]["slot"]["state"] == "failed"
    })
    .await;
    let (_, health) = running.health();
    let told = &health["components"]["slot"];
    assert!(told["reason"].as_str().unwrap().contains("changes from 0/"), "{told}");
    assert!(running.output().contains("given up to save the source's disk"), "{}", running.output());
    // The disk is let go of.
    client.batch_execute("CHECKPOINT").await.unwrap();

    // With the log back, capture names what is lost, and does not begin anew.
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(running.ended().await.code(), Some(1));
    let said = running.output();
    assert!(said.contains("does not exist any more") && said.contains("cannot be had"), "{said}");
    assert_eq!(slots(&client).await, 0, "a new slot was made behind the gap");
    // Given up as it was told, it ends with whole tables.
    let (_, rest) = said.split_once("tidemark accept-gap ").expect("the command is told");
    let range: String = rest.chars().take_while(|c| !c.is_whitespace() && *c != '`').collect();
    let accepted = connector.command(&["accept-gap", &range]);
    assert!(accepted.status.success(), "{range}: {}", String::from_utf8_lossy(&accepted.stderr));
    let running = connector.start_ready("run").await;
    wait_until(PATIENCE, "the table is whole again", async || {
        running.health().1["tables"]["public.t"]["lacking"].is_null()
            && running.output().contains("copied: the next cut takes it")
    })
    .await;
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let rows = duckdb(&connector, &ds, "SELECT count(*), min(id), max(id) FROM {t}");
    assert_eq!(rows, [[Some("20".to_owned()), Some("1".to_owned()), Some("20".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_a_prepared_transaction_needs_is_kept_and_told_by_name() {
    let server = Postgres::builder().set("max_slot_wal_keep_size", "200MB").start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("capture").await;
    // In no table of ours: the server keeps WAL of every transaction that was open, whatever its database.
    noise(&server, 1).await;
    let busy = server.connect_to("busy").await;
    busy.batch_execute("BEGIN; INSERT INTO noise VALUES ('x'); PREPARE TRANSACTION 'forgotten'")
        .await
        .unwrap();
    noise(&server, 120).await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    assert!(
        wal_kept(&client).await >= 64 * MB,
        "an open transaction does not keep WAL: say so in the README"
    );
    wait_until(LOOKS, "it is told for whom the WAL is kept", async || {
        says(&running, "It is kept for the prepared transaction 'forgotten' of database busy")
    })
    .await;
    insert(&client, 11, 20).await;
    assert_each_row_once(&connector, 20).await;
    busy.batch_execute("ROLLBACK PREPARED 'forgotten'").await.unwrap();
    settle_wal(&client, 8 * MB).await;
    wait_until(LOOKS, "all is well again", async || running.health().1["status"] == "ok").await;
}
