//! The file beside Kafka that keeps changes while brokers are away: given to two processes, and on a full disk. With a
//! real broker, which is killed; who judges what arrived is Kafka's own console consumer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::lake::postgres;
use crate::support::{
    Connector, Kafka, PATIENCE, Postgres, Running, SmallDisk, again_in_a_namespace, wait_until,
};
use serde_json::{Value, json};
use tidemark::log::{
    Append, Fenced, KafkaLog, KafkaLogOptions, Log, RecordBatch, SpillLog, SqliteLog, SqliteLogOptions,
};
use tidemark::runtime::{Class, Error};

fn connector(url: &str, kafka: &Kafka, name: &str) -> Connector {
    Connector::new(url)
        .set("source", "name", name)
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka.properties", "\"transaction.timeout.ms\"", 5_000)
}

async fn slot_has_passed(client: &tokio_postgres::Client) {
    let written = &postgres(client, "SELECT pg_current_wal_lsn()").await[0][0].clone().unwrap();
    let sql = format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots");
    wait_until(PATIENCE, "the slot has passed what was written", async || {
        postgres(client, &sql).await[0][0].as_deref() == Some("t")
    })
    .await;
}

fn ids(kafka: &Kafka, topic: &str, count: usize) -> Vec<i64> {
    let lines = kafka.committed(topic, count);
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["after"]["id"].as_i64().unwrap();
    lines.iter().map(id).collect()
}

async fn is_kept(running: &Running) {
    wait_until(PATIENCE, "changes are kept on the local disk", async || {
        running.health().1["components"]["log"].to_string().contains("kept on the local disk")
    })
    .await;
}

/// Two connectors of two databases with one state folder, as after copying a configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_process_on_a_spill_file_leaves_and_the_first_one_keeps_and_brings_all() {
    let mut kafka = Kafka::start();
    let (one, two) = (Postgres::start().await, Postgres::start().await);
    let (client, other) = (one.connect().await, two.connect().await);
    for client in [&client, &other] {
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    }
    let first = connector(&one.url(), &kafka, "first");
    let second = connector(&two.url(), &kafka, "second").set("state", "dir", first.state().to_str().unwrap());
    let mut running = first.start_ready("capture").await;
    kafka.kill();
    client.batch_execute("INSERT INTO t SELECT generate_series(2, 500)").await.unwrap();
    slot_has_passed(&client).await;
    is_kept(&running).await;

    let refused = async |connector: &Connector, words: [&str; 2]| {
        let mut refused = connector.start("capture");
        assert_eq!(refused.ended().await.code(), Some(1));
        let told = refused.output();
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        assert!(told.contains("[log.kafka] spill_path"), "{told}");
    };
    refused(&second, ["another process uses", "spill.db"]).await;
    assert!(running.is_running(), "{}", running.output());
    // The first one dies with changes that are in its file only; they are not for the second one's log.
    running.kill();
    kafka.start_again();
    refused(&second, ["were kept for the log of", "tidemark-first"]).await;
    let running = first.start_ready("capture").await;
    client.batch_execute("INSERT INTO t VALUES (501)").await.unwrap();
    slot_has_passed(&client).await;
    assert_eq!(ids(&kafka, "first.public.t", 501), (1..=501).collect::<Vec<_>>());
    wait_until(PATIENCE, "nothing is kept any more", async || {
        running.health().1["components"]["log"]["state"] == "ok"
    })
    .await;
    drop(running);
    // Its file is empty now, and another's may be there.
    let _running = second.start_ready("capture").await;
    assert_eq!(ids(&kafka, "second.public.t", 1), [1]);
}

/// As capture does it: a former writer of this process may still be about to come back.
async fn fence(log: &SpillLog) -> Result<Fenced, Error> {
    let start = Instant::now();
    loop {
        match log.fence().await {
            Err(error) if error.class() == Class::Retry && start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}

/// An append of one record, which does not compress, and the count that it leads to.
fn numbered(n: u64) -> Append {
    let mut records = RecordBatch::default();
    let mut record = records.topic(&"full.numbers".into()).begin(jiff::Timestamp::now().as_millisecond());
    record.null();
    record.field(|b| {
        b.extend_from_slice(n.to_string().as_bytes());
        b.push(b' ');
        b.extend((0..100_000).map(|_| rand::random_range(b'a'..=b'z')));
    });
    record.finish();
    let state = vec![("count".to_owned(), (n + 1).to_string().into_bytes())];
    Append { records, state }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_spill_is_named_and_all_that_was_confirmed_arrives() {
    let Some(disk) = SmallDisk::mount(48 << 20) else {
        return again_in_a_namespace(
            module_path!(),
            "a_full_disk_under_the_spill_is_named_and_all_that_was_confirmed_arrives",
        );
    };
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 20 << 20]).unwrap();
    let path = disk.path().join("spill.db");
    let mut kafka = Kafka::start();
    let address = kafka.address();
    let open = || {
        let mut options = KafkaLogOptions::new("full", &address);
        options.properties.insert("transaction.timeout.ms".into(), "2000".into());
        let spill =
            SqliteLogOptions { retention_ms: 0, retention_bytes: Some(0), ..SqliteLogOptions::new(&path) };
        let spill = Arc::new(SqliteLog::open(spill).unwrap());
        SpillLog::new(Arc::new(KafkaLog::open(options).unwrap()), spill, "tidemark-full", |_, _| false)
    };
    let log = open();
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, numbered(0)).await.unwrap();
    kafka.kill();
    let mut count = 1;
    let rejected = loop {
        match log.append(epoch, numbered(count)).await {
            Ok(_) => count += 1,
            Err(rejected) => break rejected,
        }
    };
    assert!(count > 20, "{count}");
    let text = rejected.error.to_string();
    assert_eq!(rejected.error.class(), Class::Operator, "{text}");
    for part in ["the log is away, and no more is kept for it", path.to_str().unwrap(), "Free space at"] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
    drop(log);
    // The disk is still full when the brokers are back: whatever a new process can do there, nothing may go missing.
    kafka.start_again();
    let log = open();
    match fence(&log).await {
        Ok(_) => eprintln!("all has arrived although the disk is full"),
        Err(error) => assert!(error.to_string().contains("Free space at"), "{error}"),
    }
    drop(log);
    std::fs::remove_file(ballast).unwrap();
    let log = open();
    let fenced = fence(&log).await.unwrap();
    assert_eq!(fenced.state["count"], count.to_string().as_bytes());
    log.append(fenced.epoch, numbered(count)).await.unwrap();
    let lines = tokio::task::block_in_place(|| kafka.committed("full.numbers", count as usize + 1));
    let found: Vec<u64> = lines.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, (0..=count).collect::<Vec<_>>());
    tokio::time::timeout(Duration::from_secs(60), log.ranges()).await.unwrap().unwrap();
}
