//! SIGTERM.

use tidemark::change::{Lsn, Position};

use super::{TABLE, assert_each_row_once, insert, walsender};
use crate::support::lake::value;
use crate::support::{Connector, PATIENCE, Postgres, Record, Running, wait_until};

/// What the slot has confirmed.
pub(super) async fn confirmed(client: &tokio_postgres::Client) -> Lsn {
    let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    value(client, sql).await.parse().unwrap()
}

/// Where the commit record of a change's transaction begins.
pub(super) fn commit_lsn(record: &Record) -> Lsn {
    record.position.parse::<Position>().unwrap().commit_lsn
}

/// The end of the last transaction that a process has read.
fn received(running: &Running) -> Lsn {
    let (_, metrics) = running.get("/metrics").unwrap_or_default();
    let line = metrics.lines().find(|line| line.starts_with("tidemark_source_received_lsn_bytes "));
    Lsn(line.map_or(0, |line| line.split_whitespace().last().unwrap().parse::<f64>().unwrap() as u64))
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_acknowledges_what_was_read_and_gives_the_slot_back() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    // Appends linger long, so that there is something to drain.
    let connector = Connector::new(&server.url()).set("log", "linger_ms", 10_000);
    let mut running = connector.start_ready("run").await;
    client.batch_execute("BEGIN").await.unwrap();
    insert(&client, 11, 30).await;
    let written: Lsn = value(&client, "SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    // By its own account: what the server has sent may not have been read yet, and what it was told comes too late.
    wait_until(PATIENCE, "the transaction has been read", async || received(&running) > written).await;
    assert!(running.terminate().await.success(), "exit code 0");
    assert_eq!(walsender(&client).await, None, "the slot is free as soon as the process is gone");
    assert_each_row_once(&connector, 30).await;
    let last = commit_lsn(connector.table_records("t").await.last().unwrap());
    assert!(confirmed(&client).await > last, "{} <= {last}", confirmed(&client).await);

    let _running = connector.start_ready("run").await;
    insert(&client, 31, 40).await;
    assert_each_row_once(&connector, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_midst_of_traffic_acknowledges_exactly_what_the_log_holds() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 1).await;
    let connector = Connector::new(&server.url());
    let writer = server.connect().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let traffic = tokio::spawn(async move {
        let mut last = 1;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            insert(&writer, last + 1, last + 5).await;
            last += 5;
            tokio::time::sleep(std::time::Duration::from_millis(4)).await;
        }
        last
    });
    for _ in 0..4 {
        let mut running = connector.start_ready("run").await;
        let before = connector.table_records("t").await.len() as u64;
        connector.wait_for_records("t", before + 100).await;
        assert!(running.terminate().await.success());
        assert_eq!(walsender(&client).await, None);
        let confirmed = confirmed(&client).await;
        let records = connector.table_records("t").await;
        let commits: std::collections::BTreeSet<_> = records.iter().map(commit_lsn).collect();
        // The last transaction may be there without its end: then the server has to send it again.
        let last = *commits.iter().rev().nth(1).unwrap();
        assert!(last < confirmed, "the log holds {last}, which was not acknowledged ({confirmed})");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let last = traffic.await.unwrap();
    let _running = connector.start_ready("run").await;
    assert_each_row_once(&connector, last).await;
}
