//! A busy database: the cut lies between two transactions.
//!
//! The oracle is Postgres: `test_decoding` gives the transactions in the order of their commits, and
//! `pg_xact_commit_timestamp` the commit time of each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::civil::Date;
use tokio_postgres::Client;

use super::{BEFORE, World, day};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{PATIENCE, wait_until};

const SHOP: &str = "
    CREATE TABLE orders (id bigserial PRIMARY KEY, lines int NOT NULL, total int NOT NULL, paid bool NOT NULL DEFAULT false);
    CREATE TABLE order_lines (order_id bigint NOT NULL REFERENCES orders, line int, amount int NOT NULL, PRIMARY KEY (order_id, line));
    CREATE TABLE journal (id bigserial PRIMARY KEY, xid bigint NOT NULL DEFAULT txid_current())";

/// One order with its lines, an earlier one changed or deleted, and the journal's entry: one transaction.
const ORDER: &str = "
    BEGIN;
    WITH made AS (INSERT INTO orders (lines, total) VALUES (2, 30) RETURNING id)
        INSERT INTO order_lines SELECT id, line, line * 10 FROM made, generate_series(1, 2) line;
    INSERT INTO journal DEFAULT VALUES;
    COMMIT";
const CHANGE: &str = "
    BEGIN;
    WITH chosen AS (SELECT id FROM orders WHERE NOT paid ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED),
         paid AS (UPDATE orders SET paid = true, total = total + 5, lines = 3 WHERE id IN (SELECT id FROM chosen) RETURNING id)
        INSERT INTO order_lines SELECT id, 3, 5 FROM paid;
    INSERT INTO journal DEFAULT VALUES;
    COMMIT";

struct Traffic {
    stop: Arc<AtomicBool>,
    sessions: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    async fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sessions = Vec::new();
        for session in 0..3 {
            let (client, stop) = (world.server.connect().await, Arc::clone(&stop));
            sessions.push(tokio::spawn(async move {
                let mut turn = session;
                while !stop.load(Ordering::Relaxed) {
                    client.batch_execute(if turn % 3 == 0 { CHANGE } else { ORDER }).await.unwrap();
                    turn += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }));
        }
        Self { stop, sessions }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.unwrap();
        }
    }
}

/// The transactions before the first one that committed at or past the instant, in the order of commits.
async fn committed_before(client: &Client, instant: jiff::Timestamp) -> BTreeSet<String> {
    let sql = format!(
        "SELECT xid, (pg_xact_commit_timestamp(xid) < '{instant}')::text
         FROM pg_logical_slot_peek_changes('oracle', NULL, NULL) WHERE data LIKE 'COMMIT%'"
    );
    let commits = postgres(client, &sql).await;
    let before: BTreeSet<_> = commits
        .iter()
        .take_while(|row| row[1].as_deref() == Some("true"))
        .map(|row| row[0].clone().unwrap())
        .collect();
    assert!(before.len() < commits.len(), "traffic went on past {instant}");
    before
}

async fn assert_day_is_exact(world: &World, ds: Date) {
    let before = committed_before(&world.client, world.clock.end_of(ds)).await;
    let ds = ds.to_string();
    let rows = duckdb(&world.connector, &ds, "SELECT DISTINCT xid FROM {journal}");
    let held: BTreeSet<String> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
    let known = postgres(&world.client, "SELECT DISTINCT xid FROM journal").await;
    let expected: BTreeSet<String> =
        known.into_iter().map(|row| row[0].clone().unwrap()).filter(|xid| before.contains(xid)).collect();
    eprintln!("{ds}: {} transactions before the cut, {} held", expected.len(), held.len());
    assert!(expected.len() > 20, "{} transactions are no traffic", expected.len());
    assert_eq!(held, expected, "transactions in the snapshot of {ds}");
    // All tables at the same place: what holds in every state of the database holds here.
    let zero = |sql: &str| assert_eq!(duckdb(&world.connector, &ds, sql), [[Some("0".to_owned())]], "{sql}");
    zero("SELECT count(*) FROM {order_lines} l LEFT JOIN {orders} o ON o.id = l.order_id WHERE o.id IS NULL");
    zero(
        "SELECT count(*) FROM {orders} o LEFT JOIN (SELECT order_id, count(*) AS lines, sum(amount) AS total
             FROM {order_lines} GROUP BY 1) l ON l.order_id = o.id
         WHERE l.lines IS DISTINCT FROM o.lines OR l.total IS DISTINCT FROM o.total",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_database_is_cut_between_two_transactions_also_across_a_restart() {
    let mut world = World::new("00:00", "Asia/Dubai", Duration::from_secs(3600)).await;
    world.sql(SHOP).await;
    world.sql("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')").await;
    let end = world.clock.end_of(day(0));
    world.clock.set(end - BEFORE);
    let traffic = Traffic::start(&world).await;
    let mut running = world.start_before(end).await;
    world.connector.wait_published(&day(0).to_string()).await;

    // The next midnight passes while nothing runs; the one after it while the process drains and starts again.
    world.clock.set(world.clock.end_of(day(1)) - Duration::from_millis(800));
    running.kill();
    let clock = &world.clock;
    let passed = async |number| {
        let end = clock.end_of(day(number)) + Duration::from_millis(500);
        wait_until(PATIENCE, "midnight has passed", async || clock.now() > end).await;
    };
    passed(1).await;
    let mut running = world.connector.start_ready("run").await;
    world.connector.wait_published(&day(1).to_string()).await;

    world.clock.set(world.clock.end_of(day(2)) - Duration::from_millis(300));
    assert!(running.terminate().await.success());
    let running = world.connector.start_ready("run").await;
    world.connector.wait_published(&day(2).to_string()).await;
    traffic.stop().await;

    for number in 0..3 {
        assert_day_is_exact(&world, day(number)).await;
    }
    let cuts = world.cuts().await;
    assert_eq!(cuts.len(), 3, "one cut a day");
    let last: tidemark::change::Lsn =
        value(&world.client, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
    let lsns: Vec<tidemark::change::Lsn> =
        cuts.iter().map(|c| c["lsn"].as_str().unwrap().parse().unwrap()).collect();
    assert!(lsns.is_sorted() && lsns[2] < last, "{lsns:?}");
    drop(running);
}
