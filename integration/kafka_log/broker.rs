//! Brokers that die, passwords that are wrong, records that retention has taken.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tidemark::log::{KafkaLog, Log};
use tidemark::runtime::Class;

use super::numbers::{self, counted, options, options_at, step};
use crate::support::Kafka;

/// An administrator of the shared broker.
pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", Kafka::shared().address()).create().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_in_the_middle_of_appends_costs_time_and_nothing_else() {
    let mut kafka = Kafka::start();
    let mut options = options_at("broker", &kafka.address());
    options.partitions = 3;
    let log = KafkaLog::open(options).unwrap();
    let mut fenced = log.fence().await.unwrap();
    let mut count = counted(&fenced);
    let (mut retries, mut doubts) = (0, 0);
    for round in 0..2 {
        let until = Instant::now() + Duration::from_secs(3);
        let mut killed = false;
        // Long enough for the broker to die in the middle of something, and for appends after it is back.
        while Instant::now() < until || !killed {
            if !killed && Instant::now() + Duration::from_secs(2) > until {
                kafka.kill();
                killed = true;
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_millis(500));
                        kafka.start_again();
                    });
                    let handle = tokio::runtime::Handle::current();
                    tokio::task::block_in_place(|| {
                        handle.block_on(append(&log, &mut fenced, &mut count, &mut retries, &mut doubts));
                    });
                });
                continue;
            }
            append(&log, &mut fenced, &mut count, &mut retries, &mut doubts).await;
        }
        eprintln!("round {round}: {count} numbers, {retries} retries, {doubts} in doubt");
        numbers::check_committed(&kafka, "broker", count);
        numbers::check_read(&log, "broker", count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_ends_while_its_broker_is_killed_leaves_an_append_whole_or_not_there() {
    let mut kafka = Kafka::start();
    let mut options = options_at("both", &kafka.address());
    options.partitions = 3;
    let mut count = 0;
    for round in 0..3 {
        let log = KafkaLog::open(options.clone()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(90);
        let fenced = loop {
            match log.fence().await {
                Ok(fenced) => break fenced,
                Err(error) => {
                    assert_eq!(error.class(), Class::Retry, "{error}");
                    assert!(Instant::now() < deadline, "{error}");
                }
            }
        };
        let found = counted(&fenced);
        assert!(found == count || found == count + 50, "{count} were confirmed, {found} are there");
        count = found;
        numbers::check_committed(&kafka, "both", count);
        numbers::check_read(&log, "both", count).await;
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            log.append(fenced.epoch, step("both", count..count + 50)).await.unwrap();
            count += 50;
        }
        let answer = tokio::spawn(async move {
            let answered = log.append(fenced.epoch, step("both", count..count + 50)).await.is_ok();
            (answered, log)
        });
        // Into the middle of it, wherever that is.
        std::thread::sleep(Duration::from_micros(1500 * round + 500));
        kafka.kill();
        if answer.is_finished() && answer.await.unwrap().0 {
            count += 50;
        }
        eprintln!("round {round}: {count} confirmed");
        kafka.start_again();
    }
}

/// One append as capture does it: tried again when nothing was written, and from the state when nobody knows.
async fn append(
    log: &KafkaLog,
    fenced: &mut tidemark::log::Fenced,
    count: &mut u64,
    retries: &mut u32,
    doubts: &mut u32,
) {
    let started = Instant::now();
    let mut next = step("broker", *count..*count + 50);
    loop {
        match log.append(fenced.epoch, next).await {
            Ok(_) => {
                *count += 50;
                return;
            }
            Err(rejected) => {
                assert_eq!(rejected.error.class(), Class::Retry, "{}", rejected.error);
                assert!(started.elapsed() < Duration::from_secs(120), "{}", rejected.error);
                *retries += 1;
                eprintln!("at {count}: {} (in doubt: {})", rejected.error, rejected.in_doubt);
                next = rejected.append;
                if rejected.in_doubt {
                    *doubts += 1;
                    while let Err(error) = log.fence().await.map(|f| *fenced = f) {
                        assert_eq!(error.class(), Class::Retry, "{error}");
                    }
                    *count = counted(fenced);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_over_tls_with_scram_and_tells_a_wrong_password() {
    let kafka = Kafka::shared();
    let mut options = options_at("secure", &kafka.tls_address());
    let authority = kafka.certificate("ca.crt").display().to_string();
    for (name, value) in [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-256"),
        ("sasl.username", "app"),
        ("sasl.password", Kafka::PASSWORD),
        ("ssl.ca.location", &authority),
    ] {
        options.properties.insert(name.into(), value.into());
    }
    let log = KafkaLog::open(options.clone()).unwrap();
    let fenced = log.fence().await.unwrap();
    log.append(fenced.epoch, step("secure", 0..100)).await.unwrap();
    numbers::check_read(&log, "secure", 100).await;

    options.properties.insert("sasl.password".into(), "geheim".into());
    let wrong = KafkaLog::open(options).unwrap();
    let error = wrong.fence().await.unwrap_err();
    let text = error.to_string();
    // Never let in: the configuration is wrong, and waiting does not mend it.
    assert_eq!(error.class(), Class::Operator, "{text}");
    assert!(text.contains("uthentication") && text.contains("\"sasl.password\""), "{text}");
    assert!(!text.contains("geheim"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_what_retention_has_taken_names_the_gap() {
    let log = KafkaLog::open(options("taken")).unwrap();
    let fenced = log.fence().await.unwrap();
    log.append(fenced.epoch, step("taken", 0..100)).await.unwrap();
    let partition = numbers::partition("taken", 0);
    assert_eq!(log.ranges().await.unwrap()[&partition].start, 0);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&partition.topic, 0, Offset::Offset(60)).unwrap();
    block_on(admin().delete_records(&list, &AdminOptions::new())).unwrap();
    let error = log.read(&partition, 10, 1 << 20).await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    let text = error.to_string();
    assert!(text.contains("taken.numbers/0 no longer holds offsets 10 to 59"), "{text}");
    assert_eq!(log.ranges().await.unwrap()[&partition].start, 60);
    let fetched = log.read(&partition, 60, 1 << 20).await.unwrap();
    assert_eq!((fetched.offsets.len(), fetched.next), (40, 100));
}
