//! The log on Kafka, on a real broker: the conformance suite, and what only a broker can show.
//!
//! Who judges what consumers see is Kafka's own console consumer, and a plain consumer of librdkafka.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "kafka_log/prefixed.rs"]
mod prefixed;
mod support;

use std::sync::Arc;

use prefixed::Prefixed;
use support::Kafka;
use tidemark::log::{KafkaLog, KafkaLogOptions, Log, conformance};

/// The records of these tests are of 1970, which retention by time would not keep.
fn options(name: &str) -> KafkaLogOptions {
    let mut options = KafkaLogOptions::new(name, Kafka::shared().address());
    options.topic_config.insert("retention.ms".into(), "-1".into());
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    conformance::run(|name: String| async move {
        let log = KafkaLog::open(options(&name)).unwrap();
        Arc::new(Prefixed::new(&name, Arc::new(log))) as Arc<dyn Log>
    })
    .await;
}
