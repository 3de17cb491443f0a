//! The slot: busy, gone, spoilt, moved, or another's.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidemark::change::Lsn;
use tidemark::postgres::wire::{Client, ConnectOptions, ReplicationOptions, Session};

use super::connector::{CSV, Connector, PASSWORD, server_with_table};
use crate::support::{PATIENCE, Postgres, Stop, client_program};

async fn text(server: &Postgres, sql: &str) -> String {
    server.connect().await.query_one(sql, &[]).await.unwrap().get(0)
}

const FLUSHED: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_by_another_is_given_up_in_bounded_time_and_nothing_is_lost() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    let url = format!("{}?application_name=another_consumer", server.url());
    let options = ConnectOptions::parse(&url, &|_| None).unwrap();
    let from: Lsn = text(&server, FLUSHED).await.parse().unwrap();
    let client = Client::connect(&options, Session::Replication).await.unwrap();
    let other = ReplicationOptions::new("tidemark_shop", from, "tidemark_shop");
    let held = client.start_replication(&other).await.unwrap();
    server.connect().await.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();

    let start = Instant::now();
    connector.refused(
        &["run"],
        1,
        &[
            "\"tidemark_shop\" is in use by server process",
            "another_consumer",
            "pg_stat_replication",
            "[source] slot",
        ],
    );
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
    // The server may be slow to say that it has ended; the connection closes in any case.
    let _ = held.stop().await;
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_slot_in_use_is_found_before_the_first_copy() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    assert_eq!(connector.run(&["setup"]).code, 0);
    let mut other = Command::new(client_program("pg_recvlogical"))
        .args(["-d", &server.url(), "--slot", "tidemark_shop", "--start", "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=tidemark_shop"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::support::wait_until(PATIENCE, "pg_recvlogical streams", || async {
        text(&server, "SELECT active::text FROM pg_replication_slots").await == "true"
    })
    .await;
    let ended = connector.refused(&["run"], 1, &["is in use by server process"]);
    assert!(!ended.err.contains("backfill done"), "{}", ended.err);
    other.kill().unwrap();
    other.wait().unwrap();
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_slot_that_is_gone_is_told_with_the_exact_gap_and_not_made_again() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    let gap = text(&server, FLUSHED).await;
    let oracle = server.connect().await;
    oracle
        .batch_execute("SELECT pg_drop_replication_slot('tidemark_shop'); INSERT INTO t VALUES (11)")
        .await
        .unwrap();
    for _ in 0..2 {
        connector.refused(&["run"], 1, &["\"tidemark_shop\" does not exist any more", &gap, "accept-gap"]);
    }
    // A slot made by hand begins behind the gap: that is no mend.
    assert_eq!(connector.run(&["setup"]).code, 0);
    connector.refused(&["run"], 1, &["moved on by someone else", &gap]);
}

#[tokio::test]
async fn what_the_mend_of_a_lost_slot_says_leads_to_a_day_that_equals_postgres() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    let oracle = server.connect().await;
    oracle
        .batch_execute("SELECT pg_drop_replication_slot('tidemark_shop'); INSERT INTO t VALUES (11); DELETE FROM t WHERE id = 2")
        .await
        .unwrap();
    let said = connector.refused(&["run"], 1, &["`tidemark accept-gap 0/"]);
    println!("{}", said.error());
    let command = said.error().split('`').find(|part| part.starts_with("tidemark accept-gap")).unwrap();
    let range = command.split(' ').next_back().unwrap();
    connector.refused(&["accept-gap", "0/1.."], 1, &[range, "nothing was changed"]);
    let accepted = connector.run(&["accept-gap", range, "--json"]);
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    let told: serde_json::Value = serde_json::from_str(&accepted.out).unwrap();
    assert_eq!((told["range"].as_str(), told["new_slot"].as_bool()), (Some(range), Some(true)));
    connector.refused(&["accept-gap", range], 1, &["there is no gap"]);
    let mut running = connector.stream();
    running.wait_for("copied: the next cut takes it");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_slot_that_was_invalidated_is_told_with_the_gap_and_the_limit() {
    let mut server = Postgres::builder()
        .set("max_slot_wal_keep_size", "1MB")
        .set("min_wal_size", "32MB")
        .set("max_wal_size", "32MB")
        .start()
        .await;
    super::connector::make_table(&server).await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    let gap = text(&server, FLUSHED).await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE filler (x text)").await.unwrap();
    for _ in 0..8 {
        oracle.batch_execute("INSERT INTO filler SELECT 'x'").await.unwrap();
        oracle.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        oracle.batch_execute("CHECKPOINT").await.unwrap();
    }
    drop(oracle);
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    assert_eq!(text(&server, status).await, "lost");
    connector.refused(
        &["run"],
        1,
        &["has been invalidated", "wal_removed", &gap, "max_slot_wal_keep_size", "accept-gap"],
    );
    let check = connector.run(&["check"]);
    assert!(check.code == 1 && check.out.contains("was invalidated"), "{}", check.out);
    server.stop(Stop::Fast);
}

#[tokio::test]
async fn a_slot_that_was_moved_on_by_someone_else_is_told_with_both_ends_of_the_gap() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    let before = text(&server, FLUSHED).await;
    let oracle = server.connect().await;
    oracle.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    let moved =
        "SELECT end_lsn::text FROM pg_replication_slot_advance('tidemark_shop', pg_current_wal_lsn())";
    let after = text(&server, moved).await;
    connector.refused(&["run"], 1, &["moved on by someone else", &before, &after, "accept-gap"]);
}

#[tokio::test]
async fn a_slot_of_another_plugin_or_database_is_left_alone() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    let make = "SELECT pg_create_logical_replication_slot('tidemark_shop', 'test_decoding')";
    oracle.batch_execute(make).await.unwrap();
    let connector = Connector::new(&server, CSV);
    connector.refused(&["run"], 1, &["slot tidemark_shop", "test_decoding", "`slot`"]);
    oracle.batch_execute("SELECT pg_drop_replication_slot('tidemark_shop')").await.unwrap();
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
    oracle.batch_execute("SELECT pg_drop_replication_slot('tidemark_shop')").await.unwrap();
    oracle.batch_execute(make).await.unwrap();
    connector.refused(&["run"], 1, &["tidemark_shop", "test_decoding"]);

    oracle.batch_execute("SELECT pg_drop_replication_slot('tidemark_shop')").await.unwrap();
    oracle.batch_execute("CREATE DATABASE other").await.unwrap();
    let make = "SELECT pg_create_logical_replication_slot('tidemark_shop', 'pgoutput')";
    server.connect_to("other").await.batch_execute(make).await.unwrap();
    let fresh = Connector::with_url(&server.url_as(&format!("postgres:{PASSWORD}"), "postgres"), CSV);
    fresh.refused(&["run"], 1, &["belongs to the database other", "`slot`"]);
}
