//! A database in which nothing happens, and what is left in one where something does.

use super::{MB, TABLE, assert_each_row_once, insert, settle_wal};
use crate::support::lake::{postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_keeps_no_wal_while_another_one_writes_much() {
    let server = Postgres::builder().set("max_wal_size", "128MB").start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 1).await;
    client.batch_execute("CREATE DATABASE busy").await.unwrap();
    let busy = server.connect_to("busy").await;
    busy.batch_execute("CREATE TABLE noise (pad text)").await.unwrap();
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;

    for _ in 0..2 {
        let before = crate::support::lake::value(&client, "SELECT pg_current_wal_lsn()").await;
        for _ in 0..30 {
            busy.batch_execute(
                "INSERT INTO noise SELECT repeat(md5(i::text), 60) FROM generate_series(1, 1000) i",
            )
            .await
            .unwrap();
        }
        let sql = format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')::bigint");
        let written: u64 = crate::support::lake::value(&client, &sql).await.parse().unwrap();
        assert!(written > 50 * MB, "the other database wrote {written} bytes only");
        let kept = settle_wal(&client, 8 * MB).await;
        eprintln!("idle: {} MB of WAL by another database, the slot keeps {kept} bytes", written / MB);
    }
    insert(&client, 2, 3).await;
    assert_each_row_once(&connector, 3).await;
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_move_the_slot_on_where_only_unpublished_tables_are_written() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("CREATE SCHEMA other; CREATE TABLE other.noise (a int)").await.unwrap();
    let connector = Connector::new(&server.url()).set("source", "heartbeat_interval_ms", 100);
    let running = connector.start_ready("run").await;
    let sql = "SELECT count(*) FROM pg_logical_slot_peek_changes('oracle', NULL, NULL) WHERE data LIKE '%tidemark.heartbeat%'";
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')")
        .await
        .unwrap();
    wait_until(PATIENCE, "there are heartbeats", async || {
        value(&client, sql).await.parse::<u64>().unwrap() > 2
    })
    .await;
    for _ in 0..3 {
        client.batch_execute("INSERT INTO other.noise VALUES (1)").await.unwrap();
        let written = value(&client, "SELECT pg_current_wal_lsn()").await;
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'"
        );
        wait_until(PATIENCE, "the slot has passed it", async || value(&client, &confirmed).await == "t")
            .await;
    }
    assert!(connector.records("shop.public.t").await.is_empty(), "a heartbeat is no record");
    assert_eq!(running.health().1["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_to_the_users_tables_or_schemas() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("CREATE SCHEMA other; CREATE TABLE other.u (a int PRIMARY KEY)").await.unwrap();
    insert(&client, 1, 100).await;
    let traces = [
        "SELECT oid, relname, relnamespace, relkind, relfilenode, relreplident, relhastriggers FROM pg_class ORDER BY 1",
        "SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_|^tidemark$' ORDER BY 1",
        "SELECT p.oid, proname FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname <> 'tidemark' ORDER BY 1",
        "SELECT oid, tgname FROM pg_trigger ORDER BY 1",
        "SELECT oid, evtname FROM pg_event_trigger WHERE evtname !~ '^tidemark_' ORDER BY 1",
        "SELECT relid, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables ORDER BY 1",
        "SELECT xmin, ctid, id FROM t ORDER BY id",
    ];
    let mut before = Vec::new();
    // 14 cannot be asked to count at once.
    wait_until(PATIENCE, "the server has counted the rows", async || {
        let sql = "SELECT n_tup_ins = (SELECT count(*) FROM t) FROM pg_stat_user_tables WHERE relname = 't'";
        value(&client, sql).await == "t"
    })
    .await;
    for sql in traces {
        before.push(postgres(&client, sql).await);
    }

    let connector = Connector::new(&server.url());
    let mut running = connector.start_ready("run").await;
    let ds = crate::support::lake::value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    assert!(running.terminate().await.success());
    let mut running = connector.start_ready("run").await;
    assert!(running.terminate().await.success());

    for (sql, before) in traces.iter().zip(before) {
        assert_eq!(postgres(&client, sql).await, before, "{sql}");
    }
    // What a first start makes: the event triggers, their function in a schema of its own, publication and slot.
    let made = "SELECT (SELECT count(*) FROM pg_event_trigger), (SELECT count(*) FROM pg_proc p JOIN pg_namespace n \
         ON n.oid = pronamespace WHERE nspname = 'tidemark')";
    assert_eq!(postgres(&client, made).await, [[Some("3".to_owned()), Some("1".to_owned())]]);
    let made = postgres(&client, "SELECT pubname FROM pg_publication").await;
    assert_eq!(made, [[Some("tidemark_shop".to_owned())]]);
    let made = postgres(&client, "SELECT slot_name, active::text FROM pg_replication_slots").await;
    assert_eq!(made, [[Some("tidemark_shop".to_owned()), Some("false".to_owned())]]);
    let locks = "SELECT count(*) FROM pg_stat_activity WHERE application_name ILIKE 'tidemark%'";
    // A server process sees a moment later that its client has gone.
    wait_until(PATIENCE, "no sessions are left", async || {
        crate::support::lake::value(&client, locks).await == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_takes_long_keeps_no_wal_while_another_database_writes_much() {
    let server = Postgres::builder().set("max_wal_size", "128MB").start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE big (id int PRIMARY KEY, pad text);
             INSERT INTO big SELECT i, repeat(md5(i::text), 12) FROM generate_series(1, 40000) i",
        )
        .await
        .unwrap();
    client.batch_execute("CREATE DATABASE busy").await.unwrap();
    let busy = server.connect_to("busy").await;
    busy.batch_execute("CREATE TABLE noise (pad text)").await.unwrap();
    let connector = Connector::new(&server.url())
        .set("backfill", "snapshot_age_max_ms", 1000)
        .set("backfill", "chunk_bytes", 65_536)
        .set("backfill", "bytes_per_second_max", 100_000);
    let running = connector.start_ready("run").await;
    for round in 0..6 {
        let noise = "INSERT INTO noise SELECT repeat(md5(i::text), 60) FROM generate_series(1, 8000) i";
        busy.batch_execute(noise).await.unwrap();
        insert(&client, round * 10 + 1, round * 10 + 10).await;
        // With its lasting slot and those of its rounds.
        let kept = "SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) < 16777216 FROM pg_replication_slots";
        wait_until(PATIENCE, "the slots follow", async || value(&client, kept).await == "t").await;
        let copy = running.health().1["tables"]["public.big"]["backfill"].clone();
        assert_eq!(copy["done"], false, "the copy goes on all the while: {copy}");
    }
}
