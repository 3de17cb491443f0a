//! A standby is promoted: with the slot the stream goes on there, under load, and nothing is lost or doubled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tidemark::change::Position;

use super::pair::{Days, Pair, captured, range_in, says};
use crate::support::lake::{postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Stop, wait_until};

/// Writes small transactions until the server goes; gives the last row that was confirmed.
async fn write_until_gone(server: &Postgres, confirmed: Arc<AtomicI64>) -> tokio::task::JoinHandle<()> {
    let client = server.connect().await;
    tokio::spawn(async move {
        for id in 10_000_i64.. {
            let sql = format!(
                "BEGIN; INSERT INTO t VALUES ({id}, 1, 'load'); UPDATE t SET n = n + 1 WHERE id = {} ; COMMIT",
                id % 100 + 1
            );
            if client.batch_execute(&sql).await.is_err() {
                return;
            }
            confirmed.store(id, Ordering::Relaxed);
        }
    })
}

async fn a_promotion_with_a_synced_slot(major: u32) {
    let mut pair = Pair::start(major).await;
    let client = pair.primary.connect().await;
    let mut days = Days::of(&pair.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    pair.synchronize().await;
    pair.slot_is_synced().await;
    let ready = running.command(&["check"]);
    let ready = String::from_utf8_lossy(&ready.stdout).into_owned();
    assert!(ready.contains("changes wait for the standbys of sb"), "{ready}");
    let confirmed = Arc::new(AtomicI64::new(0));
    let load = write_until_gone(&pair.primary, Arc::clone(&confirmed)).await;
    captured(&days.connector, "t", 10_200).await;

    let switch = pair.fail_over().await;
    load.await.unwrap();
    let client = pair.standby.connect().await;
    client
        .batch_execute("INSERT INTO t VALUES (5000000, 2, 'after'); DELETE FROM t WHERE id <= 50")
        .await
        .unwrap();
    captured(&days.connector, "t", 5_000_000).await;
    says(&running, "nothing is missing").await;
    assert!(running.is_running(), "the process went over by itself");
    wait_until(PATIENCE, "health is well again", async || running.health().1["status"] == "ok").await;

    // Each change that the new primary has is in the log once, and nothing else is.
    let last = days.log_is_exact("t").await;
    assert!(last.timeline == 2 && last.commit_lsn >= switch, "{last}");
    let records = days.connector.table_records("t").await;
    let mut rows: BTreeMap<i64, i64> = BTreeMap::new();
    let mut operations = (0, 0);
    for record in &records {
        let (before, after) = (&record.value["before"], &record.value["after"]);
        match record.value["op"].as_str().unwrap_or("tombstone") {
            "r" | "c" => {
                operations.0 += 1;
                let id = after["id"].as_i64().unwrap();
                assert_eq!(rows.insert(id, after["n"].as_i64().unwrap()), None, "row {id} came twice");
            }
            "u" => {
                let id = after["id"].as_i64().unwrap();
                let n = after["n"].as_i64().unwrap();
                assert_eq!(rows.insert(id, n), Some(n - 1), "an update of row {id} is missing, or doubled");
            }
            "d" => {
                operations.1 += 1;
                assert!(rows.remove(&before["id"].as_i64().unwrap()).is_some());
            }
            _ => {}
        }
    }
    let held: BTreeMap<i64, i64> = postgres(&client, "SELECT id, n FROM t")
        .await
        .iter()
        .map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].as_ref().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(rows, held);
    eprintln!(
        "PostgreSQL {major}: {} records, {} rows inserted, {} deleted; {} transactions were confirmed before",
        records.len(),
        operations.0,
        operations.1,
        confirmed.load(Ordering::Relaxed) - 9_999
    );

    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
    // A restart finds the new timeline in its state.
    running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (5000001, 2, 'later')").await.unwrap();
    captured(&days.connector, "t", 5_000_001).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_with_a_synced_slot_under_load_loses_and_doubles_nothing_17() {
    a_promotion_with_a_synced_slot(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_with_a_synced_slot_under_load_loses_and_doubles_nothing_18() {
    a_promotion_with_a_synced_slot(18).await;
}

/// Without `synchronized_standby_slots` the log may be ahead of the standby: what the new primary never had is told.
async fn changes_that_the_new_primary_never_had(major: u32) {
    let mut pair = Pair::start(major).await;
    let client = pair.primary.connect().await;
    let mut days = Days::of(&pair.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    pair.slot_is_synced().await;
    // The standby stands still. A new address ends its stream by itself; ended by us, it might go on from the former.
    pair.standby.configure(&[("primary_conninfo", "host=127.0.0.1 port=1 dbname=postgres")]);
    pair.standby.reload();
    wait_until(PATIENCE, "the standby does not stream", async || {
        value(&client, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'sb'").await == "0"
    })
    .await;
    client.batch_execute("INSERT INTO t VALUES (7000000, 9, 'never')").await.unwrap();
    captured(&days.connector, "t", 7_000_000).await;

    let switch = pair.fail_over().await;
    assert_eq!(running.ended().await.code(), Some(1));
    let said = running.output();
    let range = range_in(&said);
    assert!(range.starts_with(&format!("{switch}..0/")), "{range}: the gap begins at the switch, {switch}");
    for words in ["never happened on this server", "can still be had", "synchronized_standby_slots"] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    // It stays refused, and another range is not taken for it.
    let client = pair.standby.connect().await;
    client.batch_execute("INSERT INTO t VALUES (8000000, 2, 'instead')").await.unwrap();
    assert!(days.refused().await.contains(&range));
    let wrong = days.accept("0/1..0/2");
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && error.contains(&format!("the gap is {range}")), "{error}");

    let taken = days.accept(&range);
    let told = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert!(told.contains(&format!("Given up: {range}")) && told.contains("the slot stays"), "{told}");
    let running = days.connector.start_ready("run").await;
    captured(&days.connector, "t", 8_000_000).await;
    days.whole(&running, &["t", "calm"]).await;
    days.log_is_exact("t").await;
    let ds = days.cut(running).await;
    assert_eq!(days.missing(&ds, "t"), None);
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_the_new_primary_never_had_are_told_with_their_range_and_can_be_given_up_17() {
    changes_that_the_new_primary_never_had(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_the_new_primary_never_had_are_told_with_their_range_and_can_be_given_up_18() {
    changes_that_the_new_primary_never_had(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_server_is_a_primary_the_connector_waits_and_health_names_them_all() {
    let mut pair = Pair::start(17).await;
    let client = pair.primary.connect().await;
    let days = Days::of(&pair.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    pair.synchronize().await;
    pair.slot_is_synced().await;
    pair.primary.stop(Stop::Immediate);
    let reason = async || running.health().1["components"]["source"]["reason"].to_string();
    wait_until(PATIENCE, "health names both servers", async || {
        let reason = reason().await;
        [&pair.primary, &pair.standby].iter().all(|server| reason.contains(&server.port().to_string()))
            && reason.contains("is a standby")
    })
    .await;
    pair.standby.promote().await;
    let client = pair.standby.connect().await;
    client.batch_execute("INSERT INTO t VALUES (5000000, 2, 'after')").await.unwrap();
    captured(&days.connector, "t", 5_000_000).await;
    assert!(running.is_running());
    wait_until(PATIENCE, "the reason is gone", async || {
        running.health().1["components"]["source"]["state"] == "ok"
    })
    .await;
    running.kill();
}

/// The timelines of rows of `t` that were copied again.
async fn copied_on(connector: &Connector) -> Vec<u32> {
    let rows = connector.records("shop.backfill-public.t").await;
    rows.iter().map(|row| row.position.parse::<Position>().unwrap().timeline).collect()
}

/// Pieces of a copy that were read before the promotion may hold what never happened: the copy begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_going_on_at_a_promotion_begins_anew_on_the_new_timeline() {
    let mut pair = Pair::start(17).await;
    let client = pair.primary.connect().await;
    client
        .batch_execute(
            "INSERT INTO t SELECT i, 0, repeat('x', 200) FROM generate_series(1000, 20999) i; ANALYZE t",
        )
        .await
        .unwrap();
    let mut days = Days::of(&pair.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    pair.synchronize().await;
    pair.slot_is_synced().await;
    assert!(running.terminate().await.success());
    // About 4 MB in pieces of 256 KiB, of which each second brings one.
    days.connector.change("backfill", "bytes_per_second_max", 300_000);
    days.connector.change("backfill", "chunk_bytes", 262_144);
    running = days.connector.start_ready("run").await;
    let asked = running.command(&["backfill", "public.t"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    wait_until(PATIENCE, "pieces of the copy were read", async || {
        copied_on(&days.connector).await.len() > 2000
    })
    .await;
    assert!(copied_on(&days.connector).await.iter().all(|timeline| *timeline == 1));
    running.kill();
    pair.fail_over().await;
    let client = pair.standby.connect().await;
    client
        .batch_execute("DELETE FROM t WHERE id % 3 = 0; INSERT INTO t VALUES (5000000, 2, 'after')")
        .await
        .unwrap();
    days.connector.change("backfill", "bytes_per_second_max", 0);
    running = days.connector.start_ready("run").await;
    captured(&days.connector, "t", 5_000_000).await;
    days.whole(&running, &["t"]).await;
    let held: usize = value(&client, "SELECT count(*) FROM t").await.parse().unwrap();
    let again = copied_on(&days.connector).await.iter().filter(|timeline| **timeline == 2).count();
    assert!(again >= held - 1, "{again} of {held} rows were read again");
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

async fn a_standby_is_promoted_under_the_stream(major: u32) {
    let mut pair = Pair::start(major).await;
    let client = pair.primary.connect().await;
    client.batch_execute("CREATE PUBLICATION tidemark_shop FOR TABLE t, calm").await.unwrap();
    let tells = "SELECT pg_log_standby_snapshot()";
    // A new slot on a standby waits until the primary tells of the transactions that run.
    let logs = pair.primary.connect().await;
    let telling = tokio::spawn(async move {
        while logs.batch_execute(tells).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    let mut days = Days::of(&pair.standby.url(), &client).await;
    let mut running = days.connector.start("run");
    captured(&days.connector, "t", 100).await;
    running.ready().await;
    client.batch_execute("INSERT INTO t VALUES (1000, 1, 'by the standby')").await.unwrap();
    captured(&days.connector, "t", 1000).await;
    telling.abort();
    drop(client);
    pair.primary.stop(Stop::Fast);
    pair.standby.promote().await;
    let client = pair.standby.connect().await;
    client
        .batch_execute("INSERT INTO t VALUES (1001, 1, 'after'); UPDATE t SET n = 5 WHERE id = 3")
        .await
        .unwrap();
    says(&running, "the standby was promoted").await;
    captured(&days.connector, "t", 1001).await;
    client.batch_execute("INSERT INTO t VALUES (1002, 1, 'later')").await.unwrap();
    captured(&days.connector, "t", 1002).await;
    running.kill();
    client
        .batch_execute("DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (1003, 1, 'meanwhile')")
        .await
        .unwrap();

    // Everything in the log beyond the switch happened here: there is no gap.
    let mut running = days.connector.start("run");
    running.ready().await;
    captured(&days.connector, "t", 1003).await;
    let last = days.log_is_exact("t").await;
    assert_eq!(last.timeline, 2, "{last}");
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_while_it_is_streamed_from_is_no_gap_17() {
    a_standby_is_promoted_under_the_stream(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_while_it_is_streamed_from_is_no_gap_18() {
    a_standby_is_promoted_under_the_stream(18).await;
}
