//! Tables copied again while the stream goes on: under writes, killed, and with a cut in between. The lake is made wrong
//! first, so that only the new copy can make it right. The oracle is Postgres itself.
//!
//! `TIDEMARK_TEST_SEED` replays what the writers do.

mod hung;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Replay, Running, open_log, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;
use tidemark::log::{Log, LogPartition};
use tokio_postgres::Client;

const TABLES: &str = "
    CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL, note text);
    ALTER TABLE big ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE calm (id int PRIMARY KEY, n int NOT NULL, note text);
    CREATE TABLE keyless (n int, note text);
    ALTER TABLE keyless REPLICA IDENTITY FULL;
    CREATE TABLE parts (id int PRIMARY KEY, n int NOT NULL, note text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1000) TO (10000000);
    INSERT INTO big SELECT i, 0, CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 100) ELSE md5(i::text) END FROM generate_series(1, 40000) i;
    INSERT INTO calm SELECT i, 0, 'calm' FROM generate_series(1, 100) i;
    INSERT INTO keyless SELECT i % 50, 'line' FROM generate_series(1, 1000) i;
    INSERT INTO parts SELECT i, 0, 'part' FROM generate_series(1, 3000) i;
    CREATE PUBLICATION tidemark_shop FOR TABLE big, calm, keyless, parts WITH (publish_via_partition_root = true)";

/// What the lake misses: rows are deleted and changed while nobody publishes it, for a moment and unseen.
const UNSEEN: [&str; 3] = [
    "ALTER PUBLICATION tidemark_shop SET (publish = 'truncate')",
    "DELETE FROM big WHERE id % 7 = 0; UPDATE big SET n = -1 WHERE id % 11 = 0;
     DELETE FROM keyless WHERE n < 5; INSERT INTO keyless VALUES (3, 'unseen'), (3, 'unseen');
     DELETE FROM parts WHERE id % 3 = 0",
    "ALTER PUBLICATION tidemark_shop SET (publish = 'insert, update, delete, truncate')",
];

async fn assert_equal(connector: &Connector, client: &Client, ds: &str, tables: &[&str]) {
    for table in tables {
        let sql = match *table {
            "keyless" => "SELECT n, note, count(*) FROM TABLE GROUP BY n, note ORDER BY n, note",
            _ => "SELECT id, n, md5(note) FROM TABLE ORDER BY id",
        };
        let expected = postgres(client, &sql.replace("TABLE", table)).await;
        let found = duckdb(connector, ds, &sql.replace("TABLE", &format!("{{{table}}}")));
        assert_eq!(found.len(), expected.len(), "rows of {table}");
        let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{table} on {ds}");
    }
}

