//! What the Kafka log is told, and what librdkafka is told in turn.
//!
//! Exactness hangs on some of librdkafka's properties. Those are set here, last, and [`RESERVED`] names them, so
//! that a configuration which wants them otherwise can be refused instead of being overruled in silence.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, types::RDKafkaConfRes};

use super::topics::Kind;
use crate::runtime::{Error, Result};

/// Properties of librdkafka which are not for the operator to set, and why.
pub const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "it is [log.kafka] brokers"),
    ("metadata.broker.list", "it is [log.kafka] brokers"),
    ("transactional.id", "it is [log.kafka] transactional_id"),
    ("enable.idempotence", "without it a broken connection doubles records"),
    ("enable.gapless.guarantee", "it turns errors which pass into ones which end the process"),
    ("acks", "a record counts as written when all replicas in sync have it"),
    ("request.required.acks", "a record counts as written when all replicas in sync have it"),
    ("isolation.level", "with another one, readers see records that were never committed"),
    ("max.in.flight", "the order of records hangs on it"),
    ("max.in.flight.requests.per.connection", "the order of records hangs on it"),
    ("message.timeout.ms", "it follows from transaction.timeout.ms"),
    ("delivery.timeout.ms", "it follows from transaction.timeout.ms"),
    ("delivery.report.only.error", "each record's offset is checked before its transaction is committed"),
    ("partitioner", "the log partition follows from the key, as in Kafka's own clients"),
    ("partition.assignment.strategy", "log partitions are read by place, without a group"),
    ("group.id", "log partitions are read by place, without a group"),
    ("group.instance.id", "log partitions are read by place, without a group"),
    ("auto.offset.reset", "a place that is gone is an error, and never passed over"),
    ("enable.auto.commit", "places are kept in the lake"),
    ("auto.commit.enable", "places are kept in the lake"),
    ("enable.auto.offset.store", "places are kept in the lake"),
    ("enable.partition.eof", "the ends of log partitions are found with it"),
    ("allow.auto.create.topics", "topics are created with the settings of [log.kafka]"),
    ("plugin.library.paths", "it loads code into this process"),
];

/// The largest record when `message.max.bytes` is not given: librdkafka's default.
const MESSAGE_BYTES_MAX: usize = 1_000_000;

/// What the framing of a record may add to its own bytes.
pub(super) const FRAMING_BYTES: usize = 512;
/// `message.max.bytes` of a broker that is told nothing else.
const BROKER_BYTES_MAX: usize = 1_048_588;

/// What the Kafka log is told.
#[derive(Clone)]
pub struct KafkaLogOptions {
    /// The connector's name: its topics begin with `<name>.`.
    pub name: String,
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Kafka's name for the one writer. It must stay the same for as long as the topics live.
    pub transactional_id: String,
    /// Partitions of a table's topic that is created.
    pub partitions: u32,
    /// Replicas of a topic that is created; the brokers' default when none is given.
    pub replication_factor: Option<u32>,
    /// Whether missing topics are created, or refused.
    pub create_topics: bool,
    /// Kafka's own settings for topics that are created.
    pub topic_config: BTreeMap<String, String>,
    /// librdkafka's own properties. Their values may be secrets.
    pub properties: BTreeMap<String, String>,
    /// Topics with one partition that are kept for ever.
    pub kept_topics: Vec<String>,
    /// Further topics with one partition.
    pub single_topics: Vec<String>,
    /// What more of those begin with.
    pub single_topics_prefix: Option<String>,
}

