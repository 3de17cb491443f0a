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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zz_timing() {
    use tidemark::log::*;
    let log = KafkaLog::open(options("timing")).unwrap();
    let t = std::time::Instant::now();
    let epoch = log.fence().await.unwrap().epoch;
    eprintln!("fence {:?}", t.elapsed());
    let mut batch = RecordBatch::default();
    for n in 0..10 {
        let one = conformance::numbered("x", n..n + 10);
        for r in one.topics().flat_map(|t| t.iter()) {
            prefixed::copy(r, &format!("timing.t{n}").into(), &mut batch);
        }
    }
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let a = Append { records: batch, state: vec![], visibility: Visibility::Now };
        batch = log.append(epoch, a).await.unwrap().records;
        eprintln!("append {:?}", t.elapsed());
    }
    for n in 0..10 {
        let t = std::time::Instant::now();
        let p = LogPartition { topic: format!("timing.t{n}").into(), partition: 0 };
        let f = log.read(&p, 0, 1000).await.unwrap();
        let t1 = t.elapsed();
        let g = log.read(&p, f.next, 10).await.unwrap();
        eprintln!("read {:?} {:?} {} {}", t1, t.elapsed(), f.offsets.len(), g.offsets.len());
    }
    let mut times = vec![];
    for _ in 0..200 {
        let mut one = RecordBatch::default();
        let small = conformance::numbered("x", 0..1);
        for r in small.topics().flat_map(|t| t.iter()) {
            prefixed::copy(r, &"timing.t1".into(), &mut one);
        }
        let t = std::time::Instant::now();
        log.append(
            epoch,
            Append { records: one, state: vec![("p".into(), b"1".to_vec())], visibility: Visibility::Now },
        )
        .await
        .unwrap();
        times.push(t.elapsed());
    }
    times.sort();
    eprintln!("small appends p50 {:?} p99 {:?}", times[100], times[198]);
    let t = std::time::Instant::now();
    for _ in 0..20 {
        log.ranges().await.unwrap();
    }
    eprintln!("20 ranges {:?}", t.elapsed());
}
