//! SIGTERM.

use tidemark::change::{Lsn, Position};

use super::{TABLE, assert_each_row_once, insert, walsender};
use crate::support::lake::value;
use crate::support::{Connector, Postgres, Record, wait_until};

async fn confirmed(client: &tokio_postgres::Client) -> Lsn {
    let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    value(client, sql).await.parse().unwrap()
}

fn commit_lsn(record: &Record) -> Lsn {
    record.position.parse::<Position>().unwrap().commit_lsn
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
    insert(&client, 11, 30).await;
    let end: Lsn = value(&client, "SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
    wait_until(crate::support::PATIENCE, "the transaction has been read", async || {
        let sent = "SELECT write_lsn FROM pg_stat_replication";
        value(&client, sent).await.parse::<Lsn>().is_ok_and(|lsn| lsn >= end)
    })
    .await;
    assert!(running.terminate().await.success(), "exit code 0");
    assert_eq!(walsender(&client).await, None, "the slot is free as soon as the process is gone");
    assert!(confirmed(&client).await >= end, "{} < {end}", confirmed(&client).await);
    assert_each_row_once(&connector, 30).await;

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
