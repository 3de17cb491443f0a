//! `[log.kafka]`: brokers and topics, and two tables whose keys are Kafka's own names.

use std::collections::BTreeMap;

use super::document::Document;
use super::{KafkaLogConfig, Secret, StateConfig, check};

/// Properties of librdkafka that are the connector's, by the reason. The log refuses them as well; here they are told
/// with their line, together with everything else that is wrong.
const RESERVED: &[(&str, &[&str])] = &[
    ("it is [log.kafka] brokers", &["bootstrap.servers", "metadata.broker.list"]),
    ("it is [log.kafka] transactional_id", &["transactional.id"]),
    (
        "exactness hangs on it",
        &[
            "enable.idempotence",
            "acks",
            "request.required.acks",
            "isolation.level",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "auto.offset.reset",
            "enable.auto.commit",
            "partitioner",
        ],
    ),
];

/// Settings of topics that are the connector's.
const RESERVED_TOPIC: &[(&str, &str)] =
    &[("message.timestamp.type", "the time of a record is the time of its commit")];

/// Reads the section, which has to name brokers when it is `needed`.
pub(super) fn read(document: &Document<'_>, name: &str, state: &StateConfig, needed: bool) -> KafkaLogConfig {
    let section = document.section("log.kafka");
    let brokers = section.list("brokers", broker).unwrap_or_default();
    if needed && brokers.is_empty() && (!section.has("brokers") || section.is_empty_list("brokers")) {
        let text = "missing; expected addresses of brokers, such as [\"kafka-1.example.com:9092\"]";
        section.note("brokers", text.into());
    }
    let id = section.text("transactional_id", |text| {
        let fits = (1..=200).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c == ' ');
        if fits { Ok(text.to_owned()) } else { Err("1 to 200 bytes without spaces".to_owned()) }
    });
    let replicas = section.integer("replication_factor", "replicas", 0, 1000, 0) as u32;
    let mut properties = BTreeMap::new();
    for property in document.free("log.kafka.properties") {
        let (name, value) = property.secret();
        if let Some((why, _)) = RESERVED.iter().find(|(_, names)| names.contains(&name.as_str())) {
            property.note(format!("cannot be set: {why}"));
        } else if let Some(value) = value
            && properties.insert(name, Secret::new(value)).is_some()
        {
            property.note("given twice, as itself and as a file".into());
        }
    }
    let mut topic_config = BTreeMap::new();
    for setting in document.free("log.kafka.topic_config") {
        if let Some((_, why)) = RESERVED_TOPIC.iter().find(|(name, _)| *name == setting.name) {
            setting.note(format!("cannot be set: {why}"));
        } else if let Some(value) = setting.text(false) {
            topic_config.insert(setting.name.clone(), value);
        }
    }
    KafkaLogConfig {
        brokers,
        transactional_id: id.unwrap_or_else(|| format!("tidemark-{name}")),
        partitions: section.integer("partitions", "partitions", 1, 10_000, 1) as u32,
        replication_factor: (replicas > 0).then_some(replicas),
        create_topics: section.boolean("create_topics").unwrap_or(true),
        topic_config,
        properties,
        spill_path: section.text("spill_path", check::path).unwrap_or_else(|| state.dir.join("spill.db")),
        spill_bytes_max: section.integer("spill_bytes_max", "bytes", 0, 1024 << 40, 1 << 30),
    }
}

pub(super) fn broker(text: &str) -> Result<String, String> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !text.contains([',', ' ', '/', '@']) && port.parse::<u16>().is_ok()
    });
    if fits { Ok(text.to_owned()) } else { Err("host:port, such as \"kafka-1.example.com:9092\"".to_owned()) }
}
