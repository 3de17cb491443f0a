//! Troubles of slot, server and session that are not elsewhere: what the operator sees, and that the data is whole
//! afterwards. The table of all of them is `docs/troubles.md`.

use std::path::Path;
use std::process::Command;

use tokio_postgres::Client;

use super::pair::{Days, Pair, captured, primary, range_in, says};
use crate::support::lake::value;
use crate::support::{Network, PATIENCE, Postgres, Proxy, Running, wait_until};

/// Ends the session which streams, as an administrator does. What holds the slot goes with it.
async fn end_stream(client: &Client) {
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    client.batch_execute(sql).await.unwrap();
}

async fn source_is(running: &Running, state: &str, words: &[&str]) {
    wait_until(PATIENCE, &format!("the source is {state}, for {words:?}"), async || {
        let source = running.health().1["components"]["source"].clone();
        let reason = source["reason"].to_string();
        source["state"] == state && words.iter().all(|word| reason.contains(word))
    })
    .await;
}

/// Streams, then stops: the slot is free, and the log is the slot's.
async fn streamed(server: &Postgres, connector_url: &str) -> (Client, Days) {
    let client = server.connect().await;
    let days = Days::of(connector_url, &client).await;
    let mut running = days.connector.start_ready("run").await;
    assert!(running.terminate().await.success());
    (client, days)
}

/// The gap is told for that reason; accepted, every table is whole again.
async fn told_and_mended(mut days: Days, client: &Client, words: &[&str]) {
    let said = days.refused().await;
    for word in words {
        assert!(said.contains(word), "{word:?} is not in\n{said}");
    }
    let taken = days.accept(&range_in(&said));
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let running = days.connector.start_ready("run").await;
    days.whole(&running, &["t", "calm"]).await;
    let ds = days.cut(running).await;
    days.same(client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_gave_up_for_being_idle_is_told_by_that_reason_18() {
    let server = Postgres::version(18).set("idle_replication_slot_timeout", "1s").start().await;
    let tables = "CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text);
                  CREATE TABLE calm (id bigint PRIMARY KEY, n int NOT NULL, note text);
                  INSERT INTO t VALUES (1, 0, 'first'); INSERT INTO calm VALUES (1, 0, 'first')";
    server.connect().await.batch_execute(tables).await.unwrap();
    let (client, days) = streamed(&server, &server.url()).await;
    let sql = "SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    wait_until(PATIENCE, "the slot is invalidated", async || {
        client.batch_execute("INSERT INTO t SELECT max(id) + 1, 0, 'on' FROM t; CHECKPOINT").await.unwrap();
        client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).as_deref()
            == Some("idle_timeout")
    })
    .await;
    // Else the new slot would go the same way while it waits for its first reader.
    client.batch_execute("ALTER SYSTEM SET idle_replication_slot_timeout = 0").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    told_and_mended(days, &client, &["invalidated (idle_timeout)", "idle_replication_slot_timeout = 0"])
        .await;
}