/// Writes until it is told to stop: rows come, go, move to other keys, and keep large values.
async fn write(client: Client, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut next = 1_000_000;
    while !stop.load(Ordering::Relaxed) {
        let at = random.random_range(1..40_000);
        let table = ["big", "big", "parts", "calm"][random.random_range(0..4)];
        next += 10;
        let sql = match random.random_range(0..7) {
            0 => format!("UPDATE {table} SET n = n + 1 WHERE id BETWEEN {at} AND {at} + 60"),
            1 => format!("DELETE FROM {table} WHERE id BETWEEN {at} AND {at} + 5"),
            2 => format!("INSERT INTO {table} SELECT i, 1, 'new' FROM generate_series({next}, {next} + 4) i"),
            3 => format!(
                "UPDATE {table} SET id = {next} WHERE id = (SELECT min(id) FROM {table} WHERE id >= {at})"
            ),
            4 => format!(
                "UPDATE big SET id = {next}, n = 5 WHERE id = (SELECT min(id) FROM big WHERE id >= {at} AND length(note) > 2000)"
            ),
            5 => format!(
                "BEGIN; INSERT INTO keyless VALUES ({at} % 9, 'new'); DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE n = {at} % 50 LIMIT 2); COMMIT"
            ),
            _ => format!(
                "UPDATE keyless SET n = n + 1 WHERE ctid = (SELECT ctid FROM keyless WHERE n = {at} % 50 LIMIT 1)"
            ),
        };
        client.batch_execute(&sql).await.unwrap();
        // Rows that move between two rounds of a copy are rightly read again: they stay few.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn table<'a>(health: &'a Value, name: &str) -> &'a Value {
    &health["tables"][format!("public.{name}")]
}

async fn wait_copied(running: &Running, tables: &[&str]) {
    wait_until(PATIENCE, "the copies are whole", async || {
        let health = running.health().1;
        // One that was whole before this process began has no copy here.
        tables.iter().all(|name| table(&health, name)["backfill"]["done"] != false)
    })
    .await;
}

/// Waits until the log holds rows of a copy beyond that offset; gives its end.
async fn wait_rows(connector: &Connector, beyond: u64) -> u64 {
    let log = open_log(connector.state().join("log.db"));
    let rows = LogPartition { topic: "shop.backfill-public.big".into(), partition: 0 };
    let end = async || log.ranges().await.unwrap().get(&rows).map_or(0, |range| range.end);
    wait_until(PATIENCE, "the copy has rows in the log", async || end().await > beyond).await;
    end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_table_copied_again_under_writes_and_kills_replaces_what_the_lake_had() {
    let seed = std::env::var("TIDEMARK_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed}"));
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    // Small batches and pieces: a copy is many appends, and goes on from where a kill left it.
    let mut connector = Connector::new(&server.url())
        .set("log", "append_bytes_max", 65536)
        .set("backfill", "chunk_bytes", 131_072)
        .set("backfill", "connections", 3);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.pause().await;
    // A look at the catalog that was on its way would see it.
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active' \
                 AND pid <> pg_backend_pid()";
    wait_until(PATIENCE, "nothing is asked any more", async || value(&client, asked).await == "0").await;
    for statements in UNSEEN {
        client.batch_execute(statements).await.unwrap();
    }
    running.signal(Signal::CONT);
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    for name in ["big", "keyless", "parts"] {
        let held = duckdb(&connector, &days[0], &format!("SELECT count(*) FROM {{{name}}}"));
        let there = postgres(&client, &format!("SELECT count(*) FROM {name}")).await;
        assert_ne!(held, there, "the lake has to be wrong about {name} to be made right");
    }
    running.kill();

    use_rule(&mut connector, 1);
    // Slow enough to be killed before it is whole, twice.
    connector.change("backfill", "bytes_per_second_max", 1_500_000);
    running = connector.start_ready("run").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(server.connect().await, seed, Arc::clone(&stop)));
    // A transaction that stays open keeps the copy waiting; what was asked for outlives a kill there.
    let open = server.connect().await;
    open.batch_execute("BEGIN; INSERT INTO calm VALUES (-1, 0, 'open')").await.unwrap();
    let asked = running.command(&["backfill", "public.big", "public.{keyless,parts}"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let told = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(told.contains("public.big: a new copy is asked for"), "{told}");
    let again = running.command(&["backfill", "public.big"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("was asked for before"), "{again:?}");
    running.kill();
    open.batch_execute("COMMIT").await.unwrap();

    // Killed in the midst of it, twice.
    let mut rows = 0;
    for _ in 0..2 {
        running = connector.start("run");
        rows = wait_rows(&connector, rows + 4000).await;
        running.kill();
    }
    running = connector.start_ready("run").await;
    wait_rows(&connector, rows).await;
    // A cut while it goes on: tables that are not copied are whole, and none is waited for.
    running.cut(&days[1]);
    wait_copied(&running, &["big", "keyless", "parts"]).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    connector.wait_published(&days[1]).await;
    running.kill();

    use_rule(&mut connector, 2);
    running = connector.start_ready("run").await;
    running.cut(&days[2]);
    connector.wait_published(&days[2]).await;
    assert_equal(&connector, &client, &days[2], &["big", "calm", "keyless", "parts"]).await;
    for (name, copied) in [("big", true), ("keyless", true), ("parts", true), ("calm", false)] {
        // The cut in between may have come just after a copy was whole.
        let of_copy = days[1..].iter().any(|ds| {
            let manifest = Connector::json(&connector.snapshot(name, ds).join("_manifest.json"));
            assert_eq!(manifest["backfill"].is_object(), manifest["previous_ds"].is_null(), "{name} on {ds}");
            manifest["backfill"].is_object()
        });
        assert_eq!(of_copy, copied, "{name}");
    }
    let verified = running.command(&["verify", "--ds", &days[2]]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let letters = running.command(&["dead-letters", "list"]);
    let letters = String::from_utf8_lossy(&letters.stdout).into_owned();
    assert!(!letters.contains("public.big"), "{letters}");
    assert_order(&connector, &client).await;
}

/// The table's own topic has each change once and in order, and no row of a later copy.
async fn assert_order(connector: &Connector, client: &Client) {
    let records = connector.table_records("big").await;
    let positions: Vec<tidemark::change::Position> =
        records.iter().map(|record| record.position.parse().unwrap()).collect();
    assert!(positions.is_sorted(), "positions only grow");
    let read = records.iter().filter(|record| record.value["op"] == "r").count();
    assert!(read <= 40_000, "only the first copy is there: {read}");
    let copies = connector.records("shop.backfill-public.big").await;
    assert!(copies.iter().all(|record| record.value["op"] == "r"));
    // Two kills: what they repeat are the pieces being read.
    assert!(copies.len() < 40_000 + 2 * 3 * 1500, "whole pieces are not read again: {}", copies.len());
    assert_ne!(value(client, "SELECT count(*) FROM big").await, "0");
}

/// Rows that move from where a copy has not come yet to where it has been, between two of its rounds, and leave large
/// values alone: neither a later round nor the stream has those.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_of_many_rounds_has_rows_that_moved_between_them() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE EXTENSION citext;
             CREATE TABLE mixed (id citext PRIMARY KEY, n int NOT NULL, note text);
             ALTER TABLE mixed ALTER note SET STORAGE EXTERNAL;
             INSERT INTO mixed SELECT CASE WHEN i % 2 = 0 THEN 'k' ELSE 'K' END || i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 300) i;
             CREATE TABLE moving (a text, id int, n int NOT NULL, note text, PRIMARY KEY (a, id));
             ALTER TABLE moving ALTER note SET STORAGE EXTERNAL;
             CREATE TABLE flat (id int PRIMARY KEY, n int NOT NULL, note text) WITH (fillfactor = 50);
             INSERT INTO moving SELECT 'it''s', i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i;
             INSERT INTO flat SELECT i, 0, repeat(md5(i::text), 10) FROM generate_series(1, 10000) i;
             CREATE PUBLICATION tidemark_shop FOR TABLE moving, flat, mixed",
        )
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url())
        .set("backfill", "chunk_bytes", 262_144)
        .set("backfill", "connections", 2)
        .set("backfill", "snapshot_age_max_ms", 1000)
        .set("backfill", "bytes_per_second_max", 3_000_000);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    running.kill();

    use_rule(&mut connector, 1);
    let running = connector.start_ready("run").await;
    let asked = running.command(&["backfill", "public.*"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (client, stop) = (server.connect().await, Arc::clone(&stop));
        tokio::spawn(async move {
            let mut moves = 0;
            while !stop.load(Ordering::Relaxed) {
                let moved = "UPDATE moving SET id = -id, n = n + 1 WHERE id = (SELECT max(id) FROM moving);
                     UPDATE moving SET id = -id - 100000 WHERE id = (SELECT max(id) FROM moving WHERE id < -2000 AND id > -50000);
                     UPDATE flat SET n = n + 1 WHERE id = (SELECT max(id) FROM flat WHERE n = 0)";
                client.batch_execute(moved).await.unwrap();
                moves += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            moves
        })
    };
    wait_copied(&running, &["moving", "flat", "mixed"]).await;
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 50, "rows moved");
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    for (name, key) in [("moving", "a, id"), ("flat", "id"), ("mixed", "id")] {
        let manifest = Connector::json(&connector.snapshot(name, &days[1]).join("_manifest.json"));
        assert!(
            manifest["backfill"].is_object() && manifest["previous_ds"].is_null(),
            "{name} is of its copy"
        );
        let order = if name == "mixed" { "md5(note)" } else { key };
        let sql = |table: &str| format!("SELECT {key}, n, md5(note) FROM {table} ORDER BY {order}");
        let expected = postgres(&client, &sql(name)).await;
        let found = duckdb(&connector, &days[1], &sql(&format!("{{{name}}}")));
        assert_eq!(found.len(), expected.len(), "rows of {name}");
        let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{name}");
    }
    let copies = connector.records("shop.backfill-public.moving").await;
    let points: std::collections::BTreeSet<_> = copies
        .iter()
        .map(|record| record.position.parse::<tidemark::change::Position>().unwrap().commit_lsn)
        .collect();
    assert!(points.len() > 2, "it took rounds: {points:?}");
}
