//! Two processes for one source: one streams, the other stands by and takes over, never both. Through the real binary,
//! on the log's file that they share; on Kafka it is a fault of `kafka_exactness`.
//!
//! ```text
//!   traffic ──> Postgres ──> one ┐                 killed, stopped for longer than wal_sender_timeout,
//!                  │             ├──> log          cut off from the database while its walsender is still there
//!                  │         two ┘     │
//!                  └─> oracle ─ equal ─┘
//! ```
//!
//! `STANDBY_ROUNDS` sets the number of rounds, `TIDEMARK_TEST_SEED` replays what the test itself decides.

mod pair;

use std::time::Duration;

use crate::oracle::History;
use crate::support::{Connector, PATIENCE, Postgres, Replay, wait_until};
use pair::{Fault, Pair};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_standby_takes_over_within_seconds_whatever_ends_the_first_and_no_change_is_lost_or_doubled() {
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let rounds = setting("STANDBY_ROUNDS").unwrap_or(8) as usize;
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} STANDBY_ROUNDS={rounds}"));
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut pair = Pair::start(seed).await;
    let mut plan = Vec::new();
    for round in 0..rounds {
        if plan.is_empty() {
            plan = Fault::ALL.to_vec();
            plan.shuffle(&mut random);
        }
        let fault = plan.remove(0);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        let took = pair.round(fault).await;
        eprintln!("round {round}: {fault:?}, taken over {took:?} later");
    }
    pair.drain().await;
    let history = History::load(&pair.server.connect().await).await;
    let log = crate::exactness::check_log::check(&pair.connector, &history).await;
    let records: usize = log.records.values().map(Vec::len).sum();
    eprintln!("{} transactions, {records} records: 0 lost, 0 doubled", history.transactions.len());
    assert!(records > 1000, "hardly anything was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_well_and_ready_and_says_for_whom_it_waits() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let connector = Connector::new(&server.url());
    let mut first = connector.start_ready("run").await;
    let mut second = connector.start("run");
    wait_until(PATIENCE, "the second process stands by", async || {
        second.get("/health").is_some_and(|(_, body)| body.contains("stands by for server process"))
    })
    .await;
    let pid: i32 = client
        .query_one("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'", &[])
        .await
        .unwrap()
        .get(0);
    let (code, health) = second.health();
    let source = &health["components"]["source"];
    assert_eq!((code, source["state"].as_str()), (200, Some("standby")), "{health}");
    let reason = source["reason"].as_str().unwrap();
    for word in [&format!("server process {pid} "), "application tidemark", "from 127.0.0.1", "since 20"] {
        assert!(reason.contains(word), "{word:?} is not in {reason:?}");
    }
    // Its delivery may only be starting.
    second.ready().await;
    // The one that waits has touched nothing.
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    connector.wait_for_records("t", 2).await;
    assert_eq!(first.health().1["components"]["source"]["state"], "ok");

    assert!(first.terminate().await.success());
    wait_until(PATIENCE, "the second process streams", async || {
        second.health().1["components"]["source"]["state"] == "ok"
    })
    .await;
    client.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    connector.wait_for_records("t", 3).await;
    let records = connector.table_records("t").await;
    let ids: Vec<_> = records.iter().map(|record| record.value["after"]["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_that_start_at_once_one_makes_the_first_copy_and_the_other_waits_for_it() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)",
        )
        .await
        .unwrap();
    // The copy waits for this transaction, and has no slot to be seen by until then.
    let blocker = server.connect().await;
    blocker.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();
    let connector = Connector::new(&server.url());
    let processes = [connector.start("capture"), connector.start("capture")];
    let states = || {
        let state = |process: &crate::support::Running| {
            let (_, body) = process.get("/health").unwrap_or_default();
            let health: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
            health["components"]["source"]["state"].as_str().unwrap_or_default().to_owned()
        };
        let mut states = [state(&processes[0]), state(&processes[1])];
        states.sort();
        states
    };
    wait_until(PATIENCE, "one copies and one stands by", async || states() == ["standby", "starting"]).await;
    let waits = processes.iter().any(|process| process.output().contains("is getting ready to stream"));
    assert!(waits, "it does not say for whom");
    blocker.batch_execute("COMMIT").await.unwrap();
    wait_until(PATIENCE, "one streams and one stands by", async || states() == ["ok", "standby"]).await;
    connector.wait_for_records("t", 1001).await;
    assert_eq!(connector.end("t").await, 1001, "the copy was made twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_another_slot_on_the_same_log_is_refused_and_does_not_end_the_first() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let connector = Connector::new(&server.url());
    let mut first = connector.start_ready("capture").await;
    let mistaken = Connector::new(&server.url())
        .set("state", "dir", connector.state().to_str().unwrap())
        .set("source", "publication", "tidemark_shop")
        .set("source", "slot", "another");
    let mut second = mistaken.start("capture");
    assert_eq!(second.ended().await.code(), Some(1), "{}", second.output());
    assert!(second.output().contains("\"another\" does not exist"), "{}", second.output());
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    connector.wait_for_records("t", 2).await;
    assert_eq!(connector.end("t").await, 2);
    assert!(first.is_running(), "{}", first.output());
    wait_until(PATIENCE, "the first one streams again", async || {
        first.health().1["components"]["source"]["state"] == "ok"
    })
    .await;
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
