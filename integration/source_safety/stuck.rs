//! Something downstream does not move.

use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use super::{MB, TABLE, assert_each_row_once, insert, settle_wal, walsender};
use crate::support::{Connector, PATIENCE, Postgres, wait_until};

const SENDER_TIMEOUT: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_log_costs_neither_the_connection_nor_memory_and_nothing_is_lost() {
    let server = Postgres::builder()
        .set("wal_sender_timeout", &format!("{}s", SENDER_TIMEOUT.as_secs()))
        .start()
        .await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    let sender = walsender(&client).await.expect("somebody reads the slot");

    let lock = rusqlite::Connection::open(connector.state().join("log.db")).unwrap();
    lock.busy_timeout(Duration::from_secs(10)).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (stuck, mut last, mut rss, mut told) = (Instant::now(), 10, 0, false);
    while stuck.elapsed() < 2 * SENDER_TIMEOUT || !told {
        assert!(stuck.elapsed() < PATIENCE, "not told: {:?}", running.health());
        if last < 30_000 {
            insert(&client, last + 1, last + 500).await;
            last += 500;
        }
        assert_eq!(walsender(&client).await, Some(sender), "the server has ended the stream");
        rss = rss.max(running.memory("VmRSS"));
        assert_eq!(running.get("/health/live").expect("/health/live answers").0, 200);
        let (_, health) = running.health();
        told |= health["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["subject"] == "log" && r["kind"] == "stuck");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("log stuck for {:?}: peak RSS {} MB", stuck.elapsed(), rss / MB);
    assert!(rss < 150 * MB, "{} MB", rss / MB);

    lock.execute_batch("ROLLBACK").unwrap();
    assert_each_row_once(&connector, last).await;
    assert_eq!(walsender(&client).await, Some(sender), "the stream went on as it was");
    wait_until(PATIENCE, "health is well again", async || running.health().1["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_cannot_be_written_holds_up_neither_capture_nor_the_servers_wal() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url()).set("lake", "stage_bytes_max", 1 << 20);
    let mut running = connector.start_ready("run").await;
    let lake = connector.lake();
    // At one go: what is written in between would make the folder anew.
    let away = lake.with_extension("away");
    let exchange = || renameat_with(CWD, &lake, CWD, &away, RenameFlags::EXCHANGE).unwrap();
    std::fs::write(&away, "a file stands where the lake was").unwrap();
    exchange();

    let mut last = 10;
    while last < 15_010 {
        insert(&client, last + 1, last + 500).await;
        last += 500;
    }
    assert_each_row_once(&connector, last).await;
    let kept = settle_wal(&client, 2 * MB).await;
    eprintln!("lake stuck: the slot keeps {kept} bytes, RSS {} MB", running.memory("VmRSS") / MB);
    wait_until(PATIENCE, "health tells of it", async || {
        let (code, health) = running.health();
        code == 503 && health["reasons"][0]["kind"] == "stuck"
    })
    .await;
    assert_eq!(running.get("/health/live").unwrap().0, 200);
    assert!(running.is_running());

    exchange();
    let ds = crate::support::lake::value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let rows = crate::support::lake::duckdb(&connector, &ds, "SELECT count(*), min(id), max(id) FROM {t}");
    assert_eq!(rows, [[Some(last.to_string()), Some("1".into()), Some(last.to_string())]]);
    wait_until(PATIENCE, "health is well again", async || running.health().1["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_hangs_holds_up_neither_capture_nor_leaving() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url());
    // Opening a FIFO waits until somebody writes to it: the disk which hangs.
    let day = connector.snapshot("t", "2099-01-01");
    std::fs::create_dir_all(&day).unwrap();
    let fifo = day.join("_manifest.json");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    let mut running = connector.start_ready("run").await;

    let mut last = 10;
    while last < 10_010 {
        insert(&client, last + 1, last + 500).await;
        last += 500;
    }
    assert_each_row_once(&connector, last).await;
    settle_wal(&client, 2 * MB).await;
    assert!(running.terminate().await.success(), "SIGTERM drains although the lake hangs");
    assert_eq!(walsender(&client).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deliver_process_that_stands_still_holds_up_nothing_and_goes_on() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url());
    let capture = connector.start_ready("capture").await;
    let deliver = connector.start_ready("deliver").await;
    deliver.signal(Signal::STOP);

    let mut last = 10;
    while last < 15_010 {
        insert(&client, last + 1, last + 500).await;
        last += 500;
    }
    assert_each_row_once(&connector, last).await;
    let kept = settle_wal(&client, 2 * MB).await;
    eprintln!("deliver stopped: the slot keeps {kept} bytes");
    let ds = crate::support::lake::value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    capture.cut(&ds);
    assert!(!connector.day(&ds).exists());

    deliver.signal(Signal::CONT);
    connector.wait_published(&ds).await;
    let rows = crate::support::lake::duckdb(&connector, &ds, "SELECT count(*), count(DISTINCT id) FROM {t}");
    assert_eq!(rows, [[Some(last.to_string()), Some(last.to_string())]]);
}
