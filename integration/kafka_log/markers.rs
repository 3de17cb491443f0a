//! Commits that were confirmed, by a broker which was killed before it had written their markers.
//!
//! Kafka 4.3 mostly leaves such markers out when it starts again. The broker's way to itself, on which it brings them,
//! leads over a network that can be stalled, so that it is sure to be killed in between.

use std::ops::Range;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemark::log::{KafkaLog, Log, LogPartition};

use super::numbers::{self, counted, options_at, step};
use crate::support::{Kafka, Network, Node, Proxy, free_port};

/// How often the broker may write its markers after all.
const TRIES: u64 = 30;

/// A log with fifty numbers, and what its writer would send next.
struct Fixture {
    kafka: Kafka,
    network: Proxy,
    name: &'static str,
    count: u64,
    end: u64,
    appends: u64,
}

impl Fixture {
    async fn new(name: &'static str) -> Self {
        let port = free_port();
        let network = Proxy::start(port).await;
        let peers = Some((network.port(), port));
        let mut kafka = Kafka::prepare(Node { id: 1, controllers: &[free_port()], properties: &[], peers });
        kafka.start_again();
        make_topics(&kafka, 200);
        let log = KafkaLog::open(options_at(name, &kafka.address())).unwrap();
        let fenced = log.fence().await.unwrap();
        log.append(fenced.epoch, step(name, 0..50)).await.unwrap();
        Self { kafka, network, name, count: 50, end: 50, appends: 1 }
    }

    fn producer(&self) -> BaseProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.address())
            .set("transactional.id", format!("tidemark-{}", self.name))
            .create()
            .unwrap();
        producer.init_transactions(Duration::from_secs(20)).unwrap();
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

    /// Commits, and kills the broker before it has written a marker; whether it has left them out.
    fn commit_without_markers(&mut self, producer: BaseProducer, partition: &LogPartition) -> bool {
        sent(&producer);
        self.network.set(Network::Stalled);
        producer.commit_transaction(Duration::from_secs(20)).unwrap();
        self.kafka.kill();
        drop(producer);
        self.network.set(Network::Up);
        self.kafka.start_again();
        numbers::stays_open(&self.kafka, partition)
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

/// The more topics with settings there are, the longer it takes until a broker that starts has heard of them all.
fn make_topics(kafka: &Kafka, count: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.address()).create().unwrap();
    let names: Vec<String> = (0..count).map(|n| format!("other-{n}")).collect();
    let topic = |name| NewTopic::new(name, 1, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let topics: Vec<NewTopic<'_>> = names.iter().map(|name| topic(name)).collect();
    let made = block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
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
    for tried in 1.. {
        assert!(tried <= TRIES, "all of {TRIES} times the broker wrote its markers when it started again");
        let producer = fixture.producer();
        producer.begin_transaction().unwrap();
        fixture.send_numbers(&producer);
        fixture.send_state(&producer);
        if fixture.commit_without_markers(producer, &numbers::state("unmarked")) {
            break;
        }
        fixture.appended();
    }
    fixture.check(fixture.count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_records_are_seen_is_there_though_its_state_has_no_marker() {
    let mut fixture = Fixture::new("stateless").await;
    for tried in 1.. {
        assert!(tried <= TRIES, "all of {TRIES} times the broker wrote its markers when it started again");
        let producer = fixture.producer();
        producer.begin_transaction().unwrap();
        fixture.send_numbers(&producer);
        sent(&producer);
        producer.commit_transaction(Duration::from_secs(20)).unwrap();
        producer.begin_transaction().unwrap();
        fixture.send_state(&producer);
        let left_out = fixture.commit_without_markers(producer, &numbers::state("stateless"));
        fixture.appended();
        if left_out {
            break;
        }
    }
    fixture.check(fixture.count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_the_state_counts_on_is_written_again_where_its_records_have_no_marker() {
    let mut fixture = Fixture::new("recordless").await;
    for tried in 1.. {
        assert!(tried <= TRIES, "all of {TRIES} times the broker wrote its markers when it started again");
        let producer = fixture.producer();
        producer.begin_transaction().unwrap();
        fixture.send_numbers(&producer);
        let left_out = fixture.commit_without_markers(producer, &numbers::partition("recordless", 0));
        let producer = fixture.producer();
        producer.begin_transaction().unwrap();
        fixture.send_state(&producer);
        sent(&producer);
        producer.commit_transaction(Duration::from_secs(20)).unwrap();
        fixture.appended();
        if left_out {
            break;
        }
    }
    fixture.check(fixture.count).await;
}
