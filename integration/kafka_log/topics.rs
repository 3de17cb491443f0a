//! Topics that are not as they have to be, and records that do not fit.

use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use tidemark::log::{Append, KafkaLog, Log, RecordBatch};
use tidemark::runtime::Class;

use super::broker::admin;
use super::numbers::{self, options, step};
use crate::support::{Kafka, PATIENCE, wait_until};

/// Waits until the broker shows a topic with so many partitions; none are those of a topic that is not there. It answers
/// to administrators before that.
async fn is_shown(topic: &str, partitions: usize) {
    wait_until(PATIENCE, &format!("{topic} is shown with {partitions} partitions"), async || {
        let metadata = admin().inner().fetch_metadata(Some(topic), Duration::from_secs(10));
        metadata.is_ok_and(|metadata| metadata.topics()[0].partitions().len() == partitions)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_number_of_partitions_and_a_deleted_topic_are_refused() {
    let mut options = options("parts");
    options.partitions = 3;
    let log = KafkaLog::open(options.clone()).unwrap();
    let fenced = log.fence().await.unwrap();
    log.append(fenced.epoch, step("parts", 0..100)).await.unwrap();
    let ranges = log.ranges().await.unwrap();
    assert_eq!(ranges.len(), 3, "seven keys are in three partitions: {ranges:?}");
    numbers::check_read(&log, "parts", 100).await;

    block_on(admin().create_partitions(&[NewPartitions::new("parts.numbers", 4)], &AdminOptions::new()))
        .unwrap();
    is_shown("parts.numbers", 4).await;
    let log = KafkaLog::open(options.clone()).unwrap();
    let fenced = log.fence().await.unwrap();
    let rejected = log.append(fenced.epoch, step("parts", 100..101)).await.unwrap_err();
    assert_eq!(rejected.error.class(), Class::Operator);
    let text = rejected.error.to_string();
    assert!(text.contains("topic parts.numbers has 4 partitions now and had 3"), "{text}");

    block_on(admin().delete_topics(&["parts.numbers"], &AdminOptions::new())).unwrap();
    is_shown("parts.numbers", 0).await;
    let fenced = log.fence().await.unwrap();
    let rejected = log.append(fenced.epoch, step("parts", 100..101)).await.unwrap_err();
    assert_eq!(rejected.error.class(), Class::Operator);
    let text = rejected.error.to_string();
    assert!(text.contains("topic parts.numbers is not there any more"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_may_not_be_created_are_refused_with_the_command_that_creates_them() {
    let mut options = options("manual");
    options.create_topics = false;
    let log = KafkaLog::open(options.clone()).unwrap();
    let error = log.fence().await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.class(), Class::Operator, "{text}");
    for part in [
        "topic manual.state is not there",
        "--create --topic manual.state --partitions 1",
        "cleanup.policy=compact",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    // One that is there but not compacted would lose nothing today, and grow for ever.
    let topic = NewTopic::new("manual.state", 1, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    block_on(admin().create_topics(&[topic], &AdminOptions::new())).unwrap();
    is_shown("manual.state", 1).await;
    let text = log.fence().await.unwrap_err().to_string();
    assert!(
        text.contains("topic manual.state has cleanup.policy=delete; expected cleanup.policy=compact"),
        "{text}"
    );
    assert!(text.contains("--alter --topic manual.state --add-config cleanup.policy=compact"), "{text}");
}

fn of_bytes(bytes: usize) -> Append {
    let mut records = RecordBatch::default();
    let mut record = records.topic(&"sizes.t".into()).begin(1);
    record.field(|b| b.extend_from_slice(b"key"));
    record.field(|b| b.resize(b.len() + bytes, 7));
    record.header("tidemark.position", |b| b.extend_from_slice(b"1/0/16B3748/7"));
    record.finish();
    Append { records, state: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_up_to_the_limit_pass_and_larger_ones_are_named_before_anything_is_written() {
    let mut options = options("sizes");
    options.properties.insert("message.max.bytes".into(), "8500000".into());
    options.topic_config.insert("max.message.bytes".into(), "8500000".into());
    let log = KafkaLog::open(options).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let limit = log.record_bytes_max("sizes.t").unwrap();
    assert!(limit > 8 << 20, "{limit}");
    log.append(epoch, of_bytes(8 << 20)).await.unwrap();
    log.append(epoch, of_bytes(limit - 100)).await.unwrap();
    let rejected = log.append(epoch, of_bytes(9 << 20)).await.unwrap_err();
    let text = rejected.error.to_string();
    assert!(rejected.error.class() == Class::Retry && rejected.in_doubt, "{text}");
    for part in ["topic sizes.t", "position 1/0/16B3748/7", &format!("bytes, and at most {limit} fit")] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    log.append(epoch, of_bytes(10)).await.unwrap();
    assert_eq!(Kafka::shared().committed("sizes.t", 3).len(), 3);
}
