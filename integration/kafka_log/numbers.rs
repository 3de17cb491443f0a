//! Appends of numbers, and the check that each is there once and in order.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemark::log::{Append, Fenced, KafkaLogOptions, Log, LogPartition, RecordBatch};

use crate::support::Kafka;

/// Options on the shared broker.
pub fn options(name: &str) -> KafkaLogOptions {
    options_at(name, &Kafka::shared().address())
}

/// The records of these tests are of 1970, which retention by time would not keep.
pub fn options_at(name: &str, address: &str) -> KafkaLogOptions {
    let mut options = KafkaLogOptions::new(name, address);
    options.topic_config.insert("retention.ms".into(), "-1".into());
    options
}

/// The topic of numbers.
pub fn topic(name: &str) -> Arc<str> {
    format!("{name}.numbers").into()
}

/// A partition of it.
pub fn partition(name: &str, partition: u32) -> LogPartition {
    LogPartition { topic: topic(name), partition }
}

/// Records of numbers: key `k<n % 7>`, the number as value.
pub fn batch(name: &str, numbers: Range<u64>) -> RecordBatch {
    let mut batch = RecordBatch::default();
    for n in numbers {
        let mut record = batch.topic(&topic(name)).begin(1 + n as i64);
        record.field(|b| b.extend_from_slice(format!("k{}", n % 7).as_bytes()));
        record.field(|b| b.extend_from_slice(n.to_string().as_bytes()));
        record.header("n", |b| b.extend_from_slice(n.to_string().as_bytes()));
        record.finish();
    }
    batch
}

/// An append which moves the count to the end of the range.
pub fn step(name: &str, numbers: Range<u64>) -> Append {
    let state = vec![("count".into(), numbers.end.to_string().into_bytes())];
    Append { records: batch(name, numbers), state }
}

/// What the state says.
pub fn counted(fenced: &Fenced) -> u64 {
    fenced.state.get("count").map_or(0, |v| String::from_utf8_lossy(v).parse().unwrap())
}

/// Every number below `count` once, and in order per key, as our own readers see it.
pub async fn check_read(log: &dyn Log, name: &str, count: u64) {
    let mut found = Vec::new();
    for (partition, range) in log.ranges().await.unwrap() {
        let mut next = range.start;
        while partition.topic == topic(name) && next < range.end {
            let fetched = log.read(&partition, next, 1 << 20).await.unwrap();
            assert!(fetched.next > next, "{partition} stands still at {next} of {}", range.end);
            for (_, record) in fetched.iter() {
                found.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap().parse().unwrap());
            }
            next = fetched.next;
        }
    }
    check(&found, count);
}

/// The same, as Kafka's own console consumer sees it.
pub fn check_committed(kafka: &Kafka, name: &str, count: u64) {
    let lines = kafka.committed(&topic(name), count as usize);
    check(&lines.iter().map(|line| line.parse().unwrap()).collect::<Vec<_>>(), count);
}

fn check(found: &[u64], count: u64) {
    let mut sorted = found.to_vec();
    sorted.sort_unstable();
    let missing: Vec<u64> = (0..count).filter(|n| sorted.binary_search(n).is_err()).take(5).collect();
    let doubled: Vec<u64> = sorted.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).take(5).collect();
    assert!(missing.is_empty() && doubled.is_empty(), "missing {missing:?}, doubled {doubled:?} of {count}");
    assert_eq!(sorted.len() as u64, count, "more than there can be: the last is {:?}", sorted.last());
    for key in 0..7 {
        let of_key: Vec<u64> = found.iter().copied().filter(|n| n % 7 == key).collect();
        assert!(of_key.is_sorted(), "out of order for key k{key}");
    }
}

/// The partition of the state.
pub fn state(name: &str) -> LogPartition {
    LogPartition { topic: format!("{name}.state").into(), partition: 0 }
}

/// The high watermark: the end of everything, committed or not.
pub fn high_watermark(partition: &LogPartition) -> u64 {
    end(&Kafka::shared().address(), partition, "read_uncommitted")
}

/// Whether a transaction is open in a partition.
pub fn is_open(kafka: &Kafka, partition: &LogPartition) -> bool {
    let ends = ["read_committed", "read_uncommitted"].map(|level| end(&kafka.address(), partition, level));
    ends[0] != ends[1]
}

fn end(address: &str, partition: &LogPartition, isolation_level: &str) -> u64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("isolation.level", isolation_level)
        .create()
        .unwrap();
    let number = partition.partition as i32;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match consumer.fetch_watermarks(&partition.topic, number, Duration::from_secs(10)) {
            Ok((_, high)) => return high as u64,
            // A broker that has just started does not lead yet.
            Err(error) => assert!(Instant::now() < deadline, "{partition}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Takes over as the writer's producer, sends records and never commits.
pub fn send_without_commit(name: &str, partition: &LogPartition, count: usize) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", Kafka::shared().address())
        .set("transactional.id", format!("tidemark-{name}"))
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer.begin_transaction().unwrap();
    for n in 0..count {
        let value = format!("{}", 1_000_000 + n);
        let record = BaseRecord::<[u8], str>::to(&partition.topic)
            .partition(partition.partition as i32)
            .payload(&value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(5));
    }
    producer
}
