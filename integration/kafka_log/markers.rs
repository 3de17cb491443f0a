//! Commits that were confirmed, of which markers are missing.
//!
//! Kafka 4.3 leaves them out at times, when it was killed before it had written them (see `src/log/kafka/markers.rs`);
//! how often depends on how busy the machine is. Here they are cut off its files while it is dead, which leaves the same
//! behind: a coordinator that has done all, and partitions with a transaction that nobody will end.

use std::fs::{self, File};
use std::ops::Range;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemark::log::{KafkaLog, Log, LogPartition};

use super::numbers::{self, counted, options_at, step};
use crate::support::{Kafka, PATIENCE};

/// A log with fifty numbers, and what its writer would send next.
struct Fixture {
    kafka: Kafka,
    name: &'static str,
    count: u64,
    end: u64,
    appends: u64,
}

impl Fixture {
    async fn new(name: &'static str) -> Self {
        let kafka = Kafka::start();
        let log = KafkaLog::open(options_at(name, &kafka.address())).unwrap();
        let fenced = log.fence().await.unwrap();
        log.append(fenced.epoch, step(name, 0..50)).await.unwrap();
        Self { kafka, name, count: 50, end: 50, appends: 1 }
    }

    fn producer(&self) -> BaseProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.address())
            .set("transactional.id", format!("tidemark-{}", self.name))
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer
    }

    /// The numbers of the next append.
    fn numbers(&self) -> Range<u64> {
        self.count..self.count + 50
    }

    fn send_numbers(&self, producer: &BaseProducer) {
        for n in self.numbers() {
            send(producer, &numbers::topic(self.name), &format!("k{}", n % 7), &n.to_string());
        }
    }

    /// The state of the next append, whose records come after one marker.
    fn send_state(&self, producer: &BaseProducer) {
        let (topic, name) = (format!("{}.state", self.name), self.name);
        send(producer, &topic, &format!("end/{name}.numbers/0"), &(self.end + 51).to_string());
        send(producer, &topic, "s/count", &(self.count + 50).to_string());
        let appends = self.appends + 1;
        let writer = format!(r#"{{"epoch":1,"appends":{appends},"transactional_id":"tidemark-{name}"}}"#);
        send(producer, &topic, "writer", &writer);
    }

    /// Commits; the last markers of these partitions are gone.
    fn commit_without_markers(&mut self, producer: BaseProducer, partitions: &[LogPartition]) {
        sent(&producer);
        producer.commit_transaction(PATIENCE).unwrap();
        drop(producer);
        // It is let in once the coordinator has all markers written, and remembers that.
        drop(self.producer());
        self.kafka.kill();
        for partition in partitions {
            cut_marker(&self.kafka, partition);
        }
        self.kafka.start_again();
        for partition in partitions {
            assert!(numbers::is_open(&self.kafka, partition), "{partition}");
        }
    }

    /// The append is whole.
    fn appended(&mut self) {
        self.count += 50;
        self.end += 51;
        self.appends += 1;
    }

    /// The next writer finds so many numbers, consumers see them, and it can go on.
    async fn check(&self, count: u64) {
        let log = KafkaLog::open(options_at(self.name, &self.kafka.address())).unwrap();
        let fenced = log.fence().await.unwrap();
        assert_eq!(counted(&fenced), count);
        numbers::check_committed(&self.kafka, self.name, count);
        log.append(fenced.epoch, step(self.name, count..count + 70)).await.unwrap();
        numbers::check_committed(&self.kafka, self.name, count + 70);
        numbers::check_read(&log, self.name, count + 70).await;
    }
}

/// Cuts the marker off that a partition ends with: a batch of control records, in the format of the message's version 2.
fn cut_marker(kafka: &Kafka, partition: &LogPartition) {
    const LENGTH_AT: usize = 8;
    const ATTRIBUTES_AT: usize = 21;
    const CONTROL: u8 = 0x20;
    let folder = kafka.folder().join("data").join(format!("{}-{}", partition.topic, partition.partition));
    // Names are first offsets, of one length.
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let segment = files.filter(|path| path.extension().is_some_and(|ext| ext == "log")).max().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let (mut last, mut next) = (0, 0);
    while next < bytes.len() {
        let length = bytes[next + LENGTH_AT..][..4].try_into().unwrap();
        last = next;
        next += LENGTH_AT + 4 + u32::from_be_bytes(length) as usize;
    }
    // The lower of two bytes.
    assert!(bytes[last + ATTRIBUTES_AT + 1] & CONTROL != 0, "{partition} ends with a marker");
    File::options().write(true).open(&segment).unwrap().set_len(last as u64).unwrap();
}

fn send(producer: &BaseProducer, topic: &str, key: &str, value: &str) {
    let record = BaseRecord::<str, str>::to(topic).partition(0).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

fn sent(producer: &BaseProducer) {
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_without_any_marker_is_not_there() {
    let mut fixture = Fixture::new("unmarked").await;
    let producer = fixture.producer();
    producer.begin_transaction().unwrap();
    fixture.send_numbers(&producer);
    fixture.send_state(&producer);
    let both = [numbers::partition("unmarked", 0), numbers::state("unmarked")];
    fixture.commit_without_markers(producer, &both);
    fixture.check(fixture.count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_records_are_seen_is_there_though_its_state_has_no_marker() {
    let mut fixture = Fixture::new("stateless").await;
    let producer = fixture.producer();
    producer.begin_transaction().unwrap();
    fixture.send_numbers(&producer);
    sent(&producer);
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    fixture.send_state(&producer);
    fixture.commit_without_markers(producer, &[numbers::state("stateless")]);
    fixture.appended();
    fixture.check(fixture.count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_the_state_counts_on_is_written_again_where_its_records_have_no_marker() {
    let mut fixture = Fixture::new("recordless").await;
    let producer = fixture.producer();
    producer.begin_transaction().unwrap();
    fixture.send_numbers(&producer);
    fixture.commit_without_markers(producer, &[numbers::partition("recordless", 0)]);
    let producer = fixture.producer();
    producer.begin_transaction().unwrap();
    fixture.send_state(&producer);
    sent(&producer);
    producer.commit_transaction(PATIENCE).unwrap();
    fixture.appended();
    fixture.check(fixture.count).await;
}
