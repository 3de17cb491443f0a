//! The source is safe whatever happens downstream: keepalives, memory, WAL behind the slot, no trace in the
//! user's tables; and it is let go of in order. Through the real binary, against a real server.

mod large;
mod least;
mod leaving;
mod network;
mod quiet;
mod retained;
mod stuck;

use std::time::Duration;

use crate::support::lake::value;
use crate::support::{Connector, PATIENCE, wait_until};
use tokio_postgres::Client;

const MB: u64 = 1 << 20;

/// A table whose rows are about 2 kB.
const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, pad text NOT NULL)";

/// Inserts rows `from..=to` as one transaction.
async fn insert(client: &Client, from: u64, to: u64) {
    let sql = "INSERT INTO t SELECT i, repeat(md5(i::text), 60) FROM generate_series($1::bigint, $2) i";
    client.execute(sql, &[&(from as i64), &(to as i64)]).await.unwrap();
}

/// The server process which serves the slot; none when nobody reads it.
async fn walsender(client: &Client) -> Option<i32> {
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    client.query_opt(sql, &[]).await.unwrap().and_then(|row| row.get(0))
}

/// Bytes of WAL which the slot keeps the server from removing.
async fn wal_kept(client: &Client) -> u64 {
    let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots
               WHERE slot_name = 'tidemark_shop'";
    value(client, sql).await.parse().unwrap()
}

/// Waits until the slot keeps at most so much, which takes a running-xacts record: the server writes one every
/// 15 s, and at each checkpoint. Gives what it keeps then.
async fn settle_wal(client: &Client, bytes_max: u64) -> u64 {
    wait_until(PATIENCE, &format!("the slot keeps at most {bytes_max} bytes"), async || {
        client.batch_execute("CHECKPOINT").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        wal_kept(client).await <= bytes_max
    })
    .await;
    wal_kept(client).await
}

/// The log holds rows `1..=last`, each once and in order.
async fn assert_each_row_once(connector: &Connector, last: u64) {
    connector.wait_for_records("t", last).await;
    let records = connector.table_records("t").await;
    let ids: Vec<u64> = records.iter().map(|r| r.value["after"]["id"].as_u64().unwrap()).collect();
    assert!(ids.iter().copied().eq(1..=last), "{} records, {:?} … {:?}", ids.len(), ids.first(), ids.last());
}