/// A slot on a standby that conflicts with recovery, for the reason that `conflict` brings about.
async fn a_slot_on_a_standby_is_lost(major: u32, conflict: &str, reason: &str, word: &str) {
    let mut pair = Pair::start(major).await;
    let client = pair.primary.connect().await;
    client.batch_execute("CREATE PUBLICATION tidemark_shop FOR TABLE t, calm").await.unwrap();
    // A new slot on a standby waits until the primary tells of the transactions that run.
    let logs = pair.primary.connect().await;
    let telling = tokio::spawn(async move {
        while logs.batch_execute("SELECT pg_log_standby_snapshot()").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    let standby = pair.standby.connect().await;
    let days = Days::of(&pair.standby.url(), &client).await;
    let mut running = days.connector.start("run");
    captured(&days.connector, "t", 100).await;
    assert!(running.terminate().await.success());
    if conflict == "wal_level" {
        telling.abort();
        drop(client);
        pair.primary.stop(crate::support::Stop::Fast);
        pair.primary.configure(&[("wal_level", "replica")]);
        pair.primary.start_again().await;
    } else {
        pair.standby.configure(&[("hot_standby_feedback", "off")]);
        pair.standby.reload();
        wait_until(PATIENCE, "the primary lets go of the catalog's rows", async || {
            let sql = "SELECT catalog_xmin IS NULL AND xmin IS NULL FROM pg_replication_slots WHERE slot_name = 'sb'";
            value(&client, sql).await == "t"
        })
        .await;
        client.batch_execute("CREATE TABLE gone (a int); DROP TABLE gone").await.unwrap();
        client.batch_execute("VACUUM FULL pg_class").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (5000, 1, 'after')").await.unwrap();
    }
    let sql = "SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    wait_until(PATIENCE, "the slot is invalidated", async || {
        standby.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).as_deref() == Some(reason)
    })
    .await;
    let said = days.refused().await;
    for words in [&format!("invalidated ({reason})"), word] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    range_in(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_on_a_standby_whose_catalog_rows_were_removed_is_told_by_that_reason() {
    a_slot_on_a_standby_is_lost(17, "vacuum", "rows_removed", "hot_standby_feedback").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_on_a_standby_whose_primary_left_wal_level_logical_is_told_by_that_reason() {
    a_slot_on_a_standby_is_lost(18, "wal_level", "wal_level_insufficient", "wal_level").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_and_made_again_under_a_running_connector_is_told_as_a_gap() {
    let server = primary(17).await;
    let client = server.connect().await;
    let mut days = Days::of(&server.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (1000, 1, 'before')").await.unwrap();
    captured(&days.connector, "t", 1000).await;
    // Whoever is faster than the connector's next attempt.
    let dropped = async || {
        end_stream(&client).await;
        client.batch_execute("SELECT pg_drop_replication_slot('tidemark_shop')").await.is_ok()
    };
    wait_until(PATIENCE, "the slot is dropped", dropped).await;
    client.batch_execute("INSERT INTO t VALUES (1001, 1, 'in the gap')").await.unwrap();
    let _ =
        client.batch_execute("SELECT pg_create_logical_replication_slot('tidemark_shop', 'pgoutput')").await;
    assert_eq!(running.ended().await.code(), Some(1));
    let said = running.output();
    assert!(said.contains("does not exist any more") || said.contains("made anew"), "{said}");
    let range = range_in(&days.refused().await);
    let taken = days.accept(&range);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let running = days.connector.start_ready("run").await;
    days.whole(&running, &["t", "calm"]).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_walsender_or_connection_to_spare_is_waited_for_with_that_reason() {
    let server = Postgres::builder().set("max_wal_senders", "2").start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text); INSERT INTO t VALUES (1, 0, 'first')").await.unwrap();
    let days = Days::of(&server.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    let others = tidemark::postgres::wire::ConnectOptions::parse(&server.url(), &|_| None).unwrap();
    let session =
        || tidemark::postgres::wire::Client::connect(&others, tidemark::postgres::wire::Session::Replication);
    let mut held = Vec::new();
    let start = std::time::Instant::now();
    while held.len() < 2 {
        assert!(start.elapsed() < PATIENCE, "others have every walsender");
        end_stream(&client).await;
        while let Ok(client) = session().await {
            held.push(client);
        }
    }
    source_is(&running, "waiting", &["53300", "max_wal_senders"]).await;
    client.batch_execute("INSERT INTO t VALUES (2, 1, 'meanwhile')").await.unwrap();
    held.clear();
    captured(&days.connector, "t", 2).await;
    source_is(&running, "ok", &[]).await;
    assert!(running.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_of_the_role_end_neither_copies_nor_sessions() {
    let server = primary(17).await;
    let client = server.connect().await;
    for limit in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
    ] {
        client.batch_execute(&format!("ALTER ROLE postgres SET {limit} = '50ms'")).await.unwrap();
    }
    client
        .batch_execute("INSERT INTO t SELECT i, 0, repeat('x', 200) FROM generate_series(1000, 60000) i")
        .await
        .unwrap();
    let mut days = Days::of(&server.url(), &client).await;
    let running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (100000, 1, 'streamed')").await.unwrap();
    captured(&days.connector, "t", 100_000).await;
    assert!(!running.output().contains("timeout"), "{}", running.output());
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_meanwhile_is_told_and_nothing_is_lost() {
    let hba = "local all all trust\nhost all postgres all trust\nhost replication postgres all trust\n\
               host all all all scram-sha-256\nhost replication all all scram-sha-256\n";
    let server = Postgres::builder().hba(hba).start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text); INSERT INTO t VALUES (1, 0, 'first');
                        CREATE ROLE cdc SUPERUSER LOGIN PASSWORD 'one-4711'")
        .await
        .unwrap();
    let days = Days::of(&server.url_as("cdc:one-4711", "postgres"), &client).await;
    let mut running = days.connector.start_ready("run").await;
    client.batch_execute("ALTER ROLE cdc PASSWORD 'two-4711'").await.unwrap();
    end_stream(&client).await;
    client.batch_execute("INSERT INTO t VALUES (2, 1, 'meanwhile')").await.unwrap();
    source_is(&running, "waiting", &["28P01", "password"]).await;
    // Whoever was never let in is more likely wrong.
    let mut other = days.connector.start("run");
    assert_eq!(other.ended().await.code(), Some(1));
    for said in [running.output(), other.output()] {
        assert!(said.contains("28P01") && said.contains("password") && !said.contains("one-4711"), "{said}");
    }
    client.batch_execute("ALTER ROLE cdc PASSWORD 'one-4711'").await.unwrap();
    captured(&days.connector, "t", 2).await;
    source_is(&running, "ok", &[]).await;
    assert!(running.is_running());
    days.log_is_exact("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_renamed_is_named_and_nothing_is_lost_when_it_is_back() {
    let server = Postgres::start().await;
    server.connect().await.batch_execute("CREATE DATABASE shop").await.unwrap();
    let client = server.connect_to("shop").await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text); INSERT INTO t VALUES (1, 0, 'first')").await.unwrap();
    let days = Days::of(&server.url_as("postgres", "shop"), &client).await;
    let mut running = days.connector.start_ready("run").await;
    drop(client);
    let admin = server.connect().await;
    let renamed = async || {
        let ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'";
        admin.batch_execute(ends).await.unwrap();
        admin.batch_execute("ALTER DATABASE shop RENAME TO market").await.is_ok()
    };
    wait_until(PATIENCE, "the database is renamed", renamed).await;
    source_is(&running, "waiting", &["shop", "3D000"]).await;
    server
        .connect_to("market")
        .await
        .batch_execute("INSERT INTO t VALUES (2, 1, 'meanwhile')")
        .await
        .unwrap();
    let renamed_back = async || admin.batch_execute("ALTER DATABASE market RENAME TO shop").await.is_ok();
    wait_until(PATIENCE, "the database has its name again", renamed_back).await;
    captured(&days.connector, "t", 2).await;
    assert!(running.is_running());
    days.log_is_exact("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_delays_and_loses_nothing() {
    let server = primary(17).await;
    let client = server.connect().await;
    let proxy = Proxy::start(server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    let mut days = Days::of(&url, &client).await;
    let running = days.connector.start_ready("run").await;
    proxy.set(Network::Slow);
    for id in 1000..1020 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({id}, 1, repeat('x', 100000))")).await.unwrap();
    }
    captured(&days.connector, "t", 1019).await;
    proxy.set(Network::Up);
    days.log_is_exact("t").await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_another_address_is_followed_at_the_next_attempt() {
    let mut pair = Pair::start(17).await;
    let client = pair.primary.connect().await;
    // One port at two addresses, as two servers behind one name have it.
    let port = crate::support::free_port();
    let forward = async |address: &str, to: u16| Proxy::start_at((address, port), to).await;
    let (first, _second) =
        (forward("127.0.0.1", pair.primary.port()).await, forward("127.0.0.2", pair.standby.port()).await);
    let folder = tempfile::tempdir().unwrap();
    let (library, address) = (folder.path().join("names.so"), folder.path().join("address"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/failover/names.c");
    let mut cc = Command::new("cc");
    assert!(cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap().success());
    std::fs::write(&address, "127.0.0.1").unwrap();
    let mut days = Days::of(&format!("postgres://postgres@db.test:{port}/postgres"), &client).await;
    let environment =
        [("LD_PRELOAD", library.display().to_string()), ("TEST_ADDRESS", address.display().to_string())];
    days.connector.environment(&environment);
    let mut running = days.connector.start_ready("run").await;
    pair.synchronize().await;
    pair.slot_is_synced().await;
    // The name leads to the standby before that is promoted: it is waited for.
    first.set(Network::Cut);
    std::fs::write(&address, "127.0.0.2").unwrap();
    says(&running, "is a standby, and replication slot").await;
    source_is(&running, "waiting", &["is a standby"]).await;
    pair.fail_over().await;
    let client = pair.standby.connect().await;
    client.batch_execute("INSERT INTO t VALUES (5000000, 2, 'after')").await.unwrap();
    captured(&days.connector, "t", 5_000_000).await;
    assert!(running.is_running());
    source_is(&running, "ok", &[]).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}