impl KafkaLogOptions {
    /// One partition a topic, topics are created, and everything else is as the brokers have it.
    pub fn new(name: impl Into<String>, brokers: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            brokers: vec![brokers.into()],
            transactional_id: format!("tidemark-{name}"),
            partitions: 1,
            replication_factor: None,
            create_topics: true,
            topic_config: BTreeMap::new(),
            properties: BTreeMap::new(),
            kept_topics: Vec::new(),
            single_topics: Vec::new(),
            single_topics_prefix: None,
            name,
        }
    }

    /// The topic of the writer's state.
    pub(super) fn state_topic(&self) -> Arc<str> {
        format!("{}.state", self.name).into()
    }

    /// What a topic is for.
    pub(super) fn kind(&self, topic: &str) -> Kind {
        let is = |list: &[String]| list.iter().any(|other| other == topic);
        if topic == &*self.state_topic() {
            Kind::State
        } else if is(&self.kept_topics) {
            Kind::Kept
        } else if is(&self.single_topics)
            || self.single_topics_prefix.as_ref().is_some_and(|prefix| topic.starts_with(prefix))
        {
            Kind::Single
        } else {
            Kind::Table
        }
    }

    /// Brokers, for messages.
    pub(super) fn brokers(&self) -> String {
        self.brokers.join(",")
    }

    /// The commands by which an administrator gives all rights that are needed. `NAME`: the principal, which the brokers
    /// know.
    pub(super) fn rights(&self) -> String {
        let add =
            format!("kafka-acls.sh --bootstrap-server {} --add --allow-principal User:NAME", self.brokers());
        let create = if self.create_topics { " --operation Create" } else { "" };
        let (name, id) = (&self.name, &self.transactional_id);
        format!(
            "{add} --operation Read --operation Write --operation DescribeConfigs{create} --topic {name}. \
             --resource-pattern-type prefixed\n\
             {add} --operation Write --transactional-id {id} --transactional-id {}",
            self.check_id()
        )
    }

    /// The transactional id of `tidemark check`, which must not fence a writer.
    pub(super) fn check_id(&self) -> String {
        format!("{}-check", self.transactional_id)
    }

    /// The largest record, in bytes of key, value and headers.
    pub(super) fn record_bytes_max(&self) -> usize {
        let given = self.properties.get("message.max.bytes").and_then(|bytes| bytes.trim().parse().ok());
        given.unwrap_or(MESSAGE_BYTES_MAX).saturating_sub(FRAMING_BYTES)
    }

    /// What a topic takes that nobody has asked for yet: as it would be made, on brokers that are told nothing else.
    pub(super) fn record_bytes_sure(&self) -> usize {
        let made = self.topic_config.get("max.message.bytes").and_then(|bytes| bytes.trim().parse().ok());
        let taken = made.unwrap_or(BROKER_BYTES_MAX).min(BROKER_BYTES_MAX);
        taken.saturating_sub(FRAMING_BYTES).min(self.record_bytes_max())
    }

    /// What may wait in memory: one request on its way and half of the next, and in any case the largest record. With
    /// more, librdkafka's thread spends the time until an answer awake, since what waits has waited for longer than its
    /// linger by then.
    fn queue_kbytes(&self) -> usize {
        const REQUEST_BYTES: usize = 1_000_000;
        (self.record_bytes_max() + FRAMING_BYTES).max(REQUEST_BYTES * 3 / 2) / 1024 + 64
    }

    /// Kafka aborts a transaction which is silent for so long.
    pub(super) fn transaction_timeout(&self) -> Duration {
        let given = self.properties.get("transaction.timeout.ms").and_then(|ms| ms.trim().parse().ok());
        Duration::from_millis(given.unwrap_or(60_000))
    }

    /// Refuses what librdkafka does not know, all of it at once, without a value in the message.
    pub(super) fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, value) in &self.properties {
            let checked = ClientConfig::new().set(name, value).create_native_config();
            if let Err(KafkaError::ClientConfig(kind, ..)) = checked.map(drop) {
                wrong.push(match kind {
                    RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => format!("{name:?} is not known"),
                    _ => format!("the value of {name:?} is not one of those that it takes"),
                });
            }
            if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
                wrong.push(format!("{name:?} cannot be set: {why}"));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::usage(format!("[log.kafka.properties]: {}", wrong.join("; ")))
            .mend("The names and their values are those of librdkafka's CONFIGURATION.md."))
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("queue.buffering.max.kbytes", self.queue_kbytes().to_string())
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("transaction.timeout.ms", "60000");
        self.add_properties(&mut config);
        let timeout_ms = self.transaction_timeout().as_millis().to_string();
        config
            .set("enable.idempotence", "true")
            .set("transactional.id", &self.transactional_id)
            .set("message.timeout.ms", timeout_ms);
        config
    }

    /// For readers that see what is committed, or (`committed` false) only ask for offsets of everything.
    pub(super) fn consumer(&self, committed: bool) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("fetch.wait.max.ms", "20")
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.max.bytes", self.fetch_bytes_max().to_string())
            .set(
                "receive.message.max.bytes",
                (self.fetch_bytes_max() + (1 << 20)).max(100_000_000).to_string(),
            )
            .set("max.partition.fetch.bytes", "4194304")
            .set("check.crcs", "true");
        self.add_properties(&mut config);
        config
            .set("group.id", format!("{}-reader", self.transactional_id))
            .set("isolation.level", if committed { "read_committed" } else { "read_uncommitted" })
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false");
        config
    }

    /// Bytes of one answer, which must have room for the largest record.
    fn fetch_bytes_max(&self) -> usize {
        (self.record_bytes_max() + FRAMING_BYTES).clamp(8 << 20, 1 << 30)
    }

    pub(super) fn admin(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.add_properties(&mut config);
        config
    }

    fn add_properties(&self, config: &mut ClientConfig) {
        config
            .set("client.id", format!("tidemark-{}", self.name))
            .set("bootstrap.servers", self.brokers())
            .set("reconnect.backoff.max.ms", "2000")
            .set("topic.metadata.propagation.max.ms", "10000");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set_log_level(RDKafkaLogLevel::Info);
    }
}

impl fmt::Debug for KafkaLogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLogOptions")
            .field("name", &self.name)
            .field("brokers", &self.brokers)
            .field("transactional_id", &self.transactional_id)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("create_topics", &self.create_topics)
            .field("topic_config", &self.topic_config)
            .field("properties", &self.properties.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Class;

    #[test]
    fn all_properties_that_do_not_work_are_named_at_once_and_no_value_is_shown() {
        let mut options = KafkaLogOptions::new("shop", "localhost:9092");
        for (name, value) in
            [("sasl.pasword", "geheim"), ("compression.type", "geheim2"), ("acks", "1"), ("linger.ms", "3")]
        {
            options.properties.insert(name.into(), value.into());
        }
        let error = options.check().unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        let text = error.to_string();
        for part in
            ["\"sasl.pasword\" is not known", "the value of \"compression.type\"", "\"acks\" cannot be set"]
        {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        assert!(!text.contains("geheim") && !text.contains("linger"), "{text}");
        assert!(!format!("{options:?}").contains("geheim"));
    }

    #[test]
    fn what_exactness_hangs_on_cannot_be_overridden() {
        let mut options = KafkaLogOptions::new("shop", "localhost:9092");
        options.properties.insert("enable.idempotence".into(), "false".into());
        options.properties.insert("isolation.level".into(), "read_uncommitted".into());
        assert_eq!(options.producer().get("enable.idempotence"), Some("true"));
        assert_eq!(options.producer().get("transactional.id"), Some("tidemark-shop"));
        assert_eq!(options.consumer(true).get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn every_reserved_property_is_one_that_librdkafka_knows() {
        for (name, _) in RESERVED {
            let known = ClientConfig::new().set(*name, "").create_native_config().map(drop);
            let unknown =
                matches!(known, Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)));
            assert!(!unknown, "{name}");
        }
    }
}
